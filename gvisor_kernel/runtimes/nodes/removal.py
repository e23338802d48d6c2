"""Ends a sandbox on a node, and removes what it has left there: for ``kill`` and the sweep."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

from gvisor_kernel.host.processes import is_alive, kill_if, wait_until_gone
from gvisor_kernel.runtimes.clients import last_line, run
from gvisor_kernel.runtimes.nodes.orders import MAX_ANSWER, Answer
from gvisor_kernel.runtimes.nodes.variables import client_variables
from gvisor_kernel.runtimes.state.records import Record, note_facts
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

log = logging.getLogger(__name__)

CLIENT_SECONDS = 20.0
"""Seconds that a client may take to end."""


def end_client(record: Record) -> bool:
    """End the client of a sandbox, and with it the helper; return whether it has ended."""
    client = record.processes.get("client")
    if client is None or not is_alive(client):
        return True
    for signum in (signal.SIGTERM, signal.SIGKILL):
        kill_if(client.pid, lambda _: is_alive(client), signum)
        if not is_alive(client) or wait_until_gone([client.pid], time.monotonic() + CLIENT_SECONDS):
            return True
    return not is_alive(client)


def remove_from_node(directory: Path, record: Record, seconds: float | None) -> bool:
    """End a sandbox and let its node remove what is left; return whether nothing is. Never raises.

    ``seconds``: how long the copy of its outputs may take, if they are copied. A record without
    commands is of a sandbox that its helper has removed, or that no helper has had.
    """
    if not end_client(record):
        return False
    if not record.sweep_argv:
        return True
    environment = client_variables(record.runtime, os.environ)
    run(record.end_argv, environment)
    if record.fetch_argv and not _save_outputs(directory, record, seconds):
        return False
    done = run(record.sweep_argv, environment)
    try:
        error = read_json(last_line(done), Answer, MAX_ANSWER).error
    except JsonError:
        words = done.errors.strip().splitlines()
        error = words[-1][:200] if words else f"status {done.status}"
    if error:
        log.warning("Could not look after %s on %s: %s", record.identity, record.node, ascii(error))
        return False
    return True


def _save_outputs(directory: Path, record: Record, seconds: float | None) -> bool:
    from gvisor_kernel.runtimes.nodes.copies import save_outputs

    return save_outputs(directory, record, seconds)


def forget_node(directory: Path, record: Record) -> Record:
    """Note that the helper has removed the sandbox; return the changed record. Never raises."""
    return note_facts(directory, record, end_argv=(), sweep_argv=(), fetch_argv=(), step_argv=())
