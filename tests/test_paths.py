"""Checks in the source code that files are changed by path only in places that are safe.

A folder that a sandbox or another user can change is opened by ``host/folders.py`` and used by its
descriptor. Each call that makes, changes, opens or mounts a file by its path has to be in the table
below, with the reason why no other user can change that path.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .test_style import MODULES, PACKAGE, part_of, text_of, tree_of

OF_OS = {
    *("chmod", "chown", "lchown", "link", "makedirs", "mkdir", "open", "remove", "rename"),
    *("replace", "rmdir", "symlink", "truncate", "unlink", "utime"),
}
OF_PATH = {
    *("chmod", "hardlink_to", "mkdir", "open", "rename", "rmdir", "symlink_to", "touch", "unlink"),
    *("write_bytes", "write_text"),
}
OTHERS = {"open", "shutil.copyfile", "shutil.copy", "shutil.copytree", "shutil.move"}
OTHERS |= {"shutil.rmtree", "shutil.chown", "mounts.mount", "mounts.move_tree"}
NAMES = "|".join(OF_OS | OF_PATH | {name.rpartition(".")[2] for name in OTHERS})
BY_DESCRIPTOR = {"dir_fd", "src_dir_fd", "dst_dir_fd"}

NOT_FILES = {
    "Store.open",
    "Backups.open",
    "control.open",
    "self._control.open",
    "blobs.open",
    "self._file.open",
    "self._records.open",
}

STATE = "the state directory, whose parents no other user can change (runtimes/state/records.py)"
OWN_STORE = "a private store of this user, made and checked by host/private_directories.py"
NAMED = "a path that a person has given on the command line"
KERNEL = "the kernel's own file systems, /proc, /sys and /dev"
PRIVATE_MOUNTS = "on a tmpfs in a private mount namespace"

PROGRAM = "a file that the calling program names"
ALLOWED = {
    "api/files.py:upload": PROGRAM,
    "api/files.py:download": PROGRAM + "; it must not exist",
    "api/sandbox.py:rename": "a file inside the sandbox",
    "bridge/": STATE,
    "artifacts/records.py": OWN_STORE,
    "artifacts/storage.py:_connect": OWN_STORE + "; or a folder that an administrator has named",
    "cli/storage.py:run_export": NAMED,
    "changes/backup.py": OWN_STORE,
    "changes/backups.py": OWN_STORE,
    "changes/control.py:_listen": STATE,
    "changes/control_client.py:ask": STATE,
    "host/owners.py:restore_access": KERNEL + "; the file of a descriptor",
    "node/relay.py:end_target": KERNEL,
    "node/files.py:_make_copy": OWN_STORE,
    "node/files.py:mark": OWN_STORE,
    "node/files.py:remove": OWN_STORE,
    "runtimes/nodes/node_sandbox.py:_end_link": KERNEL,
    "runtimes/nodes/ssh.py:make_control": STATE,
    "cli/mcp.py:check_streams": KERNEL,
    "cli/mcp.py:make_folder": NAMED,
    "cli/main.py": KERNEL,
    "cli/skills.py": NAMED,
    "egress/audit.py:_read_lines": STATE + "; only read, and no link is followed",
    "egress/own_process.py:is_memory_short": "a file of the host's kernel",
    "egress/budgets.py:_connect": STATE,
    "egress/package_cache.py": OWN_STORE,
    "egress/stream_client.py:asking": "a stream, not a file",
    "egress/streams.py:open": "a stream, not a file",
    "egress/packages.py:open": OWN_STORE,
    "egress/worker.py:_open_packages": OWN_STORE,
    "egress/package_index.py": "configuration files of this user and of the system",
    "server/page_network.py:_connect": "a socket, not a file",
    "host/homes.py": "the system's list of accounts",
    "host/enter.py": KERNEL + "; the state directory, opened again and compared",
    "host/folders.py": "the module that opens folders: the root, and files that are already open",
    "host/stage.py": PRIVATE_MOUNTS,
    "jupyter/default_provisioner.py": "Jupyter's folders of configuration and kernelspecs",
    "jupyter/kernelspecs.py": NAMED,
    "jupyter/replaced_kernelspec.py": "Jupyter's folder of kernelspecs, and one beside it",
    "lab/application.py": "Jupyter's folders of this user",
    "host/locks.py:_describe_holder": KERNEL,
    "host/log_files.py": STATE,
    "host/private_directories.py": OWN_STORE,
    "archive/": "below a folder that is held open",
    "images/": OWN_STORE + "; an image that a person has given",
    "environments/": OWN_STORE,
    "kernel/environment_builder.py:_keep": OWN_STORE,
    "kernel/learned_modules.py:change": OWN_STORE,
    "kernel/left_builder.py": STATE + "; and the null device",
    "host/cgroups.py": KERNEL,
    "mcp/resources.py:read_tail": STATE + "; only read, and no link is followed",
    "mcp/sessions.py:remove_if_empty": "a folder in one that a person has named, and that no"
    " sandbox sees; only an empty one is removed",
    "mcp/stdio.py:claimed_streams": KERNEL,
    "runtimes/runsc/runsc_sandbox.py": OWN_STORE,
    "runtimes/mounts/covers.py:make_mount_points": STATE,
    "runtimes/copies/contents.py:write_list": STATE,
    "runtimes/mounts/editable_installs.py:_read": "only read: paths in it are opened safely",
    "runtimes/mounts/editable_installs.py:_open_at_once": "only read, likewise",
    "runtimes/runsc/command_line.py": STATE,
    "runtimes/runsc/launch_plan.py:write_files": STATE,
    "runtimes/runsc/rootfs.py": STATE,
    "runtimes/runsc/runtime.py:start": STATE,
    "runtimes/runsc/runtime.py:_start": STATE,
    "runtimes/runsc/memory.py": KERNEL,
    "runtimes/runsc/staging.py:_make_namespace": KERNEL,
    "runtimes/runsc/starting.py:read_panic": STATE + "; only read, and no link is followed",
    "runtimes/state/beginning.py:begin": STATE,
    "runtimes/state/records.py": STATE,
    "runtimes/mounts/written_folders.py": STATE,
    "skills/package.py": NAMED + "; no link below it is followed",
    "skills/skill_store.py": "the folder of this user's skills, which no kernel can write",
    "snapshots/host_facts.py": KERNEL,
    "snapshots/snapshot.py": OWN_STORE,
    "snapshots/snapshot_store.py": OWN_STORE,
}
"""A package, a module or a function, and why it may use paths."""


def find_calls(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each such call in a module: the name of its function, and its text."""
    for top in ast.walk(tree_of(path)):
        if isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(top):
                if isinstance(node, ast.Call) and acts_by_path(node):
                    yield top.name, ast.unparse(node)


