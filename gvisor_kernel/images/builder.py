"""Building the images whose Dockerfiles come with this package, with Docker or, without, buildah.

One builds upon another (``ARG BASE=gvisor-kernel/NAME``), and the first upon a distribution: one
that a registry has, or a file that ``mmdebstrap`` makes of the distribution's packages.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import RootImageError
from gvisor_kernel.images.engines import answers, is_reference

PREFIX = "gvisor-kernel/"
DISTRIBUTION = "distribution"
"""What the first image is built upon is called, where it is made of a file."""
SUITE = "trixie"
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE")
"""Variables that name the certificates that this machine trusts, behind some proxies its own."""

_BASE = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)


def find_dockerfiles() -> Path:
    """The folder with a folder for each image. Raises RootImageError."""
    package = Path(__file__).parent.parent
    for folder in (package / "images_data", package.parent / "images"):
        if (folder / "base" / "Dockerfile").is_file():
            return folder
    raise RootImageError(
        "This installation of gvisor-kernel has no Dockerfiles.", "install gvisor-kernel again."
    )


def find_chain(name: str) -> list[Path]:
    """The folders of the images to build, the first one first. Raises RootImageError."""
    folder = find_dockerfiles()
    names = sorted(path.parent.name for path in folder.glob("*/Dockerfile"))
    chain: list[Path] = []
    while True:
        if name not in names:
            raise RootImageError(
                f"There is no Dockerfile of an image {name!r}.",
                f"choose one of {', '.join(names)}.",
            )
        chain.insert(0, folder / name)
        base = find_base(folder / name)
        if not base.startswith(PREFIX):
            return chain
        name = base.removeprefix(PREFIX)


def find_base(folder: Path) -> str:
    """What the Dockerfile in ``folder`` builds upon unless it is told otherwise."""
    found = _BASE.search((folder / "Dockerfile").read_text())
    if found is None:
        raise RootImageError(f"{folder / 'Dockerfile'} has no line ARG BASE=….")
    return found[1]


@dataclass(frozen=True)
class Builder:
    """A program that builds. ``prefix``: of the names of images that it has made itself."""

    program: str
    prefix: str

    def tag(self, name: str) -> str:
        return f"{self.prefix}{PREFIX}{name}"

    def build_argv(self, folder: Path, base: str | None, certificates: str | None) -> list[str]:
        argv = [self.program, "build", "--tag", self.tag(folder.name)]
        if self.program == "buildah":
            # Needs no container runtime, nor more rights than a user namespace gives.
            argv += ["--isolation", "chroot", "--layers", *_ulimits()]
        if base is not None:
            argv += ["--build-arg", f"BASE={base}"]
        if certificates is not None:
            argv += ["--secret", f"id=ca,src={certificates}"]
        return [*argv, str(folder)]

    def save_argv(self, name: str, file: Path) -> list[str]:
        if self.program == "buildah":
            return [
                "buildah",
                "push",
                "--disable-compression",
                self.tag(name),
                f"oci-archive:{file}",
            ]
        return ["docker", "image", "save", "--output", str(file), self.tag(name)]

    def has(self, name: str) -> bool:
        """Whether it has an image of ours already."""
        what = ["inspect", "--type", "image"] if self.program == "buildah" else ["image", "inspect"]
        done = subprocess.run(
            [self.program, *what, self.tag(name)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode == 0

    def take(self, archive: Path) -> str:
        """Make an image of a root file system's archive; its name. Raises RootImageError."""
        tag = self.tag(DISTRIBUTION)
        if self.program == "docker":
            run(["docker", "import", str(archive), tag])
            return tag
        container = read(["buildah", "from", "scratch"])
        try:
            run(["buildah", "add", "--quiet", container, str(archive)])
            run(["buildah", "commit", "--quiet", container, tag])
        finally:
            subprocess.run(["buildah", "rm", container], stdout=subprocess.DEVNULL, check=False)
        return tag


def _ulimits() -> list[str]:
    """This process's own limits: buildah would ask for more, and root may not give them here."""
    found = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        most = resource.getrlimit(number)[1]
        found += ["--ulimit", f"{name}={most}:{most}"]
    return found


def find_builder() -> Builder:
    """Docker where an engine is up, else buildah. Raises RootImageError."""
    if shutil.which("docker") is not None and answers("docker"):
        return Builder("docker", "")
    if shutil.which("buildah") is None:
        raise RootImageError(
            "Neither a Docker engine nor buildah is here to build an image.",
            "`sudo apt-get install buildah uidmap`; or start Docker.",
        )
    if os.geteuid() != 0 and not _has_subordinate_ids():
        raise RootImageError(
            "buildah needs subordinate uids and gids to build as an ordinary user.",
            "`sudo usermod --add-subuids 200000-265535 --add-subgids 200000-265535 $USER`; or"
            " build it elsewhere, and import the file.",
        )
    return Builder("buildah", "localhost/")


def _has_subordinate_ids() -> bool:
    done = subprocess.run(
        ["unshare", "--user", "--map-auto", "--map-root-user", "true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def bootstrap(suite: str, file: Path) -> None:
    """Write the root file system of a Debian or Ubuntu release to ``file``, of its packages alone.

    Raises RootImageError.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", suite):
        raise RootImageError(
            f"{suite!r} is the name of no release.", f"give one such as {SUITE}, or noble."
        )
    if shutil.which("mmdebstrap") is None:
        raise RootImageError(
            "The program mmdebstrap is not installed.", "`sudo apt-get install mmdebstrap uidmap`."
        )
    # Device nodes cannot be made by an ordinary user, nor are they needed.
    run(["mmdebstrap", "--variant=minbase", "--skip=output/dev", suite, str(file)])


def build(
    builder: Builder, name: str, *, base: str | None, archive: Path | None, file: Path
) -> Iterator[str]:
    """Build the image ``name``, with those that it builds upon if they are missing, into ``file``.

    ``base``: a reference for the first, ``archive``: a root file system for it. Yields the name of
    each when it begins. Raises RootImageError.
    """
    chain = find_chain(name)
    certificates = next((os.environ[v] for v in CERTIFICATES if os.environ.get(v)), None)
    if archive is not None:
        yield DISTRIBUTION
        base = builder.take(archive)
    elif base is None:
        while len(chain) > 1 and builder.has(chain[-2].name):
            base = builder.tag(chain[-2].name)
            chain = chain[-1:]
    for folder in chain:
        yield folder.name
        run(builder.build_argv(folder, base, certificates))
        base = builder.tag(folder.name)
    run(builder.save_argv(name, file))


def check_base(text: str) -> str:
    if not is_reference(text):
        raise RootImageError(
            f"{text!r} is no name of an image.", "give one such as debian:13-slim."
        )
    return text


def run(argv: Sequence[str]) -> None:
    """Run a program whose output is for the person who waits. Raises RootImageError."""
    # Output on standard error: it is progress, and standard output is for the result.
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=2, check=False)
    if done.returncode:
        raise RootImageError(
            f"{argv[0]} ended with status {done.returncode}.", "what it wrote above says why."
        )


def read(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise RootImageError(
            f"{argv[0]} ended with status {done.returncode}.", "what it wrote above says why."
        )
    return done.stdout.decode(errors="replace").strip()
