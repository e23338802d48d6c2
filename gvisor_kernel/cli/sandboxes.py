"""``list``, ``kill``, ``prune``, ``sync``: all sandboxes of this user.

``runtimes/state/listed.py`` finds them.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress

from gvisor_kernel.bridge.addresses import sweep_bases
from gvisor_kernel.changes.apply import clear_all
from gvisor_kernel.changes.control import Branched, Done, Question, ask
from gvisor_kernel.cli.arguments import add_id, add_json
from gvisor_kernel.cli.output import describe_age, make_console, print_json, print_table
from gvisor_kernel.config.entry_points import find_names
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.errors import GvisorKernelError, RuntimeMissing
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.state.listed import Listed, find_all
from gvisor_kernel.runtimes.state.records import is_claimed, is_orphan, note_kill, read_record
from gvisor_kernel.runtimes.state.saved import IMAGE, SAVED
from gvisor_kernel.runtimes.state.sweep import remove_orphan, remove_sandbox
from gvisor_kernel.shown_text import describe_size, printable_name
from gvisor_kernel.snapshots.snapshot import measure

STATES = """\
states:
  starting   the kernel is not ready yet
  running    in use: its kernel is busy, or has a thread or timer
  idle       it uses no CPU until the next message (setting idle_stop)
  hibernated its kernel is saved on the disk, and goes on at the next request
  spare      prepared in advance for the next start (setting spare)
  ended      its Jupyter process is about to remove it
  copying    ended; its outputs are still being copied out of the Docker engine
  orphaned   its Jupyter process is gone: gvisor-kernel prune removes it
  elsewhere  it runs on another machine that shares this state directory
"""


def find_one(text: str) -> Listed:
    """Find a sandbox by its id, its identity or that of its kernel, or by the beginning of one.

    :raises GvisorKernelError: when no sandbox matches, or more than one
    """
    found = [
        sandbox
        for sandbox in find_all()
        if sandbox.id.startswith(text.lower())
        or sandbox.record.identity.lower().startswith(text.lower())
        or (sandbox.record.kernel_id or "").startswith(text.lower())
    ]
    exact = [
        s for s in found if text.lower() in (s.id, s.record.identity.lower(), s.record.kernel_id)
    ]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise GvisorKernelError(
            f"{len(found)} sandboxes have an id that begins with {text!r}.",
            f"give more of the id: {', '.join(sandbox.id for sandbox in found[:4])}",
        )
    raise GvisorKernelError(
        f"There is no sandbox {text!r}.", "list the sandboxes with: gvisor-kernel list"
    )


def find_kernel(text: str) -> Listed:
    """Find the sandbox of a kernel as ``find_one``.

    :raises GvisorKernelError: also when no process has a kernel in it
    """
    sandbox = find_one(text)
    if sandbox.state == "spare":
        raise GvisorKernelError(f"{sandbox.id} is a spare, in which no kernel has begun.")
    if is_orphan(sandbox.record):
        raise GvisorKernelError(
            f"The process that had the kernel of {sandbox.id} has ended.", _describe_heir(sandbox)
        )
    return sandbox


def _describe_heir(sandbox: Listed) -> str:
    """Return what a person can do about a kernel whose process has ended."""
    if sandbox.record.keeper == "nobody":
        return (
            "nothing of it is kept: a program's kernel ends with it. Remove it with:"
            " gvisor-kernel prune"
        )
    if sandbox.state != "hibernated":
        return (
            "wait until gvisor-kernel list says hibernated; if it does not, nothing of the kernel"
            " is left: gvisor-kernel prune"
        )
    if sandbox.record.keeper == "program":
        return (
            f'let a program take it over: Sandbox.attach("{sandbox.id}"); or remove it with:'
            f" gvisor-kernel kill {sandbox.id}"
        )
    folder = printable_name(sandbox.record.folder)
    return f"start the Jupyter server of {folder} again: it takes the kernel over."


def make_row(sandbox: Listed, current: str) -> tuple[str, ...]:
    """Return the cells of a sandbox's row in ``list``. ``current``: the version of runsc that new
    kernels get, which is not shown."""
    record, used = sandbox.record, sandbox.memory_used
    shown = "?" if used is None else describe_size(used)
    memory = f"{shown} / {describe_size(record.memory_limit)}"
    if sandbox.state == "hibernated":
        memory = f"{describe_size(measure(sandbox.directory / SAVED / IMAGE))} on disk"
    release = record.runsc.removeprefix("0.0~")
    branch = " (branch {} of {})".format(*record.branch) if record.branch else ""
    given = f", {describe_size(record.given_back)} given back" if record.given_back else ""
    return (
        sandbox.id,
        record.kernel_name,
        _describe_state(sandbox),
        f"{memory}{given}",
        describe_age(time.time() - record.created),
        record.folder + branch + (f" (runsc {release})" if release not in ("", current) else ""),
    )


def _describe_state(sandbox: Listed) -> str:
    state = "idle" if sandbox.paused else sandbox.state
    node = sandbox.record.node
    return state if node is None else f"{state} on {node}"  # the table escapes its cells


def add_list(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``list``."""
    parser.epilog = STATES
    add_json(parser)


