"""The memory limit: the kernel is killed, the cell says why, the host is not affected."""

from __future__ import annotations

import pytest

from ..jupyter.helpers import execute, running_kernel, wait_for, wait_until
from ..sweeps import needs_all
from .held import Peak

MIB = 1024 * 1024
LIMIT = 512 * MIB
SLACK = 256 * MIB

HOGS = {
    "one big allocation": "x = bytearray(8 << 30)",
    "many small ones": "x = []\nwhile True: x.append(bytearray(100_000))",
    "pages touched as fast as can be": (
        "import mmap\nm = mmap.mmap(-1, 8 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for i in range(0, 8 << 30, 4096): m[i] = 1"
    ),
    "a file in memory": (
        "f = open('/tmp/hog', 'wb')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()"
    ),
    "children": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'x = b\"x\" * (8 << 30)'])\n"
        "subprocess.run([sys.executable, '-c', 'x = []\\nwhile True: x.append(\"x\" * 10**6)'])"
    ),
}


LIKE_OTHERS = ("many small ones", "one big allocation", "a file in memory")
"""The memory watch sees the same as of pages that are touched fast; other tests have it, too."""


@pytest.mark.parametrize(
    "hog", [pytest.param(hog, marks=needs_all) if hog in LIKE_OTHERS else hog for hog in HOGS]
)
def test_kernel_over_memory_limit_is_killed(hog: str) -> None:
    settings = {"memory_limit": LIMIT, "disk_limit": 2048 * MIB}
    with running_kernel(settings=settings) as (manager, client):
        with Peak(manager.provisioner._kernel.sandbox) as peak:
            msg_id = client.execute(HOGS[hog])
            message = wait_for(
                client,
                lambda m: m["msg_type"] == "error" and m["parent_header"].get("msg_id") == msg_id,
                "the error output",
            )
            wait_until(lambda: not manager.is_alive(), "the kernel's end")
        assert "512 MiB" in message["content"]["evalue"]
        assert "memory_limit" in message["content"]["evalue"]
        assert 0 < peak.bytes < LIMIT + SLACK
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert execute(client, "6 * 7").result == "42"


NEEDS_HOLES = """
import mmap, time
def held():
    with open("/proc/meminfo") as file:
        found = dict(line.split()[:2] for line in file)
    return int(found["MemTotal:"]) - int(found["MemFree:"])
def touch(part, first, last):
    for at in range(first << 20, last << 20, 4096):
        part[at] = 1
begun = held()
blocks = [bytearray(8 << 20) for _ in range(30)]
for block in blocks:
    touch(block, 0, 8)
del block, blocks[::2]
part = mmap.mmap(-1, 250 << 20)
touch(part, 0, 100)  # more than half of the limit is in use now
while held() > begun + (290 << 10):  # of 340: every other block is a hole
    time.sleep(0.01)
touch(part, 100, 250)
print("fits")
"""
"""Leaves holes in the heap, and then uses more memory than there is beside them."""


def test_kernel_below_memory_limit_is_not_killed() -> None:
    with running_kernel(settings={"memory_limit": LIMIT}) as (_, client):
        answer = execute(client, "x = b'x' * (200 << 20); x = None; x = b'y' * (200 << 20); len(x)")
        assert answer.result == str(200 << 20)
        assert execute(client, f"x = None\n{NEEDS_HOLES}").text == "fits\n"
