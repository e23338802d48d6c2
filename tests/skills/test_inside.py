"""The examples of the shipped skills, run in a real sandbox exactly as they are written.

All tests use one kernel. Independent programs then open the outputs: LibreOffice and Poppler, if
they are installed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from gvisor_kernel.cli.main import main
from gvisor_kernel.skills import SkillStore, read_folder, shipped_skills
from gvisor_kernel.skills.archive import File
from gvisor_kernel.skills.package import make_skill

from ..jupyter.helpers import SANDBOXED, execute, running_kernel
from ..patience import scale_seconds
from ..world import PROJECT
from .inside import SKILLS, follow, run, shell

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the kernel under test has no sandbox")

SCRIPTS = sorted(SKILLS.glob("*/*/scripts/*.py"))
OFFICE = shutil.which("soffice")
MODULES = {
    "docx": "python-docx",
    "pptx": "python-pptx",
    "openpyxl": "openpyxl",
    "matplotlib": "matplotlib",
    "pypdf": "pypdf",
    "reportlab": "reportlab",
    "PIL": "pillow",
}
"""Modules outside the standard library that the scripts import, and their packages."""
SERVER = """
import json, sys
TOOL = {"name": "echo", "description": "Says it again.", "inputSchema": {
    "properties": {"text": {"type": "string"}}, "required": ["text"]}}
for line in sys.stdin:
    request = json.loads(line)
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "serverInfo": {"name": "stand-in"}},
        "tools/list": {"tools": [TOOL]},
        "tools/call": {"content": [{"type": "text", "text": str(request.get("params"))}]},
    }
    if "id" in request:
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": results[request["method"]]}
        print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("skills")
    (path / "data.csv").write_text("month,sum,other\n1,10.5,007\n2,12,x\n")
    (path / "stand_in.py").write_text(SERVER)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[BlockingKernelClient]:
    document = b"---\nname: of-mine\ndescription: For tests.\n---\n"
    SkillStore.of_user().install(make_skill({"SKILL.md": File(document)}))
    with running_kernel(start={"cwd": str(folder)}) as (_, client):
        yield client
    SkillStore.of_user().remove("of-mine")


def pdf_text(path: Path) -> str:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed: apt-get install poppler-utils")
    command = ["pdftotext", "-layout", path, "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the PDF files that LibreOffice makes from the outputs."""
    if OFFICE is None:
        pytest.skip("no LibreOffice: apt-get install libreoffice-{writer,calc,impress}")
    return tmp_path_factory.mktemp("office")


def convert_to_text(office: Path, *paths: Path) -> list[str]:
    """Return the texts of documents as LibreOffice shows them. One run, as it starts slowly."""
    command = [str(OFFICE), f"-env:UserInstallation=file://{office}/profile", "--headless"]
    command += ["--convert-to", "pdf", "--outdir", str(office), *map(str, paths)]
    # Not the user's directories: LibreOffice would leave files in HOME and XDG_RUNTIME_DIR.
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(office))
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **places}
    subprocess.run(
        command, check=True, capture_output=True, timeout=scale_seconds(60), env=environment
    )
    return [pdf_text(office / path.with_suffix(".pdf").name) for path in paths]


def test_kernel_sees_shipped_and_installed_skills_read_only(client: BlockingKernelClient) -> None:
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
    ours = {place: [] for place in ("public", "examples")}
    for name, (place, _) in shipped_skills().items():
        ours[place].append(name)
    assert found["public"] == sorted([*ours["public"], "of-mine"])
    assert found["examples"] == sorted(ours["examples"])
    assert found["public refuses"] == found["examples refuses"] == "Read-only file system"


@pytest.mark.slow
def test_docx_examples_work(client: BlockingKernelClient) -> None:
    *_, read = follow(client, "public/docx")
    assert "# Sales in 2026\n\n## Result\n\nSales grew by 12 %, most of it in May." in read
    assert "| May | 1250.5 |" in read
    code = """
from read_docx import read_markdown, read_tables
print(read_markdown("/mnt/user-data/outputs/letter.docx"))
odd = Writer().text("2*3*4 *x*").table([["a", "b"], [float("nan")]]).save("/tmp/odd.docx")
print(read_markdown(odd), read_tables(odd))
"""
    assert (
        run(client, code)
        == """\
Dear Ada,

your order of 5 May is on its way.
2*3*4 x

| a | b |
|---|---|
|  |  | [[['a', 'b'], ['', '']]]
"""
    )


