"""States of a kernel: what makes each, and what must hold whenever the kernel goes on from it.

``check`` is run many times: after each wake, in a branch, and after a rewind. It uses the state and
changes it, so that what is looked at is alive and not only there. Names are the states' own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """``asks``: what of the environment it needs, as a module. ``heavy``: seconds, or much memory,
    so it is left out of the usual run."""

    name: str
    begin: str
    check: str
    asks: str = ""
    heavy: bool = False


STATES = (
    State(
        "variables, frames and generators",
        """
import collections, contextvars, decimal, gc, itertools, random, weakref
v_all = {"a": [1, (2, 3)], "b": {4}, "c": decimal.Decimal("1.5"), "d": b"x" * 3}
v_all["itself"] = v_all
v_frame = (n for n in itertools.count(1)); v_met = 0
class V_Thing: pass
v_thing = V_Thing(); v_weak = weakref.ref(v_thing); v_id = id(v_thing)
v_context = contextvars.ContextVar("v", default=1); v_context.set(7)
v_hash = hash("a text"); v_state = random.Random(5)
v_expected = [random.Random(5).random() for _ in range(1)]
v_set = frozenset(map(str, range(1000))); v_order = list(v_set)
""",
        """
v_met += 1
assert next(v_frame) == v_met and v_all["itself"] is v_all and v_all["b"] == {4}
assert v_weak() is v_thing and id(v_thing) == v_id and hash("a text") == v_hash
assert list(v_set) == v_order and gc.isenabled()
v_twin = random.Random(); v_twin.setstate(v_state.getstate())
assert v_twin.random() == v_state.random()
""",
    ),
    State(
        "environment, working directory, umask and limits",
        """
import os, resource
os.environ["E_KEPT"] = "yes"; os.makedirs("/workspace/e/deep"); e_before = os.getcwd()
os.chdir("/workspace/e/deep"); e_mask = os.umask(0o027); os.umask(0o027)
resource.setrlimit(resource.RLIMIT_NOFILE, (900, 1000))
import subprocess
e_shown = subprocess.run("echo $E_KEPT; pwd; umask", shell=True, capture_output=True).stdout
os.chdir(e_before); os.umask(e_mask); e_fd = os.open("/workspace/e/deep", os.O_RDONLY)
""",
        """
assert os.environ["E_KEPT"] == "yes" and resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 900
os.fchdir(e_fd); os.umask(0o027)
assert subprocess.run("echo $E_KEPT; pwd; umask", shell=True, capture_output=True).stdout == e_shown
os.chdir(e_before); os.umask(e_mask)
""",
    ),
    State(
        "files of each place, with their modes, links and times",
        """
import os, stat
f_paths = [f"{p}/f" for p in ("/workspace", "/tmp", "/dev/shm", "/home/user")]
for path in f_paths:
    with open(path, "w") as file: file.write(path)
    os.chmod(path, 0o640); os.utime(path, (5, 7))
    os.link(path, path + "-link"); os.symlink("f", path + "-symbolic")
os.mkfifo("/tmp/f-pipe"); os.makedirs("/workspace/f-deep/a/b/c")
f_many = 300
for n in range(f_many): open(f"/workspace/f-deep/{n}", "w").close()
""",
        """
for path in f_paths:
    with open(path) as file: assert file.read() == path
    status = os.stat(path)
    assert (status.st_mode & 0o777, status.st_mtime, status.st_nlink) == (0o640, 7, 2), path
    assert os.path.samefile(path, path + "-symbolic") and os.path.samefile(path, path + "-link")
assert stat.S_ISFIFO(os.stat("/tmp/f-pipe").st_mode)
assert len(os.listdir("/workspace/f-deep")) == f_many + 1
os.rename(f"/workspace/f-deep/{f_many - 1}", f"/workspace/f-deep/a/{f_many}"); f_many -= 1
""",
    ),
    State(
        "open files: unflushed, deleted, locked and mapped; folders",
        """
import fcntl, mmap, os
o_written = ""
o_open = {p: open(f"{p}/o", "w+") for p in ("/workspace", "/tmp", "/dev/shm")}
for p in ("/workspace", "/tmp"):
    o_open[p + " deleted"] = open(f"{p}/o-deleted", "w+"); os.unlink(f"{p}/o-deleted")
