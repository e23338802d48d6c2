"""Time is a limit like memory: functions that compute on a stranger's bytes, and how they grow.

``CASES`` lists those whose input may be large, with the text that is worst for them: twice the text
may take a bit more than twice the CPU time. ``BOUNDED`` lists those that get a few kilobytes at
most, or what else bounds them. Regular expressions: ``test_regular_expressions.py``; JupyterLab's
pages: ``labextension/test/time.test.js``. Not listed: ``guest``, which takes the time of its own
sandbox, and what reads this user's own files, such as configuration.
"""

from __future__ import annotations

import base64
import bz2
import gc
import gzip
import io
import json
import lzma
import os
import pkgutil
import random
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nbformat.sign import NotebookNotary

from gvisor_kernel.api.collector import Collector, read_error
from gvisor_kernel.api.execution import Result, strip_ansi
from gvisor_kernel.archive.tar import BLOCK, TarReader
from gvisor_kernel.artifacts.item import encode_value
from gvisor_kernel.artifacts.outputs import check_path
from gvisor_kernel.bridge.doors import opens_widget
from gvisor_kernel.bridge.transcripts import EntryFormatter
from gvisor_kernel.changes.autorun import find_kind
from gvisor_kernel.changes.compare import read_claims
from gvisor_kernel.changes.diff import MAX_TEXT, diff_texts
from gvisor_kernel.egress.destinations import read_destination
from gvisor_kernel.egress.forward import Masking
from gvisor_kernel.egress.heads import parse_head
from gvisor_kernel.egress.package_pages import (
    SIMPLE_JSON,
    merge_pages,
    read_packument,
    read_simple,
    write_html,
    write_json,
    write_packument,
)
from gvisor_kernel.egress.patterns import find_target_fault, is_allowed
from gvisor_kernel.egress.refusals import BadRequest
from gvisor_kernel.errors import ArchiveError, EgressRefused, OutputsError, SkillError
from gvisor_kernel.host.log_files import clean_lines
from gvisor_kernel.images.blobs import decompressed
from gvisor_kernel.images.formats import read_environment
from gvisor_kernel.link.carrier import MARK, SECRET_SIZE, Carrier
from gvisor_kernel.link.frames import FrameReader, FrameType, encode_frame
from gvisor_kernel.link.service_messages import decode_service, encode_service
from gvisor_kernel.mcp.file_tools import decode
from gvisor_kernel.mcp.results import (
    clean,
    escape,
    find_picture,
    join_results,
    make_plain,
)
from gvisor_kernel.runtimes.docker.stream import Demultiplexer
from gvisor_kernel.runtimes.kubernetes.attach import Channels
from gvisor_kernel.server.trust import find_signature
from gvisor_kernel.shown_text import printable, printable_name
from gvisor_kernel.skills import package
from gvisor_kernel.skills.archive import read_archive
from gvisor_kernel.skills.package import read_folder, read_front_matter
from gvisor_kernel.strict_json import JsonError, parse_json

pytestmark = pytest.mark.once

GROWTH = 3.0
"""Times the CPU that twice the text may take: 2 if it grows with the text, 4 with its square."""
SLACK = 0.001
"""Seconds that may come from elsewhere: what costs less is no matter."""
TRIES = 5
LARGE = 2**30


@dataclass(frozen=True)
class Case:
    """``make(n)``: the text, in proportion to ``n``. ``refuses``: what ``function`` may raise."""

    name: str
    function: Callable[[Any], object]
    make: Callable[[int], Any]
    n: int
    refuses: tuple[type[Exception], ...] = ()


def cost(case: Case, n: int) -> float:
    """Return the seconds of CPU of this thread."""
    data = case.make(n)
    gc.disable()
    try:
        begin = time.thread_time()
        with suppress(*case.refuses):
            case.function(data)
        return time.thread_time() - begin
    finally:
        gc.enable()


def check(case: Case) -> None:
    found = []
    for _ in range(TRIES):  # a busy machine only adds
        small, large = (min(cost(case, n) for _ in range(2)) for n in (case.n, 2 * case.n))
        if large <= GROWTH * small + SLACK:
            return
        found.append(f"{small:.3f} s and {large:.3f} s")
    pytest.fail(f"{case.name}: {case.n} and twice as much take {', '.join(found)}")


# -- functions with their arguments ----------------------------------------------------------------

NOTARY = NotebookNotary(secret=b"x", db_file=":memory:")


def collect(messages: list[dict[str, Any]]) -> None:
    collector = Collector("1", 1_000_000)
    for message in messages:
        collector.add(message)
    collector.read_output()
    collector.close()


def format_entries(entries: list[dict[str, Any]]) -> None:
    formatter = EntryFormatter()
    for entry in entries:
        list(formatter.format(entry))
    list(formatter.end())


