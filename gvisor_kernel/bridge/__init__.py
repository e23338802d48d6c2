"""The bridge between Jupyter clients and sandboxes: one thread and one event loop per process.

Clients connect to ZMQ sockets and sign with the host key. A sandbox is reached by its link and
signs with a key of its own. The link bounds what a sandbox sends; the bridge checks each message
and signs it again.
"""

from gvisor_kernel.bridge.addresses import Address, KernelIdentity, SnapshotRun
from gvisor_kernel.bridge.kernel import KernelBridge
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.bridge.thread import Bridge

__all__ = ["Address", "Bridge", "KernelBridge", "KernelIdentity", "LinkedSandbox", "SnapshotRun"]
