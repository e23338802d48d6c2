"""What an image's Python says of itself: asked once, in a sandbox of the image."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.images import Inside, RootImage
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.strict_json import parse_json

SECONDS = 60.0
MEMORY = 1024**3
"""What the sandbox may use; a Python that lists its modules takes some 20 MiB."""
LOOK_SECONDS = 0.05
"""How often its memory is looked at: nobody else does, as no bridge has this sandbox."""
MAX_ANSWER = 4 * 1024 * 1024
"""A Python with thousands of packages has names of some 100 KB."""

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
"""It stays until it has been looked at from outside, which ends its input."""


def look_inside(image: RootImage) -> Inside:
    """Ask the image's Python. Raises GvisorKernelError.

    The answer comes from what a stranger made: it is used to say what is missing, and to no other
    end. So does the program that gives it: its sandbox is looked at from outside as every other is,
    and has bounds of its own of time and memory.
    """
    python = image.need_python()
    spec = SandboxSpec(
        image=image.digest, uploads=None, outputs=None, skills=None, memory_limit=MEMORY
    )
    # "ahead" for the environment alone: as a kernel's, which may say where packages are.
    request = LaunchRequest("look", "", Path("/"), python, {}, ahead=("json",))
    runtime = RunscRuntime(init_argv=[python, "-c", PROGRAM])
    sandbox = runtime.start(spec, request)
    try:
        answer = _read_line(sandbox)
        if answer.endswith(b"\n"):
            sandbox.verify()
        return _parse(answer, image, sandbox)
    finally:
        sandbox.close()


def _read_line(sandbox: Sandbox) -> bytes:
    """What it writes until a line or the sandbox ends, it is too much, or takes too long.

    Raises LaunchError where it takes too much memory.
    """
    deadline = time.monotonic() + SECONDS
    content = b""
    while not content.endswith(b"\n") and len(content) <= MAX_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if (sandbox.memory_used() or 0) > MEMORY:
            sandbox.kill()
            raise LaunchError(
                f"The image's Python used more than {MEMORY // 1024**2} MiB to say what it is.",
                "see what runs when it starts: sitecustomize, or .pth files.",
            )
        ready, _, _ = select.select([sandbox.link_out], [], [], min(left, LOOK_SECONDS))
        if not ready:
            continue
        data = os.read(sandbox.link_out, 65536)
        if not data:
            break
        content += data
    return content


def _parse(answer: bytes, image: RootImage, sandbox: Sandbox) -> Inside:
    try:
        if not answer.endswith(b"\n"):
            raise ValueError("it is no whole line")
        content = parse_json(answer, MAX_ANSWER)
        return Inside(
            version=str(content["version"])[:40],
            modules=frozenset(str(name)[:200] for name in content["modules"]),
            packages={str(k)[:40]: str(v)[:40] for k, v in content["packages"].items()},
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{image.python} of the image {image.called} does not answer in a sandbox.",
            "see whether it runs elsewhere, and for which processors it was made.",
            sandbox.stderr_tail(),
        ) from error
