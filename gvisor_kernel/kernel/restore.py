"""Finds the snapshot that a plan may start from, and restores a sandbox from it.

All functions block, so they run in worker threads. A snapshot that cannot be used only costs a
cold start: it is discarded, and ``NoSnapshot`` says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import PRELOAD_LEARNED, write_key_settings
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.errors import NoSnapshot, SnapshotError
from gvisor_kernel.kernel.plan import KernelPlan, kernel_argv, make_launch_request
from gvisor_kernel.kernel.workspace import NAME, hides_uploads
from gvisor_kernel.runtimes import get_snapshot_runtime
from gvisor_kernel.runtimes.base import (
    FoundSandbox,
    FoundSnapshot,
    LaunchRequest,
    Sandbox,
    SnapshotRuntime,
)
from gvisor_kernel.runtimes.mounts.folders import inspect_uploads
from gvisor_kernel.runtimes.mounts.profile import STARTUP, read_profile
from gvisor_kernel.snapshots.key import (
    IMPORTED,
    KernelFacts,
    SnapshotKey,
    digest,
    find_host_facts,
    make_key,
    split_environment,
)
from gvisor_kernel.snapshots.learned import Preloaded, read_preloaded
from gvisor_kernel.snapshots.snapshot import PRELOADED, Meta, Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store, restore_by_key
from gvisor_kernel.spec.layout import GUEST, WORKSPACE
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

MIN_LEARNED_MEMORY = 512 * MIB
"""The least memory limit with which learned modules are imported ahead. They may hold 150 MiB, and
an idle kernel 110: with less, a kernel could begin above its limit, and each start would fail."""


@dataclass(frozen=True)
class Restored:
    """A restored sandbox. Its kernel has no key, environment and seed of its own yet.

    ``key`` is empty for a snapshot that is in no store yet. ``preloaded``: what it has imported.
    """

    sandbox: Sandbox
    key: str
    run: SnapshotRun
    preloaded: Preloaded | None = None

    @classmethod
    def find(cls, sandbox: Sandbox, found: FoundSnapshot, plan: KernelPlan) -> Restored:
        """Return ``sandbox``, whose runtime has found its snapshot itself."""
        facts = {"language": found.language}
        run = describe_run(found.run, found.sandbox_key, facts, plan)
        return cls(sandbox, found.key, run, read_preloaded(found.preloaded))

    def discard(self, reason: str) -> None:
        """Let no other kernel start from this snapshot. Blocks. Does nothing if it is on a node:
        there the next start does it (``LaunchRequest.unfit``)."""
        if not isinstance(self.sandbox, FoundSandbox) and self.key:
            Store.open().discard(self.key, reason)


def find_key(runtime: SnapshotRuntime, plan: KernelPlan) -> tuple[SnapshotKey, KernelPlan]:
    """Return the key of snapshots that fit ``plan``, and the plan of a kernel to take one of.

    The second plan lacks the variables that a restored kernel receives later.

    :raises GvisorKernelError: see ``Runtime.start``
    """
    _, later = _split_variables(plan)
    sandbox = runtime.describe(plan.spec, make_launch_request(plan))
    key = make_key(sandbox, find_kernel_facts(plan), find_host_facts())
    bare = replace(
        plan,
        request=replace(plan.request, environment=_without(plan.request.environment, later)),
        environment=_without(plan.environment, later),
    )
    return key, bare


def find_kernel_facts(plan: KernelPlan) -> KernelFacts:
    """Return what a snapshot depends on beside its sandbox."""
    early, _ = _split_variables(plan)
    return KernelFacts(
        argv=kernel_argv(plan),
        environment=early,
        workdir=WORKSPACE,
        settings=write_key_settings(replace(plan.spec, preload=_find_preload(plan)))
        | {"profile": digest({n: text.hex() for n, text in read_profile(plan.spec).items()})},
    )


def make_asking_request(plan: KernelPlan) -> LaunchRequest:
    """Return the request of a start whose runtime looks for a snapshot itself."""
    return replace(make_launch_request(plan), saved=asdict(find_kernel_facts(plan)))


def find_obstacle(plan: KernelPlan) -> str | None:
    """Return why ``plan`` never uses or makes a snapshot; None if it may.

    No snapshot holds a variable that a setting passes on, so a restored kernel must be able to
    receive it. And the mounts of a restored sandbox are those of its snapshot.

    :raises SettingError: when the uploads cannot be used
    """
    covered, within = inspect_uploads(plan.spec, plan.request)
    if covered:
        return (
            "the uploads contain Jupyter's own files, or an environment's with settings, which the"
            " sandbox does not show"
        )
    if within and not _accepts_variables(plan):
        return "this kernel cannot receive its working directory after a restore"
    if hides_uploads(plan.spec, plan.request.folder):
        return f"the uploads have a file or link {NAME!r}, which a restored sandbox does not show"
    if any(name.startswith(STARTUP) for name in read_profile(plan.spec)):
        return "the profile has startup files, which are to run at each start"
    _, later = _split_variables(plan)
    if later and not _accepts_variables(plan):
        return f"this kernel cannot receive {_summarize_names(later)} after a restore"
    if plan.routes and not _accepts_variables(plan):
        return "this kernel cannot receive the addresses of its routes after a restore"
    late = IMPORTED.intersection(later)
    if late and plan.spec.preload and plan.spec.preload != PRELOAD_LEARNED:
        return f"modules of preload may read {_summarize_names(late)} before a restore"
    return None


def preloads_learned(plan: KernelPlan) -> bool:
    """Return whether a snapshot for ``plan`` imports what other kernels were seen to import.

    Not if the kernel cannot say what it imports, is passed a variable that these modules would have
    to read before a restore, or has little memory.
    """
    if plan.spec.preload != PRELOAD_LEARNED or not _accepts_variables(plan):
        return False
    if plan.spec.memory_limit < MIN_LEARNED_MEMORY:
        return False
    _, later = _split_variables(plan)
    return not IMPORTED.intersection(later)


def _find_preload(plan: KernelPlan) -> tuple[str, ...] | str:
    """Return what of the setting shapes a snapshot."""
    if isinstance(plan.spec.preload, str):
        return PRELOAD_LEARNED if preloads_learned(plan) else ()
    return plan.spec.preload


def find_snapshot(plan: KernelPlan) -> Meta | None:
    """Return what is known of the snapshot that ``plan`` may start from. Reads no memory of it.

    :raises GvisorKernelError: see ``find_key``, or when the store cannot be used
    """
    key, _ = find_key(get_snapshot_runtime(plan.spec.runtime), plan)
    with Store.open().use(key.name) as snapshot:
        if snapshot is None or snapshot.meta.manifest.find_change() is not None:
            return None
        return snapshot.meta


def has_snapshot(plan: KernelPlan) -> bool:
    """Return whether there is a snapshot that ``plan`` may start from.

    :raises GvisorKernelError: see ``find_snapshot``
    """
    return find_snapshot(plan) is not None


def read_meta(meta: Meta) -> Preloaded | None:
    """Return what the snapshot of ``meta`` has imported for PRELOAD_LEARNED, if it has."""
    return read_preloaded(meta.facts.get(PRELOADED))


def _split_variables(plan: KernelPlan) -> tuple[dict[str, str], dict[str, str]]:
    names = plan.spec.environment
    passed = {n: plan.request.environment[n] for n in names if n in plan.request.environment}
    return split_environment({**passed, **plan.environment}, (*names, *plan.substituted))


def _summarize_names(names: Collection[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"


def describe_run(
    run: int, sandbox_key: str, facts: Mapping[str, Any], plan: KernelPlan
) -> SnapshotRun:
    """Return what a restored kernel of ``plan`` is asked for. ``facts`` are those of ``Meta``."""
    renewal = find_renewal(facts)
    _, later = _split_variables(plan)
    told = bool(later or plan.routes)
    return SnapshotRun(run, sandbox_key, renewal.code, renewal.always, told)


def _without(environment: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def _accepts_variables(plan: KernelPlan) -> bool:
    """Return whether a restored kernel can set variables, as one that speaks frames can."""
    return not plan.argv and plan.spec.kernel_mode == "auto"


def restore(
    runtime: SnapshotRuntime,
    plan: KernelPlan,
    take_spare: Callable[[SnapshotKey, SnapshotRun], Sandbox | None] | None = None,
) -> Restored:
    """Restore a sandbox from a snapshot that fits ``plan``. Blocks.

    ``take_spare(key, run)`` may return a sandbox that was restored earlier from the same snapshot:
    another one of the same key has another ``run``.

    :raises NoSnapshot: when no snapshot fits; its fact says why
    :raises GvisorKernelError: when a cold start would fail as well; see ``Runtime.start``
    """
    try:
        store = Store.open()
    except SnapshotError as error:
        log.warning("Kernels start without snapshots: %s", error)
        raise NoSnapshot(str(error)) from error
    key, _ = find_key(runtime, plan)
    step("snapshot's key computed")

    def start(snapshot: Snapshot) -> Sandbox:
        step("snapshot's files compared")
        spare = take_spare(key, describe(snapshot.meta)) if take_spare is not None else None
        return spare or runtime.start(plan.spec, make_launch_request(plan), snapshot.files)

    def describe(meta: Meta) -> SnapshotRun:
        return describe_run(meta.run, meta.sandbox_key, meta.facts, plan)

    sandbox, meta = restore_by_key(store, key, start)
    return Restored(sandbox, key.name, describe(meta), read_meta(meta))


# -- new random numbers ----------------------------------------------------------------------------
# A Python kernel that speaks the link's frames gets them by itself (``guest/resume.py``). For
# languages that are not listed here, random state of before the snapshot is the same in all
# restored kernels.


@dataclass(frozen=True)
class Renewal:
    """Code that gives a restored kernel new random numbers.

    It must leave nothing behind that a cell could see. ``always``: run it also in a kernel of the
    ipykernel family, whose cells run in another process.
    """

    code: str = ""
    always: bool = False


PYTHON = f"""exec('''
import sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest.resume import renew
finally:
    sys.path.remove("{GUEST}")
renew()
''', {{}})"""

RENEWALS = {
    "python": Renewal(PYTHON),
    "bash": Renewal(
        "RANDOM=${SRANDOM:-$(od -An -N4 -tu4 /dev/urandom)}; history -d -1 2>/dev/null; true",
        always=True,
    ),
    # V8 seeds Math.random once and accepts no other seed, so replace the function.
    "typescript": Renewal(
        """{
  const drawn = new Uint32Array(1024);
  let next = drawn.length;
  const random = () => {
    if (next === drawn.length) {
      crypto.getRandomValues(drawn);
      next = 0;
    }
    return ((drawn[next++] >>> 5) * 2 ** 26 + (drawn[next++] >>> 6)) / 2 ** 53;
  };
  Object.defineProperty(Math, "random", { value: random, writable: true, configurable: true });
}""",
        always=True,
    ),
}


def find_branch_code(known: Mapping[str, Any], *, reseeds: bool) -> tuple[str, bool]:
    """Return the code for a branch, and whether a kernel that was told of it runs it, too.

    ``known``: of ``MemoryAnswers.dump``. ``reseeds``: give it other random numbers than its source.
    """
    info = known.get("replies", {}).get("kernel_info_reply", {})
    language = str(dict(info.get("language_info", {})).get("name", ""))
    if reseeds:
        return find_renewal({"language": language}).code, True
    return (
        PYTHON.replace("renew()", "renew(branches=True)") if language == "python" else ""
    ), False


def find_renewal(facts: Mapping[str, Any]) -> Renewal:
    """Return the renewal for a snapshot, by the facts in its ``Meta``."""
    return RENEWALS.get(str(facts.get("language")), Renewal())
