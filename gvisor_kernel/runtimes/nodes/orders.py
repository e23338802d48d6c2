"""Messages between the host and the helper on a node, before and beside the link.

The host writes an order to the helper's stdin: a head of HEAD bytes, then JSON; then the files, if
they are copied, in chunks. Afterwards stdin and stdout are the link of the sandbox. The helper
writes facts to stderr: one line each, MARK and JSON. Other lines are words of programs between the
two, such as srun or ssh; what a sandbox writes never gets there but as a value of a fact.

Pure functions; both sides import this module, and they must be of the same release.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from gvisor_kernel import __version__
from gvisor_kernel.config.settings import SandboxSpec, read_spec
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.strict_json import JsonError, parse_json
from gvisor_kernel.typed_json import read_value, write_json

HEAD = 48
MAX_ORDER = 1024 * 1024
"""Bytes of an order: paths, and variables that the setting ``environment`` passes on."""
MARK = b"\x1egvisor-kernel-node "
SNAPSHOT = re.compile(r"[0-9a-f]{32}")
"""The key of a snapshot, which is the name of a folder."""
MAX_FACT = 1024 * 1024
"""Bytes of a line with a fact: the variables of a kernel are the longest."""
CHUNK = 256 * 1024
"""Bytes of a full chunk."""
LENGTH = struct.Struct(">I")

PLACES = (
    *("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "IPYTHONDIR"),
    *("JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"),
)
"""Variables of the server that say where its user keeps images, skills, packages and keys."""

# -- orders ----------------------------------------------------------------------------------------


class OrderError(Exception):
    """The bytes are not an order, or it is of another release."""


@dataclass(frozen=True)
class Order:
    """A start for a helper. ``shared``: for each folder that the sandbox shows, by which the helper
    recognizes it: its path and inode. ``places``: the server's values of PLACES. ``hidden``:
    folders of the server that no sandbox may see. ``kernel``: for a snapshot, what a plan has
    beside its settings and its request. ``copy``: the name of the copy of the files that follow the
    order, in which the paths of the spec are; empty where they are shared. ``image``: likewise of a
    saved kernel that goes on; empty if none does. ``word``: nobody else knows it; see
    ``save_word``."""

    spec: SandboxSpec
    request: LaunchRequest
    shared: tuple[tuple[str, int], ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    kernel: Mapping[str, Any] | None = None
    copy: str = ""
    image: str = ""
    word: str = ""


def save_word(order: Order) -> bytes:
    """Return what the host writes into the link for the helper: save the sandbox, which has nothing
    else to read. It is stopped while it is sent, until the host writes this again."""
    return f"\x1esave {order.word}\n".encode()


def write_order(order: Order) -> bytes:
    """Return the bytes of an order. Routes and variables that nobody has named are not in it.

    :raises OrderError: when it is too long
    """
    variables = order.request.environment
    named = {name: variables[name] for name in order.spec.environment if name in variables}
    sent = replace(
        order,
        spec=replace(order.spec, egress=(), own=None),
        request=replace(order.request, environment=named),
    )
    body = write_json(sent).encode()
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
        order = read_value({**content, "spec": read_spec(content["spec"])}, Order)
    except (ValueError, TypeError, KeyError) as error:
        raise OrderError(f"The order is malformed: {type(error).__name__}.") from error
    if order.request.unfit and not SNAPSHOT.fullmatch(order.request.unfit):
        raise OrderError("The order is malformed: it names no snapshot.")
    places = {name: value for name, value in order.places.items() if name in PLACES}
    return replace(order, places=places)


# -- facts -----------------------------------------------------------------------------------------

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Word: TypeAlias = Annotated[str, Meta(max_length=200)]


class Fact(Struct, frozen=True, tag_field="kind", tag=str.lower):
    """A fact that a helper tells. Its texts may be a sandbox's: ``show_text`` is for people."""


class Here(Fact, frozen=True):
    """The helper runs on ``node``, in a ``job`` of Slurm or in none."""

    node: str = ""
    job: str = ""


class Found(Struct, frozen=True):
    """The snapshot that a sandbox was restored from; see ``FoundSnapshot``. Its key comes back to
    the node as the name of a folder."""

    key: Annotated[str, Meta(pattern=rf"^{SNAPSHOT.pattern}\Z")]
    run: Annotated[int, Meta(ge=0, lt=2**31)]
    sandbox_key: Word
    language: Word
    preloaded: Any = None


class Ready(Fact, frozen=True):
    """The sandbox runs, and was checked from outside. ``environment``: a kernel's variables.
    ``copy``, ``left_out``: where its files were copied to, and how many of the host's are not
    there. ``lacks``: why it was not restored. ``runsc``: the release that it runs with.
    ``left``: seconds that its job has; 0: no limit is known."""

    environment: Annotated[dict[str, str], Meta(max_length=1024)]
    python: str = ""
    workdir: str = ""
    copy: str = ""
    left_out: Count = 0
    found: Found | None = None
    lacks: str = ""
    runsc: str = ""
    left: Annotated[float, Meta(ge=0, le=1e9)] = 0


