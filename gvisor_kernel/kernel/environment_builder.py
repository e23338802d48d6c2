"""Installs the packages of a kernelspec in a sandbox, and takes them over into the store.

For a process that does nothing else: the command ``install --with``. Installing runs a stranger's
code (source distributions), so it runs in a sandbox of the kernelspec's own image that sees no
folder of the user, and has no route but the one to the package indexes.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty
from typing import Any

from packaging.requirements import Requirement

from gvisor_kernel.archive.layers import DISK_SPARE
from gvisor_kernel.bridge.deaths import Death, describe_end
from gvisor_kernel.egress.package_catalog import NO_INDEX
from gvisor_kernel.environments.collection import collect, find_packages
from gvisor_kernel.environments.environment import (
    ABI_FILE,
    Base,
    Environment,
    Facts,
    Store,
    compute_digest,
    install_again,
    odd_answer,
)
from gvisor_kernel.errors import ArchiveError, LaunchError, PackagesError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.kernel.client import POLL_SECONDS, OwnClient, connect, wait_for_reply
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.hints import ASK_DOCTOR
from gvisor_kernel.runtimes.mounts.written_folders import forget_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.store import Draft, measure_tree
from gvisor_kernel.strict_json import JsonError, parse_json

SECONDS = 3600.0
"""Seconds that pip may take. A large library that has to be compiled takes half of that."""
MAX_LINE = 16 * 1024
"""Characters of a line that are kept."""
MAX_ASKED = 10
"""Packages whose page is asked for again after a failure."""
SHOWN_LINES = 12
"""Lines at the end of pip's output that an error shows."""

Report = Callable[[str], None]
"""Called with each line of pip's, which is untrusted, and with the steps after it."""

INSTALL = """
import importlib.machinery, json, os, shutil, subprocess, sys, urllib.error, urllib.request
root, made, temporary = os.environ["GVISOR_KERNEL_PACKAGES"], {made!r}, {temporary!r}
# On the host's disk: the sandbox's own files would take its memory.
shutil.copytree(root, made, symlinks=True)
shutil.rmtree(root)
os.symlink(made, root)
os.mkdir(temporary)
argv = [root + "/bin/python", "-m", "pip", "install", "--progress-bar=off", "--no-color", "--"]
with subprocess.Popen(
    argv + {requirements!r}, env={{**os.environ, "TMPDIR": temporary}}, stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
) as pip:
    for line in pip.stdout:
        print(line, end="", flush=True)
shutil.rmtree(temporary, ignore_errors=True)
answers = []
direct = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
for name in {names!r} if pip.returncode else ():
    try:
        direct.open(os.environ["PIP_INDEX_URL"] + name + "/", timeout=60).close()
    except urllib.error.HTTPError as error:
        answers.append([error.code, error.read(400).decode("utf-8", "replace")])
    except OSError:
        pass
entries = sum(len(folders) + len(files) for _, folders, files in os.walk(made))
print(json.dumps({{
    "status": pip.returncode,
    "python": "%d.%d" % sys.version_info[:2],
    "abi": importlib.machinery.EXTENSION_SUFFIXES[0],
    "entries": entries,
    "answers": answers,
}}), flush=True)
"""
"""If pip fails, the pages of the packages are asked for again: pip does not show why an index did
not answer."""

_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"No matching distribution found for ([^\s(]+)",
        "The package index has no {0} that fits this Python.",
        "check the name and the versions; the lines below say which versions there are.",
    ),
    (
        r"No space left on device",
        "The disk is full.",
        "free some space, or set XDG_DATA_HOME to a folder on another disk.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "These packages need versions of other packages that exclude each other.",
        "leave out a version, or install them as two kernelspecs.",
    ),
    (
        r"No module named pip",
        "The Python of the image has no pip, and no wheel of it.",
        "install pip (on Debian python3-pip or python3-venv) there.",
    ),
    (
        r"Failed (?:to build|building)|metadata-generation-failed|subprocess-exited-with-error",
        "A package has no wheel for this Python, and could not be built in the sandbox.",
        "choose a version that has a wheel, or an image with the compilers that it needs.",
    ),
)
"""Patterns of pip's output, each with the fact and what to do."""


