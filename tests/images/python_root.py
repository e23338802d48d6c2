"""Make an image with Python and ipykernel from files of this machine, without a network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from .helpers import MACHINE

LEFT_OUT = re.compile(
    r"/(tests?|idlelib|ensurepip|tkinter|turtledemo|lib2to3|pydoc_data|unittest|config-\d[^/]*)(/|$)"
    r"|/(debugpy|jedi|parso|psutil/tests|wcwidth/table_\w+)(/|$)"
    r"|_tkinter|_test|\.opt-\d\.pyc$|\.a$|-info/(RECORD|sboms)"
)
"""Files that take space and are not needed to run a cell."""
PACKAGES = "opt/packages"
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def find_distributions(name: str) -> set[str]:
    """Return ``name`` and the installed distributions that it requires."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        found.add(key)
        for requirement in importlib.metadata.requires(name) or []:
            if "extra ==" not in requirement:
                required = re.match(r"[\w.-]+", requirement)
                assert required is not None
                try:
                    importlib.metadata.distribution(required[0])
                except importlib.metadata.PackageNotFoundError:
                    continue  # a requirement of another system
                waiting.append(required[0])
    return found


def package_files(names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and path.is_file() and not LEFT_OUT.search(f"/{file}"):
                yield path, f"{PACKAGES}/{file}"


def system_files(python: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of the interpreter and its library, with their paths as if it was in /usr."""
    yield python, f"usr/bin/{VERSION}"
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(library):
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages")]
        for name in files:
            path = Path(folder, name)
            if not LEFT_OUT.search(str(path.relative_to(library.parent))):
                yield path, f"usr/lib/{VERSION}/{path.relative_to(library)}"


def shared_libraries(paths: Iterable[Path]) -> set[str]:
    programs = [str(path) for path in paths]
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return set(re.findall(r"(?:=>|^)\s*(/\S+) \(0x", done.stdout, re.MULTILINE))


def write_layer(archive: tarfile.TarFile, files: dict[str, Path], links: dict[str, str]) -> None:
    for name, source in sorted(files.items()):
        archive.add(os.path.realpath(source), name, recursive=False)
    for name, target in links.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)


def make_image(
    directory: Path, more: Iterable[str] = (), more_programs: Iterable[str] = ()
) -> Path:
    """Write two images: ``plain`` has Python only, ``kernel`` adds ipykernel.

    The format is that of ``docker save``, because it needs only the digest of each layer. ``more``
    are additional distributions, added if they are installed here.
    """
    python = Path(os.path.realpath(sys.executable))
    system = {name: path for path, name in system_files(python)}
    names = find_distributions("ipykernel")
    programs = [Path("/bin/sh"), *(Path("/bin", name) for name in more_programs)]
    for name in more:
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            names |= find_distributions(name)
    if find_spec("bash_kernel") is not None:
        names |= find_distributions("bash_kernel")
        programs.append(Path("/bin/bash"))
    packages = {name: path for path, name in package_files(names)}
    binaries = [p for p in (*system.values(), *packages.values()) if p.suffix == ".so"]
    for library in shared_libraries([python, *programs, *binaries]):
        if "-packages" not in library:  # these come with their packages
            system[library.lstrip("/")] = Path(library)
    system |= {f"bin/{program.name}": program for program in programs}
    digests = []
    for name, files, links in (
        ("0.tar", system, {"usr/bin/python3": VERSION}),
        ("1.tar", packages, {}),
    ):
        with tarfile.open(directory / name, "w", format=tarfile.PAX_FORMAT) as archive:
            write_layer(archive, files, links)
        with (directory / name).open("rb") as layer:
            digests.append(hashlib.file_digest(layer, "sha256").hexdigest())
    environment = ["PATH=/usr/bin:/bin", f"PYTHONPATH=/{PACKAGES}", "GREETING=from the image"]
    images = []
    for count, tag in enumerate(("plain", "kernel"), start=1):
        config = make_config(digests[:count], environment)
        (directory / f"{tag}.json").write_bytes(config)
        layers = [f"{n}.tar" for n in range(count)]
        images.append({"Config": f"{tag}.json", "RepoTags": [tag], "Layers": layers})
    (directory / "manifest.json").write_text(json.dumps(images))
    return directory


def make_config(digests: list[str], environment: list[str]) -> bytes:
    document = {
        "architecture": MACHINE,
        "os": "linux",
        "config": {"Env": environment},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }
    return json.dumps(document).encode()
