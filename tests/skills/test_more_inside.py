"""The examples of the skills that make pages, pictures and messages, run in a real sandbox.

What they made is then opened: GIFs by Pillow, pages by a parser, mails by Python's, colours by a
formula that is written here again.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient
from PIL import Image

from ..jupyter.helpers import SANDBOXED, running_kernel
from ..patience import scale_seconds
from ..sweeps import needs_all
from .inside import follow, run, shell

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the kernel under test has no sandbox")

BUNDLE = "/mnt/skills/examples/web-artifacts-builder/scripts/bundle.py"
REACT = Path("/usr/share/nodejs/react-dom")
needs_bundler = pytest.mark.skipif(
    shutil.which("esbuild") is None or not REACT.is_dir(),
    reason="no esbuild or React: apt-get install esbuild node-react node-react-dom",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("skills")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[BlockingKernelClient]:
    with running_kernel(start={"cwd": str(folder)}) as (_, client):
        yield client


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one) + 0.05, luminance(other) + 0.05), reverse=True)
    return high / low


def measure_gif(path: Path) -> dict[str, object]:
    """Open a GIF and decode each frame."""
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        colours, milliseconds = set[tuple[int, ...]](), 0
        for n in range(picture.n_frames):
            picture.seek(n)
            milliseconds += picture.info["duration"]
            pixels = picture.convert("RGBA")
            colours |= {
                colour[:3] for _, colour in pixels.getcolors(pixels.width * pixels.height) or ()
                if colour[3]
            }  # fmt: skip
        return {
            "size": picture.size, "frames": picture.n_frames, "colours": len(colours),
            "seconds": milliseconds / 1000, "loop": picture.info["loop"],
            "transparent": pixels.getpixel((0, 0))[3] == 0,
        }  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def test_the_sandbox_is_told_as_it_is(client: BlockingKernelClient) -> None:
    text, _ = follow(client, "public/sandbox-self-knowledge")
    assert "Memory: 4.0 GiB" in text
    assert "uid 1000, no capabilities" in text
    assert "/mnt/user-data/outputs: write, kept" in text
    assert "/mnt/user-data/uploads: read only" in text
    assert "/workspace: write, not kept, 2.0 GiB free" in text
    facts = json.loads(run(client, "import json; print(json.dumps(describe()))"))
    assert facts["memory"]["total"] == facts["memory"]["limit"] == 4 * 2**30
    assert 0 < facts["memory"]["free"] < 4 * 2**30
    assert facts["processes"] == 512
    assert facts["network"]["interfaces"] == ["lo"]
    assert facts["network"]["has_routes"] is False
    assert facts["network"]["remedy"] in text
    assert {"numpy", "pandas", "matplotlib"} <= set(facts["modules"])
    told = shell(client, "! python /mnt/skills/public/sandbox-self-knowledge/scripts/sandbox.py"
                         " reach pypi.org example.org:80")  # fmt: skip
    assert told.count("no: 403 This kernel has no network; ") == 2
    # What its texts say of this sandbox, asked for.
    said = shell(client, """
for place in /usr /mnt /mnt/skills/public /mnt/user-data/uploads; do
  touch $place/planted 2>&1 || true
done
ls /sys/fs/cgroup | wc -l
python - <<'END'
import socket
for ask in (lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
            lambda: socket.getaddrinfo("pypi.org", 443), lambda: open("/container_info.json", "a")):
    try:
        print("allowed", ask())
    except OSError as error:
        print(type(error).__name__, error)
END
""")  # fmt: skip
    assert len(re.findall("Permission denied|Read-only file system", said)) == 5, said
    assert "allowed" not in said
    assert "PermissionError [Errno 1] Operation not permitted" in said


def test_routes_are_told_by_their_names(client: BlockingKernelClient) -> None:
    """As ``egress/environment.py`` announces them. A route to hosts is in no variable."""
    printed = run(client, """
