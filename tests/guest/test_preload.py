"""Which modules are imported ahead of a snapshot: each is tried in a process that ends."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.guest import installed, preload

from ..world import PROJECT

MODULES = {
    "gk_good": "value = 3",
    "gk_thread": "import threading\nend = threading.Event()\n"
    "threading.Thread(target=end.wait, daemon=True).start()",
    "gk_child": "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)",
    "gk_random": "import random\nown = random.Random(3)",
    "gk_numpy_random": "import numpy\nown = numpy.random.default_rng()",
    "gk_system_random": "import random\nown = random.SystemRandom()",
    "gk_temporary": "import tempfile\nwith tempfile.TemporaryFile(): pass\n"
    "own = tempfile._RandomNameSequence()\nnext(own)",
    "gk_seeds": "import random, numpy.random\nrandom.seed(1)\nnumpy.random.seed(1)",
    "gk_time": "import time\nstarted = time.time()",
    "gk_stamp": "import time\nstarted = time.time_ns()",
    "gk_now": "from datetime import datetime, timezone\nnow = datetime.now(timezone.utc)",
    "gk_day": "from datetime import date\nday = date.today()",
    "gk_id": "import uuid\nown = uuid.uuid4()\nother = uuid.UUID(int=3)",
    "gk_fails": "raise RuntimeError('no')",
    "gk_leaves": "raise SystemExit(0)",
    "gk_dies": "import os\nos._exit(3)",
    "gk_daemon": "import os, signal\nif os.fork():\n    os.wait()\nelse:\n    os.setsid()\n"
    "    os.fork() or signal.pause()\n    os._exit(0)",
    "gk_folder": "import os\nos.chdir('/')",
    "gk_variable": "import os\nos.environ['GK_SET'] = '1'",
    "gk_warnings": "import warnings\nwarnings.filterwarnings('ignore')",
    "gk_signal": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)",
    "gk_collector": "import gc\ngc.disable()",
    "gk_file": "kept = open('/dev/null')",
    "gk_hook": "import sys\nsys.excepthook = lambda *words: None",
    "gk_patch": "import json\njson.dumps = lambda *words: 'no'",
    "gk_replace": "import sys, types\nsys.modules['json'] = types.ModuleType('json')",
    "gk_own": "import atexit, os, warnings\nclass Odd(Warning): pass\n"
    "warnings.simplefilter('always', Odd)\nwarnings.filterwarnings('ignore', 'gk')\n"
    "atexit.register(print)\nos.environ['KMP_INIT_AT_FORK'] = 'FALSE'",
    "gk_prints": "print('over')\nimport os\nos.write(1, b'over\\n')",
}
FAULTS = {
    "gk_thread": "starts a thread",
    "gk_child": "starts a process",
    "gk_random": "random generator",
    "gk_numpy_random": "random generator",
    "gk_time": "gk_time.started is the time of its import",
    "gk_stamp": "gk_stamp.started is the time of its import",
    "gk_now": "gk_now.now is the time of its import",
    "gk_day": "gk_day.day is the time of its import",
    "gk_id": "gk_id.own is an id of its process",
    "gk_fails": "raises RuntimeError",
    "gk_leaves": "raises SystemExit",
    "gk_dies": "ends the process",
    "gk_daemon": "starts a process",
    "gk_folder": "changes the working folder",
    "gk_variable": "changes the variable GK_SET",
    "gk_warnings": "changes the filters for all warnings",
    "gk_signal": "changes the handlers of signals",
    "gk_collector": "changes the garbage collector",
    "gk_file": "changes the open files",
    "gk_hook": "changes sys.excepthook",
    "gk_patch": "changes json.dumps",
    "gk_replace": "changes json",
}

Choose = Callable[..., preload.Chosen]


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Return a function that chooses among MODULES, which are in the environment."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(installed, "find_directories", lambda: [f"{tmp_path}/"])
    # The process that tries finds the same by its own means.
    patch = (
        "from gvisor_kernel.guest import installed\n"
        f"installed.find_directories = lambda: [{str(tmp_path) + '/'!r}]\n"
        "preload.find_directories = installed.find_directories\n"
        "preload.run_trials"
    )
    program = preload.PROGRAM.replace("preload.run_trials", patch)
    monkeypatch.setattr(preload, "PROGRAM", program)
    return lambda *names, **more: preload.choose(names, str(PROJECT), **more)


@pytest.mark.parametrize("names", [list(FAULTS)[::2], list(FAULTS)[1::2]])
def test_module_that_must_be_imported_by_each_kernel_is_left_out(
    choose: Choose, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload, "MAX_LEFT_OUT", len(FAULTS))
    chosen = choose(*names, "gk_good")
    assert chosen.names == ["gk_good"]
    assert list(chosen.left_out) == names
    assert [name for name in names if FAULTS[name] not in chosen.left_out[name]] == []
    assert not set(names) & set(sys.modules)


def test_other_modules_are_chosen(choose: Choose) -> None:
    """Among them some that only look as if: they print, seed what a restore reseeds, ask the system
    for random numbers, and set what is only for themselves."""
    names = ("gk_good", "gk_system_random", "gk_prints", "gk_seeds", "gk_temporary", "gk_own")
    assert choose(*names, "gk_not_there", "json") == preload.Chosen(list(names), {})


def test_modules_that_take_too_much_are_left_out(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they have imported is not counted for the next one, whose process is another."""
    trials = {"gk_good": (1.0, 100), "gk_seeds": (1.0, 101), "gk_prints": (1.0, 100)}
    programs: list[str] = []

    def run(program: str, end: float) -> list[preload.Trial]:
        programs.append(program)
        left = [name for name in trials if f"'{name}'" in program.partition("], [")[2]]
        return [preload.Trial(*trials[name], "") for name in left]

    monkeypatch.setattr(preload, "_try_in_process", run)
    monkeypatch.setattr(preload, "MAX_BYTES", 200)
    chosen = choose(*trials)
    assert chosen.names == ["gk_good", "gk_prints"]
    assert "MiB" in chosen.left_out["gk_seeds"]
    assert len(programs) == 2
    monkeypatch.setattr(preload, "MAX_CPU_SECONDS", 1.5)
    assert "1.0 s of CPU" in choose("gk_good", "gk_prints").left_out["gk_prints"]


def test_trial_that_says_nothing_is_not_tried_again(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that says too much end the choice."""
    said = [[], [preload.Trial(0.0, 0, "")] * 3]
    monkeypatch.setattr(preload, "_try_in_process", lambda *words: said.pop(0))
    chosen = choose("gk_good", "gk_seeds")
    assert chosen == preload.Chosen(["gk_seeds"], {"gk_good": "its trial says nothing"})


def test_import_that_does_not_end_is_given_up(choose: Choose) -> None:
    """No time is left for it, so neither for the others."""
    chosen = choose("gk_good", "gk_seeds", seconds=0.0)
    assert chosen.names == []
    assert chosen.left_out["gk_good"] == "its import does not end"
    assert set(chosen.left_out) == {"gk_good", "gk_seeds"}


def test_facts_of_a_process_show_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    before = preload.describe_process()
    random.seed()
    after = preload.describe_process()
    assert before["random"] != after["random"]
    assert before["children"] == after["children"] == len(preload._find_children())
    assert os.getpid() not in preload._find_children()


def test_process_that_cannot_be_started_costs_the_modules_only(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object) -> None:
        raise OSError

    monkeypatch.setattr(preload, "_try_in_process", refuse)
    found = preload.import_usable(["gk_good"], str(PROJECT))
    assert found == {"imported": [], "left_out": {"gk_good": preload.UNTRIED}}
