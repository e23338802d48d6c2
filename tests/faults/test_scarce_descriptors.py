"""A server without free file descriptors reports an error, and works again when some are free."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from gvisor_kernel.host.open_files import MAX_OPEN_FILES

from .. import leaks
from ..world import PROJECT, World

HINT = re.compile(r"has \d+ files open and may have \d+.*ulimit -n")


def scarce(how: str, world: World) -> Any:
    before = leaks.find_things(world)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.scarce", how],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "\n".join(sorted(left))
    return json.loads(done.stdout)


@pytest.mark.once
def test_start_with_few_descriptors_is_refused_or_works(world: World) -> None:
    """With any number free: refused with a reason and without losing a descriptor, or it works."""
    tries = scarce("start", world)["tries"]
    for one in tries:
        before, after = one["open"]
        assert after <= before, one  # libzmq closes late what the kernel before has used
        if one["said"] and one["kind"] != "OSError":  # OSError comes from Jupyter
            assert re.search("too many (open )?files", one["said"], re.I), one
            assert one["kind"] in ("LaunchError", "StateError"), one
            if one["kind"] == "LaunchError":
                assert HINT.search(one["said"]), one
    assert tries[1]["said"]
    assert not tries[-1]["said"]


@pytest.mark.once
def test_the_limit_is_raised_when_a_start_would_find_no_room(world: World) -> None:
    """Not before: a program without descriptors above 1023 may use select."""
    done = scarce("raised", world)
    usual, with_room, scarce_one, raised = done["limits"]
    assert usual == with_room
    assert scarce_one < raised <= MAX_OPEN_FILES
    assert done["works"]


@pytest.mark.once
def test_too_few_descriptors_for_runsc_are_named(world: World) -> None:
    assert "runsc may open 256 files and needs up to 4096" in scarce("runsc", world)["said"]


def test_running_kernel_survives_without_descriptors(world: World) -> None:
    """Cells run and can be interrupted; what fails now works afterwards."""
    done = scarce("run", world)
    assert all(done["works"]), done
    assert not done["said"] or "too many" in done["said"].lower(), done