def find_environment(plan: KernelPlan, requirements: tuple[str, ...]) -> Environment | None:
    """Return what was installed for such a kernel before; None if nothing was.

    :raises GvisorKernelError: when the store or the kernel's image cannot be used
    """
    return Store.open().find_built(requirements, _find_base(plan))


def build_environment(
    plan: KernelPlan, requirements: tuple[str, ...], report: Report
) -> Environment:
    """Install ``requirements`` in a kernel of ``plan`` (``make_packages_plan``). Blocks.

    :raises PackagesError: when pip fails, or what it has installed is not accepted
    :raises GvisorKernelError: when the sandbox cannot be started; nothing is left of it
    """
    base = _find_base(plan)
    store = Store.open()
    try:
        with store.write() as draft:
            spec = replace(plan.spec, outputs=str(draft.scratch))
            with open_path(str(draft.scratch)) as folder:
                identity = folder.identity
            try:
                facts = _install(replace(plan, spec=spec), requirements, draft, report)
            finally:
                with records.locked():
                    forget_written(identity)
            report("Taking over what was installed")
            if base.python not in ("", facts.python):
                raise odd_answer()
            return _keep(store, draft, requirements, Base(base.image, facts.python), facts)
    except ArchiveError as error:
        raise PackagesError(
            f"What the packages {' '.join(requirements)} have installed is refused: {error.fact}.",
            error.hint or "leave out the package that it is of.",
        ) from error
    except OSError as error:
        raise PackagesError(
            f"The packages could not be stored in {store.root}: {error.strerror or error}.",
            "free some space there, or set XDG_DATA_HOME to a folder on another disk.",
        ) from error


def _find_base(plan: KernelPlan) -> Base:
    return get_runtime(plan.spec.runtime).find_base(plan.spec, plan.request)


def _install(plan: KernelPlan, requirements: Sequence[str], draft: Draft, report: Report) -> Facts:
    kernel = SandboxedKernel(logs_death=False, keeps_data=False)
    try:
        address = asyncio.run(kernel.launch(plan))
        with connect(address, plan, kernel.find_end) as client:
            wait_for_reply(client, client.kernel_info())
            code = INSTALL.format(
                made=f"{OUTPUTS}/environment",
                temporary=f"{OUTPUTS}/temporary",
                requirements=list(requirements),
                names=[Requirement(text).name for text in requirements[:MAX_ASKED]],
            )
            lines = _run(client, code, draft, report)
    finally:
        asyncio.run(kernel.close())  # also copies the outputs out of a Docker engine
    try:
        content = parse_json(lines[-1] if lines else "", MAX_LINE)
        status = content["status"]
    except (JsonError, LookupError, TypeError) as error:
        raise PackagesError(
            "The packages could not be installed.", "see its last lines.", _tail(lines)
        ) from error
    if status != 0:
        raise _explain(lines, requirements, _find_failures(content))
    return Facts.parse(content)


def _run(client: OwnClient, code: str, draft: Draft, report: Report) -> list[str]:
    """Run ``code``; return the last lines that it printed.

    Code of the packages may send any message in the kernel's name.

    :raises LaunchError: when the kernel ends, or takes longer than SECONDS
    :raises PackagesError: when the disk is nearly full, or a message is none of a kernel
    """
    message_id = client.execute(f"exec({code!r}, {{}})", silent=True)
    deadline = time.monotonic() + SECONDS
    lines: deque[str] = deque(maxlen=200)
    part = ""
    while True:
        if shutil.disk_usage(draft.scratch).free < DISK_SPARE:
            raise PackagesError(
                "The disk is full.", "free some space, or set XDG_DATA_HOME to another disk."
            )
        if time.monotonic() > deadline:
            raise LaunchError(f"pip has not ended within {SECONDS:g} s.", "name fewer packages.")
        try:
            message = client.get_iopub_msg(timeout=POLL_SECONDS)
        except Empty:
            end = client.find_end()
            if end is not None:
                is_memory = isinstance(end, Death) and end.kind == "memory"
                why = describe_end(end, more_memory="")
                raise LaunchError(
                    f"The sandbox ended before the packages were installed: {why}",
                    "give it more memory: --memory 8G." if is_memory else ASK_DOCTOR,
                    _tail(lines),
                ) from None
            continue
        except _MALFORMED as error:
            raise odd_answer() from error
        text, is_end = _read_message(message, message_id)
        *whole, part = (part + text).split("\n")
        part = part[-MAX_LINE:]
        for line in whole:
            lines.append(line[:MAX_LINE])
            if line.strip():
                report(line[:MAX_LINE])
        if is_end:
            return [line for line in (*lines, part) if line.strip()]


