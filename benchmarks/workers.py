"""Start worker processes as the right user, and send them commands."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
CODE = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks.worker import main; main({!r})"
END_SECONDS = 60.0
ASK_SECONDS = 300.0


class WorkerError(Exception):
    """A worker could not be started, or a command failed; the text says why."""


class WorkerProcess:
    """A process that runs kernels as ``user`` (None: the current user)."""

    def __init__(
        self, name: str, base: Path, user: pwd.struct_passwd | None, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._folder = base / name
        home = self._folder if user is None else Path(user.pw_dir)
        for path, mode in ((self._folder, 0o755), (self._folder / "notebooks", 0o755)):
            path.mkdir(mode=mode, exist_ok=True)
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
        self._log = open(base / f"{name}.log", "ab")  # noqa: SIM115 - open while the process runs
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE.format(str(self._folder)), str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder / "notebooks",
            env={
                "HOME": str(home),
                "USER": user.pw_name if user is not None else "",
                "LANG": "C.UTF-8",
                "PATH": PATH,
                "JUPYTER_PATH": str(self._folder / "jupyter"),
                "JUPYTER_PLATFORM_DIRS": "1",
                "JUPYTER_RUNTIME_DIR": str(self._folder / "r"),  # short, because sockets lie in it
                **environment,
            },
            user=user.pw_uid if user is not None else None,
            group=user.pw_gid if user is not None else None,
            extra_groups=[] if user is not None else None,
            start_new_session=True,
        )

    def ask(self, do: str, seconds: float = ASK_SECONDS, **arguments: Any) -> Any:
        """Run a command and return its value. After a timeout the worker is ended.

        :raises WorkerError: when the command fails, times out, or the worker has ended
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise WorkerError(f"the worker {self.name} has ended") from error
        if not select.select([stdout], [], [], seconds)[0]:
            self.end()
            raise WorkerError(f"{do} was not done within {seconds:.0f} s")
        line = stdout.readline()
        if not line:
            raise WorkerError(f"the worker {self.name} ended while it was asked to {do}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Close stdin, so that the worker ends its kernels and itself; kill it after a timeout."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS if self.alive else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


class Workers:
    """All workers of a run, started at their first use."""

    def __init__(
        self,
        base: Path,
        user: pwd.struct_passwd | None,
        no_user: str,
        environment: dict[str, str],
    ) -> None:
        """``user`` runs the user variants (None: the current user).

        ``no_user``: why these variants cannot run; empty if they can.
        """
        self.no_user = no_user
        self._base = base
        self._user = user
        self._environment = environment
        self._processes: dict[str, WorkerProcess] = {}
        shutil.copytree(
            Path(__file__).parent,
            base / "benchmarks",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )

    def get(self, name: str) -> WorkerProcess:
        process = self._processes.get(name)
        if process is None or not process.alive:
            user = self._user if name.endswith("-user") else None
            process = WorkerProcess(name, self._base, user, self._environment)
            self._processes[name] = process
        return process

    def pids(self) -> list[int]:
        return [process.process.pid for process in self._processes.values()]

    def running(self, name: str) -> bool:
        return name in self._processes and self._processes[name].alive

    def end(self) -> None:
        for process in self._processes.values():
            process.end()

    def logs(self) -> list[Path]:
        return sorted(self._base.glob("*.log"))


@contextlib.contextmanager
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    """Create a user without rights; at the end remove it and kill all its processes."""
    name = f"gkb-{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", name], check=True)
    user = pwd.getpwnam(name)
    try:
        yield user
    finally:
        end_processes(user.pw_uid)
        subprocess.run(["userdel", "--remove", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(user.pw_dir, ignore_errors=True)


def end_processes(uid: int) -> None:
    """Send SIGKILL until no process of ``uid`` is alive."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if folder.stat().st_uid == uid and state != "Z":
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return


def may_run(user: pwd.struct_passwd) -> str | None:
    """Return why ``user`` cannot run this Python with the package; None if it can."""
    complaint = f"an ordinary user cannot run {sys.executable}"
    try:
        found = subprocess.run(
            [sys.executable, "-P", "-c", "import gvisor_kernel.jupyter.provisioner, ipykernel"],
            cwd="/",
            env={"HOME": user.pw_dir, "PATH": os.defpath},
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError:
        return f"{complaint}: only root may enter its folder (benchmarks/setup makes another)"
    if found.returncode == 0:
        return None
    last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{complaint}: {last}"
