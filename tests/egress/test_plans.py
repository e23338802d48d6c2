"""Plans: which routes a kernel gets, and that no snapshot or spare has any."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from traitlets.config import Config

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, UrlRoute
from gvisor_kernel.errors import SettingError, UnknownSetting
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, without_routes, write_plan
from gvisor_kernel.kernel.preparation import Kind
from gvisor_kernel.kernel.restore import find_key
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest

WEB = {"hosts": ["data.gov:443"]}
API = {"url": "https://api.example.org", "secret": "env:GK_TEST_KEY"}


def provisioner(config: Config | None = None, /, **stanza: Any) -> GVisorProvisioner:
    """Return the provisioner of a kernelspec with ``stanza``, as jupyter_client's factory does."""
    manager = KernelManager(config=config or Config())
    return GVisorProvisioner(kernel_id="k", kernel_spec=KernelSpec(), parent=manager, **stanza)


def configured(**routes: Any) -> Config:
    config = Config()
    config.GVisorEgress.routes = routes
    return config


def plan_of(found: GVisorProvisioner) -> KernelPlan:
    return found.plan_ahead("odd", Path.cwd())


def test_kernel_has_no_route_by_default() -> None:
    assert plan_of(provisioner(configured(web=WEB))).routes == ()


def test_kernelspec_chooses_among_the_configured_routes() -> None:
    plan = plan_of(provisioner(configured(web=WEB, api=API), egress=["web", "packages"]))
    assert plan.routes == (HostsRoute("web", ("data.gov:443",)), PackagesRoute())


def test_configuration_gives_routes_to_all_kernels() -> None:
    config = configured(api=API)
    config.GVisorProvisioner.egress = ["api"]
    [route] = plan_of(provisioner(config)).routes
    assert isinstance(route, UrlRoute)
    assert route.secret == API["secret"]
    assert plan_of(provisioner(config, egress=[])).routes == ()
    with pytest.raises(SettingError, match=r"(?s)packages.*c\.GVisorProvisioner\.egress"):
        plan_of(provisioner(config, egress=["api", "packages"]))


def test_configuration_without_routes_forbids_them() -> None:
    config = configured(web=WEB)
    config.GVisorProvisioner.egress = []
    with pytest.raises(SettingError, match=r"\(none\)"):
        plan_of(provisioner(config, egress=["web"]))


@pytest.mark.parametrize(
    "stanza",
    [
        {"routes": {"web": WEB}},
        {"GVisorEgress": {"routes": {"web": WEB}}},
        {"config": {"GVisorEgress": {"routes": {"web": WEB}}}},
        {"egress_routes": {"web": WEB}},
    ],
)
def test_kernelspec_cannot_make_a_route(stanza: dict[str, Any]) -> None:
    with pytest.raises(UnknownSetting):
        plan_of(provisioner(configured(), egress=["web"], **stanza))
    with pytest.raises(SettingError, match="'web'"):
        plan_of(provisioner(configured(), egress=["web"]))


def test_client_cannot_choose_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERNEL_EGRESS", "GVISOR_KERNEL_EGRESS", "EGRESS"):
        monkeypatch.setenv(name, '["web"]')
    found = provisioner(configured(web=WEB))
    client = {"KERNEL_EGRESS": '["web"]', "KERNEL_USERNAME": "x"}
    assert found._make_plan("k", Path("/nonexistent"), client, []).routes == ()


def test_wrong_route_stops_only_kernels_that_have_routes() -> None:
    config = configured(web={"hosts": "data.gov"})
    assert plan_of(provisioner(config)).routes == ()
    with pytest.raises(SettingError, match=r"c\.GVisorEgress\.routes"):
        plan_of(provisioner(config, egress=["packages"]))


def test_launcher_reads_routes_from_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    folder = tmp_path / "data/kernels/gk-one"
    folder.mkdir(parents=True)
    stanza = {"provisioner_name": "gvisor-provisioner", "config": {"egress": ["web"]}}
    document = {
        "argv": ["python3", "-f", "{connection_file}"],
        "display_name": "One",
        "metadata": {"kernel_provisioner": stanza},
    }
    (folder / "kernel.json").write_text(json.dumps(document))
    (tmp_path / "config").mkdir()
    text = json.dumps({"GVisorEgress": {"routes": {"web": WEB}}})
    (tmp_path / "config/jupyter_server_config.json").write_text(text)
    info = {"transport": "ipc", "ip": str(tmp_path / "k"), "key": "x"}
    info |= {f"{name}_port": 1 for name in ("shell", "iopub", "stdin", "control", "hb")}
    assert make_plan("gk-one", info, "").routes == (HostsRoute("web", ("data.gov:443",)),)


# -- snapshots and spares --------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path) -> KernelPlan:
    """A plan with a route."""
    route = UrlRoute("api", "https://api.example.org", "file:/secret/place", "X-Key: {secret}")
    return KernelPlan(
        spec=SandboxSpec(egress=("api",)),
        request=LaunchRequest("k", "id", tmp_path, sys.executable, {}),
        identity=KernelIdentity("k", b"key", "hmac-sha256", 2**30),
        address=Address("ipc", ""),
        routes=(route,),
    )


def test_plan_for_a_snapshot_has_no_routes(plan: KernelPlan) -> None:
    content = json.dumps(write_plan(plan))
    assert "api" not in content
    assert "/secret/place" not in content
    read = read_plan(json.loads(content), b"key")
    assert read.routes == ()
    assert read.spec.egress == ()
    assert write_plan(plan) == write_plan(without_routes(plan))


def test_snapshot_does_not_depend_on_routes(plan: KernelPlan) -> None:
    runtime = get_runtime("runsc")
    try:
        key, _ = find_key(runtime, plan)
    except Exception as error:
        pytest.skip(f"this machine has no runsc: {error}")
    assert find_key(runtime, without_routes(plan))[0] == key
    other = replace(plan, spec=replace(plan.spec, egress=("web", "packages")), routes=())
    assert find_key(runtime, other)[0] == key


def test_spare_is_nobodys(plan: KernelPlan) -> None:
    kind = Kind.of(plan)
    assert kind.spec.egress == ()
    assert kind == Kind.of(without_routes(plan))


def test_kernel_that_would_see_a_secret_does_not_start() -> None:
    found = provisioner(configured(api=API), environment=["GK_TEST_KEY"])
    with pytest.raises(SettingError, match="GK_TEST_KEY"):
        plan_of(found)
