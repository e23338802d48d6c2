"""A server of files: a table, a git repository, and a model as huggingface.co has them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from .upstream import Handler

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = b'{"kind": "a model"}'


class Files(Handler):
    """Serves ``folder`` under /files, and a model's file; echoes any other request."""

    folder: ClassVar[Path]

    def at_echo(self, query: dict[str, str]) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/acme/tiny/resolve/main/config.json"):
            self._answer(MODEL, ETag='"abc"', X_Repo_Commit=COMMIT)
        elif "/files/" not in path:
            super().at_echo(query)
        else:
            found = self.folder / path.partition("/files/")[2]
            is_file = found.is_file()
            self._answer(found.read_bytes() if is_file else b"", 200 if is_file else 404)


def make_files(folder: Path) -> None:
    """Make a table, and a repository that a server of files can serve."""
    (folder / "table.csv").write_text("a,b\n1,2\n3,4\n")
    work = folder / "work"

    def git(*words: str) -> None:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *words], check=True, capture_output=True, timeout=30)

    git("init", "--quiet", str(work))
    (work / "hello.txt").write_text("from a repository\n")
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "--quiet", "-m", "first")
    git("clone", "--quiet", "--bare", str(work), str(folder / "repo.git"))
    git("-C", str(folder / "repo.git"), "update-server-info")
