"""The check of ``doctor --updates``: whether there is a newer gVisor. It alone uses the network."""

from __future__ import annotations

from datetime import UTC, datetime

from gvisor_kernel.releases import BASE, LATEST
from gvisor_kernel.releases.release_store import find_chosen, release_name
from gvisor_kernel.runtimes.checks import Check, ok, warning
from gvisor_kernel.runtimes.runsc.command_line import find_runsc


def check_updates() -> Check:
    """Compare the release that kernels start with, and the newest one, in the bucket it is from."""
    from gvisor_kernel.releases.bucket import NotThere, ask

    chosen = find_chosen()
    source = chosen.source if chosen is not None else ""
    base = source.partition("/release/")[0] if source.startswith("https://") else BASE
    name = release_name(find_runsc().version)
    newest, modified = ask(base, LATEST)
    try:
        own, since = ask(base, name)
    except NotThere:
        own, age = "", "which is not there"
    else:
        age = f"from {_day(since)}"
    if own == newest:
        return ok(f"{name} is the newest release of gVisor, from {_day(modified)}")
    return warning(
        f"{base} has a release of gVisor from {_day(modified)}; kernels start with {name}, {age}",
        f"gvisor-kernel runsc install {LATEST}",
    )


def _day(modified: float | None) -> str:
    return "an unknown day" if modified is None else f"{datetime.fromtimestamp(modified, UTC):%F}"
