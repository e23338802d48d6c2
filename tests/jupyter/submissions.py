"""An assignment for nbgrader and fifty submissions to it: right, wrong, broken and hostile.

A submission is what lies in one student's folder. Here nothing is run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTEBOOK = "mean.ipynb"
POINTS = 3.0
BIG = 60 * 1024 * 1024
MARK = "secret-of-the-student-"

SOLUTION = """def mean(values):
    ### BEGIN SOLUTION
    return sum(values) / len(values)
    ### END SOLUTION"""
TESTS = "assert mean([1, 2, 3]) == 2\nassert mean([5]) == 5"
RIGHT = "def mean(values):\n    return sum(values) / len(values)"
WRONG = "def mean(values):\n    return sum(values)"

FORK = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
FILL = """
def fill(path):
    try:
        with open(path, "wb") as file:
            while True: file.write(bytes(1 << 24))
    except OSError as error:
        print(path, error.strerror)
for path in ("/tmp/f", "/workspace/f", "/dev/shm/f", "/home/user/f"): fill(path)
"""
LOOK = """
import glob, os
found = [p for pattern in {patterns} for p in glob.glob(pattern)]
for path in found:
    try:
        print(path, open(path).read()[:100_000])
    except OSError as error:
        print(path, error)
print("found", found)
"""
WRITE = """
import os
for folder in {folders}:
    for name in ("gradebook.db", "evil.txt", "source/ps1/mean.ipynb", "grades.csv"):
        try:
            os.makedirs(folder, exist_ok=True)
            open(os.path.join(folder, name), "w").write("evil")
        except OSError as error:
            print(folder, name, error)
"""
NETWORK = """
import socket, urllib.request
for address in (("1.1.1.1", 53), ("127.0.0.1", 22), ("169.254.169.254", 80)):
    try:
        socket.create_connection(address, 1); print("REACHED", address)
    except OSError as error: print(error)
try: urllib.request.urlopen("https://pypi.org", timeout=1); print("REACHED pypi")
except OSError as error: print(error)
"""
SHADOW = "for path in ('/etc/shadow', '/root/.ssh/id_rsa'):\n    try: print(open(path).read())\n"
SHADOW += "    except OSError as error: print(error)"


@dataclass(frozen=True)
class Submission:
    """``points``: what its student gets; None if nbgrader does not grade it."""

    make: Callable[[Path, dict[str, Any]], None]
    points: float | None
    reason: str = ""
    """Words of nbgrader's log, for one that is not graded."""


def cell(grade_id: str, source: str, **flags: Any) -> dict[str, Any]:
    """Return a cell of nbgrader's."""
    known = {"grade": False, "solution": False, "locked": False, "task": False, **flags}
    marks = {"grade_id": grade_id, "schema_version": 3, "cell_type": "code", **known}
    return {
        "id": grade_id.replace("_", "-"),
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"nbgrader": marks},
        "outputs": [],
        "source": source,
    }


