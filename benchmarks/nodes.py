"""Kernels on other machines, compared with the same runtime on this one.

python -m benchmarks.nodes --runtime ssh=SETTINGS.json [--runtime slurm=SETTINGS.json] [--rounds N]:
each round measures every figure of every way in turn, so compare the ratios. A file has settings of
the provisioner as JSON, such as {"runtime": "ssh", "ssh": {"hosts": ["node1"]}}. The engine's own
time is that of ``true`` by the same client.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from traitlets.config import Config

from benchmarks.egress import SECONDS
from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.runtimes.nodes.runtime import make_engine

CELLS = 40
SIZE = 100_000_000
COLD = {"snapshot": "off", "spare": False}


def measure(settings: dict[str, Any], folder: Path, note: Callable[[str, float], None]) -> None:
    """Start one kernel, and note seconds to its first result, of `1+1`, and of 100 MB."""
    config = Config({"GVisorProvisioner": {**COLD, **settings}})
    manager = KernelManager(kernel_name="gvisor-python", config=config)
    began = time.perf_counter()
    manager.start_kernel(cwd=str(folder))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        note("start, s", time.perf_counter() - began)
        trips = [trip(client, "1+1") for _ in range(CELLS)]
        note("1+1, ms", 1000 * statistics.median(trips))
        note("100 MB, s", trip(client, f"print('x' * {SIZE})"))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def trip(client: Any, code: str) -> float:
    """Return the seconds until the reply to a cell and its idle status have arrived."""
    began = time.perf_counter()
    wanted = client.execute(code)
    while client.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != wanted:
        pass
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        is_own = message["parent_header"].get("msg_id") == wanted
        if is_own and message["content"].get("execution_state") == "idle":
            return time.perf_counter() - began


def measure_engine(settings: dict[str, Any]) -> float:
    """Return the seconds that the engine takes for the program ``true``."""
    engine = make_engine(SandboxSettings(**settings).sandbox_spec())
    argv = engine.start_argv(engine.hosts()[0], ["/bin/true"])
    began = time.perf_counter()
    subprocess.run(argv, check=True, env=engine.environment(dict(os.environ)), capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("--runtime", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {"local": {}}
    for item in arguments.runtime:
        name, _, file = item.partition("=")
        ways[name] = json.loads(Path(file).read_text())
    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, settings in ways.items():
            if settings:
                figures["true, s", name].append(measure_engine(settings))
            measure(
                settings,
                arguments.folder,
                lambda figure, value, name=name: figures[figure, name].append(value),
            )
    for (figure, name), values in sorted(figures.items()):
        median = statistics.median(values)
        local = figures.get((figure, "local"))
        ratio = f"  {median / statistics.median(local):.2f} of local" if local else ""
        print(f"{figure:<10} {name:<6} {median:8.3f}{ratio}  {[round(v, 3) for v in values]}")


if __name__ == "__main__":
    main()
