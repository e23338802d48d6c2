"""Extension modules are loaded with variables that their libraries see, and nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..world import PROJECT

BLAS, OMP = "OPENBLAS_THREAD_TIMEOUT", "GOMP_SPINCOUNT"
SEEN = """
import ctypes, json, os, subprocess, sys, traceback
from importlib.machinery import ExtensionFileLoader as Loader
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from gvisor_kernel.guest import spinning

getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
create, seen = Loader.create_module, []

def read():
    return [(getenv(name.encode()) or b"").decode() for name in spinning.SPINS]

def look(self, spec):
    seen.append(read())
    return create(self, spec)

def load():
    try:
        import gk_broken
    except ImportError:
        return traceback.format_exc()

expected = load()
Loader.create_module = look
spinning.shorten_spins()
spinning.shorten_spins()
load()
Loader.create_module = create
spinning.shorten_spins()
unseen = load() == expected
child = subprocess.run([sys.executable, "-c", "import os; print(*os.environ)"], text=True,
    stdout=subprocess.PIPE).stdout.split()
print(json.dumps([seen, read(), sorted(spinning.SPINS.keys() & {*os.environ, *child}), unseen]))
"""


@pytest.mark.parametrize(
    ("environment", "seen", "left"),
    [
        ({}, ["25", "1000"], ["", ""]),
        ({BLAS: "9"}, ["9", "1000"], ["9", ""]),
        ({"OMP_WAIT_POLICY": "active"}, ["25", ""], ["", ""]),
        ({"GVISOR_KERNEL_PLAIN": "heap threads"}, ["", ""], ["", ""]),
        ({"GVISOR_KERNEL_PLAIN": "all", OMP: "7"}, ["", "7"], ["", "7"]),
    ],
)
def test_variables_are_there_while_an_extension_is_loaded(
    tmp_path: Path, environment: dict[str, str], seen: list[str], left: list[str]
) -> None:
    """Also if that fails, and its traceback is as without. A user's own values stay."""
    (tmp_path / "gk_broken.so").write_text("no module")
    command = [sys.executable, "-I", "-c", SEEN, str(PROJECT), str(tmp_path)]
    answer = subprocess.check_output(command, text=True, env=environment, timeout=60)
    assert json.loads(answer) == [[seen], left, sorted({BLAS, OMP} & environment.keys()), True]
