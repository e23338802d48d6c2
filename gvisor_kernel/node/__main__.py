"""The commands of a node, which the host starts through srun or ssh. Nothing else lives here.

python -m gvisor_kernel.node [--state FOLDER] serve|build|fetch|sweep|check
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from contextlib import suppress
from pathlib import Path

from gvisor_kernel import __version__

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gvisor_kernel.node")
    parser.add_argument("--state", default="", help="the folder for what runs on this node")
    parser.add_argument("command", choices=("serve", "build", "fetch", "sweep", "check"))
    arguments = parser.parse_args(argv)
    prepare_environment(arguments.state)
    if arguments.command == "serve":
        from gvisor_kernel.node.serve import serve

        return serve()
    if arguments.command == "build":
        from gvisor_kernel.node.build import build

        return build()
    if arguments.command == "fetch":
        from gvisor_kernel.node.fetch import fetch

        return fetch()
    from gvisor_kernel.node.report import check, sweep

    answer = sweep() if arguments.command == "sweep" else check()
    sys.stdout.write(json.dumps({"release": __version__, **answer}) + "\n")
    return 0


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
