"""Folders are replaced by links while files are copied into an engine's sandbox, and out of it.

See ``security/races``. Nothing of the home is copied in, and nothing is copied into the home.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.copies.outputs import COPIED, sync_copied_outputs
from gvisor_kernel.runtimes.docker import runtime
from gvisor_kernel.runtimes.docker.docker_sandbox import DockerSandbox
from gvisor_kernel.runtimes.docker.engine import Engine
from gvisor_kernel.runtimes.docker.removal import copy_now
from gvisor_kernel.runtimes.docker.runtime import DockerRuntime
from gvisor_kernel.runtimes.state import records

from ..security.inside import Host
from ..security.races import COMPONENTS, Scene, Stop, make_race_folders
from ..sweeps import ALL
from .dockerd import IMAGE, Dockerd, needs_dockerd

pytestmark = [*needs_dockerd]

OUT = (
    "host/folders.py",
    "host/owners.py",
    "archive/",
    "runtimes/copies/outputs.py",
    "runtimes/docker/removal.py",
)
IN = (
    "host/folders.py",
    "host/owners.py",
    "runtimes/copies/contents.py",
    "runtimes/mounts/folders.py",
    "runtimes/mounts/outputs.py",
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_race_folders(tmp_path_factory.mktemp("races")) as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(scene: Scene, dockerd: Dockerd) -> Iterator[None]:
    host = Host((scene.home,))
    before = host.look()
    yield
    assert host.look() == before
    assert dockerd.ours() == []


def start(scene: Scene) -> DockerSandbox:
    spec = replace(scene.spec, runtime="docker", image=IMAGE, mounts=scene.spec.mounts[1:])
    request = LaunchRequest("gvisor-python", "", scene.report, "python3", {})
    sandbox = DockerRuntime().start(spec, request)
    assert isinstance(sandbox, DockerSandbox)
    return sandbox


class Enough(GvisorKernelError):
    """Raised where the test wants the start to end."""


def test_swapped_folders_are_not_copied_in_at_any_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, dockerd: Dockerd
) -> None:
    """Checks the archives that are sent to the engine; the start ends before the container's."""
    sent: list[bytes] = []
    put = Engine.put

    def keep(engine: Engine, container: str, folder: str, archive: Iterable[bytes]) -> None:
        pieces = list(archive)
        sent.append(b"".join(pieces))
        put(engine, container, folder, pieces)

    def end(*_: object, **__: object) -> None:
        raise Enough("The start ends here.")

    monkeypatch.setattr(Engine, "put", keep)
    monkeypatch.setattr(runtime, "make_container_request", end)

    def names() -> set[str]:
        """What is sent, but for the project's own files; nothing where the start is refused."""
        sent.clear()
        with suppress(GvisorKernelError):
            start(scene).close()
        found: set[str] = set()
        for archive in sent:
            with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
                found.update(Path(name).name for name in opened.getnames())
        return found & {"own", "secret"}

    with Stop() as stop:
        assert names() == {"own"}
    steps = [step for step in stop.passed if step.split()[1].startswith(IN)]
    assert len(steps) > 50
    seen = refused = 0
    for number, step in enumerate(steps if ALL else steps[::7]):
        for component in COMPONENTS if ALL else [COMPONENTS[number % len(COMPONENTS)]]:
            with scene.swapped(component) as swap, Stop(step, swap) as stop:
                found = names()
                assert "secret" not in found, (step, component)
                assert step in stop.passed
                seen += bool(found)
                refused += not found
    assert seen
    assert refused


def test_outputs_are_not_copied_into_swapped_folders_at_any_step(scene: Scene) -> None:
    """They are copied to the folder that the sandbox was started with, or stay in the engine."""
    sandbox = start(scene)
    try:
        record = records.read_record(sandbox.directory)
        assert record is not None

        def sync() -> bool:
            (sandbox.directory / COPIED).unlink(missing_ok=True)  # copy all files each time
            try:
                copied, _ = sync_copied_outputs(copy_now, sandbox.directory, record)
            except GvisorKernelError:
                return False
            return copied > 0

        with Stop() as stop:
            assert sync()
        steps = [step for step in stop.passed if step.split()[1].startswith(OUT)]
        assert len(steps) > 50
        done = refused = 0
        for number, step in enumerate(steps if ALL else steps[::5]):
            for component in ("", "outputs") if ALL else [("", "outputs")[number % 2]]:
                with scene.swapped(component) as swap, Stop(step, swap) as stop:
                    came = sync()
                    done += came
                    refused += not came
                    assert step in stop.passed
        assert done
        assert refused
    finally:
        sandbox.close()
