"""What the last words of a failed sandbox mean, and what a person can do about it."""

from __future__ import annotations

import re
from pathlib import Path

from gvisor_kernel.host.stage import TOO_MANY_FILES

ASK_DOCTOR = "run `gvisor-kernel doctor`, which looks for the cause."

_USER_NAMESPACES = re.compile(
    r"unshare: (unshare|write) failed|user namespace cannot be made|uid_map.*not permitted"
    r"|clone.*user namespace",
    re.I,
)
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"unshare: (not found|command not found)|No such file.*unshare", re.I),
        "install util-linux, which has unshare: `sudo apt-get install util-linux`.",
    ),
    (
        re.compile(r"kernel's user namespace cannot be set up"),
        "what this release of runsc wants of a sandbox could not be tried, and the server's log"
        " says why; the next start tries again.",
    ),
    (
        re.compile(r"cgroup", re.I),
        "see whether /sys/fs/cgroup is mounted and writable; `gvisor-kernel doctor` says more.",
    ),
    (
        re.compile(r"No module named '?(zmq|ipykernel|traitlets|jupyter)", re.I),
        "install ipykernel for the interpreter that the kernelspec names:"
        " `python -m pip install ipykernel`.",
    ),
    (
        re.compile(r"No module named '?gvisor_kernel", re.I),
        "install gvisor-kernel again: a part of it is missing.",
    ),
    (
        re.compile(
            r"failed to load /|(executable|interpreter).*not found|no such file or dir", re.I
        ),
        "see whether the interpreter that the kernelspec names still exists; install the"
        " kernelspec again with the one to use: `gvisor-kernel install`.",
    ),
    (
        re.compile(r"no space left|disk quota", re.I),
        "make room in the state directory, or let XDG_STATE_HOME name another place.",
    ),
    (
        re.compile(r"too many open files", re.I),
        TOO_MANY_FILES,
    ),
    (
        re.compile(r"cannot allocate memory|resource temporarily unavailable", re.I),
        "the machine, or a limit of this user (`ulimit -u`), has no room for another sandbox.",
    ),
    (
        re.compile(r"(platform|seccomp|ptrace|systrap).*(not permitted|denied|unsupported)", re.I),
        "this machine or container forbids what the sandbox is made with; run"
        " `gvisor-kernel doctor`.",
    ),
)


def find_hint(words: str) -> str:
    """What to do about a sandbox that ended saying ``words``."""
    if _USER_NAMESPACES.search(words):
        return _explain_user_namespaces()
    for pattern, hint in _HINTS:
        if pattern.search(words):
            return hint
    return ASK_DOCTOR


def _read_sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None


def _explain_user_namespaces() -> str:
    """Which of the things that forbid user namespaces it is here."""
    if _read_sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids user namespaces to ordinary users here (Ubuntu 23.10 and newer):"
            " `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`."
        )
    if _read_sysctl("kernel/unprivileged_userns_clone") == "0":
        return "allow user namespaces: `sudo sysctl -w kernel.unprivileged_userns_clone=1`."
    if _read_sysctl("user/max_user_namespaces") == "0":
        return "allow user namespaces: `sudo sysctl -w user.max_user_namespaces=15000`."
    return (
        "user namespaces are forbidden here, by a container's seccomp filter perhaps: start the"
        " container with `--security-opt seccomp=unconfined`; `gvisor-kernel doctor` says more."
    )
