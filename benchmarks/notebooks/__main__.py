"""``python -m benchmarks.notebooks FOLDER…``: real notebooks, in a sandbox and without one.

Every notebook of Python runs in a local kernel and in one in a sandbox, in its own folder, in turn,
once unmeasured and then --repeat times. A local kernel writes what a notebook writes: give a copy
of the folder. Printed are, as ratios to the local kernel: the wall time of a whole run, from the
kernel's start to its end; CPU time and page faults of the kernel's processes until the last cell;
the time of the cells alone; the system calls of the local kernel, where strace is there; the worst
cells; and cells whose outputs are of other kinds. Without FOLDER, the notebooks of ours.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import machine, processes, report
from benchmarks.__main__ import all_workers, print_progress
from benchmarks.notebooks import tables
from benchmarks.notebooks.cells import OWN, Notebook, find_notebooks
from benchmarks.notebooks.runs import Runs, provide
from benchmarks.peers.engine import EngineError
from benchmarks.results import Results
from benchmarks.schedule import QUICK, Schedule
from benchmarks.variants import BASELINE, choose


def parse(arguments: list[str] | None) -> argparse.Namespace:
    who = "root" if os.geteuid() == 0 else "user"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.notebooks", description=__doc__)
    add = parser.add_argument
    add("places", nargs="*", type=Path, default=[OWN], metavar="FOLDER", help="or a notebook")
    add("--only", default="", metavar="PATTERN", help="notebooks whose names contain it")
    add("--repeat", type=int, default=3, metavar="N", help="runs that are measured; medians count")
    add("--passes", type=int, default=1, help="times of all cells in one kernel; 3: steady state")
    add(
        "--variants",
        default=f"learned, direct, {who}",
        help="names with *, joined by ';' (python -m benchmarks --list)",
    )
    add("--json", type=Path, metavar="FILE", help="for every sample, in the form of results.json")
    add("--runsc", type=Path, help="folder of the runsc to measure, instead of the installed one")
    return parser.parse_args(arguments)


def render(results: Results, notebooks: list[Notebook], left_out: dict[str, str]) -> str:
    parts = [report.describe(results), *tables.notebook_tables(results)]
    for variant in results.variants:
        if variant != BASELINE and variant not in results.absent:
            parts.append(tables.worst_cells(results, variant, notebooks))
            lines = [f"- {each}" for each in tables.differences(results, variant)] or ["None."]
            parts.append(f"### Differences in outputs: {variant}\n\n" + "\n".join(lines))
    if left_out:
        parts.append("### Left out\n")
        parts[-1] += "".join(f"\n- {name}: {reason}" for name, reason in left_out.items())
    if "calls" not in results.facts.get(BASELINE, {}):
        parts.append("System calls were not counted: strace is not there, or not allowed.")
    parts.append(report.notes(results))
    return "\n\n".join(part for part in parts if part)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    notebooks, left_out = find_notebooks(arguments.places, arguments.only)
    if not notebooks:
        reasons = "".join(f"\n{name}: {reason}" for name, reason in left_out.items())
        raise SystemExit(f"no notebook to run{reasons}")
    try:
        patterns = [each.strip() for each in arguments.variants.split(";") if each.strip()]
        variants = choose(patterns or [BASELINE])
    except ValueError as error:
        raise SystemExit(f"{error}; python -m benchmarks --list names all") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.adopt_orphans()
    results = Results(machine.describe_machine())
    begun = time.monotonic()
    engine = EngineError("notebooks run in no peers")
    plan = replace(QUICK, rounds={})
    with_user = any(variant.other_user for variant in variants)
    with (
        all_workers(engine, with_user=with_user, runsc=arguments.runsc) as workers,
        provide(notebooks) as provisions,
    ):
        schedule = Schedule(variants, plan, workers, engine, results, print_progress)
        variants = schedule.prepare()
        runs = Runs(schedule, variants, notebooks, provisions, results, arguments.passes)
        runs.warm_up()
        for number in range(arguments.repeat):
            runs.measure(number)
            seconds = time.monotonic() - begun
            results.run = {"rounds": {"notebooks": number + 1}, "seconds": seconds}
            results.machine["load_at_end"] = machine.load()
            if arguments.json is not None:
                results.write(arguments.json)
    print(render(results, runs.notebooks, left_out))


if __name__ == "__main__":
    main()
