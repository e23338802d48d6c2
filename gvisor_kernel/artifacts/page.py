"""Which page asks: a ticket that the server gives with a page's content, and takes with its calls.

A page says nothing of itself that is believed. The ticket names the file that was read and the
folder that it may read from, as they were when it was opened: a kernel that moves folders later
does not make one page another.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.artifacts.item import Artifact
from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.folders import Identity, Opened, reopen

MAX_TICKET = 20_000


@dataclass(frozen=True)
class Page:
    """A page that was read. ``root``: the real path of the folder that it may read files of;
    ``folder``: where it lies below that."""

    artifact: Artifact
    root: str
    identity: Identity
    folder: str

    @staticmethod
    def read_from(root: Opened, path: str) -> Page:
        """Return the page at ``path``, already checked, below an open folder."""
        folder = path.rpartition("/")[0]
        artifact = Artifact.of_page(Path(root.path), path)
        return Page(artifact, root.path, root.identity, folder)

    def open_root(self) -> Opened:
        """Open the folder again.

        :raises OutputsError: when another folder is there now
        """
        try:
            return reopen(self.root, self.identity)
        except OSError as error:
            raise OutputsError("The folder of this page is not there any more.") from error


class Tickets:
    """Makes and checks tickets. They hold as long as this object: until the server's end."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def seal(self, page: Page) -> str:
        """Return a ticket of ASCII letters for a page."""
        fields = [page.artifact.id, page.artifact.path, page.root, *page.identity, page.folder]
        content = base64.urlsafe_b64encode(json.dumps(fields).encode())
        return f"{content.decode()}.{self._sign(content)}"

    def read(self, ticket: object) -> Page:
        """Return the page of a ticket.

        :raises OutputsError: when this server has not given it
        """
        content, _, signature = str(ticket)[:MAX_TICKET].partition(".")
        expected = self._sign(content.encode(errors="replace"))
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise OutputsError("The page was opened with another server: open it again.")
        identity, path, root, device, inode, folder = json.loads(base64.urlsafe_b64decode(content))
        return Page(Artifact(identity, path), root, Identity(device, inode), folder)

    def _sign(self, content: bytes) -> str:
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()