def _read_message(message: Mapping[str, Any], message_id: str) -> tuple[str, bool]:
    """Return what a message on iopub prints, and whether it ends the request ``message_id``.

    :raises PackagesError: when it is none of a kernel
    """
    try:
        if message["parent_header"].get("msg_id") != message_id:
            return "", False
        content = message["content"]
        if message["msg_type"] == "stream":
            return str(content["text"]), False
        if message["msg_type"] == "error":
            return f"\n{content.get('ename')}: {content.get('evalue')}\n", False
        return "", content.get("execution_state") == "idle"
    except _MALFORMED as error:
        raise odd_answer() from error


def _find_failures(content: Mapping[str, Any]) -> list[str]:
    """Return why the route could not get a page from an index, in its words."""
    try:
        answers = [(int(status), str(text)) for status, text in content["answers"]]
    except (*_MALFORMED, OverflowError):
        return []
    return [text.strip() for status, text in answers if status >= 500 or NO_INDEX in text]


def _explain(
    lines: Sequence[str], requirements: Sequence[str], failures: Sequence[str]
) -> PackagesError:
    if failures:
        return PackagesError(
            f"The packages {' '.join(requirements)} could not be got from an index:"
            f" {failures[0].rstrip('.')}.",
            "check the network, and which index pip on this machine uses: `pip config list`.",
            _tail(lines[:-1]),
        )
    text = "\n".join(lines[:-1])
    for pattern, fact, hint in _REASONS:
        found = re.search(pattern, text)
        if found is not None:
            return PackagesError(fact.format(*found.groups()), hint, _tail(lines[:-1]))
    return PackagesError(
        f"pip could not install {' '.join(requirements)}.",
        "see what pip says; `pip download` on this machine shows whether the index answers.",
        _tail(lines[:-1]),
    )


def _tail(lines: Sequence[str] | deque[str]) -> str:
    return "\n".join(list(lines)[-SHOWN_LINES:])


def _keep(
    store: Store, draft: Draft, requirements: tuple[str, ...], base: Base, facts: Facts
) -> Environment:
    entries = collect(draft.scratch / "environment", draft.tree, facts.python)
    if entries < facts.entries:
        raise PackagesError(
            f"Only {entries} of {facts.entries} files of the packages have arrived.",
            install_again(requirements),
        )
    abi = draft.tree / ABI_FILE
    abi.write_text(facts.abi)  # by path: below a private store of this user
    abi.chmod(0o644)
    measure = measure_tree(draft.tree, {})
    digest = compute_digest(measure.digest, base, facts.abi, requirements)
    environment = Environment(
        digest=digest,
        directory=draft.directory,
        requirements=requirements,
        image=base.image,
        python=base.python,
        abi=facts.abi,
        packages=find_packages(draft.tree, facts.python),
        size=measure.size,
        entries=measure.entries,
        created=time.time(),
    )
    return store.keep(draft, environment)


def describe_environment(environment: Environment) -> str:
    """Return a line that says what was installed, for people. Names in it are untrusted."""
    names = ", ".join(f"{name} {version}" for name, version in environment.packages)
    size = describe_size(environment.size)
    return (
        f"{names or 'nothing that the image does not have'} ({size}, Python {environment.python})"
    )
