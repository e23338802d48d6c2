"""REST: the outputs of a kernel, pages from them, and what these keep.

A page is named by a ticket, which the server gives with the page's content (``artifacts.page``).
Files are answered as bytes that no browser shows as a document of the server's origin.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import JupyterHandler
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from gvisor_kernel.artifacts.frame import CONNECTIONS, ISOLATION, PROBE, make_frame_page
from gvisor_kernel.artifacts.item import encode_json
from gvisor_kernel.artifacts.outputs import check_path, find_type, list_outputs, open_output
from gvisor_kernel.artifacts.page import Page
from gvisor_kernel.errors import OutputsError, StorageError
from gvisor_kernel.host.folders import Opened, open_real, reopen
from gvisor_kernel.server.handlers import Handler
from gvisor_kernel.server.page_network import find_owner
from gvisor_kernel.server.server_services import ServerServices
from gvisor_kernel.spec.layout import OUTPUTS

MAX_SHOWN = 32 * 1024 * 1024
"""Bytes of a file that is shown. A larger one can be downloaded."""
MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request: a value of 5 MiB, each of its bytes escaped in a JSON text."""
PART = 1024 * 1024
Found = TypeVar("Found")


@dataclass(frozen=True)
class FileLocation:
    """A file's location: a function that opens the folder, and the path below that.
    ``of_contents``: it is one of the server's contents, not of a kernel's outputs."""

    opens: Callable[[], Opened]
    path: str
    of_contents: bool = False


class ArtifactHandler(Handler):
    """Base class."""

    async def work(self, function: Callable[[], Found]) -> Found:
        """Call what blocks in a thread.

        :raises HTTPError: 404 or 409 for an error of the file system
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.services.artifacts.executor, function)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise web.HTTPError(404, "There is no such file.") from error
        except OSError as error:
            raise web.HTTPError(409, f"It cannot be read: {error.strerror}.") from error

    async def find_file(self) -> FileLocation:
        """Return where the file or folder is that the request is about.

        :raises HTTPError: when the request names no folder, or one that is not there; 403 for a
            ticket that this server has not given, and when the person may not read the server's
            contents, and it is one of them
        """
        path = self.get_query_argument("path", "", strip=False)
        ticket = self.get_query_argument("ticket", None)
        if ticket is not None:  # without a valid one, a page would read all contents
            page = self.open_ticket(ticket)
            if page.of_contents:
                await self._check_contents()
            below = f"{page.folder}/{path}" if page.folder else path
            return FileLocation(page.open_root, below, page.of_contents)
        kernel_id = self.get_query_argument("kernel_id", "")
        if kernel_id:
            return FileLocation(self._find_outputs(kernel_id), path)
        await self._check_contents()
        return FileLocation(partial(self._open_folder, path), Path(path).name, of_contents=True)

    @property
    def owner(self) -> str:
        """Whose keys the request is about, and whose tickets."""
        return find_owner(self.identity_provider, self.current_user)

    async def _check_contents(self) -> None:
        """Ask the authorizer as Jupyter's own handlers of files do: these are the same files."""
        allowed = self.authorizer.is_authorized(self, self.current_user, "read", "contents")
        if not await ensure_async(allowed):
            raise web.HTTPError(403, "You may not read the files of this server.")

    def _find_outputs(self, kernel_id: str) -> Callable[[], Opened]:
        self.check_kernel(kernel_id)
        facts = self.services.sandboxes.facts().get(kernel_id)
        views = [view for view in (facts.mounts if facts else ()) if view.target == OUTPUTS]
        if not views:
            raise web.HTTPError(404, "This kernel's outputs are not kept on this computer.")
        source, identity = views[0].source, views[0].identity
        return lambda: open_real(source) if identity is None else reopen(source, identity)

    def _open_folder(self, path: str) -> Opened:
        """Open the folder of a page that is opened without a kernel, below the server's root."""
        missing = OutputsError("There is no such file below the server's root.")
        if "\0" in path:
            raise missing
        root = Path(os.path.realpath(self.services.artifacts.root))
        folder = Path(os.path.realpath(root / Path(path.lstrip("/")).parent))
        # As the server's contents: nothing hidden, whatever name leads there.
        below = folder.relative_to(root).parts if folder.is_relative_to(root) else None
        if below is None or any(part.startswith(".") for part in below):
            raise missing
        return open_real(str(folder))

    def open_ticket(self, ticket: object) -> Page:
        """:raises HTTPError: 403 for a ticket that this server has not given"""
        try:
            return self.services.artifacts.tickets.read(ticket, self.owner)
        except OutputsError as error:
            raise web.HTTPError(403, error.fact) from error


class OutputsHandler(ArtifactHandler):
    """``GET outputs``"""

    async def get(self) -> None:
        where = await self.find_file()

        def look() -> dict[str, Any]:
            with where.opens() as root:
                found = list_outputs(root)
            files = [asdict(file) for file in found.files]
            for file in files:
                del file["kind"]  # each is a regular one; links are not shown in a browser
            return {"files": files, "more": found.more}

        self.answer(await self.work(look))


