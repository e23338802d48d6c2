"""The site of docs/: its parts cover the code, and its pages are linked.

The pages are checked here as plain Markdown, as on a page of the repository, without Sphinx.
``scripts/docs --build`` makes a site of them; there a link of the site that leads nowhere is an
error, too, and ``scripts/test`` runs it beside the suite.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gvisor_kernel
from gvisor_kernel.cli.main import make_parser
from gvisor_kernel.config.settings import SETTINGS, find_own_settings
from gvisor_kernel.server.handlers import OPENAPI
from gvisor_kernel.server.watch import read_schemas

from .source import MODULES
from .world import PROJECT

DOCS = PROJECT / "docs"
CONF = runpy.run_path(str(DOCS / "conf.py"))
pages: Any = importlib.import_module("ext.pages")
links: Any = importlib.import_module("ext.links")
tables: Any = importlib.import_module("ext.tables")
GENERATORS: Any = importlib.import_module("ext.reference").GENERATORS

INDEX = (DOCS / "index.md").read_text()
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(PROJECT / name for name in pages.COPIES)]
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.once


@cache
def generated(name: str) -> str:
    return str(GENERATORS[name]())


def rows(text: str) -> set[str]:
    """Return the first names in code of the rows of tables."""
    return set(re.findall(r"^\| (?:\[)?`([^`]+)`", text, re.MULTILINE))


def test_the_configuration_is_of_this_release() -> None:
    assert CONF["release"] == gvisor_kernel.__version__
    assert CONF["nitpicky"]


def test_the_table_has_every_setting() -> None:
    assert rows(generated("settings")) == {*SETTINGS, *find_own_settings()}
    text = generated("server_settings")
    assert rows(text) == {
        "c.GVisorServer.warm",
        "c.GVisorServer.shared_storage",
        "c.GVisorServer.closed",
        "c.GVisorServer.hibernate_on_shutdown",
        "c.GVisorServer.cull_hibernates",
        "c.GVisorEgress.routes",
    }


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_the_page_has_every_command_and_argument() -> None:
    sections = re.split(r"^#+ `(gvisor-kernel [^`]+)`\n", generated("commands"), flags=re.MULTILINE)
    told = dict(zip(sections[1::2], sections[2::2], strict=True))
    found = list(parsers(make_parser()))[1:]
    assert set(told) == {parser.prog for parser in found}
    for parser in found:
        for action in parser._actions:
            hidden = action.help is argparse.SUPPRESS or action.dest == "help"
            for name in action.option_strings:
                assert hidden or name in told[parser.prog], (parser.prog, name)


def test_the_page_has_every_name_of_the_python_api() -> None:
    named = set(re.findall(r"gvisor_kernel\.(\w+)$", generated("python"), re.MULTILINE))
    assert named == set(gvisor_kernel.__all__) - {"__version__"}


def test_the_page_has_every_route_field_and_event() -> None:
    document = json.loads(OPENAPI.read_text())
    text = generated("rest")
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            section = text.partition(f"### `{method.upper()} {path}`\n")[2].partition("\n### ")[0]
            for said in (route["summary"], route.get("description", "")):
                assert tables.escape(said) in section
            for mime in route.get("requestBody", {}).get("content", {}):
                assert "The body is JSON" in section or f"The body is `{mime}`" in section
    for name, schema in document["components"]["schemas"].items():
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert set(schema["properties"]) <= rows(section)
    named = re.findall(r"^### `(urn:gvisor-kernel:event:[\w-]+:v\d)`", generated("events"), re.M)
    assert set(named) == {schema["$id"] for schema in read_schemas()}


def test_the_table_has_the_metrics_that_rest_md_explains() -> None:
    explained = rows((DOCS / "rest.md").read_text())
    names = {name for name in explained if name.startswith("gvisor_kernel_")}
    assert rows(generated("metrics")) == names
    assert "spare" in generated("metrics")


def test_every_page_is_listed_once_and_exists() -> None:
    found = [str(path.relative_to(DOCS).with_suffix("")) for path in PAGES]
    assert sorted([*pages.listed(INDEX), "index"]) == sorted(found)


def test_every_page_begins_with_a_title() -> None:
    for path in PAGES:
        assert path.read_text().startswith(("# ", "<!-- from: ")), path


@pytest.mark.parametrize(
    ("page", "messages"),
    [
        (
            "wrong.md",
            (
                "This kernel has no network",
                "The program runsc (gVisor) is not installed",
                "is a symbolic link",
                "was replaced by another file while the kernel started",
                "the machine has too much to do",
                "The kernel's sandbox is gone",
                "ended unexpectedly",
                "gvisor-kernel install --update --name",
                "; its limit is",
            ),
        ),
        ("howto/packages.md", ("pip finds no packages, as this kernel has no network for them",)),
    ],
)
def test_a_message_is_found_on_the_page_that_explains_it(
    page: str, messages: tuple[str, ...]
) -> None:
    code = "".join(path.read_text() for path in MODULES)
    said = re.sub(r'"\n\s*f?"', "", code)  # texts go on in the next line
    for message in messages:
        assert message in (DOCS / page).read_text()
        assert message in said, message


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("pip install", "howto/packages.md"),
        ("File not found", "wrong.md"),
        ("Where is my file", "wrong.md"),
        ("No network", "wrong.md"),
        ("It is slow", "wrong.md"),
        ("It died", "wrong.md"),
        ("It does not start", "wrong.md"),
    ],
)
def test_what_people_search_for_is_a_heading(words: str, page: str) -> None:
    """The site's search ranks these above the text, and docs/ext/scorer.js their pages first."""
    headings = re.compile(rf"^#+ .*{words}", re.MULTILINE)
    assert [path for path in PAGES if headings.search(path.read_text())] == [DOCS / page]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", CODE.sub(keep_inline, text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def keep_inline(code: re.Match[str]) -> str:
    return "" if code[0].lstrip().startswith("```") else code[0]


