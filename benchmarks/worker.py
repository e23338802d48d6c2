"""The process that runs the kernels: JSON commands on stdin, answers on stdout, one per line.

The answer to ``{"do": NAME, …}`` is ``{"value": …}`` or ``{"error": "…"}``. Other output of the
process goes to its log, so that only answers are on stdout. When its stdin ends, it ends with all
its kernels.
"""

from __future__ import annotations

import contextlib
import cProfile
import io
import json
import os
import pstats
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from platformdirs import user_cache_path
from traitlets.config import Config

from benchmarks import figures, program, tracing
from benchmarks.notebooks import execution
from gvisor_kernel.bridge import Bridge
from gvisor_kernel.config.settings import SETTINGS
from gvisor_kernel.kernel.preparation import SpareKeeper
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.runtimes.state.listed import Listed, find_all

LONGEST_ERROR = 1500
SPARE_SECONDS = 5.0
STAGES = (figures.INFO, figures.FIRST, figures.IMPORTED)
ALWAYS_SO = (("kernel_mode", "relay"), ("snapshot", "off"))


class Worker:
    """Each public method is a command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kernels: dict[str, list[figures.Kernel]] = {}
        self._variants: dict[str, dict[str, Any]] = {}
        self._profile = cProfile.Profile()

    def define(self, code: str, spec: dict[str, Any], transport: str, resend: float) -> None:
        """Install the kernelspec ``code``.

        :raises Failed: when this release lacks a setting
        """
        stanza = spec.get("metadata", {}).get("kernel_provisioner", {})
        if stanza.get("provisioner_name") == "gvisor-provisioner":
            stanza["config"] = known_settings(stanza["config"])
        path = self._folder / "jupyter" / "kernels" / code
        path.mkdir(parents=True, exist_ok=True)
        (path / "kernel.json").write_text(json.dumps(spec))
        spare = bool(stanza.get("config", {}).get("spare"))
        self._variants[code] = {
            **{"transport": transport, "resend": resend},
            # Spares are restored from the snapshot of the same variant without spares.
            **{"snapshots": set() if spare else find_snapshots(), "spare": spare},
        }

    def start(self, code: str) -> figures.Samples:
        self._await_spare(code)
        return figures.measure_start(self._prepare(code), self._resend(code))

    def ready(self, code: str) -> figures.Samples:
        self._await_spare(code)
        return figures.measure_ready(self._prepare(code))

    def program(self, code: str) -> figures.Samples:
        """Measure a start in a process of its own, which has imported nothing yet."""
        argv = [sys.executable, "-P", program.__file__, code]
        begin = time.perf_counter()
        with subprocess.Popen(
            [*argv, self._variants[code]["transport"]], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            took = time.perf_counter() - begin
        if line.strip() != program.DONE:
            raise figures.Failed(f"the program ended with {process.returncode}")
        return {figures.PROGRAM: [took]}

    def stalled(self, code: str, stall: float) -> figures.Samples:
        prepare = self._prepare(code)
        return figures.measure_stalled(prepare, self._folder, self._resend(code), stall)

    def flooded(self, code: str) -> figures.Samples:
        prepare = self._prepare(code)
        with tracing.turns_of("gvisor-kernel-bridge") as longest:
            return figures.measure_flooded(prepare, self._folder, longest, self._resend(code))

    def open(self, code: str, count: int) -> None:
        """Start ``count`` more kernels, and keep them."""
        kernels = self._kernels.setdefault(code, [])
        for _ in range(count):
            manager = self._prepare(code)()
            kernels.append((manager, figures.begin_kernel(manager, self._resend(code))))

    def measure(self, code: str, figure: str, **options: Any) -> figures.Samples:
        """Measure a figure of the first open kernel."""
        return figures.OF_A_KERNEL[figure](self._kernels[code][0], **options)

    def run(self, code: str, cell: str) -> str:
        """Return what ``cell`` prints in the first open kernel."""
        parts: list[str] = []

        def keep(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                parts.append(message["content"]["text"])

        client = self._kernels[code][0][1]
        reply = client.execute_interactive(cell, timeout=figures.SECONDS, output_hook=keep)
        figures.check(reply, cell)
        return "".join(parts)

    def open_notebook(self, code: str, folder: str, port: int | None) -> float:
        """Start a kernel in ``folder``; return the seconds. ``port``: of the server, if any."""
        manager = self._prepare(code)()
        if manager.transport == "ipc":
            manager.ip = str(Path("notebook").absolute())  # sockets, of which this is the prefix
        if port is not None:
            manager.update_config(Config(execution.settings_with_route(port)))
        begin = time.perf_counter()
        self._kernels[code] = [execution.begin(manager, Path(folder))]
        return time.perf_counter() - begin

    def run_cells(self, code: str, cells: list[str], look: bool = False) -> dict[str, Any]:
        return execution.run_cells(self._kernels[code][0], cells, look=look)

    def end_notebook(self, code: str) -> float:
        """Shut the kernel down; return the seconds."""
        begin = time.perf_counter()
        execution.end(self._kernels.pop(code)[0])
        return time.perf_counter() - begin

    def await_quiet(self, code: str) -> None:
        """Wait until no snapshot is being made beside the kernels."""
        deadline = time.monotonic() + figures.SECONDS
        queue = SnapshotQueue.instance()
        while (queue._wanted or queue._current) and time.monotonic() < deadline:
            time.sleep(0.1)

    def connection_file(self, code: str) -> str:
        """Write the first open kernel's connection file, which a provisioner may have changed."""
        manager = self._kernels[code][0][0]
        path = self._folder / f"{code}.json"
        info: dict[str, Any] = dict(manager.get_connection_info())
        if isinstance(info["key"], bytes):
            info["key"] = info["key"].decode()
        if info["transport"] == "ipc":  # a path, which may be relative to this process's folder
            info["ip"] = str(Path(info["ip"]).absolute())
        path.write_text(json.dumps(info))
        return str(path)

    def mute(self, code: str) -> None:
        """Stop this process's clients of the kernels: one that does not read slows its kernel."""
        for _, client in self._kernels[code]:
            client.stop_channels()

    def trace_start(self, code: str) -> dict[str, Any]:
        """Return the begin of a start (monotonic clock) and its steps."""
        with tracing.traced() as steps:
            begin = time.perf_counter()
            samples = figures.measure_start(self._prepare(code), self._resend(code))
        answered = [(begin + samples[name][0], f"= {name}") for name in STAGES]
        return {"begin": begin, "steps": [*steps, *answered]}

    def begin_profile(self, code: str) -> None:
        """Profile the thread that moves messages: the bridge's, if there is one."""
        self._profile = cProfile.Profile()
        self._on_bridge(self._profile.enable)

    def end_profile(self, code: str, lines: int = 25) -> str:
        """Return the functions with the most own time."""
        self._on_bridge(self._profile.disable)
        text = io.StringIO()
        try:
            statistics = pstats.Stats(self._profile, stream=text)
        except TypeError:  # no function was called
            return "nothing"
        statistics.strip_dirs().sort_stats("tottime").print_stats(lines)
        return "\n".join(line for line in text.getvalue().splitlines() if line.strip())

    @staticmethod
    def _on_bridge(act: Callable[[], None]) -> None:
        """Run ``act`` in the bridge's thread: a profiler covers the thread that starts it."""

        async def run() -> None:
            act()

        bridge = Bridge._instance
        if bridge is None:
            act()
        else:
            bridge.call(run()).result(10)

    def await_snapshot(self, code: str, wait: float) -> bool:
        """Wait until a snapshot has been made since ``define``; return whether a start uses it.

        :raises Failed: after ``wait`` seconds without one
        """
        known = self._variants[code]["snapshots"]
        deadline = time.monotonic() + wait
        while not find_snapshots() - known:
            if time.monotonic() > deadline:
                raise figures.Failed(f"no snapshot was made within {wait:.0f} s")
            time.sleep(0.2)
        before = last_use()
        figures.measure_start(self._prepare(code), self._resend(code))
        return last_use() > before

    def _await_spare(self, code: str) -> None:
        """Make the next start find a spare, if the variant has spares."""
        if not self._variants[code]["spare"] or not find_snapshots():
            return

        def of_this_kind(sandbox: Listed) -> bool:
            return sandbox.state == "spare" and sandbox.record.kernel_name == code

        figures.measure_start(self._prepare(code), self._resend(code))
        deadline = time.monotonic() + SPARE_SECONDS
        while not (SpareKeeper.instance().ready and any(map(of_this_kind, find_all()))):
            if time.monotonic() > deadline:
                return  # the very first start, after which the snapshot is made
            time.sleep(0.05)

    def close(self, code: str) -> None:
        """End every kernel of ``code``."""
        for kernel in self._kernels.pop(code, []):
            with contextlib.suppress(Exception):
                figures.end_kernel(kernel)

    def close_all(self) -> None:
        for code in list(self._kernels):
            self.close(code)

    def _prepare(self, code: str) -> Callable[[], KernelManager]:
        transport = self._variants[code]["transport"]
        return lambda: KernelManager(kernel_name=code, transport=transport)

    def _resend(self, code: str) -> float:
        return float(self._variants[code]["resend"])


