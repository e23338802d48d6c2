"""Docker, Podman and buildah: images that they have, and those that they build.

An image of Docker or Podman is saved to a file, and then imported like any other. The images whose
Dockerfiles come with this package are built, each on another one (``ARG BASE=gvisor-kernel/NAME``),
the first one on a distribution: an image of a registry, or a file that ``mmdebstrap`` makes from
packages.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gvisor_kernel.errors import RootImageError

# by path: below a private store of this user; an image that a person has given

DOCKER = "docker"  # no runtime: the program
PROGRAMS = (DOCKER, "podman")
ASK_SECONDS = 3.0
"""Seconds that an engine may take to answer that it is running."""

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


def is_reference(text: str) -> bool:
    """Return whether ``text`` may be the name of an image, and so is no option of a program."""
    return _REFERENCE.fullmatch(text) is not None


def save_image(reference: str, path: Path) -> None:
    """Save the image ``reference`` of Docker or Podman to ``path``. Blocks, for minutes if it is
    large.

    :raises RootImageError: when no engine answers, or it cannot save the image
    """
    if not is_reference(reference):
        raise RootImageError(
            f"{reference!r} is neither a file, nor a directory, nor the name of an image.",
            "give the path of an existing file or directory, or a name from `docker image ls`.",
        )
    program = find_engine(reference)
    with path.open("wb") as file:
        done = _call([program, "image", "save", reference], stdout=file, stderr=subprocess.PIPE)
    if done.returncode:
        output = done.stderr.decode(errors="replace").strip()[-1000:]
        raise RootImageError(
            f"{program} cannot save the image {reference}.",
            f"list its images: {program} image ls; get this one: {program} pull {reference}",
            output,
        )


def find_engine(reference: str) -> str:
    """Return the program of an engine that answers. ``reference`` is for the message.

    :raises RootImageError: when no engine answers
    """
    not_running = []
    for program in PROGRAMS:
        if shutil.which(program) is None:
            continue
        if is_running(program):
            return program
        not_running.append(program)
    if not_running:
        raise RootImageError(
            f"{reference} is not a file, and the engine of {not_running[0]} does not answer, so it"
            " could not be asked for an image of that name.",
            f"start the engine, and check that you may use it: `{not_running[0]} info`. Or save the"
            " image where an engine runs, and import that file: `docker image save NAME -o FILE`.",
        )
    raise RootImageError(
        f"{reference} is not a file, and neither Docker nor Podman is installed to get an image of"
        " that name.",
        "give an existing file or directory; see docs/images.md for what can be imported.",
    )


def is_running(program: str) -> bool:
    """Return whether the engine of ``program`` is running. Blocks for at most ASK_SECONDS."""
    with suppress(OSError, subprocess.TimeoutExpired):
        return _call([program, "version"], timeout=ASK_SECONDS).returncode == 0
    return False


PREFIX = "gvisor-kernel/"
DISTRIBUTION = "distribution"
"""Name of the first image's base if it is made from a file."""
SUITE = "trixie"
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE")
"""Variables that name the file of CA certificates of this machine. Some proxies need their own."""

_BASE = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)


def find_dockerfiles() -> Path:
    """Return the folder that contains a folder for each image.

    :raises RootImageError: when the installation has none
    """
    package = Path(__file__).parent.parent
    for folder in (package / "images_data", package.parent / "images"):
        if (folder / "base" / "Dockerfile").is_file():
            return folder
    raise RootImageError(
        "This installation of gvisor-kernel has no Dockerfiles.", "install gvisor-kernel again."
    )


def find_chain(name: str) -> list[Path]:
    """Return the folders of ``name`` and of its bases, in the order in which they are built.

    :raises RootImageError: when there is no Dockerfile for one of them
    """
    folder = find_dockerfiles()
    names = sorted(path.parent.name for path in folder.glob("*/Dockerfile"))
    chain: list[Path] = []
    while True:
        if name not in names:
            raise RootImageError(
                f"There is no Dockerfile for an image {name!r}.",
                f"choose one of {', '.join(names)}.",
            )
        chain.insert(0, folder / name)
        base = find_base(folder / name)
        if not base.startswith(PREFIX):
            return chain
        name = base.removeprefix(PREFIX)


def find_base(folder: Path) -> str:
    """Return the default base of the Dockerfile in ``folder``.

    :raises RootImageError: when it names none
    """
    found = _BASE.search((folder / "Dockerfile").read_text())
    if found is None:
        raise RootImageError(f"{folder / 'Dockerfile'} has no line ARG BASE=….")
    return found[1]