@pytest.mark.slow  # it goes on where the examples end
def test_filled_values_keep_surrounding_formats(client: BlockingKernelClient) -> None:
    """Word may split a name into runs, as here, and names may be in a table or a footer."""
    assert run(client, """
import docx
from fill_docx import fill
document = docx.Document()
for part in ("Dear {{cust", "omer", "}}, {{what}}{{unknown}}"):
    document.add_paragraph().add_run("-") if not document.paragraphs else None
    document.paragraphs[0].add_run(part).bold = part == "omer"
document.add_table(1, 1).cell(0, 0).text = "{{ what }}"
document.sections[0].footer.paragraphs[0].text = "for {{customer}}"
document.save("/tmp/runs.docx")
print(fill("/tmp/runs.docx", "/tmp/filled.docx", {"customer": "Ada", "what": "{{x}}"}))
filled = docx.Document("/tmp/filled.docx")
print([run.text for run in filled.paragraphs[0].runs], filled.tables[0].cell(0, 0).text)
print(filled.sections[0].footer.paragraphs[0].text)
""") == """\
['unknown']
['-', 'Dear Ada', '', ', {{x}}{{unknown}}'] {{x}}
for Ada
"""  # fmt: skip


@pytest.mark.slow
def test_pdf_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    _, taken, fields, info = follow(client, "public/pdf")
    assert "Sales grew by 12 %." in taken
    assert "['customer', 'paid']" in fields
    assert "pages: 1" in info
    code = "print(list_fields('/mnt/user-data/outputs/filled.pdf'))"
    assert "'value': 'Ada'" in run(client, code)
    assert "'value': '/Yes'" in run(client, code)
    code = """
for values in ({"customers": "x"}, {"paid": "Maybe"}, {"customer": True}):
    try:
        fill("/mnt/user-data/outputs/form.pdf", "/tmp/none.pdf", values)
    except ValueError as error:
        print(error)
Report("\u0394 \u0416").text("\u0394 < 1 & `x < 2`\\n\\n1. one\\n2. two").table(
    [["a", "b"], *[[f"row {n}", n] for n in range(90)]]).save("/mnt/user-data/outputs/long.pdf")
"""
    assert len(run(client, code).splitlines()) == 3
    text = pdf_text(folder / "outputs/report.pdf")
    for words in ("Sales in 2026", "made from data.csv", "May was best", "1250.5", "SELECT month"):
        assert words in text
    assert "Ada" in pdf_text(folder / "outputs/filled.pdf")
    text = pdf_text(folder / "outputs/long.pdf")
    assert "\u0394<1&x<2\n1.one\n2.two" in re.sub(r" |\n(?=\n)", "", text)
    assert text.count("\f") >= 2
    assert len(re.findall(r"^[ \f]*a +b$", text, re.MULTILINE)) == text.count("\f")


@pytest.mark.slow
def test_pptx_examples_work(client: BlockingKernelClient) -> None:
    *_, read = follow(client, "public/pptx")
    assert "## 2. Sales grew by 12 %\n\n- May was best\n  - thanks to the new shop" in read
    assert "Notes: Say why August was so bad." in read
    assert "- Chart, shop: Q1 1.0, Q2 3.0" in read
    code = """
try:
    deck.table("Too many", [[n] for n in range(30)])
except ValueError as error:
    print(error)
"""
    assert "30 rows: a slide shows 12 at most" in run(client, code)


@pytest.mark.slow
def test_xlsx_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    follow(client, "public/xlsx")
    assert "[{'month': 1, 'sum': 10.5, 'other': '007'}" in run(client, "print(records)")
    code = """
from read_xlsx import show
print(show("/mnt/user-data/outputs/changed.xlsx"), open("/tmp/data.csv").read())
"""
    shown = run(client, code)
    assert "# Sales: 4 rows, 4 columns\nmonth\tprice\tpieces\tsum\nMay\t2.75\t500\t=B2*C2" in shown
    assert "month,sum,other" in shown
    code = """
Book().sheet("Odd", [{"a": "=1+1", "b": float("nan")}, {"c": True}]).save("/tmp/odd.xlsx")
from read_xlsx import check, read_rows
print(read_rows("/tmp/odd.xlsx"), check("/mnt/user-data/outputs/sales.xlsx"))
"""
    assert run(client, code) == (
        "[['a', 'b', 'c'], ['=1+1', None, None], [None, None, True]] "
        "['Sales has 4 formulas without a computed value.']\n"
    )


