"""Messages between the host and the helper on a node, before and beside the link.

The host writes an order to the helper's stdin: a head of HEAD bytes, then JSON; then the files, if
they are copied (``archive_chunks.py``). Afterwards stdin and stdout are the link of the sandbox.
The helper writes facts to stderr: one line each, MARK and JSON. Other lines are words of programs
between the two, such as srun or ssh; what a sandbox writes never gets there but as a value of a
fact.

Pure functions; both sides import this module, and they must be of the same release.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvisor_kernel import __version__
from gvisor_kernel.config.settings import SandboxSpec, read_spec, write_spec
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.strict_json import parse_json

HEAD = 48
MAX_ORDER = 1024 * 1024
"""Bytes of an order: paths, and variables that the setting ``environment`` passes on."""
MARK = b"\x1egvisor-kernel-node "
SNAPSHOT = re.compile(r"[0-9a-f]{32}")
"""The key of a snapshot, which is the name of a folder."""
MAX_FACT = 1024 * 1024
"""Bytes of a line with a fact: the variables of a kernel are the longest."""


PLACES = (
    *("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "IPYTHONDIR"),
    *("JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"),
)
"""Variables of the server that say where its user keeps images, skills, packages and keys."""


class OrderError(Exception):
    """The bytes are not an order, or it is of another release."""


@dataclass(frozen=True)
class Order:
    """A start for a helper. ``shared``: for each folder that the sandbox shows, by which the helper
    recognizes it: its path and inode. ``places``: the server's values of PLACES. ``hidden``:
    folders of the server that no sandbox may see. ``kernel``: for a snapshot, what a plan has
    beside its settings and its request. ``copy``: the name of the copy of the files that follow the
    order, in which the paths of the spec are; empty where they are shared."""

    spec: SandboxSpec
    request: LaunchRequest
    shared: tuple[tuple[str, int], ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    kernel: Mapping[str, Any] | None = None
    copy: str = ""


def write_order(order: Order) -> bytes:
    """Return the bytes of an order.

    :raises OrderError: when it is too long
    """
    request = {**vars(order.request), "folder": str(order.request.folder)}
    names = order.spec.environment
    request["environment"] = {
        name: value for name, value in order.request.environment.items() if name in names
    }
    content = {
        "spec": write_spec(dataclasses.replace(order.spec, egress=(), own=None)),
        "request": request,
        "shared": [list(item) for item in order.shared],
        "places": {name: value for name, value in order.places.items() if name in PLACES},
        "hidden": list(order.hidden),
        "kernel": order.kernel,
        "copy": order.copy,
    }
    body = json.dumps(content).encode()
    if len(body) > MAX_ORDER:
        raise OrderError(f"The order has {len(body)} bytes; the limit is {MAX_ORDER}.")
    return write_head(len(body)) + body


def write_head(size: int) -> bytes:
    return f"gvisor-kernel {__version__[:16]} {size}".encode().ljust(HEAD - 1) + b"\n"


def read_head(head: bytes) -> int:
    """Return how many bytes follow.

    :raises OrderError: when this is no head, or one of another release
    """
    words = head.decode(errors="replace").split()
    if len(words) != 3 or words[0] != "gvisor-kernel" or not words[2].isdecimal():
        raise OrderError("The host sent no order.")
    if words[1] != __version__[:16]:
        raise OrderError(
            f"The host has gvisor-kernel {words[1]}, this node has {__version__}: install the same"
            " release on both."
        )
    size = int(words[2])
    if size > MAX_ORDER:
        raise OrderError(f"The order has {size} bytes; the limit is {MAX_ORDER}.")
    return size


def read_order(body: bytes) -> Order:
    """Return the order that ``write_order`` wrote.

    :raises OrderError: when it is malformed
    """
    try:
        content = parse_json(body, MAX_ORDER)
        request = content["request"]
        request["folder"] = Path(request["folder"])
        request["ahead"] = tuple(request["ahead"])
        if request["unfit"] and not SNAPSHOT.fullmatch(request["unfit"]):
            raise ValueError
        return Order(
            read_spec(content["spec"]),
            LaunchRequest(**request),
            tuple((str(path), int(inode)) for path, inode in content["shared"]),
            {name: str(value) for name, value in content["places"].items() if name in PLACES},
            tuple(map(str, content["hidden"])),
            content["kernel"],
            str(content["copy"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OrderError(f"The order is malformed: {type(error).__name__}.") from error


def write_fact(kind: str, **values: Any) -> bytes:
    """Return the line of a fact."""
    return MARK + json.dumps({"kind": kind, **values}).encode() + b"\n"


def read_fact(line: bytes) -> dict[str, Any] | None:
    """Return the fact in a line; None for other words, and for a fact that is malformed."""
    if not line.startswith(MARK):
        return None
    try:
        fact = parse_json(line[len(MARK) :], MAX_FACT)
    except ValueError:
        return None
    return fact if isinstance(fact, dict) and isinstance(fact.get("kind"), str) else None
