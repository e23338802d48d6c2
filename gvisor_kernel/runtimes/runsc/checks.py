"""The checks of ``doctor``: the program runsc, and what it needs of this machine.

Where possible a check tries the feature instead of reading what the system claims: that of the
platform starts a sandbox.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.host.bounded import run_command
from gvisor_kernel.runtimes.checks import Check, RuntimeCheck, failed, ok, warning
from gvisor_kernel.runtimes.hints import read_sysctl
from gvisor_kernel.runtimes.runsc.command_line import INSTALL, Runsc, command_flags, find_runsc
from gvisor_kernel.runtimes.runsc.staging import choose_stage

INSTALL_RUNSC = "gvisor-kernel runsc install   # a current gVisor, for this user; as root, for all"
MAX_AGE_DAYS = 365
"""gVisor makes a release each week, and fixes security issues in the newest only."""

CHECKPOINT_FLAGS = {
    "compression": "no uncompressed snapshots: they take longer to write and to restore",
    "exclude-committed-zero-pages": "empty memory is saved: snapshots are larger",
}
"""Optional flags of ``runsc checkpoint``, and what happens without each."""


def check_runsc(choice: str = "") -> list[Check]:
    """Check that runsc is there, that its release is recent, and which features it lacks.

    ``choice``: a value of the setting ``runsc``.
    """
    try:
        runsc = find_runsc(choice)
    except RuntimeMissing as error:
        hint = INSTALL_RUNSC if INSTALL in error.hint else error.hint
        return [failed(error.fact.rstrip("."), hint)]
    today = datetime.now(UTC).date()
    released = find_release_date(runsc.version, today)
    sidecars = f" (with {', '.join(runsc.sidecars)})" if runsc.sidecars else ""
    fact = f"{runsc.path}{sidecars}, release {runsc.version.removeprefix('0.0~')}"
    if released is None:
        fact = f"{fact}; the age cannot be told from this version"
        checks = [warning(fact, INSTALL_RUNSC)]
    else:
        days = (today - released).days
        fact = f"{fact} of {released.isoformat()}, {describe_age(days)} old"
        checks = [
            warning(f"{fact}: later security fixes are missing", INSTALL_RUNSC)
            if days > MAX_AGE_DAYS
            else ok(fact)
        ]
    missing = find_missing_features(runsc)
    if missing:
        checks.append(warning("; ".join(missing), INSTALL_RUNSC, name="runsc features"))
    return checks


def find_release_date(version: str, today: date) -> date | None:
    """Return the day in a version such as "20260817.0"; None if it has none, or a future one."""
    for year, month, day in re.findall(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?!\d)", version):
        try:
            found = date(int(year), int(month), int(day))
        except ValueError:
            continue
        if found <= today:
            return found
    return None


def describe_age(days: int) -> str:
    """Describe a number of days in days, weeks, months or years."""
    for unit, length in (("year", 365.25), ("month", 30.44), ("week", 7.0)):
        if days >= 2 * length:
            digits = 1 if unit == "year" else 0
            return f"{days / length:.{digits}f} {unit}s"
    return "1 day" if days == 1 else f"{days} days"


def find_missing_features(runsc: Runsc) -> list[str]:
    """Describe the optional features of runsc that this release lacks."""
    try:
        flags = command_flags(runsc, "checkpoint")
    except RuntimeMissing as error:
        return [f"the flags of `runsc checkpoint` could not be read: {error.fact}"]
    return [text for flag, text in CHECKPOINT_FLAGS.items() if flag not in flags]


# The platform.

PLATFORM_SECONDS = 15.0
"""Seconds that a sandbox may take for its start and its end."""


def check_platform(choice: str = "") -> Check:
    """Start a sandbox with ``runsc do`` and run uname in it. Never on kvm: that can hang.

    ``choice``: as in ``check_runsc``. Nothing is left, also if this process is killed: runsc ends
    with it, and its state is on a file system of its own.
    """
    try:
        runsc = find_runsc(choice).path
    except RuntimeMissing:
        return failed("not tested, because runsc is missing", INSTALL_RUNSC)
    stage = choose_stage([runsc]).directory
    root = f"{stage}/gvisor-kernel-doctor-{secrets.token_hex(8)}"
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "-Urm", "/bin/sh", "-c"]
    argv += ['mount -t tmpfs gvisor-kernel "$0" && exec "$@"', stage]
    argv += [runsc, "--root", root, "--network=none", "--ignore-cgroups"]
    argv += ["--platform=systrap", "do", "-quiet", "-cwd", "/", "/bin/uname", "-sr"]
    try:
        outcome = run_command(argv, PLATFORM_SECONDS, mark=root)
    except OSError as error:
        return failed(f"setpriv: {error.strerror}", "sudo apt-get install util-linux")
    retry = f"unshare -Ur {shlex.quote(runsc)} --network=none --ignore-cgroups do /bin/true"
    if outcome.status is None:
        words = f"a systrap sandbox did not end within {PLATFORM_SECONDS:g} s"
        return failed(words, retry)
    last = outcome.output.splitlines()[-1] if outcome.output else "no output"
    if outcome.status != 0:
        return failed(f"a systrap sandbox ended with status {outcome.status}: {last[:300]}", retry)
    if last == f"Linux {platform.release()}":
        return failed(
            "runsc started a program on the host's kernel, not on gVisor's", INSTALL_RUNSC
        )
    return ok(f"a systrap sandbox started; its kernel is {last}")


# Features of the host's kernel.


def sysctl_fix(name: str, value: int) -> str:
    """Return the command that sets the sysctl ``name`` now and after each boot."""
    return (
        f"echo '{name} = {value}' | sudo tee -a /etc/sysctl.d/60-gvisor-kernel.conf"
        " && sudo sysctl --system"
    )


CONTAINER_FIX = (
    "start this container with the permission to create user namespaces, for example: docker run"
    " --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    " --security-opt systempaths=unconfined …"
)


def is_container() -> bool:
    """Return whether this process seems to run in a container."""
    return (
        any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        or "container" in os.environ
        or Path("/run/systemd/container").exists()
    )


def check_userns() -> Check:
    """Make a user and a mount namespace with ``unshare``; if that fails, find out why."""
    try:
        outcome = run_command(["unshare", "-Urm", "/bin/true"], 5)
    except OSError as error:
        return failed(f"unshare: {error.strerror}", "sudo apt-get install util-linux")
    if outcome.status == 0:
        return ok("this user may create them")
    fact, fix = explain_userns(read_sysctl, is_container(), read_status("Seccomp"))
    evidence = outcome.output.splitlines()[-1][:200] if outcome.output else "no answer within 5 s"
    return failed(f"{fact} ({evidence})", fix)


def explain_userns(
    sysctl: Callable[[str], str | None], container: bool, seccomp: str | None
) -> tuple[str, str]:
    """Return what most likely forbids user namespaces, and how to allow them."""
    if sysctl("user.max_user_namespaces") == "0":
        name = "user.max_user_namespaces"
        return f"forbidden by {name} = 0", sysctl_fix(name, 15000)
    if sysctl("kernel.unprivileged_userns_clone") == "0":
        name = "kernel.unprivileged_userns_clone"
        return f"forbidden by {name} = 0", sysctl_fix(name, 1)
    if container:
        why = "a seccomp filter" if seccomp == "2" else "its security profile"
        return f"forbidden in this container by {why}", CONTAINER_FIX
    if sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return f"forbidden by AppArmor: {name} = 1", sysctl_fix(name, 0)
    if seccomp == "2":
        return (
            "forbidden by a seccomp filter on this process",
            "run this in a session without that filter",
        )
    return (
        "forbidden for an unknown reason",
        "unshare -Urm true   # show its message to your administrator",
    )


def read_status(name: str) -> str | None:
    """Return a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None


