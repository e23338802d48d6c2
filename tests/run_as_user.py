"""Run the tests of sandboxes again as an ordinary user: ``python tests/run_as_user.py``.

Root only. Creates a user without any rights, with a copy of this checkout and an environment of
the distribution's Python (root's own may be in a home that others cannot enter). Runs pytest as
that user, then removes the user, its files and its processes. Arguments go to pytest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
CACHE = Path("/var/cache/gvisor-kernel-tests")
FOLDERS = (
    *("runtimes", "faults", "security", "snapshots", "cli/test_doctor.py", "cli/test_sandboxes.py"),
    "api/test_sandbox.py::test_files_are_written_read_listed_and_removed",
    "api/test_sandbox.py::test_a_command_over_its_time_ends_with_its_children",
    "api/test_life.py::test_a_program_that_ends_leaves_nothing",
    "mcp/test_stdio.py::test_code_files_and_sessions",
    "changes/test_kernels.py",
    *("cli/test_snapshots.py", "skills/test_store.py", "guest/test_kernel_process.py"),
    *("jupyter/test_launch.py", "jupyter/test_lifecycle.py", "jupyter/test_provisioner.py"),
    *("jupyter/test_root_images.py", "jupyter/test_server.py", "jupyter/test_settings.py"),
    "egress/test_kernels.py::test_urllib_reaches_an_api_whose_key_stays_outside",
    "egress/test_packages_inside.py::test_what_is_installed_is_imported_at_once_and_after_a_restart",
    "environments/test_kernels.py::test_kernel_has_the_packages_and_may_install_another_version",
    "egress/test_process.py::test_the_workers_environment_and_command_line_have_no_secret",
    *("host/test_cgroups.py", "host/test_homes.py", "test_transcript.py"),
    "faults/test_idle.py::test_idle_kernel_is_stopped_and_continues",
    "faults/test_idle.py::test_killed_owner_of_stopped_kernels_leaves_nothing",
    "jupyter/test_launch.py::test_killed_launcher_leaves_nothing",
    "jupyter/test_lifecycle.py::test_crashed_kernel_is_restarted",
    "jupyter/test_lifecycle.py::test_restart_while_busy",
    "jupyter/test_lifecycle.py::test_shutdown_kills_kernel_that_ignores_it",
    "jupyter/test_provisioner.py::test_resolve_path_finds_only_mounted_files",
    "snapshots/test_snapshot_queue.py::test_builder_ends_with_its_server",
)
"""Tests whose result can differ for an ordinary user: creation, limits, visibility and end of
sandboxes, and owners of files. Link and kernel tests do not depend on the user and ran as root."""
SAME_FOR_ROOT = (
    *("faults/test_clocks.py", "faults/test_idle.py", "faults/test_scarce_descriptors.py"),
    *("guest/test_kernel_process.py", "jupyter/test_launch.py", "jupyter/test_lifecycle.py"),
    *("jupyter/test_provisioner.py", "jupyter/test_server.py"),
    "runtimes/test_stderr_log.py",
    *("security/test_link.py", "security/test_kernel_frames.py", "security/test_zmtp.py"),
    *("security/test_restored.py", "snapshots/test_damaged.py", "snapshots/test_editable.py"),
    *("snapshots/test_key.py", "snapshots/test_languages.py", "snapshots/test_manifest.py"),
    *(
        "snapshots/test_restart.py",
        "snapshots/test_restored.py",
        "snapshots/test_snapshot_queue.py",
    ),
    *("snapshots/test_store.py", "snapshots/test_unfit.py", "test_transcript.py"),
)
"""Files among these that do not depend on the user either. ``--all`` runs them, too."""
PASSED_ON = ("GK_TEST_AGAIN", "GK_TEST_ALL", "GK_TEST_PATIENCE", "GK_TEST_RUNSC", "GK_TEST_SKIPS")
CHOSEN = ("-m", "not once and not browser")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", "__pycache__", "test-artifacts", "outputs", "*.egg-info"
)


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def find_tests() -> list[str]:
    """Return the files and tests that the ordinary user's part has."""
    left_out = () if os.environ.get("GK_TEST_ALL") else SAME_FOR_ROOT
    found: list[str] = []
    for name in FOLDERS:
        place = PROJECT / "tests" / name
        files = sorted(place.glob("test_*.py")) if place.is_dir() else [place]
        names = (str(file.relative_to(PROJECT / "tests")) for file in files)
        found += [f"tests/{name}" for name in names if name not in left_out]
    return found


def make_environment() -> Path:
    """Make or reuse a virtual environment with the tests' requirements; return its Python."""
    wanted = (PROJECT / "pyproject.toml").read_bytes() + subprocess.check_output([PYTHON, "-VV"])
    folder = CACHE / hashlib.sha256(wanted).hexdigest()[:16]
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"Creating an environment for the user in {folder} with {PYTHON}")
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(mode=0o755, parents=True)
        subprocess.run([PYTHON, "-m", "venv", folder], check=True)
        install(python, f"{PROJECT}[test]")
        (folder / "complete").touch()
    install(python, "--no-deps", "--force-reinstall", "--no-build-isolation", str(PROJECT))
    return python


def install(python: Path, *what: str) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--root-user-action=ignore", *what], check=True, umask=0o022)


@contextlib.contextmanager
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    """Create a user with a home; at the end remove it and kill all its processes."""
    name = f"gku-{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
    user = pwd.getpwnam(name)
    try:
        yield user
    finally:
        end_processes(user.pw_uid)
        # userdel complains that there is no mail spool to remove.
        subprocess.run(["userdel", "--remove", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(user.pw_dir, ignore_errors=True)


def end_processes(uid: int) -> None:
    """Send SIGKILL until no process of ``uid`` is alive."""
    for _ in range(100):
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if folder.stat().st_uid == uid and state != "Z":
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print(
            "Only root can run the tests as another user. As an ordinary user run pytest directly.",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the user is removed
    python = make_environment()
    with ordinary_user() as user:
        copy = Path(user.pw_dir, "gvisor-kernel")
        shutil.copytree(PROJECT, copy, ignore=LEFT_OUT, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        chosen = [*CHOSEN, *find_tests()]
        program = ["pytest", *arguments] if arguments else ["tests.run", *chosen]
        done = subprocess.run(
            [python, "-m", *program],
            cwd=copy,
            env={
                "HOME": user.pw_dir,
                "USER": user.pw_name,
                "LANG": "C.UTF-8",
                "TEST_WORKERS": os.environ.get("TEST_WORKERS", ""),
                **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
                "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
                # All processes use one gvisor_kernel: a snapshot only fits the one that made it.
                "PYTHONPATH": str(copy),
            },
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            start_new_session=True,
            check=False,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
