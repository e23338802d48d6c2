"""Reads a person's IPython profile and matplotlibrc, for kernels of the setting ``profile``.

Only the files that are listed here leave the person's home, as copies in the sandbox's ``/etc``,
where IPython looks for configuration of the system and no kernel can write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.mounts.written_folders import read_written

CONFIGURATION = ("ipython_config", "ipython_kernel_config")
STARTUP = "ipython/startup/"
MATPLOTLIBRC = "gvisor-kernel/matplotlibrc"
MAX_FILES, MAX_BYTES = 64, 1024 * 1024
"""Files of a profile, and the bytes of all of them."""


def read_profile(spec: SandboxSpec) -> dict[str, bytes]:
    """Return the files of the setting ``profile`` by their paths below ``/etc``; none without it.

    :raises SettingError: when there is no such profile, it is too large, or a file cannot be read
    :raises StateError: when the notes of written folders cannot be read
    """
    found: dict[str, bytes] = {}
    if spec.profile is None:
        return found
    written = read_written(spec)
    try:
        for name, path in _find_files(spec.profile):
            with suppress(FileNotFoundError), open_path(path, written.has) as opened:
                if stat.S_ISREG(opened.status().st_mode):
                    with os.fdopen(opened.read(), "rb") as file:
                        found[name] = file.read(MAX_BYTES + 1)
            if sum(map(len, found.values())) > MAX_BYTES or len(found) > MAX_FILES:
                raise OSError(0, f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB", path)
    except OSError as error:  # also a link that a kernel may have made
        accepted = f"a profile that can be read ({error.filename}: {error.strerror})"
        raise SettingError("profile", spec.profile, accepted) from error
    return found


def _find_files(name: str) -> Iterator[tuple[str, str]]:
    """Yield paths below ``/etc``, and those of the files here, which need not exist.

    :raises OSError: when there is no such profile
    """
    home, environ = os.path.expanduser("~"), os.environ  # noqa: PTH111 - never raises
    folder = f"{environ.get('IPYTHONDIR') or f'{home}/.ipython'}/profile_{name}"
    os.stat(folder)  # noqa: PTH116 - text in
    for file in (f"{stem}.{kind}" for stem in CONFIGURATION for kind in ("py", "json")):
        yield f"ipython/{file}", f"{folder}/{file}"
    with suppress(FileNotFoundError), os.scandir(f"{folder}/startup") as entries:
        for file in sorted(entry.name for entry in entries):
            if file.endswith((".py", ".ipy")) and file.isprintable():
                yield STARTUP + file, f"{folder}/startup/{file}"
    for place in (
        environ.get("MATPLOTLIBRC"),
        environ.get("MPLCONFIGDIR"),
        f"{home}/.config/matplotlib",
    ):
        path = f"{place}/matplotlibrc" if os.path.isdir(place or "") else place  # noqa: PTH112 - text
        if path and os.path.isfile(path):  # noqa: PTH113 - text
            yield MATPLOTLIBRC, os.path.abspath(path)  # noqa: PTH100 - links are followed later
            return
