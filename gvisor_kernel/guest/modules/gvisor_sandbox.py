"""For code in a sandbox: show a file of the outputs, and keep data as its pages do.

::

    from gvisor_sandbox import show, storage

    show("report.html")                              # in the cell
    storage.page("report.html").set("best", 3)       # the page finds it: storage.get("best")
    storage.set("last-run", "2 May")                 # for the notebooks of these outputs

Standard library, Python 3.9; nothing of gvisor_kernel is imported.
"""

from __future__ import annotations

import base64
import builtins
import errno
import json
import os
import socket
import stat
import struct
import sys
import threading
import time
from typing import Any, Union
from urllib.parse import quote

__all__ = ["OutputsError", "Storage", "StorageError", "show", "storage"]

SHOW_TYPE = "application/vnd.gvisor-kernel.output+json"
OUTPUTS = "/mnt/user-data/outputs"
MAX_PATH = 1000
"""Characters of a path that the server takes."""
MAX_PICTURE = 2 * 1024 * 1024
"""Bytes of a picture that is put into the notebook, for programs that cannot show the file."""
PICTURES = {
    ".png": ("image/png", b"\x89PNG\r\n\x1a\n"),
    ".jpg": ("image/jpeg", b"\xff\xd8\xff"),
    ".jpeg": ("image/jpeg", b"\xff\xd8\xff"),
    ".gif": ("image/gif", b"GIF8"),
}
"""Types by the ending of a name, and how such files begin. No SVG: other programs would show it as
a part of their document, with its scripts."""
ADDRESS = "\0gvisor-kernel-questions"
"""Address at which PID 1 takes questions to the host, one at a time."""
MAX_VALUE = 5 * 1024 * 1024 - 1
"""Bytes of a value. The host judges it again."""
MAX_HEAD = 16 * 1024
CONNECT_SECONDS = 60.0
ANSWER_SECONDS = 120.0
"""Seconds that questions before this one, and writers on the host, may take."""
LENGTH = struct.Struct(">I")
UNSET = object()

PathText = Union[str, "os.PathLike[str]"]


class OutputsError(Exception):
    """A path is none of a file in the outputs; the text says why."""


class StorageError(Exception):
    """A value cannot be kept or read; the text says why."""


class Storage:
    """Values that a page keeps, or that notebooks keep. ``shared``: those that all people share,
    instead of this person's."""

    def __init__(self, page: str | None = None) -> None:
        self._page = page

    def page(self, path: PathText) -> Storage:
        """Return the storage of a page in the outputs. The page need not be there yet.

        :raises OutputsError: when ``path`` is outside the outputs
        """
        return Storage(_find_name(path, must_exist=False))

    def set(self, key: str, value: Any, shared: bool = False) -> None:
        """Keep a text or JSON value. The last writer of a key wins.

        :raises StorageError: when key or value are not accepted, or a quota is reached
        """
        is_text = isinstance(value, str)
        try:
            content = value if is_text else json.dumps(value, ensure_ascii=False, allow_nan=False)
            encoded = content.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise StorageError(f"A value must be a text or JSON: {error}.") from None
        if len(encoded) > MAX_VALUE:
            raise StorageError(f"A value has {len(encoded):,} bytes: keep it below 5 MiB.")
        self._ask({"do": "set", "key": key, "text": is_text, "shared": shared}, encoded)

    def get(self, key: str, shared: bool = False, default: Any = UNSET) -> Any:
        """Return what is kept under a key; ``default`` if there is nothing.

        :raises KeyError: when there is nothing, and no ``default``
        :raises StorageError: when the key is not accepted
        """
        head, value = self._ask({"do": "get", "key": key, "shared": shared})
        if head.get("found"):
            return json.loads(value.decode())
        if default is UNSET:
            raise KeyError(key)
        return default

    def list(self, prefix: str = "", shared: bool = False) -> builtins.list[str]:
        """Return the keys that begin with ``prefix``, in their order.

        :raises StorageError: when no key can begin so
        """
        _, value = self._ask({"do": "list", "prefix": prefix, "shared": shared})
        keys: list[str] = json.loads(value.decode())
        return keys

    def delete(self, key: str, shared: bool = False) -> bool:
        """Remove a key; return whether there was one.

        :raises StorageError: when the key is not accepted
        """
        head, _ = self._ask({"do": "delete", "key": key, "shared": shared})
        return bool(head.get("deleted"))

    def _ask(self, question: dict[str, Any], value: bytes = b"") -> tuple[dict[str, Any], bytes]:
        try:
            head = json.dumps({**question, "page": self._page}).encode()
        except (TypeError, ValueError) as error:
            raise StorageError(f"A key must be a text: {error}.") from None
        if len(head) > MAX_HEAD:
            raise StorageError("A key must be shorter than 200 characters.")
        try:
            with _turn:
                answer = _ask_host(LENGTH.pack(len(head)) + head + value)
        except OSError as error:
            raise StorageError(f"The host did not answer: {error}. Try again.") from None
        if not answer:
            raise StorageError("This sandbox keeps no data: it is nobody's kernel.")
        (size,) = LENGTH.unpack_from(answer)
        reply = json.loads(answer[LENGTH.size : LENGTH.size + size].decode())
        if "error" in reply:
            raise StorageError(" ".join(filter(None, (reply["error"], reply.get("hint")))))
        return reply, answer[LENGTH.size + size :]

    def __repr__(self) -> str:
        return "storage" if self._page is None else f"storage.page({self._page!r})"


storage = Storage()
"""Values that the notebooks of this outputs folder keep."""

