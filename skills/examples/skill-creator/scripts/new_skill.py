"""Begin a new skill: python new_skill.py NAME [FOLDER], by default in /mnt/user-data/outputs.

Needs nothing but Python's standard library.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

DOCUMENT = """\
---
name: {name}
description: What it does, and in what form. Use when somebody asks for it, in these words.
---
# {title}

Input is in `/mnt/user-data/uploads`; the result goes to `/mnt/user-data/outputs`.

```python
import sys
sys.path.insert(0, "/mnt/skills/public/{name}/scripts")
from {module} import run
print(run("some input"))
```

## Before you say it is done

How to check the result.

Details: [reference/facts.md](reference/facts.md).
"""

SCRIPT = '''\
"""What this does: python {module}.py TEXT. Needs nothing but Python's standard library."""

from __future__ import annotations

import sys


def run(text: str) -> str:
    """What comes out of ``text``."""
    return text.upper()


if __name__ == "__main__":
    print(run(" ".join(sys.argv[1:])))
'''

FACTS = "# Facts\n\nUnits, limits, pitfalls: what is looked up, rather than read each time.\n"


def make_skill(name: str, parent: str | Path) -> Path:
    """Write the files of a new skill and return its folder. Raises ValueError, FileExistsError."""
    if len(name) > 64 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("a name has lower-case letters, digits, and single hyphens between them")
    folder = Path(parent, name)
    module = "run_" + name.replace("-", "_")
    title = name.replace("-", " ").capitalize()
    for path, text in (
        ("SKILL.md", DOCUMENT.format(name=name, title=title, module=module)),
        (f"scripts/{module}.py", SCRIPT.format(module=module)),
        ("reference/facts.md", FACTS),
    ):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=path != "SKILL.md")
        file.write_text(text, encoding="utf-8")
    licence = Path(__file__).resolve().parent.parent / "LICENSE.txt"
    if licence.exists():
        shutil.copyfile(licence, folder / "LICENSE.txt")
    return folder


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(make_skill(*[*arguments, "/mnt/user-data/outputs"][:2]))
    except (ValueError, OSError) as error:
        print(f"No skill was made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
