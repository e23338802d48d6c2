"""A package of somebody else adds a runtime by an entry point, and nothing of ours is changed.

``tests/data/other_runtime`` is installed into a folder. Kernels of it pass the conformance tests
that every runtime passes (``GK_TEST_RUNTIME``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..patience import scale_seconds
from ..world import PROJECT

SETTINGS = {"runtime": "nice", "nice": {"level": 7}, "snapshot": "off"}
LEVEL = """
import json, os
from gvisor_kernel.runtimes.state.records import find_sandboxes
from tests.jupyter.helpers import running_kernel, execute
with running_kernel(settings=json.loads(os.environ["GK_TEST_RUNTIME"])) as (manager, client):
    assert execute(client, "print(6 * 7)").text == "42\\n"
    ((directory, record),) = find_sandboxes()
    level = os.getpriority(os.PRIO_PROCESS, record.processes["sentry"].pid)
    print(json.dumps([record.runtime, level]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the package into a folder; return the variables of programs that find it there."""
    folder = tmp_path_factory.mktemp("other")
    source = folder / "source"
    shutil.copytree(PROJECT / "tests/data/other_runtime", source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(folder / "target"), str(source)]
    subprocess.run(pip, check=True, timeout=scale_seconds(60))
    settings = json.dumps(SETTINGS)
    own = {"PYTHONPATH": str(folder / "target"), "GK_TEST_RUNTIME": settings, "PYTEST_ADDOPTS": ""}
    return {**os.environ, **own}


def run(environment: dict[str, str], *argv: str, seconds: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scale_seconds(seconds),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(scale_seconds(300))
def test_its_kernels_pass_the_conformance_tests(environment: dict[str, str]) -> None:
    tests = ["tests/jupyter/test_interrupt.py", "tests/jupyter/test_gvisor_sandbox.py"]
    argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "other", *tests]
    found = re.search(r"(\d+) passed", run(environment, *argv, seconds=280))
    assert found is not None
    assert int(found[1]) > 10


def test_its_own_setting_reaches_its_sandbox(environment: dict[str, str]) -> None:
    assert json.loads(run(environment, "-c", LEVEL).splitlines()[-1]) == ["nice", 7]


def test_commands_know_it(environment: dict[str, str], tmp_path: Path) -> None:
    said = run(environment, "-m", "gvisor_kernel", "doctor", "--runtime", "nice")
    assert "nice: the level is 5" in said
    assert "Nothing to remove" in run(environment, "-m", "gvisor_kernel", "prune")


ENTRIES = """
import sys
from gvisor_kernel.config.entry_points import find_names
from gvisor_kernel.config.jupyter_config import SandboxSettings
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes import get_runtime
assert {"nice", "broken", "odd", "runsc"} <= set(find_names())
assert SandboxSettings(broken={"x": 1}).sandbox_spec().runtime == "runsc"
assert not any(name.startswith("other_runtime.runtime") for name in sys.modules)
for name in ("broken", "leaves", "odd", "unmade", "absent"):
    try:
        get_runtime(name)
    except RuntimeMissing as error:
        print(error)
"""


def test_an_entry_that_is_broken_or_absent_is_told_of(environment: dict[str, str]) -> None:
    said = run(environment, "-c", ENTRIES)
    assert "The runtime broken cannot be imported from other-runtime: ZeroDivisionError" in said
    assert "install other-runtime again" in said
    assert r"SystemExit: \x1b[2Ja stranger's words\nWhat to do: nothing." in said
    assert "The runtime unmade cannot be made: ValueError: a stranger's mistake." in said
    assert "The entry point of the runtime odd leads to no RuntimeEntry: 'no entry'" in said
    assert "The runtime absent is not installed" in said
    assert "install the package that adds it" in said
    said = run(environment, "-m", "gvisor_kernel", "prune")
    for name in ("broken", "leaves", "unmade"):
        assert f"The runtime {name} cannot be" in said, "told of, and in no other's way"
    assert "Nothing to remove" in said
    assert "\x1b" not in said
