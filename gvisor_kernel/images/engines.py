"""Images that Docker or Podman has: saved to a file, which is then imported as any other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from gvisor_kernel.errors import RootImageError

PROGRAMS = ("docker", "podman")
ASK_SECONDS = 3.0
"""How long an engine may take to say that it is there."""

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


def is_reference(text: str) -> bool:
    return _REFERENCE.fullmatch(text) is not None


def save_image(reference: str, path: Path) -> None:
    """Let an engine write its image ``reference`` to ``path``. Raises RootImageError."""
    if not is_reference(reference):
        raise RootImageError(
            f"{reference!r} is neither a file, nor a folder, nor the name of an image.",
            "give the path of one that exists, or a name such as docker shows it.",
        )
    program = find_engine(f"{reference} is no file, and as the name of an image")
    with path.open("wb") as file:
        done = subprocess.run(
            [program, "image", "save", reference],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-1000:]
        raise RootImageError(
            f"{program} cannot save the image {reference}.",
            f"see which it has: {program} image ls; get it: {program} pull {reference}",
            words,
        )


def find_engine(wanted: str) -> str:
    """The program of an engine that answers. Raises RootImageError, beginning with ``wanted``."""
    silent = []
    for program in PROGRAMS:
        if shutil.which(program) is None:
            continue
        if answers(program):
            return program
        silent.append(program)
    if silent:
        raise RootImageError(
            f"{wanted} it would have to come from {silent[0]}, whose engine does not answer.",
            "start it, and see that you may use it: `docker info`. Or save the image where one"
            " runs, and import that file: `docker image save NAME -o FILE`.",
        )
    raise RootImageError(
        f"{wanted} it would have to come from Docker or Podman, and neither is installed.",
        "give a file or folder that exists; docs/images.md says of what kind.",
    )


def answers(program: str) -> bool:
    """Whether the engine behind ``program`` is up. A few seconds at most."""
    try:
        done = subprocess.run(
            [program, "version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
