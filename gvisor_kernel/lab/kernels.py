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
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import TraitError

from gvisor_kernel.host.folders import open_below, open_real
from gvisor_kernel.jupyter.kernelspecs import DEFAULT_NAME, PROVISIONER


class SandboxKernelSpecManager(KernelSpecManager):
    """Knows the kernelspecs that our provisioner starts, as they were when it was made."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.ensure_native_kernel = False  # ipykernel's own, which has no file
        self._found = self._read()

    def _read(self) -> dict[str, KernelSpec]:
        default = KernelProvisionerFactory.instance(parent=self.parent).default_provisioner_name
        found = {}
        for name, folder in super().find_kernel_specs().items():
            try:
                spec = KernelSpec.from_resource_dir(folder)
                stanza = spec.metadata.get("kernel_provisioner", {})
                is_ours = stanza.get("provisioner_name", default) == PROVISIONER
            except (OSError, ValueError, TypeError, AttributeError, TraitError) as error:
                self.log.warning("The kernelspec %s cannot be read: %s", folder, error)
                continue
            if is_ours:
                found[name] = spec
        return found

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
        root = os.path.realpath(self.root_dir)
        below = os.path.relpath(folder, os.path.abspath(self.root_dir))  # noqa: PTH100 - text
        try:
            if below != "." and any(part.startswith(".") for part in below.split("/")):
                raise HTTPError(404, "Kernels do not start in hidden folders, or outside of this.")
            with open_real(root) as opened, open_below(opened, below):
                return folder
        except OSError as error:
            raise HTTPError(404, f"No kernel starts in {path!r}: {error.strerror}.") from error

    async def _async_start_kernel(self, **more: Any) -> str:
        """Refuse what is no sandbox before anything is made for it."""
        manager = self.kernel_spec_manager
        if not isinstance(manager, SandboxKernelSpecManager):
            raise HTTPError(403, "This server's kernelspecs are not checked, so no kernel starts.")
        manager.get_kernel_spec(more.get("kernel_name") or self.default_kernel_name)
        if not re.fullmatch(r"[\w-]{1,64}", more.get("kernel_id") or "none"):
            raise HTTPError(400, "This is no kernel_id.")  # it is a part of a file's name
        return str(await super()._async_start_kernel(**more))

    start_kernel = _async_start_kernel  # type: ignore[assignment]
