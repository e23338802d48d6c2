"""Paths, as validators and their callers ask of them."""

from __future__ import annotations

from gvisor_kernel.config.validators import is_within


def test_is_within_compares_path_components() -> None:
    assert is_within("/usr/lib", "/usr")
    assert is_within("/usr", "/usr")
    assert not is_within("/usr2", "/usr")