o_folder = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
o_locked = open("/tmp/o-lock", "w"); fcntl.flock(o_locked, fcntl.LOCK_EX)
o_range = open("/tmp/o-range", "w+"); o_range.truncate(10); fcntl.lockf(o_range, fcntl.LOCK_EX, 5)
o_file = open("/workspace/o-mapped", "w+b"); o_file.truncate(8192)
o_shared = mmap.mmap(o_file.fileno(), 8192); o_private = mmap.mmap(-1, 1 << 16)
o_appended = open("/workspace/o-log", "a"); o_lines = 0
o_holder = 'import fcntl,sys; fcntl.flock(open("/tmp/o-lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
o_memory = os.memfd_create("o"); os.write(o_memory, b"in memory")
""",
        """
o_written += "x"
for o_where, file in o_open.items():
    file.write("x"); o_at = file.tell(); file.seek(0)
    assert file.read() == o_written, o_where
assert "o-lock" in os.listdir(o_folder) and os.stat("o-lock", dir_fd=o_folder).st_size == 0
import subprocess, sys
assert subprocess.run([sys.executable, "-c", o_holder], stderr=subprocess.DEVNULL).returncode == 1
o_shared[len(o_written)] = o_private[len(o_written)] = 65
assert o_shared[:9].count(b"A") == o_private[:9].count(b"A") == len(o_written)
with open("/workspace/o-mapped", "rb") as file: assert file.read(9).count(b"A") == len(o_written)
o_lines += 1; o_appended.write("line\\n"); o_appended.flush()
with open("/workspace/o-log") as file: assert len(file.readlines()) == o_lines
assert os.pread(o_memory, 99, 0) == b"in memory"
""",
    ),
    State(
        "an open file of the outputs",
        """
u_file = open("/mnt/user-data/outputs/u", "a+"); u_file.write("begun "); u_file.flush()
""",
        """
u_file.write("more "); u_file.flush(); u_file.seek(0)
assert u_file.read().startswith("begun more ")
""",
    ),
    State(
        "an open file of the uploads",
        'r_file = open("/mnt/user-data/uploads/read.csv"); r_file.read(2)',
        'assert r_file.read() == "2\\n" and r_file.seek(2) == 2',
    ),
    State(
        "SQLite: a log written ahead, a transaction under way, a base in memory",
        """
import sqlite3
q_base = sqlite3.connect("/workspace/q.db", isolation_level=None)
q_base.execute("pragma journal_mode=wal"); q_base.execute("create table t (n)")
q_other = sqlite3.connect("/workspace/q.db", isolation_level=None)
q_memory = sqlite3.connect(":memory:"); q_memory.execute("create table t (n)")
q_base.execute("begin immediate"); q_base.execute("insert into t values (1)"); q_rows = 1
""",
        """
assert q_other.execute("select count(*) from t").fetchone()[0] == q_rows - 1
try:
    q_other.execute("pragma busy_timeout=1"); q_other.execute("insert into t values (0)")
    raise AssertionError("two writers")
except sqlite3.OperationalError: pass
q_base.execute("commit")
assert q_other.execute("select count(*) from t").fetchone()[0] == q_rows
q_base.execute("begin immediate"); q_base.execute("insert into t values (1)"); q_rows += 1
q_memory.execute("insert into t values (1)")
assert q_memory.execute("select count(*) from t").fetchone()[0] == q_rows - 1
""",
    ),
    State(
        "programs: pipes, a terminal, a shell with children, stopped and ended ones",
        """
import os, pty, signal, subprocess, time
p_sum = "n=0; while read x; do n=$((n + x)); echo $n; done"
p_pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
p_child = subprocess.Popen(["sh", "-c", p_sum], **p_pipes); p_total = 0
p_master, p_slave = pty.openpty()
p_shell = subprocess.Popen(["cat"], stdin=p_slave, stdout=p_slave, start_new_session=True)
# in a group of its own: in gVisor the end of another program of the group would end all of it
p_stopped = subprocess.Popen(["cat"], **p_pipes, start_new_session=True)
p_stopped.send_signal(signal.SIGSTOP)
p_ended = subprocess.Popen(["sh", "-c", "exit 7"])
p_deep = subprocess.Popen(["sh", "-c", "(" + p_sum + ")"], **p_pipes)
""",
        """
p_total += 5
for p_one in (p_child, p_deep):
    p_one.stdin.write("5\\n"); p_one.stdin.flush()
    assert int(p_one.stdout.readline()) == p_total
