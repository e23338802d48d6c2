"""Reads a person's IPython profile and matplotlibrc, for kernels of the setting ``profile``.

Only the files that are listed here leave the person's home, as copies in the sandbox's ``/etc``,
where IPython looks for configuration of the system and no kernel can write. The history, keys
(``security/``) and whatever else a profile has are never read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.folders import LinkRefused, open_path
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders, read_written

CONFIGURATION = tuple(
    f"{name}.{kind}"
    for name in ("ipython_config", "ipython_kernel_config")
    for kind in ("py", "json")
)
STARTUP = "ipython/startup/"
MATPLOTLIBRC = "gvisor-kernel/matplotlibrc"
MAX_FILES, MAX_BYTES = 64, 1024 * 1024
"""Files of a profile, and the bytes of all of them."""


def read_profile(spec: SandboxSpec) -> dict[str, bytes]:
    """Return the files of the setting ``profile`` by their paths below ``/etc``; none without it.

    :raises SettingError: when there is no such profile, it is too large, or a file cannot be read
    :raises StateError: when the notes of written folders cannot be read
    """
    if spec.profile is None:
        return {}
    written, found, size = read_written(spec), {}, 0
    try:
        for name, path in _find_files(spec.profile):
            content = _read(path, written)
            if content is not None:
                found[name], size = content, size + len(content)
            if size > MAX_BYTES or len(found) > MAX_FILES:
                limits = f"{MAX_FILES} files and {MAX_BYTES >> 20} MiB"
                raise SettingError("profile", spec.profile, f"a profile of at most {limits}")
    except LinkRefused as error:
        accepted = f"a profile without the symbolic link {error.link}: {error.reason}"
        raise SettingError("profile", spec.profile, accepted) from error
    except OSError as error:
        accepted = f"a profile that can be read ({error.filename}: {error.strerror})"
        raise SettingError("profile", spec.profile, accepted) from error
    return found


def find_variables(profile: Mapping[str, bytes]) -> dict[str, str]:
    """Return the variables by which programs find the files."""
    return {"MATPLOTLIBRC": f"/etc/{MATPLOTLIBRC}"} if MATPLOTLIBRC in profile else {}


def has_startup(profile: Mapping[str, bytes]) -> bool:
    """Return whether code of the profile runs at each start."""
    return any(name.startswith(STARTUP) for name in profile)


def _find_files(name: str) -> Iterator[tuple[str, str]]:
    """Yield paths below ``/etc``, and those of the files here, which need not exist.

    :raises OSError: when there is no such profile
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - never raises
    folder = f"{os.environ.get('IPYTHONDIR') or f'{home}/.ipython'}/profile_{name}"
    os.stat(folder)  # noqa: PTH116 - text in
    for file in CONFIGURATION:
        yield f"ipython/{file}", f"{folder}/{file}"
    with suppress(FileNotFoundError), os.scandir(f"{folder}/startup") as entries:
        for file in sorted(entry.name for entry in entries):
            if file.endswith((".py", ".ipy")) and file.isprintable():
                yield STARTUP + file, f"{folder}/startup/{file}"
    places = [os.environ.get("MATPLOTLIBRC"), os.environ.get("MPLCONFIGDIR")]
    places += [f"{home}/.config/matplotlib", f"{home}/.matplotlib"]
    for place in filter(None, places):
        path = f"{place}/matplotlibrc" if os.path.isdir(place) else place  # noqa: PTH112 - text
        if os.path.isfile(path):  # noqa: PTH113 - text
            yield MATPLOTLIBRC, os.path.abspath(path)  # noqa: PTH100 - without links being followed
            return


def _read(path: str, written: WrittenFolders) -> bytes | None:
    """Return the content of a file, a byte more than MAX_BYTES at most; None if there is none.

    :raises OSError: when it cannot be read; LinkRefused for a link that a kernel may have made
    """
    try:
        opened = open_path(path, written.has)
    except FileNotFoundError:
        return None
    with opened:
        if not stat.S_ISREG(opened.status().st_mode):
            return None
        with os.fdopen(opened.read(), "rb") as file:
            return file.read(MAX_BYTES + 1)
