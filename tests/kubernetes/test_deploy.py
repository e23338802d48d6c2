"""The manifests of ``deploy/`` say what the code needs, and no more."""

from __future__ import annotations

from typing import Any

import yaml

from gvisor_kernel.runtimes.kubernetes.checks import ENFORCE, RIGHTS
from gvisor_kernel.runtimes.kubernetes.settings import NO_CHOICE, accept_kubernetes

from ..world import PROJECT

DEPLOY = PROJECT / "deploy"


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def rights_of(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (verb, resource)
        for rule in found["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def test_the_role_has_exactly_the_rights_that_doctor_checks() -> None:
    objects = {found["kind"]: found for found in read("rbac.yaml")}
    assert rights_of(objects["Role"]) == set(RIGHTS)
    assert rights_of(objects["ClusterRole"]) == {("get", "runtimeclasses"), ("get", "namespaces")}
    assert objects["Namespace"]["metadata"]["labels"] == {ENFORCE: "restricted"}


def test_the_runtime_class_is_the_default() -> None:
    (found,) = read("runtimeclass.yaml")
    assert found["metadata"]["name"] == NO_CHOICE.runtime_class
    assert found["handler"] in NO_CHOICE.handlers


def test_the_network_policy_closes_the_pods_of_kernels() -> None:
    (found,) = read("networkpolicy.yaml")
    assert found["spec"]["podSelector"] == {}
    assert found["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(found["spec"])


def test_the_values_name_settings_that_exist() -> None:
    (values,) = read("values.yaml")
    text = values["singleuser"]["extraFiles"]["gvisor-kernel"]["stringData"]
    found: dict[str, Any] = {}

    class Section:
        def __setattr__(self, name: str, value: Any) -> None:
            found[name] = value

    class Configuration:
        GVisorProvisioner = Section()
        KernelProvisionerFactory = Section()

    exec(text, {"c": Configuration})  # noqa: S102 - a file of this project
    assert found["runtime"] == "kubernetes"
    assert found["default_provisioner_name"] == "gvisor-provisioner"
    assert "automountServiceAccountToken" not in values["singleuser"]  # not in the chart's schema
    account = {"name": values["singleuser"]["serviceAccountName"], "namespace": "jupyter"}
    made = [part for part in read("rbac.yaml") if part["kind"] == "ServiceAccount"]
    assert [part["metadata"] for part in made] == [account]
    assert accept_kubernetes("kubernetes", found["kubernetes"]).namespace == "jupyter-kernels"