def serve(worker: Worker, requests: Any, answers: Any) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            value = getattr(worker, request.pop("do"))(**request)
            answer = {"value": value}
        except Exception as error:
            traceback.print_exc()
            text = str(error) if isinstance(error, figures.Failed) else explain(error)
            answer = {"error": text[:LONGEST_ERROR]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def find_snapshots() -> set[Path]:
    """Return this user's snapshots, each a directory."""
    return {path.parent for path in user_cache_path("gvisor-kernel").glob("**/meta.json")}


def last_use() -> float:
    """Return the time at which a snapshot was last used."""
    used = (path / "used" for path in find_snapshots())
    return max((path.stat().st_mtime for path in used if path.exists()), default=0.0)


def known_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop settings that older releases lack but whose values they always use.

    :raises Failed: when another setting is missing
    """
    missing = {name: value for name, value in settings.items() if name not in SETTINGS}
    for name, value in missing.items():
        if (name, value) not in ALWAYS_SO:
            raise figures.Failed(f"this release of gvisor-kernel has no setting {name}")
    return {name: value for name, value in settings.items() if name not in missing}


def explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def main(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    worker = Worker(Path(folder))
    try:
        serve(worker, requests, answers)
    finally:
        worker.close_all()


if __name__ == "__main__":
    main(sys.argv[1])
