"""Write a document together with somebody: its state, what readers will stumble over, what changed.

    python draft.py new OUT.md "TITLE" SECTION...   a skeleton, each section with its questions
    python draft.py status FILE.md                  sections, their words, and what is open
    python draft.py check FILE.md                   what a reader who was not there cannot follow
    python draft.py compare OLD.md NEW.md           what changed, by section

An open point is written in the text as ``[? who decides?]``. Needs nothing but Python's standard
library.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

OPEN = re.compile(r"\[\?\s*([^\]]*)\]")
HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
FENCE = re.compile(r"\s*(```|~~~)")
SHORT = re.compile(r"\b[A-Z][A-Z0-9]{1,7}s?\b")
EXPLAINED = re.compile(r"\(([A-Z][A-Z0-9]{1,7}s?)\)|\b([A-Z][A-Z0-9]{1,7}s?) \(")
KNOWN = {"OK", "PDF", "URL", "API", "HTML", "CSV", "EUR", "USD", "GBP", "UTC", "FAQ", "ID", "IT"}
VAGUE = (
    "soon", "as appropriate", "as needed", "etc", "and so on", "various", "some people",
    "it was decided", "stakeholders", "going forward", "leverage", "TBD", "TODO", "XXX",
)  # fmt: skip
POINTING = re.compile(
    r"\b(as discussed|as mentioned|as we all know|see above|in the meeting)\b", re.I
)
LONG_SENTENCE, LONG_PARAGRAPH = 35, 150
"""Words, above which people read twice."""


@dataclass
class Section:
    """A heading, and the lines below it up to the next one."""

    level: int
    title: str
    line: int
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text without blocks of code."""
        kept, in_code = [], False
        for line in self.lines:
            if FENCE.match(line):
                in_code = not in_code
            elif not in_code:
                kept.append(line)
        return "\n".join(kept)

    @property
    def words(self) -> int:
        return len(re.findall(r"\w[\w'-]*", OPEN.sub("", self.text)))

    @property
    def open(self) -> list[str]:
        return [point.strip() for point in OPEN.findall(self.text)]


def read(text: str) -> list[Section]:
    """The sections of a text in Markdown; what comes before the first heading has level 0."""
    sections, in_code = [Section(0, "", 0)], False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= bool(FENCE.match(line))
        found = None if in_code else HEADING.match(line)
        if found:
            sections.append(Section(len(found[1]), found[2], number))
        else:
            sections[-1].lines.append(line)
    return sections if sections[0].text.strip() else sections[1:]


def new(title: str, names: list[str]) -> str:
    """A skeleton. Whoever writes replaces the open points."""
    parts = [
        f"# {title}\n\n[? For whom is this, and what do they decide or do after reading it?]\n\n"
        "[? The result in two sentences. Write them last.]\n"
    ]
    for name in names:
        parts.append(f"## {name}\n\n[? {name}: what must a reader know, and who knows it?]\n")
    return "\n".join(parts)


def status(text: str) -> str:
    """A table of the sections, then the open points with where they stand."""
    sections = read(text)
    rows = [f"{'words':>6} {'open':>5}  section"]
    for section in sections:
        name = "  " * max(0, section.level - 1) + (section.title or "(before the first heading)")
        rows.append(f"{section.words:>6} {len(section.open):>5}  {name}")
    rows.append(f"{sum(s.words for s in sections):>6} {sum(len(s.open) for s in sections):>5}")
    for section in sections:
        rows += [f"- {section.title}: {point}" for point in section.open]
    return "\n".join(rows)


