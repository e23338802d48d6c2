"""docs/settings.md documents every setting with its default, and no other setting."""

from __future__ import annotations

import re
from dataclasses import fields

from gvisor_kernel.config.settings import SETTINGS, SandboxSettings, SandboxSpec

from ..world import PROJECT

TEXT = (PROJECT / "docs/settings.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.+)$", TEXT, re.MULTILINE))


def test_document_has_exactly_one_section_per_setting() -> None:
    assert set(SECTIONS) == set(SETTINGS)
    assert len(re.findall("^### ", TEXT, re.MULTILINE)) == len(SETTINGS)


def test_sections_name_the_defaults() -> None:
    settings = SandboxSettings()
    for name, text in SECTIONS.items():
        assert text.startswith(f"Default: `{getattr(settings, name)!r}`"), name


def test_settings_are_the_fields_of_the_spec_with_the_same_defaults() -> None:
    assert SandboxSettings().sandbox_spec() == SandboxSpec()
    traits = SandboxSettings.class_traits(config=True)
    assert set(traits) == {field.name for field in fields(SandboxSpec)}
    for name, trait in traits.items():
        assert len(trait.help) > 20, name