class Failed(Fact, frozen=True):
    """There is no sandbox; ``error`` is the class of the exception."""

    error: str = ""
    fact: str = ""
    hint: str = ""
    detail: str = ""


class Leaving(Fact, frozen=True):
    """The job is about to be ended by Slurm; the sandbox runs until then."""


class Memory(Fact, frozen=True):
    """The memory of the host that the sandbox uses, in bytes, and kills for lack of it."""

    used: Count
    kills: Count


EndedBy: TypeAlias = Literal["itself", "signal", "memory"]
"""The cause of a sandbox's end: itself or its host, a signal to the helper, its memory limit."""


class Ended(Fact, frozen=True):
    """The sandbox has ended."""

    by: EndedBy
    kills: Count = 0
    panic: str = ""
    stderr: str = ""


class Removed(Fact, frozen=True):
    """Nothing is left of the sandbox if ``whole``. ``kept``: but the copy of its outputs, which
    waits to be fetched."""

    whole: bool
    kept: bool


class Piece(Fact, frozen=True):
    """A part of the archive of an image, counted from 0. The last one has no data; ``error``: why
    the sandbox was not saved."""

    number: Count
    data: Annotated[bytes, Meta(max_length=CHUNK)] = b""
    error: str = ""


class Files(Fact, frozen=True):
    """The node has, or has not, the copy that was asked for."""

    found: bool


class Sent(Fact, frozen=True):
    """The archive is complete, but for so many outputs."""

    left_out: Count


AnyFact: TypeAlias = (
    Here | Ready | Failed | Leaving | Memory | Ended | Removed | Piece | Files | Sent
)
MAX_TEXT = 4096
"""Characters of a text that a person is shown."""


def write_fact(fact: Fact) -> bytes:
    """Return the line of a fact."""
    return MARK + write_json(fact).encode() + b"\n"


def read_fact(line: bytes) -> Fact | None:
    """Return the fact in a line; None for other words, and for a fact that is malformed.

    Where a start waits for it, a malformed fact is a failure that has no text.
    """
    if not line.startswith(MARK):
        return None
    try:
        content = parse_json(line[len(MARK) :], MAX_FACT)
    except JsonError:
        return None
    try:
        fact: Fact = read_value(content, _ANY)
        return fact
    except JsonError:
        awaited = ("here", "ready", "failed")
        return Failed() if isinstance(content, dict) and content.get("kind") in awaited else None


_ANY: Any = AnyFact


class Answer(Struct, frozen=True):
    """The answer of a short command, the last line that it prints: of ``check`` which ``runsc``
    the node has, of ``sweep`` the identities that were removed."""

    error: str
    release: str = ""
    node: str = ""
    runsc: str = ""
    removed: tuple[str, ...] = ()
    hint: str = ""


MAX_ANSWER = 64 * 1024


def show_text(text: str, size: int = MAX_TEXT, keep: str = "\n\t") -> str:
    """Return a text of a fact for a person: without what could steer a terminal."""
    return "".join(c for c in text[:size] if c.isprintable() or c in keep)


# -- files on the same stream ----------------------------------------------------------------------


def write_chunks(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes to send for ``archive``: chunks with their lengths, the last one empty.

    All but the last one with content are full. So a reader that gives each chunk a time bounds the
    pace of the sender, too.
    """
    held = bytearray()
    for data in archive:
        held += data
        while len(held) >= CHUNK:
            yield LENGTH.pack(CHUNK) + held[:CHUNK]
            del held[:CHUNK]
    if held:
        yield LENGTH.pack(len(held)) + held
    yield LENGTH.pack(0)


def read_chunks(read: Callable[[int], bytes], limit: int | None = None) -> Iterator[bytes]:
    """Yield the archive that ``write_chunks`` has sent, and read not one byte more.

    :param read: returns exactly as many bytes as it is asked for, or raises
    :raises ArchiveError: when a chunk is too long or too short, or all of them have more than
        ``limit`` bytes
    """
    total = 0
    is_last = False
    while size := LENGTH.unpack(read(LENGTH.size))[0]:
        if is_last:
            raise ArchiveError(f"a piece that is not the last has less than {CHUNK} bytes")
        is_last = size < CHUNK
        total += size
        if size > CHUNK:
            raise ArchiveError(f"a piece of the archive has {size} bytes, more than {CHUNK}")
        if limit is not None and total > limit:
            raise ArchiveError(f"the archive has more than {limit} bytes")
        yield read(size)
