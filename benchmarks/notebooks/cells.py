"""Notebooks as cells of code, from .ipynb files and .py files in the percent format.

In the percent format a cell begins with ``# %%``, and what follows in that line is its title. A
magic or a shell command is a comment there: ``# %matplotlib inline``, ``# !ls``. Nothing runs here.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

OWN = Path(__file__).resolve().parent / "own"
MARKER = re.compile(r"# ?%%(?=\s|$)\s*(\[\w+\])?\s*(.*)")
MAGIC = re.compile(r"# ?([%!]\w.*)")
SERVER = re.compile(r"\bSERVER\b")


class Unreadable(Exception):
    """A notebook cannot be run; the text says why."""


@dataclass(frozen=True)
class Cell:
    source: str
    title: str = ""


@dataclass(frozen=True)
class Notebook:
    """``folder`` is where its kernel runs."""

    name: str
    folder: Path
    cells: tuple[Cell, ...]

    @property
    def asks_server(self) -> bool:
        """Whether it is one of ours that sends requests to the address SERVER."""
        return self.folder == OWN and any(SERVER.search(cell.source) for cell in self.cells)

    def find_missing(self) -> list[str]:
        """Return the libraries that it imports, and that this Python does not have."""
        return sorted(
            name
            for name in set(self.find_imports())
            if name not in sys.stdlib_module_names
            and PathFinder.find_spec(name, [*sys.path, str(self.folder)]) is None
        )

    def find_imports(self) -> Iterator[str]:
        """Yield the top names of imports that every run of a cell makes."""
        for cell in self.cells:
            lines = cell.source.splitlines()
            code = "\n".join(line for line in lines if not line.startswith(("%", "!")))
            try:
                body = ast.parse(code).body
            except SyntaxError:  # magics within a line, or an error that is meant
                continue
            for node in body:
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.partition(".")[0]


def find_notebooks(
    places: Iterable[Path], pattern: str = ""
) -> tuple[list[Notebook], dict[str, str]]:
    """Return the notebooks in ``places``, files or folders, and by name why some are left out."""
    found: dict[str, Notebook] = {}
    left_out: dict[str, str] = {}
    for path, base in _find_files(places):
        name = str(path.relative_to(base).with_suffix(""))
        if pattern and not fnmatch.fnmatchcase(name, f"*{pattern}*"):
            continue
        if name in found:
            name = f"{base.name}/{name}"
        try:
            cells = read_cells(path)
            notebook = Notebook(name, path.parent, cells)
            if missing := notebook.find_missing():
                raise Unreadable(f"not installed: {', '.join(missing)}")
        except Unreadable as error:
            left_out[name] = str(error)
        else:
            if cells:
                found[name] = notebook
    return list(found.values()), left_out


def _find_files(places: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield each notebook's file, and the folder from which it is named."""
    for place in places:
        base = place.resolve()
        if base.is_file():
            yield base, base.parent
            continue
        for path in sorted(base.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
            if hidden or not path.is_file():
                continue
            if path.suffix == ".ipynb" or (path.suffix == ".py" and _is_percent(path)):
                yield path, base


def _is_percent(path: Path) -> bool:
    return any(map(MARKER.match, path.read_text(errors="replace").splitlines()))


def read_cells(path: Path) -> tuple[Cell, ...]:
    """Return the cells of code that are not empty.

    :raises Unreadable: when it is no notebook of Python
    """
    text = path.read_text(errors="replace")
    cells = read_percent(text) if path.suffix == ".py" else read_ipynb(text)
    return tuple(cell for cell in cells if cell.source.strip())


def read_ipynb(text: str) -> list[Cell]:
    """:raises Unreadable: when it is no notebook of Python in the format 4"""
    try:
        content = json.loads(text)
        language = content.get("metadata", {}).get("kernelspec", {}).get("language", "python")
        if str(language).lower() != "python":
            raise Unreadable(f"its language is {language}")
        return [
            Cell("".join(each["source"]))
            for each in content["cells"]
            if each["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"no notebook in the format 4 ({type(error).__name__})") from error


def read_percent(text: str) -> list[Cell]:
    cells: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if marker := MARKER.match(line):
            if marker[1]:  # [markdown]: its lines are comments
                cells.append(("", []))
            else:
                cells.append((marker[2].strip(), []))
        else:
            magic = MAGIC.match(line)
            cells[-1][1].append(magic[1] if magic else line)
    return [Cell(_strip(lines), title) for title, lines in cells]


def _strip(lines: list[str]) -> str:
    """Return the code of a cell; nothing if it has only comments."""
    if all(not line.strip() or line.startswith("#") for line in lines):
        return ""
    return "\n".join(lines).strip("\n")
