"""Checks of Jupyter's side: the kernel's interpreter, the kernelspecs, the provisioner."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from glob import escape
from importlib import metadata

from traitlets import TraitError

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.bounded import run_command
from gvisor_kernel.jupyter.default_provisioner import VARIABLE
from gvisor_kernel.jupyter.kernelspecs import (
    PROVISIONER,
    Kernelspec,
    find_broken_kernelspecs,
    find_kernelspecs,
)
from gvisor_kernel.jupyter.plan_factory import (
    find_unsandboxed,
    make_provisioner,
    read_configuration,
)
from gvisor_kernel.runtimes.checks import Check, failed, ok, warning

MIN_PYTHON = (3, 9)

PYTHON_PROBE = """
import json, sys
found = {"version": list(sys.version_info[:3])}
for name in ("ipykernel", "zmq"):
    try:
        found[name] = __import__(name).__version__
    except ImportError:
        found[name] = None
print(json.dumps(found))
"""


def check_python(interpreter: str = sys.executable) -> Check:
    """Check an interpreter of kernels, with the flags that the sandbox starts it with."""
    quoted = shlex.quote(interpreter)
    try:
        outcome = run_command([interpreter, "-I", "-c", PYTHON_PROBE], 8)
        found = json.loads(outcome.output.splitlines()[-1])
        version = tuple(found["version"])
    except OSError as error:
        return failed(f"{interpreter}: {error.strerror}", "gvisor-kernel install")
    except (ValueError, LookupError, TypeError):
        return failed(
            f"{interpreter} does not behave like a Python interpreter",
            f"{quoted} -I -c 'import ipykernel'",
        )
    shown = ".".join(str(part) for part in version)
    if version < MIN_PYTHON:
        return failed(f"{interpreter} is Python {shown}", "use Python 3.9 or newer")
    missing = [name for name in ("ipykernel", "zmq") if found[name] is None]
    if missing:
        packages = " ".join("pyzmq" if name == "zmq" else name for name in missing)
        return failed(
            f"{interpreter} (Python {shown}) cannot import {' and '.join(missing)}",
            f"{quoted} -m pip install {packages}",
        )
    return ok(
        f"{interpreter}: Python {shown}, ipykernel {found['ipykernel']}, pyzmq {found['zmq']}"
    )


def find_interpreters() -> list[str]:
    """Return the interpreters that gvisor-kernel kernelspecs start, or else this process's own."""
    found = (spec.interpreter for spec in find_kernelspecs() if spec.interpreter is not None)
    return list(dict.fromkeys(found)) or [sys.executable]


def find_specs(runtime: str) -> list[SandboxSpec]:
    """Return the settings of the kernelspecs with a runtime; ``check_kernelspecs`` tells of those
    that are wrong."""
    return [spec for _, spec in read_specs() if spec.runtime == runtime]


def read_specs() -> Iterator[tuple[str, SandboxSpec]]:
    """Yield the name of each kernelspec and its settings, unless these are wrong."""
    config = read_configuration()
    for kernelspec in find_kernelspecs():
        with suppress(GvisorKernelError, TraitError):
            yield kernelspec.name, make_provisioner(kernelspec.settings, config).sandbox_spec()


def check_pythons() -> list[Check]:
    """Check the interpreter of each kernelspec."""
    return [check_python(interpreter) for interpreter in find_interpreters()]


def check_kernelspecs() -> list[Check]:
    """Check each kernelspec of gvisor-kernel that Jupyter finds; name files that are not JSON."""
    kernelspecs = find_kernelspecs()
    broken = [
        warning(
            f"{file} cannot be read: {reason}",
            f"repair it, or remove the folder: rm -r {shlex.quote(str(file.parent))}",
            name=f"kernelspec {file.parent.name}",
        )
        for file, reason in find_broken_kernelspecs().items()
    ]
    if not kernelspecs:
        return [
            *broken,
            failed(
                "no kernelspec of gvisor-kernel is installed where Jupyter looks",
                "gvisor-kernel install",
            ),
        ]
    return [*broken, *(check_kernelspec(kernelspec) for kernelspec in kernelspecs)]


def check_kernelspec(kernelspec: Kernelspec) -> Check:
    """Check that the interpreter of a kernelspec exists, and that its settings are accepted."""
    name = f"kernelspec {kernelspec.name}"
    folder = kernelspec.directory
    if kernelspec.interpreter is None:
        fact = f"{kernelspec.argv[0]} does not exist" if kernelspec.argv else "its argv is empty"
        quoted = shlex.quote(kernelspec.name)
        return failed(
            f"{folder} cannot start: {fact}",
            f"gvisor-kernel install --name {quoted}   # or: uninstall --name {quoted}",
            name=name,
        )
    try:
        make_provisioner(kernelspec.settings, read_configuration()).sandbox_spec()
    except GvisorKernelError as error:
        return failed(
            f"{folder}: {error.fact}",
            f"in its kernel.json, or in Jupyter's configuration: {error.hint}",
            name=name,
        )
    return ok(f'"{kernelspec.display_name}" in {folder}', name=name)


def check_provisioner() -> Check:
    """Check that jupyter_client finds the provisioner by its entry point."""
    found = [
        entry
        for entry in metadata.entry_points(group="jupyter_client.kernel_provisioners")
        if entry.name == PROVISIONER
    ]
    if not found:
        return failed(
            f"the entry point {PROVISIONER} is not registered in this environment ({sys.prefix})",
            f"{shlex.quote(sys.executable)} -m pip install gvisor-kernel",
        )
    if escape(sys.prefix) != sys.prefix:
        return warning(
            f"jupyter lab finds no extension in {sys.prefix}, as it takes [, * and ? in a path for"
            " a pattern: what kernels print is not kept from acting in its page",
            "make an environment in another folder; or use gvisor-kernel lab, which finds it",
        )
    return ok(f"{PROVISIONER} is registered in {sys.prefix}")


def check_others() -> Check:
    """Name the kernelspecs that Jupyter would start without a sandbox."""
    names, others = find_unsandboxed(), find_unsandboxed(configured=False)
    if not names and others:
        return ok(
            "Jupyter's servers start all kernels in sandboxes; other programs, such as jupyter"
            f" console, nbconvert and nbclient, start without one: {', '.join(others)}",
            f"for these: gvisor-kernel install --replace-python3, or {VARIABLE}={PROVISIONER} in"
            " their environment",
        )
    if not names:
        return ok("Jupyter starts all kernels in sandboxes")
    return ok(
        f"without a sandbox start: {', '.join(names)}",
        "servers that shall never do that: gvisor-kernel install --default; other programs:"
        f" gvisor-kernel install --replace-python3, or {VARIABLE}={PROVISIONER} in their"
        " environment",
    )
