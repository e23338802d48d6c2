"""The runtimes ``slurm`` and ``ssh``: sandboxes on other machines, each owned by a helper there.

The host starts a client (srun or ssh) whose stdio is the sandbox's link. The helper on the node
makes the sandbox with that machine's runsc, watches it and removes it (``gvisor_kernel/node``). An
Attempt is a start on one host of an engine: client, order, helper's answers.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import gvisor_kernel
from gvisor_kernel import errors
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import GvisorKernelError, LaunchError, SandboxError, SnapshotError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.host.processes import identify
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox, SavingRuntime
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.clients import CONNECTION_LOST, make_control
from gvisor_kernel.runtimes.nodes.client import LAST_SECONDS, Client
from gvisor_kernel.runtimes.nodes.copies import (
    NO_IMAGE,
    Fetch,
    copies_files,
    note_copy,
    pack_files,
    send_image,
    sync_outputs,
)
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.node_sandbox import NodeSandbox, NodeStart
from gvisor_kernel.runtimes.nodes.orders import (
    PLACES,
    Failed,
    Here,
    Order,
    OrderError,
    Ready,
    Removed,
    show_text,
    write_chunks,
    write_order,
)
from gvisor_kernel.runtimes.nodes.removal import end_client, forget_node
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.nodes.slurm import Slurm
from gvisor_kernel.runtimes.nodes.ssh import Ssh
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import FirstSweep, begin, predict_outputs
from gvisor_kernel.runtimes.state.records import Record, change_record
from gvisor_kernel.runtimes.state.sweep import sweep_orphans
from gvisor_kernel.runtimes.waits import is_given_up, tell_wait
from gvisor_kernel.spec.identity import new_identity
from gvisor_kernel.tracing import step

ORDER_SECONDS = 30.0
"""Seconds that a client may take to take the order, which its pipe usually holds at once."""
ASK_SECONDS = 3.0
"""Seconds between two looks at a start that waits: if it is still wanted, and for what it waits."""
TAKE_SECONDS = 60.0
"""Seconds that a node may take no byte of the files that are copied to it."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
"""A node's name, which becomes an argument of ``srun``."""


def make_engine(spec: SandboxSpec) -> Engine:
    """Return the engine of ``spec.runtime``.

    :raises StateError: when the folder for connections cannot be made
    """
    if spec.runtime == "slurm":
        return Slurm(spec)
    return Ssh(spec, make_control(), count_kernels())


def count_kernels() -> dict[str, int]:
    """Return how many sandboxes of this user run on each node."""
    found = (record for _, record in records.find_sandboxes())
    return Counter(record.node for record in found if record.node and not record.saved)


class NodeRuntime(SavingRuntime):
    """Makes sandboxes on the nodes of an engine; ``name`` is the engine's."""

    finds_snapshots = True

    def __init__(
        self, name: str, find_engine: Callable[[SandboxSpec], Engine] = make_engine
    ) -> None:
        self.name = name
        self._find_engine = find_engine
        self._first_sweep: FirstSweep[str] = FirstSweep(name)

    def start(
        self, spec: SandboxSpec, request: LaunchRequest, snapshot: Path | None = None
    ) -> Sandbox:
        engine = self._find_engine(spec)
        engine.check()
        awaited = predict_outputs(spec, request) if copies_files(spec) else None
        self._first_sweep.run("", outputs=awaited)
        identity = new_identity(request.kernel_name, spec, engine.name)
        last = None
        if request.saved_in is not None:
            identity = records.find_identity(request.saved_in)
            last = records.read_record(request.saved_in)
        with begin(spec, request, identity, {"runtime": self.name}) as begun:
            asked, files = pack_files(begun) if copies_files(spec) else (spec, None)
            made = {**vars(begun), "asked": asked, "files": files, "image": snapshot}
            start = NodeStart(**made, engine=engine)
            return _start_somewhere(start, None if last is None else last.node)

    def check_needs(self, spec: SandboxSpec, needs: str) -> None:
        """Ask the first host of ``spec`` whether it has the ``needs`` of a kernel, a line of JSON.

        :raises SandboxError: when it has not, or does not answer
        """
        if copies_files(spec):
            raise SnapshotError(*NO_IMAGE)
        engine = self._find_engine(spec)
        engine.check()
        host = engine.hosts()[0]
        argv = engine.ask_argv(host, engine.helper("fits"))
        try:
            with Fetch(argv, engine.environment(os.environ)) as asking:
                answer = asking.ask_fit(needs)
        except SandboxError as error:
            trouble = engine.explain(error.detail.splitlines(), CONNECTION_LOST, host)
            fact = f"The kernel was not moved: {trouble.fact}."
            raise LaunchError(fact, trouble.hint, error.detail) from error
        if isinstance(answer, Failed):
            fact, hint = show_text(answer.fact), show_text(answer.hint)
            raise SnapshotError(f"On {host or 'a node'}: {fact}", hint)

    def explain_no_snapshots(self) -> SnapshotError:
        return SnapshotError(
            "Snapshots of kernels on other machines are made there, after a cold start.",
            "start a kernel: the next one on its node is restored from a snapshot.",
        )

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        raise LaunchError(
            f"Packages are not installed by the runtime {self.name}.",
            "install the kernelspec with runtime=runsc on this machine, or put the packages into"
            " an image.",
        )

    def find_checks(self) -> tuple[RuntimeCheck, ...]:
        from gvisor_kernel.runtimes.nodes.checks import SECONDS, check_specs

        return (RuntimeCheck(self.name, SECONDS, partial(check_specs, self._find_engine)),)

    def end(self, directory: Path, record: Record) -> bool:
        return end_client(record)

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        return sync_outputs(directory, record, folder) if record.fetch_argv else None

    def sweep(self) -> list[str]:
        return sweep_orphans(self.name)


