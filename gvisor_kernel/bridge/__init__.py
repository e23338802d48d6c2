"""The host's end of every link: one thread and one loop a process, for all its kernels.

Towards clients, ZMQ sockets and the host key; towards a sandbox, the link and a key of its own.
What comes from a sandbox is bounded by the link, checked here, and signed anew.
"""

from gvisor_kernel.bridge.clients import Address
from gvisor_kernel.bridge.identity import KernelIdentity, SnapshotRun
from gvisor_kernel.bridge.kernel import KernelBridge
from gvisor_kernel.bridge.sandbox_link import LinkedSandbox
from gvisor_kernel.bridge.thread import Bridge

__all__ = ["Address", "Bridge", "KernelBridge", "KernelIdentity", "LinkedSandbox", "SnapshotRun"]
