"""The skills that come with the package, used in a real sandbox: each example as it stands there.

One kernel for all. What a bare system has is tried with ``-I -S``: no package but Python's own.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.cli.main import main
from gvisor_kernel.skills import SkillStore, read_folder, shipped_skills
from gvisor_kernel.skills.archive import File
from gvisor_kernel.skills.package import make_skill

from ..jupyter.helpers import SANDBOXED, execute, running_kernel
from ..world import PROJECT

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the kernel under test has no sandbox")

SKILLS = PROJECT / "skills"
sheets = runpy.run_path(str(SKILLS / "public/xlsx/scripts/sheets.py"))
ROWS = [["name", "amount"], ["a", 1.5], ["=1+1", 2]]
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {"cell_type": "markdown", "source": ["# Analysis\n", "What was **found**.\n\n|a|\n|-|"]},
        {
            "cell_type": "code",
            "source": "show()",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m\n"] * 300},
                {"output_type": "display_data", "data": {"text/plain": "no picture"}},
            ],
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("skills")
    sheets["write_workbook"](str(path / "data.xlsx"), {"Sheet1": ROWS, "Other": []})
    shutil.copy(Path(__file__).parent / "data/by-openpyxl.xlsx", path)
    (path / "data.csv").write_text("month,sum,other\n1,10.5,007\n2,12,x\n")
    (path / "query.sql").write_text("SELECT 1\n")
    (path / "analysis.ipynb").write_text(json.dumps(NOTEBOOK))
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[BlockingKernelClient]:
    document = b"---\nname: of-mine\ndescription: For tests.\n---\n"
    SkillStore.of_user().install(make_skill({"SKILL.md": File(document)}))
    with running_kernel(start={"cwd": str(folder)}) as (_, client):
        yield client
    SkillStore.of_user().remove("of-mine")


def run(client: BlockingKernelClient, code: str) -> str:
    """What ``code`` printed in the sandbox; that it failed is the failure's text."""
    answer = execute(client, code)
    assert answer.status == "ok", (answer.reply["content"], answer.text)
    return answer.text


def bare(client: BlockingKernelClient, *argv: str) -> str:
    """A script in the sandbox, on a Python without any package."""
    return run(
        client,
        f"""
import subprocess, sys
done = subprocess.run([sys.executable, "-I", "-S", *{list(argv)!r}], capture_output=True, text=True)
print(done.stdout, done.stderr)
assert done.returncode == 0, done.stderr
""",
    )


