"""Makes a snapshot: starts a kernel without any user's data, warms it up, and writes its state.

For a process that does nothing else: the command ``snapshot build``, or the process that
``snapshot_queue`` starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import HOST_IMAGE
from gvisor_kernel.errors import NoSnapshot, SandboxError, SnapshotError
from gvisor_kernel.kernel.client import (
    REPLY_SECONDS,
    OwnClient,
    connect,
    wait_for_reply,
)
from gvisor_kernel.kernel.connection_info import new_key
from gvisor_kernel.kernel.learned_modules import with_learned
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, without_routes
from gvisor_kernel.kernel.restore import (
    describe_run,
    find_key,
    find_obstacle,
    preloads_learned,
    read_meta,
)
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter
from gvisor_kernel.runtimes.mounts.outputs import keeps_outputs
from gvisor_kernel.snapshots.build import builder_lock, lower_priority, strip_session
from gvisor_kernel.snapshots.learned import (
    Preloaded,
    find_difference,
    read_preloaded,
    write_preloaded,
)
from gvisor_kernel.snapshots.manifest import Manifest, make_manifest
from gvisor_kernel.snapshots.reseed import find_renewal
from gvisor_kernel.snapshots.snapshot import PRELOADED, Draft, Meta, Snapshot
from gvisor_kernel.snapshots.store import Store
from gvisor_kernel.spec.layout import GUEST
from gvisor_kernel.strict_json import parse_json

MAX_FACTS = 64 * 1024
"""Bytes of what the kernel says of modules that it imported ahead, or of itself."""
MAX_LIST = 16 * 1024 * 1024
"""Bytes of the list of files that a kernel has loaded. Usual lists have about 100 KB."""

log = logging.getLogger(__name__)

Report = Callable[[str, float], None]
"""Called at each step with a text for people and the share of the work that is done."""

WARM_UP = """
import gc
gc.collect()
gc.freeze()
import ctypes
ctypes.CDLL(None).malloc_trim(0)
"""
"""Frees memory that each restored kernel would otherwise hold or free itself."""

WARM_UP_REQUESTS = {
    "java": (20, "int warm = 6 * 7; System.out"),
    "typescript": (5, "const warm: number = 6 * 7; console.lo"),
}
"""By language: number and code of the completion requests before the snapshot is taken.

They load the compilers, for which the first cell would otherwise wait. Running code instead would
count as a cell."""

FONT_LIST = f"""
import sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest import font_list
finally:
    sys.path.remove("{GUEST}")
font_list.make()
"""

GUEST_PRELOAD = f"""
import json, sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest import preload
finally:
    sys.path.remove("{GUEST}")
"""
DESCRIBE = f"{GUEST_PRELOAD}\nprint(json.dumps(preload.describe_process()))"

SYSTEM_FOLDERS = ("/usr/local/bin", "/usr/local/lib", "/usr/lib")
PACKAGE_LISTS = (
    *("/var/lib/dpkg/status", "/lib/apk/db/installed", "/var/lib/pacman/local"),
    *("/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite"),
)
"""The databases of the distributions' package managers."""

LIST_FILES = """
import json, sys
files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
with open("/proc/self/maps") as maps:
    files |= {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
print(json.dumps([sorted(f for f in files if f), sorted(sys.path_importer_cache)]))
"""


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
        key, _ = find_key(get_runtime(found.spec.runtime), found)
        with store.use(key.name) as snapshot:
            if snapshot is not None and snapshot.meta.manifest.find_change() is None:
                made = read_meta(snapshot.meta)
                if made is None or made.wanted == found.learned:
                    return
        _make(store, found, lambda text, done: None)


def make_snapshot(plan: KernelPlan, report: Report) -> Snapshot:
    """Make the snapshot of ``plan``. Blocks.

    :raises GvisorKernelError: when it cannot be made; nothing is left of it
    """
    store = Store.open()
    plan = without_routes(plan)  # they come with the kernel that starts from it
    with builder_lock(store) as mine:
        if not mine:
            raise SnapshotError(
                "Another process is making a snapshot now.", "try again in a moment."
            )
        return _make(store, plan, report)


def _make(store: Store, plan: KernelPlan, report: Report) -> Snapshot:
    obstacle = find_obstacle(plan)
    if obstacle is not None:
        raise SnapshotError(
            f"No snapshot can be made of this kernel: {obstacle}.",
            "take the variable out of the setting environment; a value that is not secret may be"
            " in the kernelspec's env.",
        )
    try:
        return _make_once(store, plan, report, {})
    except Misbehaved as error:
        log.info("Modules that were imported ahead are left out: %s", error)
        return _make_once(store, plan, report, dict.fromkeys(plan.learned, str(error)))


class Misbehaved(Exception):
    """A kernel with learned modules fails or differs where one without them may not; the text says
    in what."""