class OutputHandler(ArtifactHandler):
    """``GET outputs/content``: a file to be shown, with a ticket; or to be downloaded."""

    async def get(self) -> None:
        where = await self.find_file()
        if self.get_query_argument("download", ""):
            await self._download(where)
            return

        tickets, owner = self.services.artifacts.tickets, self.owner

        def read() -> tuple[bytes, str, str]:
            checked = check_path(where.path)
            with where.opens() as root, open_output(root, checked) as (file, status):
                if status.st_size > MAX_SHOWN:
                    raise web.HTTPError(413, f"This file has {status.st_size:,} bytes.")
                content = file.read(MAX_SHOWN)
                page = Page.read_from(root, checked, of_contents=where.of_contents)
                return content or b"", find_type(checked), tickets.seal(page, owner)

        content, kind, ticket = await self.work(read)
        self.set_opaque()
        self.set_header("Gvisor-Kernel-Ticket", ticket)
        self.set_header("Gvisor-Kernel-Type", kind)
        self.finish(content, set_content_type="application/octet-stream")

    async def _download(self, where: FileLocation) -> None:
        def begin() -> Any:
            stack = ExitStack()
            try:
                root = stack.enter_context(where.opens())
                file, status = stack.enter_context(open_output(root, where.path))
            except BaseException:
                stack.close()
                raise
            return stack, file, status.st_size

        stack, file, size = await self.work(begin)
        with stack:
            name = quote(where.path.rpartition("/")[2], safe="")
            self.set_opaque()
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}")
            left = size  # what is appended meanwhile is another download's
            while left > 0:
                data = await self.work(partial(file.read, min(PART, left)))
                if not data:
                    break
                left -= len(data)
                self.write(data)
                try:
                    await self.flush()
                except StreamClosedError:
                    return
            self.finish()


class StorageHandler(ArtifactHandler):
    """``POST storage``: one call of a page."""

    async def post(self) -> None:
        self.note_activity()
        body = await self.work(partial(self.read_body, MAX_BODY))
        page = self.open_ticket(body.get("ticket"))
        method, shared = body.get("do"), body.get("shared", False)
        if not isinstance(shared, bool) or method not in ("set", "get", "delete", "list"):
            raise web.HTTPError(400, "do must be set, get, delete or list; shared true or false.")
        owner = "" if shared else self.owner
        self.answer(await self.work(lambda: self._do(page, owner, method, body, shared)))

    def _do(
        self, page: Page, owner: str, method: str, body: dict[str, Any], shared: bool
    ) -> dict[str, Any] | bytes:
        storage = self.services.artifacts.open_storage(shared=shared)
        key = body.get("key")
        if method == "set":
            if "json" in body:
                storage.set_json(owner, page.artifact, key, encode_json(body["json"]))
                return {"key": key, "shared": shared}
            storage.set(owner, page.artifact, key, body.get("value"))
            return {"key": key, "value": body.get("value"), "shared": shared}
        if method == "delete":
            deleted = storage.delete(owner, page.artifact, key)
            return {"key": key, "deleted": deleted, "shared": shared}
        if method == "list":
            prefix = body.get("prefix", "")
            keys = storage.list_keys(owner, page.artifact, prefix)
            return {"keys": keys, "prefix": prefix, "shared": shared}
        item = storage.get(owner, page.artifact, key)
        if item is None:
            raise StorageError(f"There is no key {key!r} in this storage.")
        # As it was kept, unparsed: a kernel may have written megabytes.
        rest = json.dumps({"key": item.key, "shared": shared}).encode()
        return b'{"value": ' + item.json + b", " + rest[1:]


class FrameHandler(JupyterHandler):
    """``GET frame``: the document of the outer frame, the same for everybody.

    With ``control`` it has no Connection-Allowlist, and shows no page: a frame that reaches the
    server only so shows that the browser obeys that header, and that nothing else was in the way.
    With ``alone`` the browser gives the frame a process of its own.
    """

    def initialize(self, services: ServerServices) -> None:
        pass

    @web.authenticated
    def get(self) -> None:
        page = make_frame_page()
        # Who may embed it is what an administrator allows for the server's pages.
        ancestors = [
            part.strip()
            for part in self.content_security_policy.split(";")
            if part.strip().startswith("frame-ancestors")
        ]
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "; ".join([page.policy, *ancestors[:1]]))
        self.set_header("Permissions-Policy", page.permissions)
        if not self.get_query_argument("control", ""):
            self.set_header("Connection-Allowlist", CONNECTIONS)
        if self.get_query_argument("alone", ""):
            self.set_header("Document-Isolation-Policy", ISOLATION)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-DNS-Prefetch-Control", "off")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(page.html)


class ProbeHandler(RequestHandler):
    """``GET frame/probe``: what no page reaches. It is no secret, and a frame sends no cookie."""

    @allow_unauthenticated
    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(PROBE)
