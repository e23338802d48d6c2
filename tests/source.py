"""The package's modules as text: syntax trees, and who imports whom.

``python -m tests.source`` draws the map of imports in docs/architecture.md again. An import counts
wherever it stands, in a function or below TYPE_CHECKING as well: whoever has to read the type has
to read its module. A name that a package re-exports counts as an import of the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeVar

from .world import PROJECT

PACKAGE = PROJECT / "gvisor_kernel"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "kernelspecs_data" not in path.parts)
PAGE = PROJECT / "docs/architecture.md"
MAP = re.compile(r"(?<=<!-- import map -->\n```\n).*?(?=```\n)", re.DOTALL)
"""Where the page has the map."""

Node = TypeVar("Node", bound=Hashable)
Graph = Mapping[Node, set[Node]]
"""What each node imports."""


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a module's syntax tree, which nobody may change."""
    return ast.parse(path.read_text())


def text_of(node: ast.expr) -> str:
    """Return the text of a name with dots as ast.unparse does, which takes twenty times as long."""
    if isinstance(node, ast.Attribute):
        return f"{text_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to: a folder, or a module beside them."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Return line and full name of each import; ``from a import b`` gives ``a.b``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(PROJECT).parts[: -node.level]
                base = ".".join((*package, base)).rstrip(".")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return tuple(found)


def parts_imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and part of each import of the package; its version is not one."""
    for line, name in imports(path):
        words = name.split(".")
        if words[0] == "gvisor_kernel" and len(words) > 1 and words[1] != "__version__":
            yield line, words[1]


def graph_of_modules() -> dict[str, set[str]]:
    """Return what each module imports, as names with dots."""
    names = {_module_name(path): path for path in MODULES}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for _, imported in imports(path):
            found = imported if imported in names else imported.rpartition(".")[0]
            if found in names and found not in (name, "gvisor_kernel"):
                graph[name].add(found)
    return graph


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def graph_of_parts() -> dict[str, set[str]]:
    """Return what each part of the package imports."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        part = part_of(path)
        graph.setdefault(part, set()).update(other for _, other in parts_imported(path))
    return {part: others - {part} for part, others in graph.items()}


def graph_of_siblings() -> dict[str, set[str]]:
    """Return which of the folders in one folder of the package import which."""
    graph: dict[str, set[str]] = {}
    for name, others in graph_of_modules().items():
        folder = name.split(".")[1:-1]
        for other in (other.split(".")[1:-1] for other in others):
            if len(folder) == len(other) == 2 and folder[0] == other[0] and folder != other:
                graph.setdefault(".".join(folder), set()).add(".".join(other))
    return graph


def find_circles(graph: Graph[Node]) -> list[list[Node]]:
    """Return circles: after each is broken in thought, the next one is looked for."""
    rest = {node: set(others) for node, others in graph.items()}
    circles: list[list[Node]] = []
    while True:
        try:
            TopologicalSorter(rest).prepare()
            return circles
        except CycleError as error:
            # Each one is imported by the next.
            circle: list[Node] = error.args[1][::-1]
            circles.append(circle)
            rest[circle[0]].discard(circle[1])


def find_floors(graph: Graph[Node]) -> dict[Node, int]:
    """Return for each node its floor: 0 if it imports nothing, else above all that it imports."""
    floors: dict[Node, int] = {}
    for node in TopologicalSorter(graph).static_order():
        floors[node] = max((floors[other] + 1 for other in graph.get(node, ())), default=0)
    return floors


def draw_map() -> str:
    """Draw the parts of the package on their floors, the highest first.

    What is imported anyway, by way of another part, is left out.
    """
    graph = graph_of_parts()
    floors = find_floors(graph)
    reach: dict[str, set[str]] = {}
    for part in sorted(graph, key=floors.__getitem__):
        reach[part] = graph[part].union(*(reach[other] for other in graph[part]))
    lines = []
    for part in sorted(graph, key=lambda part: (-floors[part], part)):
        others = graph[part]
        near = sorted(
            (each for each in others if not any(each in reach[other] for other in others)),
            key=lambda each: (-floors[each], each),
        )
        lines.append(f"{floors[part]:2}  {part:14} {' '.join(near)}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(MAP.sub(lambda _: draw_map(), PAGE.read_text()))