_turn = threading.Lock()
"""Held by the thread that asks."""


def _renew_turn() -> None:
    global _turn
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_renew_turn)


def _ask_host(question: bytes) -> bytes:
    """Send a question; return the answer.

    :raises OSError: when there is none
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        _connect(connection)
        connection.sendall(LENGTH.pack(len(question)) + question)
        (size,) = LENGTH.unpack(_receive(connection, LENGTH.size))
        return _receive(connection, size)


def _connect(connection: socket.socket) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection.connect(ADDRESS)
            return
        except OSError as error:  # the queue is full, or the socket is made anew
            if error.errno not in (errno.EAGAIN, errno.ECONNREFUSED):
                raise
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        data = connection.recv(min(size, 256 * 1024))
        if not data:
            raise ConnectionError("the connection was closed")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def show(path: PathText) -> None:
    """Show a file of the outputs in the cell: a page, picture, table, text or another file.

    ``path`` is relative to the outputs folder, or the file's path in the sandbox. What is shown is
    the file as it is when it is looked at. Programs other than JupyterLab and Notebook 7 show a
    link, and a picture as it is now.

    :raises OutputsError: when there is no such file in the outputs
    """
    name = _find_name(path)
    bundle = _describe(name)
    display = _find_display()
    if display is None:
        print(bundle["text/plain"])
    else:
        display(bundle, raw=True)


def _find_display() -> Any:
    """Return IPython's ``display``, if this process shows anything by it."""
    shell = sys.modules.get("IPython.core.interactiveshell")
    if shell is None or not shell.InteractiveShell.initialized():
        return None
    from IPython.display import display

    return display


def _words() -> list[str]:
    """Return what the host says of outputs: "outputs" if they are beside the notebook, "kept"."""
    return os.environ.get("GVISOR_KERNEL_WORKSPACE", "").split()


def _find_name(path: PathText, must_exist: bool = True) -> str:
    """Return the path of a file, relative to the outputs.

    :raises OutputsError: when it is none
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise OutputsError("The path of a file must be a text.")
    own = os.environ.get("GVISOR_KERNEL_FOLDER", "/workspace") + "/outputs"
    places = [OUTPUTS, own] if "outputs" in _words() else [OUTPUTS]
    normal = os.path.normpath(text)
    if os.path.isabs(normal):
        names = [os.path.relpath(normal, place) for place in places]
    elif normal.startswith("outputs" + os.sep):  # as code in /workspace writes it
        names = [normal[len("outputs/") :], normal]
    else:
        names = [normal]
    names = [name for name in names if name != ".." and not name.startswith("../")]
    if not names or names[0] == ".":
        where = places[-1]
        raise OutputsError(f"{text!r} is no file in the outputs: write it to {where}/ first.")
    found = next((name for name in names if os.path.lexists(os.path.join(OUTPUTS, name))), names[0])
    _check_name(text, found)
    if must_exist:
        _check_file(text, found)
    return found


def _check_name(text: str, name: str) -> None:
    if len(name) > MAX_PATH:
        raise OutputsError(f"The path has {len(name)} characters: use {MAX_PATH} or fewer.")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise OutputsError(f"{text!r} has a character that no page may have in its name.")


def _check_file(text: str, name: str) -> None:
    """Check that there is a regular file, and no link on the way: the server follows none."""
    above = OUTPUTS
    status = None
    for part in name.split("/"):
        above = os.path.join(above, part)
        try:
            status = os.lstat(above)
        except OSError as error:
            raise OutputsError(
                f"{text!r} cannot be shown: {error.strerror}. It must be a file in {OUTPUTS}."
            ) from None
        if stat.S_ISLNK(status.st_mode):
            raise OutputsError(f"{text!r} cannot be shown: {part!r} is a link. Copy the file.")
    if status is None or not stat.S_ISREG(status.st_mode):
        raise OutputsError(f"{text!r} cannot be shown: it is no regular file.")


def _describe(name: str) -> dict[str, Any]:
    """Return the forms in which a file is displayed, the one of this extension first."""
    size = os.stat(os.path.join(OUTPUTS, name)).st_size
    words = _words()
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    place = f"outputs/{shown}" if "outputs" in words else f"{OUTPUTS}/{shown}"
    kept = "" if "kept" in words else "; it ends with the sandbox"
    bundle: dict[str, Any] = {
        SHOW_TYPE: {"path": name},
        "text/plain": f"{place} ({_describe_size(size)}{kept})",
    }
    picture = _read_picture(name)
    if picture:
        bundle.update(picture)  # no markdown: programs would prefer it to the picture
    elif "outputs" in words:  # relative to the notebook
        bundle["text/markdown"] = (
            f"[{_escape_markdown(shown)}](outputs/{quote(name)}) ({_describe_size(size)})"
        )
    else:
        bundle["text/markdown"] = f"{_escape_markdown(place)} ({_describe_size(size)})"
    return bundle


def _read_picture(name: str) -> dict[str, str]:
    kind, beginning = PICTURES.get(os.path.splitext(name)[1].lower(), ("", b""))
    if not kind:
        return {}
    try:
        with open(os.path.join(OUTPUTS, name), "rb") as file:
            content = file.read(MAX_PICTURE + 1)
    except OSError:
        return {}
    if len(content) > MAX_PICTURE or not content.startswith(beginning):
        return {}
    return {kind: base64.b64encode(content).decode("ascii")}


def _escape_markdown(text: str) -> str:
    return "".join(
        f"\\{letter}" if letter.isascii() and not letter.isalnum() and letter != " " else letter
        for letter in text
    )


def _describe_size(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} bytes"
