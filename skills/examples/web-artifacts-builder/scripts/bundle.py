"""Bundle a page in React, of any number of files, into one file. Nothing is fetched.

    python bundle.py new FOLDER              a small page to begin with
    python bundle.py build FOLDER OUT.html   a page that stands alone, with React in it
    python bundle.py build FOLDER OUT.jsx    for JupyterLab's outputs panel, which brings React
    python bundle.py check OUT.html          whether a page is whole, and loads nothing

The page is the default export of App.tsx, App.jsx or App.js in the folder. esbuild bundles it: a
program that must be there, and for .html React, too. Needs else nothing but Python's standard
library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from html.parser import HTMLParser
from pathlib import Path

ENTRIES = ("App.tsx", "App.jsx", "App.js")
PLACES = ("/usr/local/lib/node_modules", "/usr/lib/node_modules", "/usr/share/nodejs")
"""Where npm and Debian install packages for all users."""
PANEL = ("react", "react-dom", "recharts", "d3", "lodash", "lucide-react")
"""Packages that the outputs panel gives to a .jsx."""
LOADERS = {
    "dataurl": ("png", "jpg", "jpeg", "gif", "webp", "avif", "svg", "woff", "woff2", "ttf"),
    "text": ("csv", "tsv", "txt", "md"),
}
PRAGMA, PARTS = "PageReact", {"factory": "createElement", "fragment": "Fragment"}
"""By what a .jsx makes its elements, whatever its files import of React."""
SECONDS = 120
MISSING = """\
{what} not in this sandbox, so nothing can be bundled. The user gives it one of these, on the host:
  sudo apt-get install esbuild node-react node-react-dom
      (Debian; then a new kernel, if it runs in the image "host")
  sudo npm install --global esbuild react react-dom
      (the same, where npm's global folder is /usr/lib or /usr/local/lib)
  gvisor-kernel image build polyglot; gvisor-kernel install --image polyglot
      (an image that has them)"""
MAIN = """\
import {{ createRoot }} from "react-dom/client";
import App from {entry};
createRoot(document.getElementById("root")).render(<App />);
"""
PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<div id="root"></div>
<noscript>This page needs JavaScript.</noscript>
<script>
{script}
</script>
</body>
</html>
"""
FILES = {
    "App.tsx": """\
import { useState } from "react";
import { Chart } from "./Chart";
import data from "./data.json";
import "./style.css";

export default function App() {
  const [chosen, choose] = useState(data[0].name);
  return (
    <main>
      <h1>Sales by month</h1>
      <Chart rows={data} chosen={chosen} choose={choose} />
      <p aria-live="polite">
        {chosen}: {data.find((row) => row.name === chosen)?.value.toLocaleString("en")} EUR
      </p>
    </main>
  );
}
""",
    "Chart.tsx": """\
export interface Row {
  name: string;
  value: number;
}

interface Props {
  rows: Row[];
  chosen: string;
  choose: (name: string) => void;
}

export function Chart({ rows, chosen, choose }: Props) {
  const most = Math.max(...rows.map((row) => row.value));
  return (
    <ul className="chart">
      {rows.map((row) => (
        <li key={row.name}>
          <button aria-pressed={row.name === chosen} onClick={() => choose(row.name)}>
            {row.name}
          </button>
          <span style={{ width: `${(70 * row.value) / most}%` }} />
        </li>
      ))}
    </ul>
  );
}
""",
    "data.json": """\
[
  { "name": "May", "value": 1250 },
  { "name": "June", "value": 820 },
  { "name": "August", "value": 310 }
]
""",
    "style.css": """\
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
.chart { list-style: none; padding: 0; }
.chart li { display: flex; align-items: center; gap: 0.5rem; margin: 0.25rem 0; }
.chart button { width: 6rem; font: inherit; text-align: left; }
.chart button[aria-pressed="true"] { font-weight: bold; }
.chart span { height: 1.25rem; background: #1d6f8a; }
""",
}


class BundleError(Exception):
    """The page cannot be bundled; the text says why, and what to do."""


def find_esbuild() -> str:
    """The program. Raises BundleError with what installs it."""
    program = shutil.which("esbuild")
    if program is None:
        raise BundleError(MISSING.format(what="esbuild is"))
    return program


def find_packages(folder: Path) -> list[str]:
    """Folders of packages, the nearest first: the project's, NODE_PATH, those of all users."""
    named = os.environ.get("NODE_PATH", "").split(os.pathsep)
    places = [str(folder / "node_modules"), *named, *PLACES]
    return [place for place in dict.fromkeys(places) if place and os.path.isdir(place)]


def find_entry(folder: Path) -> Path:
    """The file of the page. Raises BundleError."""
    for name in ENTRIES:
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f"{folder} has none of {', '.join(ENTRIES)}: one of them is the page")


