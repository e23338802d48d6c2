"""A theme for PowerPoint slides: the colours and fonts of the file's own theme are replaced.

    python slide_theme.py NAME IN.pptx OUT.pptx [light|dark]

Slides that use the theme's colours and fonts change at once, and PowerPoint offers both for what is
added later. What has a colour or font of its own keeps it. ``count_own`` says how much that is.
"""

from __future__ import annotations

import re
import sys
from typing import Any

try:
    from pptx import Presentation
    from pptx.opc.constants import RELATIONSHIP_TYPE
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-pptx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

from themes import MODES, Colours, Theme, find_theme

MAIN = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
GENERIC = {"sans-serif": "Arial", "serif": "Times New Roman", "monospace": "Courier New"}


def apply(theme: Theme, presentation: Any, mode: str = "light") -> None:
    """Give each master of a python-pptx presentation the theme. Raises ValueError."""
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no mode: there are {' and '.join(MODES)}")
    colours: Colours = getattr(theme, mode)
    values = {
        "dk1": colours.ink, "lt1": colours.ground, "dk2": colours.quiet, "lt2": colours.surface,
        **{f"accent{n}": c for n, c in enumerate((*colours.series, colours.accent)[:6], 1)},
        "hlink": colours.accent, "folHlink": colours.quiet,
    }  # fmt: skip
    fonts = {"majorFont": _office(theme.heading), "minorFont": _office(theme.body)}
    for master in presentation.slide_masters:
        part = master.part.part_related_by(RELATIONSHIP_TYPE.THEME)
        part._blob = _replace(part.blob.decode("utf-8"), values, fonts).encode("utf-8")


def count_own(presentation: Any) -> int:
    """How many colours and fonts on slides are not the theme's, and so stay as they are."""
    found = 0
    for slide in presentation.slides:
        for element in slide.element.iter(f"{MAIN}srgbClr", f"{MAIN}latin"):
            found += not str(element.get("typeface", "")).startswith("+")
    return found


def _office(fonts: tuple[str, ...]) -> str:
    """One font for Office, which takes no list: the first one, as it replaces what is missing."""
    return GENERIC.get(fonts[0], fonts[0])


def _replace(text: str, values: dict[str, str], fonts: dict[str, str]) -> str:
    """A theme's XML with other colours and fonts. Raises ValueError if it has no place for one."""
    for name, colour in values.items():
        new = f'<a:{name}><a:srgbClr val="{colour[1:].upper()}"/></a:{name}>'
        text, count = re.subn(rf"<a:{name}>.*?</a:{name}>", new, text, count=1, flags=re.DOTALL)
        if not count:
            raise ValueError(f"the theme of this file has no colour {name}")
    for name, font in fonts.items():
        pattern = rf'(<a:{name}>.*?<a:latin typeface=")[^"]*'
        text, count = re.subn(pattern, lambda m, f=font: m[1] + f, text, count=1, flags=re.DOTALL)
        if not count:
            raise ValueError(f"the theme of this file has no {name}")
    return text


def main(arguments: list[str]) -> int:
    if not 3 <= len(arguments) <= 4:
        print(__doc__, file=sys.stderr)
        return 2
    name, source, output, *mode = arguments
    try:
        presentation = Presentation(source)
        apply(find_theme(name), presentation, *mode)
        presentation.save(output)
    except Exception as error:  # python-pptx has no common one for files that are no slides
        print(f"No slides were written: {error or type(error).__name__}", file=sys.stderr)
        return 1
    own = count_own(presentation)
    print(f"{output}: {own} colours and fonts of single texts and shapes stay as they were")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
