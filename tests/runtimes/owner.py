"""A process that owns a sandbox and does nothing else, for tests that kill it.

    python -m tests.runtimes.owner FOLDER

Prints one JSON object with the sandbox's processes and paths, and waits. The sandbox's PID 1 does
not notice the end of its stdin, so the sandbox ends only if the host ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import lifeline, records

from .standin import Conversation, standin_argv


def main(folder: Path) -> None:
    runtime = RunscRuntime(init_argv=standin_argv(sys.executable))
    request = LaunchRequest("gvisor-python", "kernel", folder, sys.executable, {})
    sandbox = runtime.start(SandboxSpec(), request)
    inside = Conversation(sandbox)
    uid = inside.ask("os.getuid()")
    inside.ask("open('/mnt/user-data/outputs/kept', 'w').write('x')")
    inside.tell("time.sleep(1000)")
    sandbox.verify()
    record = records.read_record(sandbox.directory)
    assert record is not None
    assert lifeline._process is not None
    report = {
        "record": asdict(record),
        "directory": str(sandbox.directory),
        "lifeline": lifeline._process.pid,
        "uid": os.getuid(),
        "uid_inside": uid,
        "owner_of_outputs": (folder / "outputs" / "kept").stat().st_uid,
    }
    print(json.dumps(report), flush=True)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
