"""Ticket by which a page asks: the server gives it with the page, and takes it with each call.

A page says nothing of itself that is believed. The ticket names the file that was read and the
folder that it may read from, as they were when it was opened: a kernel that moves folders later
does not make one page another. It is good for the person to whom it was given.
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

MAX_TICKET = 50_000


@dataclass(frozen=True)
class Page:
    """A page that was read. ``root``: the real path of the folder that it may read files of;
    ``folder``: where it lies below that; ``of_contents``: it was found among the server's contents,
    not among a kernel's outputs."""

    artifact: Artifact
    root: str
    identity: Identity
    folder: str
    of_contents: bool = False

    @staticmethod
    def read_from(root: Opened, path: str, *, of_contents: bool = False) -> Page:
        """Return the page at ``path``, already checked, below an open folder."""
        folder = path.rpartition("/")[0]
        artifact = Artifact.of_page(Path(root.path), path)
        return Page(artifact, root.path, root.identity, folder, of_contents)

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

    def seal(self, page: Page, owner: str) -> str:
        """Return a ticket of ASCII letters for a page that ``owner``, a person, has opened."""
        at = [page.root, *page.identity, page.folder, page.of_contents]
        fields = [page.artifact.id, page.artifact.path, *at]
        content = base64.urlsafe_b64encode(json.dumps(fields).encode())
        return f"{content.decode()}.{self._sign(content, owner)}"

    def read(self, ticket: object, owner: str) -> Page:
        """Return the page of a ticket that ``owner`` has sent.

        :raises OutputsError: when this server has not given it to them
        """
        content, _, signature = str(ticket)[:MAX_TICKET].partition(".")
        expected = self._sign(content.encode(errors="replace"), owner)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise OutputsError("The page was opened with another server: open it again.")
        fields = json.loads(base64.urlsafe_b64decode(content))
        identity, path, root, device, inode, folder, of_contents = fields
        at = Identity(device, inode)
        return Page(Artifact(identity, path), root, at, folder, of_contents)

    def _sign(self, content: bytes, owner: str) -> str:
        # Base64 has no NUL: no name of a person is taken for a part of the content.
        whole = content + b"\0" + owner.encode(errors="surrogatepass")
        return hmac.new(self._secret, whole, hashlib.sha256).hexdigest()
