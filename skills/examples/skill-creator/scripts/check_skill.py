"""Check a skill while it is written: python check_skill.py FOLDER.

It says what gvisor-kernel would refuse, and what makes a skill hard to find or to use. The last
word on the first has ``gvisor-kernel skills check``, on the host. Needs nothing but Python's
standard library.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import Iterator

PLACES = {"SKILL.md", "LICENSE.txt", "scripts", "reference"}
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)\)")
UNTOLD = "What it does, and in what form"
"""As ``new_skill.py`` begins a description."""


def check(folder: str | Path) -> list[str]:
    """What should be changed, in one sentence each."""
    folder = Path(folder)
    document = folder / "SKILL.md"
    if not document.is_file():
        return ["There is no SKILL.md."]
    text = document.read_text(encoding="utf-8")
    found = [f"{path.name} is not allowed at the root." for path in _strangers(folder)]
    found += _check_front(text, folder.resolve().name)
    lines = len(text.splitlines())
    if lines > 200:
        found.append(f"SKILL.md has {lines} lines: move what is needed rarely to reference/.")
    for target in LINK.findall(text):
        if not (folder / target).exists():
            found.append(f"SKILL.md links to {target}, which is not there.")
    for number, code in enumerate(FENCE.findall(text), 1):
        found += _check_code(code, f"Example {number} of SKILL.md")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(f"{name} is a link.")
        elif path.suffix == ".py":
            code = path.read_text(encoding="utf-8")
            found += _check_code(code, name)
            if name.startswith("scripts/") and path.name not in text and path.stem not in text:
                found.append(f"SKILL.md does not say what {name} is for.")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > 64 * 2**20:
        found.append(f"It has {size / 2**20:.0f} MiB; 64 is the most.")
    return found


def _strangers(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name not in PLACES and p.name[0] != "."]


def _check_front(text: str, folder: str) -> Iterator[str]:
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if front is None:
        yield "SKILL.md does not begin with its front matter, between two lines ---."
        return
    keys = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", front[1], re.MULTILINE))
    name, description = keys.get("name", ""), keys.get("description", "")
    if len(name) > 64 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        yield f"The name {name!r} is not lower-case letters, digits and single hyphens, at most 64."
    elif name != folder:
        yield f"Its name is {name}, its folder's {folder}."
    if not 40 <= len(description) <= 1024:
        yield f"The description has {len(description)} characters: 40 to 1024 are good."
    if "Use " not in description:
        yield 'The description does not say when: "Use when ...".'
    if description.startswith(UNTOLD):
        yield "The description is still that of the template."


def _check_code(code: str, place: str) -> Iterator[str]:
    try:
        ast.parse(code, feature_version=(3, 9))
    except SyntaxError as error:
        yield f"{place}, line {error.lineno}, is no Python 3.9: {error.msg}."


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        print(__doc__, file=sys.stderr)
        return 2
    found = check(arguments[0])
    print("\n".join(found) or "Nothing was found.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
