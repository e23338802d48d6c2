"""A machine without runsc, and without releases of root: a mount namespace of its own.

As root, ``python -m tests.without_runsc PROGRAM…`` runs a program there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gvisor_kernel.runtimes.runsc.command_line import EXTRA_PATH

VARIABLE = "GK_TEST_HIDDEN_RUNSC"
"""Says where the hidden program is there."""
COVER = """
exec 3<"$PWD"
mount -t tmpfs -o mode=755 none /var/lib
case "$PWD" in /var/lib/*)
    mkdir -p "$PWD"
    mount --no-canonicalize --bind /proc/self/fd/3 "$PWD"
    cd "$PWD"
esac
exec 3<&-
"""
"""Empties /var/lib, in a mount namespace; a checkout below it stays if it is the current folder."""
HIDE = f"""
{COVER}
cp "$1" /var/lib/hidden
while [ "$1" != -- ]; do mount --bind /dev/null "$1"; shift; done
shift
exec env GK_TEST_HIDDEN_RUNSC=/var/lib/hidden "$@"
"""
"""What is no program any more is not found by ``shutil.which``."""


def find_programs() -> list[str]:
    """Return the files of this machine that would be found as runsc."""
    places = f"{os.environ.get('PATH', os.defpath)}:{EXTRA_PATH}".split(":")
    found = [Path(place, "runsc") for place in places if place]
    return sorted({str(path.resolve()) for path in found if path.exists()})


def hide_argv(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` for such a machine. Only root can make it."""
    return ["unshare", "-m", "/bin/sh", "-ec", HIDE, "-", *find_programs(), "--", *argv]


@contextmanager
def machine_without_runsc() -> Iterator[list[str]]:
    """Yield what begins the command lines of programs on such a machine, which keeps its state."""
    waiting = hide_argv(["/bin/sh", "-c", "echo ready; read -r _"])
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        try:
            yield ["nsenter", "-t", str(holder.pid), "-m", "--"]
        finally:
            holder.communicate(timeout=10)


if __name__ == "__main__":
    argv = hide_argv(sys.argv[1:])
    sys.exit(subprocess.call(argv))
