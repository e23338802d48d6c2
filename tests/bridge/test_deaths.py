"""Words for the death of a kernel."""

from __future__ import annotations

import pytest

from gvisor_kernel.bridge.addresses import KernelIdentity
from gvisor_kernel.bridge.deaths import (
    Death,
    advise_more_memory,
    describe_death,
    find_death,
    find_loss,
)

RAISE = "type: gvisor-kernel install --update --name NAME --set memory_limit=2GiB (NAME: the"


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (find_death(1, None), "The kernel ended unexpectedly with exit status 1."),
        (find_death(-9, None), "The kernel ended unexpectedly by signal SIGKILL."),
        (find_death(-99, None, "x"), "unexpectedly by signal 99. Its last output was: x"),
        (Death("signal", status=-7, limit=1 << 30), "SIGBUS. One possible cause is a program that"),
        (find_loss("the job ended.", None), "The kernel's sandbox is gone: the job ended."),
        (find_loss("a", None, "p"), 'The kernel\'s sandbox is gone: a. gVisor failed with "p".'),
        (
            Death("memory", used=3 << 29, limit=1 << 30),
            "used 1.5 GiB of memory; its limit is 1",
        ),
        (Death("memory", used=3 << 29, limit=1 << 30), RAISE),
    ],
)
def test_a_death_says_how_and_what_to_do(death: Death, text: str) -> None:
    assert text in describe_death(death)


def test_the_edge_says_how_to_get_more_memory() -> None:
    death = Death("memory", used=2 << 30, limit=1 << 30)
    assert describe_death(death, "Take {more}.").endswith("It was ended. Take 2GiB.")
    assert describe_death(death, "").endswith("It was ended.")


def test_the_command_names_the_kernels_own_kernelspec() -> None:
    death = Death("memory", used=2 << 30, limit=1 << 30)
    known = KernelIdentity("my-k", b"", "hmac-sha256", 1 << 30, kernelspec="/a {b}/kernel.json")
    assert describe_death(death, advise_more_memory(known)).endswith(
        "To allow more, type: gvisor-kernel install --update --name my-k --set memory_limit=2GiB"
        " (it changes /a {b}/kernel.json), shut the kernel down and start it again; a restart keeps"
        " its limit."
    )
    odd = KernelIdentity("a {b}; c", b"", "hmac-sha256", 1 << 30, kernelspec="/k")
    assert "--name 'a {b}; c' --set" in describe_death(death, advise_more_memory(odd))
    unknown = KernelIdentity("my-k", b"", "hmac-sha256", 1 << 30)
    assert RAISE in describe_death(death, advise_more_memory(unknown))
