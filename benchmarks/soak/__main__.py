"""``python -m benchmarks.soak``: many starts, many kernels at once, mixed load; then counts.

One process with a private home runs all the kernels, as a server does. Prints a report, writes it
as JSON, and exits with 1 if anything of the kernels is left, if output of a finished cell was lost,
or if anything else failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import site
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import PROJECT, describe_machine

KERNEL = "gvisor-soak"
FOLDERS = ("home", "c", "d", "r", "s", "t", "x", "n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="minutes of mixed load (default: %(default)g)")
    add("--kernels", type=int, default=50, help="kernels that run at once (default: %(default)s)")
    add(
        "--starts",
        type=int,
        default=200,
        help="starts and stops, one by one (default: %(default)s)",
    )
    add("--users", type=int, default=6, help="users that work at once in the mixed load")
    add("--seed", type=int, default=0, help="seed of the random load")
    add("--snapshot", choices=("auto", "off"), default="auto", help="how kernels start")
    add("--output", type=Path, default=Path("soak-results.json"), help="the report as JSON")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def private_home(snapshot: str) -> Iterator[Path]:
    """Create a folder for all files of this process and its kernels; remove it at the end.

    Call it before importing Jupyter, which reads the environment. The name is short, because
    sockets lie in it.
    """
    base = Path(tempfile.mkdtemp(prefix="gks-", dir="/tmp"))
    for folder in FOLDERS:
        (base / folder).mkdir(mode=0o700)
    places = {
        "HOME": "home",
        "IPYTHONDIR": "home/.ipython",
        "JUPYTER_CONFIG_DIR": "c",
        "JUPYTER_DATA_DIR": "d",
        "JUPYTER_RUNTIME_DIR": "r",
        "TMPDIR": "t",
        "XDG_CACHE_HOME": "home/.cache",
        "XDG_CONFIG_HOME": "home/.config",
        "XDG_DATA_HOME": "home/.local/share",
        "XDG_RUNTIME_DIR": "x",
        "XDG_STATE_HOME": "s",
    }
    os.environ["PYTHONUSERBASE"] = site.getuserbase()  # otherwise its packages would follow HOME
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "0"
    os.environ.update({name: str(base / place) for name, place in places.items()})
    tempfile.tempdir = None
    spec = json.loads((PROJECT / "kernelspecs" / "gvisor-python" / "kernel.json").read_text())
    spec["argv"][0] = sys.executable
    stanza = spec["metadata"]["kernel_provisioner"]
    stanza["config"] = {**stanza.get("config", {}), "snapshot": snapshot}
    kernelspec = base / "d" / "kernels" / KERNEL
    kernelspec.mkdir(parents=True)
    (kernelspec / "kernel.json").write_text(json.dumps(spec))
    os.chdir(base / "n")
    try:
        yield base
    finally:
        os.chdir("/")
        shutil.rmtree(base, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    output = arguments.output.resolve()
    with private_home(arguments.snapshot) as base:
        from benchmarks.soak.run import Soak

        soak = Soak(base, KERNEL, arguments)
        asyncio.run(soak.run())
        report = {"machine": describe_machine(), **soak.report()}
        output.write_text(json.dumps(report, indent=1) + "\n")
        print(soak.text())
    print(f"The report is in {output}")
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
