"""A process that owns a pod and does nothing else, for tests that kill it.

    python -m tests.kubernetes.owner FOLDER

Prints the sandbox's directory once its kernel has written a file, and waits.
"""

from __future__ import annotations

import signal
import sys

from ..jupyter.helpers import execute, running_kernel
from .conftest import SETTINGS


def main(folder: str) -> None:
    with running_kernel(settings=SETTINGS, start={"cwd": folder}) as (manager, client):
        assert execute(client, "open('/mnt/user-data/outputs/kept', 'w').write('x')").status == "ok"
        print(manager.provisioner._kernel.sandbox.directory, flush=True)  # type: ignore[union-attr]
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
