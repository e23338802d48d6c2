"""Round trips of kernels in other languages, each compared with the same kernel without a sandbox.

python -m benchmarks.languages --pair LOCAL=OURS [--pair …] [--rounds N]: LOCAL and OURS are names
of installed kernelspecs, such as deno=gvisor-typescript. All kernels run at once, and each round
asks every one of them in turn.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from jupyter_client.manager import KernelManager

from benchmarks.nodes import trip
from benchmarks.results import quantile

CELLS = 10
WARMING = 30
"""Cells before the first that is measured: compilers of a kernel work in the first ones."""
START_SECONDS = 120
SHARES = (0.5, 0.9)


def open_kernel(name: str, held: ExitStack) -> Any:
    """Return a client of a new kernel of the kernelspec ``name``. ``held`` ends both."""
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    held.callback(manager.shutdown_kernel, now=True)
    client = manager.client()
    client.start_channels()
    held.callback(client.stop_channels)
    client.wait_for_ready(timeout=START_SECONDS)
    for _ in range(WARMING):
        trip(client, "1+1")
    return client


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.languages", description=__doc__)
    parser.add_argument("--pair", action="append", required=True, metavar="LOCAL=OURS")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    pairs = [pair.split("=", 1) for pair in arguments.pair]
    with ExitStack() as held:
        clients = {name: open_kernel(name, held) for pair in pairs for name in pair}
        names = list(clients)
        trips: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(arguments.rounds):
            first = round_ % len(names)
            for name in [*names[first:], *names[:first]]:
                trips[name] += [1000 * trip(clients[name], "1+1") for _ in range(CELLS)]
    for local, ours in pairs:
        for share in SHARES:
            base, value = quantile(trips[local], share), quantile(trips[ours], share)
            print(
                f"{ours:<20} 1+1, p{100 * share:.0f}: {value:6.2f} ms, {value / base:.2f} of"
                f" {local} ({base:.2f} ms)"
            )


if __name__ == "__main__":
    main()