def check_seccomp() -> Check:
    """Check seccomp filters: gVisor's systrap and the confinement of the sentry need them."""
    actions = (read_sysctl("kernel.seccomp.actions_avail") or "").split()
    missing = [action for action in ("trap", "errno", "kill_process") if action not in actions]
    if missing:
        return failed(
            f"this kernel's seccomp filters lack the actions {', '.join(missing)}",
            "use a kernel built with CONFIG_SECCOMP_FILTER, as those of all distributions are",
        )
    return ok(f"filters are available on Linux {platform.release()}")


NOT_ENFORCED = "the limits of memory and disk are enforced, cpu_shares is not"


def check_cgroups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Check:
    """Check which version of cgroups there is, and whether this user may create limited groups."""
    lines = own.read_text().splitlines() if own.exists() else []
    unified = next((line[3:] for line in lines if line.startswith("0::")), "/")
    if (root / "cgroup.controllers").exists():
        folder = root / unified.lstrip("/")
        try:
            controllers = set((folder / "cgroup.controllers").read_text().split())
        except OSError:
            controllers = set()
        missing = {"memory", "pids", "cpu"} - controllers
        if os.access(folder, os.W_OK) and not missing:
            return ok("v2, delegated to this user: all limits are enforced")
        lacking = f"without {', '.join(sorted(missing))}" if missing else "not writable"
        return warning(
            f"v2, {lacking} for this user: {NOT_ENFORCED}",
            "sudo systemctl set-property user@$(id -u).service Delegate='cpu memory pids'"
            "   # then log in again",
        )
    if (root / "memory").is_dir():
        folders = [root / name for name in ("memory", "pids", "cpu")]
        if all(os.access(folder, os.W_OK) for folder in folders):
            return ok("v1, writable: all limits are enforced")
        return warning(
            f"v1, not writable for this user: {NOT_ENFORCED}",
            "boot with cgroup v2, which can be delegated to users",
        )
    return warning(
        f"none at {root}: {NOT_ENFORCED}",
        f"nothing has to be done; to get cpu_shares: mount -t cgroup2 none {root}",
    )


def find_choices(specs: Sequence[SandboxSpec]) -> list[str]:
    """Return the values of the setting ``runsc``."""
    return sorted({spec.runsc for spec in specs}) or [""]


CHECKS = (
    RuntimeCheck("runsc", 10, lambda specs: [*chain(*map(check_runsc, find_choices(specs)))]),
    RuntimeCheck("platform", 20, lambda specs: [*map(check_platform, find_choices(specs))]),
    RuntimeCheck("user namespaces", 10, lambda specs: [check_userns()]),
    RuntimeCheck("seccomp", 5, lambda specs: [check_seccomp()]),
    RuntimeCheck("cgroups", 5, lambda specs: [check_cgroups()]),
)
