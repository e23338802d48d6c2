"""Files beside the packages of an environment, credentials, Jupyter's own files: not shown."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError

from ..jupyter.helpers import execute, kernel_log, running_kernel
from ..snapshots.conftest import make_python, packages_of
from .inside import PRELUDE, Kernel, outputs_of, uploads_of


@dataclass(frozen=True)
class Place:
    """A kernel whose environment, folder and mount contain a secret."""

    kernel: Kernel
    base: Path
    secret: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("shown")
    secret = f"gk-{secrets.token_hex(16)}"
    prefix, repository, notebooks = base / "env", base / "repository", base / "notebooks"
    inner = prefix / "src" / "inner"  # where `pip install -e git+https://…` puts it
    python = make_python(prefix)
    hidden = (
        *(prefix / "etc/jupyter/jupyter_server_config.json", prefix / "etc/jupyter/x.d/y.json"),
        *(
            prefix / "share/jupyter/runtime/jpserver-1.json",
            prefix / "share/jupyter/runtime/k.json",
        ),
        *(
            prefix / "share/jupyter/notebook_secret",
            prefix / "share/jupyter/jupyter_ai/config.json",
        ),
        *(prefix / "rt/kernel-1.json", notebooks / ".data/notebook_secret"),
        *(prefix / "pip.conf", prefix / ".condarc", prefix / "etc/npmrc"),
        *(prefix / "etc/gitconfig", prefix / "etc/aws/credentials", prefix / "secrets.env"),
        *(prefix / ".env", prefix / ".netrc", prefix / ".pypirc", prefix / ".aws/credentials"),
        *(prefix / "conda-meta/state", prefix / "etc/conda/activate.d/env_vars.sh"),
        *(prefix / "share/jupyter/lab/settings/overrides.json", prefix / ".config/gcloud/key"),
        *(prefix / "envs/other/.env", prefix / "envs/other/conda-meta/state"),
        *(notebooks / ".data/runtime/k.json", base / "mounted/c/jupyter_server_config.py"),
        *(repository / ".git/config", repository / ".env", repository / "outputs/theirs"),
        *(inner / ".git/config", inner / ".env", inner / "outputs/__init__.py"),
    )
    for path in hidden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secret)
    seen = (
        *(repository / "src/mine/__init__.py", inner / "tool/__init__.py"),
        *(
            prefix / "share/jupyter/kernels/k/kernel.json",
            notebooks / "seen",
            base / "mounted/seen",
        ),
    )
    for path in seen:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"seen = {str(path)!r}")
    (inner / "pyproject.toml").write_text('[project]\nname = "tool"')
    pth = f"{repository / 'src'}\n{inner}\n"
    (packages_of(prefix) / "mine.pth").write_text(pth)

    def choose(manager: KernelManager) -> None:
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv[0] = str(python)

    settings = {"mounts": [{"source": str(base / "mounted"), "target": "/mnt/mounted"}]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(prefix / "rt"))
        patch.setenv("JUPYTER_DATA_DIR", str(notebooks / ".data"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(base / "mounted/c"))
        patch.setenv("JUPYTER_PATH", os.environ["JUPYTER_DATA_DIR"])  # where kernelspecs are
        start = {"cwd": str(notebooks)}
        with running_kernel(prepare=choose, settings=settings, start=start) as (manager, client):
            assert execute(client, PRELUDE).status == "ok"
            yield Place(Kernel(manager, client, notebooks), base, secret)


SEARCH = """
found, looked = [], 0
for top in tops:
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as file:
                    looked += 1
                    if word in file.read(4096):
                        found.append(path)
            except OSError:
                continue
found = [looked, sorted(found)]
"""
"""Finds each file that has the word in its first 4 KiB."""


def split_secret(place: Place) -> str:
    """Return code that joins the secret's halves, so that the transcript does not contain it."""
    return f"b{place.secret[:9]!r} + b{place.secret[9:]!r}"


