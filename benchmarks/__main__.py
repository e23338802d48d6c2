"""``python -m benchmarks [--rounds N] [--output DIR]``: measure, interleaved, and write results.

Each round measures every variant once, in turn, so that a slow minute of the machine falls on
all of them. Results: ``results.json`` and ``results.md`` with medians and ratios to the local
kernel, which runs on the same Python over the same transport (ipc).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from benchmarks import figures
from gvisor_kernel.runtimes.runsc_cli import find_runsc

IDLE_SECONDS = 10.0
Samples = dict[str, dict[str, list[float]]]


def manager_of(provisioner: str) -> Callable[[], KernelManager]:
    def prepare() -> KernelManager:
        factory = KernelProvisionerFactory.instance()
        factory.default_provisioner_name = provisioner
        return KernelManager(kernel_name="python3", transport="ipc")

    return prepare


VARIANTS = {
    "local": manager_of("local-provisioner"),
    "gvisor cold, relay": manager_of("gvisor-provisioner"),
}


def measure(rounds: int) -> Samples:
    samples: Samples = {name: defaultdict(list) for name in VARIANTS}
    for number in range(rounds):
        for name, prepare in VARIANTS.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            for figure, value in figures.measure_start(prepare).items():
                samples[name][figure].append(value)
        for name, prepare in VARIANTS.items():
            others = figures.descendants()
            with figures.started(prepare) as (manager, client):
                kernel = figures.descendants() - others
                samples[name]["memory of an idle kernel, MiB"].append(figures.memory_mib(kernel))
                before = figures.cpu_seconds(kernel)
                time.sleep(IDLE_SECONDS)
                used = figures.cpu_seconds(kernel) - before
                samples[name]["idle CPU, % of a core"].append(100 * used / IDLE_SECONDS)
                for figure, values in figures.measure_kernel(manager, client).items():
                    samples[name][figure].extend(values)
    return samples


def describe_machine() -> dict[str, Any]:
    found = find_runsc()
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "runsc": getattr(found, "version", str(found)),
        "load": [round(value, 2) for value in os.getloadavg()],
        **{name: version(name) for name in ("gvisor-kernel", "ipykernel", "jupyter-client")},
    }


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(samples: Samples) -> str:
    """Medians, p90 where there are many samples, and the ratio to the first variant."""
    base, *others = samples
    lines = [
        f"| figure | {base} | " + " | ".join(f"{name} | ratio" for name in others) + " |",
        "|---|" + "---|" * (1 + 2 * len(others)),
    ]
    for figure, values in samples[base].items():
        for label, share in (("", 0.5), *([(", p90", 0.9)] if len(values) >= 20 else [])):
            reference = quantile(values, share)
            cells = [f"{reference:.4g}"]
            for name in others:
                value = quantile(samples[name][figure], share)
                cells += [f"{value:.4g}", f"{value / reference:.2f}" if reference else "-"]
            lines.append(f"| {figure}{label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    arguments = parser.parse_args()
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    begin = describe_machine()
    samples = measure(arguments.rounds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": begin, "load_at_end": list(os.getloadavg()), "samples": samples}
    (arguments.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(samples)
    (arguments.output / "results.md").write_text(text)
    print(json.dumps(begin, indent=1))
    print(text)
    spread = statistics.median(samples["local"]["CPU-bound cell"])
    print(f"(CPU-bound cell, local, median {spread:.3f} s: compare runs by ratios only)")


if __name__ == "__main__":
    main()
