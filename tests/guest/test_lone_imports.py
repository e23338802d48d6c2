"""Imports of PID 1: no locks and one look at each path while the process has one thread."""

from __future__ import annotations

import json
import subprocess
import sys

from ..world import PROJECT

COUNT = """
import json, sys, _thread, importlib._bootstrap as bootstrap, importlib._bootstrap_external as files
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest.lone_imports import lone_imports

locks, get_lock = bootstrap._ModuleLockManager, bootstrap._get_module_lock
path_stat = files._path_stat
taken, looked = [], []

def counted(name):
    taken.append(name)
    return get_lock(name)

def status(path):
    looked.append(path)
    return path_stat(path)

bootstrap._get_module_lock, files._path_stat = counted, status
with lone_imports():
    import colorsys, sched
    alone = list(taken), max(map(looked.count, looked))
    lock = _thread.allocate_lock()
    lock.acquire()
    _thread.start_new_thread(lock.acquire, ())
    while not _thread._count():
        pass  # it counts itself
    looked.clear()
    import stringprep
    together = "stringprep" in taken, max(map(looked.count, looked))
    lock.release()
left = bootstrap._ModuleLockManager is locks, files._path_stat is status
import filecmp
print(json.dumps([alone, together, left, "filecmp" in taken]))
"""


def test_modules_are_locked_from_the_first_thread_on() -> None:
    answer = subprocess.check_output([sys.executable, "-I", "-S", "-c", COUNT, str(PROJECT)])
    alone, together, left, outside = json.loads(answer)
    assert alone == [[], 1]
    assert together == [True, 2]
    assert left == [True, True]
    assert outside
