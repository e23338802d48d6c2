"""What an image's Python says of itself: asked once, in a sandbox of the image."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from gvisor_kernel.config import SandboxSpec
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.root_images import Inside, RootImage
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox
from gvisor_kernel.runtimes.runsc import RunscRuntime
from gvisor_kernel.strict_json import parse_json

SECONDS = 60.0
ANSWER_MOST = 4 * 1024 * 1024
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
}))
"""


def look_inside(image: RootImage) -> Inside:
    """Ask the image's Python. Raises GvisorKernelError.

    The answer comes from what a stranger made: it is used to say what is missing, and to no other
    end.
    """
    python = image.need_python()
    spec = SandboxSpec(image=image.digest, uploads=None, outputs=None, skills=None)
    # "ahead" for the environment alone: as a kernel's, which may say where packages are.
    request = LaunchRequest("look", "", Path("/"), python, {}, ahead=("json",))
    sandbox = RunscRuntime(init_argv=[python, "-c", PROGRAM]).start(spec, request)
    try:
        return _parse(_read_all(sandbox), image, sandbox)
    finally:
        sandbox.close()


def _read_all(sandbox: Sandbox) -> bytes:
    deadline = time.monotonic() + SECONDS
    content = b""
    while len(content) <= ANSWER_MOST:
        wait = max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([sandbox.link_out], [], [], wait)
        data = os.read(sandbox.link_out, 65536) if ready else b""
        if not data:
            break
        content += data
    return content


def _parse(answer: bytes, image: RootImage, sandbox: Sandbox) -> Inside:
    try:
        content = parse_json(answer, ANSWER_MOST)
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
