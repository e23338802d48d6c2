"""install --egress, egress list, egress log, and doctor's check of routes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gvisor_kernel.cli.checks.egress import check_egress
from gvisor_kernel.cli.doctor import run_check
from gvisor_kernel.cli.main import main
from gvisor_kernel.egress.audit import FILE, Audit, Entry
from gvisor_kernel.errors import SettingError
from gvisor_kernel.jupyter.kernelspecs import read_kernelspec

from .test_sandboxes import make_record, state

__all__ = ["state"]

Captured = pytest.CaptureFixture[str]
KEY = "sk-live-0123456789abcdef"

CONFIG = """
c.GVisorEgress.routes = {
    "openai": {"url": "https://api.openai.com/v1", "secret": "env:GK_TEST_KEY",
               "limits": {"daily_requests": 1000}},
    "github": {"url": "https://api.github.com", "methods": ["GET"], "paths": ["/repos/acme/**"]},
    "web": {"hosts": ["*.wikipedia.org:443"]},
}
"""


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders of Jupyter for this user, and CONFIG; returns the file of the configuration."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("GK_TEST_KEY", KEY)
    for name in ("ENV_JUPYTER_PATH", "SYSTEM_JUPYTER_PATH"):
        monkeypatch.setattr(f"jupyter_core.paths.{name}", [])
    (tmp_path / "config").mkdir()
    file = tmp_path / "config/jupyter_server_config.py"
    file.write_text(CONFIG)
    return file


def install(*options: str, name: str = "gk-one") -> int:
    return main(["install", "--user", "--name", name, *options])


def settings(jupyter: Path, name: str = "gk-one") -> object:
    return read_kernelspec(jupyter.parent.parent / f"data/kernels/{name}").settings


def routes_json(capsys: Captured) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert main(["egress", "list", "--json"]) == 0
    return {route["name"]: route for route in json.loads(capsys.readouterr().out)}


def test_install_writes_the_chosen_routes(jupyter: Path) -> None:
    assert install("--egress", "packages,openai", "--egress", "web", "--egress", "openai") == 0
    assert settings(jupyter) == {"egress": ["packages", "openai", "web"]}


@pytest.mark.parametrize("option", ["pakages", "packages,", "", "Web", "packages,sql"])
def test_install_refuses_a_route_that_does_not_exist(
    jupyter: Path, capsys: Captured, option: str
) -> None:
    assert install("--egress", option) == 1
    assert "The setting egress" in capsys.readouterr().err
    assert not (jupyter.parent.parent / "data").exists()


def test_route_of_a_setting_is_checked_too(jupyter: Path, capsys: Captured) -> None:
    assert install("--set", 'egress=["sql"]') == 1
    assert "packages, openai, github, web" in capsys.readouterr().err
    assert install("--set", 'egress=["web"]', "--egress", "web") == 1
    assert "given twice" in capsys.readouterr().err


def test_install_without_routes_reads_no_configuration(jupyter: Path) -> None:
    jupyter.write_text("raise RuntimeError\n")
    assert install() == 0


def test_configuration_limits_what_a_kernelspec_can_choose(jupyter: Path, capsys: Captured) -> None:
    jupyter.write_text(CONFIG + 'c.GVisorProvisioner.egress = ["packages"]\n')
    assert install("--egress", "web") == 1
    assert "c.GVisorProvisioner.egress" in capsys.readouterr().err
    assert install("--egress", "packages") == 0
    assert install(name="gk-two") == 0
    assert routes_json(capsys)["packages"]["kernelspecs"] == ["gk-one", "gk-two"]


def test_list_shows_routes_and_who_uses_them(jupyter: Path, capsys: Captured) -> None:
    install("--egress", "openai")
    install("--egress", "openai,packages", name="gk-two")
    found = routes_json(capsys)
    assert list(found) == ["packages", "openai", "github", "web"]
    assert found["openai"]["kernelspecs"] == ["gk-one", "gk-two"]
    assert found["github"]["kernelspecs"] == []
    assert found["github"]["paths"] == ["/repos/acme/**"]
    assert main(["egress", "list"]) == 0
    text = capsys.readouterr().out
    for words in ("https://api.openai.com/v1", "env:GK_TEST_KEY", "GET; /repos/acme/**", "1000"):
        assert words in text
    assert KEY not in text


def test_list_counts_the_kernelspec_that_jupyter_uses(
    jupyter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert main(["install", "--prefix", str(tmp_path / "p"), "--egress", "web"]) == 0
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "p/share/jupyter"))
    assert routes_json(capsys)["web"]["kernelspecs"] == ["gvisor-python"]
    install("--egress", "github", name="gvisor-python")
    paths = [tmp_path / "data", tmp_path / "p/share/jupyter"]
    monkeypatch.setenv("JUPYTER_PATH", ":".join(map(str, paths)))
    found = routes_json(capsys)
    assert (found["web"]["kernelspecs"], found["github"]["kernelspecs"]) == ([], ["gvisor-python"])


def test_list_names_a_kernelspec_whose_route_is_gone(jupyter: Path, capsys: Captured) -> None:
    install("--egress", "web")
    jupyter.write_text("c.GVisorEgress.routes = {}\n")
    assert main(["egress", "list"]) == 0
    assert "The kernelspec gk-one starts no kernel: The setting egress[0] is 'web'" in (
        capsys.readouterr().out
    )


def test_wrong_configuration_is_an_error_without_the_secret(
    jupyter: Path, capsys: Captured
) -> None:
    jupyter.write_text(CONFIG.replace("env:GK_TEST_KEY", KEY))
    assert main(["egress", "list"]) == 1
    text = capsys.readouterr().err
    assert 'c.GVisorEgress.routes["openai"]["secret"]' in text
    assert KEY not in text


# -- log -------------------------------------------------------------------------------------------


def test_log_prints_requests_and_escapes_them(state: Path, capsys: Captured) -> None:
    make_record("01one")
    record = Audit(state / "01one" / FILE)
    for path in ("/a", "/\x1b[2J\n\u202e"):
        record.write(Entry(route="web", method="GET", host="a.b", path=path, status=200, down=2048))
    record.close()
    assert main(["egress", "log", "01o"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("GET a.b/a by the route web: 200, 0 B up, 2 KiB down, 0.000 s")
    assert "\\x1b[2J\\n\\u202e" in second
    assert main(["egress", "log", "--json", "01o"]) == 0
    assert [entry["down"] for entry in json.loads(capsys.readouterr().out)] == [2048, 2048]


def test_log_without_requests_is_empty(state: Path, capsys: Captured) -> None:
    make_record("01one")
    assert main(["egress", "log", "01one"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["egress", "log", "02"]) == 1


def test_log_follows_no_link(state: Path, tmp_path: Path, capsys: Captured) -> None:
    make_record("01one")
    (state / "01one" / FILE).symlink_to(tmp_path / "other")
    assert main(["egress", "log", "01one"]) == 1
    assert "cannot be read" in capsys.readouterr().err


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_names_the_route_whose_secret_cannot_be_read(
    jupyter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [check] = run_check("routes", 10, check_egress)
    assert (check.state, check.name) == ("ok", "routes")
    monkeypatch.delenv("GK_TEST_KEY")
    [check] = check_egress()
    assert (check.state, check.name) == ("warning", "route openai")
    assert "GK_TEST_KEY is not set" in check.fact
    assert check.fix
    install("--egress", "openai")
    assert [check.state for check in check_egress()] == ["failed"]


def test_doctor_warns_of_a_secret_that_is_too_short_to_be_masked(
    jupyter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GK_TEST_KEY", "pw12345")
    [check] = check_egress()
    assert (check.state, check.name) == ("warning", "route openai")
    assert "not masked" in check.fact
    assert "pw12345" not in repr(check)


def test_doctor_does_not_show_a_secret(jupyter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GK_TEST_KEY", f"{KEY}\r\nX: 1")
    assert KEY not in repr(check_egress())
    jupyter.write_text(CONFIG.replace("env:GK_TEST_KEY", KEY))
    with pytest.raises(SettingError) as caught:
        check_egress()
    assert KEY not in str(caught.value)


def test_doctor_names_a_kernelspec_whose_route_is_gone(jupyter: Path) -> None:
    install("--egress", "web")
    jupyter.write_text("")
    [check] = check_egress()
    assert (check.state, check.name) == ("failed", "settings of gk-one")


def test_doctor_says_what_to_do_about_a_wrong_setting_of_the_configuration(jupyter: Path) -> None:
    install()
    jupyter.write_text('c.GVisorProvisioner.memory_limit = "8 Gigs"')
    [check] = check_egress()
    assert (check.state, check.name) == ("failed", "settings of gk-one")
    assert check.fact == "The setting memory_limit is '8 Gigs'"
    assert '"512M"' in check.fix


def test_doctor_says_nothing_without_routes(jupyter: Path) -> None:
    jupyter.write_text("")
    install()
    assert check_egress() == []


@pytest.mark.parametrize("key", ["config", "kernel_id", "parent", "log"])
def test_kernelspec_with_odd_keys_breaks_no_command(
    jupyter: Path, capsys: Captured, key: str
) -> None:
    install("--egress", "web")
    file = jupyter.parent.parent / "data/kernels/gk-one/kernel.json"
    document = json.loads(file.read_text())
    routes = {"evil": {"hosts": ["a.b:1"]}}
    document["metadata"]["kernel_provisioner"]["config"] = {
        key: {"GVisorEgress": {"routes": routes}},
        "egress": ["evil"],
    }
    file.write_text(json.dumps(document))
    assert "evil" not in routes_json(capsys)
    assert [check.state for check in check_egress()] == ["failed"]
