"""What kernels that hibernate cost a Jupyter server, and what they cost each other.

python -m benchmarks.asleep [--kernels N] [--awake N] [--wakes N] [--storm N]: one kernel hibernates
and is copied N times. Two servers of folders of their own take back one kernel, and all copies.
Measured are their starts, their descriptors and their memory; then wakes of the lone kernel and of
random others in turn, which hibernate again; then a storm of wakes at once.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gvisor_kernel.runtimes.state.listed import find_all
from tests.jupyter.copies import copy_saved
from tests.jupyter.server import JupyterServer
from tests.server.clients import Client
from tests.world import World

CODE = "x = globals().get('x', 0) + 1; print(x)"
MIB = 1024 * 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asleep", description=__doc__)
    parser.add_argument("--kernels", type=int, default=1000)
    parser.add_argument("--awake", type=int, default=20)
    parser.add_argument("--wakes", type=int, default=50)
    parser.add_argument("--storm", type=int, default=50)
    parser.add_argument("--kinds", action="store_true", help="name descriptors by their kind")
    return parser.parse_args()


@contextmanager
def serving(folder: Path, note: Callable[[str], None] | None = None) -> Iterator[JupyterServer]:
    """Run a server. ``note`` is told when it listened, and of what it had spent by then."""
    server = JupyterServer(
        folder, "--GVisorServer.warm=False", extensions=("gvisor_kernel.server",)
    )
    server.leaves = True
    began = time.perf_counter()
    try:
        server.start()
        if note is not None:
            seconds = time.perf_counter() - began
            note(f"listens after {seconds:.2f} s, of which {spent(server):.2f} s of a CPU")
        yield server
    except BaseException:
        print("".join(server.log[-40:]))
        raise
    finally:
        server.stop()


def make_saved(folder: Path) -> str:
    """Let a server have one kernel that has run a cell, and leave it; return its id."""
    with serving(folder) as server:
        kernel = {"name": "gvisor-python"}
        path = {"path": "n/a.ipynb", "name": "a.ipynb", "type": "notebook"}
        found: str = server.ask("POST", "sessions", kernel=kernel, **path)["kernel"]["id"]
        run(server, found)
    return found


def run(server: JupyterServer, kernel: str) -> tuple[float, float]:
    """Run a cell; return the seconds until the page is connected, and then until the reply."""
    began = time.perf_counter()
    with server.page(kernel) as page:
        page.wait_for_reply(page.send("kernel_info_request", {}))
        connected = time.perf_counter()
        reply = page.wait_for_reply(page.execute(CODE))
        assert reply["status"] == "ok", reply
        return connected - began, time.perf_counter() - connected


def hibernate(server: JupyterServer, kernel: str) -> None:
    assert Client(server).ask("POST", f"kernels/{kernel}/hibernate").ok


def count(server: JupyterServer) -> collections.Counter[str]:
    """Return the descriptors of a server by their kind."""
    assert server.process is not None
    kinds: collections.Counter[str] = collections.Counter()
    paths = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        paths[words[6]] = f"{Path(words[7]).name} {words[5]}" if len(words) > 7 else words[5]
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(entry)  # noqa: PTH115 - no file
            inode = target.removeprefix("socket:[").removesuffix("]")
            kinds[paths.get(inode, target.split(":[")[0])] += 1
    return kinds


def weigh(server: JupyterServer) -> float:
    """Return the MiB that a server has in memory."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def spent(server: JupyterServer) -> float:
    assert server.process is not None
    words = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def settle(server: JupyterServer) -> None:
    """Wait until a server has no work left, and opens or closes nothing."""
    before = -1
    while before != (before := count(server).total()):
        time.sleep(3)


def describe(name: str, server: JupyterServer) -> tuple[int, float]:
    settle(server)
    began, cpu = time.perf_counter(), spent(server)
    time.sleep(5)
    share = (spent(server) - cpu) / (time.perf_counter() - began)
    files, memory = count(server).total(), weigh(server)
    print(f"{name}: {files} descriptors, {memory:.0f} MiB, {100 * share:.1f} % of a CPU")
    return files, memory


def tell(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{name}: median {statistics.median(ordered):.2f} s, p99 {last:.2f} s")


def main() -> None:
    arguments = parse()
    world = World.create()
    try:
        world.install()
        folders = [world.make_folder(name) for name in ("one", "many")]
        for folder in folders:
            (folder / "n").mkdir()
        lone, first = map(make_saved, folders)
        saved = next(one for one in find_all() if one.record.kernel_id == first)
        print(f"load {os.getloadavg()}")
        kernels = [first, *copy_saved(saved, arguments.kernels - 1)]
        measure(arguments, folders, lone, kernels)
    finally:
        world.remove()


def measure(
    arguments: argparse.Namespace, folders: list[Path], lone: str, kernels: list[str]
) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(serving(folders[0], lambda text: print("one:", text)))
        files, memory = describe("one", one)
        many = stack.enter_context(serving(folders[1], lambda text: print("many:", text)))
        listed = {it["id"] for it in many.ask("GET", "kernels")}
        print(f"many: {len(listed & set(kernels))} of {len(kernels)} kernels are back by then")
        all_files, all_memory = describe("many", many)
        each = len(kernels) - 1 or 1
        print(
            f"each: {(all_files - files) / each:.2f} descriptors,"
            f" {(all_memory - memory) / each:.2f} MiB"
        )
        if arguments.kinds:
            for kind, number in count(many).most_common(25):
                print(f"  {number:6} {kind}")
        for kernel in kernels[: arguments.awake]:
            run(many, kernel)
        print(f"{arguments.awake} are awake")
        asleep = kernels[arguments.awake :]
        times: dict[str, list[tuple[float, float]]] = {"lone": [], "one of many": []}
        for kernel in random.sample(asleep, min(arguments.wakes, len(asleep))):
            for name, server, which in (("lone", one, lone), ("one of many", many, kernel)):
                times[name].append(run(server, which))
                hibernate(server, which)
        for name, pairs in times.items():
            if pairs:
                tell(f"{name}, connected", [it for it, _ in pairs])
                tell(f"{name}, wake to the reply", [it for _, it in pairs])
        chosen = random.sample(asleep, min(arguments.storm, len(asleep)))
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(max(1, len(chosen))) as pool:
            storm = list(pool.map(lambda kernel: run(many, kernel), chosen))
        if storm:
            print(f"storm of {len(storm)}: all have replied, {time.perf_counter() - began:.1f} s")
            tell("storm, wake to the reply", [it for _, it in storm])
        for kernel in (*chosen, *kernels[: arguments.awake]):
            hibernate(many, kernel)
        describe("many, after all", many)
        print(f"load {os.getloadavg()}")


if __name__ == "__main__":
    main()
