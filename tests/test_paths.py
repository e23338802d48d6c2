"""Files are changed by path only where the code says why no other user can change the path.

A folder that a sandbox or another user can change is opened by ``host/folders.py`` and used by its
descriptor. Each call that makes, changes, opens or mounts a file by its path has a comment
``# by path: …`` in its function, or at the margin of its module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .marks import find_marks
from .source import MODULES, PACKAGE, part_of, text_of, tree_of

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
CALLS = rf"\b(?:{NAMES})\("
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

MARK = "# by path: "


def functions_by_path(path: Path) -> Iterator[tuple[range, str]]:
    """Yield the lines of each function that acts by a path, and the text of such a call."""
    for top in ast.walk(tree_of(path)):
        if isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = [it for it in ast.walk(top) if isinstance(it, ast.Call) and acts_by_path(it)]
            if calls:
                yield range(top.lineno, (top.end_lineno or 0) + 1), ast.unparse(calls[0])


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


def test_changes_by_path_have_a_reason() -> None:
    wrong = []
    for path in MODULES:
        if part_of(path) in {"guest", "link"}:
            continue
        found = list(functions_by_path(path)) if re.search(CALLS, path.read_text()) else []
        marks = find_marks(path, MARK)
        name = path.relative_to(PACKAGE)
        for lines, call in found:
            if not any(line == 0 or line in lines for line in marks.values()):
                wrong.append(f"{name}:{lines.start}: {call}")
        for at, line in marks.items():
            if not any(line == 0 or line in lines for lines, _ in found):
                wrong.append(f"{name}:{at}: no such call")
    assert not wrong, f"open it with host/folders.py, or say why in '{MARK}…': " + "\n".join(wrong)