def check(text: str) -> list[str]:
    """What a reader stumbles over, in one sentence each, with its line."""
    sections, found = read(text), []
    for section, following in zip(sections, [*sections[1:], None]):
        place = f"line {section.line}, {section.title!r}"
        deeper = following is not None and following.level > section.level
        if not section.text.strip() and not any(map(str.strip, section.lines)) and not deeper:
            found.append(f"{place}: nothing stands below this heading.")
        if following is not None and section.level and following.level > section.level + 1:
            found.append(f"line {following.line}, {following.title!r}: a level is left out.")
    if sum(section.level == 1 for section in sections) != 1:
        found.append("The text has not one title (#).")
    titles = [section.title.lower() for section in sections if section.level]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        found.append(f"Two headings are {title!r}.")
    explained: set[str] = set()
    reported: set[str] = set()
    for number, line in _lines(text):
        for point in OPEN.findall(line):
            found.append(f"line {number}: open: {point.strip()}")
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", OPEN.sub(" ", line))
        explained |= {one or other for one, other in EXPLAINED.findall(plain)}
        if not HEADING.match(line):
            for name in SHORT.findall(plain):
                if name not in explained | reported | KNOWN and not name.isdigit():
                    reported.add(name)
                    found.append(f"line {number}: {name} is not explained where it is first used.")
        for words in VAGUE:
            if re.search(rf"(?<!\w){re.escape(words)}(?!\w)", plain, re.IGNORECASE):
                found.append(f"line {number}: {words!r} says too little: who, what, when?")
        for pointing in POINTING.findall(plain):
            found.append(f"line {number}: {pointing!r}: a reader was not there.")
    for number, paragraph in _paragraphs(text):
        words = len(paragraph.split())
        if words > LONG_PARAGRAPH:
            found.append(f"line {number}: a paragraph of {words} words.")
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
            if len(sentence.split()) > LONG_SENTENCE:
                found.append(f"line {number}: a sentence of {len(sentence.split())} words.")
    anchors = {_anchor(section.title) for section in sections}
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        if target not in anchors:
            found.append(f"A link leads to #{target}, which is no heading.")
    return found


def compare(old: str, new: str) -> str:
    """What changed: sections that came, went or have other words, with the words that changed."""
    before = {section.title: section for section in read(old)}
    after = {section.title: section for section in read(new)}
    lines = [f"gone: {title}" for title in before if title not in after]
    for title, section in after.items():
        if title not in before:
            lines.append(f"new: {title} ({section.words} words)")
            continue
        one, other = before[title].text.split(), section.text.split()
        if one == other:
            continue
        lines.append(f"changed: {title} ({before[title].words} to {section.words} words)")
        for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
            if kind != "equal":
                was, now = " ".join(one[a:b]), " ".join(other[c:d])
                lines.append(f"  - {_short(was) or '(nothing)'}\n  + {_short(now) or '(nothing)'}")
    order = [title for title in after if title in before]
    if order != [title for title in before if title in after]:
        lines.append("moved: sections stand in another order")
    return "\n".join(lines) or "Nothing changed."


def _lines(text: str) -> list[tuple[int, str]]:
    kept, in_code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            in_code = not in_code
        elif not in_code:
            kept.append((number, line))
    return kept


def _paragraphs(text: str) -> list[tuple[int, str]]:
    """Running text: no headings, tables, lists and quotations."""
    found: list[tuple[int, str]] = []
    last = -1
    for number, line in _lines(text):
        if not line.strip() or re.match(r"\s*([#|>*+-]|\d+[.)])", line):
            last = -1
        elif last >= 0:
            found[last] = (found[last][0], f"{found[last][1]} {line.strip()}")
        else:
            found.append((number, line.strip()))
            last = len(found) - 1
    return found


def _anchor(title: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()))


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "new" and len(rest) >= 3:
            with open(rest[0], "x", encoding="utf-8") as file:
                file.write(new(rest[1], rest[2:]))
            print(rest[0])
            return 0
        texts = [Path(name).read_text(encoding="utf-8") for name in rest]
        if command == "status" and len(rest) == 1:
            print(status(texts[0]))
            return 0
        if command == "check" and len(rest) == 1:
            found = check(texts[0])
            print("\n".join(found) or "Nothing was found.")
            return 1 if found else 0
        if command == "compare" and len(rest) == 2:
            print(compare(*texts))
            return 0
    except (OSError, UnicodeDecodeError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