def run_list(arguments: argparse.Namespace) -> int:
    """``list``: print a row for each sandbox of this user. Return 0.

    :raises StateError: when the state directory cannot be read
    """
    sandboxes = find_all()
    if arguments.json:
        print_json([describe(sandbox) for sandbox in sandboxes])
        return 0
    if not sandboxes:
        print("No sandboxes.")
        return 0
    current = ""
    with suppress(RuntimeMissing):
        current = get_runtime(DEFAULT_RUNTIME).find_version().removeprefix("0.0~")
    rows = (make_row(sandbox, current) for sandbox in sandboxes)
    print_table(("ID", "NAME", "STATE"), ("MEMORY", "AGE"), "FOLDER", rows)
    return 0


def describe(sandbox: Listed) -> dict[str, object]:
    """Return a sandbox for ``list --json``. Times are in seconds, sizes in bytes."""
    record = sandbox.record
    return {
        "id": sandbox.id,
        "identity": record.identity,
        "name": record.kernel_name,
        "kernel_id": record.kernel_id,
        "state": "idle" if sandbox.paused else sandbox.state,
        "runtime": record.runtime,
        "runsc": record.runsc.removeprefix("0.0~"),  # no runtime: a key of the JSON
        "node": record.node,
        "paused": sandbox.paused,
        "memory_used": sandbox.memory_used,
        "memory_limit": record.memory_limit,
        "memory_given_back": record.given_back,
        "created": record.created,
        "age": max(time.time() - record.created, 0),
        "folder": record.folder,
        "branch": record.branch and dict(zip(("name", "of"), record.branch, strict=True)),
        "owner_pid": record.owner.pid,
    }


