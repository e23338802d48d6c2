"""A program with sandboxes, which ends in the way that its argument names."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

from gvisor_kernel import AsyncSandbox, Sandbox, SandboxPool


def leave_open() -> None:
    """Exit without ``close``; one sandbox still runs code."""
    Sandbox(snapshot="off")
    print(Sandbox(snapshot="off").run("1 + 1").text, flush=True)


def die() -> None:
    """Be killed."""
    print(Sandbox(snapshot="off").run("1 + 1").text, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fork() -> None:
    """Use a sandbox in the parent and another one in a forked child."""
    sandbox = Sandbox(snapshot="off")
    child = os.fork()
    if child == 0:
        try:
            sandbox.run("1")
        except Exception as error:
            print(type(error).__name__, flush=True)
        sandbox.close()
        print(Sandbox(snapshot="off").run("'child'").text, flush=True)
        sys.exit()
    os.waitpid(child, 0)
    print(sandbox.run("'parent'").text, flush=True)


def fork_while_starting() -> None:
    """Fork while a thread starts a sandbox, and start another one in each of two children."""
    starting = threading.Thread(target=lambda: Sandbox(snapshot="off").run("1"))
    starting.start()
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            print(Sandbox(snapshot="off").run("'child'").text, flush=True)
            sys.exit()
    for child in children:
        os.waitpid(child, 0)
    starting.join()
    print(Sandbox(snapshot="off").run("'parent'").text, flush=True)


def use_loops() -> None:
    """Use sandboxes in two loops, one after the other, and leave the second one open."""

    async def once() -> None:
        async with AsyncSandbox(snapshot="off") as sandbox:
            print((await sandbox.run("1 + 1")).text, flush=True)

    async def leave() -> None:
        sandbox = await AsyncSandbox.create(snapshot="off")
        running = asyncio.ensure_future(sandbox.run("import time; time.sleep(600)"))
        await asyncio.wait([running], timeout=0)

    asyncio.run(once())
    asyncio.run(leave())


def leave_pool() -> None:
    """Exit with a pool that still starts sandboxes."""
    pool = SandboxPool(size=3, snapshot="off")
    print(pool.take().run("1 + 1").text, flush=True)


if __name__ == "__main__":
    ways = (leave_open, die, fork, fork_while_starting, use_loops, leave_pool)
    {way.__name__: way for way in ways}[sys.argv[1]]()
