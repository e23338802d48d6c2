"""Palettes and fonts for slides, pages and plots, with contrast checked by WCAG 2's formula.

    python themes.py list                      the themes, with their colours
    python themes.py css NAME [OUT.css]        variables for a page, light and dark
    python themes.py make NAME COLOUR OUT.json  a theme from one colour, as of a brand
    python themes.py check NAME...             each pair of colours that must be told apart
    python themes.py sheet NAME OUT.html       a page that shows it

NAME is one of the list, or a file that ``make`` wrote.

    from themes import THEMES, contrast, find_theme
    contrast("#767676", "#ffffff")             # 4.54

Needs nothing but Python's standard library.
"""

from __future__ import annotations

import colorsys
import html
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TEXT, GRAPHIC = 4.5, 3.0
"""The contrast that WCAG 2 asks for at level AA: of text (1.4.3), of large text and of what a
picture is made of (1.4.3, 1.4.11)."""
MODES = ("light", "dark")
SERIES = 5


@dataclass(frozen=True)
class Colours:
    """One mode of a theme; each a colour as #rrggbb."""

    ground: str
    """Behind everything."""
    surface: str
    """Behind a part: a table's header, a card."""
    ink: str
    """Text."""
    quiet: str
    """Text that matters less: captions, axes."""
    line: str
    """Separators and grids: decoration, which nobody needs to see."""
    accent: str
    """What is to be seen first, and links."""
    on_accent: str
    """Text on the accent."""
    series: tuple[str, ...]
    """Of data, in this order."""


@dataclass(frozen=True)
class Theme:
    """Colours for two modes, and lists of fonts of which the first that is there is taken."""

    name: str
    character: str
    """When it fits, in some words."""
    heading: tuple[str, ...]
    body: tuple[str, ...]
    light: Colours
    dark: Colours


