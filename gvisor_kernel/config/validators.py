"""Validators of settings: sizes, choices, names, paths.

A validator takes the name of the setting (for the message) and the value as it was written, and
returns the value for SandboxSpec. Each ``accept_*`` function is one, or makes one from its bounds.

:raises SettingError: in each of them, when the value is not accepted
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
from collections.abc import Callable
from keyword import iskeyword

from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.homes import find_home

MIB = 1024 * 1024
GIB = 1024 * MIB
MAX_SIZE = 2**60
MAX_MODULES = 100
MAX_STRINGS = 16 * 1024
"""ASCII characters in a list of strings: the list is sent in one frame when a kernel starts."""

FORBIDDEN_SOURCES = ("/dev", "/proc", "/sys")
NOT_WRITABLE = (
    *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"),
    *FORBIDDEN_SOURCES,
)
"""Folders of the host that would let a sandbox escape if it could write them."""

HOST_IMAGE = "host"
"""The value of ``image`` that means the host's own Python environment."""
IMAGE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
IMAGE_NAME_RULE = 'lower-case letters, digits, ".", "_" and "-", at most 64'

ENGINE_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
"""The name of an image in a Docker engine, optionally with a registry, a tag and a digest."""

PROJECT = "project"
"""The value of ``uploads`` that means the project around the notebook's folder. A folder of that
name is "./project"."""

PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RUNSC = re.compile(r"system|(?=[^/]*[0-9])[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}|/[^\0-\x1f]{1,4095}")
"""The name of a release, or an absolute path."""

INSTALLED_SKILLS = "installed"
"""The value of ``skills`` that means the shipped skills and those of this user."""

HIBERNATE_KEY = re.compile(r"file:/[^\0-\x1f]{1,4095}|keyring:[^\0-\x1f]{1,255}/[^\0-\x1f/]{1,255}")

RESERVED_VARIABLES = ("HOME", "IS_SANDBOX", "JPY_PARENT_PID", "PATH")


