"""Which indexes the route ``packages`` finds in the configuration of pip, uv and npm."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from gvisor_kernel.egress import package_index
from gvisor_kernel.egress.package_index import (
    NPM,
    PYPI,
    Index,
    Indexes,
    find_configuration_variables,
    read_npm,
    read_pip,
    read_uv,
)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment whose configuration is in an empty home."""
    monkeypatch.setattr(package_index, "ETC", tmp_path / "system")
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / ".config" / "uv").mkdir()
    return {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "etc")}


def pip_of(home: dict[str, str], **variables: str) -> Indexes:
    return read_pip({**home, **variables}, str(Path(home["HOME"]) / "prefix"))


def write(home: dict[str, str], name: str, text: str) -> None:
    path = Path(home["HOME"]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_pip_without_configuration_uses_pypi(home: dict[str, str]) -> None:
    assert pip_of(home).indexes == (Index(PYPI),)


def test_pip_variables_come_before_files_and_sections_after_global(home: dict[str, str]) -> None:
    write(home, "etc/pip/pip.conf", "[global]\nindex-url = https://system/simple\n")
    assert pip_of(home).indexes[0].url == "https://system/simple/"
    write(home, ".config/pip/pip.conf", "[global]\nindex_url = https://a/s\n[install]\n")
    assert pip_of(home).indexes[0].url == "https://a/s/"
    write(home, "prefix/pip.conf", "[install]\nindex-url = https://b/s/\n[global]\nindex-url=c\n")
    assert pip_of(home).indexes[0].url == "https://b/s/"
    found = pip_of(home, PIP_INDEX_URL="https://d/s", PIP_EXTRA_INDEX_URL="https://e https://f/x/")
    assert [index.url for index in found.indexes] == ["https://d/s/", "https://e/", "https://f/x/"]
    assert found.merged
    assert pip_of(home, PIP_CONFIG_FILE="/dev/null").indexes[0].url == PYPI


def test_credentials_of_a_url_and_of_netrc_are_found(home: dict[str, str]) -> None:
    write(home, ".netrc", "machine netrc.example login me password p@ss\n")
    url = "https://u%40x:p%3Aw@url.example/simple"
    one, two = pip_of(
        home, PIP_INDEX_URL=url, PIP_EXTRA_INDEX_URL="https://netrc.example/s"
    ).indexes
    assert (one.url, one.authorization) == ("https://url.example/simple/", basic("u@x:p:w"))
    assert two.authorization == basic("me:p@ss")
    assert "p:w" not in repr(one)
    assert base64.b64encode(b"u@x:p:w").decode() not in repr(one)


def test_trusted_hosts_certificates_and_no_index_are_respected(home: dict[str, str]) -> None:
    found = pip_of(
        home,
        PIP_INDEX_URL="https://a:8443/s",
        PIP_EXTRA_INDEX_URL="https://b/s",
        PIP_TRUSTED_HOST="a:8443",
        PIP_CERT="/ca.pem",
    )
    assert [index.verify for index in found.indexes] == [False, True]
    assert {index.ca for index in found.indexes} == {"/ca.pem"}
    assert pip_of(home, PIP_NO_INDEX="1").indexes == ()


def test_an_index_that_is_no_url_of_http_is_left_out(home: dict[str, str]) -> None:
    found = pip_of(home, PIP_INDEX_URL="file:///srv/x", PIP_EXTRA_INDEX_URL="/srv ftp://x/ h:/")
    assert found.indexes == ()


def test_uv_uses_its_own_indexes_or_those_of_pip(home: dict[str, str]) -> None:
    pip = pip_of(home)
    assert read_uv(home, pip) is pip
    text = """
index-strategy = "first-index"
[[index]]
name = "corp-x"
url = "https://corp/simple"
[[index]]
name = "torch"
url = "https://torch/whl"
explicit = true
"""
    write(home, ".config/uv/uv.toml", text)
    variables = {**home, "UV_INDEX_CORP_X_USERNAME": "u", "UV_INDEX_CORP_X_PASSWORD": "p"}
    found = read_uv(variables, pip)
    assert [index.url for index in found.indexes] == ["https://corp/simple/", PYPI]
    assert found.indexes[0].authorization == basic("u:p")
    assert not found.merged
    found = read_uv(
        {**variables, "UV_DEFAULT_INDEX": "x=https://d/s", "UV_INDEX": "https://e"}, pip
    )
    assert [i.url for i in found.indexes] == ["https://e/", "https://corp/simple/", "https://d/s/"]
    assert read_uv({**home, "UV_NO_CONFIG": "1"}, pip) is pip


@pytest.mark.parametrize("text", ["[", "index = 5", "[[index]]\nurl = 7", 'pip = "x"', "index=[1]"])
def test_a_wrong_configuration_of_uv_is_no_error(home: dict[str, str], text: str) -> None:
    write(home, ".config/uv/uv.toml", text)
    pip = pip_of(home)
    assert read_uv(home, pip) is pip


def test_npm_registries_scopes_and_tokens(home: dict[str, str]) -> None:
    assert read_npm(home).default.url == NPM
    text = """
; a comment
registry=https://npm.corp/repo/
@acme:registry=https://npm.acme
//npm.corp/repo/:_authToken=${TOKEN_OF_CORP}
//npm.acme/:username=u
//npm.acme/:_password=cA==
cafile=/ca.pem
"""
    write(home, ".npmrc", text)
    found = read_npm({**home, "TOKEN_OF_CORP": "t0"})
    assert found.find("left-pad") == Index("https://npm.corp/repo/", "Bearer t0", True, "/ca.pem")
    assert found.find("@acme/x").authorization == basic("u:p")
    assert found.find("@other/x") == found.default
    lower = read_npm(
        {**home, "npm_config_registry": "https://e/", "NPM_CONFIG_STRICT_SSL": "false"}
    )
    assert lower.default == Index("https://e/", None, False, "/ca.pem")


def test_only_variables_of_the_configuration_are_passed_on(home: dict[str, str]) -> None:
    write(home, ".npmrc", "//x/:_authToken=${TOKEN_OF_CORP}\n")
    environment = {
        **home,
        **{"PIP_INDEX_URL": "i", "UV_INDEX": "u", "npm_config_x": "n", "TOKEN_OF_CORP": "t"},
        **{"https_proxy": "p", "OPENAI_API_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret"},
    }
    found = find_configuration_variables(environment)
    assert "secret" not in found.values()
    assert found == {name: value for name, value in environment.items() if value != "secret"}
