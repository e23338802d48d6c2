"""An entry of SandboxSpec is all that a setting needs: everything else comes from it.

``CHANGED`` has another value than the default for each setting, as a kernelspec writes it.
"""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from gvisor_kernel.cli.kernelspecs import find_settings
from gvisor_kernel.cli.main import make_parser
from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import (
    DEFAULTS,
    SETTINGS,
    SandboxSpec,
    read_spec,
    write_key_settings,
    write_spec,
)
from gvisor_kernel.spec.identity import hash_spec
from gvisor_kernel.strict_json import JsonError

CHANGED: dict[str, object] = {
    "runtime": "slurm",
    "image": "other",
    "memory_limit": "1G",
    "cpu_shares": 2,
    "pids_limit": 100,
    "disk_limit": "1G",
    "uploads": None,
    "outputs": "results",
    "skills": None,
    "transcripts": False,
    "mounts": [{"source": "/usr", "target": "/data"}],
    "environment": ["LANG"],
    "start_timeout": 5,
    "restart": "sandbox",
    "transport": "tcp",
    "command": ["python3", "-m", "x", "{connection_file}"],
    "kernel_mode": "relay",
    "snapshot": "off",
    "preload": ["numpy"],
    "idle_stop": False,
    "spare": False,
    "egress": ["packages"],
    "packages": {"requirements": ["polars"], "environment": "a" * 64},
    "slurm": {"partition": "p"},
    "ssh": {"hosts": ["h"]},
    "kubernetes": {"labels": {"a": "b"}},
}
BY_SETTING = pytest.mark.parametrize("name", SETTINGS)


def change(name: str) -> SandboxSpec:
    return SandboxSettings(**{name: CHANGED[name]}).sandbox_spec()


def test_every_field_is_an_entry() -> None:
    assert set(SETTINGS) == {field.name for field in fields(SandboxSpec)} == set(CHANGED)


@BY_SETTING
def test_the_provisioner_has_a_trait_with_the_default_and_the_help(name: str) -> None:
    trait, setting = SandboxSettings.class_traits(config=True)[name], SETTINGS[name]
    assert trait.help == setting.help
    assert len(trait.help) > 20
    assert getattr(SandboxSettings(), name) == setting.write_default()
    assert setting.accept(name, setting.write_default()) == getattr(DEFAULTS, name)


@BY_SETTING
def test_a_value_reaches_the_spec_from_the_command_line(name: str) -> None:
    text = f"--set={name}={json.dumps(CHANGED[name])}"
    arguments = make_parser(["install"]).parse_args(["install", text])
    spec = SandboxSettings(**find_settings(arguments)).sandbox_spec()
    assert spec == change(name)
    assert getattr(spec, name) != getattr(DEFAULTS, name)


@BY_SETTING
def test_a_value_reaches_another_process_and_the_identity(name: str) -> None:
    spec = change(name)
    assert read_spec(json.loads(json.dumps(write_spec(spec)))) == spec
    assert hash_spec(spec) != hash_spec(DEFAULTS)


@BY_SETTING
def test_a_value_is_in_the_key_of_snapshots_if_its_entry_says_so(name: str) -> None:
    is_in_key = write_key_settings(change(name)) != write_key_settings(DEFAULTS)
    assert is_in_key == SETTINGS[name].in_key


def test_an_order_of_another_release_is_refused() -> None:
    content = write_spec(DEFAULTS)
    with pytest.raises(JsonError):
        read_spec({key: value for key, value in content.items() if key != "spare"})
    with pytest.raises(JsonError):
        read_spec({**content, "slurm": {**content["slurm"], "later": 1}})