def dead_links(path: Path, text: str) -> list[str]:
    """Return the relative links of a page with this text that lead nowhere."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        exists = other.is_relative_to(PROJECT) and other.exists()
        if not exists or (anchor and anchor not in anchors(other.read_text())):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text()) == []


def test_dead_links_are_seen() -> None:
    page = DOCS / "settings.md"
    text = "[a](none.md) [b](settings.md#none) [c](#none) [d](settings.md#limits) `[e](none)`"
    assert dead_links(page, text) == ["none.md", "settings.md#none", "#none"]
    assert dead_links(page, "[f](../../elsewhere.md) [g](https://example.org/x)") == [
        "../../elsewhere.md"
    ]
    assert {"limits", "memory_limit"} <= anchors(page.read_text())


def test_a_copied_page_links_to_pages_of_the_site() -> None:
    text = pages.for_the_site("<!-- from: ../README.md -->\nx\n", "readme", DOCS, {})
    assert text.startswith("# gvisor-kernel")
    assert "](settings.md)" in text
    assert "](changes.md)" in text
    assert "](../notebooks/bash.ipynb)" in text
    assert "](docs/" not in text


def test_links_of_a_page_in_a_folder_lead_from_it() -> None:
    text = "[a](../settings.md#limits) [b](../../CHANGELOG.md) [c](https://example.org/a.md)"
    told = pages.for_the_site(text, "howto/teacher", DOCS, {})
    assert told == "[a](../settings.md#limits) [b](../changes.md) [c](https://example.org/a.md)"


def test_the_index_is_the_table_of_contents() -> None:
    told = pages.for_the_site("# T\n\n## How\n\n- [A b](a.md): c\n", "index", DOCS, {})
    assert told.endswith("```{toctree}\n:hidden:\n:caption: How\n\nA b <a>\n```\n")


def test_a_picture_with_a_dark_one_is_shown_in_both_colours(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    text = "![A card](a.png)\n"
    assert pages.for_the_site(text, "p", tmp_path / "docs", {}) == text
    (tmp_path / "docs" / "a-dark.png").touch()
    told = pages.for_the_site(text, "p", tmp_path / "docs", {})
    assert told.count(":alt: A card\n") == 2
    assert "{image} a.png" in told
    assert "{image} a-dark.png\n:alt: A card\n:class: only-dark" in told


def test_a_part_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError):
        pages.for_the_site("<!-- generated: nothing -->\n", "p", DOCS, GENERATORS)


def test_only_a_link_that_a_server_denies_is_dead() -> None:
    def found(status: str, info: str, code: int = 0) -> dict[str, object]:
        uri = "https://example.org/page"
        return {
            "filename": "a.md",
            "lineno": 3,
            "uri": uri,
            "status": status,
            "info": info,
            "code": code,
        }

    gone, unchecked = links.judge(
        [
            found("working", ""),
            found("broken", "404 Client Error: Not Found"),
            found("broken", "Anchor 'x' not found"),
            found("broken", "HTTPSConnectionPool(host='example.org'): Name does not resolve"),
            found("broken", "503 Server Error"),
            found("timeout", "timed out"),
        ]
    )
    assert len(gone) == 2
    assert gone[0].startswith("a.md, line 3: https://example.org/page: 404")
    assert dict(unchecked) == {"example.org": 3}


def test_a_table_shows_texts_of_the_code_as_they_are() -> None:
    told = tables.table(("a", "b", ""), [(tables.code("x|y"), "", tables.escape("<b> *c*\n_d_"))])
    assert told == "| a |  |\n| --- | --- |\n| `x\\|y` | \\<b\\> \\*c\\* \\_d\\_ |\n"
    assert tables.table(("a",), []) == ""