os.write(p_master, b"typed\\n"); p_seen = b""
while p_seen.count(b"typed") < 2: p_seen += os.read(p_master, 99)
p_stopped.send_signal(signal.SIGCONT); p_stopped.stdin.write("on\\n"); p_stopped.stdin.flush()
assert p_stopped.stdout.readline() == "on\\n"; p_stopped.send_signal(signal.SIGSTOP)
assert p_ended.wait(20) == 7 and p_child.poll() is None
""",
    ),
    State(
        "multiprocessing: pools, queues, memory that is shared",
        """
import concurrent.futures, multiprocessing, multiprocessing.shared_memory, os
m_fork = multiprocessing.get_context("fork")
m_pool = m_fork.Pool(2); m_pids = {p.pid for p in m_pool._pool}; m_sum = 0
m_futures = concurrent.futures.ProcessPoolExecutor(1, mp_context=m_fork)
m_futures.submit(abs, -1).result(20)
m_queue, m_back = m_fork.Queue(), m_fork.Queue()
def m_echo():
    while True: m_back.put(m_queue.get() * 2)
m_process = m_fork.Process(target=m_echo, daemon=True); m_process.start()
m_memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
m_value = m_fork.Value("i", 0)
""",
        """
m_sum += 1
assert m_pool.map(abs, [-1, -2], chunksize=1) == [1, 2]
assert {p.pid for p in m_pool._pool} == m_pids
assert m_futures.submit(pow, 2, 5).result(20) == 32
m_queue.put(m_sum); assert m_back.get(timeout=20) == 2 * m_sum
m_memory.buf[0] += 1; assert m_memory.buf[0] == m_sum
with m_value.get_lock(): m_value.value += 1
assert m_value.value == m_sum
""",
    ),
    State(
        "threads: queues, pools, locks, timers, what each has alone",
        """
import concurrent.futures, queue, threading, time
t_asked, t_answers, t_total = queue.Queue(), queue.Queue(), 0
t_local = threading.local(); t_lock = threading.RLock(); t_lock.acquire()
t_event, t_condition, t_late = threading.Event(), threading.Condition(), []
def t_work(total=0):
    t_local.mine = "mine"
    while True:
        total += t_asked.get(); t_answers.put((total, t_local.mine))
t_threads = [threading.Thread(target=t_work, daemon=True)]
t_threads.append(threading.Thread(target=t_event.wait, daemon=True))
def t_blocked():
    with t_lock: t_late.append("locked")
t_threads.append(threading.Thread(target=t_blocked, daemon=True))
for one in t_threads: one.start()
t_idents = [one.ident for one in t_threads]; t_pool = concurrent.futures.ThreadPoolExecutor(2)
t_pool.submit(abs, 1).result(); t_mine = threading.get_ident()
""",
        """
t_total += 3; t_asked.put(3)
assert t_answers.get(timeout=20) == (t_total, "mine")
assert [one.ident for one in t_threads] == t_idents and all(o.is_alive() for o in t_threads)
assert t_late == [] and threading.get_ident() == t_mine and not hasattr(t_local, "mine")
assert t_pool.submit(pow, 2, 3).result(20) == 8
""",
    ),
    State(
        "asyncio: tasks, timers, streams, programs, threads",
        """
import asyncio, sys
a_asked, a_answers, a_total = asyncio.Queue(), asyncio.Queue(), 0
async def a_work(total=0):
    while True:
        total += await a_asked.get(); await a_answers.put(total)
a_task = asyncio.ensure_future(a_work()); a_lock = asyncio.Lock(); await a_lock.acquire()
a_late = asyncio.ensure_future(a_lock.acquire()); a_loop = id(asyncio.get_running_loop())
async def a_serve(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper()); await writer.drain()
a_server = await asyncio.start_server(a_serve, "127.0.0.1", 0)
a_port = a_server.sockets[0].getsockname()[1]
a_reader, a_writer = await asyncio.open_connection("127.0.0.1", a_port)
a_pipe = asyncio.subprocess.PIPE
a_program = await asyncio.create_subprocess_exec("cat", stdin=a_pipe, stdout=a_pipe)
a_fired = asyncio.Event(); asyncio.get_running_loop().call_later(0.3, a_fired.set)
a_far = asyncio.ensure_future(asyncio.sleep(10**6))
""",
        """
