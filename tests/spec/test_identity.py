"""Identities: they are unique and safe in paths."""

from __future__ import annotations

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.spec.identity import hash_spec, make_name_safe, new_identity


def test_identity_names_kernel_and_settings() -> None:
    identity = new_identity("Python 3 (gVisor)", SandboxSpec(), "a fact")
    assert str(identity) == f"container_{identity.ulid}--python-3-gvisor--{identity.hash}"
    assert identity.container_id == identity.ulid.lower()


def test_container_ids_are_unique() -> None:
    ids = {new_identity("k", SandboxSpec()).container_id for _ in range(1000)}
    assert len(ids) == 1000


def test_hash_depends_on_settings_and_facts() -> None:
    spec = SandboxSpec()
    assert hash_spec(spec, "x") == hash_spec(SandboxSpec(), "x")
    assert hash_spec(spec, "x") != hash_spec(spec, "y")
    assert hash_spec(spec, "x") != hash_spec(SandboxSpec(pids_limit=100), "x")


@pytest.mark.parametrize(
    ("kernel_name", "name"),
    [
        ("gvisor-python", "gvisor-python"),
        ("../../etc", "etc"),
        ("a--b", "a-b"),
        ("Ünïcode", "n-code"),
        ("", "kernel"),
        ("--", "kernel"),
        ("x" * 300, "x" * 40),
    ],
)
def test_name_is_safe_in_paths(kernel_name: str, name: str) -> None:
    assert make_name_safe(kernel_name) == name
