"""``egress``: which routes exist, who uses them, and what they let through.

Routes are read from the configuration that a Jupyter server of this user would read. Nothing here
prints the value of a secret. Hosts and paths in a record come from a sandbox or a page, and are
escaped.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvisor_kernel.cli.arguments import add_commands, add_id, add_json
from gvisor_kernel.cli.output import print_json, print_table
from gvisor_kernel.egress.audit import FILE, describe_entry, read_entries
from gvisor_kernel.egress.kinds import HostsRoute, Route, UrlRoute, kind_of, write_route
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.shown_text import printable_name

if TYPE_CHECKING:
    from traitlets.config import Config

    from gvisor_kernel.artifacts.page import Record


@dataclass(frozen=True)
class Users:
    """The kernelspecs that use each route; ``broken`` has those whose settings are wrong."""

    by_route: dict[str, list[str]]
    broken: dict[str, GvisorKernelError]


def find_users(config: Config) -> Users:
    """Return the kernelspecs that use each route, as far as ``config`` lets them.

    Of kernelspecs with the same name, Jupyter uses the first.
    """
    from gvisor_kernel.jupyter.kernelspecs import find_kernelspecs
    from gvisor_kernel.jupyter.plan_factory import check_routes

    users = Users({}, {})
    first = {kernelspec.name: kernelspec for kernelspec in reversed(find_kernelspecs())}
    for kernelspec in reversed(first.values()):
        try:
            for name in check_routes(kernelspec.settings, config):
                users.by_route.setdefault(name, []).append(kernelspec.name)
        except GvisorKernelError as error:
            users.broken[kernelspec.name] = error
    return users


def describe_target(route: Route) -> str:
    """Describe where a route leads."""
    if isinstance(route, UrlRoute):
        return route.url
    if isinstance(route, HostsRoute):
        return ", ".join(route.hosts)
    return "the package indexes of this machine's pip, uv and npm"


def describe_rules(route: Route) -> str:
    """Describe what a url route allows and adds, for a person."""
    words = []
    if isinstance(route, UrlRoute):
        if route.methods != UrlRoute.methods:
            words.append(" ".join(route.methods))
        if route.paths != UrlRoute.paths:
            words.append(" ".join(route.paths))
        if route.secret is not None:
            words.append(f"{route.header_name} from {route.secret}")
    if isinstance(route, UrlRoute | HostsRoute) and route.allow_private:
        words.append("private addresses")
    if isinstance(route, UrlRoute) and route.artifacts:
        words.append("also for pages")
    limits = route.limits
    if limits.daily_requests is not None:
        words.append(f"{limits.daily_requests} requests a day")
    if limits.daily_bytes is not None:
        words.append(f"{limits.daily_bytes} bytes a day")
    return "; ".join(words)


def add_egress(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``egress`` and their arguments."""
    add = add_commands(parser)
    listing = add(
        "list",
        run_list,
        "list the routes that exist, and the kernelspecs that use them",
        "Routes are set in Jupyter's configuration: c.GVisorEgress.routes. See docs/egress.md.",
    )
    add_json(listing)
    log = add(
        "log",
        run_log,
        "print the requests that a sandbox or a page has made by its routes",
    )
    add_id(log)
    add_json(log)
    pages = add("pages", run_pages, "list the pages that have made requests by a route")
    add_json(pages)


def run_list(arguments: argparse.Namespace) -> None:
    """``egress list``: print the routes that exist, and which kernelspecs use them.

    :raises GvisorKernelError: when the configuration of routes is wrong
    """
    from gvisor_kernel.jupyter.plan_factory import find_routes, read_configuration

    config = read_configuration()
    routes, users = find_routes(config), find_users(config)
    if arguments.json:
        print_json([_describe(route, users) for route in routes.values()])
        return
    rows = [
        (
            route.name,
            kind_of(route),
            ", ".join(users.by_route.get(route.name, [])) or "-",
            describe_target(route),
            describe_rules(route),
        )
        for route in routes.values()
    ]
    print_table(("ROUTE", "KIND", "KERNELSPECS", "LEADS TO"), (), "RULES", rows)
    for name, error in users.broken.items():
        print(printable_name(f"The kernelspec {name} starts no kernel: {error.fact}"))


def _describe(route: Route, users: Users) -> dict[str, Any]:
    return {**write_route(route), "kernelspecs": users.by_route.get(route.name, [])}


def run_pages(arguments: argparse.Namespace) -> None:
    """``egress pages``: print the pages that have asked a route.

    :raises GvisorKernelError: when their records cannot be read
    """
    from gvisor_kernel.artifacts.page import find_records
    from gvisor_kernel.artifacts.storage import artifacts_folder

    try:
        found = [(record, record.read()) for record in find_records()]
    except OSError as error:
        raise _unreadable(artifacts_folder(), error) from error
    if arguments.json:
        print_json(
            [
                {"id": record.id, "page": record.path, "requests": len(entries)}
                for record, entries in found
            ]
        )
    elif found:
        rows = (
            (record.id[:8], entries[-1].time if entries else "-", str(len(entries)), record.path)
            for record, entries in found
        )
        print_table(("ID", "LAST"), ("REQUESTS",), "PAGE", rows)
    else:
        print("No page has asked for anything.")


def run_log(arguments: argparse.Namespace) -> None:
    """``egress log``: print the requests of a sandbox or a page, the oldest first.

    :raises GvisorKernelError: when there is none of that name, or its record cannot be read
    """
    from gvisor_kernel.artifacts.storage import artifacts_folder
    from gvisor_kernel.cli.sandboxes import find_one

    path = artifacts_folder()
    try:
        page = _find_page(arguments.id)
        if page is None:
            path = find_one(arguments.id).directory / FILE
        entries = page.read() if page is not None else read_entries(path)
        if arguments.json:
            print_json([asdict(entry) for entry in entries])
            return
        for entry in entries:
            print(printable_name(f"{entry.time} {describe_entry(entry)}"))
    except OSError as error:
        raise _unreadable(path, error) from error


def _find_page(name: str) -> Record | None:
    """Return the record of a page that is named by its path, or by the beginning of its id."""
    from gvisor_kernel.artifacts.page import find_records

    found = [
        record
        for record in find_records()
        if (len(name) >= 8 and record.id.startswith(name)) or record.path == os.path.realpath(name)
    ]
    return found[0] if len(found) == 1 else None


def _unreadable(path: Path, error: OSError) -> GvisorKernelError:
    return GvisorKernelError(
        f"The record {path} cannot be read: {error.strerror}.",
        "remove it if it is not a file of gvisor-kernel.",
    )
