"""Copies of a kernel that hibernates, as cheap as files: so a thousand cost the memory of none."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

from gvisor_kernel.runtimes.state.listed import Listed

LARGEST_TEXT = 1 << 20


def copy_saved(saved: Listed, number: int) -> list[str]:
    """Make copies of ``saved``, whose server has ended, in the same folder; return their kernels.

    Each has an id, a name and a notebook of its own. What its memory was written to is shared.
    """
    return [_copy(saved, copy) for copy in range(number)]


def _copy(saved: Listed, number: int) -> str:
    record, kernel = saved.record, str(uuid.uuid4())
    container = f"{record.container_id[:-8]}{secrets.token_hex(4)}"
    session = json.loads((saved.directory / "session.json").read_text())["sessions"][0]
    names = {
        record.container_id: container,
        record.container_id.upper(): container.upper(),
        record.kernel_id: kernel,
        session["id"]: str(uuid.uuid4()),
        session["path"]: f"{session['path'].removesuffix('.ipynb')}-{number}.ipynb",
    }
    place = saved.directory.with_name(container)
    for source, relative in _walk(saved.directory):
        copy = place / relative
        if source.is_dir():
            copy.mkdir(mode=0o700)
        elif "image" in relative.parts:
            os.link(source, copy)
        elif source.is_file() and source.stat().st_size < LARGEST_TEXT:
            text = source.read_bytes()
            for old, new in names.items():
                text = text.replace(old.encode(), new.encode())
            copy.write_bytes(text)
            copy.chmod(source.stat().st_mode & 0o777)
    return kernel


def _walk(directory: Path) -> Iterator[tuple[Path, Path]]:
    yield directory, Path()
    for path in sorted(directory.rglob("*")):
        yield path, path.relative_to(directory)
