"""What the server has for pages from sandboxes: their tickets, their storages, and threads.

Threads of their own: a storage may wait for another writer, and an outputs folder for its disk.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gvisor_kernel.artifacts.page import Tickets
from gvisor_kernel.artifacts.places import open_personal, open_shared
from gvisor_kernel.artifacts.storage import Storage
from gvisor_kernel.kernel.kept_data import KeptData
from gvisor_kernel.server.page_network import PageNetwork

THREADS = 4


class Artifacts:
    """``root``: the server's root folder. ``shared``: an administrator's folder for data that
    people share, or an empty text. ``config`` and ``log``: the server's."""

    def __init__(self, root: str, shared: str, config: Any, log: Any) -> None:
        self.root = Path(root)
        self.tickets = Tickets()
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gvisor-kernel-artifacts")
        self.network = PageNetwork(config, log, self.executor)
        self._shared = KeptData.instance().shared = Path(shared) if shared else None

    def open_storage(self, *, shared: bool) -> Storage:
        """Return the storage of this user, or the one that people share. Blocks.

        :raises StorageError: when it cannot be used
        """
        return open_shared(self._shared) if shared else open_personal()

    def end(self) -> None:
        """End the threads, without waiting for what they do, and the requests of pages."""
        self.network.end()
        self.executor.shutdown(wait=False, cancel_futures=True)


def find_owner(provider: Any, user: Any) -> str:
    """Return whose keys a request is about, as the server's identity provider says.

    Jupyter's own providers know no names: each browser is somebody else to them, and all are the
    person whose server this is.
    """
    if type(provider).__module__.startswith("jupyter_server."):
        return "me"
    return str(user.username)