def read_frames(pieces: list[bytes]) -> None:
    reader = FrameReader()
    for piece in pieces:
        reader.receive_data(piece)
        while reader.next_frame():
            pass


def mask(parts: list[bytes]) -> None:
    masking = Masking(b"a" * 200 + b"b")
    for part in parts:
        masking.feed(part)


def carry(pieces: list[bytes]) -> None:
    carrier = Carrier(bytes(SECRET_SIZE), is_host=True)
    for piece in pieces:
        carrier.receive(piece)


class Dripping:
    """A stream of which each read returns one byte."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int, /) -> bytes:
        self._at += 1
        return self._data[self._at - 1 : self._at]


def unpack(data: bytes) -> None:
    with decompressed(io.BytesIO(data)) as stream:
        while stream.read(65536):
            pass


def rewrite_page(data: bytes) -> None:
    page = merge_pages([read_simple(data, SIMPLE_JSON, "https://index/simple/")] * 2)
    for write in (write_json, write_html):
        list(write("p", page, lambda file: file.filename))


def rewrite_packument(data: bytes) -> None:
    content, files = read_packument(data, "https://index/")
    list(write_packument(content, files, lambda file: file.filename))


# -- texts -----------------------------------------------------------------------------------------


def notebook(cells: list[dict[str, Any]]) -> str:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


def tagged(n: int) -> str:
    """Return a notebook with many tags, none of which is a text."""
    tags = [{"x": number} for number in range(n)]
    return notebook([{"cell_type": "raw", "id": "a", "metadata": {"tags": tags}, "source": ""}])


def with_outputs(n: int) -> str:
    """Return a notebook with many outputs that are none."""
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "execution_count": None}
    return notebook([{**cell, "outputs": [{"output_type": "stream"}] * n}])


def of_one_hash(n: int) -> str:
    """Return a notebook with cells whose ids are numbers of one hash."""
    step = 2**61 - 1
    return notebook([{"id": step * number, "metadata": {}} for number in range(n)])


def printed(n: int) -> list[dict[str, Any]]:
    return [{"msg_type": "stream", "content": {"name": "stdout", "text": "é"}}] * n


def displayed(n: int) -> list[dict[str, Any]]:
    content = {"data": {"text/plain": "x"}, "transient": {"display_id": "d"}}
    return [{"msg_type": "update_display_data", "content": content}] * n


def head(n: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: x\r\nA:" + b" " * n + b"\x01\r\n\r\n"


def marks(n: int) -> bytes:
    """Return a path with a letter and many marks, in the order that Unicode does not have."""
    return b"/a" + b"%CC%95" * n + b"%CC%80" * n


def claims(n: int) -> dict[str, Any]:
    entries = [[f"{'a/' * 50}{number}", "written", "file", 1, 1, ""] for number in range(n)]
    return {"entries": entries, "total": n, "more": False}


def one_long_name(n: int) -> bytes:
    """Return an archive that begins with an extended header of a long name."""
    header = bytearray(BLOCK)
    header[124:135] = b"%011o" % n
    header[156:157] = b"L"
    header[148:156] = b"%06o\0 " % (256 + sum(header))
    return bytes(header) + b"x" * n + bytes(-n % BLOCK)


def zip_of(n: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(n):
            archive.writestr(f"scripts/{number}/x", b"")
    return packed.getvalue()


def files(n: int) -> bytes:
    url = "../" * 20 + "x.whl"
    return json.dumps(
        {"files": [{"filename": f"x-{i}.whl", "url": url} for i in range(n)]}
    ).encode()


def packument(n: int) -> bytes:
    dist = {"dist": {"tarball": "https://index/x.tgz", "integrity": "sha512-" * 50}}
    return json.dumps({"versions": {f"1.0.{number}": dist for number in range(n)}}).encode()


def numbers(size: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(size // 6))


UNLIKE_TEXTS: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "without a common line": lambda size: (numbers(size), numbers(size).replace(b"\n", b"x\n")),
    "line ends": lambda size: (b"\n" * size, b"\n" * (size // 2) + b"x" + b"\n" * (size // 2)),
    "few kinds of lines": lambda size: (
        bytes(random.Random(1).choices(b"ab\n", k=size)),  # noqa: S311
        bytes(random.Random(2).choices(b"ab\n", k=size)),  # noqa: S311
    ),
    "lines that come back": lambda size: (
        b"".join(b"%d\n" % (n % 110) for n in range(size // 276)),
        b"".join(b"%d\n" % (7 * n % 113) for n in range(size // 276)),
    ),
    "one line": lambda size: (b"\x1b" * size, b"\x9b" * size),
}


CASES = [
    # Parsers.
    *(
        Case(f"JSON: {name}", function, make, n, (JsonError,))
        for function in (
            lambda text: parse_json(text, LARGE),
            lambda text: parse_json(text, LARGE, 1000),
        )
        for name, make, n in (
            ("a string that never ends", lambda n: '"' + '\\",' * n, 1_000_000),
            ("brackets in such a string", lambda n: '"' + '\\"[' * n, 1_000_000),
            ("backslashes", lambda n: '"' + "\\" * n + "[" * 2000, 1_000_000),
            ("quotes", lambda n: '"' * n + "[" * 2000, 300_000),
            ("empty lists", lambda n: "[" + "[]," * n, 100_000),
            ("long numbers", lambda n: "[" + f"{'1' * 4000}," * n, 100),
            ("a long number", lambda n: "1." + "1" * n, 1_000_000),
            ("keys", lambda n: json.dumps(dict.fromkeys(map(str, range(n)))), 20_000),
        )
    ),
    *(
        Case(
            f"the signature of a notebook: {make.__name__}",
            lambda text: find_signature(NOTARY, text),
            make,
            4000,
        )
        for make in (tagged, with_outputs, of_one_hash)
    ),
    Case("service message", decode_service, lambda n: encode_service(1, {"a": ["é"] * n}), 20_000),
    Case("claims", read_claims, claims, 2000),
    Case("names of files that may run", find_kind, lambda n: "/".join(["jupyter" * 30] * n), 160),
    *(
        Case(f"difference: {name}", lambda texts: diff_texts("a", *texts), make, MAX_TEXT // 4)
        for name, make in UNLIKE_TEXTS.items()
    ),
    Case("page of an index", rewrite_page, files, 200),
    Case("document of npm", rewrite_packument, packument, 500),
    Case("head of a request", parse_head, head, 30_000, (BadRequest,)),
    Case("path with many marks", find_target_fault, marks, 650),
    Case(
        "path of many parts",
        lambda path: is_allowed(path, ["/**/a/**/b"] * 8),
        lambda n: b"/a" * n,
        4000,
    ),
    Case("address", read_destination, lambda n: "https://" + ":1" * n, 4000, (EgressRefused,)),
    Case("a secret that nearly comes", mask, lambda n: [b"a"] * n, 10_000),
    Case(
        "variables of an image",
        read_environment,
        lambda n: {"Env": [f"A{i}=é" for i in range(n)]},
        2500,
    ),
    Case(
        "name in an archive",
        lambda data: list(TarReader(Dripping(data))),
        one_long_name,
        100_000,
        (ArchiveError,),
    ),
    *(
        Case(f"many {name} members", unpack, lambda n, pack=pack: pack(b"x") * n, n)
        for name, pack, n in (
            ("gzip", gzip.compress, 1000),
            ("bzip2", bz2.compress, 1000),
            ("xz", lzma.compress, 300),
        )
    ),
    Case("ZIP archive", read_archive, zip_of, 500, (SkillError,)),
    Case("front matter", read_front_matter, lambda n: "---\na:\n" + " b\n" * n + "---", 20_000),
    Case("value of a page", encode_value, lambda n: [[["é"]]] * n, 20_000),
    Case("path of an output", check_path, lambda n: "a/" * n, 100_000, (OutputsError,)),
    # Streams.
    Case("many frames", read_frames, lambda n: [encode_frame(FrameType.LOG, b"x") * n], 10_000),
    Case(
        "a frame in pieces",
        read_frames,
        lambda n: [bytes([b]) for b in encode_frame(FrameType.LOG, b"x" * 30_000) * n],
        1,
    ),
    Case("marks of a carrier", carry, lambda n: [MARK * 3000] * n, 100),
    Case(
        "frames of a WebSocket",
        lambda data: list(Channels().receive(data)),
        lambda n: b"\x82\x02\x01x" * n,
        10_000,
    ),
    Case(
        "frames of Docker",
        lambda data: list(Demultiplexer().receive(data)),
        lambda n: b"\1\0\0\0\0\0\0\1x" * n,
        10_000,
    ),
    # What code has displayed.
    Case("many prints", collect, printed, 2000),
    Case("many updates of a display", collect, displayed, 2000),
    Case(
        "a long print",
        collect,
        lambda n: [{"msg_type": "stream", "content": {"text": "é" * n}}],
        300_000,
    ),
    Case(
        "a long traceback",
        read_error,
        lambda n: {"ename": "", "evalue": "1" * n, "traceback": [""] * n},
        100_000,
    ),
    *(
        Case(
            f"sequences of a terminal: {unit!r}", make_plain, lambda n, unit=unit: unit * n, 50_000
        )
        for unit in ("\x1b[", "\x1b]", "\x1b ", "\x9b0", "\x1b", "\x9d")
    ),
    *(
        Case(
            f"a long sequence of a terminal: {unit!r}",
            strip_ansi,
            lambda n, unit=unit: unit[0] + unit[1:] * n,
            500_000,
        )
        for unit in ("\x9b0", "\x9b ", "\x9d0", "\x1b ")
    ),
    Case("a name", escape, lambda n: "\u202e\\" * n, 10_000),
    Case("text for a terminal", printable, lambda n: "\u202e\U000e0041" * n, 10_000),
    Case("name for a terminal", printable_name, lambda n: "\n\t" * n, 20_000),
    Case("lines of a log", clean_lines, lambda n: "\x1b\u2028" * n, 10_000),
    Case(
        "a picture",
        lambda data: find_picture({"image/png": data}),
        lambda n: base64.b64encode(b"\x89PNG\r\n\x1a\n").decode() + " A" * n,
        200_000,
    ),
    Case(
        "many displays",
        lambda results: join_results(results),
        lambda n: (Result({"text/html": "<" * 3000}),) * n,
        2000,
    ),
    Case(
        "many forms of a display",
        join_results,
        lambda n: (Result({f"{i}": [i] for i in range(n)}),),
        20_000,
    ),
    Case("a structure", clean, lambda n: [["\udc00"]] * n, 10_000),
    Case(
        "a comm that opens", opens_widget, lambda n: b'"target_module' * n + b"\\u00" * n, 200_000
    ),
    Case("a file", decode, lambda n: b"x" * n + b"\xff", 5_000_000),
    Case(
        "a transcript",
        format_entries,
        lambda n: [{"type": "stream", "content": {"text": "x"}}] * n,
        5000,
    ),
]


BOUNDED = {
    # Of a request or an answer, and its head.
    "bridge.doors.guard": "4 MiB and 50,000 values, by parse_json",
    "bridge.wire.parse_object": "64 KiB of a header; other parts are not parsed",
    "bridge.wire.split_message": "4096 parts",
    "bridge.records.Transcript.record": "512 KiB of a request, 16 KiB of an output, by parse_json",
    "bridge.records.KernelLog.write_inside": "32 KiB of a frame, and an allowance in a second",
    "egress.upstream.HeadWatch.feed": "64 KiB and 400 lines",
    "egress.audit.parse_entry": "64 KiB, by parse_json",
    "egress.http.serve": "frames of 32 KiB, by h11, which goes on where it has ended",
    "server.fetch_handlers.read_page_request": "the head of a request, by parse_json",
    "server.recorded.clean": "4000 characters of a line",
    "server.recorded.read_last_log": "256 KiB of each file",
    "mcp.resources.read_log": "256 KiB of each file",
    "mcp.results.describe_result": "400 characters for the expression, 2000 of HTML",
    "artifacts.item.check_key": "199 characters",
    "artifacts.outputs.list_outputs": "50,000 names, and 2 s",
    # What programs and images say.
    "runtimes.hints.find_hint": "4 KiB of stderr",
    "runtimes.stdio.StderrLog": "4 KiB of a line, and an allowance in a second",
    "runtimes.nodes.reports.Reports": "1 MiB of a line of this user's helper",
    "runtimes.kubernetes.starting.read_facts": "256 KiB, by parse_json",
    "runtimes.runsc.image_probe._parse": "4 MiB, by parse_json",
    "kernel.environment_builder._run": "200 lines of 16 KiB",
    "kernel.learned_modules.read_report": "64 names, by parse_json",
    "snapshots.learned.add_report": "64 names",
    "environments.collection.find_packages": "names of 100 characters",
    "images.formats.read_manifest": "300 documents of 4 MiB, by parse_json",
    "archive.layers.apply_archive": "each name once, see tests/images/test_bounds.py",
    "skills.archive.check_names": "2000 names of 400 bytes",
    # Elsewhere.
    "bridge.service.Questions": "its own tests",
    "egress.page_reader.work": "a process with a limit of the CPU: of HTML, Python's"
    " parser looks for the end of a tag from each beginning (tests/egress/test_page_process.py)",
}


def test_what_is_bounded_is_there() -> None:
    for place in BOUNDED:
        pkgutil.resolve_name(f"gvisor_kernel.{place}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twice_the_text_takes_twice_the_time(case: Case) -> None:
    check(case)


def test_a_folder_with_many_hidden_files_is_read_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_ENTRIES", 10)  # refused then, when all names were looked at

    def make(n: int) -> Path:
        folder = tmp_path / str(n)
        if not folder.exists():
            folder.mkdir()
            for number in range(n):
                os.mknod(f"{folder}/.{number}")
                os.mknod(f"{folder}/{number}")
        return folder

    check(Case("folder of a skill", read_folder, make, 2000, (SkillError,)))
