"""Jupyter kernels that run inside gVisor sandboxes.

Only the version stands here: the guest, which runs inside a sandbox on the standard library
alone, imports this package too.
"""

__version__ = "0.1.0"
