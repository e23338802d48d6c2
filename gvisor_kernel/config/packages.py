"""The setting ``packages``: what a kernelspec's kernels have beside the packages of their image.

``gvisor-kernel install --with`` writes it. The packages themselves are in the store of
``environments``; whether they are there is checked when a kernel starts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from gvisor_kernel.config.validators import accept_strings
from gvisor_kernel.errors import PackagesError, SettingError

MAX_REQUIREMENTS = 100
MAX_REQUIREMENT = 200
"""Characters of one requirement."""
DIGEST = re.compile(r"[0-9a-f]{64}")

_ACCEPTED = (
    '{"requirements": […], "environment": …}, as `gvisor-kernel install --with "NAME NAME"` writes'
    " it, or None"
)


@dataclass(frozen=True)
class Packages:
    """``requirements`` as they were written; ``environment`` is the digest of what was installed
    for them."""

    requirements: tuple[str, ...]
    environment: str


def accept_packages(name: str, value: object) -> Packages | None:
    """Return the packages in a mapping; None for none.

    :raises SettingError: when it is something else, or a requirement is not accepted
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) != {"requirements", "environment"}:
        raise SettingError(name, value, _ACCEPTED)
    requirements = accept_strings(f"{name}.requirements", value["requirements"], _ACCEPTED)
    environment = value["environment"]
    if not isinstance(environment, str) or not DIGEST.fullmatch(environment):
        raise SettingError(f"{name}.environment", environment, "a SHA-256 in 64 digits")
    try:
        return Packages(check_requirements(requirements), environment)
    except PackagesError as error:
        why = f"{_ACCEPTED}. {error.fact.rstrip('.')}"
        raise SettingError(f"{name}.requirements", value["requirements"], why) from error


def check_packages(packages: Packages | None, command: Sequence[str]) -> None:
    """Check that a kernel of ``command`` imports ``packages``.

    :raises SettingError: when it is no Python module
    """
    if packages is None or not command:
        return
    if "python" not in PurePosixPath(command[0]).name or "-m" not in command[:-1]:
        raise SettingError(
            "packages",
            list(packages.requirements),
            "None: this kernel's command does not run a Python module (python3 -m …), so it would"
            " not import them",
        )


def split_requirements(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the requirements in the texts of ``--with``: words, in which quotes are as in a shell.

    :raises PackagesError: when a quote is not closed, or a requirement is not accepted
    """
    words: list[str] = []
    for text in texts:
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise PackagesError(
                f"The list of packages {text!r} cannot be read: {error}.",
                'write the names with spaces between them: --with "polars duckdb".',
            ) from error
    return check_requirements(tuple(dict.fromkeys(words)))


def check_requirements(requirements: Sequence[str]) -> tuple[str, ...]:
    """Check that each requirement names a package: no option of pip, no path and no URL.

    :raises PackagesError: when one does not, or they are none or too many
    """
    from packaging.requirements import InvalidRequirement, Requirement

    if not 0 < len(requirements) <= MAX_REQUIREMENTS:
        raise PackagesError(
            f"The list of packages has {len(requirements)} names.",
            f"name at least one package, and at most {MAX_REQUIREMENTS}.",
        )
    for text in requirements:
        try:
            if len(text) > MAX_REQUIREMENT or not text.isascii() or not text.isprintable():
                raise InvalidRequirement("it is too long, or not plain text")
            if Requirement(text).url is not None:
                raise InvalidRequirement("it has a URL")
        except InvalidRequirement as error:
            raise PackagesError(
                f"{text[:MAX_REQUIREMENT]!a} is not the requirement of a package:"
                f" {str(error).splitlines()[0]}.",
                "separate packages by spaces; each is a name, perhaps with extras and versions,"
                " such as polars, 'pandas[excel]' or 'duckdb>=1.1,<2'. Options of pip, paths and"
                " URLs are not accepted.",
            ) from error
    return tuple(requirements)
