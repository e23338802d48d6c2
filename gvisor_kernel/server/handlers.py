"""The REST API. Who may ask is decided by Jupyter's server: token or cookie, authorizer, XSRF.

Each route has one handler. ``openapi.json`` and docs/rest.md describe them; a test compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import (
    EgressError,
    EgressRefused,
    GvisorKernelError,
    NoCheckpoint,
    NotIdle,
    OutputsError,
    SnapshotError,
    StorageError,
)
from gvisor_kernel.jupyter.asleep import start_branches
from gvisor_kernel.jupyter.plan_factory import find_spec
from gvisor_kernel.kernel.branches import NAME, name_branches
from gvisor_kernel.kernel.hibernation import Hibernator
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.lab.routes import CLOSED
from gvisor_kernel.server.doctor import DoctorFailed
from gvisor_kernel.server.documents import Described, make_sandbox
from gvisor_kernel.server.kernel_preparer import NotOurs, OutsideRoot
from gvisor_kernel.server.page_network import TooMany
from gvisor_kernel.server.recorded import DEFAULT_LINES, MAX_LINES, Kind
from gvisor_kernel.server.server_services import ServerServices
from gvisor_kernel.shown_text import printable
from gvisor_kernel.strict_json import JsonError, parse_json

READY_SECONDS = 10.0
"""Seconds that the shutdown of a kernel waits for a restart that is under way."""
MAX_BODY = 64 * 1024
OPENAPI = Path(__file__).with_name("openapi.json")
KERNEL = r"(?P<kernel_id>[\w.-]{1,200})"


STATUSES: tuple[tuple[type[GvisorKernelError], int], ...] = (
    (DoctorFailed, 503),
    (OutputsError, 404),
    (NoCheckpoint, 404),
    (EgressRefused, 404),
    (TooMany, 429),
    (EgressError, 503),
    (GvisorKernelError, 409),
)
"""The status with which an error is answered: the first one that fits."""
WITH_HINTS = (EgressError, StorageError, SnapshotError, NotIdle)
"""Errors whose hints are for who reads the answer, and not for who runs the server."""


def answer_errors(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Answer an error of this package with its status, and a text that a person can read."""

    @wraps(method)
    async def call(*args: Any, **kwargs: Any) -> None:
        try:
            await method(*args, **kwargs)
        except GvisorKernelError as error:
            status = next(status for kind, status in STATUSES if isinstance(error, kind))
            hint = error.hint if isinstance(error, WITH_HINTS) else ""
            text = str(GvisorKernelError(error.fact, hint))  # not its detail: what a program said
            raise web.HTTPError(status, text) from error

    return call


class Handler(APIHandler):
    """Base class: authorization is asked for the resource ``gvisor-kernel``."""

    auth_resource = "gvisor-kernel"
    # Polling is no activity: a server that ends when nobody uses it must still end.
    _track_activity = False

    def __init_subclass__(cls, **more: Any) -> None:
        """Answer nobody who is not logged in and authorized, whatever handler it is."""
        super().__init_subclass__(**more)
        for name in {"get", "post", "put", "delete"} & vars(cls).keys():
            setattr(cls, name, web.authenticated(authorized(answer_errors(vars(cls)[name]))))

    def initialize(self, services: ServerServices) -> None:
        self.services = services

    def answer(self, document: Any) -> None:
        """Answer with JSON that no cache keeps."""
        self.set_header("Cache-Control", "no-store")
        self.finish(document)

    def answer_nothing(self) -> None:
        """Say that it is done."""
        self.set_status(204)
        self.finish()

    def set_opaque(self) -> None:
        """Say that no cache keeps the answer, and that no browser shows it as a document."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")

    def read_body(self, limit: int) -> dict[str, Any]:
        """Return the body, a JSON object of at most ``limit`` bytes.

        :raises HTTPError: 400 when it is something else
        """
        try:
            body = parse_json(self.request.body, limit)
        except JsonError as error:
            raise web.HTTPError(400, f"The body is no JSON: {error}.") from error
        if not isinstance(body, dict):
            raise web.HTTPError(400, "The body must be a JSON object.")
        return body

    def note_activity(self) -> None:
        """Count this request as a person's activity."""
        self.settings["api_last_activity"] = datetime.now(UTC)

    def check_kernel(self, kernel_id: str) -> None:
        """:raises HTTPError: 404 for a kernel that is not this server's, or not in a sandbox"""
        if not self.services.sandboxes.has(kernel_id):
            raise web.HTTPError(404, "This server has no kernel of this id in a sandbox.")

    def find_kernel(self, kernel_id: str) -> SandboxedKernel:
        """:raises HTTPError: 404 for a kernel that is not this server's, or has no sandbox"""
        self.check_kernel(kernel_id)
        kernel = self.services.sandboxes.find_kernel(kernel_id)
        if kernel is None:
            raise web.HTTPError(404, "This kernel has no sandbox yet.")
        return kernel

    def describe(self, known: Described) -> dict[str, Any]:
        """Return the document of a kernel that Jupyter still has; it may have ended."""
        ended = self.services.ended.find(known.kernel_id) if known.facts.state == "ended" else None
        return make_sandbox(known, None if ended is None else ended.left)


