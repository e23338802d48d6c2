"""What it costs to save a kernel and to let it go on, beside starting anew and writing a file.

python -m benchmarks.lasting [--rounds N]: kernels with some memory hibernate and wake, have a
branch, and go back to a checkpoint. Each round does all of it in turn. Beside them stand a new
kernel of the same snapshot, and a file of as many bytes that is written and flushed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gvisor_kernel import Sandbox
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel.checkpoints import FOLDER
from gvisor_kernel.runtimes.state.pages import STORE, measure_folder
from gvisor_kernel.runtimes.state.records import find_sandboxes

MIB = 1024 * 1024
PANDAS = "import pandas; frame = pandas.DataFrame({'a': range(100_000)}); x = 0"
KERNELS = {
    "empty": "x = 0",
    "pandas": PANDAS,
    "300 MB": "import os; data = os.urandom(300 << 20); x = 0",
    "1 GB": "import os; data = os.urandom(1 << 30); x = 0",
}
Times = defaultdict[str, list[float]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lasting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kernels", default=",".join(KERNELS), help="names, with commas")
    return parser.parse_args()


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.append(time.perf_counter() - began)


def run(sandbox: Sandbox, code: str = "x += 1; x") -> str:
    execution = sandbox.run(code)
    assert execution.error is None, execution.error
    return execution.text or ""


def write_file(size: int) -> None:
    with tempfile.TemporaryFile(dir=state_root()) as file:
        for _ in range(max(1, size // (4 * MIB))):
            file.write(os.urandom(4096) * 1024)
        file.flush()
        os.fsync(file.fileno())


def measure(name: str, code: str, sandbox: Sandbox, times: Times) -> None:
    with timed(times["new kernel, its state computed anew"]), Sandbox(spare=False) as fresh:
        run(fresh, code)
    with timed(times["hibernate()"]):
        sandbox.hibernate()
    size = sum(path.stat().st_size for path in find_directory(sandbox).glob("saved/image/*"))
    times["image, MiB"].append(size / MIB)
    with timed(times["wake to the reply, image as it was written"]):
        run(sandbox)
    sandbox.hibernate()
    for path in find_directory(sandbox).glob("saved/image/*"):
        with path.open("rb") as file:
            while file.read(4 * MIB):
                pass
    with timed(times["wake to the reply, image in the page cache"]):
        run(sandbox)
    with timed(times["file of that size, flushed"]):
        write_file(size)
    measure_branch(sandbox, times)
    sandbox.checkpoint(name := f"c{len(times['image, MiB'])}")
    run(sandbox)
    with timed(times["rewind()"]):
        sandbox.rewind(name)
    with timed(times["reply after it"]):
        run(sandbox)


def measure_branch(sandbox: Sandbox, times: Times) -> None:
    """The source gets a cell as its branch is made: it waits for that as long as it pauses."""
    with ThreadPoolExecutor(1) as pool:
        began = time.perf_counter()
        making = pool.submit(sandbox.branch)
        time.sleep(0.03)  # not a wait: until it has begun
        with timed(times["branch(): a cell of the source"]):
            run(sandbox)
        (branch,) = making.result()
        with branch:
            run(branch)
            times["branch() to its first reply"].append(time.perf_counter() - began)


def find_directory(sandbox: Sandbox) -> Path:
    return next(path for path, it in find_sandboxes() if it.identity == sandbox.id)


def measure_disk() -> None:
    """Tell what ten checkpoints of one kernel take, once they are packed."""
    with Sandbox(spare=False) as sandbox:
        run(sandbox, KERNELS["300 MB"])
        sizes = []
        for _ in range(10):
            run(sandbox)
            sandbox.checkpoint()
            folder = find_directory(sandbox) / FOLDER
            while any(folder.glob("*/image")):
                time.sleep(1)
            sizes.append(measure_folder(folder) / MIB)
        assert (folder / STORE).is_dir()
        more = [after - before for before, after in itertools.pairwise(sizes)]
        print(f"checkpoints of 300 MB: first {sizes[0]:.0f} MiB, each more {max(more):.1f} at most")


def main() -> None:
    arguments = parse()
    chosen = {name: KERNELS[name] for name in arguments.kernels.split(",") if name}
    every: dict[str, Times] = {name: defaultdict(list) for name in chosen}
    print(f"load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        sandboxes = {name: stack.enter_context(Sandbox(spare=False)) for name in chosen}
        for name, sandbox in sandboxes.items():
            run(sandbox, chosen[name])
        for _ in range(arguments.rounds):
            for name, sandbox in sandboxes.items():
                measure(name, chosen[name], sandbox, every[name])
    for name, times in every.items():
        print(name)
        for what, values in times.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"  {what}: median {middle:.2f}, {low:.2f} to {high:.2f}")
    measure_disk()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
