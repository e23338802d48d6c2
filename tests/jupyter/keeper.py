"""A program with one kernel of a server's manager, which ends in the way that its argument names.

It prints what the cell ``CODE`` prints, a line each. A third argument is JSON: settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from traitlets.config import Config

CODE = "x = globals().get('x', 0) + 1; print(x, globals().get('done'), flush=True)"
LOOP = """
import time
print('loops', flush=True)
for done in range(40):
    time.sleep(0.05)
"""


async def execute(client: AsyncKernelClient, code: str, until: str = "") -> None:
    """Run a cell and print what it prints, until it is idle or has printed ``until``."""
    request = client.execute(code)
    while True:
        message = await client.get_iopub_msg(timeout=60)
        content = message["content"]
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            print(content["text"].strip(), flush=True)
            if until and until in content["text"]:
                return
        if message["msg_type"] == "error":
            print(content["ename"], content["evalue"], flush=True)
        if content.get("execution_state") == "idle":
            return


async def main(way: str, kernel_id: str, settings: str = "{}") -> None:
    config = Config({"GVisorServer": {"hibernate_on_shutdown": True}})
    config.GVisorProvisioner.update(json.loads(settings))
    managers = AsyncMultiKernelManager(config=config)
    await managers.start_kernel(kernel_name="gvisor-python", kernel_id=kernel_id)
    manager = managers.get_kernel(kernel_id)
    client = manager.client()
    client.start_channels()
    if not way.startswith("take"):
        await client.wait_for_ready(timeout=60)
    await execute(client, CODE)
    kernel = manager.provisioner.sandboxed_kernel
    if way.endswith("going back"):
        states = kernel.checkpoints
        await states.make("one")
        await execute(client, CODE)
        if way.startswith("die"):
            going = asyncio.ensure_future(states.rewind("one"))
            while kernel.hibernation.saved is None:  # until it is saved, and its sandbox ends
                await asyncio.sleep(0.001)
            assert not going.done()
    if way == "take back":
        print((await kernel.checkpoints.rewind("one")).changed, flush=True)
        await execute(client, CODE)
    if way.startswith("leave") or way == "take and leave":
        print(await kernel.hibernation.leave(), flush=True)
    if way == "die asleep":
        await kernel.hibernation.hibernate()
    if way == "die idle":
        while not kernel._kernel.paused:  # until its sandbox is stopped
            await asyncio.sleep(0.05)
    if way == "die busy":
        await execute(client, LOOP, until="loops")
    if way.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    await managers.shutdown_all()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
