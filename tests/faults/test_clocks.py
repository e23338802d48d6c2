"""The host's wall clock jumps: no wait uses it, so none ends early, late, or never.

The wall clock is for display and for ages in lists. Its uses are listed here; all other code uses
the monotonic clock.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import leaks
from ..sweeps import needs_all
from ..world import PROJECT, World

WALL_CLOCK = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now"}
FOR_PEOPLE = {
    ("bridge/records.py", "record"): "the time of an entry of a transcript",
    ("bridge/wire.py", "new_message"): "the date of a message, as Jupyter has it",
    ("guest/preload.py", "try_module"): "which variables of a module are the time of its import",
    ("kernel/checkpoints.py", "_write"): "when a checkpoint was made; which is the oldest",
    ("kernel/snapshot_builder.py", "_make_once"): (
        "when a snapshot was made; which files are younger"
    ),
    ("snapshots/manifest.py", "make_manifest"): "which files have a time that is still to come",
    ("egress/audit.py", "_now"): "when a request was made",
    ("kernel/environment_builder.py", "_keep"): "when packages were installed",
    ("egress/package_cache.py", "_entries"): "which files were not used for longest",
    ("egress/package_cache.py", "open_file"): "when a file was used last",
    ("egress/package_catalog.py", "_find_page"): "the age of a page that another process fetched",
    ("host/log_files.py", "log_line"): "the time of a line in a log",
    ("node/files.py", "sweep_copies"): "how many days outputs have waited on a node",
    ("kernel/snapshot_queue.py", "was_left"): "how long ago another program left its builder",
    ("kernel/session.py", "_note_death"): "when a kernel died",
    ("releases/release_store.py", "publish"): "when a release was installed",
    ("releases/bucket.py", "fetch"): "which parts of downloads are a week old",
    ("runtimes/runsc/kept_programs.py", "sweep_copies"): "which copies nobody has used for an hour",
    ("kernel/saved_kernel.py", "save_as"): "when a kernel was saved",
    ("runtimes/state/kept_packages.py", "find_substitutes"): "when a kernel was saved",
    (
        "runtimes/state/kept_copies.py",
        "remove_copies",
    ): "which copies nobody has needed for an hour",
    ("kernel/branches.py", "_making"): "since when a branch exists",
    ("kernel/saved_budget.py", "remove_old"): "which saved kernels nobody has wanted for a month",
    ("kernel/saved_budget.py", "find_next"): "which of them are soon a month old",
    ("kernel/saved_budget.py", "find_removed"): "which were removed in the last week",
    ("runtimes/runsc/orphan.py", "save_orphan"): "when a kernel was saved",
    ("kernel/session.py", "_launch_or_undo"): "which files on disk changed after the start",
    ("artifacts/storage.py", "set_json"): "when a page has kept something",
    ("changes/backups.py", "begin"): "when changes were applied",
    ("server/handlers.py", "note_activity"): "when a person was active, as Jupyter has it",
    ("server/hibernating.py", "replace_culling"): "how long nobody was, as Jupyter has it",
    ("server/hibernating.py", "shutdown_no_activity"): "how long nobody was, as Jupyter has it",
    ("kernel/lost_files.py", "note_lost"): "when a file was lost",
    ("kernel/lost_files.py", "describe_lost"): "which losses are of the last week",
    ("kernel/lost_files.py", "_say"): "whether that was today",
    ("images/importer.py", "_fill"): "when an image was imported",
    ("runtimes/copies/contents.py", "_parents"): "the time of a folder in an archive",
    ("runtimes/copies/contents.py", "archive"): "the time of a file in an archive",
    ("runtimes/copies/contents.py", "list_files"): "which files are younger than a copy of them",
    (
        "runtimes/copies/outputs.py",
        "take_outputs",
    ): "which files are younger than a copy of them",
    ("runtimes/state/beginning.py", "first_record"): "when a sandbox was made",
    ("runtimes/mounts/folders.py", "open_inputs"): "which hidden files are older than a start",
    ("node/serve.py", "serve"): "how long a job of Slurm still has",
    ("runtimes/runsc/checks.py", "check_runsc"): "how old a release is, for doctor",
}
"""Functions that may read the wall clock, besides commands below cli/."""
TEN_YEARS = 10 * 365 * 86400


def wall_clocks() -> Iterator[tuple[str, str]]:
    """Yield module and function of each call that reads the wall clock."""
    for path in sorted((PROJECT / "gvisor_kernel").rglob("*.py")):
        text = path.read_text()
        for function in ast.walk(ast.parse(text)) if any(it in text for it in WALL_CLOCK) else ():
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in WALL_CLOCK:
                    yield str(path.relative_to(PROJECT / "gvisor_kernel")), function.name


@pytest.mark.once
def test_wall_clock_is_read_only_for_display() -> None:
    found = {place for place in wall_clocks() if not place[0].startswith("cli/")}
    assert found <= set(FOR_PEOPLE), "use time.monotonic(), or add the reason here"
    assert ("bridge/records.py", "record") in found


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(TEN_YEARS, marks=needs_all, id="forward"), pytest.param(-TEN_YEARS, id="back")],
)
def test_kernel_works_when_wall_clock_jumps(
    seconds: int, world: World, shared_snapshot: str, tmp_path: Path
) -> None:
    before = leaks.find_things(world)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.jumpy", str(seconds), str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert all(seen.values()), seen
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "\n".join(sorted(left))