@contextmanager
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
    runtime = get_runtime(plan.spec.runtime)
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
            client = connect(address, bare, kernel.find_end)
            try:
                language = _find_language(client, report)
                if language == "python":
                    report("Making the list of fonts", 0.25)
                    _run_python(client, FONT_LIST)
                with suspecting(set(plan.learned) - set(skipped)):
                    preloaded, before = _preload_learned(client, plan, language, skipped, report)
                    manifest = _warm_up(client, kernel, plan, language, since, report)
            finally:
                client.stop_channels()
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
            },
            facts={
                "language": language,
                **({} if preloaded is None else {PRELOADED: write_preloaded(preloaded)}),
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
    found = _parse(_run_python(client, f"{GUEST_PRELOAD}\n{code}"))
    made = read_preloaded({**found, "wanted": list(plan.learned)})
    if made is None:
        raise SnapshotError("What the kernel has imported ahead is malformed.")
    return made, _parse(_run_python(client, DESCRIBE))


def _check(draft: Draft, plan: KernelPlan, run: SnapshotRun, before: Mapping[str, Any]) -> None:
    """Restore the snapshot that was written, and compare its kernel with the saved one.

    :raises Misbehaved: when it differs in what it must not, or cannot be restored
    """
    kernel = SandboxedKernel(logs_death=False, keeps_data=False)
    try:
        address = asyncio.run(kernel.launch_from(plan, draft.files, run))
        client = connect(address, plan, kernel.find_end)
        try:
            difference = find_difference(before, _parse(_run_python(client, DESCRIBE)))
        finally:
            client.stop_channels()
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


def _warm_up(
    client: OwnClient,
    kernel: SandboxedKernel,
    plan: KernelPlan,
    language: str,
    since: float,
    report: Report,
) -> Manifest:
    sandbox = kernel.sandbox
    assert sandbox is not None
    renewal = find_renewal({"language": language})
    if renewal.code:  # each restored kernel runs it, so make no snapshot if it fails
        _run(client, renewal.code)
    if language != "python":
        times, code = WARM_UP_REQUESTS.get(language.lower(), (0, ""))
        for number in range(times):
            report("Warming up the kernel", 0.3 + 0.5 * number / times)
            wait_for_reply(client, client.is_complete(code))
            wait_for_reply(client, client.complete(code))
        if plan.spec.image != HOST_IMAGE:
            # The files of an image never change, and its digest is part of the key.
            return make_manifest([], [], [], since)
        return list_installed(plan.request.python)
    named = () if isinstance(plan.spec.preload, str) else plan.spec.preload
    steps = len(named)
    for number, name in enumerate(named):
        report(f"Importing {name}", 0.3 + 0.4 * number / steps)
        _run_python(client, f"import importlib\nimportlib.import_module({name!r})", name)
    report("Warming up the kernel", 0.7)
    # No completion request: it imports jedi, which takes 34 MiB in each kernel. Users who want
    # fast completions preload jedi.
    wait_for_reply(client, client.is_complete("print"))
    text = _run_python(client, LIST_FILES)
    _run_python(client, WARM_UP)
    try:
        files, directories = parse_json(text, MAX_LIST)
        paths = map(str, files), map(str, directories)
        return make_manifest(*paths, sandbox.mounts, since, str(sandbox.directory))
    except (ValueError, TypeError) as error:
        raise SnapshotError(f"The kernel's list of files cannot be parsed: {error}.") from error


def list_installed(python: str) -> Manifest:
    """Return a manifest that changes with each installed package: for a kernel of another language.

    Such a kernel cannot list what it has loaded. The packages are those of the interpreter
    ``python``, which may run the kernel, and those of the system.
    """
    interpreter = ask_interpreter(python)
    folders = {*interpreter.site_directories, interpreter.user_site or "", *SYSTEM_FOLDERS} - {""}
    views = [MountView(folder, folder, True) for folder in (*folders, "/var/lib", "/lib/apk")]
    records = [str(p) for f in folders for p in Path(f).glob("*-info/RECORD")]
    return make_manifest([*records, *PACKAGE_LISTS], sorted(folders), views)


def _run_python(client: OwnClient, code: str, preloaded: str = "") -> str:
    """Run ``code`` without a trace in the kernel's namespace; return what it printed."""
    return _run(client, f"exec({code!r}, {{}})", preloaded)


def _run(client: OwnClient, code: str, preloaded: str = "") -> str:
    message_id = client.execute(code, silent=True, store_history=False)
    content = wait_for_reply(client, message_id)
    if content["status"] != "ok":
        failure = f"{content.get('ename')}: {content.get('evalue')}"
        if preloaded:
            raise SnapshotError(
                f"The module {preloaded} cannot be imported in a sandbox: {failure}.",
                "take it out of the setting preload, or install it.",
            )
        raise SnapshotError(f"The kernel could not be warmed up: {failure}.")
    printed = ""
    with suppress(Exception):
        while True:
            message = client.get_iopub_msg(timeout=REPLY_SECONDS)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                printed += message["content"]["text"]
            if message["content"].get("execution_state") == "idle":
                break
    return printed
