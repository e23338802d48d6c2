"""A kernel that lives through random verbs, beside a model of what it must have."""

from __future__ import annotations

import ast
import copy
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gvisor_kernel import Sandbox
from gvisor_kernel.errors import NotIdle

from ..patience import scale_seconds

BEGIN = """
import asyncio, os, queue, random, sqlite3, subprocess, threading
variables, threads, children, tasks, opened, due, count = {}, {}, {}, {}, {}, set(), 0
base = sqlite3.connect("/workspace/base.db", isolation_level=None, check_same_thread=False)
base.execute("create table if not exists t (n)"); INSERT = "insert into t values (1)"
random.seed(1)
SUM = "n=0; while read x; do n=$((n + x)); echo $n; done"

class Thread:
    def __init__(self):
        self.asked, self.answers = queue.Queue(), queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()
    def work(self, total=0):
        while True:
            total += self.asked.get()
            self.answers.put(total)
    async def add(self, n):
        self.asked.put(n)
        return self.answers.get(timeout=60)

class Child:
    def __init__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["sh", "-c", SUM], stdin=pipe, stdout=pipe, text=True)
    async def add(self, n):
        self.process.stdin.write(f"{n}\\n"); self.process.stdin.flush()
        return int(self.process.stdout.readline())

class Task:
    def __init__(self):
        self.asked, self.answers = asyncio.Queue(), asyncio.Queue()
        self.task = asyncio.ensure_future(self.work())
    async def work(self, total=0):
        while True:
            total += await self.asked.get()
            await self.answers.put(total)
    async def add(self, n):
        await self.asked.put(n)
        return await asyncio.wait_for(self.answers.get(), 60)

def read(path):
    with open(path) as file: return file.read()

def read_open(file):
    file.flush(); file.seek(0); return file.read()

async def add_up(some):
    return {name: await one.add(0) for name, one in some.items()}

async def look(paths):
    return {
        "count": count,
        "variables": {name: (len(v) if isinstance(v, bytes) else v) for name, v in
            variables.items()},
        "threads": await add_up(threads), "children": await add_up(children),
        "tasks": await add_up(tasks), "opened": {n: read_open(f) for n, f in opened.items()},
        "files": {path: read(path) if os.path.exists(path) else None for path in paths},
        "rows": base.execute("select count(*) from t").fetchone()[0],
    }
"""
NAMES = st.sampled_from("abc")
WORKERS = {"threads": "Thread", "children": "Child", "tasks": "Task"}
PATHS = st.sampled_from(
    ["/workspace/f", "/workspace/deep/f", "/tmp/f", "/dev/shm/f", "/home/user/f"]
)
DELAYS = st.sampled_from([0.0, 0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
OUTPUT = "/mnt/user-data/outputs/f"


@dataclass
class Model:
    """What the kernel has. ``files`` go back with it; the outputs do not."""

    count: int = 0
    cells: int = 0
    variables: dict[str, object] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    children: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    opened: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    rows: int = 0


class Cycles:
    """Counts what has been done in this process."""

    wakes = 0
    done: ClassVar[Counter[str]] = Counter()

    @classmethod
    def note(cls, what: str) -> None:
        cls.done[what] += 1


class RandomLife(RuleBasedStateMachine):
    """Each rule is one thing that somebody does. After each the kernel has what the model has."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.checkpoints: dict[str, Model] = {}
        self.output = ""
        self.looks = self.sleeps = False
        self.pool = ThreadPoolExecutor(2)
        self.sandbox = Sandbox(memory="1G", outputs=self.make_outputs())

    def make_outputs(self) -> str:
        raise NotImplementedError

    # -- what is asked of it -------------------------------------------------------------------

    def run(self, code: str, sandbox: Sandbox | None = None, model: Model | None = None) -> Any:
        """Run a cell that counts; its number, its one answer and its lines are looked at."""
        model = model or self.model
        source = f"{code}\ncount += 1\nprint('cell', count)\ncount"
        was_asleep = (sandbox or self.sandbox).is_hibernated
        execution = (sandbox or self.sandbox).run(source)
        Cycles.wakes += was_asleep
        assert execution.error is None, execution.error
        model.count += 1
        assert execution.text == str(model.count), execution.text
        assert execution.stdout.endswith(f"cell {model.count}\n"), execution.stdout
        number = execution.execution_count
        assert model.cells in (0, (number or 0) - 1), (number, model.cells)
        model.cells = number or 0
        return execution

    def check(self, sandbox: Sandbox, model: Model) -> None:
        paths = [*model.files, "/workspace/none"]
        execution = self.run(f"found = await look({paths!r}); print(found)", sandbox, model)
        found = ast.literal_eval(execution.stdout.splitlines()[0])
        expected = {name: getattr(model, name) for name in found if name != "files"}
        expected["count"] = model.count - 1  # it looked first
        assert found.pop("files") == {**model.files, "/workspace/none": None}
        expected.pop("files", None)
        assert found == expected

    def saving(self) -> Future[None]:
        """Begin to save the kernel as the idle time does, which waits for no cell."""
        kernel = self.sandbox._target._kernel
        assert kernel is not None
        return self.pool.submit(self.sandbox._thread.run, kernel.hibernation.hibernate())

    # -- rules ---------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.set_up()

    def set_up(self) -> None:
        assert self.sandbox.run(BEGIN).ok
        self.model.cells = 0

    @rule(name=NAMES, value=st.integers(-5, 5) | st.text(max_size=5) | st.just([1, {"a": None}]))
    def set_variable(self, name: str, value: object) -> None:
        self.run(f"variables[{name!r}] = {value!r}")
        self.model.variables[name] = value

    @rule(name=NAMES, size=st.sampled_from([1 << 10, 1 << 20, 30 << 20]))
    def fill_memory(self, name: str, size: int) -> None:
        self.run(f"variables[{name!r}] = os.urandom({size})")
        self.model.variables[name] = size

    @rule(path=PATHS, by_api=st.booleans(), text=st.sampled_from(["", "x", "long" * 5000]))
    def write_file(self, path: str, by_api: bool, text: str) -> None:
        if by_api and path.startswith("/workspace"):
            Cycles.wakes += self.sandbox.is_hibernated
            self.sandbox.files.write(path, text)
        else:
            self.run(
                f"os.makedirs(os.path.dirname({path!r}), exist_ok=True)\n"
                f"with open({path!r}, 'w') as file: file.write({text!r})"
            )
        self.model.files[path] = text

    @precondition(lambda self: self.model.files)
    @rule(data=st.data(), removes=st.booleans())
    def append_or_remove(self, data: st.DataObject, removes: bool) -> None:
        path = data.draw(st.sampled_from(sorted(self.model.files)))
        if removes:
            self.run(f"os.remove({path!r})")
            del self.model.files[path]
        else:
            self.run(f"with open({path!r}, 'a') as file: file.write('more')")
            self.model.files[path] += "more"

    @rule(name=NAMES, deleted=st.booleans())
    def open_file(self, name: str, deleted: bool) -> None:
        path = f"/tmp/open-{name}"
        self.run(
            f"opened[{name!r}] = open({path!r}, 'w+'); opened[{name!r}].write('half')"
            + (f"; os.remove({path!r})" if deleted else "")
        )
        self.model.opened[name] = "half"

    @rule(kind=st.sampled_from(sorted(WORKERS)), name=NAMES, n=st.integers(1, 9))
    def work(self, kind: str, name: str, n: int) -> None:
        """Start a thread, a process or a task of asyncio; or give it something to do."""
        totals: dict[str, int] = getattr(self.model, kind)
        begin = "" if name in totals else f"{kind}[{name!r}] = {WORKERS[kind]}()\n"
        totals[name] = totals.get(name, 0) + n
        self.run(f"{begin}assert await {kind}[{name!r}].add({n}) == {totals[name]}")

    @rule(n=st.integers(1, 3))
    def insert(self, n: int) -> None:
        self.run(f"for _ in range({n}): base.execute(INSERT)")
        self.model.rows += n

    @rule()
    def write_output(self) -> None:
        self.run(f"with open({OUTPUT!r}, 'a') as file: file.write('o')")
        self.output += "o"

    @rule(again=st.booleans())
    def hibernate(self, again: bool) -> None:
        for _ in range(1 + again):
            self.sandbox.hibernate()
            assert self.sandbox.is_hibernated
            Cycles.note("hibernate")

    @rule(way=st.sampled_from(["cell", "file", "shell", "changes", "none"]))
    def sleep_and_wake(self, way: str) -> None:
        self.sandbox.hibernate()
        if way == "file":
            self.sandbox.files.write("/workspace/by-file", "here")
            assert self.sandbox.files.read("/workspace/by-file") == "here"
        elif way == "shell":
            assert self.sandbox.shell("echo $((6 * 7))").stdout == "42\n"
        elif way == "changes":
            self.sandbox.changes()
        elif way == "cell":
            self.looks = True
            return
        else:
            return
        Cycles.wakes += 1
        self.looks = True

    @rule(delay=DELAYS, lines=st.integers(0, 20), waits=st.sampled_from([0, 0.05, 0.3]))
    def run_while_it_is_saved(self, delay: float, lines: int, waits: float) -> None:
        """A cell comes at any moment of a save, or a save at any moment of a cell."""
        asleep, saving = self.sandbox.is_hibernated, self.saving()
        time.sleep(delay)  # not a wait: each example hits another step
        code = f"import time; time.sleep({waits})\nfor n in range({lines}): print('line', n)"
        execution = self.run(code)
        expected = "".join(f"line {n}\n" for n in range(lines))
        assert execution.stdout == f"{expected}cell {self.model.count}\n"
        with suppress(NotIdle):
            saving.result(scale_seconds(120))
            Cycles.wakes += not asleep
        self.looks = True

    @rule(other=st.sampled_from(["hibernate", "checkpoint", "file"]), delay=DELAYS)
    def do_two_at_once(self, other: str, delay: float) -> None:
        saving = self.saving()
        time.sleep(delay)  # not a wait: each example hits another step
        with suppress(NotIdle):
            if other == "hibernate":
                self.saving().result(scale_seconds(120))
            elif other == "checkpoint":
                self.make_checkpoint("two")
            else:
                self.sandbox.files.write("/workspace/two", other)
        if other == "file":
            self.model.files["/workspace/two"] = other
        with suppress(NotIdle):
            saving.result(scale_seconds(120))
        self.looks = True

    @rule(name=NAMES)
    def checkpoint(self, name: str) -> None:
        self.make_checkpoint(name)

    def make_checkpoint(self, name: str) -> None:
        if name in self.checkpoints:
            self.sandbox.remove_checkpoint(name)
            del self.checkpoints[name]
        Cycles.wakes += self.sandbox.is_hibernated
        self.sandbox.checkpoint(name)
        self.checkpoints[name] = copy.deepcopy(self.model)

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.checkpoints)))
        then, now = self.checkpoints[name], copy.deepcopy(self.model)
        self.sandbox.rewind(name)
        Cycles.wakes += 1
        self.model, self.checkpoints["before-rewind"] = copy.deepcopy(then), now
        Cycles.note("rewind")
        self.looks = True

    @rule(data=st.data(), hibernates=st.booleans())
    def branch(self, data: st.DataObject, hibernates: bool) -> None:
        name = data.draw(st.sampled_from([None, *sorted(self.checkpoints)]))
        model = copy.deepcopy(self.model if name is None else self.checkpoints[name])
        [branch] = self.sandbox.branch(from_checkpoint=name)
        with branch:
            self.run(f"with open({OUTPUT!r}, 'w') as file: file.write('branch')", branch, model)
            if hibernates:
                branch.hibernate()
            for kind in WORKERS:
                for other in getattr(model, kind):
                    self.run(f"await {kind}[{other!r}].add(1000)", branch, model)
                    getattr(model, kind)[other] += 1000
            self.check(branch, model)
        Cycles.wakes += 1 + hibernates
        Cycles.note("branch")
        self.looks = True

    @rule(rarely=st.integers(0, 9))
    def restart(self, rarely: int) -> None:
        """A new kernel, in the same sandbox if it was awake: its files stay then."""
        if rarely:
            return
        asleep = self.sandbox.is_hibernated
        self.sandbox.restart()
        files, rows = self.model.files, self.model.rows
        self.model = Model() if asleep else Model(files=files, rows=rows)
        if asleep:
            self.checkpoints.clear()
        self.set_up()
        Cycles.note("restart")
        self.looks = True

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Look, or let it hibernate, so that the next rule finds it asleep or awake in turn."""
        self.sleeps = not self.sleeps
        if self.sleeps and not self.looks:
            self.sandbox.hibernate()
        else:
            self.looks = False
            self.check(self.sandbox, self.model)
            assert self.read_output() == self.output

    def read_output(self) -> str:
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            self.check(self.sandbox, self.model)
            names = {one.name for one in self.sandbox.checkpoints()}
            assert names == {*self.checkpoints}, names
        finally:
            self.pool.shutdown()
            self.sandbox.close()
