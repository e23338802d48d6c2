"""Jupyter kernels that run inside gVisor sandboxes.

Contains only the version: the guest imports this package inside a sandbox, where only the standard
library is available.
"""

__version__ = "0.1.0"