class SandboxesHandler(Handler):
    """``GET sandboxes``"""

    async def get(self) -> None:
        known = await self.services.sandboxes.read()
        self.answer(
            {
                "sandboxes": [self.describe(one) for one in known.sandboxes.values()],
                "leftovers": list(known.leftovers),
            }
        )


class KernelHandler(Handler):
    """``GET kernels/{kernel_id}``"""

    async def get(self, kernel_id: str) -> None:
        ended = self.services.ended.find(kernel_id)
        if ended is not None and not self.services.sandboxes.has(kernel_id):
            self.answer(make_sandbox(ended.described, ended.left))
            return
        self.check_kernel(kernel_id)
        known = (await self.services.sandboxes.read()).sandboxes.get(kernel_id)
        if known is None:
            raise web.HTTPError(404, "This kernel has no sandbox yet.")
        self.answer(self.describe(known))


class RecordedHandler(Handler):
    """Base class of what the bridge has written about a sandbox."""

    kind: Kind

    async def get(self, kernel_id: str) -> None:
        ended = self.services.ended.find(kernel_id)
        if ended is None:
            self.check_kernel(kernel_id)
        count = self._count_lines()
        facts = self.services.sandboxes.facts().get(kernel_id)
        lines: list[str] = []
        if facts is not None and facts.directory is not None:
            lines = await self.services.recorded.read(self.kind, facts.directory)
        if ended is not None and not lines and (facts is None or facts.state == "ended"):
            lines = ended.lines[self.kind]
        self.answer({"lines": lines[-count:]})

    def _count_lines(self) -> int:
        text = self.get_query_argument("lines", str(DEFAULT_LINES))
        if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and int(text) > 0):
            raise web.HTTPError(400, "lines must be a whole number above 0.")
        return min(int(text), MAX_LINES)


class LogHandler(RecordedHandler):
    """``GET kernels/{kernel_id}/log``"""

    kind = "log"


class TranscriptHandler(RecordedHandler):
    """``GET kernels/{kernel_id}/transcript``"""

    kind = "transcript"


class StopHandler(Handler):
    """``POST kernels/{kernel_id}/stop``: the kernel may end by itself before its sandbox does."""

    now = False

    async def post(self, kernel_id: str) -> None:
        self.check_kernel(kernel_id)
        self.note_activity()
        try:
            await shut_down(self.services.kernel_manager, kernel_id, now=self.now)
        except (KeyError, web.HTTPError) as error:  # another client was faster
            raise web.HTTPError(404, "This kernel has ended.") from error
        except asyncio.InvalidStateError as error:
            message = "This kernel is being restarted. Try again."
            raise web.HTTPError(409, message) from error
        self.answer_nothing()


async def shut_down(manager: Any, kernel_id: str, *, now: bool) -> None:
    """Let Jupyter shut a kernel down, after a restart that is under way: it cannot do both at once.

    :raises KeyError, HTTPError: when the manager has no such kernel
    :raises InvalidStateError: when it is being restarted, for longer than READY_SECONDS
    """
    ready = getattr(manager.get_kernel(kernel_id), "ready", None)
    if isinstance(ready, asyncio.Future):
        await asyncio.wait({ready}, timeout=READY_SECONDS)
    await ensure_async(manager.shutdown_kernel(kernel_id, now=now))


class KillHandler(StopHandler):
    """``POST kernels/{kernel_id}/kill``: at once."""

    now = True


class HibernateHandler(Handler):
    """``POST kernels/{kernel_id}/hibernate``"""

    verb = staticmethod(Hibernator.hibernate)

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        await self.verb(self.find_kernel(kernel_id).hibernation)
        self.answer_nothing()


class ResumeHandler(HibernateHandler):
    """``POST kernels/{kernel_id}/resume``"""

    verb = staticmethod(Hibernator.resume)


class MoveHandler(Handler):
    """``POST kernels/{kernel_id}/move``"""

    async def post(self, kernel_id: str) -> None:
        self.note_activity()
        self.find_kernel(kernel_id)
        to = self.read_body(MAX_BODY).get("to")
        if not isinstance(to, str):
            raise web.HTTPError(400, "The body must have to: local, slurm, or a host.")
        await self.services.kernel_manager.get_kernel(kernel_id).provisioner.move(to)
        self.answer_nothing()


