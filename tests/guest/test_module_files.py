"""The module of a file is found as ``inspect`` finds it, with fewer looks at folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.guest.module_files import find_real

from ..world import PROJECT

LOOK = """
import asyncio, email.message, inspect, json, os, sys, types, xml.dom.minidom
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from gvisor_kernel.guest import module_files
import gk_linked, gk_folder.gk_part
import gk_folder.gk_twice
original = inspect.getmodule
unlike = types.ModuleType("gk_unlike")
looked = []
lstat = os.lstat
os.lstat = lambda path, **more: looked.append(path) or lstat(path, **more)
code = compile("1", os.path.realpath(gk_linked.__file__), "eval")
twice = compile("1", gk_folder.gk_twice.__file__, "eval")
strange = compile("1", "<cell>", "eval")


def look():
    inspect.modulesbyfile.clear(), inspect._filesbymodname.clear(), looked.clear()
    first = inspect.getmodule(code).__name__, inspect.getmodule(strange)
    times = len(looked)
    twin = types.ModuleType("gk_twin")  # the same file by another name
    twin.__file__, sys.modules["gk_twin"] = gk_folder.gk_twice.__file__, twin
    first += (inspect.getmodule(twice).__name__,)
    del sys.modules["gk_twin"]
    noted = dict(inspect.modulesbyfile), dict(inspect._filesbymodname)
    for unlike.__file__ in ("", b"/x", "/a" * 3000):
        sys.modules["gk_unlike"] = unlike
        try:
            inspect.getmodule(strange)
        except Exception as error:
            first += (repr(error),)
        del sys.modules["gk_unlike"]
        inspect.getmodule(strange)
    return [first, noted, inspect.getmodule(os), inspect.getmodule(os.path.join)], times


plain, many = look()
module_files.prepare()
assert inspect.getmodule is not original
quick, few = look()
os.environ["GVISOR_KERNEL_PLAIN"] = "fonts inspect"
switched, again = look()
same = inspect.getsource(inspect.getmodule) == inspect.getsource(original)
same = same and inspect.signature(inspect.getmodule) == inspect.signature(original)
equal = plain == quick == switched
print(json.dumps([plain[0][:2], equal, same, many, few, again, len(plain[1][0])]))
"""


def test_search_notes_what_inspects_own_does(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "gk_part.py").touch()
    (tmp_path / "real" / "gk_twice.py").touch()
    (tmp_path / "file.py").touch()
    (tmp_path / "gk_linked.py").symlink_to("file.py")
    (tmp_path / "gk_folder").symlink_to("real")
    command = [sys.executable, "-I", "-c", LOOK, str(PROJECT), str(tmp_path)]
    answer = subprocess.check_output(command, text=True, timeout=60)
    names, equal, same, many, few, again, noted = json.loads(answer)
    assert names == ["gk_linked", None]
    assert equal
    assert same
    assert again == many
    assert few < many / 3
    assert noted


@pytest.mark.parametrize("path", ["/", "/x", "//x/link/y", "/none/x", "{}/link/file", "{}/loop/x"])
def test_real_paths_are_those_of_the_library(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").symlink_to("other")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    path = path.format(tmp_path)
    assert find_real(path, {"/": "/"}) == os.path.realpath(path)
