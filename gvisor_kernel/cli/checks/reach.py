"""Jupyter servers of this user that run now: what script in a page of each could reach.

Asked as that script would, with the server's token. An answer is data, whoever gave it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from gvisor_kernel.cli.checks.servers import (
    MAX_ANSWER,
    SECONDS,
    Server,
    ask,
    find_servers,
    is_default,
)
from gvisor_kernel.host.bounded import call_within
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.jupyter.kernelspecs import PROVISIONER, make_manager
from gvisor_kernel.jupyter.plan_factory import find_unsandboxed
from gvisor_kernel.runtimes.checks import Check, ok
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_SERVERS = 16
MAX_SECONDS = 4 * SECONDS
"""How long one server is asked, all questions together."""
MAX_NAMES = 5
OPEN = "the server is open to "
ORIGIN = "https://gvisor-kernel.invalid"
"""Of a page that no server should know."""
HIDDEN = (".git", ".ssh", ".config", ".jupyter", ".bashrc", ".gitignore", ".venv")


def check_reach() -> list[Check]:
    """Say of each server what its pages reach on this machine."""
    servers = list(find_servers())[:MAX_SERVERS]
    if not servers:
        return [ok("no server of this user runs")]
    sandboxed = frozenset(make_manager().find_kernel_specs()) - set(find_unsandboxed())
    with ThreadPoolExecutor(MAX_SERVERS) as pool:
        return list(pool.map(partial(check_server, sandboxed=sandboxed), servers))


def check_server(server: Server, sandboxed: frozenset[str]) -> Check:
    """Say what pages of one server reach."""
    name = f"pages of {printable_name(server.url)[:200]}"
    try:
        found = call_within(MAX_SECONDS, lambda: list(find_reach(server, sandboxed)))
    except (OSError, HTTPException, JsonError, ValueError, LookupError, TypeError, AttributeError):
        return ok("the server does not answer, or not as Jupyter does", name=name)
    if not found:
        return ok("script in them reaches sandboxes, and files of one folder", name=name)
    opened = [what for what in found if what.startswith(OPEN)]
    reached = ", ".join(what for what in found if what not in opened)
    script = [f"script in them, as of a stranger's notebook, reaches {reached}"] if reached else []
    return Check(
        name,
        "warning" if opened else "ok",
        "; ".join(script + opened),
        "for what strangers wrote: gvisor-kernel lab FOLDER",
    )


def find_reach(server: Server, sandboxed: frozenset[str]) -> Iterator[str]:
    """Yield what a page of the server reaches beyond sandboxes and a folder.

    :raises OSError, HTTPException, JsonError, ValueError: when the server does not answer well
    """
    if ask(server, "api/contents?content=0")[0] != 200:
        raise ValueError("not a server of Jupyter")
    # Without a token: with one, every origin is answered.
    if ask(server, "api", Authorization="", Origin=ORIGIN)[1] in ("*", ORIGIN):
        yield f"{OPEN}pages of all sites (allow_origin)"
    if ask(server, "api/contents?content=0", Authorization="")[0] == 200:
        yield f"{OPEN}everybody on it (no token)"
    if ask(server, "api/terminals")[0] == 200:
        yield "terminals, which are shells of this machine"
    specs = parse_json(ask(server, "api/kernelspecs")[2], MAX_ANSWER)["kernelspecs"]
    names = [name for name in specs if not is_sandbox(specs[name], name in sandboxed, server)]
    if names:
        shown = ", ".join(printable_name(name)[:50] for name in sorted(names)[:MAX_NAMES])
        yield f"kernels without a sandbox ({shown}{', …' if len(names) > MAX_NAMES else ''})"
    root = os.path.realpath(server.root) if server.root else ""
    if root and (home := find_home(root)):
        yield f"the files of {printable_name(root)}, which is or has the home {home}"
    hidden = next((each for each in HIDDEN if root and os.path.lexists(f"{root}/{each}")), None)
    if hidden and ask(server, f"api/contents/{quote(hidden)}?content=0")[0] == 200:
        yield "hidden files"


def is_sandbox(entry: Any, is_known: bool, server: Server) -> bool:
    """Return whether a server would start a kernelspec's kernels in sandboxes.

    ``is_known``: this user's configuration would do so.
    """
    stanza = entry["spec"]["metadata"].get("kernel_provisioner") or {}
    named = stanza.get("provisioner_name")
    return bool(named == PROVISIONER or (not named and (is_default(server) or is_known)))
