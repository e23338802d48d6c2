"""An entry of SandboxSpec is all that a setting needs: everything else comes from it.

``CHANGED`` has another value than the default for each setting, as a kernelspec writes it.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from gvisor_kernel.cli.kernelspecs import find_settings
from gvisor_kernel.cli.main import make_parser
from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import (
    DEFAULTS,
    SETTINGS,
    SandboxSpec,
    find_entry,
    find_own_settings,
    read_spec,
    write_key_settings,
    write_spec,
)
from gvisor_kernel.errors import SettingError, UnknownSetting
from gvisor_kernel.spec.identity import hash_spec
from gvisor_kernel.strict_json import JsonError

CHANGED: dict[str, object] = {
    "runtime": "slurm",
    "runsc": "20260817.0",
    "image": "other",
    "memory_limit": "1G",
    "cpu_shares": 2,
    "pids_limit": 100,
    "disk_limit": "1G",
    "uploads": None,
    "outputs": "results",
    "branch_outputs": "shared",
    "apply": "new files",
    "skills": None,
    "transcripts": False,
    "profile": "default",
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
    "hibernate_idle_timeout": 60.0,
    "checkpoints": "cells",
    "checkpoints_kept": 3,
    "spare": False,
    "egress": ["packages"],
    "packages": {"requirements": ["polars"], "environment": "a" * 64},
}
OWN: dict[str, object] = {
    "slurm": {"partition": "p"},
    "ssh": {"hosts": ["h"]},
    "kubernetes": {"labels": {"a": "b"}},
}
BY_SETTING = pytest.mark.parametrize("name", SETTINGS)


def change(name: str) -> SandboxSpec:
    return SandboxSettings(**{name: CHANGED[name]}).sandbox_spec()


def test_every_field_is_an_entry() -> None:
    assert set(SETTINGS) | {"own"} == {field.name for field in fields(SandboxSpec)}
    assert set(SETTINGS) == set(CHANGED)
    assert set(find_own_settings()) >= set(OWN), "a package that is installed here may have more"


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


@pytest.mark.parametrize("name", OWN)
def test_a_setting_of_one_runtime_needs_only_its_entry(name: str) -> None:
    setting = find_own_settings()[name]
    image = {"image": "any/image"} if find_entry(name).images else {}
    text = f"--set={name}={json.dumps(OWN[name])}"
    arguments = make_parser(["install"]).parse_args(["install", text, f"--set=runtime={name}"])
    spec = SandboxSettings(**find_settings(arguments), **image).sandbox_spec()
    assert spec.own == setting.accept(name, OWN[name], None) != setting.default
    assert read_spec(json.loads(json.dumps(write_spec(spec)))) == spec
    assert hash_spec(spec) != hash_spec(replace(spec, own=setting.default))
    assert SandboxSettings(**{name: OWN[name]}).sandbox_spec() == DEFAULTS
    with pytest.raises(SettingError, match=name):
        SandboxSettings(**{name: {"nothing": 1}}).sandbox_spec()


def test_a_runtime_without_a_setting_of_its_own_takes_none() -> None:
    with pytest.raises(UnknownSetting, match="docker"):
        SandboxSettings(docker={"host": "x"}).sandbox_spec()


def test_an_order_of_another_release_is_refused() -> None:
    content = write_spec(DEFAULTS)
    with pytest.raises(JsonError):
        read_spec({key: value for key, value in content.items() if key != "spare"})
    with pytest.raises(JsonError):
        read_spec({**content, "runtime": "slurm", "own": {"later": 1}})
