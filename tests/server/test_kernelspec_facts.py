"""The image and the limits that kernels would have, from all places where they can be set."""

from __future__ import annotations

from typing import Any

from traitlets.config import Config, Configurable

from gvisor_kernel.server.handlers import make_facts

GIB = 1024**3


class Application(Configurable):
    """What is read of a server: its configuration."""


def ours(**settings: Any) -> dict[str, Any]:
    stanza = {"provisioner_name": "gvisor-provisioner", "config": settings}
    return {"spec": {"metadata": {"kernel_provisioner": stanza}}}


def test_configuration_comes_before_kernelspecs_and_a_lower_limit_before_both() -> None:
    settings = {"pids_limit": 77, "image": "data", "memory_limit": "6G"}
    application = Application(config=Config(GVisorProvisioner=settings))
    found = {
        "b": ours(memory_limit="1G", disk_limit="3G"),
        "a": ours(image="host"),
        "c": {"spec": {}},
    }
    first, second = make_facts(found, application)
    assert first == {
        "name": "a",
        "image": "data",
        "limits": {"memory": 6 * GIB, "disk": 2 * GIB, "processes": 77, "cpu_shares": 1024},
        "problem": None,
    }
    assert second["name"] == "b"
    assert second["limits"] == first["limits"] | {"memory": GIB, "disk": 3 * GIB}


def test_wrong_setting_is_told_and_hides_no_other_kernelspec() -> None:
    found = {"<b>": ours(memory_limit="lots"), "fine": ours(), "odd": ours(parent="x")}
    facts = {one["name"]: one for one in make_facts(found, Application(config=Config()))}
    assert facts["fine"]["problem"] is None
    for name, setting in (("<b>", "memory_limit"), ("odd", "parent")):
        assert (facts[name]["image"], facts[name]["limits"]) == (None, None)
        assert setting in facts[name]["problem"]


def test_servers_default_provisioner_counts() -> None:
    config = Config(KernelProvisionerFactory={"default_provisioner_name": "gvisor-provisioner"})
    (facts,) = make_facts({"plain": {"spec": {}}}, Application(config=config))
    assert facts["name"] == "plain"