SANS = ("Helvetica Neue", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans", "sans-serif")
HUMAN = ("Gill Sans", "Calibri", "Carlito", "Noto Sans", "DejaVu Sans", "sans-serif")
SERIF = ("Georgia", "Cambria", "Noto Serif", "Liberation Serif", "DejaVu Serif", "serif")
MONO = ("Consolas", "Menlo", "Liberation Mono", "DejaVu Sans Mono", "monospace")


def luminance(colour: str) -> float:
    """Relative luminance, from 0 (black) to 1 (white), as WCAG 2 defines it."""
    parts = []
    for value in _channels(colour):
        parts.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21. The order does not matter."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def adjust(colour: str, ground: str, least: float) -> str:
    """The colour, made darker or lighter until it has this contrast on ``ground``.

    Its hue stays. Raises ValueError if neither black nor white has it.
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(*_channels(colour))
    darker = contrast("#000000", ground) >= contrast("#ffffff", ground)
    end = 0.0 if darker else 1.0
    for step in range(101):
        tried = _hex(
            colorsys.hls_to_rgb(hue, lightness + (end - lightness) * step / 100, saturation)
        )
        if contrast(tried, ground) >= least:
            return tried
    raise ValueError(f"nothing has a contrast of {least} on {ground}")


def check(theme: Theme) -> list[str]:
    """Each pair of colours that cannot be told apart well enough, in one sentence."""
    found = []
    for mode in MODES:
        colours: Colours = getattr(theme, mode)
        pairs = [
            ("ink", colours.ink, "ground", colours.ground, TEXT),
            ("ink", colours.ink, "surface", colours.surface, TEXT),
            ("quiet", colours.quiet, "ground", colours.ground, TEXT),
            ("quiet", colours.quiet, "surface", colours.surface, TEXT),
            ("accent", colours.accent, "ground", colours.ground, TEXT),
            ("on_accent", colours.on_accent, "accent", colours.accent, TEXT),
        ]
        for n, colour in enumerate(colours.series, 1):
            pairs.append((f"series {n}", colour, "ground", colours.ground, GRAPHIC))
        for name, colour, under, ground, least in pairs:
            has = contrast(colour, ground)
            if has < least:
                found.append(
                    f"{theme.name}, {mode}: {name} {colour} on {under} {ground} has a contrast of "
                    f"{has:.2f}: {least} is the least."
                )
        if len(set(colours.series)) < len(colours.series):
            found.append(f"{theme.name}, {mode}: a colour is there twice among the series.")
    return found


def make_theme(name: str, colour: str, character: str = "made from one colour") -> Theme:
    """A theme around one colour, such as a brand's. What cannot be read is made darker or lighter.

    Raises ValueError for something that is no colour.
    """
    hue, _, saturation = colorsys.rgb_to_hls(*_channels(colour))

    def tint(lightness: float, part: float) -> str:
        return _hex(colorsys.hls_to_rgb(hue, lightness, saturation * part))

    def series(ground: str) -> tuple[str, ...]:
        found = [adjust(colour, ground, GRAPHIC)]
        for n in range(1, SERIES):
            # Neighbours differ in lightness as well as in hue, so that a grey print shows them.
            turned = colorsys.hls_to_rgb(
                (hue + n / SERIES) % 1, (0.45, 0.3)[n % 2], max(saturation * 0.85, 0.35)
            )
            found.append(adjust(_hex(turned), ground, GRAPHIC + 2 * (n % 2)))
        return tuple(found)

    modes = []
    for ground, surface, ink, quiet, line in (
        (tint(0.99, 0.5), tint(0.95, 0.5), tint(0.12, 0.3), tint(0.38, 0.25), tint(0.85, 0.3)),
        (tint(0.09, 0.3), tint(0.15, 0.3), tint(0.93, 0.3), tint(0.7, 0.2), tint(0.28, 0.3)),
    ):
        accent = adjust(colour, ground, TEXT)
        on_accent = max(("#ffffff", "#000000"), key=lambda c: contrast(c, accent))
        modes.append(
            Colours(
                ground, surface, adjust(ink, surface, 7), adjust(quiet, surface, TEXT), line,
                accent, on_accent, series(ground),
            )
        )  # fmt: skip
    return Theme(name, character, SANS, SANS, *modes)


def css(theme: Theme) -> str:
    """Variables for a page: light, and dark for readers who have chosen it."""

    def rules(colours: Colours) -> str:
        values = {k.replace("_", "-"): v for k, v in asdict(colours).items() if k != "series"}
        values.update({f"series-{n}": c for n, c in enumerate(colours.series, 1)})
        return "".join(f"  --{name}: {value};\n" for name, value in values.items())

    return (
        f":root {{\n  color-scheme: light dark;\n  --heading: {_stack(theme.heading)};\n"
        f"  --body: {_stack(theme.body)};\n{rules(theme.light)}}}\n"
        f"@media (prefers-color-scheme: dark) {{\n:root {{\n{rules(theme.dark)}}}\n}}\n"
        "body { background: var(--ground); color: var(--ink); font-family: var(--body); }\n"
        "h1, h2, h3 { font-family: var(--heading); }\n"
        "a { color: var(--accent); }\n"
    )


def sheet(theme: Theme) -> str:
    """A page that shows a theme: texts, a button, the colours of data, and each contrast."""
    name = html.escape(theme.name)
    parts = []
    for mode in MODES:
        colours: Colours = getattr(theme, mode)
        bars = "".join(
            f'<rect x="{60 * n}" y="{20 + 12 * n}" width="44" height="{100 - 12 * n}" '
            f'fill="{colour}"/><text x="{60 * n}" y="138" font-size="11" fill="{colours.quiet}">'
            f"{contrast(colour, colours.ground):.1f}</text>"
            for n, colour in enumerate(colours.series)
        )
        parts.append(
            f'<section style="background:{colours.ground};color:{colours.ink}">'
            f"<h2>{mode.capitalize()}</h2><p>Text has a contrast of "
            f'{contrast(colours.ink, colours.ground):.1f}. <span style="color:{colours.quiet}">'
            f"What matters less has {contrast(colours.quiet, colours.ground):.1f}.</span></p>"
            f'<p><b style="background:{colours.accent};color:{colours.on_accent};padding:.5em 1em">'
            f"Button, {contrast(colours.on_accent, colours.accent):.1f}</b></p>"
            f'<svg viewBox="0 0 300 140" role="img" aria-label="Colours of data">{bars}</svg>'
            "</section>"
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        f"body{{margin:0;font-family:{_stack(theme.body)}}}"
        f"h1,h2{{font-family:{_stack(theme.heading)}}}"
        "main{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr))}"
        "h1{margin:1rem}section{padding:1rem 2rem}svg{max-width:24rem}</style>"
        f"<h1>{name}: {html.escape(theme.character)}</h1><main>{''.join(parts)}</main></html>\n"
    )


def find_theme(name: str) -> Theme:
    """A theme by its name, or from a file. Raises ValueError, OSError."""
    if name in THEMES:
        return THEMES[name]
    if not name.endswith(".json"):
        raise ValueError(f"there is no theme {name!r}; there are {', '.join(THEMES)}, and files")
    return load(Path(name).read_text(encoding="utf-8"))


def load(text: str) -> Theme:
    """A theme from the JSON that ``dump`` writes. Raises ValueError for anything else."""
    try:
        content: dict[str, Any] = json.loads(text)
        for mode in MODES:
            colours = dict(content[mode])
            colours["series"] = tuple(colours["series"])
            content[mode] = Colours(**colours)
            for colour in [*colours.pop("series"), *colours.values()]:
                _channels(colour)
        content["heading"], content["body"] = tuple(content["heading"]), tuple(content["body"])
        for font in content["heading"] + content["body"]:
            if not re.fullmatch(r"[\w .-]{1,60}", font):
                raise ValueError(f"{font!r} is no name of a font")
        return Theme(**content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no theme: {error}") from None


def dump(theme: Theme) -> str:
    """The theme as JSON, to be kept and changed."""
    return json.dumps(asdict(theme), indent=2) + "\n"


def _channels(colour: Any) -> tuple[float, float, float]:
    if not isinstance(colour, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise ValueError(f"{colour!r} is no colour such as #1b6ca8")
    red, green, blue = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return red, green, blue


def _hex(channels: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(max(0.0, min(1.0, value)) * 255):02x}" for value in channels)


def _stack(fonts: tuple[str, ...]) -> str:
    return ", ".join(f"'{font}'" if " " in font else font for font in fonts)


def _theme(name: str, character: str, fonts: Any, light: str, dark: str) -> Theme:
    """``light`` and ``dark``: the colours in the order of Colours, the series last."""
    modes = []
    for colours in (light.split(), dark.split()):
        modes.append(Colours(*colours[:7], tuple(colours[7:])))  # type: ignore[arg-type]
    return Theme(name, character, *fonts, *modes)


THEMES = {
    theme.name: theme
    for theme in (
        _theme(
            "ledger", "sober, for figures and reports that are printed", (SERIF, SANS),
            "#ffffff #f3f1ec #1c1b19 #5c574e #d9d4c8 #8a1f2b #ffffff"
            " #8a1f2b #2f5d7c #8a6d1f #4d6b3c #5f4b8b",
            "#171614 #23211e #efebe3 #b0a99c #3b3732 #f0909a #171614"
            " #f0909a #7fb2d6 #d8b55a #9cc283 #b9a5e6",
        ),
        _theme(
            "harbour", "calm and technical, for dashboards and tools", (SANS, SANS),
            "#f8fafb #e9eff2 #10222b #47606c #c6d3da #00607a #ffffff"
            " #00607a #b5530b #3f7d3a #7a4e9c #6b6f73",
            "#0d1a20 #16272f #e4eef2 #9fb6c1 #2a3f49 #63c5de #0d1a20"
            " #63c5de #f0a35e #8fcb86 #c7a2e3 #b3bcc2",
        ),
        _theme(
            "orchard", "warm and friendly, for people and for teaching", (HUMAN, HUMAN),
            "#fffdf7 #f7f0df #2a2416 #665b42 #e2d6b8 #3f6b1c #ffffff"
            " #3f6b1c #b3391f #8a6100 #28667a #8c3f70",
            "#1c1910 #29251a #f5eeda #bfb495 #423b29 #a8d67a #1c1910"
            " #a8d67a #f29079 #e3b84d #82c4d6 #e39fca",
        ),
        _theme(
            "signal", "loud, for one message and few words", (SANS, SANS),
            "#ffffff #f0f0f0 #000000 #4a4a4a #cccccc #c8102e #ffffff"
            " #c8102e #000000 #6b6b6b #00539b #7a5c00",
            "#000000 #1a1a1a #ffffff #bdbdbd #3a3a3a #ff6b7d #000000"
            " #ff6b7d #ffffff #a3a3a3 #6fb4f2 #e0bc4a",
        ),
        _theme(
            "blueprint", "exact, for engineering and code", (MONO, SANS),
            "#f5f8fd #e4ecf8 #0f1c33 #455571 #c2cfe4 #1d4fa8 #ffffff"
            " #1d4fa8 #a84a1d #1f7a68 #8a2f86 #73620f",
            "#0b1526 #14223a #e6edfa #a2b3d1 #2a3b5a #8db4ff #0b1526"
            " #8db4ff #f5a67c #6fd0bb #e198dd #d3bf5c",
        ),
    )
}  # fmt: skip
"""Those that come with the skill; each passes ``check``."""


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "list" and not rest:
            for theme in THEMES.values():
                print(f"{theme.name}: {theme.character}")
                for mode in MODES:
                    print(f"  {mode}: {json.dumps(asdict(getattr(theme, mode)))}")
            return 0
        if command == "check" and rest:
            found = [line for name in rest for line in check(find_theme(name))]
            print("\n".join(found) or "Nothing was found.")
            return 1 if found else 0
        if command == "css" and len(rest) in (1, 2):
            return _write(rest[1:], css(find_theme(rest[0])))
        if command == "sheet" and len(rest) == 2:
            return _write(rest[1:], sheet(find_theme(rest[0])))
        if command == "make" and len(rest) == 3:
            return _write(rest[2:], dump(make_theme(rest[0], rest[1])))
    except (OSError, ValueError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


def _write(place: list[str], text: str) -> int:
    if place:
        Path(place[0]).write_text(text, encoding="utf-8")
        print(place[0])
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
