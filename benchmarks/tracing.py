"""Time the steps of a start by wrapping functions of the package. Runs in a worker.

It fits the package of the same checkout: a missing name is an error.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEPS = (
    "gvisor_kernel.jupyter.provisioner:GVisorProvisioner.pre_launch",
    "gvisor_kernel.jupyter.provisioner:GVisorProvisioner.launch_kernel",
    "gvisor_kernel.kernel.launch:Launch._make_sandbox",
    "gvisor_kernel.runtimes.runsc.runtime:RunscRuntime.start",
    "gvisor_kernel.kernel.launch:restore",
    "gvisor_kernel.runtimes.runsc.runsc_sandbox:RunscSandbox.verify",
    "gvisor_kernel.runtimes.runsc.runtime:RunscRuntime._start",
    "gvisor_kernel.runtimes.runsc.runtime:find_python_tree",
    "gvisor_kernel.runtimes.runsc.runtime:plan_mounts",
    "gvisor_kernel.runtimes.runsc.runtime:make_cgroup",
    "gvisor_kernel.runtimes.runsc.runtime:run_staged",
    "gvisor_kernel.bridge.thread:Bridge.open_kernel",
    "gvisor_kernel.bridge.kernel:KernelBridge.attach",
    "gvisor_kernel.bridge.kernel:KernelBridge.start_kernel",
    "gvisor_kernel.bridge.kernel:KernelBridge.attach_restored",
    "gvisor_kernel.snapshots.snapshot_store:Store._open_locked",
    "gvisor_kernel.snapshots.manifest:Manifest.find_change",
    "gvisor_kernel.snapshots.key:find_host_facts",
    "jupyter_client.provisioning.local_provisioner:LocalProvisioner.launch_kernel",
)

Steps = list[tuple[float, str]]


@contextmanager
def traced() -> Iterator[Steps]:
    """Yield the list of steps; each finished step adds its begin, name and duration."""
    steps: Steps = []
    undo: list[Callable[[], None]] = []
    for name in STEPS:
        module, _, path = name.partition(":")
        *parents, last = path.split(".")
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        original = inspect.getattr_static(owner, last)
        setattr(owner, last, _timed(original, path, steps))
        undo.append(functools.partial(setattr, owner, last, original))
    try:
        yield steps
    finally:
        for each in undo:
            each()


def _timed(function: Callable[..., Any], name: str, steps: Steps) -> Callable[..., Any]:
    def note(begin: float) -> None:
        steps.append((begin, f"{name}: {1000 * (time.perf_counter() - begin):.1f} ms"))

    if asyncio.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                note(begin)

        return wrapper

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            note(begin)

    return plain


@contextmanager
def turns_of(thread_name: str) -> Iterator[Callable[[], float]]:
    """Yield a function that returns and resets the longest CPU time of one turn of an event loop.

    In seconds, for the loop in the thread ``thread_name``, which runs nothing else in a turn.
    """
    longest = 0.0
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest
        if threading.current_thread().name != thread_name:
            run(handle)
            return
        began = time.thread_time()
        try:
            run(handle)
        finally:
            longest = max(longest, time.thread_time() - began)

    def take() -> float:
        nonlocal longest
        found, longest = longest, 0.0
        return found

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield take
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
