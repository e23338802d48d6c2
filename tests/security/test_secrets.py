"""Secrets of the host, its user, Jupyter and other kernels are not found inside."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gvisor_kernel.egress.environment import no_egress_environment
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.spec.layout import LAYOUT

from ..jupyter.helpers import execute, wait_until
from ..world import World
from .inside import PRELUDE, SECRET, Kernel, Neighbour

pytestmark = pytest.mark.usefixtures("unharmed")

CREDENTIALS = (
    *(".ssh/id_ed25519", ".ssh/config", ".aws/credentials", ".config/gcloud/credentials.db"),
    *(".azure/accessTokens.json", ".kube/config", ".docker/config.json", ".netrc", ".pypirc"),
    *(".gnupg/private-keys-v1.d/key", ".bash_history", ".git-credentials", ".npmrc"),
    *(".config/gh/hosts.yml", ".cache/huggingface/token", ".mozilla/key4.db", ".env"),
    *(".jupyter/jupyter_server_config.json", ".local/share/jupyter/runtime/jpserver-1.json"),
)


@pytest.fixture(scope="module", autouse=True)
def planted(world: World) -> Iterator[list[Path]]:
    """Put credentials into the home of the server's user before any kernel starts."""
    home = world.base / "home"
    paths = [home / name for name in CREDENTIALS]
    made = []
    for path in paths:
        for folder in reversed(path.relative_to(home).parents):
            if not (home / folder).exists():
                (home / folder).mkdir()
                made.append(home / folder)
        path.write_text(SECRET)
    token = world.runtime / "jpserver-1.json"
    token.write_text(json.dumps({"token": SECRET}))
    yield [*paths, token]
    for path in (*paths, token):
        path.unlink()
    for folder in reversed(made):
        with suppress(OSError):  # a kernel's start has put something of its own there
            folder.rmdir()


SEARCH = '''
def read(path, limit=1 << 20):
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError:
        return b""

def everywhere():
    """Every file of the sandbox, and the files of /proc and /sys."""
    tops = ("/container_info.json", "/etc", "/home", "/mnt", "/root", "/run", "/tmp", "/var",
            "/workspace", "/srv", "/media", "/dev/shm")
    for top in tops:
        if os.path.isfile(top):
            yield top
        for folder, folders, files in os.walk(top):
            folders[:] = [n for n in folders if os.path.join(folder, n) not in image]
            yield from (os.path.join(folder, name) for name in files)
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):
        for name in ("cmdline", "environ", "mountinfo", "mounts", "cgroup", "status", "maps",
                     "stat", "comm"):
            yield f"/proc/{pid}/{name}"
    for name in ("version", "cpuinfo", "cmdline", "mounts", "filesystems", "net/unix", "net/tcp",
                 "net/arp", "sys/kernel/hostname", "sys/kernel/random/boot_id", "partitions"):
        yield f"/proc/{name}"
    for folder, _, files in os.walk("/sys"):
        yield from (os.path.join(folder, name) for name in files)
'''