a_total += 2; await a_asked.put(2)
assert await asyncio.wait_for(a_answers.get(), 20) == a_total
assert not a_late.done() and not a_far.done() and id(asyncio.get_running_loop()) == a_loop
a_writer.write(b"line\\n"); assert await asyncio.wait_for(a_reader.readline(), 20) == b"LINE\\n"
a_second = await asyncio.open_connection("127.0.0.1", a_port)
a_second[1].write(b"x\\n"); assert await asyncio.wait_for(a_second[0].readline(), 20) == b"X\\n"
a_second[1].close()
a_program.stdin.write(b"line\\n")
assert await asyncio.wait_for(a_program.stdout.readline(), 20) == b"line\\n"
await asyncio.wait_for(a_fired.wait(), 20)
assert await asyncio.to_thread(abs, -3) == 3
""",
    ),
    State(
        "clocks go on, and what was due is done: timers, alarms",
        """
import ctypes, signal, threading, time
c_wall, c_steady, c_fired = time.time(), time.monotonic(), []
c_timer = threading.Timer(0.3, c_fired.append, ["timer"]); c_timer.daemon = True; c_timer.start()
signal.signal(signal.SIGALRM, lambda *_: c_fired.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.3)
c_libc = ctypes.CDLL(None); c_fd = c_libc.timerfd_create(1, 0)
class C_Spec(ctypes.Structure): _fields_ = [(n, ctypes.c_long) for n in ("is_", "in_", "s", "n")]
assert c_libc.timerfd_settime(c_fd, 0, ctypes.byref(C_Spec(0, 0, 0, 300_000_000)), None) == 0
import os
""",
        """
assert 0 <= time.time() - c_wall < 10**5 and 0 <= time.monotonic() - c_steady < 10**5
c_wall, c_steady = time.time(), time.monotonic()
c_timer.join(20)
while len(c_fired) < 2 and time.monotonic() < c_steady + 20: time.sleep(0.01)
assert sorted(c_fired) == ["alarm", "timer"], c_fired
if c_fd is not None: assert int.from_bytes(os.read(c_fd, 8), "little") == 1
c_fd = None; c_began = time.monotonic(); time.sleep(0.01)
assert time.monotonic() - c_began >= 0.01
""",
    ),
    State(
        "sockets: TCP, UDP, Unix, pairs with bytes under way",
        """
import os, socket
s_listens = socket.create_server(("127.0.0.1", 0)); s_port = s_listens.getsockname()
s_left = socket.create_connection(s_port); s_right, _ = s_listens.accept()
s_udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for one in s_udp: one.bind(("127.0.0.1", 0))
s_unix = socket.socket(socket.AF_UNIX); s_unix.bind("/tmp/s"); s_unix.listen()
s_abstract = socket.socket(socket.AF_UNIX); s_abstract.bind("\\0s"); s_abstract.listen()
s_a, s_b = socket.socketpair()
s_p, s_q = os.pipe()
for one in (s_left, s_right, s_a, s_b, s_listens, s_unix, s_abstract, *s_udp): one.settimeout(20)
def s_send():
    s_left.send(b"tcp"); s_a.send(b"pair"); os.write(s_q, b"pipe")
    s_udp[0].sendto(b"udp", s_udp[1].getsockname())
s_fds = socket.socketpair()
socket.send_fds(s_fds[0], [b"1"], [s_p]); s_taken = None
s_send()
""",
        """
assert (s_right.recv(99), s_b.recv(99), os.read(s_p, 99)) == (b"tcp", b"pair", b"pipe")
assert s_udp[1].recv(99) == b"udp"
s_send()
for s_place, s_server in ((s_port, s_listens), ("/tmp/s", s_unix), ("\\0s", s_abstract)):
    with socket.socket(s_server.family) as s_new:
        s_new.settimeout(20); s_new.connect(s_place); s_peer, _ = s_server.accept()
        s_new.send(b"new"); assert s_peer.recv(9) == b"new"; s_peer.close()
if s_taken is None:
    s_message, (s_taken,), *_ = socket.recv_fds(s_fds[1], 9, 1)
    assert s_message == b"1"
assert os.path.sameopenfile(s_taken, s_p)
""",
    ),
    State(
        "what waits for events: epoll, eventfd, inotify, selectors",
        """
