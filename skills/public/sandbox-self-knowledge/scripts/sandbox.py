"""What this sandbox is, may and keeps, read from inside.

    python sandbox.py                 all facts, as text
    python sandbox.py --json          the same for programs
    python sandbox.py reach HOST[:PORT]...   whether a host can be reached from here, and why not

    from sandbox import describe, reach
    describe()["memory"]["free"]      # bytes, now

It changes nothing and needs nothing but Python's standard library.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
from importlib.util import find_spec
from typing import Any, Mapping
from urllib.parse import urlsplit

INFO = "/container_info.json"
OUTPUTS = "/mnt/user-data/outputs"
SCRATCH = ("/workspace", "/tmp", "/dev/shm", "/home/user")
"""Folders that may be written, and end with the sandbox."""
NO_NETWORK = "GVISOR_KERNEL_NO_NETWORK"
"""A variable that says what would give this kernel a route; empty or not there if it has one."""
PROGRAMS = (
    "bash", "git", "curl", "node", "npm", "esbuild", "java", "pandoc", "soffice", "pdftotext",
    "chromium", "ffmpeg", "gcc", "R",
)  # fmt: skip
MODULES = (
    "numpy", "pandas", "matplotlib", "scipy", "sklearn", "PIL", "openpyxl", "docx", "pptx",
    "reportlab", "pypdf", "requests", "torch",
)  # fmt: skip
SECONDS = 10.0


def describe() -> dict[str, Any]:
    """All facts. Raises RuntimeError where this is no sandbox of gvisor-kernel."""
    try:
        with open(INFO, encoding="utf-8") as file:
            info: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"this is no sandbox of gvisor-kernel: {INFO}: {error}") from None
    limits = info.get("limits", {})
    processes = limits.get("pids", resource.getrlimit(resource.RLIMIT_NPROC)[0])
    return {
        "identity": info.get("identity"),
        "kernel": info.get("kernel"),
        "image": info.get("image"),
        "versions": info.get("versions", {}),
        "created": info.get("created"),
        "user": {"uid": os.getuid(), "gid": os.getgid(), "capabilities": _capabilities()},
        "memory": {"limit": limits.get("memory_bytes"), **_memory()},
        "processors": len(os.sched_getaffinity(0)),
        "processes": processes,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "working_directory": os.getcwd(),
        "places": _places(info),
        "network": describe_network(os.environ),
        "programs": {name: path for name in PROGRAMS if (path := shutil.which(name))},
        "modules": [name for name in MODULES if find_spec(name)],
    }


def describe_network(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the variables of a kernel tell about its routes.

    Routes that lead to hosts are not in the variables: ask ``reach``.
    """
    proxy = environment.get("HTTP_PROXY")
    remedy = environment.get(NO_NETWORK)
    routes = {
        name[len("GVISOR_EGRESS_") :].lower().replace("_", "-"): value
        for name, value in sorted(environment.items())
        if name.startswith("GVISOR_EGRESS_")
    }
    packages = bool(proxy) and environment.get("PIP_INDEX_URL", "").startswith(f"{proxy}/packages")
    return {
        "has_routes": bool(proxy) and not remedy,
        "remedy": remedy or None,
        "proxy": proxy,
        "routes": routes,
        "packages": packages,
        "interfaces": _interfaces(),
    }


def reach(host: str, port: int = 443) -> tuple[bool, str]:
    """Whether a connection to this host leaves the sandbox, and what the sandbox's door says.

    Nothing is sent to the host but the beginning of a connection, which is closed at once.
    """
    proxy = urlsplit(os.environ.get("HTTPS_PROXY", ""))
    if not proxy.hostname or not proxy.port:
        return False, "there is no proxy, so there is no way out"
    if not host.isascii() or not host.isprintable() or " " in host or not 0 < port < 65536:
        raise ValueError(f"{host!r}:{port} is no host and port")
    address = f"{host}:{port}"
    try:
        with socket.create_connection((proxy.hostname, proxy.port), SECONDS) as connection:
            connection.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            line = connection.makefile("rb").readline(1000).decode(errors="replace").strip()
    except OSError as error:
        return False, f"the sandbox's door does not answer: {error}"
    _, _, status = line.partition(" ")
    return status.startswith("2"), status


def _memory() -> dict[str, int]:
    """Bytes: in all, free now, and the most that this process has used."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"total": found["MemTotal"], "free": found["MemAvailable"], "most_used_here": most}


def _capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith("CapEff")), 0)


def _interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def _places(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The folders that matter: whether they can be written, are kept, and have room."""
    kept = {place["target"]: place.get("kept", False) for place in info.get("layout", [])}
    for place in info.get("mounts", []):
        kept[place["target"]] = place.get("access") == "rw"
    if os.path.ismount("/workspace/outputs"):
        kept["/workspace/outputs"] = kept.get(OUTPUTS, False)
    found = []
    for path in [*(path for path in SCRATCH if path not in kept), *kept]:
        if os.path.isdir(path):
            system = os.statvfs(path)
            writable = os.access(path, os.W_OK)
            free = system.f_bavail * system.f_frsize if writable else 0
            place = {"path": path, "writable": writable, "kept": kept.get(path, False)}
            found.append({**place, "free": free})
    return found


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts for a reader."""
    memory, network = facts["memory"], facts["network"]
    lines = [
        f"Sandbox {facts['identity']}, image {facts['image']}, since {facts['created']}",
        "  " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"Memory: {_size(memory['total'])}, of which {_size(memory['free'])} are free. Files in"
        " the folders that are not kept count, too. More ends the kernel.",
        f"Processors: {facts['processors']}. Processes and threads: {facts['processes']} at most.",
        f"User: uid {facts['user']['uid']}, "
        + ("no capabilities." if not facts["user"]["capabilities"] else "with capabilities."),
        f"Working directory: {facts['working_directory']}",
        "Folders:",
    ]
    for place in facts["places"]:
        what = "write, kept" if place["kept"] else "write, not kept"
        room = f", {_size(place['free'])} free" if place["writable"] else ""
        lines.append(f"  {place['path']}: {what if place['writable'] else 'read only'}{room}")
    if not network["has_routes"]:
        lines.append(f"Network: none. What gives it one: {network['remedy'] or 'see SKILL.md'}")
    else:
        lines.append("Network: by these routes only, each checked and recorded on the host:")
        lines += [f"  {name}: {address}" for name, address in network["routes"].items()]
        if network["packages"]:
            lines.append("  packages: pip, uv and npm install")
        lines.append("  hosts: not listed here; ask: python sandbox.py reach HOST")
    lines.append("Programs: " + (", ".join(facts["programs"]) or "none of those asked for"))
    lines.append("Modules: " + (", ".join(facts["modules"]) or "none of those asked for"))
    return "\n".join(lines)


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["reach"] and len(arguments) > 1:
            answers = []
            for target in arguments[1:]:
                host, _, port = target.partition(":")
                answers.append(reach(host, int(port or 443)))
                print(f"{target}: {'yes' if answers[-1][0] else 'no'}: {answers[-1][1]}")
            return 0 if all(answer[0] for answer in answers) else 1
        if arguments in ([], ["--json"]):
            facts = describe()
            print(json.dumps(facts, indent=2) if arguments else as_text(facts))
            return 0
    except (RuntimeError, ValueError) as error:
        print(f"sandbox.py: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
