"""Asks the Python of a root image for its version and modules, in a sandbox of that image."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.images import PythonReport, RootImage
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.strict_json import parse_json

SECONDS = 60.0
"""Seconds that the answer may take."""
MEMORY = 1024**3
"""Bytes that the sandbox may use. A Python that lists its modules takes some 20 MiB."""
LOOK_SECONDS = 0.05
"""Seconds between two readings of the sandbox's memory. The bridge, which does this for kernels,
has no part in it."""
MAX_ANSWER = 4 * 1024 * 1024
"""Bytes. The names of thousands of packages take some 100 KB."""

PROGRAM = """
import json, pkgutil, sys
versions = {}
for name in ("ipykernel", "pyzmq", "ipython"):
    try:
        from importlib.metadata import version
        versions[name] = version(name)
    except Exception:
        pass
modules = set(sys.builtin_module_names)
for module in pkgutil.iter_modules():
    modules.add(module.name)
print(json.dumps({
    "version": "%d.%d.%d" % tuple(sys.version_info[:3]),
    "modules": sorted(modules),
    "packages": versions,
}), flush=True)
sys.stdin.read()
"""
"""Runs as PID 1. It waits for the end of its stdin, so that the sandbox can be verified
meanwhile."""


def probe_image(image: RootImage, make_runtime: Callable[[list[str]], Runtime]) -> PythonReport:
    """Ask the image's Python for its version, modules and packages. Blocks for a second or two.

    ``make_runtime`` returns a runtime whose sandboxes run other arguments than PID 1.

    The answer comes from an untrusted image, and so does the program that gives it. So the answer
    is only used to say what the image lacks, and the sandbox is verified as every other and has
    limits of its own for time and memory.

    :raises LaunchError: when the image has no Python, or its Python does not answer
    :raises GvisorKernelError: as ``Runtime.start`` and ``Sandbox.verify`` do
    """
    python = image.require_python()
    spec = SandboxSpec(
        image=image.digest, uploads=None, outputs=None, skills=None, memory_limit=MEMORY
    )
    # "ahead" gives PID 1 a kernel's environment, which may say where packages are.
    request = LaunchRequest("look", "", Path("/"), python, {}, ahead=("json",))
    runtime = make_runtime([python, "-c", PROGRAM])
    with closing(runtime.start(spec, request)) as sandbox:
        answer = _read_line(sandbox)
        if answer.endswith(b"\n"):
            sandbox.verify()
        return _parse(answer, image, sandbox)


def _read_line(sandbox: Sandbox) -> bytes:
    """Read one line of at most MAX_ANSWER bytes; less where the sandbox ends or SECONDS have
    passed.

    :raises LaunchError: when the sandbox uses more than MEMORY
    """
    deadline = time.monotonic() + SECONDS
    content = bytearray()
    while not content.endswith(b"\n") and len(content) <= MAX_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if (sandbox.memory_used() or 0) > MEMORY:
            sandbox.kill()
            raise LaunchError(
                f"The image's Python used more than {MEMORY // 1024**2} MiB to list its modules.",
                "check what it runs when it starts: sitecustomize, or .pth files.",
            )
        ready, _, _ = select.select([sandbox.link_out], [], [], min(left, LOOK_SECONDS))
        if not ready:
            continue
        data = os.read(sandbox.link_out, 65536)  # no timeout: it is ready, or does not block
        if not data:
            break
        content += data
    return bytes(content)


def _parse(answer: bytes, image: RootImage, sandbox: Sandbox) -> PythonReport:
    try:
        if not answer.endswith(b"\n"):
            raise ValueError("not a whole line")
        content = parse_json(answer, MAX_ANSWER)
        return PythonReport(
            version=str(content["version"])[:40],
            modules=frozenset(str(name)[:200] for name in content["modules"]),
            packages={str(k)[:40]: str(v)[:40] for k, v in content["packages"].items()},
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{image.python} of the image {image.display_name} does not answer in a sandbox.",
            "check that it runs elsewhere, and that it was built for this processor architecture.",
            sandbox.stderr_tail(),
        ) from error
