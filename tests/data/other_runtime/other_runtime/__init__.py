"""Runtimes of another package, and one that cannot be imported (``broken``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gvisor_kernel.config.keys import accept_mapping, key
from gvisor_kernel.config.settings import RuntimeEntry, Setting
from gvisor_kernel.config.validators import accept_whole


@dataclass(frozen=True)
class Niceness:
    """The setting ``nice``."""

    level: int = key(5, accept_whole(0, 19))


def accept_nice(name: str, configured: object, asked: object = None) -> Niceness:
    return accept_mapping(Niceness, name, configured, asked)


def make() -> Any:
    from .runtime import NiceRuntime

    return NiceRuntime()


ENTRY = RuntimeEntry(
    make=make,
    setting=Setting(
        Niceness(),
        accept_nice,
        'For the runtime "nice", a mapping: "level" (0 to 19).',
        kind=Niceness,
    ),
)
ODD = "no entry"


def fail() -> Any:
    raise ValueError("a stranger's mistake")


UNMADE = RuntimeEntry(make=fail)
