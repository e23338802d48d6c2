"""The runtimes ``slurm`` and ``ssh``: sandboxes on other machines, each owned by a helper there.

The host starts a client (srun or ssh) whose stdio is the sandbox's link. The helper on the node
makes the sandbox with that machine's runsc, watches it and removes it (``gvisor_kernel/node``).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gvisor_kernel
from gvisor_kernel import errors
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import GvisorKernelError, LaunchError, SnapshotError, StateError
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.runtimes.nodes.client import Client
from gvisor_kernel.runtimes.nodes.copies import copies_files, note_copy, pack_files, sync_outputs
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.notes import forget_if_removed, note_client, note_node
from gvisor_kernel.runtimes.nodes.orders import PLACES, Order, OrderError, write_order
from gvisor_kernel.runtimes.nodes.pieces import write_pieces
from gvisor_kernel.runtimes.nodes.queue import find_queue
from gvisor_kernel.runtimes.nodes.removal import end_client
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.nodes.sandbox import NO_SNAPSHOTS, NodeSandbox
from gvisor_kernel.runtimes.nodes.slurm import Slurm
from gvisor_kernel.runtimes.nodes.ssh import Ssh
from gvisor_kernel.runtimes.runsc.starting import Ends, make_pipes
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning, FirstSweep, begin, predict_outputs
from gvisor_kernel.runtimes.state.records import Record, state_root
from gvisor_kernel.runtimes.state.sweep import sweep_orphans
from gvisor_kernel.runtimes.stderr_log import StderrLog
from gvisor_kernel.runtimes.waits import is_given_up, tell_wait
from gvisor_kernel.spec.identity import new_identity
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

ORDER_SECONDS = 30.0
"""How long a client may take to take the order, which its pipe usually holds at once."""
ASK_SECONDS = 3.0
"""Between two looks at a start that waits: whether it is still wanted, and what it waits for."""
TAKE_SECONDS = 60.0
"""How long a node may take no byte of the files that are copied to it."""
LAST_SECONDS = 5.0
"""How long to wait for the last words of a client that has ended."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
"""A node's name, which becomes an argument of ``srun``."""
MAX_ENVIRONMENT = 1024
"""Variables of a kernel that a helper may report."""


@dataclass(frozen=True)
class _Start(Beginning):
    """One start, its engine, the settings for the helper, and what is copied to the node."""

    engine: Engine
    asked: SandboxSpec
    files: Contents | None


class NodeRuntime(Runtime):
    """Makes sandboxes on the nodes of an engine; ``name`` is the engine's."""

    supports_snapshots = False
    finds_snapshots = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._first_sweep: FirstSweep[str] = FirstSweep(name)

    def start(
        self, spec: SandboxSpec, request: LaunchRequest, snapshot: Path | None = None
    ) -> Sandbox:
        if snapshot is not None:
            raise SnapshotError(NO_SNAPSHOTS, "set snapshot=off.")
        engine = make_engine(spec)
        engine.check()
        awaited = predict_outputs(spec, request) if copies_files(spec) else None
        self._first_sweep.run("", outputs=awaited)
        identity = new_identity(request.kernel_name, spec, engine.name)
        with (
            ExitStack() as held,
            begin(spec, request, identity, held, runtime=self.name) as begun,
        ):
            asked, files = pack_files(begun) if copies_files(spec) else (spec, None)
            return _start_somewhere(_Start(**vars(begun), engine=engine, asked=asked, files=files))

    def describe(self, spec: SandboxSpec, request: LaunchRequest) -> dict[str, Any]:
        raise SnapshotError(NO_SNAPSHOTS, "set snapshot=off, or runtime=runsc.")

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        raise LaunchError(
            f"Packages are not installed by the runtime {self.name}.",
            "install the kernelspec with runtime=runsc on this machine, or put the packages into"
            " an image.",
        )

    def find_advice(self, words: str) -> str:
        return find_hint(words)

    def end(self, directory: Path, record: Record) -> bool:
        return end_client(record)

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        return sync_outputs(directory, record, folder) if record.fetch_argv else None

    def sweep(self) -> list[str]:
        return sweep_orphans(self.name)


def make_engine(spec: SandboxSpec) -> Engine:
    """Return the engine of ``spec.runtime``.

    :raises StateError: when the folder for connections cannot be made
    """
    if spec.runtime == "slurm":
        return Slurm(spec)
    control = state_root() / "ssh"
    try:
        control.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"Could not make the directory {control}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    return Ssh(spec, str(control), count_kernels())


def count_kernels() -> dict[str, int]:
    """Return how many sandboxes of this user run on each node."""
    return Counter(record.node for _, record in records.find_sandboxes() if record.node)


def _start_somewhere(start: _Start) -> NodeSandbox:
    """Start on the first host that can.

    :raises LaunchError: when none can; the reasons of all are in its detail
    """
    failures: list[str] = []
    for host in start.engine.hosts():
        attempt = _Attempt(start, host)
        try:
            return attempt.run()
        except _Elsewhere as error:
            failures.append(str(error))
    raise LaunchError(
        f"No host of the setting {start.engine.name} could start the kernel.",
        "see the reasons below.",
        "\n".join(failures),
    )


def _write_order(order: Order) -> bytes:
    try:
        return write_order(order)
    except OrderError as error:
        raise LaunchError(str(error), "pass on fewer or shorter variables.") from error


class _Elsewhere(LaunchError):
    """This host cannot start the kernel; another one may."""


class _Attempt:
    """A start on one host. Owns the client and the pipes until a NodeSandbox does."""

    def __init__(self, start: _Start, host: str) -> None:
        self._start = start
        self._host = host
        self._variables = start.engine.environment(dict(os.environ))

    def run(self) -> NodeSandbox:
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
        for piece in write_pieces(files.archive(2 * self._start.spec.disk_limit)):
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
                return LaunchError(
                    f"The job {job} of the kernel got no resources {within}.",
                    'wait for other jobs to end, or raise "wait" in the setting slurm.',
                    detail,
                )
            return _Elsewhere(f"{host or engine.name}: no answer {within}.", "", detail)
        reports.join(LAST_SECONDS)
        if killer := records.find_killer(self._start.places.directory):
            return LaunchError(f"The kernel was not started: {killer}.", "start it again.", detail)
        trouble = engine.explain(reports.words, client.process.poll() or 0, host)
        kind = _Elsewhere if trouble.elsewhere else LaunchError
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
            record=start.find_record(),
            places=start.places,
            view=start.make_view(
                environment, reports.text("ready", "python"), reports.text("ready", "workdir")
            ),
            environment=self._variables,
            order=order,
        )
