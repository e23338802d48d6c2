"""Code that runs in a kernel before its snapshot is taken: it loads what a first cell waits for.

Also what the snapshot depends on: the files that the kernel has loaded then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.kernel.client import REPLY_SECONDS, OwnClient, wait_for_reply
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.restore import find_renewal
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.base import MountView
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter
from gvisor_kernel.snapshots.manifest import Manifest, make_manifest
from gvisor_kernel.spec.layout import GUEST
from gvisor_kernel.strict_json import parse_json

Report = Callable[[str, float], None]
"""Called at each step of making a snapshot, with a text for people and the share of the work that
is done."""

MAX_LIST = 16 * 1024 * 1024
"""Bytes of the list of files that a kernel has loaded. Usual lists have about 100 KB."""

WARM_UP = """
import gc
gc.collect()
gc.freeze()
import ctypes
ctypes.CDLL(None).malloc_trim(0)
"""
"""Frees memory that each restored kernel would otherwise hold or free itself."""

WARM_UP_REQUESTS = {
    "java": (20, "int warm = 6 * 7; System.out"),
    "typescript": (5, "const warm: number = 6 * 7; console.lo"),
}
"""Number and code of the completion requests before the snapshot is taken, by language.

They load the compilers, for which the first cell would otherwise wait. Running code instead would
count as a cell."""

FONT_LIST = f"""
import sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest import font_list
finally:
    sys.path.remove("{GUEST}")
font_list.make()
"""

SYSTEM_FOLDERS = ("/usr/local/bin", "/usr/local/lib", "/usr/lib")
PACKAGE_LISTS = (
    *("/var/lib/dpkg/status", "/lib/apk/db/installed", "/var/lib/pacman/local"),
    *("/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite"),
)
"""The databases of the distributions' package managers."""

LIST_FILES = """
import json, sys
files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
with open("/proc/self/maps") as maps:
    files |= {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
print(json.dumps([sorted(f for f in files if f), sorted(sys.path_importer_cache)]))
"""


def warm_up(
    client: OwnClient,
    kernel: SandboxedKernel,
    plan: KernelPlan,
    language: str,
    since: float,
    report: Report,
) -> Manifest:
    """Prepare an idle kernel to be saved; return what it depends on.

    ``since``: when it was started, by the clock of the files.

    :raises SnapshotError: when code fails in it, or it does not say what it has loaded
    :raises LaunchError: when it ends or does not answer
    """
    sandbox = kernel.sandbox
    assert sandbox is not None
    renewal = find_renewal({"language": language})
    if renewal.code:  # each restored kernel runs it, so make no snapshot if it fails
        _run(client, renewal.code)
    if language != "python":
        times, code = WARM_UP_REQUESTS.get(language.lower(), (0, ""))
        for number in range(times):
            report("Warming up the kernel", 0.3 + 0.5 * number / times)
            wait_for_reply(client, client.is_complete(code))
            wait_for_reply(client, client.complete(code))
        if plan.spec.image != HOST_IMAGE:
            # The files of an image never change, and its digest is part of the key.
            return make_manifest([], [], [], since)
        return list_installed(plan.request.python)
    named = () if isinstance(plan.spec.preload, str) else plan.spec.preload
    steps = len(named)
    for number, name in enumerate(named):
        report(f"Importing {name}", 0.3 + 0.4 * number / steps)
        run_python(client, f"import importlib\nimportlib.import_module({name!r})", name)
    report("Warming up the kernel", 0.7)
    # No completion request: it imports jedi, which takes 34 MiB in each kernel. Users who want
    # fast completions preload jedi.
    wait_for_reply(client, client.is_complete("print"))
    text = run_python(client, LIST_FILES)
    run_python(client, WARM_UP)
    try:
        files, directories = parse_json(text, MAX_LIST)
        paths = map(str, files), map(str, directories)
        return make_manifest(*paths, sandbox.view.mounts, since, str(sandbox.directory))
    except (ValueError, TypeError) as error:
        raise SnapshotError(f"The kernel's list of files cannot be parsed: {error}.") from error


def list_installed(python: str) -> Manifest:
    """Return a manifest that changes with each installed package: for a kernel of another language.

    Such a kernel cannot list what it has loaded. The packages are those of the interpreter
    ``python``, which may run the kernel, and those of the system.
    """
    interpreter = ask_interpreter(python)
    folders = {*interpreter.site_directories, interpreter.user_site or "", *SYSTEM_FOLDERS} - {""}
    views = [MountView(folder, folder, True) for folder in (*folders, "/var/lib", "/lib/apk")]
    records = [str(p) for f in folders for p in Path(f).glob("*-info/RECORD")]
    return make_manifest([*records, *PACKAGE_LISTS], sorted(folders), views)


def run_python(client: OwnClient, code: str, preloaded: str = "") -> str:
    """Run ``code`` without a trace in the kernel's namespace; return what it printed."""
    return _run(client, f"exec({code!r}, {{}})", preloaded)


def _run(client: OwnClient, code: str, preloaded: str = "") -> str:
    message_id = client.execute(code, silent=True, store_history=False)
    content = wait_for_reply(client, message_id)
    if content["status"] != "ok":
        failure = f"{content.get('ename')}: {content.get('evalue')}"
        if preloaded:
            raise SnapshotError(
                f"The module {preloaded} cannot be imported in a sandbox: {failure}.",
                "take it out of the setting preload, or install it.",
            )
        raise SnapshotError(f"The kernel could not be warmed up: {failure}.")
    printed = ""
    with suppress(Exception):
        while True:
            message = client.get_iopub_msg(timeout=REPLY_SECONDS)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                printed += message["content"]["text"]
            if message["content"].get("execution_state") == "idle":
                break
    return printed
