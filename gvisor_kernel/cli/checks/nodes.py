"""The check of other machines that run kernels: each host, or one node of the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from gvisor_kernel import __version__
from gvisor_kernel.cli.checks import Check, State, failed, ok
from gvisor_kernel.cli.checks.jupyter import find_specs
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration
from gvisor_kernel.runtimes.clients import last_line, run
from gvisor_kernel.runtimes.docker.engine import check_engine, connect, find_image
from gvisor_kernel.runtimes.nodes.engine import Engine
from gvisor_kernel.runtimes.nodes.runtime import make_engine
from gvisor_kernel.strict_json import JsonError, parse_json


def check_engines() -> list[Check]:
    """Check that the engine answers, has the runtime runsc, and has the images of all kernelspecs.

    Returns no results if no kernelspec uses an engine and DOCKER_HOST is not set.
    """
    images = list(dict.fromkeys(spec.image for spec in find_specs("docker")))
    if not images and not os.environ.get("DOCKER_HOST"):
        return []
    wanted: State = "failed" if images else "warning"
    try:
        engine = connect()
    except GvisorKernelError as error:
        return [Check("docker", wanted, error.fact.rstrip("."), error.hint)]
    try:
        check_engine(engine)
        checks = [ok(f"{engine.address} has the runtime runsc")]
    except GvisorKernelError as error:
        return [Check("docker", wanted, error.fact.rstrip("."), error.hint)]
    else:
        for image in images:
            try:
                find_image(engine, image)
                checks.append(ok("the engine has it", name=f"image {image}"))
            except GvisorKernelError as error:
                checks.append(failed(error.fact.rstrip("."), error.hint, name=f"image {image}"))
        return checks
    finally:
        engine.close()


RUNTIMES = ("slurm", "ssh")
MAX_ANSWER = 64 * 1024
SECONDS = 40.0
"""How long the check of a runtime may take: a job of Slurm may have to wait."""


def check_nodes() -> list[Check]:
    """Check the machines of each kernelspec that has such a runtime; no results without one."""
    found: list[Check] = []
    for name in RUNTIMES:
        found += check_specs(find_specs(name))
    return found


def make_check(runtime: str) -> Callable[[], list[Check]]:
    """Return the check of one runtime, as the configuration or a kernelspec sets it."""

    def check() -> list[Check]:
        usual = make_provisioner({"runtime": runtime}, read_configuration())
        return check_specs(find_specs(runtime) or [usual.sandbox_spec()])

    return check


def check_specs(specs: Sequence[SandboxSpec]) -> list[Check]:
    """Ask each host of ``specs`` for its release and its runsc, and each cluster any node; each
    question is asked once."""
    found: list[Check] = []
    asked: set[tuple[str, ...]] = set()
    for spec in {(spec.runtime, spec.slurm, spec.ssh): spec for spec in specs}.values():
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
        answer = parse_json(last_line(done), MAX_ANSWER)
        node, release, runsc = (str(answer[key]) for key in ("node", "release", "runsc"))
    except (JsonError, KeyError, TypeError):
        trouble = engine.explain(words, done.status or 0, host)
        last = f' ("{words[-1][:200]}")' if words else ""
        return failed(f"{trouble.fact}{last}", trouble.hint, name=name)
    if release != __version__:
        return failed(
            f"the node {node} has gvisor-kernel {release}, and this machine {__version__}",
            "install the same release on both",
            name=name,
        )
    if not runsc:
        return failed(f"the node {node}: {answer.get('error', '')}", "", name=name)
    return ok(f"the node {node} has runsc {runsc}, and the same gvisor-kernel", name=name)
