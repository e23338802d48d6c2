"""The ``open`` of cells gives what ``io.open`` gives, with fewer system calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..world import PROJECT

LOOK = """
import inspect, io, json, os, pathlib, pickle, sys, threading, traceback, warnings
sys.path.insert(0, sys.argv[1])
import IPython.core.interactiveshell as shell
from gvisor_kernel.guest import cell_files

cells, plain = shell._modified_open, io.open
small, large, empty, none = (os.path.join(sys.argv[2], name) for name in sys.argv[3:])
pipe = os.path.join(sys.argv[2], "pipe")
os.mkfifo(pipe)
CALLS = {
    "read": lambda f: [f.read(), f.read(), f.tell()],
    "some": lambda f: [f.read(3), f.tell(), f.read(), f.readline()],
    "lines": lambda f: [*f],
    "seek": lambda f: [f.readline(), f.seek(0), f.read(), f.seek(2), f.read(), f.seekable()],
    "tell": lambda f: [f.tell(), f.seek(4), f.read(), f.seek(0), f.read(2)],
    "shown": lambda f: [repr(f), f.name, f.isatty(), f.fileno() > 2, f.readable(), f.writable()],
    "with": lambda f: [f.__enter__() is f, f.close(), f.closed, f.read()],
    "write": lambda f: [f.write("x" if isinstance(f, io.TextIOBase) else b"x")],
    "pickle": lambda f: pickle.dumps(f),
    "state": lambda f: [f.mode, getattr(f, "line_buffering", 0), getattr(f, "encoding", 0)],
    "raw": lambda f: [repr(getattr(f, "buffer", f).raw), vars(getattr(f, "buffer", f).raw)],
    "into": lambda f: [f.readinto(bytearray(4)), f.read1(2), f.peek(1)[:1], f.detach().tell()],
    "next": lambda f: [next(f), f.tell()],
    "whole": lambda f: [f.read(), f.mode, getattr(f, "line_buffering", 0), f.seekable()],
    "kept": lambda f: [grow(f)],
}
OPTIONS = [(), ("r",), ("rb",), ("rt",), ("w+",), ("x",), ("r", 1), ("r", 512), ("rb", 0), (3,)]
OPTIONS += [("rb", -1, "utf-8"), ("r", -1, "latin-1")]
NAMED = [{"encoding": "utf-16"}, {"encoding": "none"}, {"errors": "replace"}, {"newline": ""}]
NAMED += [{"mode": "rb", "errors": "x"}, {"mode": "rb"}, {"mode": "r", "closefd": False}]
NAMED += [{"newline": "x"}, {"encoding": 5}, {"x": 1}, {"buffering": 1}, {"mode": None}]


def grow(f):
    first = f.read()
    with plain(grown, "a") as more:
        more.write("more")
    return first, f.read()


def ask(path, call, *words, **named):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return repr(CALLS[call](opener(path, *words, **named)))
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        frames = [(frame.name, frame.lineno) for frame in frames if frame.name != "ask"]
        frames = [frame for frame in frames if frame[0] != "<lambda>"]
        # Of a descriptor or what is no path, IPython's function has a second frame.
        return repr(error), frames if isinstance(path, (str, pathlib.Path)) else frames[-1:]


def look():
    global grown
    found = []
    for path in (small, large, empty, none, sys.argv[2], "nul\\0", os.fsencode(small), "/dev/null"):
        plain(small, "w").write("one\\r\\ntwo\\u00e4\\nthree")
        found += [ask(path, call) for call in CALLS if call != "kept"]
        found += [ask(path, call, "rb") for call in CALLS if call != "kept"]
    found += [ask("/proc/self/cmdline", call) for call in ("read", "lines", "seek")]
    for words in OPTIONS:
        grown = os.path.join(sys.argv[2], "grown")
        plain(grown, "w").write("grown")
        found += [ask(grown, call, *words) for call in ("read", "state", "raw", "kept")]
    found += [ask(small, call, **named) for named in NAMED for call in ("state", "lines")]
    found += [ask(pathlib.Path(path), "raw") for path in (small, none)]
    found += [ask(0, "read"), ask([], "read"), ask(None, "read"), ask("~", "read", "r", mode="r")]
    for call in ("read", "lines", "whole"):
        writer = threading.Thread(target=lambda: pathlib.Path(pipe).write_text("from a pipe"))
        writer.start()
        found.append(ask(pipe, call))
        writer.join()
    return found


opener = cells
before = look()
cell_files.prepare()
raw = cells(small).buffer.raw
same = str(inspect.signature(cells)), repr(type(raw)), type(raw) is not io.FileIO
after = look()
os.environ["GVISOR_KERNEL_PLAIN"] = "all"
switched = type(cells(small).buffer.raw) is io.FileIO
wrong = [[a, b] for a, b in zip(before, after) if a != b]
print(json.dumps([same, switched, len(before), wrong]))
"""


def test_files_tracebacks_and_errors_are_as_before(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("line\n" * 300_000)
    (tmp_path / "empty").touch()
    names = ("small", "large", "empty", "none")
    command = [sys.executable, "-I", "-c", LOOK, str(PROJECT), str(tmp_path), *names]
    answer = subprocess.check_output(command, text=True, env=os.environ, timeout=60)
    (signature, kind, is_quick), switched, count, wrong = json.loads(answer)
    assert "encoding=None" in signature
    assert kind == "<class '_io.FileIO'>"
    assert is_quick
    assert switched
    assert count > 200
    assert not wrong
