"""Lets Playwright find the distribution's Chromium where it looks for its own."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = Path("/usr/bin/chromium")


def link(path: Path) -> None:
    """Make ``path``, as Playwright spells the program of a browser, lead to Chromium."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(CHROMIUM)
    folder = Path(os.environ["PLAYWRIGHT_BROWSERS_PATH"])
    (folder / path.relative_to(folder).parts[0] / "INSTALLATION_COMPLETE").touch()


with sync_playwright() as playwright:
    program = Path(playwright.chromium.executable_path)
    link(program)
    # Without a window Playwright starts a smaller build, of which it does not tell the path.
    revision = program.parents[1].name.rpartition("-")[2]
    shell = program.parents[2] / f"chromium_headless_shell-{revision}"
    link(shell / "chrome-headless-shell-linux64/chrome-headless-shell")
