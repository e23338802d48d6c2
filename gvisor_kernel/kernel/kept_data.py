"""Answers a kernel's questions about data that it keeps as its pages do. Blocks; in threads.

The kernel's outputs folder says which pages it may ask about; the question says the rest, and comes
from a sandbox. A question and an answer are a JSON object, preceded by its length (u32, big
endian), and the bytes of a value: a text, or JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gvisor_kernel.artifacts.item import Artifact, check_size, encode_value, no_json
from gvisor_kernel.artifacts.outputs import check_path
from gvisor_kernel.artifacts.storage import Storage, open_personal, open_shared
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.errors import GvisorKernelError, OutputsError, StorageError
from gvisor_kernel.host.folders import open_real, reopen
from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.strict_json import JsonError, parse_json

OWNER = "me"
"""The person of a kernel is the one whose process runs it. The name is that which pages have where
a server knows no names."""
THREADS = 2
MAX_HEAD = 16 * 1024
"""Bytes of the JSON object of a question: a path and a key, escaped."""
LENGTH = struct.Struct(">I")

log = logging.getLogger(__name__)


class KeptData(PerProcess):
    """The threads that answer, for all kernels of this process.

    ``shared``: the folder that an administrator has named for data that people share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared: Path | None = None
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gvisor-kernel-kept")

    async def answer(self, sandbox: LinkedSandbox | None, question: bytes) -> bytes:
        """Return the answer to a question of the kernel in ``sandbox``. Raises nothing."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self._answer, sandbox, question)
        except RuntimeError:  # this process is exiting
            return _pack({"error": "The host is ending."})

    def _answer(self, sandbox: LinkedSandbox | None, question: bytes) -> bytes:
        try:
            if not isinstance(sandbox, Sandbox):
                raise StorageError("The kernel has not started yet.", "try again in a cell.")
            return self._do(_find_outputs(sandbox), *_unpack(question))
        except GvisorKernelError as error:
            return _pack({"error": error.fact, "hint": error.hint})
        except Exception:
            log.exception("What a kernel keeps could not be read or written")
            return _pack({"error": "The host failed; its log says why."})

    def _do(self, outputs: Path, head: dict[str, Any], value: bytes) -> bytes:
        shared, page, key = head.get("shared"), head.get("page"), head.get("key")
        if not isinstance(shared, bool):
            raise StorageError("shared must be True or False.")
        artifact = _find_artifact(outputs, page)
        storage = open_shared(self.shared) if shared else open_personal()
        owner = Storage.SHARED if shared else OWNER
        what = head.get("do")
        if what == "set":
            is_text = head.get("text") is True
            check_size(len(value))
            content = _encode_text(value) if is_text else value
            storage.set_json(owner, artifact, key, content, folder=str(outputs))
            return _pack({})
        if what == "delete":
            return _pack({"deleted": storage.delete(owner, artifact, key)})
        if what == "list":
            keys = storage.list_keys(owner, artifact, head.get("prefix", ""))
            return _pack({}, json.dumps(keys, ensure_ascii=False).encode())
        if what == "get":
            item = storage.get(owner, artifact, key)
            if item is None:
                return _pack({"found": False})
            return _pack({"found": True}, item.json)
        raise StorageError("The storage does not know that question.")

    def end(self) -> None:
        """End the threads, without waiting for what they do."""
        if not self.is_inherited:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _find_outputs(sandbox: Sandbox) -> Path:
    """Return the folder that the kernel's outputs are, if it is still where it was mounted from."""
    view = next((view for view in sandbox.view.mounts if view.target == OUTPUTS), None)
    if view is None or not view.source:
        raise StorageError(
            "This kernel's outputs are not kept, so it keeps no data either.",
            "name a folder in the setting outputs.",
        )
    try:
        opened = (
            open_real(view.source) if view.identity is None else reopen(view.source, view.identity)
        )
    except OSError as error:
        raise StorageError(
            f"The folder of this kernel's outputs is not there any more: {error.strerror}."
        ) from error
    with opened as root:
        return Path(root.path)


def _find_artifact(outputs: Path, page: object) -> Artifact:
    if page is None:
        return Artifact.of_notebooks(outputs)
    try:
        if not isinstance(page, str) or not page:
            raise OutputsError("A page is named by its path in the outputs.")
        return Artifact.of_page(outputs, check_path(page))
    except OutputsError as error:
        raise StorageError(error.fact) from error


def _encode_text(value: bytes) -> bytes:
    try:
        return encode_value(value.decode())
    except UnicodeDecodeError as error:
        raise no_json() from error


def _unpack(question: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = LENGTH.unpack_from(question) if len(question) >= LENGTH.size else (MAX_HEAD + 1,)
    end = LENGTH.size + size
    try:
        head = parse_json(question[LENGTH.size : end], MAX_HEAD)
    except JsonError:
        head = None
    if size > MAX_HEAD or len(question) < end or not isinstance(head, dict):
        raise StorageError("The question is malformed.")
    return head, question[end:]


def _pack(head: dict[str, Any], value: bytes = b"") -> bytes:
    content = json.dumps(head).encode()
    return LENGTH.pack(len(content)) + content + value
