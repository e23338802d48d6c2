"""A process that owns a sandbox of an engine and does nothing else, for tests that kill it.

    python -m tests.docker.owner FOLDER IMAGE

Prints the sandbox's directory once its kernel has written a file, and waits.
"""

from __future__ import annotations

import signal
import sys

from traitlets.config import Config

from ..jupyter.helpers import execute, running_kernel


def main(folder: str, image: str) -> None:
    settings = {"runtime": "docker", "image": image}
    config = Config({"GVisorProvisioner": settings})
    with running_kernel(config=config, start={"cwd": folder}) as (manager, client):
        assert execute(client, "open('/mnt/user-data/outputs/kept', 'w').write('x')").status == "ok"
        print(manager.provisioner._kernel.sandbox.directory, flush=True)  # type: ignore[union-attr]
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
