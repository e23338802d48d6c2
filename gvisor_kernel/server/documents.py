"""The JSON documents of the REST API. Pure functions: the facts come from elsewhere.

Names, paths and reasons may be anybody's text. They are text in the JSON, without control
characters; whoever shows them escapes them for the place where they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel import __version__
from gvisor_kernel.bridge.deaths import describe_death
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.egress.kinds import HostsRoute, Route, UrlRoute, kind_of
from gvisor_kernel.egress.patterns import split_authority
from gvisor_kernel.kernel.facts import KernelFacts, Left
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.shown_text import printable
from gvisor_kernel.spec import layout

MAX_TEXT = 1000
"""Characters of the name of a file that has ended with a sandbox."""
MAX_PATHS, MAX_COUNT = 10, 1_000_000_000
"""Files that are named, and the highest number of them: a sandbox says how many there are."""


@dataclass(frozen=True)
class HostFacts:
    """Facts of a sandbox that the host knows, beside those of its kernel.

    ``created``: seconds since the epoch. ``cpu_seconds``: of all its processes. ``runsc``: its
    release, or nothing. ``is_home``: the notebook's folder is not shown, as it holds a home.
    ``has_log``: whether there is a log to read. ``project``: the folder of the project that a
    person may have shown, or not, and its path below the server's root.
    """

    created: float | None = None
    cpu_seconds: float | None = None
    runsc: str = ""
    is_home: bool = False
    has_log: bool = False
    project: tuple[str, str] | None = None


@dataclass(frozen=True)
class Described:
    """One kernel of a server: its name in Jupyter, its facts and those of its host."""

    kernel_id: str
    display_name: str
    language: str
    facts: KernelFacts
    host: HostFacts


def make_sandbox(described: Described, left: Left | None = None) -> dict[str, Any]:
    """Return the document of one sandbox. Times are in seconds, sizes in bytes.

    ``left``: the files that have ended with it.
    """
    facts, host = described.facts, described.host
    death = facts.last_death
    folders = {view.target: view.source for view in facts.mounts}
    return {
        "kernel_id": described.kernel_id,
        "id": None if facts.directory is None else facts.directory.name,
        "identity": facts.identity,
        "kernel_name": printable(facts.kernel_name),
        "display_name": printable(described.display_name),
        "language": printable(described.language),
        "state": facts.state,
        "memory": {"used": facts.memory_used, "limit": facts.spec.memory_limit},
        "cpu_seconds": host.cpu_seconds,
        "processes": facts.processes,
        "image": printable(facts.spec.image),
        "created": host.created,
        "folder": printable(str(facts.folder)),
        "mounts": list(make_mounts(facts)),
        "egress": [make_route(route) for route in facts.routes],
        "start": None
        if facts.start is None
        else {"kind": facts.start.kind, "seconds": round(facts.start.seconds, 3)},
        "waits_for": printable(facts.waits_for),
        "node": _text(facts.node),
        "last_death": None
        if death is None
        else {"when": death.when, "reason": printable(describe_death(death))},
        "release": {
            "gvisor_kernel": __version__,
            "runsc": host.runsc,  # no runtime: the field in openapi.json
        },
        "log": host.has_log,
        "transcript": facts.transcripts,
        "workspace": {
            "uploads": _text(find_uploads(facts)),
            "outputs": _text(folders.get(layout.OUTPUTS)),
            "is_home": host.is_home,
        },
        "project": make_project(facts, host),
        "hibernated": None
        if facts.saved is None
        else {"since": facts.saved.since, "size": facts.saved.size},
        "unkept": make_unkept(left) if left is not None and (left.total or left.more) else None,
    }


def make_unkept(left: Left) -> dict[str, Any]:
    """Return the document of files that end, or have ended, with a sandbox."""
    return {
        "total": min(left.total, MAX_COUNT),
        "more": left.more,
        "paths": [printable(path)[:MAX_TEXT] for path in left.paths[:MAX_PATHS]],
    }


def make_project(facts: KernelFacts, host: HostFacts) -> dict[str, Any] | None:
    """Return the document of the project around the notebook; None if there is no choice."""
    if host.project is None:
        return None
    path, name = host.project
    return {"folder": printable(name), "shown": find_uploads(facts) == path}


def find_uploads(facts: KernelFacts) -> str | None:
    """Return the folder that a kernel sees as uploads; None if that is the sandbox's empty one."""
    for view in facts.mounts:
        if view.target == layout.UPLOADS and not _is_own(view, facts):
            return view.source
    return None


def _is_own(view: MountView, facts: KernelFacts) -> bool:
    """Return whether a mount shows a folder that was made for this sandbox."""
    # By its random name: mounts have paths without links, and the state directory may have some.
    return facts.directory is not None and facts.directory.name in Path(view.source).parts


def make_mounts(facts: KernelFacts) -> Iterator[dict[str, Any]]:
    """Yield the documents of the folders of the host that a sandbox shows.

    What this package puts there itself is left out.
    """
    chosen = {mount.target for mount in facts.spec.mounts}
    for view in facts.mounts:
        place = layout.LAYOUT.get(view.target)
        description = place.description if place is not None else ""
        if view.target == layout.UPLOADS and _is_own(view, facts):
            description = "an empty folder: the notebook's is not shown"
        elif view.target == layout.UPLOADS and view.source != str(facts.folder):
            description = description.replace("the notebook's folder", "a folder", 1)
        if not description and view.target in chosen:
            description = "a folder of the setting mounts"
        if not description:
            if _is_own(view, facts) or is_within(view.target, layout.GUEST):
                continue
            description = "programs of this computer, for the kernel's Python"
        yield {
            "source": printable(view.source),
            "target": printable(view.target),
            "read_only": view.read_only,
            "description": description,
        }


def make_route(route: Route) -> dict[str, Any]:
    """Return the document of a route to the network; nothing of its credential."""
    hosts: tuple[str, ...] = ()
    if isinstance(route, HostsRoute):
        hosts = route.hosts
    elif isinstance(route, UrlRoute):
        authority = route.url.partition("://")[2].partition("/")[0]
        found = split_authority(authority)
        hosts = (authority if found is None else found[0],)
    return {
        "name": printable(route.name),
        "kind": kind_of(route),
        "hosts": [printable(host) for host in hosts],
    }


def make_leftover(
    identifier: str,
    state: str,
    folder: str,
    created: float,
    *,
    removed: float | None = None,
    is_next: bool = False,
) -> dict[str, Any]:
    """Return the document of a sandbox, or of a saved kernel, whose owner has died.

    ``removed``: when the saved kernel was, or is to be, removed. ``is_next``: that is before long.
    """
    return {
        "id": printable(identifier),
        "state": state,
        "folder": printable(folder),
        "created": created,
        "removed": removed,
        "next": is_next,
    }


def _text(path: str | None) -> str | None:
    return None if path is None else printable(path)
