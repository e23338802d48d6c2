"""Source code that runs inside sandboxes for files and commands: Python 3.9, standard library.

Each program is a function of its own, run in a namespace of its own, so that it changes no variable
of the kernel. Its answer is a display of the type ANSWER. It runs in the kernel's process, where
code may have replaced anything: the answer is validated like all that comes from a sandbox.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

ANSWER = "application/vnd.gvisor-kernel.answer+json"


def make_code(program: Callable[..., Any]) -> str:
    """Return code that runs a function of this module, and shows its result.

    Its arguments are in the content of the request, as JSON under ``arguments``: ipykernel
    takes half a second to read a megabyte of code.
    """
    source = inspect.getsource(program)
    lines = [
        "import json",
        source,
        "arguments = json.loads(get_ipython().kernel.get_parent()['content']['arguments'])",
        f"answer = {program.__name__}(**arguments)",
        "get_ipython().display_pub.publish(data={TYPE: answer})",
    ]
    values = f"{{'TYPE': {ANSWER!r}, 'get_ipython': get_ipython}}"
    return f"exec({chr(10).join(lines)!r}, {values})"


def run_command(command: str) -> dict[str, object]:
    import os
    import selectors
    import signal
    import subprocess
    import sys
    from codecs import getincrementaldecoder

    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    with subprocess.Popen(
        [shell, "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        selector = selectors.DefaultSelector()
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert pipe is not None
            decoder = getincrementaldecoder("utf-8")("replace")
            selector.register(pipe, selectors.EVENT_READ, (decoder, out))
        try:
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, 65536)
                    decoder, out = key.data
                    out.write(decoder.decode(data, not data))
                    out.flush()
                    if not data:
                        selector.unregister(key.fileobj)
            return {"status": process.wait()}
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def read_part(path: str, offset: int, size: int) -> dict[str, object]:
    import base64
    import os

    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            file.seek(offset)
            return {"data": base64.b64encode(file.read(size)).decode(), "total": total}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def write_part(path: str, data: str, first: bool) -> dict[str, object]:
    import base64
    import os

    try:
        if first and os.path.dirname(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb" if first else "ab") as file:
            file.write(base64.b64decode(data))
        return {}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def list_folder(path: str, limit: int) -> dict[str, object]:
    import os
    import stat

    entries: list[list[object]] = []
    more = 0
    try:
        with os.scandir(path) as found:
            for entry in found:
                if len(entries) >= limit:
                    more += 1
                    continue
                status = entry.stat(follow_symlinks=False)
                mode = status.st_mode
                kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
                kind = "link" if stat.S_ISLNK(mode) else kind
                entries.append([entry.name, kind, status.st_size, status.st_mtime])
        return {"path": os.path.abspath(path), "entries": entries, "more": more}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def change(path: str, action: str, target: str) -> dict[str, object]:
    import errno
    import os
    import shutil

    try:
        if action == "exists":
            return {"exists": os.path.lexists(path)}
        if action == "make":
            os.makedirs(path, exist_ok=True)
        elif action == "rename":
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV or os.path.isdir(target):
                    raise
                shutil.move(path, target)  # to another file system
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
        return {}
    except OSError as error:
        return {"error": error.strerror or str(error)}
