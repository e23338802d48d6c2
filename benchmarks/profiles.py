"""Where the time goes in the chosen variants: ``--profile``.

``start``: when processes appear, and how long steps of the package take, until the first cell has
been answered. ``trip``: CPU time of every thread that takes part in the round trip of ``1+1``, and
the time of the manager's process by function. ``output``: the same for 10 MB of output. In the last
two this process is the client, so that the manager's process has no other work.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import psutil
from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks import figures, processes
from benchmarks.schedule import Schedule
from benchmarks.variants import Variant
from benchmarks.workers import WorkerError

LOOK_SECONDS = 0.002
TRIPS = 300
OUTPUTS = 10
LEAST_SHARE = 0.01
"""Share of all CPU time below which threads are summed up."""


def profile_start(schedule: Schedule, variants: Sequence[Variant]) -> str:
    parts = []
    for variant in variants:
        lines = [f"## {variant.name}: a start, in milliseconds", ""]
        try:
            schedule.warm_up(variant)
            with _Watch() as watch:
                trace = schedule.ask(variant, "trace_start")
            begin = trace["begin"]
            events = [*watch.events, *((at, f"  {text}") for at, text in trace["steps"])]
            for at, text in sorted(events):
                lines.append(f"    {1000 * (at - begin):8.1f}  {text}")
        except WorkerError as error:
            lines.append(f"    {error}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


class _Watch:
    """Records when processes appear below this one, and their arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._known = {process.pid: _argv(process) for process in processes.descendants()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            now = time.perf_counter()
            for process in processes.descendants():
                argv = _argv(process)
                if argv and self._known.get(process.pid) != argv:
                    self._known[process.pid] = argv
                    self.events.append((now, f"process {process.pid}: {argv}"))


def _argv(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).replace("\n", " ")[:110]
    except psutil.Error:
        return ""


def profile_trip(schedule: Schedule, variants: Sequence[Variant]) -> str:
    return _profile_cells(schedule, variants, "1+1", TRIPS)


def profile_output(schedule: Schedule, variants: Sequence[Variant]) -> str:
    return _profile_cells(schedule, variants, "print('x' * 10**7)", OUTPUTS)


def _profile_cells(schedule: Schedule, variants: Sequence[Variant], cell: str, count: int) -> str:
    parts = []
    for variant in variants:
        parts.append(f"## {variant.name}: {count} times `{cell}`\n")
        try:
            parts.append(_profile_variant(schedule, variant, cell, count))
        except (WorkerError, figures.Failed) as error:
            parts.append(f"    {error}")
    return "\n".join(parts)


def _profile_variant(schedule: Schedule, variant: Variant, cell: str, count: int) -> str:
    manager = schedule.worker(variant).process
    group = schedule.open(variant, 1)
    if group is None:
        return "    the kernel did not start; see above"
    try:
        client = BlockingKernelClient(connection_file=schedule.ask(variant, "connection_file"))
        client.load_connection_file()
        schedule.ask(variant, "mute")
        client.start_channels()
        try:
            figures.await_iopub(client)
            pids = {process.pid for process in group} | {manager.pid}
            names = {process.pid: _short_name(process) for process in group}
            names[manager.pid] = "manager"
            plain = _run_cells(client, cell, count)  # without the profiler's cost
            before = _thread_times(pids)
            took = _run_cells(client, cell, count)
            spent = _spent(before, _thread_times(pids), names)
            functions = ""
            if variant.kind == "ours":
                schedule.ask(variant, "begin_profile")
                _run_cells(client, cell, count)
                functions = schedule.ask(variant, "end_profile")
        finally:
            client.stop_channels()
    finally:
        schedule.close(variant)
    lines = [
        f"    elapsed per cell: {1000 * plain / count:.2f} ms, then {1000 * took / count:.2f} ms",
        "    CPU time per cell, ms:",
        *(f"    {1000 * used / count:9.3f}  {name}" for name, used in spent),
    ]
    if functions:
        lines.append("    the bridge by function, with the profiler on:")
        lines += (f"    {line}" for line in functions.splitlines())
    return "\n".join(lines)


def _run_cells(client: BlockingKernelClient, cell: str, count: int) -> float:
    return sum(figures.run(client, cell) for _ in range(count))


def _thread_times(pids: Iterable[int]) -> dict[tuple[int, int], tuple[str, int]]:
    return {
        (pid, thread): (name, spent)
        for pid in pids
        for thread, name, spent in processes.thread_times(pid)
    }


def _spent(
    before: dict[tuple[int, int], tuple[str, int]],
    after: dict[tuple[int, int], tuple[str, int]],
    names: dict[int, str],
) -> list[tuple[str, float]]:
    """Return seconds by process and thread name, longest first; short ones as one sum."""
    used: Counter[str] = Counter()
    for key, (thread, spent) in after.items():
        used[f"{names.get(key[0], '?')} / {thread}"] += spent - before.get(key, ("", 0))[1]
    total = sum(used.values())
    rest = sum(value for value in used.values() if value < LEAST_SHARE * total)
    found = [(name, n / 1e9) for name, n in used.most_common() if n >= LEAST_SHARE * total]
    return [*found, ("all others", rest / 1e9)]


def _short_name(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return "?"
    first = words[0].rpartition("/")[2] if words else process.name()
    return f"{first} {process.pid}"


PROFILES: dict[str, Callable[[Schedule, Sequence[Variant]], str]] = {
    "start": profile_start,
    "trip": profile_trip,
    "output": profile_output,
}
