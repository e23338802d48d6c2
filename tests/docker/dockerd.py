"""A Docker engine of this test run: its own data, socket and runtimes; it pulls nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.host import processes
from gvisor_kernel.runtimes.docker.container import LABEL
from gvisor_kernel.runtimes.docker.engine import Engine, connect

from ..images.python_root import make_image
from ..patience import scale_seconds
from ..world import WAYS

IMAGE = str(WAYS["docker"]["image"])
SECONDS = scale_seconds(30)

needs_dockerd = [
    pytest.mark.once,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a Docker engine"),
    pytest.mark.skipif(
        shutil.which("dockerd") is None, reason="dockerd is not installed: install docker.io"
    ),
]


class Dockerd:
    """One engine that a test stops and starts. ``folder`` holds everything that it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "engine.sock"
        self.address = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._name = f"gk-{secrets.token_hex(4)}"
        self.configure(runsc_runtime())

    def configure(self, runtimes: dict[str, Any]) -> None:
        """Set its runtimes; a running engine reads them again."""
        config = {
            "bridge": "none",
            "containerd-namespace": self._name,
            "containerd-plugins-namespace": f"{self._name}-plugins",
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "run"),
            "hosts": [self.address],
            "ip6tables": False,
            "iptables": False,
            "pidfile": str(self.folder / "engine.pid"),
            "runtimes": runtimes,
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        with (self.folder / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--config-file", str(self.folder / "config.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(Exception):
                connect(self.address).close()
                return
            assert self._process.poll() is None, self.read_log()
            assert time.monotonic() < deadline, f"dockerd does not answer: {self.read_log()}"
            time.sleep(0.05)  # it does not report when it is ready

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(SECONDS)

    def end_shims(self) -> None:
        """Kill the shims that an engine may leave if it stops while a container runs."""
        processes.wait_until_gone(
            processes.kill_with_argument(self._name), time.monotonic() + SECONDS
        )

    def unmount(self) -> None:
        """Unmount the empty network namespace that a current gVisor keeps for all its sandboxes."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for target in [line.split()[4] for line in lines]:
            if target.startswith(f"{self.folder}/") and target.endswith("/null-netns"):
                subprocess.run(["umount", target], check=True)

    def read_log(self) -> str:
        return (self.folder / "engine.log").read_text()[-3000:]

    @contextlib.contextmanager
    def client(self) -> Iterator[Engine]:
        engine = connect(self.address)
        try:
            yield engine
        finally:
            engine.close()

    def ours(self) -> list[str]:
        """Return the names of the containers and volumes that belong to sandboxes."""
        with self.client() as engine:
            containers = engine._client.containers(all=True, filters={"label": f"{LABEL}state"})
            volumes = engine._client.volumes(filters={"label": f"{LABEL}state"})["Volumes"] or []
            return sorted([c["Names"][0] for c in containers] + [v["Name"] for v in volumes])

    def load(self, directory: Path) -> None:
        """Load the image of this machine's Python as IMAGE."""
        make_image(directory, ["ipywidgets", "pip"], ["echo", "sleep"])
        manifest = directory / "manifest.json"
        (kernel,) = (i for i in json.loads(manifest.read_text()) if i["RepoTags"] == ["kernel"])
        manifest.write_text(json.dumps([{**kernel, "RepoTags": [f"{IMAGE}:latest"]}]))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(directory.iterdir()):
                archive.add(path, path.name)
        with self.client() as engine:
            for line in engine._patient.load_image(packed.getvalue()):
                assert "error" not in line, line


def runsc_runtime(**more: Any) -> dict[str, Any]:
    """Return the configuration of the runtime gVisor, without a network."""
    arguments = ["--platform=systrap", "--network=none"]
    return {"runsc": {"path": shutil.which("runsc"), "runtimeArgs": arguments}, **more}


@contextlib.contextmanager
def running_dockerd() -> Iterator[Dockerd]:
    folder = Path(tempfile.mkdtemp(prefix="gk-docker-", dir="/var/tmp"))
    dockerd = Dockerd(folder)
    try:
        dockerd.start()
        yield dockerd
    finally:
        dockerd.stop()
        dockerd.end_shims()
        dockerd.unmount()
        shutil.rmtree(folder, ignore_errors=True)
        assert not folder.exists(), "the Docker engine has left files"
