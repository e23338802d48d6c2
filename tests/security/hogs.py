"""Code that makes the host use memory which is not the kernel's own, each in one way.

Each runs until the memory limit or another limit ends it.
"""

from __future__ import annotations

MAPPER = """
import ctypes, os, resource, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
READ, SHARED, FIXED = 1, 1, 0x11
def in_children(count, work):
    for _ in range(count):
        if os.fork() == 0:
            try:
                work()
            finally:
                signal.pause()
    signal.pause()
"""

PAGE_TABLES = {
    "one page, mapped every GiB": """
fd = os.memfd_create("x")
os.ftruncate(fd, 4096)
def work():
    for i in range(60000):
        ctypes.string_at(libc.mmap((1 << 40) + (i << 30), 4096, READ, FIXED, fd, 0), 1)
in_children(4, work)
""",
    "a file, mapped again and again": """
size = 100 << 20
fd = os.memfd_create("x")
os.ftruncate(fd, size)
ctypes.memset(libc.mmap(0, size, READ | 2, SHARED, fd, 0), 1, size)
def work():
    while True:
        begin = libc.mmap(0, size, READ, SHARED, fd, 0)
        for at in range(0, size, 2 << 20):
            ctypes.string_at(begin + at, 1)
in_children(2, work)
""",
}
"""To run in a small process: a fork of a kernel has much memory of its own."""

SMALL_PROCESS = """
import subprocess, sys
subprocess.run([sys.executable, "-S", "-E", "-c", %r])
"""

SENTRY_MEMORY = {
    "a million links": """
os.mkdir("/tmp/l")
for i in range(10**6): os.symlink("x" * 4000, f"/tmp/l/{i}")
""",
    "full pipes and sockets": """
held = []
while True:
    for one, two in (os.pipe()[::-1], [s.detach() for s in socket.socketpair()]):
        os.set_blocking(one, False)
        held.append(two)
        try:
            while True: os.write(one, b"x" * 65536)
        except BlockingIOError: pass
""",
    "a sparse file, mapped": """
import mmap
f = open("/dev/shm/sparse", "w+b")
f.truncate(100 << 20)
g = open("/tmp/sparse", "w+b")
g.truncate(1 << 30)
for file, size in ((f, 100 << 20), (g, 1 << 30)):
    m = mmap.mmap(file.fileno(), size)
    for i in range(0, size, 4096): m[i] = 1
""",
    "timers": """
event = (ctypes.c_int * 16)(0, 0, 34, 0)
while True: libc.syscall(222, 1, event, ctypes.byref(ctypes.c_void_p()))
""",
    "extended attributes": """
for i in range(10**6):
    open(f"/tmp/x{i}", "w").close()
    for j in range(8): os.setxattr(f"/tmp/x{i}", f"user.{j}", b"x" * 60000)
""",
}
"""Code that reaches the limit quickly."""

SLOW = {
    "a million files": """
os.mkdir("/tmp/d")
for i in range(10**6): os.mkdir(f"/tmp/d/{i}")
""",
    "mappings of one page": """
fd = os.memfd_create("x")
os.ftruncate(fd, 4096)
def work():
    for i in range(65000):
        ctypes.string_at(libc.mmap((1 << 40) + (i << 12), 4096, READ, FIXED, fd, 0), 1)
in_children(16, work)
""",
    "descriptors in flight": """
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
held = []
while True:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.setblocking(False)
    held.append((one, two))
    try:
        while True:
            fds = [os.eventfd(0) for _ in range(200)]
            try: socket.send_fds(one, [b"x"], fds)
            finally: [os.close(fd) for fd in fds]
    except BlockingIOError: pass
""",
    "open files of many processes": """
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
def work():
    while True: os.eventfd(0)
in_children(20, work)
""",
    "epoll": """
import select
fds = [os.eventfd(0) for _ in range(2000)]
held = []
while True:
    held.append(select.epoll())
    for fd in fds: held[-1].register(fd)
""",
    "inotify": """
for i in range(2000): open(f"/tmp/{i}", "w").close()
while True:
    fd = libc.inotify_init()
    for i in range(2000): libc.inotify_add_watch(fd, f"/tmp/{i}".encode(), 0xfff)
""",
    "locks": """
import fcntl
f = open("/tmp/lock", "w+")
for i in range(10**8): fcntl.lockf(f, fcntl.LOCK_EX, 1, 2 * i)
""",
}

BOUNDED = {
    "processes": """
held = [subprocess.Popen(["sleep", "1000"]) for _ in range(400)]
print("done", flush=True)
""",
    "threads, each waiting for a lock": """
import _thread, threading
lock = _thread.allocate_lock()
lock.acquire()
try:
    while True: _thread.start_new_thread(lock.acquire, ())
except RuntimeError: print("done", flush=True)
""",
    "signals that nobody takes": """
done, say = os.pipe()
if os.fork() == 0:  # which has one thread
    signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
    for i in range(10**5): libc.sigqueue(os.getpid(), 34 + i % 30, None)
    os.write(say, b"x")
    signal.pause()
os.read(done, 1)
""",
    "files of the host, open": """
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
held = []
try:
    for i in range(60000): held.append(open(f"/mnt/user-data/outputs/{i}", "w"))
except OSError: pass
print("done", flush=True)
""",
    "a folder of the host with many entries": """
for i in range(30000): open("/mnt/user-data/outputs/" + "x" * 200 + str(i), "w").close()
held = []
for _ in range(20):
    held.append(os.scandir("/mnt/user-data/outputs"))
    next(held[-1])
print("done", flush=True)
""",
}
"""Code that another limit ends: that of processes or of open files, or a finite loop."""
