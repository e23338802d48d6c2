"""Images of Docker or Podman, saved to a file that is then imported like any other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

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
        # no timeout: a program that the user started with this command: it may take long, prints
        # its progress, and ends with Ctrl-C
        done = subprocess.run(
            [program, "image", "save", reference],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )
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