from sandbox import describe_network
door = "http://127.0.0.1:3128"
for environment in ({"HTTP_PROXY": door, "GVISOR_KERNEL_NO_NETWORK": "",
                     "GVISOR_EGRESS_MY_API": door + "/my-api",
                     "PIP_INDEX_URL": door + "/packages/pypi/simple/"}, {}):
    told = describe_network(environment)
    print(told["has_routes"], told["routes"], told["packages"], told["remedy"])
""")  # fmt: skip
    assert printed == (
        "True {'my-api': 'http://127.0.0.1:3128/my-api'} True None\nFalse {} False None\n"
    )


def test_gifs_are_within_slacks_limits(client: BlockingKernelClient, folder: Path) -> None:
    *_, checked = follow(client, "examples/slack-gif-creator")
    assert checked.count("Nothing was found") == 3
    for name, kind in (("ball", "emoji"), ("logo-spin", "emoji"), ("logo", "message")):
        path = folder / f"outputs/{name}.gif"
        made = measure_gif(path)
        assert made["loop"] == 0, name
        assert 2 <= int(str(made["colours"])) <= 255, made
        if kind == "emoji":
            assert path.stat().st_size < 128_000
            assert made["size"] == (128, 128)
            assert (made["frames"], made["seconds"], made["transparent"]) == (20, 1.0, True)
        else:
            assert (made["size"], made["frames"]) == ((256, 256), 1)
    reported = run(client, """
from PIL import Image
import random
from gif import Animation, check, fit
noise = random.Random(1)
frames = [Image.frombytes("RGB", (32, 20), noise.randbytes(1920)) for _ in range(55)]
frames[0].save("/tmp/noise.gif", save_all=True, append_images=frames[1:], duration=40)
print(*check("/tmp/noise.gif", "emoji"), sep="\\n")
print(fit("/tmp/noise.gif", "/mnt/user-data/outputs/noise.gif", "emoji")["bytes"] < 128_000)
print(check("/mnt/user-data/outputs/noise.gif", "emoji"))
for wrong in (lambda: Animation("emoji", 3, 20), lambda: Animation("emoji", size=(129, 9)),
              lambda: Animation("sticker"), lambda: Animation().save("/tmp/none.gif")):
    try:
        wrong()
    except ValueError as error:
        print(error)
""")  # fmt: skip
    for words in (
        "It is not square.", "55 frames: 50 at most", "colours: 256 at most", "It stops after",
        "True\n[]\n", "60 frames: emoji may have 50", "129 x 9 pixels", "'sticker' is no kind",
        "there are no frames yet",
    ):  # fmt: skip
        assert words in reported
    noise = measure_gif(folder / "outputs/noise.gif")
    assert noise["size"] == (128, 128)
    assert int(str(noise["frames"])) <= 50
    assert noise["seconds"] == pytest.approx(55 * 0.04)


def test_themes_can_be_read(client: BlockingKernelClient, folder: Path) -> None:
    follow(client, "examples/theme-factory")
    listed = shell(client, "python /mnt/skills/examples/theme-factory/scripts/themes.py list")
    made = [json.loads(line) for line in re.findall(r"\w+: (\{.*\})", listed)]
    assert len(made) == 10
    css = (folder / "outputs/acme.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        series = [colours[f"series-{n}"] for n in range(1, 6)]
        made.append({**{k.replace("-", "_"): v for k, v in colours.items()}, "series": series})
    assert len(made) == 12
    for colours in made:
        for one, other in (
            ("ink", "ground"), ("ink", "surface"), ("quiet", "ground"), ("quiet", "surface"),
            ("accent", "ground"), ("on_accent", "accent"),
        ):  # fmt: skip
            assert contrast(colours[one], colours[other]) >= 4.5, (colours, one, other)
        assert len(set(colours["series"])) == 5
        for colour in colours["series"]:
            assert contrast(colour, colours["ground"]) >= 3, (colours, colour)
    for name in ("sales.png", "harbour.png"):
        with Image.open(folder / "outputs" / name) as picture:
            ground = "#{:02x}{:02x}{:02x}".format(*picture.convert("RGB").getpixel((1, 1)))
        assert ground == (made[3]["ground"] if name == "harbour.png" else made[10]["ground"])
    sheet = Page((folder / "outputs/harbour.html").read_text())
    assert [tag for tag, _ in sheet.tags].count("rect") == 10
    inside = run(client, """
