"""The runtime ``runsc``: gVisor on this host, for root and for ordinary users.

Root's sandboxes have a user namespace and private mounts of their own (``staging``), and cgroups
where these can be made. An ordinary user's sandboxes run in a user namespace with the user's
rights.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import (
    GvisorKernelError,
    SandboxError,
    SnapshotError,
    StartTimedOut,
)
from gvisor_kernel.host.cgroups import Cgroup, make_cgroup, plan_cgroup
from gvisor_kernel.host.commands import check_children, kill_group
from gvisor_kernel.host.folders import find_identity
from gvisor_kernel.host.processes import SUBUID_BASE, SUBUID_COUNT
from gvisor_kernel.images import PythonReport, RootImage
from gvisor_kernel.runtimes.base import (
    LaunchRequest,
    Sandbox,
    SnapshotRuntime,
)
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.mounts.folders import Inputs, check_hidden, open_inputs
from gvisor_kernel.runtimes.mounts.host_python import check_image_exists, find_python_tree
from gvisor_kernel.runtimes.mounts.outputs import open_outputs
from gvisor_kernel.runtimes.mounts.plan import Outputs, find_base
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.runsc.command_line import Runsc, find_runsc, prelude_argv, start_argv
from gvisor_kernel.runtimes.runsc.description import (
    choose_kernel_id,
    describe_host,
    describe_sandbox,
    find_init_environment,
)
from gvisor_kernel.runtimes.runsc.features import init_capabilities
from gvisor_kernel.runtimes.runsc.kept_programs import (
    check_unwritten,
    hold,
    hold_kept,
    split_program,
    sweep_copies,
)
from gvisor_kernel.runtimes.runsc.launch_plan import LaunchPlan, make_plan, open_source
from gvisor_kernel.runtimes.runsc.needs import MAX_NEEDS, check_image, find_needs
from gvisor_kernel.runtimes.runsc.runsc_sandbox import RunscSandbox
from gvisor_kernel.runtimes.runsc.staging import (
    can_map_owner,
    choose_stage,
    run_entered,
    run_staged,
)
from gvisor_kernel.runtimes.runsc.starting import spawn, wait_for_sentry
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import begin
from gvisor_kernel.runtimes.state.kept_packages import Packages, sweep_kept
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.saved import NEEDS
from gvisor_kernel.runtimes.state.shown_files import Stamps
from gvisor_kernel.runtimes.state.sweep import (
    end_sandbox,
    finish_removals,
    sweep_orphans,
)
from gvisor_kernel.runtimes.stdio import StderrLog, make_pipes
from gvisor_kernel.spec.identity import new_identity
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.spec.limits import file_size_limit, host_limits, memory_file_limit
from gvisor_kernel.spec.oci import guest_argv, make_config
from gvisor_kernel.tracing import step
from gvisor_kernel.typed_json import write_json

log = logging.getLogger(__name__)

_told: set[str] = set()
"""The programs of which a warning said that they are gone."""

RESTORE_SECONDS = 15.0
"""Seconds that a restore may take. Usually it takes less than one second; after this a cold start
is faster."""


class RunscRuntime(SnapshotRuntime):
    """Makes sandboxes with the runsc that is installed on this host."""

    name = "runsc"
    shows_host_python = True

    def __init__(
        self,
        *,
        name: str = name,
        init_argv: Sequence[str] | None = None,
        restore_seconds: float = RESTORE_SECONDS,
    ) -> None:
        """``name``: of another runtime, which makes its sandboxes by this one. ``init_argv``: the
        program that runs as PID 1 in place of the guest; no kernel starts."""
        self._restore_seconds = restore_seconds
        self.name = name
        self._init_argv = init_argv
        self._swept = False
        # no timeout: held for the first sweep of a process; each removal has a timeout
        self._sweeping = threading.Lock()

    def start(
        self, spec: SandboxSpec, request: LaunchRequest, snapshot: Path | None = None
    ) -> Sandbox:
        check_children()
        if snapshot is not None and (snapshot / NEEDS).exists():  # of another machine, perhaps
            spec = replace(spec, runsc=check_image(snapshot, spec.runsc))
        written = read_written(spec)
        if request.saved_in is not None:
            request = replace(request, kept=hold_kept(spec.runsc, request.kept))
        runsc = find_runsc(spec.runsc)
        if request.saved_in is not None and "\n" in spec.runsc and runsc.program != spec.runsc:
            raise SnapshotError(
                f"The runsc {split_program(spec.runsc)[0]} that has saved the kernel is gone, and"
                f" only that one restores it, not {runsc.executable} ({runsc.version}).",
                "install that version again, or restart the kernel to begin anew.",
            )
        if "\n" in spec.runsc and runsc.program != spec.runsc and spec.runsc not in _told:
            _told.add(spec.runsc)
            gone = split_program(spec.runsc)[0]
            log.warning("Kernels that began with the runsc %s go on with another: it is gone", gone)
        check_unwritten(runsc.executable)
        hold(runsc.program)
        python_tree = find_python_tree(spec, request, written.has)
        own = self._init_argv is None
        kernel_id = choose_kernel_id(os.geteuid(), python_tree) if own else 0
        self._sweep_once()
        identity = new_identity(request.kernel_name, spec, runsc.version, python_tree.python)
        if request.saved_in is not None:
            identity = records.find_identity(request.saved_in)
        step("host looked at")
        facts = {
            "runtime": self.name,
            "runsc": runsc.version,
            "program": runsc.program,
            "image": python_tree.image,
            "cgroups": tuple(map(str, plan_cgroup(identity.container_id))),
        }
        with begin(spec, request, identity, facts, prepare=partial(_plan_outputs, spec)) as begun:
            check_image_exists(python_tree)
            plan = make_plan(begun, runsc, python_tree, kernel_id)
            cgroup = make_cgroup(identity.container_id, host_limits(spec))
            made = tuple(map(str, cgroup.directories))
            if made != plan.record.cgroups:
                plan = replace(plan, record=replace(plan.record, cgroups=made))
                records.write_record(plan.places.directory, plan.record)
            step("state directory made, mounts planned")
            try:
                return self._start(plan, cgroup, snapshot)
            except SandboxError:
                _check_in_place(runsc, snapshot)
                raise

    def find_needs(self, directory: Path, files: Stamps, packages: Packages) -> str:
        """Return what another machine must have for the kernel of the sandbox in ``directory``, as
        ``check_needs`` of a runtime there takes it.

        :raises SnapshotError: when it cannot be told
        """
        record = records.read_record(directory)
        if record is None:
            raise SnapshotError(f"The record in {directory} cannot be read.")
        text = write_json(find_needs(record.program, files, packages))
        if len(text) > MAX_NEEDS:
            raise SnapshotError("The kernel has too many libraries open for another machine.")
        return text

    def describe(self, spec: SandboxSpec, request: LaunchRequest) -> dict[str, Any]:
        return describe_sandbox(spec, request, self._init_argv)

    def describe_host(self, choice: str = "") -> dict[str, Any]:
        return describe_host(choice)

    def fix_program(self, spec: SandboxSpec) -> SandboxSpec:
        if "\n" in spec.runsc:
            return spec
        runsc = find_runsc(spec.runsc)
        hold(runsc.program)
        return replace(spec, runsc=runsc.program)

    def probe_image(self, image: RootImage) -> PythonReport:
        from gvisor_kernel.runtimes.runsc.image_probe import probe_image

        return probe_image(image, lambda argv: RunscRuntime(init_argv=argv))

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        return find_base(find_python_tree(spec, request, read_written(spec).has))

    def has_current_mounts(
        self, sandbox: Sandbox, spec: SandboxSpec, request: LaunchRequest
    ) -> bool:
        with ExitStack() as held:
            inputs = open_inputs(spec, request, held)
            if isinstance(sandbox, RunscSandbox) and sandbox.hidden != inputs.hidden:
                return False
            opened = inputs.by_target(spec)
            outputs = open_outputs(spec, inputs, held, make=False)
            if outputs.folder is not None:
                opened[OUTPUTS] = outputs.folder
            for view in sandbox.view.mounts:
                is_aside = Path(view.source).parent == sandbox.directory.resolve()
                if view.target == OUTPUTS and is_aside and OUTPUTS not in opened:
                    continue  # nothing is there yet
                folder = opened.pop(view.target, None)
                now = find_identity(view.source) if folder is None else folder.identity
                if now is None or now != view.identity:
                    return False
            return not opened

    def end(self, directory: Path, record: Record) -> bool:
        return end_sandbox(directory, [Path(group) for group in record.cgroups])

    def find_checks(self) -> tuple[RuntimeCheck, ...]:
        from gvisor_kernel.runtimes.runsc.checks import CHECKS

        return CHECKS

    def find_version(self, choice: str = "") -> str:
        return find_runsc(choice).version

    def sweep(self) -> list[str]:
        sweep_copies()
        sweep_kept()
        return sweep_orphans(self.name)

    def _sweep_once(self) -> None:
        """Remove what dead owners left (once per process) and what this process left (always)."""
        finish_removals()
        with self._sweeping:
            if self._swept:
                return
            self._swept = True
        try:
            for identity in self.sweep():
                log.info("Removed %s, whose owner has died", identity)
        except GvisorKernelError as error:
            log.warning("%s", error)

    def _start(self, plan: LaunchPlan, cgroup: Cgroup, snapshot: Path | None) -> RunscSandbox:
        places, written = plan.places, plan.inputs.written
        as_root = os.geteuid() == 0
        bounded = cgroup.bounds_memory
        memory_file = None if bounded else memory_file_limit(plan.spec)
        plan.write_files(as_root=as_root)
        stage = choose_stage([plan.runsc.executable, str(places.directory)])
        shown = plan.find_sources(written)
        sources = [*shown, *plan.find_kept(written)]
        rootfs = stage.path(len(sources))
        sources.append(open_source(str(places.rootfs), written))
        tree = plan.python_tree.tree
        if tree is not None:
            sources.append(open_source(tree, written))
            rootfs = stage.path(len(sources))
        config = make_config(
            plan.spec,
            args=self._init_argv
            or guest_argv(plan.python_tree.python, plan.request.ahead, plan.kernel_id),
            environment=find_init_environment(
                plan.spec, plan.request, plan.python_tree, plan.mounts
            ),
            rootfs=rootfs,
            mounts=plan.restage_mounts(stage),
            map_users=as_root,
            file_size=None if bounded else file_size_limit(plan.spec),
            capabilities=init_capabilities(plan.runsc, plan.kernel_id),
        )
        # by path: below the state directory, whose parents only this user can change
        (places.bundle / "config.json").write_text(json.dumps(config))
        argv = start_argv(
            plan.runsc,
            root=str(places.runsc),
            bundle=str(places.bundle),
            container_id=plan.identity.container_id,
            panic_log=str(places.panic_log),
            pid_file=str(places.pid_file),
            snapshot=None if snapshot is None else str(snapshot),
        )
        step("bundle written")
        ends = make_pipes()
        try:
            if as_root:
                argv = prelude_argv(argv, cgroup=cgroup, file_size=memory_file)
                process = run_staged(
                    stage,
                    sources,
                    places.meminfo,
                    lambda: spawn(argv, ends, places),
                    kernel_id=plan.kernel_id,
                    has_overlay=tree is not None,
                )
            else:
                process = run_entered(
                    stage,
                    sources,
                    places.meminfo,
                    lambda first, fds: spawn([*first, *argv], ends, places, fds),
                    state=replace(open_source(str(places.runsc), written), read_only=False),
                    cgroups=cgroup.directories,
                    file_size=memory_file,
                    has_overlay=tree is not None,
                )
        except BaseException:
            ends.close_host()
            raise
        finally:
            ends.close_guest()
        step("runsc started")
        stderr = StderrLog(ends.stderr, places.stderr_log)
        seconds = plan.spec.start_timeout
        if snapshot is not None and plan.request.saved_in is None:
            seconds = min(seconds, self._restore_seconds)
        try:
            _look_again(plan.inputs, process)
            sentry = wait_for_sentry(
                process, places, stderr, seconds, restores=snapshot is not None
            )
            try:
                _check_in_place(plan.runsc, snapshot)
            except SandboxError:
                os.close(sentry.fd)
                raise
        except BaseException:
            ends.close_link()
            raise
        step("sandbox made by runsc" if snapshot is None else "sandbox restored by runsc")
        sandbox = RunscSandbox(plan, ends, plan.show(shown), sentry, stderr)
        sandbox.is_saved = plan.request.saved_in is not None
        return sandbox


def _check_in_place(runsc: Runsc, snapshot: Path | None) -> None:
    """Check that a sandbox was started with the program that it was planned for.

    :raises StartTimedOut, SnapshotError: when that was replaced meanwhile: another start may
        succeed
    """
    if not runsc.is_in_place():
        kind = StartTimedOut if snapshot is None else SnapshotError
        raise kind(f"{runsc.executable} was replaced or removed while the sandbox started.")


def _look_again(inputs: Inputs, process: subprocess.Popen[bytes]) -> None:
    """Check that all is hidden that has to be, while ``process`` starts. It is ended otherwise.

    :raises LaunchError: when something was moved meanwhile
    """
    try:
        check_hidden(inputs)
    except BaseException:
        kill_group(process)
        process.wait()  # no timeout: the process has ended
        raise


def _plan_outputs(spec: SandboxSpec, inputs: Inputs, outputs: Outputs) -> Outputs:
    """Plan whether the outputs are lent, and note what the sandbox may write."""
    outputs = _plan_lending(outputs)
    writable = [
        folder
        for mount, folder in zip(spec.mounts, inputs.mounts, strict=True)
        if not mount.read_only
    ]
    note_written([*writable, *([] if outputs.folder is None else [outputs.folder])])
    return outputs


def _plan_lending(outputs: Outputs) -> Outputs:
    """Set ``lent_by`` where the kernel has to own the folder of outputs itself.

    That is the case where root cannot mount the folder with its owner mapped. The folder gets its
    owner back when the sandbox is removed; see ``sweep.give_back``.
    """
    if outputs.folder is None or os.geteuid() != 0 or can_map_owner(outputs.folder):
        return outputs
    status = outputs.folder.status()
    owner = (status.st_uid, status.st_gid)
    if SUBUID_BASE <= status.st_uid < SUBUID_BASE + SUBUID_COUNT:  # lent to another sandbox
        users = (
            r for _, r in records.find_sandboxes() if r.outputs_file == outputs.folder.identity
        )
        above = os.stat("..", dir_fd=outputs.folder.fd)  # if that sandbox has no record any more
        lent = (record.lent_by for record in users if record.lent_by is not None)
        owner = next(lent, (above.st_uid, above.st_gid))
    return replace(outputs, lent_by=owner)
