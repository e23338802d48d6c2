"""Building images: the calls of Docker and buildah, which are fake programs here.

Real builds take minutes and need a network; docs/images.md has their results.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import RootImageError
from gvisor_kernel.images import engines as builder
from gvisor_kernel.images.engines import find_base, find_chain, find_dockerfiles
from gvisor_kernel.images.image import Store

from .helpers import ROOT, make_docker, make_oci, make_tar

FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
case "$*" in
  "from scratch") echo c1;;
  inspect*|"image inspect"*) grep -qx "${{4:-$3}}" {has};;
  push*) /bin/cp {image} "${{4#oci-archive:}}";;
  "image save"*) /bin/cp {image} "$4";;
  version) exit {status};;
esac
"""


class Program:
    """A fake Docker or buildah on PATH, and the calls of it."""

    def __init__(self, folder: Path, name: str, image: Path, *, running: bool = True) -> None:
        self._log = folder / f"{name}.log"
        self._has = folder / f"{name}.has"
        self._has.touch()
        words = {"log": self._log, "has": self._has, "image": image}
        script = FAKE.format(
            status=0 if running else 1, **{k: shlex.quote(str(v)) for k, v in words.items()}
        )
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    def add_image(self, tag: str) -> None:
        self._has.write_text(f"{tag}\n")

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines()


@pytest.fixture
def programs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with only grep on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "grep").symlink_to("/usr/bin/grep")
    monkeypatch.setenv("PATH", str(folder))
    for name in builder.CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(builder, "_has_subordinate_ids", lambda: True)
    return folder


@pytest.fixture
def buildah(programs: Path, tmp_path: Path) -> Program:
    image = make_oci([make_tar(ROOT)]).write_tar(tmp_path / "image.oci")
    return Program(programs, "buildah", image)


def test_every_dockerfile_is_based_on_a_distribution() -> None:
    for path in find_dockerfiles().glob("*/Dockerfile"):
        chain = find_chain(path.parent.name)
        assert chain[-1] == path.parent
        assert chain[0].name == "base"
        assert not find_base(chain[0]).startswith(builder.PREFIX)


def test_buildah_builds_an_image_and_its_base(
    buildah: Program, store: Store, tmp_path: Path
) -> None:
    archive = tmp_path / "distribution.tar"
    archive.touch()
    assert main(["image", "build", "python", "--archive", str(archive)]) == 0
    builds = [line for line in buildah.calls if line.startswith("build ")]
    own = "localhost/gvisor-kernel"
    assert [line.rpartition("/")[2] for line in builds] == ["base", "python"]
    assert f"BASE={own}/distribution" in builds[0]
    assert f"BASE={own}/base" in builds[1]
    assert all("--isolation chroot" in line for line in builds)
    assert not any("--secret" in line for line in builds)
    assert buildah.calls[:4] == [
        "from scratch",
        f"add --quiet c1 {archive}",
        f"commit --quiet c1 {own}/distribution",
        "rm c1",
    ]
    image = store.find("python")
    assert image.source["from"] == "the Dockerfile of python"


def test_existing_base_is_not_built_again(buildah: Program) -> None:
    buildah.add_image("localhost/gvisor-kernel/base")
    assert main(["image", "build", "python", "--name", "data"]) == 0
    (built,) = (line for line in buildah.calls if line.startswith("build "))
    assert "BASE=localhost/gvisor-kernel/base" in built
    assert Store.open().find("data").names == ("data",)


def test_docker_is_preferred_if_its_engine_runs(
    programs: Path, buildah: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/our-own.crt")
    image = make_docker([make_tar(ROOT)]).write_tar(tmp_path / "image.docker")
    docker = Program(programs, "docker", image)
    assert main(["image", "build", "base", "--base", "ubuntu:24.04"]) == 0
    (built,) = (line for line in docker.calls if line.startswith("build "))
    assert built.startswith("build --tag gvisor-kernel/base --build-arg BASE=ubuntu:24.04 ")
    assert "--secret id=ca,src=/etc/our-own.crt" in built
    Program(programs, "docker", image, running=False)
    assert builder.find_builder().program == "buildah"


def test_failed_build_leaves_no_image(
    programs: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    (programs / "buildah").write_text("#!/bin/sh\necho no such package >&2\nexit 7\n")
    (programs / "buildah").chmod(0o755)
    assert main(["image", "build", "base"]) == 1
    error = capfd.readouterr().err
    assert "no such package" in error
    assert "buildah ended with status 7" in error
    assert store.images() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "There is no Dockerfile for an image 'nothing'"),
        (["../base"], "cannot have the name|There is no Dockerfile"),
        (["base", "--base=-v"], "is not the name of an image"),
        (["base", "--bootstrap=--help"], "is not the name of a release"),
        (["base", "--bootstrap=trixie"], "mmdebstrap is not installed"),
    ],
)
def test_invalid_build_arguments_are_refused(
    buildah: Program, arguments: list[str], words: str
) -> None:
    with pytest.raises(RootImageError, match=words):
        run(*arguments)


def test_missing_builder_is_reported(programs: Path) -> None:
    with pytest.raises(RootImageError, match="a running Docker engine or buildah"):
        run("base")


def run(*arguments: str) -> None:
    from gvisor_kernel.cli.images import run_build
    from gvisor_kernel.cli.main import make_parser

    run_build(make_parser().parse_args(["image", "build", *arguments]))


def test_list_shows_the_dockerfile(buildah: Program, capsys: pytest.CaptureFixture[str]) -> None:
    main(["image", "build", "base"])
    capsys.readouterr()
    main(["image", "list", "--json"])
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["from"] == "the Dockerfile of base"
