"""``mcp``: serve sandboxes to clients of the Model Context Protocol."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gvisor_kernel.cli.arguments import add_settings, parse_settings
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import open_real
from gvisor_kernel.host.open_files import raise_limit
from gvisor_kernel.mcp.settings import Limits, OutputsFolder, ServerSettings
from gvisor_kernel.mcp.stdio import claimed_streams

TOKEN_VARIABLE = "GVISOR_KERNEL_MCP_TOKEN"  # noqa: S105 - the name of a variable
MIN_TOKEN = 32
BACKLOG = 128
MONTH = 31 * 24 * 3600
MOST = {
    "sessions": 1000,
    "all_sessions": 1000,
    "timeout": MONTH,
    "max_timeout": MONTH,
    "idle": MONTH,
}
"""The largest values of options that are numbers: of sessions, or of seconds."""


def add_mcp(mcp: argparse.ArgumentParser) -> None:
    """Declare the options of ``mcp``."""
    mcp.epilog = (
        "Without --http it serves one client over standard input and output, which starts it.\n"
        "The sandboxes end with their client. See docs/mcp.md."
    )
    mcp.add_argument(
        "--http",
        metavar="ADDRESS:PORT",
        help="serve over Streamable HTTP at this address, such as 127.0.0.1:8765; the token that"
        " clients need is printed, or taken from the variable GVISOR_KERNEL_MCP_TOKEN",
    )
    mcp.add_argument(
        "--host",
        metavar="NAME[:PORT]",
        dest="hosts",
        action="append",
        default=[],
        help="with --http: another name by which clients reach this server; needed for an address"
        " that is not of the loopback interface; may be repeated",
    )
    mcp.add_argument(
        "--outputs",
        metavar="FOLDER",
        help="a folder in which each sandbox gets a folder for its outputs (default: outputs end"
        " with their sandbox)",
    )
    mcp.add_argument(
        "--upload-from",
        metavar="FOLDER",
        dest="upload_roots",
        action="append",
        default=[],
        help="a folder from which the client may copy files into a sandbox; may be repeated"
        " (default: none)",
    )
    add_settings(
        mcp,
        'a setting of each sandbox, such as image=full, egress=["packages"] or'
        " uploads=/home/me/data",
        " of each sandbox, such as 2G",
    )
    for name, default, text in (
        ("sessions", 8, "sessions of one client"),
        ("all-sessions", 50, "sessions of all clients"),
        ("timeout", 120, "seconds of a run that names no timeout"),
        ("max-timeout", 3600, "seconds of a run at most"),
        ("idle", 1800, "seconds after which a session that is not used ends"),
    ):
        mcp.add_argument(
            f"--{name}",
            metavar="N",
            type=int,
            default=default,
            help=f"{text} (default: %(default)s)",
        )


def run_mcp(arguments: argparse.Namespace) -> None:
    """``mcp``: serve until the client leaves, or until SIGINT or SIGTERM.

    :raises GvisorKernelError: when an argument is wrong, or the server cannot start
    """
    check_streams(is_http=arguments.http is not None)
    settings = read_settings(arguments)
    raise_limit()
    if arguments.http is None:
        if arguments.hosts:
            raise GvisorKernelError("--host needs --http.", "add --http 127.0.0.1:8765.")
        with ended_by_signals(), claimed_streams() as wire:
            wire.greet(settings)  # before what takes long to import
            settings = replace(settings, routes=check_sandbox(settings.sandbox))
            from gvisor_kernel.mcp import service

            asyncio.run(service.serve_stdio(settings, wire))
        return
    settings = replace(settings, routes=check_sandbox(settings.sandbox))
    from gvisor_kernel.mcp import service

    token, is_ours = choose_token()
    with make_listener(arguments.http, bool(arguments.hosts)) as listener:
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        hosts = find_hosts(shown, port, arguments.hosts)

        def announce() -> None:
            print(f"Serving http://{shown}:{port}/mcp")
            if is_ours:
                print(f"Clients need this header: Authorization: Bearer {token}")
            else:
                print(f"Clients need the token in {TOKEN_VARIABLE}.")
            sys.stdout.flush()

        asyncio.run(service.serve_http(settings, listener, token, hosts, announce))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End this program with status 0 by SIGINT and SIGTERM, until its event loop handles them."""

    def end(*_: object) -> None:
        raise SystemExit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_streams(*, is_http: bool) -> None:
    """Check that the process was started with the descriptors that it needs.

    Another one becomes the null device: otherwise a file that is opened later would get its number.

    :raises GvisorKernelError: a needed one is closed
    """
    streams = {"stdin": sys.__stdin__, "stdout": sys.__stdout__, "stderr": sys.__stderr__}
    needed = ("stdout",) if is_http else ("stdin", "stdout")
    closed = [name for name, stream in streams.items() if stream is None]
    for number, name in enumerate(streams):
        if name in closed:
            # by path: the kernel's own file systems, /proc, /sys and /dev
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    missing = " and ".join(name for name in needed if name in closed)
    if missing and is_http:
        raise GvisorKernelError(
            "stdout is closed: the address and the token cannot be shown.",
            "start the server with stdout open, or lead it to a file or /dev/null.",
        )
    if missing:
        raise GvisorKernelError(
            f"{missing} {'are' if ' ' in missing else 'is'} closed: a client's messages come by"
            " stdin, and answers go to stdout.",
            "let the client start this command, or serve over HTTP: --http 127.0.0.1:8765.",
        )


