"""Images that are root file systems: imported from archives and folders, kept, and looked into.

"Image" here, in the setting ``image`` and in ``gvisor-kernel image`` is such a one. The image of a
live kernel is a snapshot, and its code is in ``snapshots``.
"""

from gvisor_kernel.images.inspection import Inside, RootImage
from gvisor_kernel.images.store import Store

__all__ = ["Inside", "RootImage", "Store"]
