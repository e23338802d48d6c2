"""The process id that a kernel keeps is right in the kernel and in each kind of child."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = """
    import multiprocessing, os, pickle, subprocess, sys, threading
    from gvisor_kernel.guest.cached_pid import cache_pid

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
        import gvisor_kernel.guest.cached_pid as module
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
