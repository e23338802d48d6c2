"""The check of the program runsc: its release, its age, the features that it lacks.

It only reads what runsc reports; other checks start sandboxes.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from gvisor_kernel.cli.checks import Check, failed, ok, warning
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes.runsc.command_line import Runsc, command_flags, find_runsc

INSTALL_RUNSC = "sudo apt-get install runsc   # or see https://gvisor.dev/docs/user_guide/install/"
UPGRADE = "install a current release of gVisor: https://gvisor.dev/docs/user_guide/install/"
MAX_AGE_DAYS = 365
"""gVisor makes a release each week, and fixes security issues in the newest only."""

CHECKPOINT_FLAGS = {
    "compression": "no uncompressed snapshots: they take longer to write and to restore",
    "exclude-committed-zero-pages": "empty memory is saved: snapshots are larger",
}
"""Optional flags of ``runsc checkpoint``, and what happens without each."""


def check_runsc() -> list[Check]:
    """Check that runsc is there, that its release is recent, and which features it lacks."""
    try:
        runsc = find_runsc()
    except RuntimeMissing as error:
        return [failed(error.fact.rstrip("."), INSTALL_RUNSC)]
    today = datetime.now(UTC).date()
    released = find_release_date(runsc.version, today)
    sidecars = f" (with {', '.join(runsc.sidecars)})" if runsc.sidecars else ""
    fact = f"{runsc.path}{sidecars}, release {runsc.version.removeprefix('0.0~')}"
    if released is None:
        fact = f"{fact}; the age cannot be told from this version"
        checks = [warning(fact, UPGRADE)]
    else:
        days = (today - released).days
        fact = f"{fact} of {released.isoformat()}, {describe_age(days)} old"
        checks = [
            warning(f"{fact}: later security fixes are missing", UPGRADE)
            if days > MAX_AGE_DAYS
            else ok(fact)
        ]
    missing = find_missing_features(runsc)
    if missing:
        checks.append(warning("; ".join(missing), UPGRADE, name="runsc features"))
    return checks


def find_release_date(version: str, today: date) -> date | None:
    """Return the day in a version such as "20260817.0"; None if it has none, or a future one."""
    for year, month, day in re.findall(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?!\d)", version):
        try:
            found = date(int(year), int(month), int(day))
        except ValueError:
            continue
        if found <= today:
            return found
    return None


def describe_age(days: int) -> str:
    """Describe a number of days in days, weeks, months or years."""
    for unit, length in (("year", 365.25), ("month", 30.44), ("week", 7.0)):
        if days >= 2 * length:
            digits = 1 if unit == "year" else 0
            return f"{days / length:.{digits}f} {unit}s"
    return "1 day" if days == 1 else f"{days} days"


def find_missing_features(runsc: Runsc) -> list[str]:
    """Describe the optional features of runsc that this release lacks."""
    try:
        flags = command_flags(runsc, "checkpoint")
    except RuntimeMissing as error:
        return [f"the flags of `runsc checkpoint` could not be read: {error.fact}"]
    return [text for flag, text in CHECKPOINT_FLAGS.items() if flag not in flags]
