"""Messages within an organisation: begin, check, and put them into the form of each channel.

    python comms.py kinds                        what there is, and for what
    python comms.py new KIND OUT.md              a text to fill in
    python comms.py check FILE.md                what is missing or too long for its kind
    python comms.py slack FILE.md OUT.txt        as Slack writes bold, lists and links
    python comms.py mail FILE.md OUT.eml         a mail in text and HTML, to be opened and sent

A text is Markdown with a head of lines ``key: value`` between two lines ``---``. What is still to
be filled in stands in braces: {who}. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from html import escape
from pathlib import Path

GAP = re.compile(r"\{[^{}\n]+\}")
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+|mailto:[^)\s]+)\)")
BOLD = re.compile(r"\*\*(.+?)\*\*")
ITEM = re.compile(r"\s*(?:[-*]|\d+[.)])\s+(.*)")
BLAME = re.compile(
    r"\b(fault of|careless(ly)?|should have known|stupid|blame[ds]?|to blame)\b", re.I
)
HYPE = re.compile(
    r"\b(thrilled|excited to (announce|share)|game[- ]chang\w+|synerg\w+|world[- ]class|"
    r"best[- ]in[- ]class|leverag\w+|deep dive|reach out|circle back)\b",
    re.I,
)
SUBJECT = 60
"""Characters of a subject: a telephone shows no more."""


@dataclass(frozen=True)
class Kind:
    """What one kind of message has."""

    purpose: str
    words: int
    """At most."""
    head: tuple[str, ...]
    sections: tuple[tuple[str, str], ...]
    """Headings, and what is written below each; in braces what is to be filled in."""


KINDS = {
    "update": Kind(
        "progress of a team or project, each week or month", 250, ("subject", "period"),
        (
            ("In short", "{green, yellow or red}: {one sentence: are we where we wanted to be?}"),
            ("Done", "- {result, with its number, and for whom it matters}"),
            ("Next", "- {what, who, by which date}"),
            ("Needed", "- {what from whom by when; or: nothing}"),
        ),
    ),
    "change": Kind(
        "something will be different for the readers", 350, ("subject", "from", "when"),
        (
            ("What changes", "From {date} {what will be different}."),
            ("What you do", "- {step, by when; or: nothing}"),
            ("Why", "{the reason, also where it is unpleasant}"),
            ("What stays", "{what readers may fear for, and need not}"),
            ("Questions", "{name and channel}, until {date}."),
        ),
    ),
    "incident": Kind(
        "something went wrong: while it lasts, and the report afterwards", 600,
        ("subject", "status", "time"),
        (
            ("What happened", "From {time, with zone} to {time} {who} could not {what}."),
            ("Effect", "{how many people, orders, minutes; what was not affected}"),
            ("Cause", "{known: …; supposed: …; not known yet}"),
            ("What was done", "- {time}: {what}"),
            ("What follows", "- {measure, who, by which date}"),
            ("Next message", "{date and time, also if there is nothing new}"),
        ),
    ),
    "decision": Kind(
        "who has decided what, and what follows", 300, ("subject", "decided-by", "date"),
        (
            ("Decided", "{one sentence}"),
            ("Why", "{two or three reasons, and what spoke against it}"),
            ("What follows", "- {who does what by when}"),
            ("To be looked at again", "{date or event; or: not planned}"),
        ),
    ),
    "questions": Kind(
        "what many people ask, with answers", 800, ("subject", "as-of"),
        (
            ("{a question, in the words of those who ask}?", "{the answer in its first sentence}"),
            ("What we do not know yet", "{what, and when we shall know it}"),
        ),
    ),
    "newsletter": Kind(
        "several things for many people, who read one or two", 500, ("subject", "period"),
        (
            ("This time", "- {each item in half a line, the most important first}"),
            ("{first item}", "{two or three sentences, with a link to more}"),
            ("Dates", "- {day, time, what, for whom}"),
            ("Thanks", "{who, for what exactly}"),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """A message as it is written: its head and its body in Markdown."""

    head: dict[str, str]
    body: str

    @property
    def headings(self) -> list[str]:
        return re.findall(r"^##\s+(.*?)\s*$", self.body, re.MULTILINE)

    def section(self, name: str) -> str:
        found = re.search(rf"^##\s+{re.escape(name)}\s*$(.*?)(?=^##\s|\Z)", self.body, re.M | re.S)
        return found[1].strip() if found else ""


def new(name: str) -> str:
    """A text of this kind to fill in. Raises ValueError."""
    kind = _kind(name)
    head = "".join(f"{key}: {{{key}}}\n" for key in kind.head)
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in kind.sections)
    return f"---\nkind: {name}\n{head}---\n{body}"


def read(text: str) -> Message:
    """A message. Raises ValueError where it has no head."""
    found = re.match(r"---\n(.*?)^---\n(.*)", text.replace("\r\n", "\n"), re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("it does not begin with a head between two lines ---")
    head = dict(re.findall(r"^([\w-]+):[ \t]*(.*?)[ \t]*$", found[1], re.MULTILINE))
    return Message(head, found[2].strip() + "\n")


def check(text: str) -> list[str]:
    """What is missing, too long or badly said, in one sentence each. Raises ValueError."""
    message = read(text)
    kind = _kind(message.head.get("kind", ""))
    found = [f"To be filled in: {gap}" for gap in dict.fromkeys(GAP.findall(text))]
    found += [f"The head has no {key}." for key in kind.head if not message.head.get(key)]
    subject = message.head.get("subject", "")
    if len(subject) > SUBJECT:
        found.append(f"The subject has {len(subject)} characters: {SUBJECT} at most.")
    for title, _ in kind.sections:
        if not GAP.search(title) and not message.section(title):
            found.append(f"Nothing stands below {title!r}.")
    words = len(re.findall(r"\w[\w'-]*", message.body))
    if words > kind.words:
        found.append(f"It has {words} words: {kind.words} at most. Link to the rest.")
    for title, tells in (
        ("Next", "who and when"),
        ("What you do", "by when"),
        ("What follows", "who and when"),
    ):
        for item in _items(message.section(title)):
            nothing = item.strip(" .").lower() in ("nothing", "none")
            if title in dict(kind.sections) and not nothing and not re.search(r"\d", item):
                found.append(f"{title}: {item[:60]!r} has no date: {tells}?")
    if message.head.get("kind") == "incident":
        found += [f"It blames: {word[0]!r}." for word in BLAME.finditer(message.body)]
    found += [f"It says nothing: {word[0]!r}." for word in HYPE.finditer(message.body)]
    if message.body.count("!") > 1:
        found.append(f"It has {message.body.count('!')} exclamation marks.")
    return found


def as_slack(text: str) -> str:
    """The message as Slack writes it: ``*bold*``, ``• items``, ``<address|words>``."""
    message, lines = read(text), []
    for line in [f"## {message.head.get('subject', '')}", "", *message.body.splitlines()]:
        heading, item = re.match(r"#+\s+(.*)", line), ITEM.match(line)
        words = heading[1] if heading else item[1] if item else line
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        words = LINK.sub(lambda m: f"<{m[2]}|{m[1].replace('|', '/')}>", words)
        words = BOLD.sub(r"\1" if heading else r"*\1*", words)
        lines.append(f"*{words}*" if heading else f"• {words}" if item else words)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def as_mail(text: str) -> EmailMessage:
    """The message as a mail, in plain text and HTML. Whoever sends it adds the addresses."""
    message = read(text)
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = message.head.get("subject", "")
    mail["X-Unsent"] = "1"  # programs for mail open it as a draft
    plain = LINK.sub(r"\1 <\2>", BOLD.sub(r"\1", re.sub(r"^##\s+", "", message.body, flags=re.M)))
    mail.set_content(plain)
    mail.add_alternative(_as_html(message), subtype="html")
    return mail


def _as_html(message: Message) -> str:
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", message.body):
        lines = [line for line in block.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):
            parts.append(f"<h2>{_inline(lines.pop(0).lstrip('#').strip())}</h2>")
        if lines and all(ITEM.match(line) for line in lines):
            items = [f"<li>{_inline(item)}</li>" for item in _items("\n".join(lines))]
            parts.append(f"<ul>{''.join(items)}</ul>")
        elif lines:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    subject = escape(message.head.get("subject", ""))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{subject}</title></head>"
        '<body style="font-family:sans-serif;max-width:40em;line-height:1.5">'
        f"{''.join(parts)}</body></html>"
    )


def _inline(text: str) -> str:
    escaped = BOLD.sub(r"<b>\1</b>", escape(text, quote=False))
    return LINK.sub(lambda m: f'<a href="{m[2].replace(chr(34), "%22")}">{m[1]}</a>', escaped)


def _items(text: str) -> list[str]:
    return [found[1] for found in map(ITEM.match, text.splitlines()) if found]


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"{name!r} is no kind: there are {', '.join(KINDS)}")
    return KINDS[name]


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "kinds" and not rest:
            for name, kind in KINDS.items():
                print(f"{name}: {kind.purpose}; at most {kind.words} words")
            return 0
        if command == "new" and len(rest) == 2:
            with open(rest[1], "x", encoding="utf-8") as file:
                file.write(new(rest[0]))
            print(rest[1])
            return 0
        if command == "check" and len(rest) == 1:
            found = check(Path(rest[0]).read_text(encoding="utf-8"))
            print("\n".join(found) or "Nothing was found.")
            return 1 if found else 0
        if command in ("slack", "mail") and len(rest) == 2:
            text = Path(rest[0]).read_text(encoding="utf-8")
            made = as_slack(text).encode() if command == "slack" else as_mail(text).as_bytes()
            Path(rest[1]).write_bytes(made)
            print(rest[1])
            return 0
    except (OSError, ValueError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