def bundle(folder: str | Path, output: str | Path) -> Path:
    """Write the page as one file, .html or .jsx. Raises BundleError, OSError."""
    folder, output = Path(folder).resolve(), Path(output)
    if output.suffix not in (".html", ".jsx"):
        raise BundleError(f"{output.name} is neither .html nor .jsx")
    whole = output.suffix == ".html"
    entry = find_entry(folder)
    program = find_esbuild()
    packages = find_packages(folder)
    if whole and not any(os.path.isdir(os.path.join(p, "react-dom")) for p in packages):
        raise BundleError(MISSING.format(what="React is"))
    options = ["--bundle", "--legal-comments=eof", "--log-level=warning"]
    options += [f"--loader:.{end}={kind}" for kind, ends in LOADERS.items() for end in ends]
    if whole:
        options += ["--minify", "--format=iife", '--define:process.env.NODE_ENV="production"']
        options += ["--jsx=automatic"]
    else:
        options += ["--format=esm", *(f"--external:{name}" for name in PANEL)]
        options += [f"--jsx-{part}={PRAGMA}.{name}" for part, name in PARTS.items()]
    with tempfile.TemporaryDirectory() as made:
        script = Path(made, "page.js")
        command = [program, *options, f"--outfile={script}"]
        code = MAIN.format(entry=json.dumps(str(entry)))
        command += ["--loader=tsx"] if whole else [str(entry)]
        done = subprocess.run(
            command, input=code if whole else None, cwd=folder, capture_output=True, text=True,
            timeout=SECONDS, env={**os.environ, "NODE_PATH": os.pathsep.join(packages)},
        )  # fmt: skip
        if done.returncode:
            raise BundleError(_explain(done.stderr))
        if done.stderr.strip():
            print(done.stderr.strip(), file=sys.stderr)
        text = script.read_text(encoding="utf-8")
        sheet = script.with_suffix(".css")
        style = sheet.read_text(encoding="utf-8") if sheet.exists() else ""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_as_page(folder, style, text) if whole else _as_part(style, text), "utf-8")
    return output


def _as_page(folder: Path, style: str, script: str) -> str:
    """HTML ends a style and a script at their end tag, also in the middle of a text."""
    about: dict[str, str] = {}
    if (folder / "page.json").is_file():
        about.update(json.loads((folder / "page.json").read_text(encoding="utf-8")))
    return PAGE.format(
        language=escape(str(about.get("language", "en"))),
        title=escape(str(about.get("title", folder.name))),
        style=re.sub(r"</(?=style)", r"<\\/", style, flags=re.IGNORECASE),
        script=re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace(
            "<!--", "\\x3c!--"
        ),
    )


def _as_part(style: str, script: str) -> str:
    head = f'import * as {PRAGMA} from "react";\n'
    if style:
        head += (
            "const pageStyle = document.createElement('style');\n"
            f"pageStyle.textContent = {json.dumps(style)};\n"
            "document.head.append(pageStyle);\n"
        )
    return head + script


def _explain(text: str) -> str:
    """What esbuild says, with what to do about a package that is not there."""
    names = sorted(set(re.findall(r'Could not resolve "([^"./][^"]*)"', text)))
    if names:
        text += (
            f"Not in this sandbox: {', '.join(names)}. Write what you need of it yourself, build a"
            f" .jsx if it is one of {', '.join(PANEL)}, or let the user install it on the host:"
            f" sudo npm install --global {' '.join(names)}\n"
        )
    return text.strip()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data") and not (value or "").startswith(
                ("data:", "#")
            ):
                self.loads.append(f"<{tag} {name}> {value}")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.script += data
        elif self.tags and self.tags[-1] == "style":
            found = re.findall(r"url\(\s*['\"]?(?!data:|#)([^)'\"]+)|@import\s+([^;]+)", data)
            self.loads += [f"style {one or other}" for one, other in found]


def check(text: str) -> list[str]:
    """What is wrong with a page that is to stand alone, in one sentence each."""
    page = _Page()
    page.feed(text)
    page.close()
    found = [f"It loads {what}." for what in page.loads]
    if page.tags.count("script") != 1 or not page.script.strip():
        found.append(f"It has {page.tags.count('script')} scripts, not one.")
    for call in sorted(set(re.findall(r"\b(fetch|XMLHttpRequest|WebSocket)\s*\(", page.script))):
        found.append(f"Its script calls {call}: a page of the outputs has no network of its own.")
    for word in ("localStorage", "sessionStorage", "indexedDB"):
        if re.search(rf"\b{word}\b", page.script):
            found.append(f"Its script uses {word}, which a page of the outputs does not have.")
    return found


def make(folder: str | Path) -> Path:
    """Write a small page to begin with. Raises FileExistsError where one is."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**FILES, "page.json": json.dumps({"title": "Sales"}) + "\n"}.items():
        with open(folder / name, "x", encoding="utf-8") as file:
            file.write(text)
    return folder


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "new" and len(rest) == 1:
            print(make(rest[0]))
            return 0
        if command == "build" and len(rest) == 2:
            path = bundle(*rest)
            print(f"{path}: {path.stat().st_size // 1024} KiB")
            return 0
        if command == "check" and len(rest) == 1:
            found = check(Path(rest[0]).read_text(encoding="utf-8"))
            print("\n".join(found) or "Nothing was found.")
            return 1 if found else 0
    except (BundleError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