class BranchHandler(Handler):
    """``POST kernels/{kernel_id}/branch``"""

    async def post(self, kernel_id: str) -> None:
        kernel, body = self.find_kernel(kernel_id), self.read_body(MAX_BODY)
        name, path, checkpoint = body.get("name"), body.get("path"), body.get("from")
        if not all(text is None or isinstance(text, str) for text in (name, path, checkpoint)):
            raise web.HTTPError(400, "name, path and from must be texts.")
        if name is not None and not NAME.fullmatch(name):
            raise web.HTTPError(400, "name must be at most 64 letters, digits and . _ -")
        sessions: Any = self.session_manager
        if path is not None and await ensure_async(sessions.session_exists(path=path)):
            raise web.HTTPError(409, "The notebook of this path has a kernel already.")
        self.note_activity()
        [branch] = name_branches(1, name, checkpoint=checkpoint)
        manager = self.services.kernel_manager
        await start_branches(manager, kernel_id, kernel, [branch])
        name = manager.get_kernel(branch.kernel_id).kernel_name
        session: dict[str, Any] = {}
        if path is not None:
            words = {"path": path, "name": path.rpartition("/")[2], "type": "notebook"}
            more = {"kernel_name": name, "kernel_id": branch.kernel_id}
            try:
                session = await ensure_async(sessions.create_session(**words, **more))
            except BaseException:
                await shut_down(manager, branch.kernel_id, now=True)
                raise
        self.set_status(201)
        facts = {"id": branch.kernel_id, "name": printable(name), "branch": branch.name}
        self.answer(facts | {"session": session.get("id")})


class DoctorHandler(Handler):
    """``POST doctor``: it starts a kernel, which no page of another site may ask for."""

    async def post(self) -> None:
        self.answer(await self.services.doctor.read())


class WarmHandler(Handler):
    """``POST warm``"""

    async def post(self) -> None:
        body = self.read_body(MAX_BODY)
        name, path = body.get("kernel_name"), body.get("path", "")
        if not isinstance(name, str) or not isinstance(path, str):
            raise web.HTTPError(400, "The body must have the texts kernel_name and path.")
        try:
            accepted = await self.services.preparer.request(name, path)
        except NotOurs as error:
            message = "There is no kernelspec of this name that starts kernels in sandboxes."
            raise web.HTTPError(404, message) from error
        except OutsideRoot as error:
            raise web.HTTPError(400, "The path is not below the server's root.") from error
        self.set_status(202)
        self.answer({"accepted": accepted})


class ProjectsHandler(Handler):
    """``PUT projects``: what the next kernels of a folder are shown."""

    async def put(self) -> None:
        if self.settings.get(CLOSED):
            raise web.HTTPError(403, "This server shows a stranger's notebook the folder alone.")
        body = self.read_body(MAX_BODY)
        path, shown = body.get("path"), body.get("shown")
        if not isinstance(path, str) or not isinstance(shown, bool):
            raise web.HTTPError(400, "The body must have the text path, and shown: true or false.")
        try:
            folder = self.services.preparer.find_folder(path)
        except OutsideRoot as error:
            raise web.HTTPError(400, "The path is not below the server's root.") from error
        if not await self.services.sandboxes.choose_project(folder, shown=shown):
            raise web.HTTPError(404, "There is no project around this folder that can be shown.")
        self.note_activity()
        self.answer_nothing()


class TrustHandler(Handler):
    """``GET trust``"""

    async def get(self) -> None:
        path = self.get_query_argument("path", "", strip=False)
        self.answer(asdict(await self.services.notary.read(path)))


class OpenApiHandler(Handler):
    """``GET openapi.json``"""

    async def get(self) -> None:
        self.answer(OPENAPI.read_text())


class KernelspecsHandler(Handler):
    """``GET kernelspecs``"""

    async def get(self) -> None:
        found = await ensure_async(self.kernel_spec_manager.get_all_specs())
        facts = await asyncio.get_running_loop().run_in_executor(
            self.services.executor, make_facts, found, self.settings["serverapp"]
        )
        self.answer({"kernelspecs": facts})


def make_facts(found: dict[str, Any], application: Any) -> list[dict[str, Any]]:
    """Return the documents of our kernelspecs, by name; the others are left out.

    ``found``: kernelspecs as Jupyter's managers list them. ``application``: the server's, whose
    configuration holds.
    """
    facts = []
    for name, entry in sorted(found.items()):
        spec: SandboxSpec | None
        problem = None
        try:
            spec = find_spec(entry["spec"].get("metadata", {}), application)
            if spec is None:
                continue
        except GvisorKernelError as error:
            spec, problem = None, printable(error.fact)
        facts.append(
            {
                "name": printable(name),
                "image": None if spec is None else printable(spec.image),
                "limits": None if spec is None else make_limits(spec),
                "problem": problem,
            }
        )
    return facts


def make_limits(spec: SandboxSpec) -> dict[str, int]:
    """Return the document of the limits; sizes in bytes."""
    return {
        "memory": spec.memory_limit,
        "disk": spec.disk_limit,
        "processes": spec.pids_limit,
        "cpu_shares": spec.cpu_shares,
    }