def test_search_finds_no_hidden_file(place: Place) -> None:
    """Search the environment, the repositories, the mounts and the working directory."""
    tops = [str(place.base), "/mnt", "/workspace"]
    searched, found = place.kernel.run(f"tops, word = {tops}, {split_secret(place)}\n{SEARCH}")
    assert searched > 5
    assert found == []


def test_search_as_namespace_root_finds_no_hidden_file(place: Place) -> None:
    """The empty directories that cover the files can be neither unmounted nor bypassed."""
    tops = [str(place.base), "/mnt", "/workspace", "/tmp/m"]
    code = f"""
        code = '''
        base, tops, word = {str(place.base)!r}, {tops!r}, {split_secret(place)}
        for line in open("/proc/mounts").read().splitlines():
            libc.umount2(line.split()[1].encode(), 2)
        for place in ("/tmp/m", "/tmp/n"):
            os.makedirs(place, exist_ok=True)
        libc.mount(base.encode() + b"/env", b"/tmp/m", None, 4096, None)
        libc.mount(b"overlay", b"/tmp/n", b"overlay", 0,
                   b"lowerdir=" + base.encode() + b"/env:/mnt/mounted")
        tops.append("/tmp/n")
        '''
        import textwrap
        found = as_root_of_a_namespace(textwrap.dedent(code) + search + "print(json.dumps(found))")
    """
    place.kernel.run(f"search = {SEARCH!r}; found = None")
    _, found = place.kernel.run(code)
    assert found == []


def test_imported_packages_are_shown(place: Place) -> None:
    run = place.kernel.run
    source = place.base / "repository" / "src"
    assert run("import mine; found = mine.seen") == str(source / "mine" / "__init__.py")
    inner = place.base / "env" / "src" / "inner"
    assert run("import tool; found = tool.seen") == str(inner / "tool" / "__init__.py")
    assert run(f"found = sorted(os.listdir({str(source.parent)!r}))") == ["src"]
    assert run(f"found = sorted(os.listdir({str(inner)!r}))") == ["tool"]
    kernels = place.base / "env" / "share" / "jupyter"
    assert run(f"found = os.listdir({str(kernels)!r})") == ["kernels"]
    assert run(f"found = os.listdir({str(kernels / 'kernels' / 'k')!r})") == ["kernel.json"]
    assert run("found = sorted(os.listdir('/mnt/mounted'))") == ["c", "seen"]
    assert run("found = sorted(os.listdir('/workspace'))") == [".data", "outputs", "seen"]


def test_kernel_with_covered_uploads_starts_without_snapshot(place: Place) -> None:
    """A snapshot would have other mounts."""
    assert "without a snapshot: the uploads contain Jupyter's own files" in kernel_log(
        place.kernel.manager
    )


def test_jupyter_folders_are_refused_as_uploads_and_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    for name in ("runtime", "kernels"):
        (data / name).mkdir(parents=True)
    monkeypatch.delenv("JUPYTER_RUNTIME_DIR")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(data))
    for folder in (data, data / "runtime"):
        with pytest.raises(SettingError, match="keys and tokens"):
            uploads_of(SandboxSpec(uploads=str(folder)), tmp_path)
        assert uploads_of(SandboxSpec(), folder) is None
        for inside in (folder, folder.parent):
            with pytest.raises(SettingError, match="keys of kernels"):
                outputs_of(SandboxSpec(outputs=str(inside)), tmp_path)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    assert uploads_of(SandboxSpec(), tmp_path / "config") is None
    kernels = SandboxSpec(uploads=str(data / "kernels"))
    assert uploads_of(kernels, tmp_path) == str(data / "kernels")
    mount = {"source": str(data / "runtime"), "target": "/srv/keys"}
    with (
        pytest.raises(SettingError, match="keys and tokens"),
        running_kernel(settings={"mounts": [mount]}, start={"cwd": str(tmp_path)}),
    ):
        pass
