"""The process that has the kernels: reads commands on stdin, answers on stdout, a JSON line each.

``{"do": NAME, …}`` is answered by ``{"value": …}`` or ``{"error": "…"}``. The process's own stdout
and stderr go to its log, so that nothing else gets between the answers. It ends when its input
does, with all its kernels.
"""

from __future__ import annotations

import contextlib
import cProfile
import io
import json
import os
import pstats
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from platformdirs import user_cache_path

from benchmarks import figures, tracing
from gvisor_kernel.bridge import Bridge
from gvisor_kernel.cli.sandboxes import Listed, find_all
from gvisor_kernel.config.settings import SETTINGS
from gvisor_kernel.kernel.warm_pool import Spares

LONGEST_ERROR = 1500
SPARE_SECONDS = 5.0
STAGES = (figures.INFO, figures.FIRST, figures.IMPORTED)
ALWAYS_SO = (("kernel_mode", "relay"), ("snapshot", "off"))


class Worker:
    """Its public methods are the commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kernels: dict[str, list[figures.Kernel]] = {}
        self._variants: dict[str, dict[str, Any]] = {}
        self._profile = cProfile.Profile()

    def define(self, code: str, spec: dict[str, Any], transport: str, resend: float) -> None:
        """Make the kernelspec ``code``. Raises Failed for settings that this release lacks."""
        stanza = spec.get("metadata", {}).get("kernel_provisioner", {})
        if stanza.get("provisioner_name") == "gvisor-provisioner":
            stanza["config"] = known_settings(stanza["config"])
        path = self._folder / "jupyter" / "kernels" / code
        path.mkdir(parents=True, exist_ok=True)
        (path / "kernel.json").write_text(json.dumps(spec))
        spare = bool(stanza.get("config", {}).get("spare"))
        self._variants[code] = {
            **{"transport": transport, "resend": resend},
            # Spares are restored from the image of the same variant without them.
            **{"images": set() if spare else images(), "spare": spare},
        }

    def start(self, code: str) -> figures.Samples:
        self._await_spare(code)
        return figures.measure_start(self._prepare(code), self._resend(code))

    def ready(self, code: str) -> figures.Samples:
        self._await_spare(code)
        return figures.measure_ready(self._prepare(code))

    def stalled(self, code: str, stall: float) -> figures.Samples:
        prepare = self._prepare(code)
        return figures.measure_stalled(prepare, self._folder, self._resend(code), stall)

    def flooded(self, code: str) -> figures.Samples:
        prepare = self._prepare(code)
        with tracing.turns_of("gvisor-kernel-bridge") as longest:
            return figures.measure_flooded(prepare, self._folder, longest, self._resend(code))

    def open(self, code: str, count: int) -> None:
        """Start ``count`` kernels more, and keep them."""
        kernels = self._kernels.setdefault(code, [])
        for _ in range(count):
            manager = self._prepare(code)()
            kernels.append((manager, figures.begin_kernel(manager, self._resend(code))))

    def measure(self, code: str, figure: str, **options: Any) -> figures.Samples:
        """A figure of the first kernel that is open."""
        return figures.OF_A_KERNEL[figure](self._kernels[code][0], **options)

    def run(self, code: str, cell: str) -> str:
        """What ``cell`` prints in the first kernel that is open."""
        parts: list[str] = []

        def keep(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                parts.append(message["content"]["text"])

        client = self._kernels[code][0][1]
        reply = client.execute_interactive(cell, timeout=figures.SECONDS, output_hook=keep)
        figures.check(reply, cell)
        return "".join(parts)

    def connection_file(self, code: str) -> str:
        """Of the first kernel that is open, written anew: a provisioner may have changed it."""
        manager = self._kernels[code][0][0]
        path = self._folder / f"{code}.json"
        info: dict[str, Any] = dict(manager.get_connection_info())
        if isinstance(info["key"], bytes):
            info["key"] = info["key"].decode()
        if info["transport"] == "ipc":  # a path, which may be one of this process's folder
            info["ip"] = str(Path(info["ip"]).absolute())
        path.write_text(json.dumps(info))
        return str(path)

    def mute(self, code: str) -> None:
        """Let the own clients of these kernels go: one that does not read slows a kernel down."""
        for _, client in self._kernels[code]:
            client.stop_channels()

    def trace_start(self, code: str) -> dict[str, Any]:
        """When a start begins (on this machine's monotonic clock), and the steps of it."""
        with tracing.traced() as steps:
            begin = time.perf_counter()
            samples = figures.measure_start(self._prepare(code), self._resend(code))
        answered = [(begin + samples[name][0], f"= {name}") for name in STAGES]
        return {"begin": begin, "steps": [*steps, *answered]}

    def begin_profile(self, code: str) -> None:
        """Profile the thread that moves messages: the bridge's, where there is one."""
        self._profile = cProfile.Profile()
        self._on_bridge(self._profile.enable)

    def end_profile(self, code: str, lines: int = 25) -> str:
        """The functions that took most time themselves."""
        self._on_bridge(self._profile.disable)
        text = io.StringIO()
        try:
            statistics = pstats.Stats(self._profile, stream=text)
        except TypeError:  # nothing was called
            return "nothing"
        statistics.strip_dirs().sort_stats("tottime").print_stats(lines)
        return "\n".join(line for line in text.getvalue().splitlines() if line.strip())

    @staticmethod
    def _on_bridge(act: Callable[[], None]) -> None:
        """Run ``act`` in the bridge's thread: a profiler sees the thread that it is begun in."""

        async def run() -> None:
            act()

        bridge = Bridge._instance
        if bridge is None:
            act()
        else:
            bridge.call(run()).result(10)

    def await_snapshot(self, code: str, wait: float) -> bool:
        """Until an image has been made since ``define``; whether a start uses it then.

        Raises Failed after ``wait`` seconds without one.
        """
        known = self._variants[code]["images"]
        deadline = time.monotonic() + wait
        while not images() - known:
            if time.monotonic() > deadline:
                raise figures.Failed(f"no snapshot was made within {wait:.0f} s")
            time.sleep(0.2)
        before = last_use()
        figures.measure_start(self._prepare(code), self._resend(code))
        return last_use() > before

    def _await_spare(self, code: str) -> None:
        """Where the variant has spares, the next start finds one: others' kernels had theirs."""
        if not self._variants[code]["spare"] or not images():
            return

        def of_this_kind(sandbox: Listed) -> bool:
            return sandbox.state == "spare" and sandbox.record.kernel_name == code

        figures.measure_start(self._prepare(code), self._resend(code))
        deadline = time.monotonic() + SPARE_SECONDS
        while not (Spares.instance().ready and any(map(of_this_kind, find_all()))):
            if time.monotonic() > deadline:
                return  # the first start of all, which makes the image: there is none yet
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


def images() -> set[Path]:
    """The snapshots that this user has, each a directory."""
    return {path.parent for path in user_cache_path("gvisor-kernel").glob("**/meta.json")}


def last_use() -> float:
    """When a snapshot was used last."""
    used = (path / "used" for path in images())
    return max((path.stat().st_mtime for path in used if path.exists()), default=0.0)


def known_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those that older releases lack and behave like anyway. Raises Failed for others."""
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
