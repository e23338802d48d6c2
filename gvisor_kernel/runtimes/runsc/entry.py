"""The runtime's entry. It has no setting of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import RuntimeEntry

if TYPE_CHECKING:
    from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
    from gvisor_kernel.runtimes.state.records import Record


def _make() -> RunscRuntime:
    from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime

    return RunscRuntime()


def _measure(record: Record) -> int | None:
    from gvisor_kernel.runtimes.runsc.memory import measure_sandbox

    return measure_sandbox(record)


def _save(directory: Path, record: Record) -> bool:
    from gvisor_kernel.runtimes.runsc.orphan import save_orphan

    return save_orphan(directory, record)


ENTRY = RuntimeEntry(make=_make, measure=_measure, save=_save, shows_profile=True)
