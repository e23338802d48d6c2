"""One attempt to start a sandbox on one host of an engine: client, order, helper's answers.

Which hosts are tried, and in which order, is in ``runtime.py``.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import gvisor_kernel
from gvisor_kernel import errors
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host.processes import identify
from gvisor_kernel.runtimes.clients import last_line, run
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.archive_chunks import write_chunks
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.copies import note_copy
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.node_sandbox import NodeSandbox
from gvisor_kernel.runtimes.nodes.orders import PLACES, Order, OrderError, write_order
from gvisor_kernel.runtimes.nodes.queue import find_queue
from gvisor_kernel.runtimes.nodes.removal import forget_node
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.records import state_root
from gvisor_kernel.runtimes.stdio import Ends, StderrLog, make_pipes
from gvisor_kernel.runtimes.waits import is_given_up, tell_wait
from gvisor_kernel.shown_text import printable
from gvisor_kernel.tracing import step


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


ORDER_SECONDS = 30.0
"""Seconds that a client may take to take the order, which its pipe usually holds at once."""
ASK_SECONDS = 3.0
"""Seconds between two looks at a start that waits: if it is still wanted, and for what it waits."""
TAKE_SECONDS = 60.0
"""Seconds that a node may take no byte of the files that are copied to it."""
LAST_SECONDS = 5.0
"""Seconds to wait for the last words of a client that has ended."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
"""A node's name, which becomes an argument of ``srun``."""
MAX_ENVIRONMENT = 1024
"""Variables of a kernel that a helper may report."""


@dataclass(frozen=True)
class NodeStart(Beginning):
    """One start, its engine, the settings for the helper, and what is copied to the node."""

    engine: Engine
    asked: SandboxSpec
    files: Contents | None


class Elsewhere(LaunchError):
    """This host cannot start the kernel; another one may."""