@pytest.mark.slow
def test_plotting_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    follow(client, "public/plotting")
    for name in ("sales-by-month.png", "data.png"):
        assert (folder / "outputs" / name).read_bytes().startswith(b"\x89PNG")
    root = ElementTree.parse(folder / "outputs/sales-by-size.svg").getroot()  # noqa: S314 - ours
    texts = "".join(root.itertext())
    assert "Most sales are in May" in texts
    assert "1,250.5" in texts


def test_frontend_design_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    assert "Nothing was found." in follow(client, "public/frontend-design")[-1]
    page = (folder / "outputs/whole.html").read_text()
    assert "h1 { color: teal }" in page
    wrong = (
        '<img src="https://example.org/x.png"><style>@import "y.css"</style><h1>a</h1><h3>b</h3>'
    )
    code = "import sys; sys.path.insert(0, '/mnt/skills/public/frontend-design/scripts')\n"
    found = run(client, f"{code}from page import check\nprint(*check({wrong!r}), sep='\\n')")
    for words in ("<img src> https://example.org/x.png", "style y.css", "no alt", "<h3> follows"):
        assert words in found


def test_canvas_design_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    follow(client, "examples/canvas-design")
    root = ElementTree.parse(folder / "outputs/poster.svg").getroot()  # noqa: S314 - ours
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 21
    code = "small = Canvas('A6'); small.text(90, 50, 'far too long', size=20); print(small.found)"
    assert "sticks out" in run(client, code)


def test_libreoffice_opens_the_documents(folder: Path, office: Path) -> None:
    outputs = folder / "outputs"
    names = ("report.docx", "board.pptx", "sales.xlsx", "whole.html", "poster.svg")
    if not all((outputs / name).exists() for name in names):
        pytest.skip("the tests that make these documents did not run in this process")
    report, board, sales, page, _ = convert_to_text(office, *(outputs / name for name in names))
    assert "Sales in 2026" in report
    assert re.search(r"1\. *Ask the customers", report)
    assert re.search(r"May +1250\.5", report)
    assert board.count("\f") == 4
    assert "thanks to the new shop" in board
    assert re.search(r"Total +600 +1,560\.00", sales), "LibreOffice computes the formulas"
    assert "Sales grew by twelve per cent" in page


@pytest.mark.slow
def test_algorithmic_art_examples_work(client: BlockingKernelClient, folder: Path) -> None:
    follow(client, "examples/algorithmic-art")
    for name in ("flows", "tiles-5", "sunflower-3"):
        assert len(ElementTree.parse(folder / f"outputs/{name}.svg").getroot()) > 9  # noqa: S314
    again = shell(client, """
art=/mnt/skills/examples/algorithmic-art/scripts/art.py
for rule in packing branches tiles; do python $art $rule 5 /tmp/$rule.svg; done
cmp /tmp/tiles.svg /mnt/user-data/outputs/tiles-5.svg
""")  # fmt: skip
    assert again.split() == [f"/tmp/{rule}.svg" for rule in ("packing", "branches", "tiles")]


def test_invalid_documents_are_reported_in_one_sentence(client: BlockingKernelClient) -> None:
    reported = run(client, """
import contextlib, importlib, sys
for skill, script, *command in (
    ["docx", "read_docx"], ["pptx", "read_pptx"], ["xlsx", "read_xlsx", "show"],
    ["pdf", "pages", "text"], ["pdf", "forms", "list"],
):
    sys.path.insert(0, f"/mnt/skills/public/{skill}/scripts")
    for path in ("data.csv", "missing"):
        with contextlib.redirect_stderr(sys.stdout):
            assert importlib.import_module(script).main([*command, path]) == 1
""")  # fmt: skip
    assert len(reported.splitlines()) >= 10
    assert "Traceback" not in reported