def make_source() -> dict[str, Any]:
    """Return the teacher's notebook."""
    return {
        "cells": [
            cell("mean", SOLUTION, solution=True),
            cell("test_mean", TESTS, grade=True, locked=True, points=POINTS),
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write(folder: Path, notebook: dict[str, Any]) -> None:
    (folder / NOTEBOOK).write_text(json.dumps(notebook))


def code(text: str) -> Callable[[Path, dict[str, Any]], None]:
    """A submission whose solution is ``text``."""

    def make(folder: Path, notebook: dict[str, Any]) -> None:
        notebook["cells"][0]["source"] = text
        write(folder, notebook)

    return make


def raw(text: str) -> Callable[[Path, dict[str, Any]], None]:
    """A submission whose file is ``text``."""
    return lambda folder, _: (folder / NOTEBOOK).write_text(text) and None


def forge(folder: Path, notebook: dict[str, Any]) -> None:
    """Outputs and scores that the file claims, and tests that test nothing."""
    solution, tests = notebook["cells"]
    solution["source"] = WRONG
    tests["source"] = "pass"
    tests["metadata"]["nbgrader"] |= {"points": 100, "locked": False}
    tests["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "3/3 points"}]
    notebook["metadata"]["nbgrader"] = {"score": 100, "max_score": 3}
    write(folder, notebook)


def forge_badly(folder: Path, notebook: dict[str, Any]) -> None:
    notebook["cells"][1]["metadata"]["nbgrader"]["score"] = 100
    write(folder, notebook)


def link(folder: Path, notebook: dict[str, Any]) -> None:
    """A link beside it to another student's notebook. nbgrader copies what it leads to."""
    (folder / "other").symlink_to("../../student-01/ps1/mean.ipynb")
    code(f"print('other', open('other').read())\n{RIGHT}")(folder, notebook)


def drop_tests(folder: Path, notebook: dict[str, Any]) -> None:
    notebook["cells"] = [{**notebook["cells"][0], "source": WRONG}]
    write(folder, notebook)


def big(folder: Path, notebook: dict[str, Any]) -> None:
    notebook["cells"][0]["source"] = RIGHT
    text = {"id": "big", "cell_type": "markdown", "metadata": {}, "source": "x" * BIG}
    notebook["cells"].insert(0, text)
    write(folder, notebook)


def bomb(folder: Path, notebook: dict[str, Any]) -> None:
    """An archive beside it that is a gigabyte when somebody unpacks it."""
    code(RIGHT)(folder, notebook)
    with (
        zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(16 * 1024 * 1024))


def other_kernel(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def make(folder: Path, notebook: dict[str, Any]) -> None:
        notebook["metadata"]["kernelspec"] = {"name": name, "display_name": name}
        code(f"import os\nprint('kernel', os.uname().release)\n{SHADOW}\n{RIGHT}")(folder, notebook)

    return make


def nothing(folder: Path, _: dict[str, Any]) -> None:
    (folder / "answer.txt").write_text("I have none")


def make_submissions(course: Path) -> dict[str, Submission]:
    """Return the fifty, by the name of their student. ``course`` is a path that some look for."""
    folders = ["/workspace/..", str(course), "/mnt/user-data/uploads", "/mnt/user-data/outputs"]
    others = [f"{folder}/submitted/*/*/*" for folder in folders] + ["/workspace/../*/*/*.ipynb"]
    look = LOOK.format(patterns=others)
    book = LOOK.format(patterns=[f"{course}/*.db", "/**/gradebook.db", f"{course}/source/*/*"])
    died = "DeadKernelError"
    memory = "of memory; its limit is"
    found = {
        "syntax": Submission(code("def mean(values) return 1"), 0),
        "raises": Submission(code("raise RuntimeError('no')"), 0),
        "loop": Submission(code("while True: pass"), 0),
        "deaf-loop": Submission(
            code("while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
            0,
        ),
        "sleep": Submission(code("import time; time.sleep(10000)"), 0),
        "input": Submission(code(f"try: input()\nexcept Exception: pass\n{RIGHT}"), POINTS),
        "recursion": Submission(code("def mean(values): return mean(values)"), 0),
        "deep-c-stack": Submission(
            code("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"), None, died
        ),
        "memory": Submission(
            code("held = []\nwhile True: held.append(bytearray(1 << 24))"), None, memory
        ),
        "forks": Submission(code(FORK), None, memory),
        "threads": Submission(
            code(
                "import threading, time\ntry:\n    while True:\n"
                "        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
                f"except RuntimeError: pass\n{RIGHT}"
            ),
            POINTS,
        ),
        "disk": Submission(code(FILL + RIGHT), None, memory),
        "log": Submission(code("import os\nwhile True: os.write(2, b'x' * 65536)"), 0),
        "output": Submission(code(f"for _ in range(20): print('x' * 1000000)\n{RIGHT}"), POINTS),
        "endless-output": Submission(code("while True: print('x' * 100000)"), None, memory),
        "kills-itself": Submission(code("import os; os.kill(os.getpid(), 9)"), None, died),
        "kills-pid-1": Submission(
            code(f"import os\ntry: os.kill(1, 9)\nexcept OSError as error: print(error)\n{RIGHT}"),
            POINTS,
        ),
        "kills-all": Submission(code("import os; os.kill(-1, 9)"), 0),
        "exits": Submission(code("import os; os._exit(0)"), None, died),
        "writes": Submission(code(WRITE.format(folders=folders) + RIGHT), POINTS),
        "reads-others": Submission(code(look + RIGHT), POINTS),
        "reads-gradebook": Submission(code(book + RIGHT), POINTS),
        "reads-host": Submission(code(f"{SHADOW}\n{RIGHT}"), POINTS),
        "network": Submission(code(NETWORK + RIGHT), POINTS),
        "forged": Submission(forge, 0),
        "forged-badly": Submission(forge_badly, None, "metadata may be corrupted"),
        "links": Submission(link, POINTS),
        "no-tests": Submission(drop_tests, 0),
        "big": Submission(big, POINTS),
        "none": Submission(nothing, None),
        "invalid": Submission(raw('{"cells": ['), None, "NotJSONError"),
        "empty": Submission(raw(""), None, "NotJSONError"),
        "not-a-notebook": Submission(raw("[1, 2, 3]"), None, "AttributeError"),
        "old-format": Submission(raw('{"nbformat": 99, "cells": []}'), None, "NBFormatError"),
        "bomb": Submission(bomb, POINTS),
        "other-kernel": Submission(other_kernel("python3"), POINTS),
        "no-such-kernel": Submission(other_kernel("../../evil"), POINTS),
        "stops-loop": Submission(
            code(f"import asyncio; asyncio.get_event_loop().stop()\n{RIGHT}"), None, died
        ),
        "unicode": Submission(code(f"print('\\ud800' * 3 + '\\x1b]0;x\\x07')\n{RIGHT}"), POINTS),
        "html": Submission(
            code(f"from IPython.display import HTML, display; display(HTML('<b>x'))\n{RIGHT}"),
            POINTS,
        ),
    }
    for number in range(50 - len(found)):
        text = f"# {MARK}{number}\n" + (WRONG if number % 3 == 0 else RIGHT)
        found[f"student-{number:02}"] = Submission(code(text), 0 if number % 3 == 0 else POINTS)
    return found