def test_environment_contains_only_allowed_variables(kernel: Kernel) -> None:
    """Neither the server's variables nor those that a client sends are inside."""
    found = kernel.run("""
        texts = [Path(p).read_bytes() for p in glob.glob("/proc/[0-9]*/environ")
                 if refused(lambda: open(p).close()) is None]
        found = {
            "names": sorted(os.environ),
            "texts": [t.decode(errors="replace") for t in texts],
            "init": [], "init's files": [],
        }
        try:
            found["init"] = Path("/proc/1/environ").read_text().split(chr(0))
            found["init's files"] = [os.readlink(path) for path in glob.glob("/proc/1/fd/*")]
        except PermissionError:
            pass
    """)
    allowed = {
        *("DEBIAN_FRONTEND", "HOME", "IS_SANDBOX", "LANG", "PATH", "PIP_ROOT_USER_ACTION"),
        *("PYTHONUNBUFFERED", "PYTHONUSERBASE", "JAVA_HOME", "NODE_PATH", "SSL_CERT_FILE"),
        *("PLAYWRIGHT_BROWSERS_PATH", "LC_CTYPE", "GVISOR_KERNEL_WORKSPACE"),
        *("GVISOR_KERNEL_FOLDER", "GVISOR_KERNEL_LOST", "GVISOR_KERNEL_PATHS"),
    }
    own = {  # set by IPython
        *("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "GIT_PAGER", "PAGER", "TERM"),
        *("MPLBACKEND", "PYDEVD_USE_FRAME_EVAL", "PYDEVD_DISABLE_FILE_VALIDATION"),
    }
    assert set(found["names"]) <= allowed | own | no_egress_environment().keys()
    assert {entry.partition("=")[0] for entry in found["init"] if entry} <= allowed
    # PID 1's link, its pipes and sockets to the kernel and to programs, and its epoll.
    kinds = {name.partition(":")[0] for name in found["init's files"]}
    assert kinds <= {"host", "pipe", "socket", "anon_inode"}
    assert SECRET not in "".join(found["texts"])
    assert "mallory" not in "".join(found["texts"])


def test_home_credentials_do_not_exist_inside(
    kernel: Kernel, planted: list[Path], world: World
) -> None:
    homes = (Path.home(), "/root", "/home/user")
    paths = [*map(str, planted), *(f"{home}/{name}" for home in homes for name in CREDENTIALS)]
    turned = [path[::-1] for path in paths]  # a cell's text is in the transcript
    assert kernel.run(f"found = [p for p in {turned!r} if os.path.lexists(p[::-1])]") == []


def test_full_search_finds_no_secret_or_host_name(
    kernel: Kernel, neighbour: Neighbour, planted: list[Path], world: World
) -> None:
    """No file and nothing that the sandbox's kernel reports has a secret or names the host."""
    words = {
        "the secret": SECRET,
        "the neighbour": neighbour.kernel.manager.kernel_id or "-",
        "the neighbour's sandbox": neighbour.kernel.sandbox.identity,
        "the state directory": str(kernel.sandbox.directory),
        "the home": str(world.base / "home"),
        "the notebook's folder": str(kernel.folder),
        "Jupyter's folder": str(world.runtime),
        "the endpoints": str(state_root() / "sockets"),
        "the host's name": platform.node() if len(platform.node()) > 5 else "-",
        "the boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "the machine": read_if("/etc/machine-id") or "-",
    }
    # Reversed, because the cell itself is in the transcript.
    turned = {name: word[::-1] for name, word in words.items() if word != "-"}
    image = [view.target for view in kernel.sandbox.view.mounts if view.target not in LAYOUT]
    found = kernel.run(
        SEARCH
        + f"""
image, turned = {image!r}, {turned!r}
words = {{name: word[::-1].encode() for name, word in turned.items()}}
found, looked = [], 0
for path in everywhere():
    content = read(path) + os.fsencode(path)
    looked += 1
    found += [[name, path] for name, word in words.items() if word in content]
assert looked > 50
"""
    )
    assert found == []


def read_if(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


MEMORY = r"""
import hashlib, re
shape = re.compile(rb"[0-9a-f]{8}[-_][0-9a-f_-]{20,40}")
found = set()
with open("/proc/self/mem", "rb", buffering=0) as memory:
    for line in open("/proc/self/maps"):
        place, access, *_ = line.split()
        if not access.startswith("rw"):
            continue
        start, end = (int(part, 16) for part in place.split("-"))
        try:
            memory.seek(start)
            content = memory.read(end - start)
        except (OSError, OverflowError):
            continue
        for match in shape.findall(content):
            for size in range(29, len(match) + 1):
                found.add(hashlib.sha256(match[:size]).hexdigest())
found = sorted(found)
"""


def test_kernel_memory_contains_no_connection_keys(kernel: Kernel, neighbour: Neighbour) -> None:
    """The kernel's memory contains no host key, neither of its own connection nor of another's."""
    found = kernel.run(MEMORY)
    assert len(found) > 10, "the search does not find known words"
    for one in (kernel, neighbour.kernel):
        key = one.manager.session.key
        assert hashlib.sha256(key).hexdigest() not in found


def test_connection_files_inside_are_the_sandboxs_own(kernel: Kernel) -> None:
    """Connection files inside differ from the host's."""
    found = kernel.run("""
        found = []
        for folder, _, files in os.walk("/run"):
            for name in files:
                if name.endswith(".json"):
                    found.append(json.loads(Path(folder, name).read_text()))
    """)
    host = json.loads(Path(kernel.manager.connection_file).read_text())
    for info in found:
        assert info.get("key") != host["key"]
        assert info.get("ip") != host["ip"]


def test_container_info_names_nothing_of_the_host(kernel: Kernel) -> None:
    """It contains only what a sandbox may know about itself."""
    info = kernel.run("found = json.loads(Path('/container_info.json').read_text())")
    assert set(info) == {
        *("identity", "kernel", "image", "runtime", "created", "versions", "limits", "network"),
        *("user", "workdir", "layout", "mounts"),
    }
    text = json.dumps(info)
    for word in (str(kernel.folder), str(kernel.sandbox.directory), SECRET, str(Path.home())):
        assert word not in text


def test_new_memory_and_files_are_empty(kernel: Kernel, neighbour: Neighbour) -> None:
    """Memory that another kernel has freed is not visible."""
    neighbour.kernel.run(f"hoard = bytearray({SECRET!r}.encode() * 500_000); del hoard; found = 0")
    turned = SECRET[::-1]
    found = kernel.run(f"""
        import mmap
        word = {turned!r}[::-1].encode()
        found = [word in mmap.mmap(-1, 64 << 20).read()]
        with open("/tmp/hole", "w+b") as file:
            file.truncate(8 << 20)
            found.append(word in file.read())
        os.unlink("/tmp/hole")
    """)
    assert found == [False, False]


def test_crash_logs_contain_no_secrets(kernel: Kernel) -> None:
    """Logs of a crash say how it ended and contain no environment."""
    manager = kernel.manager
    log = kernel.sandbox.log_path
    kernel.client.execute("import faulthandler; faulthandler._sigsegv()")
    wait_until(lambda: not manager.is_alive(), "the death of the kernel")
    texts = [path.read_bytes() for path in log.parent.glob("*.log*") if path.is_file()]
    texts += [path.read_bytes() for path in kernel.sandbox.view.transcripts.iterdir()]
    manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert execute(kernel.client, PRELUDE).status == "ok"
    assert len(b"".join(texts)) > 100
    key = manager.session.key
    for text in texts:
        assert SECRET.encode() not in text
        assert key not in text
        assert b"mallory" not in text


def test_failed_start_prints_no_secrets(world: World, tmp_path: Path) -> None:
    """The error that a person sees quotes nothing from the environment."""
    code = """
import os, sys
from jupyter_client import KernelManager
from traitlets.config import Config
settings = {"command": ["/usr/bin/env", "{connection_file}"]}
manager = KernelManager(kernel_name="gvisor-python",
                        config=Config({"GVisorProvisioner": settings}))
try:
    manager.start_kernel(cwd=sys.argv[1])
    manager.shutdown_kernel(now=True)
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=os.environ | {"GK_SECRET_TOKEN": SECRET},
        capture_output=True,
        text=True,
        check=True,
    )
    assert SECRET not in done.stdout + done.stderr
