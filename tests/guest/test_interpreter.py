"""The interpreter of kernels, set up for gVisor, does what it does elsewhere, with fewer calls."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from gvisor_kernel.guest.interpreter import MALLOC_SETTINGS, prepare_malloc, read_file

from ..world import PROJECT

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")

# -- files of modules ------------------------------------------------------------------------------

EDITED = """
import importlib, os, pathlib, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from gvisor_kernel.guest import interpreter
interpreter.read_quickly()
read_file, read = interpreter.read_file, []
interpreter.read_file = lambda path: read.append(path) or read_file(path)
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
print(first, gk_edited.value, failure, importlib.import_module("gk_added").value, len(read) > 3)
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
    """``reload``, bytecode, an error's name, no bytecode; all read by the quick function."""
    (tmp_path / "gk_broken.py").write_text("import gk_nowhere")
    (tmp_path / "gk_added.py").write_text("value = 333")
    command = [sys.executable, "-I", "-c", EDITED, str(PROJECT), str(tmp_path)]
    answer = subprocess.check_output(command, text=True, env=os.environ)
    assert answer == "(1, True) 22 gk_nowhere 333 True\n"


COUNT = """
import json, sys, _thread, importlib._bootstrap as bootstrap, importlib._bootstrap_external as files
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest.interpreter import lone_imports

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


# -- the stack -------------------------------------------------------------------------------------

PROBE = """
import resource
from gvisor_kernel.guest.interpreter import with_stack_room

def call():
    pass

def faults_of_calls():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(1000):
        call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def worst(depth):
    here = faults_of_calls()
    return max(here, worst(depth - 1)) if depth else here

def probe():
    print(worst(400))

"""
"""Calls at 400 depths. A chunk that is mapped anew at each call causes a page fault each."""


def worst_faults(run: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE + run], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this CPython may keep its chunks itself")
def test_calls_without_stack_room_map_chunks_at_some_depth() -> None:
    assert worst_faults("probe()") >= 1000


def test_calls_with_stack_room_map_no_chunks() -> None:
    assert worst_faults("with_stack_room(probe)()") < 500


ARENAS = """
import ctypes, threading
from gvisor_kernel.guest import interpreter
{limit}
libc = ctypes.CDLL(None)
together = threading.Barrier(65)
def work():
    libc.malloc(100_000)
    together.wait()
for _ in range(64):
    threading.Thread(target=work).start()
together.wait()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def count_arenas(limit: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ARENAS.format(limit=limit)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.count(b"<heap nr=")


@glibc
def test_threads_share_one_arena_of_malloc_for_each_cpu() -> None:
    """A fork writes to every arena."""
    most = max(2, os.cpu_count() or 1)
    assert count_arenas("") > most
    assert count_arenas("interpreter.limit_malloc_arenas()") <= most


# -- the process's id ------------------------------------------------------------------------------

PROGRAM = """
    import multiprocessing, os, pickle, subprocess, sys, threading
    from gvisor_kernel.guest.interpreter import cache_pid

    asked = []
    real = os.getpid
    def ask():
        asked.append(1)
        return real()

    def report(name):
        assert os.getpid() == int(os.readlink("/proc/self")), name
        print(name, flush=True)

    def in_child(pipe):
        pipe.send((os.getpid(), int(os.readlink("/proc/self"))))

    if __name__ == "__main__":
        import gvisor_kernel.guest.interpreter as module
        module._ask = ask
        cache_pid()
        report("kernel")
        for _ in range(1000):
            os.getpid()
        assert len(asked) == 1, asked
        for depth in ("child", "grandchild"):
            child = os.fork()
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            report(depth)
        thread = threading.Thread(target=report, args=("thread",))
        thread.start()
        thread.join()
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            ours, theirs = context.Pipe()
            process = context.Process(target=in_child, args=(theirs,))
            process.start()
            told, true = ours.recv()
            process.join()
            assert told == true == process.pid, method
            print(method, flush=True)
        subprocess.run(["true"], preexec_fn=lambda: report("preexec"), check=True)
        sys.stdout.buffer.write(pickle.dumps(os.getpid))
"""


def test_pid_is_right_in_every_child(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run([sys.executable, program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    names, _, pickled = done.stdout.rpartition(b"\n")
    assert names.decode().split() == [
        *("kernel", "child", "grandchild", "thread", "fork", "spawn", "forkserver", "preexec")
    ]
    assert pickle.loads(pickled) is os.getpid  # noqa: S301  # from our own program


# -- malloc ----------------------------------------------------------------------------------------

LOOK = """
import ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest import interpreter
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def is_in_heap(size):
    block = libc.malloc(size)
    with open("/proc/self/maps") as file:
        heap = next(line for line in file if "[heap]" in line).split()[0]
    begin, end = (int(word, 16) for word in heap.split("-"))
    libc.free(block)
    return begin <= block < end

def is_given_back(size):
    before = pages()
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    held = pages()
    libc.free(block)
    assert held - before >= size // 4096
    return pages() - before < size // 4096 // 2

done = interpreter.prepare_malloc(os.environ) if sys.argv[2] == "True" else None
print(json.dumps([done, is_in_heap(1 << 20), is_given_back(100 << 20), is_given_back(100 << 20)]))
"""


def look(prepare: bool, **variables: str) -> list[bool | None]:
    """Return what ``prepare`` says, whether 1 MiB is in the heap, whether 100 MiB are given back.

    The latter twice: malloc changes its limits by itself when a block is freed.
    """
    found: list[bool | None] = json.loads(
        subprocess.check_output(
            [sys.executable, "-I", "-S", "-c", LOOK, str(PROJECT), str(prepare)],
            env={**os.environ, **variables},
        )
    )
    return found


@glibc
def test_block_of_a_mebibyte_changes_no_mapping() -> None:
    assert look(False) == [None, False, True, True]
    assert look(True) == [True, True, True, True]


@glibc
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_variables_of_malloc_win(variables: dict[str, str]) -> None:
    assert look(True, **variables)[1] is False


@glibc
def test_nothing_is_left_to_set() -> None:
    assert not prepare_malloc(dict.fromkeys(MALLOC_SETTINGS, "1"))


# -- the stack of threads --------------------------------------------------------------------------

CROSSED = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest.interpreter import give_threads_room

statm = os.open("/proc/self/statm", os.O_RDONLY)
crossed = []

def leaf(a, b, c):
    return os.pread(statm, 20, 0)

def descend(depth):
    before = os.pread(statm, 20, 0)
    within, after = leaf(1, 2, 3), os.pread(statm, 20, 0)
    if within != before == after:  # the call has mapped memory, and its end has unmapped it
        crossed.append(depth)
    if depth < 300:
        descend(depth + 1)

def run_in_thread():
    crossed.clear()
    thread = threading.Thread(target=descend, args=(0,))
    thread.start()
    thread.join()
    return bool(crossed)

small = run_in_thread()
for _ in range(2):
    give_threads_room(os.environ)
print(small, run_in_thread())
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames are no chunks")
@pytest.mark.parametrize(("plain", "crosses"), [("", False), ("threads", True)])
def test_calls_in_a_thread_map_no_memory(plain: str, crosses: bool) -> None:
    command = [sys.executable, "-I", "-c", CROSSED, str(PROJECT)]
    environment = {"GVISOR_KERNEL_PLAIN": plain}
    answer = subprocess.check_output(command, text=True, env=environment, timeout=60)
    assert answer == f"True {crosses}\n"
