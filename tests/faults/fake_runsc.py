"""A ``runsc`` that is the real one, but for the commands that it was told to do otherwise."""

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
    """In ``folder``, which is to stand first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.path = folder / "runsc"
        self.real = shlex.quote(find_runsc().path)
        """For scripts that do both."""
        self.path.write_text(SCRIPT.format(folder=shlex.quote(str(folder)), real=self.real))
        self.path.chmod(0o755)
        (folder / "asked").touch()
        (folder / "asked").chmod(0o666)

    def environment_path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def instead_of(self, command: str, script: str) -> None:
        """Run ``script`` (sh) first; what it does not end goes on with the real program."""
        (self.folder / command).write_text(script + "\n")

    def as_ever(self, command: str) -> None:
        (self.folder / command).unlink(missing_ok=True)

    def asked(self) -> list[str]:
        """The commands that it got, in their order."""
        return (self.folder / "asked").read_text().split()
