"""``python -m benchmarks``: measure interleaved, and write results, tables and plots.

Results go into a folder: results.json, results.md, and a PNG for each group of figures. As root it
creates an ordinary user for the user variants, and removes it at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pwd
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import figures, machine, plots, processes, profiles, report
from benchmarks.peers.engine import Engine, EngineError
from benchmarks.results import Results
from benchmarks.schedule import FULL, QUICK, QUICK_VARIANTS, Plan, Schedule
from benchmarks.variants import VARIANTS, choose
from benchmarks.workers import PATH, Workers, may_run, ordinary_user


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer variants and rounds: about 4 minutes")
    add("--variants", default="", help="names with *, joined by ';' (see --list)")
    add("--figures", default="", help=f"some of: {', '.join(figures.NAMES)}")
    add("--rounds", type=int, help="rounds of every figure that has more than one")
    add("--output", type=Path, default=Path("benchmark-results"), help="folder for the results")
    add("--runsc", type=Path, help="folder of the runsc to measure, instead of the installed one")
    add("--list", action="store_true", help="name variants and figures, measure nothing")
    add(
        "--profile",
        choices=sorted(profiles.PROFILES),
        help="print where the time goes in --variants",
    )
    add("--from", dest="source", type=Path, help="make tables and plots from a results.json")
    add("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    add("--debug", action="store_true", help="show the workers' logs at the end")
    return parser.parse_args(arguments)


def make_plan(arguments: argparse.Namespace) -> Plan:
    plan = QUICK if arguments.quick else FULL
    rounds = dict(plan.rounds)
    if arguments.figures:
        wanted = set(arguments.figures.replace(",", " ").split())
        unknown = wanted - set(figures.NAMES)
        if unknown:
            raise SystemExit(f"no figure is called {min(unknown)!r}: {', '.join(figures.NAMES)}")
        rounds = {name: count for name, count in rounds.items() if name in wanted}
    if arguments.rounds is not None:
        single = {"stalled", "idle", "memory"}
        rounds = {n: min(c, 1) if n in single else arguments.rounds for n, c in rounds.items()}
    plan = dataclasses.replace(plan, rounds=rounds)
    if arguments.variants:  # measure everything of variants that were named
        plan = dataclasses.replace(plan, crowd=(), stalled=(), notebooks=())
    return plan


@contextlib.contextmanager
def user_for_variants(needed: bool) -> Iterator[tuple[pwd.struct_passwd | None, str]]:
    """Yield the ordinary user, or None and the reason why there is none."""
    if not needed or os.geteuid() != 0:
        yield None, ""  # this process already runs as an ordinary user
        return
    with ordinary_user() as user:
        reason = may_run(user)
        yield (user, "") if reason is None else (None, reason)


@contextlib.contextmanager
def all_workers(
    engine: Engine | EngineError, *, with_user: bool, runsc: Path | None = None
) -> Iterator[Workers]:
    """Create the workers and their folder; end and remove them, with their kernels."""
    environment = {}
    if runsc is not None:
        environment["PATH"] = f"{runsc}:{PATH}"
    if isinstance(engine, Engine):
        environment |= {
            "GP_RESPONSE_IP": engine.host_address,
            "KERNEL_USERNAME": "benchmark",  # gateway-provisioners refuses root
        }
    with (
        user_for_variants(with_user) as (user, no_user),
        tempfile.TemporaryDirectory(prefix="gkb-") as name,
    ):
        base = Path(name)
        base.chmod(0o755)
        workers = Workers(base, user, no_user, environment)
        try:
            yield workers
        finally:
            workers.end()
            if isinstance(engine, Engine):
                engine.remove_containers()


def find_engine() -> Engine | EngineError:
    try:
        return Engine()
    except EngineError as error:
        return error


def print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(results: Results, output: Path, *, docs: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    results.write(output / "results.json")
    text = report.render(results)
    (output / "results.md").write_text(text)
    plots.draw(results, output)
    if docs:
        report.write_docs(results, machine.PROJECT / "docs" / "performance.md")
    print(text)
    print(f"results.json, results.md and plots are in {output}")


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.list:
        print("\n".join([*(v.name for v in VARIANTS), "", "figures: " + ", ".join(figures.NAMES)]))
        return
    if arguments.source is not None:
        write(Results.read(arguments.source), arguments.output, docs=arguments.write_docs)
        return
    plan = make_plan(arguments)
    patterns = [each.strip() for each in arguments.variants.split(";") if each.strip()]
    if not patterns and arguments.quick:
        patterns = list(QUICK_VARIANTS)
    try:
        variants = choose(patterns)
    except ValueError as error:
        raise SystemExit(f"{error}; --list names all") from error
    # Clean up as at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.adopt_orphans()
    engine = find_engine()
    if arguments.runsc is not None:
        arguments.runsc = arguments.runsc.resolve(strict=True)
        os.environ["PATH"] = f"{arguments.runsc}:{os.environ['PATH']}"  # for the facts below
    results = Results(machine.describe_machine())
    with_user = any(variant.other_user for variant in variants)
    with all_workers(engine, with_user=with_user, runsc=arguments.runsc) as workers:
        schedule = Schedule(variants, plan, workers, engine, results, print_progress)
        try:
            if arguments.profile is not None:
                print(profiles.PROFILES[arguments.profile](schedule, variants))
                return
            schedule.run()
        finally:
            if arguments.debug:
                for log in workers.logs():
                    print_progress(f"--- {log.name}\n{log.read_text(errors='replace')[-5000:]}")
    results.machine["load_at_end"] = machine.load()
    write(results, arguments.output, docs=arguments.write_docs)


if __name__ == "__main__":
    main()