import ctypes, os, select, selectors, socket
w_libc, w_n = ctypes.CDLL(None), 0
w_a, w_b = socket.socketpair()
w_poll = select.epoll(); w_poll.register(w_b, select.EPOLLIN)
w_event = w_libc.eventfd(0, 0o4000); w_poll.register(w_event, select.EPOLLIN)
os.makedirs("/tmp/w"); w_notes = w_libc.inotify_init1(0o4000)
assert w_libc.inotify_add_watch(w_notes, b"/tmp/w", 0x100) == 1
w_chosen = selectors.DefaultSelector(); w_chosen.register(w_notes, selectors.EVENT_READ, "notes")
""",
        """
w_n += 1
assert w_poll.poll(0) == []
w_a.send(b"x"); assert w_poll.poll(20) == [(w_b.fileno(), select.EPOLLIN)]; w_b.recv(9)
os.write(w_event, (w_n).to_bytes(8, "little"))
assert w_poll.poll(20) == [(w_event, select.EPOLLIN)]
assert int.from_bytes(os.read(w_event, 8), "little") == w_n
open(f"/tmp/w/{w_n}-{os.urandom(4).hex()}", "w").close()
assert [key.data for key, _ in w_chosen.select(20)] == ["notes"]
assert f"{w_n}-".encode() in os.read(w_notes, 4096)
""",
    ),
    State(
        "servers inside: HTTP of the standard library",
        """
import http.client, http.server, threading
class H_Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.server.seen += 1; text = str(self.server.seen).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(text)))
        self.end_headers(); self.wfile.write(text)
    def log_message(self, *words): pass
h_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H_Handler); h_server.seen = 0
threading.Thread(target=h_server.serve_forever, daemon=True).start()
h_kept = http.client.HTTPConnection(*h_server.server_address, timeout=20); h_n = 0
def h_ask(connection):
    connection.request("GET", "/"); return int(connection.getresponse().read())
""",
        """
h_n += 2
assert h_ask(h_kept) == h_n - 1
h_new = http.client.HTTPConnection(*h_server.server_address, timeout=20)
assert h_ask(h_new) == h_n; h_new.close()
""",
    ),
    State(
        "signals: handlers, masks, a wake-up descriptor, SIGCHLD",
        """
import os, signal, subprocess, threading
g_seen = []; signal.signal(signal.SIGUSR1, lambda *_: g_seen.append("usr1"))
signal.signal(signal.SIGUSR2, lambda *_: g_seen.append("usr2"))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
g_trap = "trap 'echo caught' USR1; echo ready; while :; do read x; done"
g_child = subprocess.Popen(["sh", "-c", g_trap], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert g_child.stdout.readline() == b"ready\\n"
""",
        """
assert signal.sigpending() == {signal.SIGUSR2}
os.kill(os.getpid(), signal.SIGUSR1); assert g_seen.pop() == "usr1" and not g_seen
g_child.send_signal(signal.SIGUSR1); g_child.stdin.write(b"\\n"); g_child.stdin.flush()
assert g_child.stdout.readline() == b"caught\\n"
""",
    ),
    State(
        "IPython: history, outputs, magics, displays, functions of earlier cells",
        """
%alias i_hello echo hello %s
%config InteractiveShell.ast_node_interactivity = "all"
i_shell = get_ipython(); i_cells = len(In)
def i_fail(): raise KeyError("here")
from IPython.display import display
i_display = display("first", display_id=True)
from IPython.core.magic import register_line_magic
@register_line_magic
def i_magic(line): return line[::-1]
i_handled = []
i_shell.set_custom_exc((ZeroDivisionError,), lambda *w, **k: i_handled.append(w[1].__name__))
i_called = []
def i_before(): i_called.append(1)
i_shell.events.register("pre_execute", i_before)
""",
        """
assert get_ipython() is i_shell and "def i_fail" in "".join(In[i_cells - 1 : i_cells + 1])
i_said = %i_hello you
i_got = i_shell.run_line_magic("i_magic", "abc"); assert i_got == "cba"
i_before_ = len(i_called); i_display.update("later")
import inspect, traceback
assert "raise KeyError" in inspect.getsource(i_fail)
try: i_fail()
except KeyError as error: assert "raise KeyError" in "".join(traceback.format_exception(error))
assert i_called and len(In) > i_cells
assert get_ipython().history_manager.session_number > 0
""",
    ),
    State(
        "libraries of C, what is imported later, logs, compressed streams",
        """
import ctypes.util, gzip, logging, tempfile, zlib
l_math = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6"); l_math.cos.restype = (
    ctypes.c_double)
