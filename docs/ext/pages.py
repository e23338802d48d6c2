"""Turns the text of a page, which is plain Markdown, into what the site shows. Pure functions.

Four things differ between the site and a viewer of Markdown:

- a comment ``<!-- generated: NAME -->`` becomes a part that is made from the code (``reference``),
- a comment ``<!-- from: PATH -->`` begins a page whose text is another file, such as the changelog,
- the lists of ``index.md`` are the table of contents,
- a picture ``NAME.png`` with a ``NAME-dark.png`` beside it is shown in the reader's colours.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
FROM = re.compile(r"\A<!-- from: (\S+) -->$", re.MULTILINE)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([\w/.-]+)\.md\)", re.MULTILINE)
PICTURE = re.compile(r"^!\[([^\]]*)\]\(([\w/.-]+)\.png\)$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")

COPIES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
COPIES |= {"README.md": "readme.md"}
"""Files of the project that are pages of the site, and the names of these pages in docs/."""


def for_the_site(
    text: str, page: str, docs: Path, generators: Mapping[str, Callable[[], str]]
) -> str:
    """Return the text of a page as the site's Markdown.

    ``page``: its path below ``docs``, without the suffix. ``generators``: the parts that are made
    from the code, by name.

    :raises KeyError: the page asks for a part that does not exist
    """
    source = posixpath.join("docs", f"{page}.md")
    copied = FROM.match(text)
    if copied:
        source = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), copied[1]))
        text = (docs.parent / source).read_text(encoding="utf-8")
    text = LINK.sub(lambda link: lead(link[1], source, page) + (link[2] or ""), text)
    text = GENERATED.sub(lambda part: generators[part[1]](), text)
    text = PICTURE.sub(lambda picture: show(picture, docs / posixpath.dirname(page)), text)
    if page == "index":
        text += contents(text)
    return text


def lead(target: str, source: str, page: str) -> str:
    """Return a link of the file ``source`` as one of the page ``page`` in docs/."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in COPIES:
        path = posixpath.join("docs", COPIES[path])
    return posixpath.relpath(path, posixpath.join("docs", posixpath.dirname(page)))


def show(picture: re.Match[str], folder: Path) -> str:
    """Return a picture as it is, or two of which the theme shows one, if there is a dark one."""
    words, name = picture.groups()
    if not (folder / f"{name}-dark.png").is_file():
        return picture[0]
    one = "```{{image}} {}.png\n:alt: {}\n:class: only-{}\n```\n"
    return one.format(name, words, "light") + "\n" + one.format(f"{name}-dark", words, "dark")


def contents(index: str) -> str:
    """Return the tables of contents that the lists of the index are, one for each heading."""
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        entries = "".join(f"{title} <{page}>\n" for title, page in ENTRY.findall(section))
        if entries:
            caption = section.partition("\n")[0]
            trees.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}```\n")
    return "".join(trees)


def listed(index: str) -> list[str]:
    """Return the pages that the index lists, without suffixes."""
    return [page for _, page in ENTRY.findall(index)]
