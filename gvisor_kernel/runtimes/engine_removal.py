"""The removal of sandboxes from engines, as far as it is the same for each: whom to ask, and
outputs that are saved at an end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol, TypeVar

from gvisor_kernel.errors import ArchiveError, GvisorKernelError
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

log = logging.getLogger(__name__)

SILENT_SECONDS = 10.0
"""Seconds that an engine that has not answered is not asked again: each of many sandboxes would
wait for it."""
QUICKLY = 0.5
"""Seconds. An engine that fails faster (nothing listens) costs nothing, and is asked again."""


class Silence:
    """The engines that have not answered just now, by their address in a record."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def find(self, engine: str | None) -> float | None:
        """Return how many seconds ago an engine did not answer; None if it may be asked."""
        seconds = time.monotonic() - self._since.get(engine or "", float("-inf"))
        return seconds if seconds < SILENT_SECONDS else None

    @contextmanager
    def noting(self, engine: str | None, silence: type[Exception]) -> Iterator[None]:
        """Note that an engine does not answer, if the block raises ``silence`` and has waited."""
        asked = time.monotonic()
        try:
            yield
        except silence:
            if time.monotonic() - asked > QUICKLY:
                self._since[engine or ""] = time.monotonic()
            raise


def save_outputs(record: Record, copy: Callable[[], object], note: str = "") -> bool:
    """Copy the outputs for the last time; return False if that is to be tried again, as when the
    disk is full. ``note``: what a person should know then.

    :raises SandboxError: as ``copy`` does
    """
    if record.outputs is None or not record.ready:
        return True
    try:
        copy()
    except ArchiveError as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
    except OSError as error:
        log.warning(
            "Could not copy the outputs of %s yet: %s.%s To try again: gvisor-kernel sync %s. To"
            " copy them to another folder: gvisor-kernel sync --to FOLDER %s",
            record.identity,
            error,
            note,
            record.container_id,
            record.container_id,
        )
        return False
    return True


class Closes(Protocol):
    def close(self) -> Any: ...


Place = TypeVar("Place")
Engine = TypeVar("Engine", bound=Closes)


def sweep_engines(
    runtime: str,
    places: Iterable[Place],
    connect: Callable[[Place], Engine],
    sweep: Callable[[Engine], list[str]],
) -> list[str]:
    """Implement ``Runtime.sweep``: remove sandboxes with a record, and in each engine of ``places``
    those without. An engine that fails is left to the next sweep."""
    removed = sweep_orphans(runtime)
    for place in places:
        try:
            with closing(connect(place)) as engine:
                removed += sweep(engine)
        except GvisorKernelError as error:
            log.info("%s", error.fact)
    return removed
