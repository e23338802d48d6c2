"""The seccomp filter of kernels, evaluated step by step for every number of a system call."""

from __future__ import annotations

import errno
import struct

import pytest

from gvisor_kernel.guest import seccomp
from gvisor_kernel.guest.seccomp import ALLOW, ERRNO, KILL_PROCESS, NUMBERS, RULES

from ..security.filters import STEP, Program, run

OTHER_BITS = 0o1777
"""Every bit of a mode that a kernel may set."""
MAX_STEPS = 16
"""Steps for one call. gVisor runs the filter for hundreds of numbers for each new thread."""


def assemble(machine: str) -> Program:
    return [STEP.unpack(step) for step in seccomp.assemble_program(machine)]


def evaluate(machine: str, number: int, *arguments: int) -> tuple[int, int]:
    args = [*arguments, *[0] * 6][:6]
    call = struct.pack("=iIQ6Q", number, seccomp.ARCHITECTURES[machine], 0, *args)
    return run(assemble(machine), call)


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_calls_without_a_rule_are_allowed(machine: str) -> None:
    ruled = NUMBERS[machine].values()
    answers = {n: evaluate(machine, n, *[0xFFFFFFFF] * 6) for n in range(600) if n not in ruled}
    assert [number for number, (action, _) in answers.items() if action != ALLOW] == []
    assert max(steps for _, steps in answers.values()) <= MAX_STEPS


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_hidden_and_forbidden_calls_fail(machine: str) -> None:
    numbers = NUMBERS[machine]
    for name in seccomp.HIDDEN_CALLS:
        assert evaluate(machine, numbers[name])[0] == ERRNO | errno.ENOSYS, name
    for name in seccomp.FORBIDDEN_CALLS:
        assert evaluate(machine, numbers[name])[0] == ERRNO | errno.EPERM, name


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
@pytest.mark.parametrize("name", RULES)
def test_every_forbidden_bit_of_a_mode_is_refused(machine: str, name: str) -> None:
    number, rule = NUMBERS[machine].get(name), RULES[name]
    if number is None:
        pytest.skip("this machine has no such call")
    arguments = [0] * 6
    for flags in (0o100, 0o20000000) if rule.flags is not None else (0,):
        if rule.flags is not None:
            arguments[rule.flags] = flags
        for bit in (1 << shift for shift in range(16)):
            arguments[rule.mode] = bit
            expected = ERRNO | errno.EPERM if bit & rule.bits else ALLOW
            assert evaluate(machine, number, *arguments)[0] == expected, (name, oct(bit))
        arguments[rule.mode] = OTHER_BITS
        assert evaluate(machine, number, *arguments)[0] == ALLOW
    if rule.flags is not None:
        arguments[rule.flags], arguments[rule.mode] = 0, 0o6777
        assert evaluate(machine, number, *arguments)[0] == ALLOW, "it creates nothing"


def test_call_of_another_architecture_ends_the_process() -> None:
    call = struct.pack("=iIQ6Q", 0, 0x40000003, 0, *[0] * 6)
    for machine in seccomp.ARCHITECTURES:
        assert run(assemble(machine), call)[0] == KILL_PROCESS


def test_machine_without_rules_is_refused() -> None:
    with pytest.raises(OSError, match="no seccomp rules for the machine 'riscv64'"):
        seccomp.assemble_program("riscv64")