class Attempt:
    """A start on one host. Owns the client and the pipes until a NodeSandbox does."""

    def __init__(self, start: NodeStart, host: str) -> None:
        self._start = start
        self._host = host
        self._variables = start.engine.environment(dict(os.environ))

    def run(self) -> NodeSandbox:
        """Start the sandbox there. What has begun is ended if that fails.

        :raises Elsewhere: when another host may start it
        :raises GvisorKernelError: when none will
        """
        start, engine = self._start, self._start.engine
        order = self._make_order()
        message = _write_order(order)
        ends = make_pipes()
        os.set_blocking(ends.link_out, False)
        opened: list[int] = []
        try:
            opened.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            # Another process, such as the master of the connection, may hold the client's stderr
            # for longer than this start or its sandbox lasts. By then ``exit_fd`` may be another
            # file, and what is told is told to this copy.
            opened.append(os.dup(opened[0]))
            # Held open until everything is read that the client has said: only then does the link
            # end.
            opened.append(os.dup(ends.guest[1]))
            opened += os.pipe2(os.O_CLOEXEC)
            client = Client(
                engine.start_argv(self._host, engine.helper("serve")), ends, self._variables
            )
        except BaseException:
            ends.close_guest()
            ends.close_host()
            for fd in opened:
                os.close(fd)
            raise
        exit_fd, ended, last, words, words_in = opened
        ends.close_guest()

        def on_words(line: str) -> None:
            with suppress(OSError):
                os.write(words_in, line.encode() + b"\n")

        opened_last = [ended, last]

        def on_kept() -> None:
            if opened_last:
                os.eventfd_write(ended, 1)
            while opened_last:
                os.close(opened_last.pop())

        def on_end() -> None:
            os.close(words_in)
            client.process.poll()
            on_kept()

        stderr = StderrLog(words, start.places.stderr_log)
        reports = Reports(ends.stderr, on_words, on_end, on_kept, os.dup(client.exit_fd))
        try:
            note_client(start, client)
            self._await_ready(client, reports, ends, message)
            step("node's sandbox made")
            return self._make_sandbox(client, reports, ends, stderr, exit_fd, order)
        except BaseException:
            client.signal()
            os.close(ends.link_in)
            client.end(engine.end_argv(reports.text("here", "job")), self._variables)
            reports.join(LAST_SECONDS)
            os.close(ends.link_out)
            os.close(exit_fd)
            os.close(client.exit_fd)
            forget_if_removed(start, reports)
            raise

    def _make_order(self) -> Order:
        start = self._start
        copies = start.files is not None
        shown = [start.inputs.uploads, start.outputs.folder, *start.inputs.mounts]
        shared = [
            (opened.path, opened.identity.inode)
            for opened in shown
            if opened is not None and opened.is_folder
        ]
        places = {name: os.environ[name] for name in PLACES if name in os.environ and not copies}
        return Order(
            start.asked,
            replace(start.request, saved=None, unfit="") if copies else start.request,
            () if copies else tuple(dict.fromkeys(shared)),
            places,
            (str(state_root()),),
            copy=start.record.container_id if copies else "",
        )

    def _await_ready(self, client: Client, reports: Reports, ends: Ends, order: bytes) -> None:
        """:raises GvisorKernelError: when the node's helper does not start a sandbox"""
        engine = self._start.engine
        sent = client.send(ends.link_in, order, ORDER_SECONDS)
        if not sent or not self._await_helper(reports):
            raise self._explain(client, reports, f"within {engine.wait:g} s")
        if not NODE_NAME.fullmatch(reports.text("here", "node")):
            raise LaunchError(
                f"The helper on {self._host or engine.name} has sent no name of its node.",
                f"install gvisor-kernel {gvisor_kernel.__version__} there.",
            )
        step("node's helper answered")
        note_node(self._start, engine, self._host, reports, copies=self._start.files is not None)
        if self._start.files is not None:
            self._send_files(client, reports, ends, self._start.files)
        seconds = self._start.spec.start_timeout
        if not reports.wait_for(("ready", "failed"), seconds):
            raise self._explain(client, reports, f"within {seconds:g} s")
        if reports.find("failed") is not None:
            raise self._read_failure(reports)

    def _send_files(self, client: Client, reports: Reports, ends: Ends, files: Contents) -> None:
        """:raises GvisorKernelError: when the node does not take them"""
        for piece in write_chunks(files.archive(2 * self._start.spec.disk_limit)):
            if is_given_up():
                raise LaunchError("The start was cancelled while files were copied.")
            if not client.send(ends.link_in, piece, TAKE_SECONDS):
                if reports.wait_for(("failed",), LAST_SECONDS):
                    raise self._read_failure(reports)
                raise self._explain(client, reports, f"to files for {TAKE_SECONDS:g} s")
        step("files copied to the node")

    def _await_helper(self, reports: Reports) -> bool:
        """Wait for the helper, and tell what the start waits for; return whether it has come."""
        engine = self._start.engine
        deadline = time.monotonic() + engine.wait
        told = ""
        try:
            while not reports.wait_for(("here",), min(ASK_SECONDS, deadline - time.monotonic())):
                if reports.is_over or time.monotonic() > deadline:
                    return False
                if is_given_up():
                    raise LaunchError("The start was cancelled while it waited.")
                job = engine.find_waiting_job(reports.words)
                text = self._describe_wait(job) if job else ""
                if text != told:
                    told = text
                    tell_wait(text)
        finally:
            if told:
                tell_wait("")
        return True

    def _describe_wait(self, job: str) -> str:
        """Return what a person is told of a job that waits."""
        argv = self._start.engine.queue_argv()
        before = find_queue(argv, self._variables).count_before(job) if argv else None
        rest = "" if before is None else f", {before} before it"
        return f"waiting for resources: job {job}{rest}"

    def _explain(self, client: Client, reports: Reports, within: str) -> LaunchError:
        """Return the error for a client that has ended, or that nothing has come of."""
        engine, host = self._start.engine, self._host
        detail = "\n".join(reports.words[-20:])
        if not client.has_ended(LAST_SECONDS if reports.is_over else 0):
            job = engine.find_waiting_job(reports.words)
            if job:
                argv = engine.reason_argv(job)
                reason = printable(last_line(run(argv, self._variables)))[:100] if argv else ""
                trouble = engine.explain([*reports.words, reason], 0, host)
                why = f": {reason}" if reason else ""
                return LaunchError(
                    f"The job {job} of the kernel got no resources {within}{why}.",
                    trouble.hint
                    or 'wait for other jobs to end, or raise "wait" in the setting slurm.',
                    detail,
                )
            return Elsewhere(f"{host or engine.name}: no answer {within}.", "", detail)
        reports.join(LAST_SECONDS)
        if killer := records.find_killer(self._start.places.directory):
            return LaunchError(f"The kernel was not started: {killer}.", "start it again.", detail)
        trouble = engine.explain(reports.words, client.process.poll() or 0, host)
        kind = Elsewhere if trouble.elsewhere else LaunchError
        fact = trouble.fact if trouble.elsewhere else f"The kernel was not started: {trouble.fact}"
        return kind(f"{fact}.", trouble.hint, detail)

    def _read_failure(self, reports: Reports) -> GvisorKernelError:
        """Return the error that the helper reports, as this machine's own."""
        name = reports.text("failed", "error")
        kind = getattr(errors, name, LaunchError)
        if not (isinstance(kind, type) and issubclass(kind, errors.SandboxError)):
            kind = LaunchError
        fact, hint, detail = (reports.shown("failed", key) for key in ("fact", "hint", "detail"))
        node = reports.text("here", "node")
        if not fact.strip():
            fact = "the helper could not start the sandbox, and has not said why."
            hint = hint or f"check it: gvisor-kernel doctor --runtime {self._start.engine.name}"
        raised: GvisorKernelError = kind(f"On the node {node}: {fact}", hint, detail)
        return raised

    def _make_sandbox(
        self,
        client: Client,
        reports: Reports,
        ends: Ends,
        stderr: StderrLog,
        exit_fd: int,
        order: Order,
    ) -> NodeSandbox:
        start = self._start
        ready = reports.find("ready") or {}
        environment = ready.get("environment")
        if (
            not isinstance(environment, dict)
            or len(environment) > MAX_ENVIRONMENT
            or not all(isinstance(v, str) for v in environment.values())
        ):
            raise LaunchError(
                f"The helper on {self._host or self._start.engine.name} has sent no environment.",
                f"install gvisor-kernel {gvisor_kernel.__version__} there.",
            )
        if start.files is not None:
            note_copy(start.places.directory, start.find_record(), ready, start.files)
        return NodeSandbox(
            engine=start.engine,
            host=self._host or reports.text("here", "node"),
            client=client,
            reports=reports,
            stderr=stderr,
            ends=ends,
            exit_fd=exit_fd,
            begun=start,
            view=start.make_view(
                environment, reports.text("ready", "python"), reports.text("ready", "workdir")
            ),
            environment=self._variables,
            order=order,
        )


def _write_order(order: Order) -> bytes:
    try:
        return write_order(order)
    except OrderError as error:
        raise LaunchError(str(error), "pass on fewer or shorter variables.") from error
