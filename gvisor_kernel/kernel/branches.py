"""Branches of a kernel: saved kernels that go on from its state, in sandboxes of their own. Blocks.

A branch is a saved kernel (``saved_kernel``) that nobody has let go on yet, with an id, a directory
and outputs of its own, and a mark by which it renews its secrets as it goes on. All branches that
are made at once have hard links to one image, which each of them gives up when it goes on. Until a
process takes one by ``take_saved``, the next sweep removes it if the process that made it ends.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from ulid import ULID

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import OWN, READ_ONLY
from gvisor_kernel.errors import SandboxError, SnapshotError
from gvisor_kernel.host.folders import Identity, open_below, reopen
from gvisor_kernel.host.owners import make_folder
from gvisor_kernel.host.private_directories import write_file
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, write_plan
from gvisor_kernel.kernel.saved_kernel import (
    SavedFile,
    SavedKernel,
    find_saved,
    read_saved,
    save_as,
)
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import KEPT, begin_to_keep
from gvisor_kernel.runtimes.state.records import Keeper, Record
from gvisor_kernel.runtimes.state.saved import IMAGE, NOTE, SAVED
from gvisor_kernel.runtimes.state.sealed import Cipher
from gvisor_kernel.runtimes.state.sweep import BRANCHES, remove_sandbox
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.spec.identity import Identity as SandboxIdentity
from gvisor_kernel.typed_json import write_json

# by path: below the state directory, whose parents only this user can change

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_BRANCHES = 64
"""Branches that are made at once."""


@dataclass(frozen=True)
class Branch:
    """A branch that is wanted. ``reseeds``: it gets other random numbers than its source.
    ``checkpoint``: the name of the state that it goes on from; None: the present one."""

    kernel_id: str
    name: str
    reseeds: bool = False
    checkpoint: str | None = None


def name_branches(
    count: int, name: str | None, *, reseeds: bool = False, checkpoint: str | None = None
) -> list[Branch]:
    """Return that many branches with new ids; several have numbers after ``name``.

    :raises SandboxError: when the name cannot be one, or there are too many
    """
    if not 1 <= count <= MAX_BRANCHES:
        raise SandboxError(f"{count} branches are wanted; 1 to {MAX_BRANCHES} are possible.")
    if name is not None and not NAME.fullmatch(name):
        raise SandboxError(
            f"{printable_name(name)[:100]!r} cannot be the name of a branch.",
            "use at most 64 letters, digits and . _ -",
        )
    name = name or uuid4().hex[:8]
    names = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    return [Branch(str(uuid4()), one, reseeds, checkpoint) for one in names]


def branch_running(
    sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun, wanted: Sequence[Branch]
) -> list[SavedKernel]:
    """Save the kernel of ``sandbox``, which goes on, as branches.

    :raises SnapshotError: when that fails; nothing is left of them then
    """
    with _making(sandbox.directory, wanted) as made:
        copy = save_as(made[0][0] / "copy", sandbox, plan, run)
        branches = _link(copy, made, wanted)
        copy.discard()
        return branches


def branch_saved(saved: SavedKernel, wanted: Sequence[Branch]) -> list[SavedKernel]:
    """Return branches of a saved kernel, which stays as it is.

    :raises FileNotFoundError: when it is not there any more
    :raises SnapshotError: when that fails. Nothing is left of them after an error
    """
    with _making(saved.directory, wanted) as made:
        return _link(saved, made, wanted)


def remove_all(branches: Sequence[SavedKernel]) -> None:
    """Remove branches that nobody has taken. Never raises."""
    for branch in branches:
        branch.remove()


@contextmanager
def _making(source: Path, wanted: Sequence[Branch]) -> Iterator[list[tuple[Path, Record]]]:
    """Make the directory of each branch of the sandbox in ``source``, with its record; remove them
    after an error."""
    record, made = records.read_record(source), []
    if record is None:
        raise SnapshotError(f"The record in {source} cannot be read.")
    try:
        for branch in wanted:
            identity = replace(SandboxIdentity.parse(record.identity), ulid=str(ULID()))
            with records.locked():
                directory = records.make_directory(identity.container_id)
                own = replace(
                    record,
                    identity=str(identity),
                    container_id=identity.container_id,
                    kernel_id=branch.kernel_id,
                    branch=(branch.name, source.name),
                    created=time.time(),
                    owner=records.this_process(),
                    machine=records.this_machine(),
                    made_outputs=False,
                    cgroups=(),
                    processes={},
                    killed=False,
                    saved=0.0,
                    given_back=0,
                )
                made.append((directory, own))
                records.write_record(directory, own)
        yield made
    except BaseException as error:
        for directory, own in made:
            remove_sandbox(directory, records.read_record(directory) or own)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise SnapshotError(
                f"The branch cannot be written in {source.parent}: {error.strerror}.",
                "check whether the disk is full or read-only.",
            ) from error
        raise


def _link(
    source: SavedKernel, made: Sequence[tuple[Path, Record]], wanted: Sequence[Branch]
) -> list[SavedKernel]:
    """Give each branch, whose directory is in ``made``, what is saved of ``source``.

    :raises OSError: when that fails
    :raises SnapshotError: when that cannot be read
    """
    place = source.place
    branches = []
    for (directory, record), branch in zip(made, wanted, strict=True):
        own = _choose_outputs(source.note, record, branch, directory)
        saved = directory / SAVED
        (saved / IMAGE).mkdir(mode=0o700, parents=True)
        for path in (place / IMAGE).iterdir():
            os.link(path, saved / IMAGE / path.name)
        if (place / KEPT).exists():
            os.link(place / KEPT, saved / KEPT)
        write_file(saved / NOTE, Cipher(source.key).write_note(write_json(own), directory.name))
        found = read_saved(saved, directory, record.identity)
        if found is None:
            raise SnapshotError(f"What was saved in {saved} cannot be read.")
        branches.append(found)
    begin_to_keep()
    return branches


def _choose_outputs(note: SavedFile, source: Record, branch: Branch, directory: Path) -> SavedFile:
    """Return the note of a branch, with its outputs, whose folder is made where it is its own.
    ``source``: its record, still with the outputs of its source.

    :raises SnapshotError: when it could not go on with these outputs
    """
    plan = read_plan(note.plan, b"")
    choice = plan.spec.branch_outputs
    held = {OWN: note.held[0], READ_ONLY: note.held[1]}.get(choice, ())
    if source.outputs is None or plan.spec.outputs is None:
        held = ()
    elif held:
        verb = "open" if choice == OWN else "open for writing"
        raise SnapshotError(
            f"The kernel has files or folders of its outputs {verb}, which a branch would not have:"
            f" {printable_name(', '.join(held))}.",
            "close them, and change to another working directory if it is one of them; or set"
            ' branch_outputs to "shared".',
        )
    elif choice == OWN:
        # A branch of a branch has its folder beside that one's: each is empty when it has ended.
        beside, outputs = plan.request.branch == OWN, plan.spec.outputs
        records.change_record(directory, source, **_make_outputs(source, branch.name, beside))
        above = outputs.rpartition("/")[0] if beside else f"{outputs}/{BRANCHES}"
        plan = replace(plan, spec=replace(plan.spec, outputs=f"{above}/{branch.name}"))
    plan = replace(plan, request=replace(plan.request, branch=choice))
    return replace(note, plan=write_plan(plan), branch=branch.name, reseeds=branch.reseeds)


def _make_outputs(source: Record, name: str, beside: bool) -> dict[str, Any]:
    """Make the folder of outputs of a branch in those of its source, or ``beside`` those; return
    facts of its record.

    By descriptor: the kernel may have written anything there.
    """
    assert source.outputs is not None
    assert source.outputs_file is not None
    assert source.outputs_parent is not None
    if source.lent_by is not None:
        raise SnapshotError(
            f"A folder in {source.outputs} cannot be a branch's own: the file system is one on"
            " which the kernel's files have an owner of their own.",
            'set branch_outputs to "read-only" or "shared".',
        )
    place, identity = source.outputs, source.outputs_file
    if beside:
        place, identity = os.path.split(place)[0], source.outputs_parent
    same_boot = records.is_of_this_boot(source)
    with ExitStack() as stack:
        try:
            above = stack.enter_context(reopen(place, Identity(*identity), same_boot=same_boot))
            if not beside:
                with suppress(FileExistsError):
                    stack.enter_context(make_folder(above, BRANCHES))
                above = stack.enter_context(open_below(above, BRANCHES))
            made = stack.enter_context(make_folder(above, name))
        except FileExistsError as error:
            raise SnapshotError(
                f"There is a folder {name} of the outputs of branches in {place} already, so the"
                " branch would not begin with an empty one.",
                "give it another name.",
            ) from error
        except OSError as error:
            raise SnapshotError(
                f"A folder {name} of outputs cannot be made in {place}: {error.strerror}.",
                'make room there, or set branch_outputs to "read-only" or "shared".',
            ) from error
        return {
            "outputs": made.path,
            "outputs_file": made.identity,
            "outputs_parent": above.identity,
            "made_outputs": True,
            "lent_by": None,
        }


# -- who takes a branch ----------------------------------------------------------------------------

_handed: dict[str, SavedKernel] = {}
"""Branches by kernel id, for whom a kernel is being started. Any thread."""


@contextmanager
def handing(branch: Branch, saved: SavedKernel) -> Iterator[None]:
    """Let the kernel of this id, which is started meanwhile, take the branch; otherwise remove
    it."""
    _handed[branch.kernel_id] = saved
    try:
        yield
    except BaseException:
        saved.remove()
        raise
    finally:
        _handed.pop(branch.kernel_id, None)


def take_saved(kernel_id: str, keeper: Keeper, directory: Path | None = None) -> SavedKernel | None:
    """Return the branch of this id that was made for it, or what ``find_saved`` finds.

    ``keeper``: who takes over the branch, when this process has ended.

    :raises StateError: when the state directory cannot be used
    """
    branch = _handed.pop(kernel_id, None)
    if branch is None:
        return find_saved(kernel_id, directory)
    record = records.read_record(branch.directory)
    if record is not None:
        facts = {"saved": branch.note.saved, "keeper": keeper}
        records.change_record(branch.directory, record, **facts)
    return branch
