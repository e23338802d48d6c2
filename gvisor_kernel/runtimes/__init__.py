"""The runtimes: how a sandbox is made on this host. ``get_runtime`` is the entry point."""

from __future__ import annotations

from gvisor_kernel.runtimes.registry import get_runtime

__all__ = ["get_runtime"]