def examples(name: str) -> list[str]:
    """The Python in a SKILL.md."""
    text = (SKILLS / "public" / name / "SKILL.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def pdf_text(path: Path) -> str:
    """All that is written on the pages of a PDF of ours; checks its table on the way."""
    data = path.read_bytes()
    assert data.startswith(b"%PDF-1.4\n")
    table = int(data.split(b"startxref\n")[1].split()[0])
    assert data[table:].startswith(b"xref\n")
    for number, offset in enumerate(re.findall(rb"^(\d{10}) 00000 n", data[table:], re.M), 1):
        assert data[int(offset) :].startswith(b"%d 0 obj" % number)
    streams = re.findall(rb"<< (?:/Filter /FlateDecode )?/Length \d+ >>\nstream\n(.*?)\nendstream",
                         data, re.DOTALL)  # fmt: skip
    return "".join(zlib.decompress(stream).decode("latin-1") for stream in streams)


def test_the_next_kernel_sees_ours_and_those_installed(client: BlockingKernelClient) -> None:
    found = json.loads(run(client, """
import json, os
found = {}
for place in ("public", "examples"):
    found[place] = sorted(os.listdir("/mnt/skills/" + place))
    try:
        open(f"/mnt/skills/{place}/planted", "w")
    except OSError as error:
        found[place + " refuses"] = error.strerror
print(json.dumps(found))
"""))  # fmt: skip
    ours = [name for name, (place, _) in shipped_skills().items() if place == "public"]
    assert found["public"] == sorted([*ours, "of-mine"])
    assert found["examples"] == ["writing-a-skill"]
    assert found["public refuses"] == found["examples refuses"] == "Read-only file system"


def test_xlsx(client: BlockingKernelClient, folder: Path) -> None:
    detect, plain, by_openpyxl = examples("xlsx")
    run(client, detect)
    run(client, plain)
    if find_spec("openpyxl"):
        run(client, by_openpyxl)
    book = sheets["read_workbook"](str(folder / "outputs/result.xlsx"))
    assert book["Results"][:3] == [["name", "amount"], ["a", 1.5], ["b", 2]]
    assert list(book) == ["Results", "Notes"]
    script = "/mnt/skills/public/xlsx/scripts/sheets.py"
    outputs = "/mnt/user-data/outputs"
    bare(client, script, "from-csv", "data.csv", f"{outputs}/from.xlsx")
    assert sheets["read_sheet"](str(folder / "outputs/from.xlsx")) == [
        ["month", "sum", "other"], [1, 10.5, "007"], [2, 12, "x"],
    ]  # fmt: skip
    bare(client, script, "to-csv", "data.xlsx", f"{outputs}/to.csv")
    assert (folder / "outputs/to.csv").read_text().splitlines() == [
        "name,amount",
        "a,1.5",
        "=1+1,2",
    ]
    shown = bare(client, script, "show", "by-openpyxl.xlsx")
    assert "# Data: 7 rows, 5 columns" in shown
    assert "\u00e9\u6f22\t1.5\t2026-01-02 03:04:00\tTrue" in shown
    assert "7\t1900-01-05 00:00:00\tFalse" in shown


def test_pdf_report(client: BlockingKernelClient, folder: Path) -> None:
    load, results, notebook = examples("pdf-report")
    run(client, load)
    pixel = "\\x89PNG\\r\\n\\x1a\\n"
    run(
        client,
        f"""
import os, struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(bytes([n % 5]) + bytes(range(40)) for n in range(10))
png = b"{pixel}" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 6, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
open("/mnt/user-data/outputs/sales.png", "wb").write(png)
class Figure:
    def savefig(self, file, **options):
        file.write(png)
fig = Figure()
""",
    )
    run(client, results)
    text = pdf_text(folder / "outputs/report.pdf")
    for words in (
        "Sales in 2026",
        "Sales grew by 12 %.",
        "May was best",
        "1250.5",
        "SELECT 1",
        "Do Q",
    ):
        assert words in text
    run(client, notebook)
    text = pdf_text(folder / "outputs/analysis.pdf")
    assert "Analysis" in text
    assert "What was found." in text
    assert "show\\(\\)" not in text
    assert "... 100 lines more" in text
    assert "\x1b" not in text
    script = "/mnt/skills/public/pdf-report/scripts/report.py"
    bare(client, script, "analysis.ipynb", "/mnt/user-data/outputs/bare.pdf", "--code")
    assert "show\\(\\)" in pdf_text(folder / "outputs/bare.pdf")


def test_plotting(client: BlockingKernelClient, folder: Path) -> None:
    detect, by_matplotlib, by_script = examples("plotting")
    run(client, detect)
    if find_spec("matplotlib"):
        run(client, by_matplotlib)
        assert (folder / "outputs/sales.png").read_bytes().startswith(b"\x89PNG")
    shown = execute(client, by_script).of_type("execute_result")
    drawn = (folder / "outputs/sales.svg").read_text()
    assert shown[0]["content"]["data"]["image/svg+xml"].strip() == drawn.strip()
    for kind in ("line", "points", "bars"):
        output = f"/mnt/user-data/outputs/{kind}.svg"
        bare(client, "/mnt/skills/public/plotting/scripts/svgplot.py", "data.csv", output, kind)
        root = ElementTree.parse(folder / f"outputs/{kind}.svg").getroot()  # noqa: S314 - ours
        mark = {"line": "polyline", "points": "circle", "bars": "rect"}[kind]
        assert root.findall(f"{{http://www.w3.org/2000/svg}}{mark}")


def test_a_skill_written_inside_is_packed_and_installed_on_the_host(
    client: BlockingKernelClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "/mnt/skills/examples/writing-a-skill/scripts/new_skill.py"
    bare(client, script, "word-count")
    monkeypatch.chdir(folder)
    assert read_folder(folder / "outputs/word-count").name == "word-count"
    for command in (["pack", "outputs/word-count"], ["check", "word-count.skill"]):
        assert main(["skills", *command]) == 0
    assert main(["skills", "install", "word-count.skill"]) == 0
    # A running kernel sees the folder as it is now.
    code = "sys.path.insert(0, '/mnt/skills/public/word-count/scripts')\n"
    assert run(client, f"{code}from run_word_count import run\nprint(run('a'))") == "A\n"
    assert main(["skills", "remove", "word-count"]) == 0


def test_the_scripts_are_for_any_python_from_3_9() -> None:
    import ast

    for path in SKILLS.rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))
        modules: set[Any] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
        assert modules <= sys.stdlib_module_names | {"pdf"}, path