def acts_by_path(call: ast.Call) -> bool:
    if any(keyword.arg in BY_DESCRIPTOR for keyword in call.keywords):
        return False
    name = text_of(call.func)
    module, _, method = name.rpartition(".")
    if name in NOT_FILES:
        return False
    if module == "os":
        return method in OF_OS
    if method == "replace":  # str.replace takes two arguments
        return len(call.args) == 1 and not call.keywords
    return name in OTHERS or (module != "" and method in OF_PATH)


def place_of(path: Path, function: str) -> str:
    return f"{path.relative_to(PACKAGE)}:{function}"


def test_changes_by_path_are_in_known_modules_only() -> None:
    found = {
        place_of(path, function): call
        for path in MODULES
        if part_of(path) not in {"guest", "link"}
        and re.search(rf"\b(?:{NAMES})\(", path.read_text())
        for function, call in find_calls(path)
    }
    unknown = {p: c for p, c in found.items() if not any(is_for(key, p) for key in ALLOWED)}
    assert not unknown, "open it with host/folders.py, or add a reason to ALLOWED"
    unused = {key for key in ALLOWED if not any(is_for(key, place) for place in found)}
    assert not unused, "remove these entries of ALLOWED"


def is_for(key: str, place: str) -> bool:
    return place == key or place.startswith(f"{key}:") or (key[-1] == "/" and place.startswith(key))