from zipfile import ZipFile
import themes
print(ZipFile("/mnt/user-data/outputs/harbour.pptx").read("ppt/theme/theme1.xml").decode())
bad = themes.dump(themes.THEMES["ledger"]).replace("#1c1b19", "#bbbbbb")
print(*themes.check(themes.load(bad)), sep="\\n")
for wrong in ('{"name": 1}', bad.replace("#bbbbbb", "red"), bad.replace("Georgia", "a;} b")):
    try:
        themes.load(wrong)
    except ValueError as error:
        print("refused:", error)
print(themes.contrast("#767676", "#ffffff"))
""")  # fmt: skip
    assert 'accent1><a:srgbClr val="00607A"/>' in inside
    assert '<a:latin typeface="Helvetica Neue"' in inside
    assert inside.count("light: ink #bbbbbb on") == 2
    assert inside.count("refused:") == 3
    assert "4.54" in inside.splitlines()[-1]


def test_bundling_is_refused_with_what_installs_it(client: BlockingKernelClient) -> None:
    told = shell(client, f"""
rm -rf /tmp/refused; python {BUNDLE} new /tmp/refused
! PATH=/usr/sbin "$(command -v python)" {BUNDLE} build /tmp/refused /tmp/none.html 2>&1
! python {BUNDLE} build /tmp/refused /tmp/none.txt 2>&1
! python {BUNDLE} new /tmp/refused 2>&1; test ! -e /tmp/none.html
""")  # fmt: skip
    assert "esbuild is not in this sandbox" in told
    assert "sudo apt-get install esbuild node-react node-react-dom" in told
    assert "none.txt is neither .html nor .jsx" in told
    assert "File exists" in told


@needs_bundler
def test_a_page_of_several_files_becomes_one(client: BlockingKernelClient, folder: Path) -> None:
    *_, built = follow(client, "examples/web-artifacts-builder")
    assert "Nothing was found." in built
    page = Page((folder / "outputs/sales.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("style") == 1
    assert not [given for _, given in page.tags if {"src", "href"} & given.keys()]
    assert "May" in page.texts["script"], "its data is in it"
    assert ".chart li" in page.texts["style"]
    assert page.texts["title"].strip() == "Sales"
    part = (folder / "outputs/sales.jsx").read_text()
    assert set(re.findall(r'from "([^"]+)"', part)) == {"react"}
    assert re.search(r"export \{\s*App as default\s*\}", part)
    told = shell(client, f"""
cd /tmp; cp -r sales odd
printf 'export const odd = "</script><!-- <script>";' > odd/odd.ts
sed -i '1i import {{ odd }} from "./odd";' odd/App.tsx
sed -i 's|</h1>| {{odd}}</h1>|' odd/App.tsx
python {BUNDLE} build odd /mnt/user-data/outputs/odd.html
sed -i '1i import x from "not-here"; console.log(x);' odd/App.tsx
! python {BUNDLE} build odd /tmp/none.html 2>&1
""")  # fmt: skip
    assert "Not in this sandbox: not-here." in told
    odd = Page((folder / "outputs/odd.html").read_text())
    assert [tag for tag, _ in odd.tags].count("script") == 1


@needs_all
@needs_bundler
def test_a_bundled_page_runs_in_a_browser(folder: Path, tmp_path: Path) -> None:
    if not (folder / "outputs/odd.html").exists() or not shutil.which("chromium"):
        pytest.skip("no Chromium, or the test that bundles the page did not run")
    command = ["chromium", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}"]
    command += ["--dump-dom", str(folder / "outputs/odd.html")]
    # Chromium leaves files in HOME and XDG_RUNTIME_DIR.
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=scale_seconds(60), env=environment
    )
    assert "Sales by month &lt;/script&gt;&lt;!-- &lt;script&gt;</h1>" in done.stdout
    assert '<p aria-live="polite">May: 1,250 EUR</p>' in done.stdout


def test_a_document_is_written_together(client: BlockingKernelClient) -> None:
    made, changed, checked = follow(client, "examples/doc-coauthoring")
    assert re.search(r"0 +1 +Why now", made)
    assert "changed: Why now (0 to 13 words)" in changed
    assert "open: What it costs: what must a reader know" in checked
    found = run(client, '''
import sys
sys.path.insert(0, "/mnt/skills/examples/doc-coauthoring/scripts")
from draft import check, compare, status
text = """# Plan

