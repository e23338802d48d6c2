"""The setting packages, and the requirements of ``install --with``."""

from __future__ import annotations

import pytest

from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.config.packages import Packages, check_requirements, split_requirements
from gvisor_kernel.errors import PackagesError, SettingError

DIGEST = "a" * 64


def test_words_are_split_as_in_a_shell() -> None:
    texts = ["polars duckdb>=1.1,<2", "'pandas[excel] == 2.*' polars"]
    assert split_requirements(texts) == ("polars", "duckdb>=1.1,<2", "pandas[excel] == 2.*")


@pytest.mark.parametrize(
    "text",
    [
        *("-r", "--index-url", "-e.", "./polars", "/tmp/x.whl", "../x", "x/y", "https://h/x.whl"),
        *("a@https://h/x.whl", "'a @ file:///etc'", "git+https://h/x", "a;b", "polars==", "'a b'"),
        *("é", "a\x1b", "x" * 201, "''", "'a\n--index-url=b'", "'", "", "$(id)", "a`id`"),
    ],
)
def test_options_paths_and_urls_are_refused(text: str) -> None:
    with pytest.raises(PackagesError) as caught:
        split_requirements([text])
    assert caught.value.hint
    assert caught.value.fact.isprintable()


def test_too_many_are_refused() -> None:
    check_requirements([f"p{i}" for i in range(100)])
    with pytest.raises(PackagesError, match="101 names"):
        check_requirements([f"p{i}" for i in range(101)])


def test_setting_is_accepted() -> None:
    value = {"requirements": ["polars", "duckdb"], "environment": DIGEST}
    spec = SandboxSettings(packages=value).sandbox_spec()
    assert spec.packages == Packages(("polars", "duckdb"), DIGEST)


@pytest.mark.parametrize("command", [["bash"], ["python3", "kernel.py"], ["deno", "-m", "x"]])
def test_kernel_that_would_not_import_them_is_refused(command: list[str]) -> None:
    value = {"requirements": ["polars"], "environment": DIGEST}
    with pytest.raises(SettingError, match="packages"):
        SandboxSettings(packages=value, command=[*command, "{connection_file}"]).sandbox_spec()
    good = ["python3", "-m", "my_kernel", "-f", "{connection_file}"]
    assert SandboxSettings(packages=value, command=good).sandbox_spec().packages is not None