@pytest.mark.slow
def test_mcp_builder_examples_work(client: BlockingKernelClient) -> None:
    assert "There are: welcome." in follow(client, "examples/mcp-builder")[-1]
    script = "try=/mnt/skills/examples/mcp-builder/scripts/try_server.py\n"
    listed = shell(client, f"{script}python $try python stand_in.py")
    assert "stand-in speaks 2025-06-18\n\necho: Says it again.\n  text (string, needed)" in listed
    called = shell(
        client, f'{script}python $try --call echo \'{{"text": "a"}}\' python stand_in.py'
    )
    assert "{'name': 'echo', 'arguments': {'text': 'a'}}" in called
    server = f"{script}cd /mnt/user-data/outputs/my-notes\n"
    if find_spec("mcp"):
        assert "read_note: The text of one note." in shell(
            client, f"{server}python $try python server.py"
        )
    else:
        reported = shell(client, f"{server}! python $try python server.py 2>&1")
        assert "pip install 'mcp>=2'" in reported
        assert "the server ended with 1" in reported


def test_skill_written_by_a_kernel_is_packed_and_installed(
    client: BlockingKernelClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "still that of the template" in follow(client, "examples/skill-creator")[-1]
    monkeypatch.chdir(folder)
    assert read_folder(folder / "outputs/word-count").name == "word-count"
    for command in (["pack", "outputs/word-count"], ["check", "word-count.skill"]):
        assert main(["skills", *command]) == 0
    assert main(["skills", "install", "word-count.skill"]) == 0
    # A running kernel sees the changed folder.
    code = "sys.path.insert(0, '/mnt/skills/public/word-count/scripts')\n"
    assert run(client, f"{code}from run_word_count import run\nprint(run('a'))") == "A\n"
    assert main(["skills", "remove", "word-count"]) == 0


def test_shipped_skills_pass_the_skill_creators_check(client: BlockingKernelClient) -> None:
    code = "import sys; sys.path.insert(0, '/mnt/skills/examples/skill-creator/scripts')\n"
    code += "from check_skill import check\nimport glob\n"
    code += "print({path: check(path) for path in glob.glob('/mnt/skills/*/*') if check(path)})"
    assert list(ast.literal_eval(run(client, code))) == ["/mnt/skills/public/of-mine"]


@pytest.mark.slow
def test_script_names_a_missing_package(client: BlockingKernelClient) -> None:
    """With -I and -S, Python finds no packages."""
    scripts = {
        f"/mnt/skills/{path.relative_to(SKILLS)}": find_needed_modules(path) for path in SCRIPTS
    }
    reported = json.loads(run(client, f"""
import json, subprocess, sys
reported = {{}}
for path in {[path for path, modules in scripts.items() if modules]!r}:
    done = subprocess.run([sys.executable, "-I", "-S", path], capture_output=True, text=True)
    reported[path] = [done.returncode, done.stderr]
print(json.dumps(reported))
"""))  # fmt: skip
    assert len(reported) >= 10
    for path, (status, text) in reported.items():
        assert status == 1, path
        (module,) = scripts[path]
        assert text.startswith(f"The package {MODULES[module]} is missing in this sandbox"), path
        assert "pip install 'gvisor-kernel[skills]'" in text, path
        assert "Traceback" not in text, path


def test_cell_fails_with_the_name_of_a_missing_package(client: BlockingKernelClient) -> None:
    """When a cell imports a script, the cell fails with that sentence, and the kernel stays."""
    code = """
import sys
sys.path.insert(0, "/mnt/skills/public/docx/scripts")
for name in ("docx", "read_docx"):
    sys.modules.pop(name, None)
sys.modules["docx"] = None  # an import of it then fails as if it were not there
import read_docx
"""
    content = execute(client, code).reply["content"]
    assert content["ename"] == "SystemExit"
    assert content["evalue"].startswith("The package python-docx is missing in this sandbox")
    assert "read_docx.py" not in "".join(content["traceback"])
    assert run(client, "del sys.modules['docx']; print('still here')") == "still here\n"


def find_needed_modules(path: Path) -> set[str]:
    """Return the modules that a script imports and that are neither Python's nor its folder's."""
    modules = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    return modules - sys.stdlib_module_names - {other.stem for other in path.parent.glob("*.py")}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_as_python_3_9_and_list_their_packages(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))
    listed = path.parent / "requirements.txt"
    packages = {MODULES[module] for module in find_needed_modules(path)}
    if packages:
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        lines = listed.read_text().splitlines()
        assert set(lines) <= set(project["optional-dependencies"]["skills"])
        assert packages <= {line.partition(">=")[0] for line in lines}
