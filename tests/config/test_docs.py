"""docs/settings.md documents every setting with its default, and no other setting."""

from __future__ import annotations

import re

from docs.ext.settings_page import PAGE, complete
from gvisor_kernel.config.settings import SETTINGS, find_own_settings

TEXT = PAGE.read_text()


def test_document_has_exactly_one_section_per_setting() -> None:
    assert sorted(re.findall("^### `(.*)`$", TEXT, re.MULTILINE)) == sorted(
        {**SETTINGS, **find_own_settings()}
    )


def test_sections_name_the_defaults() -> None:
    assert complete(TEXT) == TEXT, "run: python docs/ext/settings_page.py"


def test_a_setting_without_a_section_gets_one() -> None:
    start = TEXT.index("### `spare`")
    less = TEXT[:start] + TEXT[TEXT.index("## Files", start) :]
    made = complete(less)
    assert made.startswith(less)
    assert made.endswith("\n### `spare`\nDefault: `True`. " + made.rpartition("`True`. ")[2])
    assert complete(less.replace("Default: `1024`", "Default: `1`")) == made
