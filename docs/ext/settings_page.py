"""Keeps docs/settings.md like the entries of the settings: ``python docs/ext/settings_page.py``.

The headings and the defaults are made from the code; what follows a default is written by hand. A
setting that has no section gets one with its help at the end of the page.
"""

from __future__ import annotations

import re
from pathlib import Path

from gvisor_kernel.config.settings import SETTINGS, find_own_settings

EVERY = {**SETTINGS, **find_own_settings()}
PAGE = Path(__file__).parents[1] / "settings.md"
SECTION = re.compile(r"^### `(\w+)`\n(?:Default: `[^`\n]*`)?", re.MULTILINE)


def complete(text: str) -> str:
    """Return the page with the defaults of today, and with a section for each setting.

    :raises KeyError: when a section is about no setting
    """
    text = SECTION.sub(lambda found: head(found[1]), text)
    for name in EVERY.keys() - set(SECTION.findall(text)):
        text += f"\n{head(name)}. {' '.join(EVERY[name].help.split())}\n"
    return text


def head(name: str) -> str:
    """Return the part of a section that is made from the code."""
    return f"### `{name}`\nDefault: `{EVERY[name].write_default()!r}`"


if __name__ == "__main__":
    PAGE.write_text(complete(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
