"""A ``runsc`` that runs a script instead of chosen commands, and otherwise the real program."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from gvisor_kernel.runtimes.runsc.command_line import find_runsc

SCRIPT = """#!/bin/sh
for word in "$@"; do
    case "$word" in
        --version|flags|do|run|restore|checkpoint) break ;;
    esac
done
case " $* " in *" --help "*) word=help ;; esac
echo "$word" >> {folder}/asked
if [ -e "{folder}/$word" ]; then . "{folder}/$word"; fi
exec {real} "$@"
"""


class FakeRunsc:
    """Creates the program in ``folder``, which the test puts first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.path = folder / "runsc"
        self.real = shlex.quote(find_runsc().path)
        """The real program, quoted for scripts that also run it."""
        self.path.write_text(SCRIPT.format(folder=shlex.quote(str(folder)), real=self.real))
        self.path.chmod(0o755)
        (folder / "asked").touch()
        (folder / "asked").chmod(0o666)

    def environment_path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def instead_of(self, command: str, script: str) -> None:
        """Run ``script`` (sh) at ``command``; if it does not exit, the real program runs next."""
        (self.folder / command).write_text(script + "\n")

    def as_ever(self, command: str) -> None:
        (self.folder / command).unlink(missing_ok=True)

    def asked(self) -> list[str]:
        """Return the commands that were run, in order."""
        return (self.folder / "asked").read_text().split()