def read_settings(arguments: argparse.Namespace) -> ServerSettings:
    """Return the settings of the server; those of sandboxes are not checked.

    :raises GvisorKernelError: when an argument is wrong
    """
    sandbox = {"checkpoints": "agent", **parse_settings(arguments.settings)}
    if arguments.memory is not None:
        sandbox["memory_limit"] = arguments.memory
    if "outputs" in sandbox:
        raise GvisorKernelError("--set outputs is not accepted.", "use --outputs FOLDER.")
    for name, most in MOST.items():
        if not 1 <= getattr(arguments, name) <= most:
            option = name.replace("_", "-")
            raise GvisorKernelError(
                f"--{option} is {str(getattr(arguments, name))[:40]}.",
                f"give a number from 1 to {most}.",
            )
    if arguments.timeout > arguments.max_timeout:
        raise GvisorKernelError(
            f"--timeout is {arguments.timeout}, and --max-timeout {arguments.max_timeout}.",
            "give a --timeout that is not above --max-timeout.",
        )
    return ServerSettings(
        limits=Limits(
            sessions=arguments.sessions,
            all_sessions=arguments.all_sessions,
            run_seconds=float(arguments.timeout),
            max_run_seconds=float(arguments.max_timeout),
            idle_seconds=float(arguments.idle),
        ),
        sandbox=sandbox,
        upload_roots=tuple(find_folder("--upload-from", text) for text in arguments.upload_roots),
        outputs=None if arguments.outputs is None else open_outputs(arguments.outputs),
    )


def check_sandbox(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the settings of every sandbox, before a client learns of a wrong one at its first call.

    Return the names of its routes to the network.

    :raises SettingError: one is unknown or has a wrong value
    """
    from gvisor_kernel.api.manager import choose_settings, describe_uploads
    from gvisor_kernel.jupyter.plan_factory import check_routes, read_configuration

    chosen = choose_settings(settings)
    if isinstance(chosen["uploads"], str):
        chosen["uploads"] = describe_uploads(chosen["uploads"])
    return check_routes(chosen, read_configuration())


def open_outputs(text: str) -> OutputsFolder:
    """Open the folder in which each sandbox gets a folder; it stays open while the process runs.

    :raises GvisorKernelError: it cannot be used
    """
    path = make_folder("--outputs", text)
    try:
        return OutputsFolder(open_real(str(path)))
    except OSError as error:
        raise GvisorKernelError(
            f"--outputs: the folder {text} cannot be opened: {error.strerror}.",
            "name an existing folder.",
        ) from error


def make_folder(option: str, text: str) -> Path:
    """Return a folder that a person has named; it is made, if the folder above it exists.

    Clients hide what a server says at its start: a missing folder would look like a broken server.

    :raises GvisorKernelError: it cannot be made
    """
    with contextlib.suppress(OSError, RuntimeError):
        # by path: a path that a person has given on the command line
        Path(text).expanduser().mkdir()
    return find_folder(option, text)


def find_folder(option: str, text: str) -> Path:
    """Return an existing folder that a person has named, without links.

    :raises GvisorKernelError: there is none
    """
    try:
        path = Path(text).expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise GvisorKernelError(
            f"{option}: the folder {text} cannot be used: {error}.", "name an existing folder."
        ) from error
    if not path.is_dir() or path == Path("/"):
        raise GvisorKernelError(
            f"{option}: {text} is no folder that can be used.", "name a folder below /."
        )
    return path


def choose_token() -> tuple[str, bool]:
    """Return the token of this server, and whether it was made now.

    :raises GvisorKernelError: when the one in the environment is too short
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)  # no kernel gets it
    if given is None:
        return secrets.token_urlsafe(32), True
    if len(given) < MIN_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        raise GvisorKernelError(
            f"The token in {TOKEN_VARIABLE} is not accepted.",
            f"use at least {MIN_TOKEN} characters of ASCII without spaces, made at random.",
        )
    return given, False


def make_listener(text: str, is_remote: bool) -> socket.socket:
    """Return a socket that listens at ADDRESS:PORT.

    :raises GvisorKernelError: when it cannot, or anybody could reach it and nobody has asked
    """
    host, _, number = text.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        port = int(number)
        if not 0 <= port < 65536:
            raise ValueError
    except ValueError as error:
        raise GvisorKernelError(
            f"--http {text} is no address and port.", "write an address, such as 127.0.0.1:8765."
        ) from error
    if not address.is_loopback and not is_remote:
        raise GvisorKernelError(
            f"{address} can be reached from other machines.",
            "use 127.0.0.1, or add --host NAME with the name by which clients reach this server;"
            " the token is then sent unencrypted, unless a proxy with TLS is in front.",
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named; otherwise each answer,
    # which has a head and a body, may wait 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise GvisorKernelError(
            f"This server cannot listen at {text}: {error.strerror}.", "choose another port."
        ) from error
    return listener


def find_hosts(shown: str, port: int, more: list[str]) -> tuple[str, ...]:
    """Return the values of the header Host that are accepted."""
    names = [shown, "127.0.0.1", "localhost", "[::1]"]
    hosts = [f"{name}:{port}" for name in names]
    for name in more:
        hosts += [name, f"{name}:{port}"]
    return tuple(dict.fromkeys(hosts))
