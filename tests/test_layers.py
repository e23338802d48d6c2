"""Who may import whom: the table and the map of docs/architecture.md, and no circle anywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from .source import (
    MAP,
    MODULES,
    PAGE,
    draw_map,
    find_circles,
    find_floors,
    graph_of_modules,
    graph_of_parts,
    graph_of_siblings,
    imports,
    name_of,
    part_of,
    parts_imported,
)

KNOWN_CIRCLES: list[set[str]] = []
"""Circles of modules and of folders that are being broken. A part of one is known, too."""


def read_table() -> dict[str, set[str]]:
    """Return for each part of the package (a top-level module or folder) the parts it may import.

    Read from docs/architecture.md. The parts of one row may import each other.
    """
    section = PAGE.read_text().partition("| may import |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.+) \| .+ \| (.+) \|$", section, re.MULTILINE)
    table = {"__init__": {"api", "changes", "errors"}, "__main__": {"cli"}}
    above: set[str] = set()
    for first, may in rows:
        own = {name.rstrip("/") for name in re.findall(r"`(\w+/?)`", first)}
        named = set(re.findall(r"`(\w+)`", may))
        if may.startswith("all above"):
            named = above - named
        assert named <= above, f"{own}: only what is in a row above may be imported"
        for part in own:
            table[part] = named | own
        above |= own
    return table


MAY_IMPORT = read_table()

STANDARD_LIBRARY_ONLY = {"link", "errors", "guest", "strict_json", "tracing", "archive"}
IN_THE_SANDBOX = {"zmq", "ipykernel", "IPython"}
"""Packages of the image's Python, which the guest imports in the mode that needs them."""

JUPYTER_CLIENT = {"api", "jupyter", "kernel", "bridge", "lab"}


def test_import_table_is_read() -> None:
    assert MAY_IMPORT["link"] == {"link", "strict_json"}
    assert MAY_IMPORT["guest"] == {"guest", "link", "strict_json"}
    assert {"config", "errors"} <= MAY_IMPORT["spec"]
    assert "runtimes" not in MAY_IMPORT["spec"] | MAY_IMPORT["bridge"]
    assert "guest" not in MAY_IMPORT["cli"] | MAY_IMPORT["jupyter"]
    assert {"jupyter", "runtimes", "link"} <= MAY_IMPORT["cli"]


def test_modules_import_only_what_the_table_allows() -> None:
    for path in MODULES:
        part = part_of(path)
        assert part in MAY_IMPORT, f"{part} is not in the table of docs/architecture.md"
        wrong = [
            f"{name_of(path)}, line {line}: {other}"
            for line, other in parts_imported(path)
            if other not in MAY_IMPORT[part] | {part}
        ]
        assert not wrong, f"{part} may import {sorted(MAY_IMPORT[part])}"


def without_known(circles: Iterable[list[str]]) -> list[str]:
    shown = ([name.removeprefix("gvisor_kernel.") for name in circle] for circle in circles)
    return [
        " imports ".join(circle)
        for circle in shown
        if not any(set(circle) <= known for known in KNOWN_CIRCLES)
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not without_known(find_circles(graph_of_modules()))


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert not without_known(find_circles(graph_of_parts()))
    assert not without_known(find_circles(graph_of_siblings()))


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}}
    assert {frozenset(circle) for circle in find_circles(graph)} == {
        frozenset("abc"),
        frozenset("de"),
    }
    assert find_floors({"a": {"b", "c"}, "b": {"c"}}) == {"a": 2, "b": 1, "c": 0}


def test_the_page_has_the_map_of_imports() -> None:
    found = MAP.search(PAGE.read_text())
    assert found is not None
    assert found[0] == draw_map(), "python -m tests.source draws it again"


def test_modules_import_no_third_party_library_where_forbidden() -> None:
    for path in MODULES:
        part = part_of(path)
        for line, name in imports(path):
            library, where = name.split(".")[0], f"{name_of(path)}, line {line}: {name}"
            if part in STANDARD_LIBRARY_ONLY and library not in sys.stdlib_module_names:
                allowed = {"gvisor_kernel"} | (IN_THE_SANDBOX if part == "guest" else set())
                assert library in allowed, where
            if library == "jupyter_client":
                assert part in JUPYTER_CLIENT, where
            if library == "jupyter_client" and part == "bridge":
                assert name.startswith("jupyter_client.session"), where
