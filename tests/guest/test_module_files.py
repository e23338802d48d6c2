"""Files of modules are read as importlib reads them, with fewer system calls."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gvisor_kernel.guest.module_files import read_file

from ..world import PROJECT

EDITED = """
import importlib, os, pathlib, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from gvisor_kernel.guest import module_files
module_files.read_quickly()
file = pathlib.Path(sys.argv[2], "gk_edited.py")
file.write_text("value = 1")
import gk_edited
first = gk_edited.value, os.path.exists(gk_edited.__cached__)
file.write_text("value = 22")
importlib.reload(gk_edited)
try:
    importlib.import_module("gk_broken")
except ImportError as error:
    failure = error.name
print(first, gk_edited.value, failure, importlib.import_module("gk_added").value)
"""


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 200_000])
def test_content_is_whole(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert read_file(str(file)) == content


def test_length_that_no_status_says_is_read_to_its_end(tmp_path: Path) -> None:
    """As of a file that grows, or of one in /proc."""
    assert read_file("/proc/self/cmdline") == Path("/proc/self/cmdline").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"z" * 300_000,))
    writer.start()
    assert read_file(str(pipe)) == b"z" * 300_000
    writer.join()


def test_errors_are_importlibs_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "none"))
    with pytest.raises(IsADirectoryError):
        read_file(str(tmp_path))


def test_imports_find_what_is_edited_and_added(tmp_path: Path) -> None:
    """``reload``, bytecode, an error's name, a file without bytecode."""
    (tmp_path / "gk_broken.py").write_text("import gk_nowhere")
    (tmp_path / "gk_added.py").write_text("value = 333")
    command = [sys.executable, "-I", "-c", EDITED, str(PROJECT), str(tmp_path)]
    answer = subprocess.check_output(command, text=True, env=os.environ)
    assert answer == "(1, True) 22 gk_nowhere 333\n"


def test_a_loader_reads_by_few_calls(tmp_path: Path) -> None:
    """The method that is replaced is the one that importlib's loaders use."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from gvisor_kernel.guest import module_files; module_files.read_quickly();"
        "module_files.read_file = lambda path: b'value = 4444';"
        "sys.path.insert(0, sys.argv[2]); import gk_replaced; print(gk_replaced.value)"
    )
    (tmp_path / "gk_replaced.py").write_text("value = 0")
    command = [sys.executable, "-I", "-c", code, str(PROJECT), str(tmp_path)]
    assert subprocess.check_output(command, text=True) == "4444\n"
    assert importlib.util.find_spec("gk_replaced") is None
