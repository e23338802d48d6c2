"""Makes a snapshot: starts a kernel without any user's data, warms it up, and writes its state.

For a process that does nothing else: the command ``snapshot build``, or the process that
``snapshot_queue`` starts. What runs in the kernel before is in ``warm_up``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import platform
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import NoSnapshot, SandboxError, SnapshotError
from gvisor_kernel.kernel.client import REPLY_SECONDS, OwnClient, connect, new_key, wait_for_reply
from gvisor_kernel.kernel.learned_modules import with_learned
from gvisor_kernel.kernel.plan import KernelPlan, fix_program, read_plan, without_routes
from gvisor_kernel.kernel.restore import (
    describe_run,
    find_key,
    find_obstacle,
    preloads_learned,
    read_meta,
)
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.kernel.warm_up import FONT_LIST, Report, run_python, warm_up
from gvisor_kernel.runtimes import get_snapshot_runtime
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs
from gvisor_kernel.snapshots.learned import (
    Preloaded,
    find_difference,
    read_preloaded,
)
from gvisor_kernel.snapshots.snapshot import PRELOADED, Draft, Meta, Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store, builder_lock
from gvisor_kernel.spec.layout import GUEST
from gvisor_kernel.strict_json import parse_json

NICENESS = 19
MAX_FACTS = 64 * 1024
"""Bytes of what the kernel says of modules that it imported ahead, or of itself."""

log = logging.getLogger(__name__)

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13

GUEST_PRELOAD = f"""
import json, sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest import preload
finally:
    sys.path.remove("{GUEST}")
"""
DESCRIBE = f"{GUEST_PRELOAD}\nprint(json.dumps(preload.describe_process()))"


def build_snapshot(plan: KernelPlan, preload: Sequence[str] | None, report: Report) -> Snapshot:
    """Make the snapshot that kernels of ``plan`` start from. Blocks.

    ``preload`` replaces the modules of the setting. If the setting is PRELOAD_LEARNED, they are
    those that kernels import now.

    :raises GvisorKernelError: when it cannot be made; nothing is left of it
    """
    if preload is not None:
        plan = replace(plan, spec=replace(plan.spec, preload=tuple(preload)))
    return make_snapshot(with_learned(plan), report)


def build_in_background(plan: dict[str, Any]) -> None:
    """Make the snapshot of a plan (``write_plan``) with low priority, unless it exists. Blocks.

    One that was not to import the modules that the plan names as learned is replaced.

    :raises GvisorKernelError: when it cannot be made
    """
    lower_priority()
    found = read_plan(plan, new_key())
    store = Store.open()
    with builder_lock(store, wait=True):
        key, _ = find_key(get_snapshot_runtime(found.spec.runtime), found)
        with store.use(key.name) as snapshot:
            if snapshot is not None and snapshot.meta.manifest.find_change() is None:
                made = read_meta(snapshot.meta)
                if made is None or made.wanted == found.learned:
                    return
        _make(store, found, lambda text, done: None)


def make_snapshot(plan: KernelPlan, report: Report) -> Snapshot:
    """Make the snapshot of ``plan``, after one that another process makes now. Blocks.

    :raises GvisorKernelError: when it cannot be made; nothing is left of it
    """
    store = Store.open()
    plan = without_routes(plan)  # they come with the kernel that starts from it
    with builder_lock(store) as mine:
        if mine:
            return _make(store, plan, report)
    # Somebody asked for this one. The other may be what a program has left: nobody can see it.
    report("Waiting for another process that makes a snapshot", 0.0)
    with builder_lock(store, wait=True):
        return _make(store, plan, report)


def _make(store: Store, plan: KernelPlan, report: Report) -> Snapshot:
    obstacle = find_obstacle(plan)
    if obstacle is not None:
        raise SnapshotError(
            f"No snapshot can be made of this kernel: {obstacle}.",
            "take the variable out of the setting environment; a value that is not secret may be"
            " in the kernelspec's env.",
        )
    plan = fix_program(plan)
    try:
        return _make_once(store, plan, report, {})
    except Misbehaved as error:
        log.info("Modules that were imported ahead are left out: %s", error)
        # All of them: to find out which one it is would take a restore for each.
        return _make_once(store, plan, report, dict.fromkeys(plan.learned, str(error)))


class Misbehaved(Exception):
    """A kernel with learned modules fails or differs where one without them may not; the text says
    in what."""


@contextlib.contextmanager
def suspecting(names: Collection[str]) -> Iterator[None]:
    """Let a failure be that of the learned modules ``names``, if there are some: what a module did
    in its trial says nothing of what it does in a kernel.

    :raises Misbehaved: instead of a SandboxError
    """
    try:
        yield
    except SandboxError as error:
        if not names:
            raise
        raise Misbehaved(error.fact) from error


def _make_once(
    store: Store, plan: KernelPlan, report: Report, skipped: Mapping[str, str]
) -> Snapshot:
    """``skipped``: learned modules that are not imported, and why.

    :raises Misbehaved: when a kernel with learned modules cannot be saved, or restored as it was
    """
    runtime = get_snapshot_runtime(plan.spec.runtime)
    key, bare = find_key(runtime, plan)
    with store.write() as draft:
        keeps = keeps_outputs(plan.spec, plan.request)
        spec, request = strip_session(bare.spec, bare.request, draft.scratch, keeps_outputs=keeps)
        # This start must be cold.
        spec = replace(spec, snapshot="off", transcripts=spec.transcripts)
        bare = replace(bare, spec=spec, request=request)
        since = time.time()
        report("Starting a kernel", 0.05)
        kernel = SandboxedKernel(logs_death=False, keeps_data=False)
        try:
            address = asyncio.run(kernel.launch(bare))
            with connect(address, bare, kernel.find_end) as client:
                language = _find_language(client, report)
                if language == "python":
                    report("Making the list of fonts", 0.25)
                    run_python(client, FONT_LIST)
                with suspecting(set(plan.learned) - set(skipped)):
                    preloaded, before = _preload_learned(client, plan, language, skipped, report)
                    manifest = warm_up(client, kernel, plan, language, since, report)
            report("Writing the snapshot", 0.8)
            with suspecting(set(plan.learned) - set(skipped)):
                run = asyncio.run(kernel.checkpoint(draft.files, REPLY_SECONDS))
        finally:
            asyncio.run(kernel.close())
        if preloaded is not None and preloaded.imported:
            report("Restoring the snapshot to check it", 0.9)
            _check(
                draft, bare, describe_run(run.run, run.key, {"language": language}, bare), before
            )
        report("Storing the snapshot", 0.95)
        modules = plan.spec.preload if preloaded is None else preloaded.imported
        meta = Meta(
            key=key.name,
            parts=dict(key.parts),
            run=run.run,
            sandbox_key=run.key,
            manifest=manifest,
            label={
                "kernel": plan.request.kernel_name,
                "python": plan.request.python,
                "mode": plan.spec.kernel_mode,
                "preload": ", ".join(() if isinstance(modules, str) else modules),
                "runsc": runtime.find_version(plan.spec.runsc),  # no runtime: a key
                "program": plan.spec.runsc,
            },
            facts={
                "language": language,
                **({} if preloaded is None else {PRELOADED: asdict(preloaded)}),
            },
            created=time.time(),
        )
        store.keep(draft, key, meta)
    with store.use(key.name) as snapshot:
        if snapshot is None:
            raise SnapshotError(
                "The snapshot was removed as soon as it was made.", "make it again."
            )
        return snapshot


def strip_session(
    spec: SandboxSpec, request: LaunchRequest, folder: Path, *, keeps_outputs: bool
) -> tuple[SandboxSpec, LaunchRequest]:
    """Return ``spec`` and ``request`` without the data of a session, to make a snapshot of.

    ``folder`` is an empty one that replaces the notebook's (``Draft.scratch``). ``keeps_outputs``
    says whether restored sandboxes mount a folder of the host for outputs: then this one must have
    such a mount as well, since a restore cannot change the kind of a mount.
    """
    outputs = str(folder / "outputs") if keeps_outputs else None
    empty = replace(spec, uploads=None, outputs=outputs)
    return empty, replace(request, folder=folder, kernel_id="")


def lower_priority() -> None:
    """Give this process and its future children the lowest priority for CPU and disk.

    This cannot be undone, so the process should do nothing else. Never raises.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def _find_language(client: OwnClient, report: Report) -> str:
    report("Waiting for the kernel", 0.2)
    info = wait_for_reply(client, client.kernel_info())
    return str(info["language_info"].get("name"))


