"""The commands of a node, which the host starts through srun or ssh. Nothing else lives here.

python -m gvisor_kernel.node [--state FOLDER] serve|build|fetch|fits|sweep|check
"""

from __future__ import annotations

import argparse
import os
import pwd
import socket
import sys
from contextlib import suppress
from pathlib import Path

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.nodes.orders import Answer
from gvisor_kernel.runtimes.state.sweep import sweep_orphans
from gvisor_kernel.typed_json import write_json

COMMANDS = ("serve", "build", "fetch", "fits", "sweep", "check")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gvisor_kernel.node")
    parser.add_argument("--state", default="", help="the folder for what runs on this node")
    parser.add_argument("command", choices=COMMANDS)
    arguments = parser.parse_args(argv)
    prepare_environment(arguments.state)
    if arguments.command == "serve":
        from gvisor_kernel.node.serve import serve

        return serve()
    if arguments.command == "build":
        from gvisor_kernel.node.start import build

        return build()
    if arguments.command == "fetch":
        from gvisor_kernel.node.files import fetch

        return fetch()
    if arguments.command == "fits":
        from gvisor_kernel.node.images import fits

        return fits()
    answer = sweep() if arguments.command == "sweep" else check()
    sys.stdout.write(write_json(answer) + "\n")
    return 0


def check() -> Answer:
    """Return what decides whether this node can run sandboxes."""
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc

    runsc = error = hint = ""
    try:
        runsc = find_runsc().version
    except GvisorKernelError as failure:
        error, hint = failure.fact, failure.hint
    return Answer(error, __version__, socket.gethostname(), runsc=runsc, hint=hint)


def sweep() -> Answer:
    """Remove what dead helpers of this user have left on this node."""
    from gvisor_kernel.node.files import sweep_copies

    removed: list[str] = []
    error = ""
    try:
        sweep_copies()
        removed = sweep_orphans("runsc")
    except (GvisorKernelError, OSError) as failure:
        error = str(failure)
    return Answer(error, __version__, socket.gethostname(), removed=tuple(removed))


def prepare_environment(state: str) -> None:
    """Set what srun with an empty environment, and ssh, may leave out.

    Sandboxes of a node have a state directory of their own. A home may be shared by all nodes and
    by the server, whose own list shows the kernel already.
    """
    with suppress(KeyError):
        os.environ.setdefault("HOME", pwd.getpwuid(os.geteuid()).pw_dir)
    os.environ.setdefault("PATH", PATH)
    for directory in PATH.split(":"):
        if directory not in os.environ["PATH"].split(":"):
            os.environ["PATH"] += f":{directory}"
    base = state or os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    os.environ["XDG_STATE_HOME"] = str(Path(base) / "gvisor-kernel-node" / os.uname().nodename)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
