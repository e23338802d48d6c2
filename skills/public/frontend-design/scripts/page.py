"""Check a web page that is to stand alone, and put the files that it names into it.

    python page.py check PAGE.html            what it fetches, and what readers would miss
    python page.py inline PAGE.html OUT.html  with its pictures, styles and scripts inside

Needs nothing but Python's standard library.
"""

from __future__ import annotations

import base64
import mimetypes
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Match

LOADING = {
    "img": ("src", "srcset"), "script": ("src",), "link": ("href",), "iframe": ("src",),
    "audio": ("src",), "video": ("src", "poster"), "source": ("src", "srcset"), "embed": ("src",),
    "object": ("data",), "track": ("src",), "input": ("src",), "form": ("action",),
    "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
}  # fmt: skip
"""Attributes by which a page makes a browser fetch something, or send it."""
CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)['"]?\s*\)|@import\s+['"]([^'"]+)['"]""")
FETCHING = re.compile(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b")


class _Page(HTMLParser):
    """What of a page the checks ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: list[tuple[str, dict[str, str]]] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self._title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self._open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        for name in LOADING.get(tag, ()):
            if given.get(name) and not given[name].startswith(("data:", "#")):
                self.fetched.append(f"<{tag} {name}> {given[name]}")
        self._read_style(given.get("style", ""))
        if tag == "html" and not given.get("lang"):
            self.found.append("<html> does not say its language: lang.")
        if tag == "img" and "alt" not in given:
            self.found.append(f"A picture has no alt: {given.get('src', '')[:60]}")
        if tag == "meta" and given.get("name") == "viewport":
            self.tags.add("viewport")
        if tag == "label":
            self.labelled.add(given.get("for", ""))
        is_field = tag in ("input", "select", "textarea") and given.get("type") != "hidden"
        if is_field and given.get("type") != "submit" and "label" not in self._open:
            self.fields.append((tag, given))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in LOADING.keys() & {"img", "link", "input", "source", "embed", "track"} | {"meta"}:
            self._open.pop()  # these have no end

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        place = self._open[-1] if self._open else ""
        if place == "style":
            self._read_style(data)
        elif place == "script" and FETCHING.search(data):
            self.fetched.append(f"<script> uses {FETCHING.search(data)[1]}")  # type: ignore[index]
        elif place == "title":
            self._title += data

    def _read_style(self, text: str) -> None:
        for found in CSS_URL.finditer(text):
            address = found[1] or found[2]
            if not address.startswith(("data:", "#")):
                self.fetched.append(f"style {address}")

    def summary(self) -> list[str]:
        found = [f"It fetches: {what}" for what in self.fetched] + self.found
        if not self._title.strip():
            found.append("It has no <title>.")
        if "viewport" not in self.tags:
            found.append('It has no <meta name="viewport">: telephones show it tiny.')
        if "main" not in self.tags:
            found.append("It has no <main>.")
        if self.headings.count(1) != 1:
            found.append(f"It has {self.headings.count(1)} headings <h1>, not one.")
        for before, after in zip(self.headings, self.headings[1:]):
            if after > before + 1:
                found.append(f"A heading <h{after}> follows <h{before}>.")
        for name in sorted({name for name in self.ids if self.ids.count(name) > 1}):
            found.append(f"The id {name!r} is there twice.")
        for tag, given in self.fields:
            if given.get("id") not in self.labelled and "aria-label" not in given:
                found.append(f"A field has no label: <{tag} name={given.get('name', '')!r}>.")
        return found


def check(text: str) -> list[str]:
    """What is wrong with a page, in one sentence each."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.summary()


def inline(path: Path) -> str:
    """The page with what it names by relative paths put into it. Raises OSError.

    Pictures become data URIs; ``<link rel="stylesheet">`` and ``<script src>`` the text itself.
    """
    text = path.read_text(encoding="utf-8")

    def is_remote(address: str) -> bool:
        return bool(re.match(r"[a-z]+:|//|#", address, re.IGNORECASE))

    def as_data(address: str, base: Path) -> str:
        kind = mimetypes.guess_type(address)[0] or "application/octet-stream"
        packed = base64.b64encode((base / address).read_bytes()).decode()
        return f"data:{kind};base64,{packed}"

    def put_style(found: Match[str]) -> str:
        href = re.search(r"""href=["']([^"']+)["']""", found[0])
        if href is None or "stylesheet" not in found[0] or is_remote(href[1]):
            return found[0]
        file = path.parent / href[1]
        return f"<style>\n{put_urls(file.read_text(encoding='utf-8'), file.parent)}\n</style>"

    def put_script(found: Match[str]) -> str:
        if is_remote(found[2]):
            return found[0]
        code = (
            (path.parent / found[2]).read_text(encoding="utf-8").replace("</script", "<\\/script")
        )
        return f"<script{found[1]}{found[3]}>\n{code}\n</script>"

    def put_source(found: Match[str]) -> str:
        return found[0] if is_remote(found[2]) else found[1] + as_data(found[2], path.parent) + '"'

    def put_urls(style: str, base: Path) -> str:
        def put(found: Match[str]) -> str:
            if not found[1] or is_remote(found[1]):
                return found[0]
            return f'url("{as_data(found[1], base)}")'

        return CSS_URL.sub(put, style)

    text = re.sub(r"(<(?:img|source|video|audio)\b[^>]*?\ssrc=\")([^\"]+)\"", put_source, text)
    text = re.sub(
        r"(<style[^>]*>)(.*?)(?=</style>)",
        lambda found: found[1] + put_urls(found[2], path.parent), text, flags=re.DOTALL,
    )  # fmt: skip
    text = re.sub(r"<link\b[^>]*>", put_style, text)
    return re.sub(r"<script\b([^>]*?)\ssrc=\"([^\"]+)\"([^>]*)>\s*</script>", put_script, text)


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "check" and len(rest) == 1:
            found = check(Path(rest[0]).read_text(encoding="utf-8"))
            print("\n".join(found) or "Nothing was found.")
            return 1 if found else 0
        if command == "inline" and len(rest) == 2:
            Path(rest[1]).write_text(inline(Path(rest[0])), encoding="utf-8")
            return 0
    except OSError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