def _preload_learned(
    client: OwnClient, plan: KernelPlan, language: str, skipped: Mapping[str, str], report: Report
) -> tuple[Preloaded | None, dict[str, Any]]:
    """Import the learned modules that may be; return these, and facts of the kernel's process.

    None: this kernel has none, whatever was learned.
    """
    if language != "python" or not preloads_learned(plan):
        return None, {}
    names = [name for name in plan.learned if name not in skipped]
    if not names:
        return Preloaded(plan.learned, (), skipped), {}
    report(f"Trying {', '.join(names[:3])}{' and more' if names[3:] else ''}", 0.3)
    code = f"print(json.dumps(preload.import_usable({names!r}, {GUEST!r})))"
    found = _parse(run_python(client, f"{GUEST_PRELOAD}\n{code}"))
    made = read_preloaded({**found, "wanted": list(plan.learned)})
    if made is None:
        raise SnapshotError("What the kernel has imported ahead is malformed.")
    return made, _parse(run_python(client, DESCRIBE))


def _check(draft: Draft, plan: KernelPlan, run: SnapshotRun, before: Mapping[str, Any]) -> None:
    """Restore the snapshot that was written, and compare its kernel with the saved one.

    :raises Misbehaved: when it differs in what it must not, or cannot be restored
    """
    kernel = SandboxedKernel(logs_death=False, keeps_data=False)
    try:
        address = asyncio.run(kernel.launch_from(plan, draft.files, run))
        with connect(address, plan, kernel.find_end) as client:
            difference = find_difference(before, _parse(run_python(client, DESCRIBE)))
    except (NoSnapshot, SnapshotError) as error:
        raise Misbehaved(f"it cannot be restored: {error.fact}") from error
    finally:
        asyncio.run(kernel.close())
    if difference is not None:
        raise Misbehaved(difference)


def _parse(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text, MAX_FACTS)
    except ValueError as error:
        raise SnapshotError(f"The kernel's facts cannot be parsed: {error}.") from error
    if not isinstance(content, dict):
        raise SnapshotError("The kernel's facts are no object.")
    return content
