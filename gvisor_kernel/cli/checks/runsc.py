"""The check of the program runsc: which release, how old, what it lacks.

By what it says of itself; that it works is seen by those that start something.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from gvisor_kernel.cli.checks.base import Check
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes.runsc.command_line import Runsc, command_flags, find_runsc

INSTALL_RUNSC = "sudo apt-get install runsc   # or see https://gvisor.dev/docs/user_guide/install/"
NEWER = "a current release, from gVisor itself: https://gvisor.dev/docs/user_guide/install/"
MAX_AGE_DAYS = 365
"""gVisor makes a release each week, and mends holes in the newest alone."""

CHECKPOINT_FLAGS = {
    "compression": "to leave images uncompressed, so they take longer to write and to restore",
    "exclude-committed-zero-pages": "to leave out empty memory, so images are larger",
}
"""Flags of ``runsc checkpoint`` that are used where it has them, and what is without."""


def check_runsc() -> list[Check]:
    try:
        runsc = find_runsc()
    except RuntimeMissing as error:
        return [Check("runsc", "failed", error.fact.rstrip("."), INSTALL_RUNSC)]
    today = datetime.now(UTC).date()
    released = find_release_date(runsc.version, today)
    beside = f", with {', '.join(runsc.sidecars)} beside it" if runsc.sidecars else ""
    fact = f"{runsc.path}{beside}, release {runsc.version.removeprefix('0.0~')}"
    if released is None:
        checks = [
            Check("runsc", "warning", f"{fact}; how old it is cannot be known from that", NEWER)
        ]
    else:
        days = (today - released).days
        fact = f"{fact}, of {released.isoformat()}: {describe_age(days)} old"
        checks = [
            Check("runsc", "warning", fact, NEWER)
            if days > MAX_AGE_DAYS
            else Check("runsc", "ok", fact)
        ]
    lacks = find_lacks(runsc)
    if lacks:
        checks.append(Check("runsc lacks", "warning", "; ".join(lacks), NEWER))
    return checks


def find_release_date(version: str, today: date) -> date | None:
    """The day in a version such as "20260817.0", None where there is none, or one to come."""
    for year, month, day in re.findall(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?!\d)", version):
        try:
            found = date(int(year), int(month), int(day))
        except ValueError:
            continue
        if found <= today:
            return found
    return None


def describe_age(days: int) -> str:
    """In the unit in which a person would say it."""
    for unit, length in (("year", 365.25), ("month", 30.44), ("week", 7.0)):
        if days >= 2 * length:
            digits = 1 if unit == "year" else 0
            return f"{days / length:.{digits}f} {unit}s"
    return "1 day" if days == 1 else f"{days} days"


def find_lacks(runsc: Runsc) -> list[str]:
    """What is used of a runsc where it has it, and this one has not."""
    try:
        flags = command_flags(runsc, "checkpoint")
    except RuntimeMissing as error:
        return [f"an answer to what `checkpoint` can do: {error.fact}"]
    return [text for flag, text in CHECKPOINT_FLAGS.items() if flag not in flags]