def _start_somewhere(start: NodeStart, last: str | None) -> NodeSandbox:
    """Start on the first host that can, and of a saved kernel first on its ``last``.

    :raises LaunchError: when none can; the reasons of all are in its detail
    :raises SnapshotError: when the only host cannot let a saved kernel go on
    """
    failures: list[str] = []
    hosts = sorted(start.engine.hosts(), key=lambda host: host != last)
    for host in hosts:
        attempt = Attempt(start, host)
        try:
            return attempt.run()
        except (Elsewhere, SnapshotError) as error:
            if isinstance(error, SnapshotError) and len(hosts) == 1:
                raise
            failures.append(str(error))
    raise LaunchError(
        f"No host of the setting {start.engine.name} could start the kernel.",
        "see the reasons below.",
        "\n".join(failures),
    )


class Elsewhere(LaunchError):
    """This host cannot start the kernel; another one may."""


class Attempt:
    """A start on one host. Owns the client until a NodeSandbox does."""

    def __init__(self, start: NodeStart, host: str) -> None:
        self._start = start
        self._engine = start.engine
        self._host = host
        self._variables = start.engine.environment(os.environ)

    def run(self) -> NodeSandbox:
        """Start the sandbox there. What has begun is ended if that fails.

        :raises Elsewhere: when another host may start it
        :raises GvisorKernelError: when none will
        """
        start, engine = self._start, self._engine
        order = self._make_order()
        try:
            message = write_order(order)
        except OrderError as error:
            raise LaunchError(str(error), "pass on fewer or shorter variables.") from error
        argv = engine.start_argv(self._host, engine.helper("serve"))
        client = Client(argv, self._variables, start.places.stderr_log)
        try:
            self._note_client(client)
            here, ready = self._await_ready(client, message)
            step("node's sandbox made")
            if start.files is not None:
                note_copy(start.places.directory, start.find_record(), ready, start.files)
            return NodeSandbox(start, client, order, self._host or here.node, ready)
        except BaseException:
            client.abandon(engine.end_argv(client.job))
            self._forget_if_removed(client.reports)
            raise

    def _note_client(self, client: Client) -> None:
        """Note the client. While a job waits it does not read its stdin, so it would outlive a
        server that is killed.

        :raises StateError: when the record cannot be written
        """
        process = identify(client.pid)
        if process is not None:
            self._change_record(processes={"client": process})

    def _note_node(self, here: Here) -> None:
        """Note where the sandbox is, before it is there.

        :raises StateError: when the record cannot be written
        """
        start, engine = self._start, self._engine
        where = self._host or here.node
        facts: dict[str, object] = {
            "node": where,
            "end_argv": tuple(engine.end_argv(here.job)),
            "sweep_argv": tuple(engine.ask_argv(where, engine.helper("sweep"))),
        }
        if start.files is not None and start.outputs.folder is not None:
            fetch = engine.helper("fetch")
            facts["fetch_argv"] = tuple(engine.ask_argv(where, fetch))
            facts["step_argv"] = tuple(engine.step_argv(here.job, fetch))
        self._change_record(**facts)

    def _change_record(self, **facts: object) -> None:
        change_record(self._start.places.directory, self._start.record, **facts)

    def _forget_if_removed(self, reports: Reports) -> None:
        """Note that the helper has nothing left, if it says so: nobody has to ask the node."""
        gone = reports.find(Removed)
        never_was = reports.find(Failed) is not None and reports.find(Ready) is None
        if never_was or (gone is not None and gone.whole and not gone.kept):
            forget_node(self._start.places.directory, self._start.record)

    def _make_order(self) -> Order:
        start = self._start
        copies = start.files is not None
        shown = [start.inputs.uploads, start.outputs.folder, *start.inputs.mounts]
        shared = [
            (opened.path, opened.identity.inode)
            for opened in shown
            if opened is not None and opened.is_folder
        ]
        request = replace(start.request, saved_in=None, kept={})
        if copies:
            request = replace(request, saved=None, unfit="")
        places = {name: os.environ[name] for name in PLACES if name in os.environ and not copies}
        return Order(
            start.asked,
            request,
            () if copies else tuple(dict.fromkeys(shared)),
            places,
            (str(state_root()),),
            copy=start.record.container_id if copies else "",
            image=f"image{start.record.container_id}" if start.image is not None else "",
            word=secrets.token_hex(16),
        )

    def _await_ready(self, client: Client, order: bytes) -> tuple[Here, Ready]:
        """:raises GvisorKernelError: when the node's helper does not start a sandbox"""
        engine, reports = self._engine, client.reports
        sent = client.send(order, ORDER_SECONDS)
        if not sent or not self._await_helper(reports):
            raise self._explain(client, f"within {engine.wait:g} s")
        here = reports.find(Here) or Here()
        if not NODE_NAME.fullmatch(here.node):
            raise LaunchError(
                f"The helper on {self._host or engine.name} has sent no name of its node.",
                f"install gvisor-kernel {gvisor_kernel.__version__} there.",
            )
        step("node's helper answered")
        self._note_node(here)
        self._send_files(client)
        seconds = self._start.spec.start_timeout
        if not reports.wait_for((Ready, Failed), seconds):
            raise self._explain(client, f"within {seconds:g} s")
        failure, ready = reports.find(Failed), reports.find(Ready)
        if failure is not None or ready is None:
            raise self._read_failure(here, failure or Failed())
        if self._start.files is None and ready.workdir != self._start.workdir:
            raise LaunchError(
                f"The node {here.node} finds another project around {self._start.request.folder}.",
                "name the folder: set uploads to its absolute path.",
            )
        return here, ready

    def _send_files(self, client: Client) -> None:
        """:raises GvisorKernelError: when the node does not take them"""
        start = self._start
        if start.files is not None:
            pieces = write_chunks(start.files.archive(2 * start.spec.disk_limit))
        elif start.image is not None:
            pieces = send_image(start.image)
        else:
            return
        for piece in pieces:
            if is_given_up():
                raise LaunchError("The start was cancelled while files were copied.")
            if not client.send(piece, TAKE_SECONDS):
                client.reports.wait_for((Failed,), LAST_SECONDS)
                if failure := client.reports.find(Failed):
                    raise self._read_failure(client.reports.find(Here) or Here(), failure)
                raise self._explain(client, f"to files for {TAKE_SECONDS:g} s")
        step("files copied to the node")

    def _await_helper(self, reports: Reports) -> bool:
        """Wait for the helper, and tell what the start waits for; return whether it has come."""
        engine = self._engine
        deadline = time.monotonic() + engine.wait
        told = ""
        try:
            while not reports.wait_for(
                (Here, Failed), min(ASK_SECONDS, deadline - time.monotonic())
            ):
                if reports.is_over or time.monotonic() > deadline:
                    return False
                if is_given_up():
                    raise LaunchError("The start was cancelled while it waited.")
                text = engine.describe_wait(reports.words, self._variables)
                if text != told:
                    told = text
                    tell_wait(text)
        finally:
            if told:
                tell_wait("")
        return True

    def _explain(self, client: Client, within: str) -> LaunchError:
        """Return the error for a client that has ended, or that nothing has come of."""
        engine, host, reports = self._engine, self._host, client.reports
        detail = "\n".join(reports.words[-20:])
        if not client.has_ended(LAST_SECONDS if reports.is_over else 0):
            if waiting := engine.explain_wait(reports.words, within, self._variables):
                return LaunchError(waiting.fact, waiting.hint, detail)
            return Elsewhere(f"{host or engine.name}: no answer {within}.", "", detail)
        reports.join(LAST_SECONDS)
        if killer := records.find_killer(self._start.places.directory):
            return LaunchError(f"The kernel was not started: {killer}.", "start it again.", detail)
        trouble = engine.explain(reports.words, client.status, host)
        kind = Elsewhere if trouble.elsewhere else LaunchError
        fact = trouble.fact if trouble.elsewhere else f"The kernel was not started: {trouble.fact}"
        return kind(f"{fact}.", trouble.hint, detail)

    def _read_failure(self, here: Here, failure: Failed) -> GvisorKernelError:
        """Return the error that the helper reports, as this machine's own."""
        kind = getattr(errors, failure.error, LaunchError)
        if not (isinstance(kind, type) and issubclass(kind, errors.SandboxError)):
            kind = LaunchError
        fact, hint, detail = map(show_text, (failure.fact, failure.hint, failure.detail))
        if not fact.strip():
            fact = "the helper could not start the sandbox, and has not said why."
            hint = hint or f"check it: gvisor-kernel doctor --runtime {self._engine.name}"
        if kind is errors.RuntimeMissing:
            hint = f"on that node, {hint}"
        raised: GvisorKernelError = kind(f"On the node {here.node}: {fact}", hint, detail)
        return raised
