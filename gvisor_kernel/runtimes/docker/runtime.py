"""The runtime ``docker``: gVisor in a Docker engine, on this machine or another one.

Nothing of this machine is mounted into such a sandbox: what it reads is copied into a volume of the
engine before it starts, and its outputs are copied out at its end, and by ``gvisor-kernel sync``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.mounts import check_read_only
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.copies.contents import (
    Contents,
    describe_sandbox,
    find_contents,
    list_files,
    write_list,
)
from gvisor_kernel.runtimes.copies.outputs import COPIED, sync_copied_outputs
from gvisor_kernel.runtimes.docker.checks import check_engines
from gvisor_kernel.runtimes.docker.container import (
    LABEL,
    STORE,
    EngineImage,
    Names,
    make_container_request,
    make_store_request,
    read_image,
)
from gvisor_kernel.runtimes.docker.docker_sandbox import Container, DockerSandbox
from gvisor_kernel.runtimes.docker.engine import (
    Engine,
    check_engine,
    connect,
    find_address,
    find_image,
)
from gvisor_kernel.runtimes.docker.removal import copy_now, end_container, sweep_engine
from gvisor_kernel.runtimes.engine_removal import sweep_engines
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning, FirstSweep, begin, predict_outputs
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.environment import INIT_ENVIRONMENT, image_environment
from gvisor_kernel.spec.etc import replaced_files
from gvisor_kernel.spec.identity import new_identity
from gvisor_kernel.spec.oci import guest_argv
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

PYTHON = "python3"
"""Found by the image's own PATH."""


@dataclass(frozen=True)
class _Plan(Beginning):
    """The plan of a sandbox, before anything is made in the engine."""

    engine: Engine
    image: EngineImage

    @property
    def names(self) -> Names:
        return Names(self.identity.container_id)


class DockerRuntime(Runtime):
    """Makes sandboxes in the Docker engine that the environment names."""

    name = "docker"

    def __init__(self) -> None:
        self._first_sweep: FirstSweep[str] = FirstSweep(self.name)

    def start(self, spec: SandboxSpec, request: LaunchRequest) -> Sandbox:
        engine = connect()
        try:
            check_engine(engine)
            found = read_image(find_image(engine, spec.image), spec.image)
            step("engine and image looked at")
            outputs = predict_outputs(spec, request)
            self._first_sweep.run(engine.address, lambda: sweep_engine(engine), outputs)
            return self._start(engine, found, spec, request)
        except BaseException:
            engine.close()
            raise

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        with closing(connect()) as engine:
            check_engine(engine)
            return _find_base(read_image(find_image(engine, spec.image), spec.image))

    def end(self, directory: Path, record: Record) -> bool:
        end_container(record)
        return True

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        return sync_copied_outputs(copy_now, directory, record, folder)

    def find_checks(self) -> tuple[RuntimeCheck, ...]:

        return (RuntimeCheck(self.name, 10, check_engines),)

    def may_have_left(self) -> bool:
        return bool(os.environ.get("DOCKER_HOST"))

    def sweep(self) -> list[str]:
        known = [record for _, record in records.find_sandboxes()]
        used = {record.engine for record in known if record.runtime == self.name and record.engine}
        places = {*used, *self._first_sweep.places, find_address()}
        return sweep_engines(self.name, places, connect, sweep_engine)

    def _start(
        self, engine: Engine, image: EngineImage, spec: SandboxSpec, request: LaunchRequest
    ) -> DockerSandbox:
        check_read_only(spec.mounts, "the runtime docker copies them, and cannot write back")
        identity = new_identity(request.kernel_name, spec, image.digest)
        facts = {"runtime": self.name, "engine": engine.address}
        with begin(spec, request, identity, facts) as begun:
            return _make_sandbox(_Plan(**vars(begun), engine=engine, image=image))


def _find_base(image: EngineImage) -> Base:
    return Base(image.digest, "")  # its Python is known only inside; see ``guest/installed.py``


def _make_sandbox(plan: _Plan) -> DockerSandbox:
    labels = _labels(plan)
    keeps = plan.outputs.folder is not None
    contents = _find_contents(plan)
    contents.measure(plan.spec.disk_limit)
    engine, names = plan.engine, plan.names
    engine.make_volume(names.files, labels)
    if keeps:
        engine.make_volume(names.outputs, labels)
    store = engine.create(
        names.store,
        make_store_request(plan.spec, names, labels=labels, keeps_outputs=keeps),
    )
    engine.put(store, f"{STORE}/files", contents.archive(plan.spec.disk_limit))
    if plan.outputs.folder is not None:
        _copy_outputs_in(plan, store, plan.outputs.folder)
    engine.remove(store)
    step("files copied into the engine")
    asked = make_container_request(
        plan.spec,
        names,
        argv=guest_argv(PYTHON, plan.request.ahead),
        environment=_environment(plan, {})
        if plan.request.ahead
        else dict(entry.split("=", 1) for entry in INIT_ENVIRONMENT),
        labels=labels,
        keeps_outputs=keeps,
        volumes=plan.image.volumes,
    )
    container = Container(engine, engine.create(names.container, asked), asked)
    environment = _environment(plan, plan.request.environment)
    sandbox = DockerSandbox(plan, plan.make_view(environment, PYTHON), container)
    try:
        engine.start(container.id)
        step("container started")
        sandbox.begin()
    except BaseException:
        sandbox.close_link()
        raise
    return sandbox


def _environment(plan: _Plan, server: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a kernel."""
    return image_environment(plan.image.environment, plan.spec.environment, server)


def _labels(plan: _Plan) -> dict[str, str]:
    owner = plan.record.owner
    facts = {
        "state": records.state_id(),
        "sandbox": plan.identity.container_id,
        "identity": str(plan.identity),
        "owner": f"{owner.pid}-{owner.started}",
    }
    return {f"{LABEL}{name}": value for name, value in facts.items()}


def _find_contents(plan: _Plan) -> Contents:
    """Return everything that goes into the volume ``files``."""
    etc = replaced_files(plan.identity.container_id)
    contents = find_contents(plan, _find_base(plan.image), etc, plan.held)
    keeps = plan.outputs.folder is not None
    contents.texts["container_info.json"] = describe_sandbox(plan, keeps_outputs=keeps)
    return contents


def _copy_outputs_in(plan: _Plan, store: str, outputs: Opened) -> None:
    """Copy in what the folder of outputs contains; the volume's root gets the folder's mode."""
    contents = Contents(folders=[("outputs", outputs, "outputs")])
    contents.measure(plan.spec.disk_limit)
    write_list(plan.places.directory / COPIED, list_files(outputs))
    plan.engine.put(store, STORE, contents.archive(plan.spec.disk_limit))
