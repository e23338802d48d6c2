"""Judges what Sphinx's link check has found: ``python docs/ext/links.py output.json``.

Sphinx calls a link broken as well if no machine answers. On a machine without a network that says
nothing about the link, so these links are only counted, by host. The exit status is 1 if a server
has answered that a page, or an anchor of it, does not exist.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

GONE = re.compile(r"(404|410) |Anchor ")
"""How Sphinx begins what it says about a page that does not exist."""


def judge(found: Iterable[Mapping[str, object]]) -> tuple[list[str], Counter[str]]:
    """Return the links that lead nowhere, and how many were not checked, by host."""
    gone, unchecked = [], Counter[str]()
    for one in found:
        address, info = str(one["uri"]), str(one["info"])
        if one["status"] not in ("broken", "timeout"):
            continue
        if GONE.match(info) or one["code"] in (404, 410) or not urlsplit(address).hostname:
            gone.append(f"{one['filename']}, line {one['lineno']}: {address}: {info}")
        else:
            unchecked[str(urlsplit(address).hostname)] += 1
    return gone, unchecked


def main(path: Path) -> int:
    """Print what was found; return the exit status."""
    lines = path.read_text(encoding="utf-8").splitlines()
    gone, unchecked = judge(map(json.loads, lines))
    for host, count in sorted(unchecked.items()):
        print(f"not checked, as {host} gave no answer that tells: {count}")
    for line in gone:
        print(line)
    print(f"{len(lines)} links, {sum(unchecked.values())} not checked, {len(gone)} lead nowhere")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
