"""No regular expression of the package can begin again inside text of any length.

Two forms take time with the square of a text, and are found in the parsed expression: repeats one
after the other that take the same characters (``a*a*b``, ``(a+)*b``), and, where a search goes on
at the next character, a repeat that takes the beginning of the expression, with something behind
it that may be missing (``ab*c`` on ``abababab``, ``"[^"]*"`` on quotes that are not closed).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gvisor_kernel

PACKAGE = Path(gvisor_kernel.__file__).parent
SHORT = 256
"""A repeat of at most so many characters costs no more than that for each of them."""
LETTERS = frozenset(map(chr, range(256))) | {"\u2028", "\u0394"}
"""Of the other characters two stand for all."""
SEARCHES = ("search", "sub", "subn", "split", "findall", "finditer")

ALLOWED = {
    ("changes/autorun.py", None): "a name of 255 bytes; patterns of fnmatch, for a whole name",
    ("server/library_handlers.py", None): "a name of 60 characters",
    (
        "lab/routes.py",
        None,
    ): "a request's path of 64 kB; none has a repeat in which a second begins",
    ("images/engines.py", r"^ARG BASE=(\S+)$"): "a file of this package",
    ("runtimes/runsc/command_line.py", r"^\s*--?([A-Za-z][\w-]*)"): "the help of runsc",
    ("kernel/environment_builder.py", None): "200 lines of 16 KiB; none has such a repeat",
    ("runtimes/docker/connection.py", None): "words of an engine's error; none has a repeat",
    ("runtimes/nodes/slurm.py", None): "100 lines of 4 KiB of srun; no ``.*`` leaves its line",
    ("runtimes/clients.py", None): "100 lines of 4 KiB of ssh; no ``.*`` leaves its line",
    **{
        ("runtimes/hints.py", pattern): "4 KiB of stderr"
        for pattern in (
            "unshare: (unshare|write) failed|user namespace cannot be made|uid_map.*not permitted"
            "|clone.*user namespace",
            "unshare: (not found|command not found)|No such file.*unshare",
            "failed to load /|(executable|interpreter).*not found|no such file or dir",
            "(platform|seccomp|ptrace|systrap).*(not permitted|denied|unsupported)",
        )
    },
}
"""Those of which this cannot be said, with what bounds them. None: not a literal. What runs in the
sandbox (``guest``) takes its own time."""

LOOKS = ("at", "assert", "assert_not")
Items = list[tuple[Any, Any]]


def name(op: Any) -> str:
    return str(op).lower()


@cache
def category(kind: str, flags: int) -> frozenset[str]:
    code = {"digit": r"\d", "space": r"\s", "word": r"\w"}[kind.removeprefix("not_")]
    found = frozenset(c for c in LETTERS if re.fullmatch(code, c, flags & re.A))
    return LETTERS - found if kind.startswith("not_") else found


def letters(op: Any, argument: Any, flags: int) -> frozenset[str]:
    """Return the characters of LETTERS that a node without a repeat in it can take."""
    match name(op):
        case "literal":
            found = {chr(argument)}
        case "not_literal":
            return LETTERS - letters("literal", argument, flags)
        case "any":
            return LETTERS if flags & re.S else LETTERS - {"\n"}
        case "range":
            found = {c for c in LETTERS if argument[0] <= ord(c) <= argument[1]}
        case "category":
            return category(name(argument).removeprefix("category_"), flags)
        case "in":
            parts = [item for item in argument if name(item[0]) != "negate"]
            together = frozenset().union(*(letters(*item, flags) for item in parts))
            return together if len(parts) == len(argument) else LETTERS - together
        case _:
            return frozenset()
    cases = (str.lower, str.upper) if flags & re.I else ()
    return frozenset(found.union(*({change(c) for c in found} for change in cases)))


class Expression:
    """What may be wrong with one expression."""

    def __init__(self, pattern: str, flags: int) -> None:
        import re._parser as parser

        parsed = parser.parse(pattern, flags)
        self.flags = parsed.state.flags & (re.I | re.A | re.S)
        self.items: Items = list(parsed)
        self.first, _ = self.find_first(self.items)

    def find_first(self, items: Items) -> tuple[frozenset[str], bool]:
        """Return the characters with which ``items`` may begin, and whether they may be nothing."""
        found: frozenset[str] = frozenset()
        for op, argument in items:
            more, is_empty = self.first_of(op, argument)
            found |= more
            if not is_empty:
                return found, False
        return found, True

    def first_of(self, op: Any, argument: Any) -> tuple[frozenset[str], bool]:
        match name(op):
            case "max_repeat" | "min_repeat" | "possessive_repeat":
                found, is_empty = self.find_first(list(argument[2]))
                return found, is_empty or argument[0] == 0
            case "subpattern":
                return self.find_first(list(argument[3]))
            case "atomic_group":
                return self.find_first(list(argument))
            case "branch":
                parts = [self.find_first(list(branch)) for branch in argument[1]]
                return frozenset().union(*(p[0] for p in parts)), any(p[1] for p in parts)
            case kind if kind in LOOKS:
                return frozenset(), True
        return letters(op, argument, self.flags), False

    def taken(self, items: Items) -> frozenset[str]:
        """Return all characters that ``items`` can take anywhere."""
        found: frozenset[str] = frozenset()
        for op, argument in items:
            for inner in inside(op, argument):
                found |= self.taken(inner)
            found |= letters(op, argument, self.flags)
        return found

    def find_faults(self, searches: bool) -> list[str]:
        return list(self.look(self.items, [], searches))

    def look(self, items: Items, after: Items, searches: bool) -> Iterator[str]:
        """``after``: what comes behind ``items``."""
        for at, (op, argument) in enumerate(items):
            rest = items[at + 1 :] + after
            again = []
            if is_long(op, argument):
                taken = self.taken(list(argument[2]))
                if taken & self.beside(rest):
                    yield "two repeats of the same characters"
                if searches and not self.succeeds(rest) and taken & self.first:
                    yield "a repeat in which a search begins again"
                again = [(op, (0, *argument[1:]))]
            for inner in inside(op, argument):
                yield from self.look(inner, again + rest, searches)

    def succeeds(self, rest: Items) -> bool:
        """Return whether nothing is wanted of ``rest``."""
        return self.find_first(rest)[1] and not any(name(op) in LOOKS for op, _ in rest)

    def beside(self, rest: Items) -> frozenset[str]:
        """Return with what repeats may begin that come at once."""
        found: frozenset[str] = frozenset()
        for op, argument in rest:
            if is_long(op, argument):
                found |= self.find_first(list(argument[2]))[0]
            else:
                for inner in inside(op, argument):
                    found |= self.beside(inner)
            if not self.first_of(op, argument)[1]:
                break
        return found


def inside(op: Any, argument: Any) -> list[Items]:
    match name(op):
        case "max_repeat" | "min_repeat" | "possessive_repeat":
            return [list(argument[2])]
        case "subpattern":
            return [list(argument[3])]
        case "branch":
            return [list(branch) for branch in argument[1]]
    return []


def is_long(op: Any, argument: Any) -> bool:
    return name(op).endswith("_repeat") and int(argument[1]) > SHORT


# -- the expressions of the package ----------------------------------------------------------------


def text_of(node: ast.expr) -> str | bytes | None:
    """Return the text of a literal; what is put into it counts as a letter."""
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "x" for p in node.values]
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) else None


def find_expressions() -> Iterator[tuple[str, str | bytes | None, int, bool]]:
    """Yield the module, the expression, its flags, and whether it is searched for."""
    paths = [
        path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "guest" not in path.parents
    ]
    sources = {path: path.read_text() for path in paths}
    used = rf"(\w+)\.(?:{'|'.join(SEARCHES)})\("
    searched = {known for source in sources.values() for known in re.findall(used, source)}
    for path, source in sources.items():
        tree = ast.parse(source)
        names = {
            id(node.value): node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=method)) if (
                    method != "escape"
                ):
                    flags = re.findall(r"re\.([A-Z]+)\b", ast.unparse(node))
                    # One without a name, as in a table, counts as searched for.
                    known = names.get(id(node))
                    searches = method in SEARCHES or (
                        method == "compile" and (known is None or known in searched)
                    )
                    yield (
                        str(path.relative_to(PACKAGE)),
                        text_of(node.args[0]),
                        sum(int(getattr(re, flag)) for flag in flags),
                        searches,
                    )


def find_faults(pattern: str | bytes, flags: int, searches: bool) -> list[str]:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    return Expression(text, flags).find_faults(searches)


def test_no_expression_takes_the_square_of_a_text() -> None:
    found: dict[tuple[str, str | bytes | None], list[str]] = {}
    for module, pattern, flags, searches in find_expressions():
        faults = ["not a literal"] if pattern is None else find_faults(pattern, flags, searches)
        if faults:
            found[module, pattern] = faults
    assert found.keys() == ALLOWED.keys(), found


@pytest.mark.parametrize(
    ("pattern", "searches"),
    [
        (r'"(?:[^"\\]|\\.)*"', True),
        (r"<a [^>]*>", True),
        (r"(x|yy)*z|x", True),
        (r"\s+$", True),
        (r"a:[ \t]*([ -~]*)", False),
        (r"(a+)*", False),
        (r"(?:a|b+)*c", False),
    ],
)
def test_such_an_expression_is_found(pattern: str, searches: bool) -> None:
    assert find_faults(pattern, 0, searches)


@pytest.mark.parametrize(
    ("pattern", "searches"),
    [
        (r'"[^"]*"?', True),
        (r"\x1b\[[0-?]*[ -/]*[@-~]", True),
        (r"\d+", True),
        (r"<a [^>]*>", False),
        (r"[a-z]+(-[a-z]+)*", False),
    ],
)
def test_others_are_not(pattern: str, searches: bool) -> None:
    assert not find_faults(pattern, 0, searches)
