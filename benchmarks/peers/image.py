"""Make the image of the peers' kernels: ``python -m benchmarks.peers.image``.

The root file system is copied from this host, without a registry: the Python environment that runs
this module, the shared libraries that it needs, a shell and a few programs. So the peers' kernels
use the same Python and packages as all others. Needs a running Docker engine; takes half a minute.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from string import Template

from benchmarks.peers.engine import IMAGE, Engine, EngineError

PROGRAMS = ("bash", "sh", "env", "cat", "ls", "rm", "mkdir", "sleep", "id", "uname")
FONT_CACHE = "/opt/matplotlib"
"""matplotlib's list of fonts, made beforehand as in the Jupyter project's own images."""
SKIPPED = re.compile(r"/(__pycache__/.*\.pyc\.\d+|tests?/.*|idlelib/.*|lib2to3/.*)$")
SYMLINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:100::/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\nusers:x:100:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = {"tmp": 0o1777, "root": 0o700, "home/user": 0o755, "var/tmp": 0o1777, "proc": 0o555}


def environment_files() -> Iterator[Path]:
    """Yield the files of the interpreter, its standard library and its packages."""
    standard = Path(sysconfig.get_path("stdlib"))
    folders = {Path(sys.prefix), standard, Path(sysconfig.get_path("platstdlib"))}
    for folder in folders:
        yield from sorted(folder.rglob("*"))
    link = Path(sys.executable)
    while link.is_symlink():
        yield link
        link = link.parent / link.readlink()
    yield link
    yield Path(os.path.realpath(sys.executable))
    yield from Path(sysconfig.get_config_var("LIBDIR") or "/nowhere").glob("libpython3*.so*")


def programs() -> Iterator[Path]:
    for name in PROGRAMS:
        path = shutil.which(name, path="/usr/bin:/bin")
        if path is not None:
            yield Path("/usr/bin", name)


def libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that ``files`` need, including the dynamic loader."""
    binaries = [str(path) for path in files if is_elf(path)]
    found: set[Path] = set()
    for at in range(0, len(binaries), 200):
        # ldd reports libraries that a package finds in its own folder as missing; they are copied.
        listed = subprocess.run(
            ["ldd", *binaries[at : at + 200]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        ).stdout
        found |= {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.M)}
    for name in ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1"):
        found |= set(Path("/usr/lib").glob(f"*/{name}"))
    return found


def is_elf(path: Path) -> bool:
    if not path.is_file() or not (".so" in path.name or os.access(path, os.X_OK)):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def merged(path: Path) -> str:
    """Return the path's name in a tar, with the links of a merged /usr resolved."""
    name = os.path.normpath(path).lstrip("/")
    first, _, rest = name.partition("/")
    return f"{SYMLINKS[first]}/{rest}" if first in SYMLINKS and rest else name


def write_tar(target: Path, font_cache: Path, launchers: Path) -> int:
    """Write the root file system; return the number of its files."""
    wanted = [path for path in environment_files() if not SKIPPED.search(str(path))]
    wanted += programs()
    wanted += sorted(libraries(wanted))
    names: set[str] = set()
    with tarfile.open(target, "w") as tar:
        for name, to in SYMLINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            tar.addfile(entry)
        for name, mode in FOLDERS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            if name == "home/user":
                entry.uid, entry.gid = 1000, 100
            tar.addfile(entry)
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, BytesIO(text.encode()))
        for path in wanted:
            name = merged(path)
            if name not in names and not path.is_dir():
                names.add(name)
                # Copy the program itself, not the links of Debian's alternatives.
                follow = path.parent == Path("/usr/bin") or ".so" in path.name
                tar.add(Path(os.path.realpath(path)) if follow else path, name, recursive=False)
        for folder, inside in ((font_cache, FONT_CACHE), (launchers, "/usr/local/bin")):
            tar.add(folder, inside.lstrip("/"), filter=readable)
    return len(names)


def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode |= 0o755 if entry.isdir() or entry.name.endswith(".sh") else 0o644
    return entry


def make_font_cache(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import matplotlib.pyplot"],
        env={**os.environ, "MPLCONFIGDIR": str(folder)},
        check=True,
        stderr=subprocess.DEVNULL,
    )


def install_launchers(folder: Path) -> None:
    """Copy the launchers that gateway-provisioners needs in its images, if it is installed.

    Its own program would write them to /usr/local/bin of this system, so it is not used.
    """
    found = importlib.util.find_spec("gateway_provisioners")
    if found is None or found.origin is None:
        return
    package = Path(found.origin).parent / "kernel-launchers"
    scripts = folder / "kernel-launchers" / "python" / "scripts"
    shutil.copytree(package / "python" / "scripts", scripts)
    shutil.copytree(package / "shared" / "scripts", scripts, dirs_exist_ok=True)
    text = Template((package / "bootstrap" / "bootstrap-kernel.sh").read_text())
    script = folder / "bootstrap-kernel.sh"
    script.write_text(text.safe_substitute(install_dir="/usr/local/bin"))


def changes() -> list[str]:
    """Return the lines of a Dockerfile.

    The command starts dockernel's kernel if the variable that dockernel sets exists, otherwise the
    script of gateway-provisioners.
    """
    script = (
        'if [ -n "$DOCKERNEL_CONNECTION_FILE" ]; then exec '
        f"{sys.executable} -m ipykernel_launcher -f $DOCKERNEL_CONNECTION_FILE; fi; "
        "exec /usr/local/bin/bootstrap-kernel.sh"
    )
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    quoted = script.replace("\\", "\\\\").replace('"', '\\"')
    return [
        f"ENV PATH={path} LANG=C.UTF-8 MPLCONFIGDIR={FONT_CACHE}",
        f'CMD ["/bin/bash", "-c", "{quoted}"]',
    ]


def main() -> None:
    try:
        engine = Engine()
    except EngineError as error:
        raise SystemExit(f"{error}; docs/performance.md says how to start one") from error
    with tempfile.TemporaryDirectory(prefix="gvisor-kernel-image-") as name:
        folder = Path(name)
        fonts, launchers = folder / "fonts", folder / "launchers"
        for each in (fonts, launchers):
            each.mkdir(mode=0o755)
        make_font_cache(fonts)
        install_launchers(launchers)
        tar = folder / "root.tar"
        count = write_tar(tar, fonts, launchers)
        size = tar.stat().st_size / 1024**2
        engine.import_image(tar, changes())
    print(f"{IMAGE}: {count} files, {size:.0f} MiB")


if __name__ == "__main__":
    main()
