"""Kernels of a closed server: those of sandboxes, and no others.

A kernelspec that another provisioner starts does not exist here. The kernelspecs are read once, as
the server starts: what is written later is neither listed nor started.
"""

from __future__ import annotations

import os
import re
from copy import deepcopy
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

from gvisor_kernel.jupyter.kernelspecs import DEFAULT_NAME
from gvisor_kernel.jupyter.plan_factory import read_kernelspecs


class SandboxKernelSpecManager(KernelSpecManager):
    """Knows the kernelspecs that our provisioner starts, as they were when it was made."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        # One without ipykernel's own kernelspec, which has no file.
        found = read_kernelspecs(KernelSpecManager(parent=self.parent, ensure_native_kernel=False))
        self._found = {name: spec for name, (spec, is_ours) in found.items() if is_ours}

    def find_kernel_specs(self) -> dict[str, str]:
        """Return names and folders. Called by the server for its list."""
        return {name: spec.resource_dir for name, spec in self._found.items()}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return a kernelspec. Called for each start.

        :raises NoSuchKernel: when there is none whose kernels run in sandboxes
        """
        if kernel_name.lower() not in self._found:
            raise NoSuchKernel(kernel_name)
        return deepcopy(self._found[kernel_name.lower()])


class SandboxKernelManager(AsyncMappingKernelManager):
    """Starts kernels of the server's kernelspecs, in folders that its contents have."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)  # type: ignore[no-untyped-call]
        assert self.kernel_spec_manager is not None  # the server has one
        names = self.kernel_spec_manager.find_kernel_specs()
        if self.default_kernel_name not in names:
            is_there = DEFAULT_NAME in names or not names
            self.default_kernel_name = DEFAULT_NAME if is_there else min(names)

    def cwd_for_path(self, path: str, **more: Any) -> str:
        """Return the folder of a kernel. Called for each start that names a path.

        :raises HTTPError: 404 for a hidden folder, and for one that is out of the root
        """
        folder = str(super().cwd_for_path(path, **more))  # type: ignore[no-untyped-call]
        assert self.parent is not None  # the server
        self.parent.contents_manager._get_os_path(os.path.relpath(folder, self.root_dir))
        return folder

    async def _async_start_kernel(self, **more: Any) -> str:
        """Refuse what is no sandbox before anything is made for it."""
        if not isinstance(self.kernel_spec_manager, SandboxKernelSpecManager):
            raise HTTPError(403, "This server's kernelspecs are not checked, so no kernel starts.")
        self.kernel_spec_manager.get_kernel_spec(
            more.get("kernel_name") or self.default_kernel_name
        )
        if not re.fullmatch(r"[\w-]{1,64}", more.get("kernel_id") or "none"):
            raise HTTPError(400, "This is no kernel_id.")  # it is a part of a file's name
        return str(await super()._async_start_kernel(**more))

    start_kernel = _async_start_kernel  # type: ignore[assignment]
