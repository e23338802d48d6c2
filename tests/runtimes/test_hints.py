"""What a failed sandbox wrote to stderr gives a hint."""

from __future__ import annotations

import pytest

from gvisor_kernel.runtimes import hints

STDERR_AND_HINTS = [
    ("unshare: write failed /proc/self/uid_map: Operation not permitted", "user namespaces"),
    ("unshare: unshare failed: Operation not permitted", "user namespaces"),
    ("/bin/sh: 4: cannot create /sys/fs/cgroup/memory/x/cgroup.procs: Permission", "cgroup"),
    ("A user namespace cannot be made: Operation not permitted.", "user namespaces"),
    ("ModuleNotFoundError: No module named 'zmq'", "pip install ipykernel"),
    ("ModuleNotFoundError: No module named 'gvisor_kernel.guest'", "install gvisor-kernel again"),
    ("creating process: failed to load /venv/bin/python: no such file", "interpreter"),
    ("OSError: [Errno 28] No space left on device", "make room"),
    ("fork: Resource temporarily unavailable", "ulimit -u"),
    ("The kernel's user namespace cannot be set up: [Errno 1]", "could not find out"),
    ("something else", "gvisor-kernel doctor"),
    ("", "gvisor-kernel doctor"),
]


@pytest.mark.parametrize(("words", "hint"), STDERR_AND_HINTS)
def test_stderr_gives_a_hint(words: str, hint: str) -> None:
    assert hint in hints.find_hint(words)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        ("kernel.unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("user.max_user_namespaces", "0", "max_user_namespaces"),
        ("none of them", "0", "seccomp=unconfined"),
    ],
)
def test_reason_why_user_namespaces_are_forbidden_is_named(
    name: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "read_sysctl", lambda asked: value if asked == name else None)
    assert hint in hints.find_hint("unshare: unshare failed: Operation not permitted")