l_file = tempfile.TemporaryFile(); l_gzip = gzip.GzipFile(fileobj=l_file, mode="wb")
l_text = b""; l_pack = zlib.compressobj(); l_packed = l_pack.compress(b"begun")
l_folder = tempfile.TemporaryDirectory(); l_log = logging.getLogger("l"); l_log.propagate = False
l_log.addHandler(logging.FileHandler(l_folder.name + "/log")); l_later = iter(
    ["wave", "colorsys", "mailbox", "plistlib", "quopri", "sched", "shelve", "tabnanny"])
import ctypes
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
def l_callback(n): return n + 1
""",
        """
assert l_math.cos(ctypes.c_double(0)) == 1.0 and l_callback(2) == 3
l_text += b"more"; l_gzip.write(b"more"); l_log.warning("line")
l_twin = l_pack.copy(); assert zlib.decompress(l_packed + l_twin.flush()) == b"begun"
import importlib; assert importlib.import_module(next(l_later))
assert open(l_folder.name + "/log").read() == "line\\n" * (len(l_text) // 4)
""",
    ),
    State(
        "memory that is large, shared with a program and full of zeros",
        """
import hashlib, mmap, os
b_size = 20 << 20
b_data = bytearray(os.urandom(1 << 20)) * (b_size >> 20); b_digest = hashlib.md5(b_data).digest()
b_zeros = bytearray(b_size); b_freed = [os.urandom(1 << 16) for _ in range(500)]; b_freed = None
""",
        """
assert hashlib.md5(b_data).digest() == b_digest and not any(b_zeros[:: 1 << 14])
b_data[5] ^= 1; b_digest = hashlib.md5(b_data).digest()
""",
    ),
    State(
        "a gigabyte that two programs share, as a loader of data has",
        """
import mmap, multiprocessing, os
x_map = mmap.mmap(-1, 1 << 30)
for at in range(0, 1 << 30, 1 << 20): x_map[at : at + 8] = at.to_bytes(8, "little")
x_ours, x_theirs = multiprocessing.get_context("fork").Pipe()
def x_work():
    while True:
        at = x_theirs.recv(); x_map[at + 8] = (x_map[at + 8] + 1) % 256
        x_theirs.send(int.from_bytes(x_map[at : at + 8], "little"))
x_child = multiprocessing.get_context("fork").Process(target=x_work, daemon=True); x_child.start()
x_n = 0
""",
        """
x_n += 1
for at in range(0, 1 << 30, 64 << 20):
    x_ours.send(at); assert x_ours.poll(60) and x_ours.recv() == at
    assert x_map[at + 8] == x_n % 256
assert all(int.from_bytes(x_map[at : at + 8], "little") == at for at in range(0, 1 << 30, 1 << 20))
""",
        heavy=True,
    ),
    State(
        "NumPy: arrays, generators, a file that is mapped, views",
        """
import numpy as np
n_array = np.arange(10**6, dtype=float); n_view = n_array[::2]; n_state = np.random.default_rng(3)
np.random.seed(3); n_mapped = np.memmap("/workspace/n.bin", dtype="i4", shape=(1000,), mode="w+")
n_met = 0
""",
        """
n_met += 1; n_view[0] = n_met; assert n_array[0] == n_met and n_array[-1] == 10**6 - 1
n_twin = np.random.default_rng(); n_twin.bit_generator.state = n_state.bit_generator.state
assert n_twin.random() == n_state.random() and np.random.get_state()[0] == "MT19937"
n_mapped[n_met] = 5; n_mapped.flush()
assert np.fromfile("/workspace/n.bin", dtype="i4").sum() == 5 * n_met
assert np.allclose(np.linalg.inv(np.eye(50) * 2), np.eye(50) / 2)
""",
        asks="numpy",
    ),
    State(
        "pandas: frames, groups, a reader under way",
        """
import io, pandas as pd
d_frame = pd.DataFrame({"a": range(1000), "b": list("xy") * 500})
d_groups = d_frame.groupby("b"); d_text = "n\\n" + "".join(f"{n}\\n" for n in range(1000))
d_reader = pd.read_csv(io.StringIO(d_text), chunksize=10); d_at = 0
""",
        """
assert d_groups["a"].sum().to_dict() == {"x": 249500, "y": 250000}
assert list(next(d_reader)["n"]) == list(range(d_at, d_at + 10)); d_at += 10
assert str(d_frame.describe().loc["mean", "a"]) == "499.5"
""",
        asks="pandas",
    ),
    State(
        "matplotlib: a figure that is drawn further",
        """
%matplotlib inline
import matplotlib.pyplot as plt
k_figure, k_axes = plt.subplots(); k_axes.plot([1, 2]); k_lines = 1; plt.close(k_figure)
""",
        """
import io
k_axes.plot([2, 1]); k_lines += 1; assert len(k_axes.lines) == k_lines
k_file = io.BytesIO(); k_figure.savefig(k_file, dpi=30); assert k_file.getvalue()[:4] == b"\\x89PNG"
""",
        asks="matplotlib",
        heavy=True,
    ),
    State(
        "widgets: values, listeners, comms",
        """
import ipywidgets
y_slider = ipywidgets.IntSlider(value=1); y_seen = []; y_comm = y_slider.comm.comm_id
y_slider.observe(lambda change: y_seen.append(change["new"]), "value")
y_box = ipywidgets.VBox([y_slider]); y_out = ipywidgets.Output()
""",
        """
y_slider.value = (y_slider.value + 1) % 100; assert y_seen[-1] == y_slider.value
y_slider.comm.handle_msg({"content": {"data": {"method": "update", "state": {"value":
    (y_slider.value + 1) % 100}, "buffer_paths": []}}, "buffers": []})
assert y_seen[-1] == y_slider.value and y_slider.comm.comm_id == y_comm
assert y_box.children[0] is y_slider
""",
        asks="ipywidgets",
    ),
    State(
        "Tornado: a server, and a call that comes again and again",
        """
import tornado.httpclient, tornado.httpserver, tornado.ioloop, tornado.web, tornado.netutil
class Z_Handler(tornado.web.RequestHandler):
    def get(self): self.write("tornado")
z_sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
z_server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Z_Handler)]))
z_server.add_sockets(z_sockets); z_url = f"http://127.0.0.1:{z_sockets[0].getsockname()[1]}/"
z_ticks = []; z_calls = tornado.ioloop.PeriodicCallback(lambda: z_ticks.append(1), 20)
z_calls.start()
""",
        """
