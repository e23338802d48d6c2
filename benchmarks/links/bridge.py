"""``python -m benchmarks.links.bridge COUNT``: the project's bridge with COUNT kernels.

Prints one line of JSON when all kernels run: the key and the address of each. Ends with stdin.
``--idle-stop`` lets the bridge stop idle sandboxes, as it does by default.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import PROJECT
from gvisor_kernel.bridge import Address, Bridge, KernelBridge, KernelIdentity

SECONDS = 120.0
KEY = "links"
USED = 80 * 1024**2
"""Bytes that each sandbox claims to hold."""


class FakeSandbox:
    """A link to the guests' process, with the descriptors that a sandbox of runsc has."""

    can_pause = True

    def __init__(self, link_in: int, link_out: int) -> None:
        self.link_in, self.link_out = link_in, link_out
        self.exit_fd = self.gofer_fd = -1

    def watch(self, pid: int) -> None:
        self.exit_fd, self.gofer_fd = os.pidfd_open(pid), os.pidfd_open(pid)

    def poll(self) -> int | None:
        return None

    def memory_used(self) -> int | None:
        return USED

    def memory_kills(self) -> int:
        return 0

    def stderr_tail(self) -> str:
        return ""

    def find_panic(self) -> str:
        return ""

    def is_busy(self) -> bool:
        return False

    def find_code_processes(self) -> list[int]:
        return []

    def measure_code(self, pids: list[int]) -> int | None:
        return None

    def kill(self) -> None:
        """The end of the link ends the guest."""

    def pause(self) -> None:
        """The guest waits for its link anyway."""

    def resume(self) -> None:
        """See ``pause``."""

    def close(self) -> None:
        for descriptor in (self.link_in, self.link_out, self.exit_fd, self.gofer_fd):
            os.close(descriptor)


def start_guests(count: int) -> tuple[list[FakeSandbox], subprocess.Popen[bytes]]:
    """Start the process of the guests, and return the host's ends of their links."""
    ends: list[int] = []
    sandboxes = []
    for _ in range(count):
        guest_in, link_in = os.pipe2(os.O_CLOEXEC)
        link_out, guest_out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(link_in, False)
        os.set_blocking(link_out, False)
        ends += [guest_in, guest_out]
        sandboxes.append(FakeSandbox(link_in, link_out))
    argv = [sys.executable, "-m", "benchmarks.links.guests", *map(str, ends)]
    process = subprocess.Popen(argv, pass_fds=ends, cwd=PROJECT, stdin=subprocess.DEVNULL)
    for end in ends:
        os.close(end)
    for sandbox in sandboxes:
        sandbox.watch(process.pid)
    return sandboxes, process


async def open_kernel(
    bridge: Bridge, sandbox: FakeSandbox, folder: Path, *, idle_stop: bool
) -> KernelBridge:
    """Open the sockets of a kernel, and start it behind the link of ``sandbox``."""
    identity = KernelIdentity("links", KEY.encode(), "hmac-sha256", 4 * 1024**3, idle_stop)
    kernel = await bridge.open_kernel(identity, Address("ipc", ""), folder / "s")
    own = folder / str(sandbox.link_in)
    own.mkdir()
    await kernel.attach(sandbox, own / "log", own, SECONDS)
    await kernel.start_kernel(["links"], {}, "/", SECONDS)
    return kernel


def make_urls(address: Address) -> dict[str, str]:
    return {channel.name: f"ipc://{address.ip}-{port}" for channel, port in address.ports.items()}


async def open_all(
    bridge: Bridge, sandboxes: list[FakeSandbox], folder: Path, *, idle_stop: bool
) -> list[KernelBridge]:
    return [
        await open_kernel(bridge, sandbox, folder, idle_stop=idle_stop) for sandbox in sandboxes
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--idle-stop", action="store_true")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="gkl-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "s").mkdir(mode=0o700)
        sandboxes, guests = start_guests(arguments.count)
        bridge = Bridge.instance()
        try:
            opening = open_all(bridge, sandboxes, folder, idle_stop=arguments.idle_stop)
            kernels = asyncio.run(bridge.run(opening))
            addresses = [
                {
                    channel.name: f"ipc://{k.address.ip}-{p}"
                    for channel, p in k.address.ports.items()
                }
                for k in kernels
            ]
            print(json.dumps({"key": KEY, "addresses": addresses}), flush=True)
            sys.stdin.read()
        finally:
            bridge.end()
            guests.wait(SECONDS)


if __name__ == "__main__":
    main()
