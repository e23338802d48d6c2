"""Images: root file systems that are imported, built, stored and inspected.

In this package, in the setting ``image`` and in the command ``gvisor-kernel image``, an image is a
root file system. A saved kernel is a snapshot; its code is in the package ``snapshots``.
"""

from gvisor_kernel.images.image import PythonReport, RootImage, Store

__all__ = ["PythonReport", "RootImage", "Store"]
