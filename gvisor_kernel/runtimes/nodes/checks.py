"""The check of ``doctor``: asks each host of kernelspecs, or one node of their cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from gvisor_kernel import __version__
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.checks import Check, failed, ok
from gvisor_kernel.runtimes.clients import last_line, run
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.orders import MAX_ANSWER, Answer
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

SECONDS = 40.0
"""How long the check of a runtime may take: a job of Slurm may have to wait."""


def check_specs(
    make_engine: Callable[[SandboxSpec], Engine], specs: Sequence[SandboxSpec]
) -> list[Check]:
    """Ask each host of ``specs`` for its release and its runsc, and each cluster any node; each
    question is asked once."""
    found: list[Check] = []
    asked: set[tuple[str, ...]] = set()
    for spec in {(spec.runtime, spec.own): spec for spec in specs}.values():
        try:
            engine = make_engine(spec)
            engine.check()
        except GvisorKernelError as error:
            check = failed(error.fact.rstrip("."), error.hint, name=spec.runtime)
            found += [] if check in found else [check]
            continue
        for host in engine.hosts():
            argv = tuple(engine.ask_argv(host, engine.helper("check")))
            if argv not in asked:
                asked.add(argv)
                found.append(check_host(engine, host, argv))
    return found


def check_host(engine: Engine, host: str, argv: Sequence[str]) -> Check:
    name = f"{engine.name} {host}".strip()
    environment = engine.environment(dict(os.environ))
    done = run(argv, environment)
    words = done.errors.splitlines()
    try:
        answer = read_json(last_line(done), Answer, MAX_ANSWER)
    except JsonError:
        trouble = engine.explain(words, done.status or 0, host)
        last = f' ("{words[-1][:200]}")' if words else ""
        return failed(f"{trouble.fact}{last}", trouble.hint, name=name)
    node, runsc = answer.node, answer.runsc
    if answer.release != __version__:
        return failed(
            f"the node {node} has gvisor-kernel {answer.release}, and this machine {__version__}",
            "install the same release on both",
            name=name,
        )
    if not runsc:
        hint = answer.hint and f"on that node, {answer.hint}"
        return failed(f"the node {node}: {answer.error}", hint, name=name)
    return ok(f"the node {node} has runsc {runsc}, and the same gvisor-kernel", name=name)
