"""REST: which image and limits the kernels of each of our kernelspecs would have now.

A kernelspec names only what differs from Jupyter's configuration and from our defaults, so no
client can know the limits that hold from the kernelspec alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_core.utils import ensure_async

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.jupyter.plan_factory import find_spec
from gvisor_kernel.server.handlers import Handler
from gvisor_kernel.shown_text import printable


class KernelspecsHandler(Handler):
    """``GET kernelspecs``"""

    async def get(self) -> None:
        found = await ensure_async(self.kernel_spec_manager.get_all_specs())
        facts = await asyncio.get_running_loop().run_in_executor(
            self.parts.executor, make_facts, found, self.settings["serverapp"]
        )
        self.answer({"kernelspecs": facts})


def make_facts(found: dict[str, Any], application: Any) -> list[dict[str, Any]]:
    """Return the documents of our kernelspecs, by name; the others are left out.

    ``found``: kernelspecs as Jupyter's managers list them. ``application``: the server's, whose
    configuration holds.
    """
    facts = []
    for name, entry in sorted(found.items()):
        spec: SandboxSpec | None
        problem = None
        try:
            spec = find_spec(entry["spec"].get("metadata", {}), application)
            if spec is None:
                continue
        except GvisorKernelError as error:
            spec, problem = None, printable(error.fact)
        facts.append(
            {
                "name": printable(name),
                "image": None if spec is None else printable(spec.image),
                "limits": None if spec is None else make_limits(spec),
                "problem": problem,
            }
        )
    return facts


def make_limits(spec: SandboxSpec) -> dict[str, int]:
    """Return the document of the limits; sizes in bytes."""
    return {
        "memory": spec.memory_limit,
        "disk": spec.disk_limit,
        "processes": spec.pids_limit,
        "cpu_shares": spec.cpu_shares,
    }