def accept_choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    """Return a validator that accepts only the texts ``choices``."""
    shown = " or ".join(f'"{choice}"' for choice in choices)

    def accept(name: str, value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise SettingError(name, value, shown)

    return accept


def accept_whole(least: int, most: int) -> Callable[[str, object], int]:
    """Return a validator that accepts whole numbers from ``least`` to ``most``."""

    def accept(name: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise SettingError(name, value, f"a whole number from {least} to {most}")

    return accept


def accept_seconds(most: int) -> Callable[[str, object], float]:
    """Return a validator that accepts a time in seconds, from 1 to ``most``."""

    def accept(name: str, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= most:
            return float(value)
        raise SettingError(name, value, f"a number of seconds from 1 to {most}")

    return accept


def accept_idle_seconds(name: str, value: object) -> float | None:
    """Return a time in seconds; 0 for never, None for a default that depends on the machine.

    :raises SettingError: when it is none
    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e8:
        return float(value)
    raise SettingError(name, value, "a number of seconds, or 0 for never")


def accept_text(
    pattern: re.Pattern[str], accepted: str, *, may_be_empty: bool = True
) -> Callable[[str, object], str]:
    """Return a validator that accepts texts of a form. ``accepted`` is for the message."""

    def accept(name: str, value: object) -> str:
        if isinstance(value, str) and (pattern.fullmatch(value) or (may_be_empty and not value)):
            return value
        raise SettingError(name, value, accepted)

    return accept


def parse_value(text: str) -> object:
    """Parse a value from a command line: JSON, a Python literal, or otherwise the text itself."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def accept_flag(name: str, value: object) -> bool:
    """Return a boolean. Numbers and texts are not accepted.

    :raises SettingError: when it is something else
    """
    if isinstance(value, bool):
        return value
    raise SettingError(name, value, "true or false")


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 1024, "M": MIB, "G": GIB, "T": 1024 * GIB}


def accept_size(least: int) -> Callable[[str, object], int]:
    """Return a validator that accepts sizes of at least ``least`` bytes, as numbers or as text."""

    def accept(name: str, value: object) -> int:
        size = -1
        if isinstance(value, int) and not isinstance(value, bool):
            size = value
        elif isinstance(value, str) and len(value) < 40:
            match = _SIZE.fullmatch(value.strip())
            if match:
                size = int(float(match[1]) * _UNITS[(match[2] or "").upper()])
        if least <= size <= MAX_SIZE:
            return size
        raise SettingError(
            name,
            value,
            f'a number of bytes, or text such as "4G" or "512M"; at least {least // MIB}M',
        )

    return accept


def accept_strings(name: str, value: object, accepted: str) -> tuple[str, ...]:
    """Return a list of texts, none of them empty. ``accepted`` is for the message.

    :raises SettingError: when it is something else, or all together are too long
    """
    if (
        isinstance(value, list | tuple)
        and all(isinstance(item, str) and item and is_text(item) for item in value)
        and sum(len(ascii(item)) for item in value) <= MAX_STRINGS
    ):
        return tuple(value)
    raise SettingError(name, value, accepted)


def is_text(value: str) -> bool:
    """Return whether ``value`` can be an argument of a program: no NUL, no lone surrogate."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def accept_command(name: str, value: object) -> tuple[str, ...]:
    """Return the words of a kernel's command; none for the kernelspec's own.

    :raises SettingError: when no word contains ``{connection_file}``
    """
    accepted = 'a list of strings, one of them with "{connection_file}" in it, or an empty list'
    command = accept_strings(name, value, accepted)
    if command and not any("{connection_file}" in word for word in command):
        raise SettingError(name, value, accepted)
    return command


def accept_modules(name: str, value: object) -> tuple[str, ...]:
    """Return the names of modules to preload, each once.

    :raises SettingError: when they are too many, or one is not a dotted name of Python
    """
    accepted = 'a list of at most 100 names of Python modules, such as ["numpy", "os.path"]'
    names = accept_strings(name, value, accepted)
    if len(names) > MAX_MODULES:
        raise SettingError(name, value, accepted)
    for i, item in enumerate(names):
        parts = item.split(".")
        if len(item) > 200 or not all(p.isidentifier() and not iskeyword(p) for p in parts):
            raise SettingError(f"{name}[{i}]", item, accepted)
    return tuple(dict.fromkeys(names))


def accept_preload(name: str, value: object) -> tuple[str, ...] | str:
    """Return "auto", or the names of modules to preload; none for "off".

    :raises SettingError: when it is something else
    """
    if value == "auto":
        return "auto"
    if value == "off":
        return ()
    if not isinstance(value, (list, tuple)):
        raise SettingError(name, value, '"auto", "off" or a list of names of Python modules')
    return accept_modules(name, value)


def accept_profile(name: str, value: object) -> str | None:
    """Return the name of an IPython profile; None for none.

    :raises SettingError: when it cannot be the name of one
    """
    if value is None or (isinstance(value, str) and PROFILE_NAME.fullmatch(value)):
        return value
    raise SettingError(name, value, 'the name of an IPython profile, such as "default", or None')


def accept_runsc(name: str, value: object) -> str:
    """Return which runsc is to be used. Whether it is there is checked at a kernel's start.

    :raises SettingError: when it can be neither a release nor a path
    """
    text = value
    if isinstance(value, int | float) and 0 < value < 1e9:  # 20240729.0 is a number, too
        text = str(value)
    if isinstance(text, str) and (text == "" or RUNSC.fullmatch(text)):
        return text
    raise SettingError(
        name,
        value,
        'a release that "gvisor-kernel runsc list" shows, "system", an absolute path, or "" for the'
        " release that was chosen",
    )


def accept_environment(name: str, value: object) -> tuple[str, ...]:
    """Return the names of variables to pass on, each once.

    :raises SettingError: when one is not a valid name, or is reserved
    """
    accepted = (
        "a list of names of environment variables, none of them KERNEL_* or "
        + ", ".join(RESERVED_VARIABLES[:-1])
        + f" or {RESERVED_VARIABLES[-1]}"
    )
    names = accept_strings(name, value, accepted)
    for i, item in enumerate(names):
        if (
            not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", item, re.ASCII)
            or item in RESERVED_VARIABLES
            or item.startswith("KERNEL_")
        ):
            raise SettingError(f"{name}[{i}]", item, accepted)
    return tuple(dict.fromkeys(names))


def accept_image(name: str, value: object) -> str:
    """Check only the form of the name. Whether the image exists is checked at a kernel's start."""
    if isinstance(value, str) and (IMAGE_NAME.fullmatch(value) or ENGINE_IMAGE.fullmatch(value)):
        return value
    raise SettingError(name, value, _IMAGE_RULE)


def check_image(images: str, image: str) -> None:
    """Check that there can be an image of such a name where a runtime's ``images`` are.

    ``images``: as in ``RuntimeEntry``.

    :raises SettingError: when there cannot
    """
    if images and image == HOST_IMAGE:
        raise SettingError(
            "image",
            image,
            f"the name of an image in {images} that has python3 and ipykernel: the Python"
            " environment of this machine is not available there",
        )
    if not images and not IMAGE_NAME.fullmatch(image):
        raise SettingError("image", image, _IMAGE_RULE)


_IMAGE_RULE = f'"{HOST_IMAGE}" or the name of an image: {IMAGE_NAME_RULE}'


# Paths. These checks only report mistakes early. ``runtimes/mounts`` decides when it opens a
# folder, because links may change until then; so a path is returned with its links.


def is_plain_path(value: object) -> bool:
    """Return whether ``value`` is a text that can be a path in a mount table, without ``..``."""
    return (
        isinstance(value, str)
        and value != ""
        and value.isprintable()
        and len(os.fsencode(value)) < 1024
        and ".." not in value.split("/")
    )


def accept_absolute(name: str, value: object) -> str:
    """Return an absolute path, which may not exist here; empty for none.

    :raises SettingError: when it is something else
    """
    if isinstance(value, str) and (not value or (is_plain_path(value) and value.startswith("/"))):
        return value
    raise SettingError(name, value, "an absolute path")


def is_within(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder`` or below it. Both are absolute, links not resolved."""
    return folder == "/" or path == folder or path.startswith(folder.rstrip("/") + "/")


def real_path(path: str) -> str:
    """Resolve links in ``path``, as far as this user can read them. Never raises."""
    try:
        return os.path.realpath(path)
    except OSError:  # a link that cannot be read, as in /proc
        return posixpath.normpath(path)


def is_directory(path: str) -> bool:
    """Return whether ``path`` is a directory that this user can access. Never raises."""
    return os.path.isdir(path)  # noqa: PTH112 - Path's raises for long names and denied access


def is_free(path: str) -> bool:
    """Return whether nothing exists at ``path``, and the user may look there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def may_be_writable(path: str) -> bool:
    """Return whether a sandbox may write the host's ``path``, which has no links: it cannot escape
    by it."""
    return (
        path != "/"
        and not any(is_within(path, folder) for folder in NOT_WRITABLE)
        and find_home(path) is None
    )


def describe_no_home(path: str, home: str) -> str:
    """Describe for a SettingError what is accepted instead of ``path``, which contains ``home``."""
    fact = "is the home of an account" if path == home else f"contains a home, {home}"
    return f"a folder that neither is nor contains a home ({path} {fact}): choose one below it"


def as_written(path: str) -> str:
    """Return an absolute path without ``//``, ``.`` and a slash at its end, with its links."""
    return "/" + posixpath.normpath(path).lstrip("/")


def accept_uploads(name: str, value: object) -> str | None:
    """Return the folder that a kernel reads, or PROJECT; None for none.

    A relative path is below the notebook's folder.

    :raises SettingError: when it does not exist, is a system folder, or is or contains a home
    """
    if value is None:
        return None
    if value == PROJECT:
        return PROJECT
    accepted = (
        f'"{PROJECT}", a path below the notebook\'s folder, the absolute path of a folder that '
        'exists (both without ".."), or None'
    )
    if not isinstance(value, str) or not is_plain_path(value):
        raise SettingError(name, value, accepted)
    path = os.path.expanduser(value)  # noqa: PTH111 - Path would also normalise
    if not path.startswith("/"):
        path = posixpath.normpath(path)
        return f"./{path}" if path == PROJECT else path
    real = real_path(path)
    if not is_directory(real) or any(is_within(real, folder) for folder in FORBIDDEN_SOURCES):
        raise SettingError(name, value, accepted)
    home = find_home(real)
    if home is not None:
        raise SettingError(name, value, describe_no_home(real, home))
    return as_written(path)


def accept_outputs(name: str, value: object) -> str | None:
    """Return the folder that a kernel writes; None for none. A relative path is as in uploads.

    :raises SettingError: when it is a system folder, or is or contains a home
    """
    if value is None:
        return None
    accepted = (
        'a path below the notebook\'s folder (not "."), an absolute path that is neither a system '
        'folder nor a home directory (both without ".."), or None'
    )
    if not isinstance(value, str) or not is_plain_path(value):
        raise SettingError(name, value, accepted)
    path = os.path.expanduser(value)  # noqa: PTH111 - Path would also normalise
    if not path.startswith("/"):
        path = posixpath.normpath(path)
        if path == ".":
            raise SettingError(name, value, accepted)
        return path
    real = real_path(path)
    if not may_be_writable(real) or not (is_directory(real) or is_free(real)):
        raise SettingError(name, value, accepted)
    return as_written(path)


def accept_skills(name: str, value: object) -> str | None:
    """Return the folder of skills, INSTALLED_SKILLS, or None for none.

    :raises SettingError: when it has neither ``public`` nor ``examples``, or is a system folder
    """
    if value is None:
        return None
    if value == INSTALLED_SKILLS:
        return INSTALLED_SKILLS
    accepted = (
        f'"{INSTALLED_SKILLS}", the absolute path of a folder that contains "public" or "examples",'
        " or None"
    )
    if isinstance(value, str) and is_plain_path(value):
        path = os.path.expanduser(value)  # noqa: PTH111 - Path's raises for users it does not know
        real = real_path(path)
        found = any(is_directory(f"{real}/{part}") for part in ("public", "examples"))
        if (
            found
            and path.startswith("/")
            and not any(is_within(real, place) for place in FORBIDDEN_SOURCES)
        ):
            return as_written(path)
    raise SettingError(name, value, accepted)
