"""An sshd of this test run on loopback: its own keys, port and configuration."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..patience import scale_seconds
from .waiting import wait_until

SECONDS = scale_seconds(30)
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

needs_sshd = [
    pytest.mark.once,
    pytest.mark.skipif(
        not Path(SSHD).exists() or shutil.which("ssh") is None,
        reason="OpenSSH is not installed: install openssh-server and openssh-client",
    ),
]


class Sshd:
    """One server that a test stops and starts. ``folder`` holds everything that it has."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.state = state
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        key = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(key)}\n")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
            f"PidFile {folder}/sshd.pid\nPasswordAuthentication no\nMaxStartups 100\n"
            "PermitRootLogin yes\nMaxSessions 100\n"
        )
        self.config = folder / "config"
        self.config.write_text(
            f"Host n1 n2\n HostName 127.0.0.1\n Port {self.port}\n IdentityFile {folder}/user\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n"
            "Host dead\n HostName 127.0.0.1\n Port 1\n"
            f"Host stranger\n HostName 127.0.0.1\n Port {self.port}\n"
            f" UserKnownHostsFile {folder}/none\n"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of kernels on this server."""
        ssh = {"hosts": ["n1"], "config": str(self.config), "state": str(self.state)}
        return {"runtime": "ssh", "snapshot": "off", "ssh": ssh}

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = self.folder / "sshd.log"
        self._process = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)],
            stdin=subprocess.DEVNULL,
        )
        self.pid = self._process.pid
        self.wait_until_it_listens()

    def wait_until_it_listens(self) -> None:

        def listens() -> bool:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 5) as connection,
            ):
                return connection.recv(4) == b"SSH-"
            return False

        wait_until(listens, "sshd", SECONDS)

    def stop(self) -> None:
        """End it and its sessions."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)

    def end_masters(self) -> None:
        """End the connections that clients share for a minute."""
        from gvisor_kernel.config.settings import SandboxSpec
        from gvisor_kernel.host.private_directories import state_root
        from gvisor_kernel.runtimes.nodes.settings import Ssh as Asked
        from gvisor_kernel.runtimes.nodes.ssh import Ssh

        spec = SandboxSpec(own=Asked(hosts=("n1",), config=str(self.config)))
        engine = Ssh(spec, str(state_root() / "ssh"), {})
        for host in ("n1", "n2"):
            subprocess.run(engine.end_master_argv(host), capture_output=True, check=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_sshd(folder: Path, state: Path) -> Iterator[Sshd]:
    server = Sshd(folder, state)
    server.start()
    try:
        yield server
    finally:
        server.end_masters()
        server.stop()
