"""Begin a new skill: python new_skill.py NAME [FOLDER], by default in /mnt/user-data/outputs."""

import os
import re
import sys
from typing import List

DOCUMENT = """\
---
name: {name}
description: What it does, and when to use it, in the words that somebody would ask with.
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
"""

SCRIPT = '''\
"""What this does. Needs nothing but Python's standard library."""

import sys


def run(text: str) -> str:
    return text.upper()


if __name__ == "__main__":
    print(run(" ".join(sys.argv[1:])))
'''


def make_skill(name: str, parent: str) -> str:
    """Write the files of a new skill and return its folder. Raises ValueError, FileExistsError."""
    if len(name) > 64 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("a name has lower-case letters, digits, and single hyphens between them")
    folder = os.path.join(parent, name)
    os.makedirs(os.path.join(folder, "scripts"))
    module = "run_" + name.replace("-", "_")
    text = DOCUMENT.format(name=name, title=name.replace("-", " ").capitalize(), module=module)
    with open(os.path.join(folder, "SKILL.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(folder, "scripts", module + ".py"), "w", encoding="utf-8") as file:
        file.write(SCRIPT)
    return folder


def main(arguments: List[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    print(make_skill(arguments[0], *(arguments[1:] or ["/mnt/user-data/outputs"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