z_before = len(z_ticks); z_client = tornado.httpclient.AsyncHTTPClient()
assert (await z_client.fetch(z_url)).body == b"tornado"
import asyncio
while len(z_ticks) <= z_before: await asyncio.sleep(0.01)
""",
        asks="tornado",
    ),
    State(
        "ZeroMQ: connections that stay open",
        """
import zmq
j_context = zmq.Context(); j_a, j_b = j_context.socket(zmq.PAIR), j_context.socket(zmq.PAIR)
j_port = j_a.bind_to_random_port("tcp://127.0.0.1"); j_b.connect(f"tcp://127.0.0.1:{j_port}")
j_c, j_d = j_context.socket(zmq.PUSH), j_context.socket(zmq.PULL)
j_c.bind("ipc:///tmp/j"); j_d.connect("ipc:///tmp/j"); j_a.send(b"0"); j_n = 0
for one in (j_a, j_b, j_c, j_d): one.setsockopt(zmq.RCVTIMEO, 20000)
""",
        """
assert j_b.recv() == str(j_n).encode(); j_n += 1; j_a.send(str(j_n).encode())
j_c.send(b"x"); assert j_d.recv() == b"x"
""",
        asks="zmq",
    ),
    State(
        "a debugger of the kernel's own: trace functions, profilers, breakpoints",
        """
import bdb, cProfile, sys, threading
class K_Debugger(bdb.Bdb):
    stops = 0
    def user_line(self, frame): self.stops += 1; self.set_continue()
def k_stop(): return 5
k_debugger = K_Debugger(); k_profile = cProfile.Profile()
""",
        """
k_before = k_debugger.stops
assert k_debugger.runcall(k_stop) == 5 and k_debugger.stops == k_before + 1
k_profile.enable(); k_stop(); k_profile.disable()
assert any(entry.callcount for entry in k_profile.getstats())
""",
    ),
)