@dataclass(frozen=True)
class Builder:
    """A program that builds images. It puts ``prefix`` before the names of local images."""

    program: str
    prefix: str

    def tag(self, name: str) -> str:
        """Return the reference of this package's image ``name`` in the builder."""
        return f"{self.prefix}{PREFIX}{name}"

    def build_argv(self, folder: Path, base: str | None, certificates: str | None) -> list[str]:
        """Return the command that builds the Dockerfile in ``folder`` on ``base``.

        ``certificates``: a file of certificate authorities, which the build trusts.
        """
        argv = [self.program, "build", "--tag", self.tag(folder.name)]
        if self.program == "buildah":
            # With chroot it needs no container runtime, and only the rights of a user namespace.
            argv += ["--isolation", "chroot", "--layers", *_ulimits()]
        if base is not None:
            argv += ["--build-arg", f"BASE={base}"]
        if certificates is not None:
            argv += ["--secret", f"id=ca,src={certificates}"]
        return [*argv, str(folder)]

    def save_argv(self, name: str, file: Path) -> list[str]:
        """Return the command that saves the image ``name`` to ``file``."""
        if self.program == "buildah":
            return [
                "buildah",
                "push",
                "--disable-compression",
                self.tag(name),
                f"oci-archive:{file}",
            ]
        return [DOCKER, "image", "save", "--output", str(file), self.tag(name)]

    def has(self, name: str) -> bool:
        """Return whether the builder has an image of this package already."""
        command = (
            ["inspect", "--type", "image"] if self.program == "buildah" else ["image", "inspect"]
        )
        return _call([self.program, *command, self.tag(name)]).returncode == 0

    def import_root(self, archive: Path) -> str:
        """Make the image DISTRIBUTION from the archive of a root file system. Return its name.

        :raises RootImageError: when the program fails
        """
        tag = self.tag(DISTRIBUTION)
        if self.program == DOCKER:
            run([DOCKER, "import", str(archive), tag])
            return tag
        container = read(["buildah", "from", "scratch"])
        try:
            run(["buildah", "add", "--quiet", container, str(archive)])
            run(["buildah", "commit", "--quiet", container, tag])
        finally:
            _call(["buildah", "rm", container], stderr=None)
        return tag


def _ulimits() -> list[str]:
    """Return options with the limits of this process. buildah's defaults may exceed them."""
    found = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        limit = resource.getrlimit(number)[1]
        found += ["--ulimit", f"{name}={limit}:{limit}"]
    return found


def find_builder() -> Builder:
    """Return Docker if its engine is running, otherwise buildah.

    :raises RootImageError: when neither can be used
    """
    if shutil.which(DOCKER) is not None and is_running(DOCKER):
        return Builder(DOCKER, "")
    if shutil.which("buildah") is None:
        raise RootImageError(
            "Building an image needs a running Docker engine or buildah; there is neither.",
            "`sudo apt-get install buildah uidmap`, or start Docker.",
        )
    if os.geteuid() != 0 and not _has_subordinate_ids():
        raise RootImageError(
            "buildah needs subordinate uids and gids to build as an ordinary user.",
            "`sudo usermod --add-subuids 200000-265535 --add-subgids 200000-265535 $USER`, or"
            " build the image on another machine, and import the file.",
        )
    return Builder("buildah", "localhost/")


def _has_subordinate_ids() -> bool:
    return not _call(["unshare", "--user", "--map-auto", "--map-root-user", "true"]).returncode


def bootstrap(suite: str, file: Path) -> None:
    """Write the root file system of a Debian or Ubuntu release to ``file``, from its packages.

    Blocks, for about a minute.

    :raises RootImageError: when ``suite`` is not a valid name, or mmdebstrap is missing or fails
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", suite):
        raise RootImageError(
            f"{suite!r} is not the name of a release.", f"give a name such as {SUITE} or noble."
        )
    if shutil.which("mmdebstrap") is None:
        raise RootImageError(
            "The program mmdebstrap is not installed.", "`sudo apt-get install mmdebstrap uidmap`."
        )
    # An ordinary user cannot create device nodes, and they are not needed.
    run(["mmdebstrap", "--variant=minbase", "--skip=output/dev", suite, str(file)])


def build(
    builder: Builder, name: str, *, base: str | None, archive: Path | None, file: Path
) -> Iterator[str]:
    """Build the image ``name``, and its bases if they are missing, and save it to ``file``.

    ``base`` is the reference of another base for the first image, ``archive`` a root file system to
    make that base from. Yields the name of each image before it is built. Blocks.

    :raises RootImageError: when a program fails
    """
    chain = find_chain(name)
    certificates = next((os.environ[v] for v in CERTIFICATES if os.environ.get(v)), None)
    if archive is not None:
        yield DISTRIBUTION
        base = builder.import_root(archive)
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
    """Return ``text``.

    :raises RootImageError: when it is not a reference of an image
    """
    if not is_reference(text):
        raise RootImageError(
            f"{text!r} is not the name of an image.", "give a name such as debian:13-slim."
        )
    return text


def run(argv: Sequence[str]) -> None:
    """Run a program and show its output.

    :raises RootImageError: when it fails
    """
    # The output is progress, so it goes to standard error. Standard output is for the result.
    _check(argv, _call(argv, stdout=2, stderr=None))


def read(argv: Sequence[str]) -> str:
    """Run a program and return its standard output.

    :raises RootImageError: when it fails
    """
    done = _check(argv, _call(argv, stdout=subprocess.PIPE, stderr=None))
    return done.stdout.decode(errors="replace").strip()


def _check(
    argv: Sequence[str], done: subprocess.CompletedProcess[bytes]
) -> subprocess.CompletedProcess[bytes]:
    if done.returncode:
        raise RootImageError(
            f"{argv[0]} ended with status {done.returncode}.", "see its output above."
        )
    return done


def _call(
    argv: Sequence[str],
    *,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: int | None = subprocess.DEVNULL,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    nothing = subprocess.DEVNULL
    # Without a timeout it may take long: the user has started it with this command, it prints its
    # progress, and it ends with Ctrl-C.
    return subprocess.run(
        argv, stdin=nothing, stdout=stdout, stderr=stderr, timeout=timeout, check=False
    )
