"""Hints for a person about a sandbox that failed, by what it wrote to stderr."""

from __future__ import annotations

import re
from pathlib import Path

from gvisor_kernel.host.open_files import explain_scarce_files, lacks_files_for_runsc

ASK_DOCTOR = "run `gvisor-kernel doctor` to find the cause."

_USER_NAMESPACES = re.compile(
    r"unshare: (unshare|write) failed|user namespace cannot be made|uid_map.*not permitted"
    r"|clone.*user namespace",
    re.I,
)
_TOO_MANY_FILES = re.compile(r"too many open files", re.I)
_RUNSC_FAILED = re.compile(r"cannot read client sync file")
"""Message of runsc when its sandbox has ended at once, such as for want of descriptors."""
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"unshare: (not found|command not found)|No such file.*unshare", re.I),
        "install util-linux, which contains unshare: `sudo apt-get install util-linux`.",
    ),
    (
        re.compile(r"kernel's user namespace cannot be set up"),
        "could not find out which capabilities this release of runsc needs; see the server's log"
        " for the reason. The next start tries again.",
    ),
    (
        re.compile(r"cgroup", re.I),
        "check that /sys/fs/cgroup is mounted and writable; `gvisor-kernel doctor` says more.",
    ),
    (
        re.compile(r"No module named '?(zmq|ipykernel|traitlets|jupyter)", re.I),
        "install ipykernel for the interpreter that the kernelspec names:"
        " `python -m pip install ipykernel`.",
    ),
    (
        re.compile(r"No module named '?gvisor_kernel", re.I),
        "install gvisor-kernel again: some of its files are missing.",
    ),
    (
        re.compile(
            r"failed to load /|(executable|interpreter).*not found|no such file or dir", re.I
        ),
        "check that the interpreter named by the kernelspec still exists; install the kernelspec"
        " again with the interpreter to use: `gvisor-kernel install`.",
    ),
    (
        re.compile(r"no space left|disk quota", re.I),
        "make room in the state directory, or set XDG_STATE_HOME to another directory.",
    ),
    (
        re.compile(r"cannot allocate memory|resource temporarily unavailable", re.I),
        "the machine has too little memory for another sandbox, or this user's limit of processes"
        " is reached (`ulimit -u`).",
    ),
    (
        re.compile(r"(platform|seccomp|ptrace|systrap).*(not permitted|denied|unsupported)", re.I),
        "this machine or container forbids a system call that gVisor needs; run"
        " `gvisor-kernel doctor`.",
    ),
)


def find_hint(words: str) -> str:
    """Return what to do about a sandbox that ended after it wrote ``words`` to stderr."""
    if _USER_NAMESPACES.search(words):
        return _explain_user_namespaces()
    is_scarce = _RUNSC_FAILED.search(words) and lacks_files_for_runsc()
    if is_scarce or _TOO_MANY_FILES.search(words):
        return explain_scarce_files()
    for pattern, hint in _HINTS:
        if pattern.search(words):
            return hint
    return ASK_DOCTOR


def read_sysctl(name: str) -> str | None:
    """Return a value below /proc/sys, or None if this kernel has no such name."""
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return None


def _explain_user_namespaces() -> str:
    """Find out which of the known reasons forbids user namespaces on this host."""
    if read_sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids ordinary users to make user namespaces here (Ubuntu 23.10 and newer);"
            " allow it: `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`."
        )
    if read_sysctl("kernel.unprivileged_userns_clone") == "0":
        return "allow user namespaces: `sudo sysctl -w kernel.unprivileged_userns_clone=1`."
    if read_sysctl("user.max_user_namespaces") == "0":
        return "allow user namespaces: `sudo sysctl -w user.max_user_namespaces=15000`."
    return (
        "user namespaces are forbidden here, perhaps by a container's seccomp filter: start the"
        " container with `--security-opt seccomp=unconfined`; `gvisor-kernel doctor` says more."
    )