def add_kill(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``kill``."""
    parser.epilog = "Jupyter sees that the kernel has died, and may start a new one."
    add_id(parser)


def run_kill(arguments: argparse.Namespace) -> None:
    """``kill``: end a sandbox. What its living owner removes is left to it.

    :raises GvisorKernelError: when there is no such sandbox, it is on another machine, or parts of
        it still run
    """
    sandbox = find_one(arguments.id)
    if sandbox.state == "elsewhere":
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} runs on the machine {sandbox.record.machine.host}, or in a"
            " container there.",
            "run this command there.",
        )
    if sandbox.state == "hibernated":
        if is_orphan(sandbox.record):
            if not remove_orphan(sandbox.directory):
                raise GvisorKernelError(
                    f"The saved kernel {sandbox.id} was not removed: a process saves it, or takes"
                    " it over.",
                    "run this again.",
                )
        else:
            ask(sandbox.directory, Question("forget"), Done)
        print(f"Removed the saved kernel {sandbox.id}")
        return
    note_kill(sandbox.directory)
    # A living owner removes the rest itself, as after a crash of the sandbox.
    if sandbox.state == "orphaned":
        ended = remove_sandbox(sandbox.directory, sandbox.record)
    else:
        ended = get_runtime(sandbox.record.runtime).end(sandbox.directory, sandbox.record)
    if not ended:
        raise GvisorKernelError(
            f"Some processes of the sandbox {sandbox.id} are still running.",
            f"see which: ps -ef | grep {sandbox.id}",
        )
    print(f"Killed the sandbox {sandbox.id}")


def add_verb(parser: argparse.ArgumentParser, said: str, epilog: str) -> None:
    """Declare a command that asks the process of a kernel to do what it is called.

    ``said``: what is printed then, of the ``id`` of the sandbox and the ``name`` in the answer.
    """
    parser.epilog = epilog
    parser.set_defaults(run=run_verb, said=said, name=None)
    add_id(parser)


def run_verb(arguments: argparse.Namespace) -> None:
    """Ask the process of a kernel to do what the command is called.

    :raises GvisorKernelError: when there is no such sandbox, its process is gone, or it cannot
    """
    sandbox = find_kernel(arguments.id)
    done = ask(sandbox.directory, Question(arguments.command, name=arguments.name), Done)
    print(arguments.said.format(id=sandbox.id, name=printable_name(done.name)))


def add_hibernate(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hibernate``."""
    said = "The kernel of the sandbox {id} is saved"
    add_verb(parser, said, "The next request to the kernel lets it go on as it was.")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``resume``."""
    said = "The kernel of the sandbox {id} goes on"
    add_verb(parser, said, "A request to the kernel does the same.")


def add_branch(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``branch``."""
    parser.epilog = "Branches are kernels of the same Jupyter server, asleep until they are used."
    add_id(parser)
    parser.add_argument("--name", help="its name, by which its outputs have a folder of their own")
    parser.add_argument("-n", type=int, default=1, help="how many (1)")
    parser.add_argument(
        "--from", dest="checkpoint", metavar="NAME", help="go on from this checkpoint of the kernel"
    )


def run_branch(arguments: argparse.Namespace) -> None:
    """``branch``: start kernels that go on from the state of one, and print their ids.

    :raises GvisorKernelError: when there is no such sandbox, or it cannot be branched
    """
    sandbox = find_kernel(arguments.id)
    more = {"name": arguments.name, "checkpoint": arguments.checkpoint}
    question = Question("branch", count=arguments.n, **more)
    for kernel_id, name in ask(sandbox.directory, question, Branched).branches:
        print(f"{kernel_id}  branch {name} of the sandbox {sandbox.id}")


def add_move(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``move``."""
    said = "The kernel of the sandbox {id} goes on: {name}"
    add_verb(parser, said, "If the kernel cannot go on there, it goes on where it is.")
    parser.add_argument(
        "--to",
        dest="name",
        required=True,
        metavar="HOST",
        help="a host of the setting ssh; slurm: a node of the cluster; local: this machine",
    )


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Declare that ``prune`` has no arguments."""
    parser.epilog = "Sandboxes in use are not changed."


def run_prune(arguments: argparse.Namespace) -> None:
    """``prune``: remove the sandboxes whose owner is gone, or save their kernels; print which;
    remove the directories for the sockets of such owners, and files that a killed apply was
    writing.

    :raises GvisorKernelError: when one cannot be removed completely
    """
    before = find_all()
    ids = {sandbox.record.identity: sandbox.id for sandbox in before}
    orphans = {sandbox.id for sandbox in before if sandbox.state == "orphaned"}
    with make_console(stderr=True).status("Removing orphaned sandboxes …"):
        removed = sweep_runtimes()
    for identity in removed:
        print(f"Removed the sandbox {printable_name(ids.get(identity, identity))}")
    sockets = sweep_bases(state_root() / "sockets")
    if sockets:
        print(f"Removed the sockets of {sockets} ended process{'es' if sockets > 1 else ''}")
    left, saved = [], []
    for sandbox in find_all():
        if sandbox.state == "hibernated" and sandbox.id in orphans:
            print(f"Saved the kernel of the sandbox {sandbox.id}")
            saved.append(sandbox.id)
        elif sandbox.state == "orphaned" and is_claimed(sandbox.directory):
            print(f"Another process saves or removes the sandbox {sandbox.id}")
        elif sandbox.state == "orphaned":
            left.append(sandbox.id)
    if left:
        raise GvisorKernelError(
            f"These sandboxes could not be removed completely: {', '.join(left)}.",
            "run this again as the user who owns their processes and cgroups (perhaps root); if"
            " they are in a Docker engine, when it answers again.",
        )
    applies = clear_all()
    if applies:
        print(
            f"Cleared what {applies} interrupted appl{'ies have' if applies > 1 else 'y has'} left"
        )
    if not removed and not saved and not sockets and not applies:
        print("Nothing to remove.")


def sweep_runtimes() -> list[str]:
    """Remove what dead owners left, of each runtime that may have left something; return the
    identities. A runtime that cannot be imported is told of, and is in no other's way."""
    used = {sandbox.record.runtime for sandbox in find_all()}
    removed = []
    for name in dict.fromkeys((*find_names(), *sorted(used))):
        try:
            runtime = get_runtime(name)
        except RuntimeMissing as error:
            print(f"{error.fact} {error.hint}", file=sys.stderr)
            continue
        if name in used or runtime.may_have_left():
            removed += runtime.sweep()
    return removed


def add_sync(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``sync``."""
    parser.epilog = (
        "For kernels in a Docker engine or in Kubernetes, and on nodes that get files by copy.\n"
        "Without this command, outputs are copied when the sandbox ends. Only files that have\n"
        "changed since its start, or since the last copy, are copied."
    )
    add_id(parser)
    parser.add_argument(
        "--to",
        metavar="FOLDER",
        help="an existing folder that gets all outputs of this sandbox from now on; needed if the"
        " original folder was moved or removed",
    )


def run_sync(arguments: argparse.Namespace) -> None:
    """``sync``: copy a sandbox's outputs from where it runs, and print how many.

    :raises GvisorKernelError: when there is no such sandbox, it has no outputs, or they cannot be
        copied
    """
    sandbox = find_one(arguments.id)
    record = sandbox.record
    if record.outputs is None:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no outputs folder on this machine.",
            "set the setting outputs to a folder that you can write, and start the kernel again.",
        )
    runtime = get_runtime(record.runtime)
    copied = runtime.sync_outputs(sandbox.directory, record, arguments.to)
    record = read_record(sandbox.directory) or record
    outputs = printable_name(str(record.outputs))
    if copied is None:
        print(f"Nothing to copy: the kernel writes directly into {outputs}")
        return
    written, left_out = copied
    why = "special or unreadable files, or names that are not allowed"
    more = f"; {left_out} were left out: {why}" if left_out else ""
    print(f"Copied {written} changed files into {outputs}{more}")
