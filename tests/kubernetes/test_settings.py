"""The setting ``kubernetes``: what is accepted, and who decides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from traitlets.config import Config

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.settings import read_spec, write_spec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes, accept_kubernetes

CHOSEN = {
    "namespace": "kernels",
    "cpu": 2,
    "labels": {"team": "data", "example.org/cost": "42"},
    "tolerations": [{"key": "kernels", "operator": "Exists", "tolerationSeconds": 60}],
    "outputs_claim": "data/me",
}


def test_a_mapping_becomes_the_setting() -> None:
    found = accept_kubernetes("kubernetes", CHOSEN)
    assert (found.namespace, found.cpu) == ("kernels", "2")
    assert found.labels == (("example.org/cost", "42"), ("team", "data"))
    assert json.loads(found.tolerations[0])["tolerationSeconds"] == 60
    assert accept_kubernetes("kubernetes", {}) == Kubernetes()
    assert accept_kubernetes("kubernetes", found) == found


def test_what_the_configuration_names_holds() -> None:
    found = accept_kubernetes("kubernetes", {"namespace": "fixed"}, {**CHOSEN, "cpu": "4"})
    assert (found.namespace, found.cpu) == ("fixed", "4")


def test_the_place_is_the_configurations_alone() -> None:
    """A kubeconfig may name programs that are run for credentials."""
    own = {"config": "/tmp/config", "context": "x", "handlers": ["runc"], "runtime_class": "runc"}
    found = accept_kubernetes("kubernetes", {"namespace": "fixed"}, {**own, "cpu": "4"})
    assert found == Kubernetes(namespace="fixed", cpu="4")
    assert accept_kubernetes("kubernetes", {"cpu": "4"}, own).runtime_class == "runc"


def test_a_claim_of_uploads_has_no_projects() -> None:
    settings = {"runtime": "kubernetes", "image": "a", "uploads": "project"}
    assert SandboxSettings(**settings).sandbox_spec().uploads == "project"
    with pytest.raises(SettingError, match="uploads_claim"):
        SandboxSettings(**settings, kubernetes={"uploads_claim": "data"}).sandbox_spec()


@pytest.mark.parametrize(
    "value",
    [
        "kernels",
        {"names": "x"},
        {"namespace": "Kernels"},
        {"namespace": "a/b"},
        {"context": "a\nb"},
        {"config": "relative"},
        {"runtime_class": ""},
        {"cpu": "lots"},
        {"cpu": "0"},
        {"log_limit": "-1"},
        {"log_limit": "0.0Gi"},
        {"pull": "Sometimes"},
        {"labels": {"gvisor-kernel.org/owner": "me"}},
        {"labels": {"team": "a b"}},
        {"labels": [1]},
        {"node_selector": {"a": 1}},
        {"tolerations": [{"key": 1}]},
        {"tolerations": [{"other": "x"}]},
        {"tolerations": "x"},
        {"outputs_claim": "data/../x"},
        {"outputs_claim": "/data"},
        {"pull_secrets": "x y"},
    ],
)
def test_wrong_values_are_refused(value: Any) -> None:
    with pytest.raises(SettingError):
        accept_kubernetes("kubernetes", value)


def test_the_image_is_one_of_a_registry() -> None:
    with pytest.raises(SettingError, match="registry of the cluster"):
        SandboxSettings(runtime="kubernetes").sandbox_spec()
    config = Config({"GVisorProvisioner": {}})
    spec = SandboxSettings(
        config=config, runtime="kubernetes", image="registry.example/kernels:1", kubernetes=CHOSEN
    ).sandbox_spec()
    assert spec.own.namespace == "kernels"
    assert read_spec(json.loads(json.dumps(write_spec(spec)))) == spec