The SLA (service level) holds. RPO is short. As discussed, we do it soon. [? who?]

### Deep

## Empty
## Empty

`RTO` and [there](#deep), [nowhere](#lost). """ + "word " * 40 + """.

```
# TODO in code is no heading
```
"""
print(*check(text), sep="\\n")
print(compare(text, text.replace("holds", "ends").replace("### Deep", "## New")))
print(compare(text, text))
''')  # fmt: skip
    for words in (
        "line 3: RPO is not explained", "'As discussed': a reader was not there", "'soon' says too",
        "line 3: open: who?", "'Deep': a level is left out", "Two headings are 'empty'",
        "line 7, 'Empty': nothing stands below", "#lost, which is no heading", "a sentence of",
        "gone: Deep", "new: New", "  - holds.\n  + ends.", "Nothing changed.",
    ):  # fmt: skip
        assert words in found, found
    assert "SLA" not in found
    assert "RTO" not in found
    assert "TODO" not in found


def test_messages_are_checked_and_written_for_each_channel(
    client: BlockingKernelClient, folder: Path
) -> None:
    kinds, _, checked = follow(client, "examples/internal-comms")
    assert len(kinds.splitlines()) >= 6
    assert "Nothing was found." in checked
    slack = (folder / "outputs/move.txt").read_text()
    assert slack.startswith("*The build servers move on 3 May*\n\n*What changes*")
    assert "From *3 May, 18:00 UTC* builds" in slack
    assert "• From 4 May: use the <https://build.example.org|new address>." in slack
    mail = email.message_from_bytes(
        (folder / "outputs/move.eml").read_bytes(), policy=email.policy.default
    )
    assert mail["Subject"] == "The build servers move on 3 May"
    plain, rich = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert "new address <https://build.example.org>" in plain.get_content()
    page = Page(rich.get_content())
    assert ("a", {"href": "https://build.example.org"}) in page.tags
    assert [tag for tag, _ in page.tags].count("h2") == 5
    assert [tag for tag, _ in page.tags].count("li") == 2
    found = run(client, """
import sys
sys.path.insert(0, "/mnt/skills/examples/internal-comms/scripts")
import comms
for kind in comms.KINDS:
    assert comms.check(comms.new(kind)), kind
incident = comms.new("incident").replace("{subject}", "x" * 61)
incident = incident.replace("- {measure, who, by which date}", "- Bob is careless! We leverage!")
print(*comms.check(incident), sep="\\n")
hostile = "---\\nkind: update\\nsubject: <b>\\n---\\n## In short\\n\\n<script>[a](https://x/\\"o)<!here>"
print(comms.as_mail(hostile).get_body(("html",)).get_content(), comms.as_slack(hostile))
""")  # fmt: skip
    for words in (
        "The subject has 61 characters", "It blames: 'careless'", "It says nothing: 'leverage'",
        "has no date: who and when?", "To be filled in: {status}", "&lt;script&gt;",
    ):  # fmt: skip
        assert words in found, found
    assert "<script>" not in found
    assert "<!here>" not in found
