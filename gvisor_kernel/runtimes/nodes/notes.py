"""What a start on a node notes in its record, by which any process can end and remove a sandbox."""

from __future__ import annotations

from dataclasses import replace

from gvisor_kernel.host.processes import identify
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.removal import forget_node
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning


def note_client(begun: Beginning, client: Client) -> None:
    """Note the client. While a job waits it does not read its stdin, so it would outlive a server
    that is killed.

    :raises StateError: when the record cannot be written
    """
    process = identify(client.process.pid)
    if process is not None:
        with records.locked():
            record = replace(begun.find_record(), processes={"client": process})
            records.write_record(begun.places.directory, record)


def note_node(
    begun: Beginning, engine: Engine, host: str, reports: Reports, *, copies: bool
) -> None:
    """Note where the sandbox is, before it is there. ``copies``: files are copied to the node.

    :raises StateError: when the record cannot be written
    """
    node, job = reports.text("here", "node"), reports.text("here", "job")
    where = host or node
    record = replace(
        begun.find_record(),
        node=where,
        end_argv=tuple(engine.end_argv(job)),
        sweep_argv=tuple(engine.ask_argv(where, engine.helper("sweep"))),
    )
    if copies and begun.outputs.folder is not None:
        fetch = engine.helper("fetch")
        record = replace(
            record,
            fetch_argv=tuple(engine.ask_argv(where, fetch)),
            step_argv=tuple(engine.step_argv(job, fetch)),
        )
    with records.locked():
        records.write_record(begun.places.directory, record)


def forget_if_removed(begun: Beginning, reports: Reports) -> None:
    """Note that the helper has nothing left, if it says so: nobody has to ask the node again."""
    gone = reports.find("removed") or {}
    never_was = reports.find("failed") is not None and reports.find("ready") is None
    if never_was or (gone.get("whole") is True and gone.get("kept") is not True):
        forget_node(begun.places.directory, begun.record)
