"""Tests of the benchmarks' computations: quantiles, ratios, tables, memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import figures, plots, processes, report
from benchmarks.results import Results, quantile
from benchmarks.variants import BASELINE, VARIANTS, Variant, choose, kernelspec

MACHINE = {
    **{"when": "2026-01-02T03:04:05+00:00", "commit": "0123456789", "cpus": 2, "cpu": "one"},
    **{"memory_gib": 8, "system": "Debian", "kernel": "6.1", "load": [0.1, 0.2, 0.3]},
    **{"python": "3.13.0", "runsc": "1"},
}
DIRECT = "snapshot, direct, root"
RELAY = "snapshot, relay, root"
PEER = "dockernel, runc"


@pytest.fixture
def results() -> Results:
    results = Results(MACHINE, variants=[BASELINE, RELAY, DIRECT, PEER])
    results.add(BASELINE, {figures.FIRST: [0.5, 0.6, 0.7], figures.TRIP: [0.004, 0.006]})
    results.add(DIRECT, {figures.FIRST: [0.30, 0.30], figures.TRIP: [0.006, 0.006]})
    results.add(DIRECT, {figures.TRIP_ALONE: [0.010], figures.TRIP_CROWDED: [0.0105]})
    results.add(DIRECT, {figures.IDLE_CPU: [0.3]})
    results.add(RELAY, {figures.FIRST: [0.42]})
    results.absent[PEER] = "no Docker engine answers"
    return results


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.5, 5.0),
        ([5.0], 0.99, 5.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([float(n) for n in range(101)], 0.9, 90.0),
        ([float(n) for n in range(101)], 0.99, 99.0),
        ([0.0, 10.0], 0.9, 9.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_quantile_interpolates_linearly(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == pytest.approx(expected)


def test_ratios_are_to_the_local_kernel_of_the_same_run(results: Results) -> None:
    assert results.ratio(figures.FIRST, DIRECT) == pytest.approx(0.5)
    assert results.ratio(figures.TRIP, DIRECT) == pytest.approx(1.2)
    assert results.ratio(figures.FIRST, PEER) is None
    assert results.ratio(figures.IDLE_CPU, DIRECT) is None


def test_results_can_be_written_and_read_back(results: Results, tmp_path: Path) -> None:
    results.failures.append((DIRECT, "trips", "it broke"))
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_targets_compare_ratio_value_or_own_base(results: Results) -> None:
    lines = report.targets_table(results).splitlines()
    row = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    restored = row["the same, restored, nothing preloaded"]
    assert "| ≤ 0.8 | 0.5 ✓ | 0.7 ✓ | - | - |" in restored
    assert "| ≤ 1.1 | 1.2 ✗ | - | - | - |" in row["`1+1`, direct, p50"]
    assert "| ≤ 0.2 % of a core | 0.3 ✗ |" in row["idle CPU"]
    assert "1.05 ✓" in row["`1+1` with 30 idle neighbours, over alone, p50"]


def test_tables_show_ratios_and_absent_variants(results: Results) -> None:
    text = report.render(results)
    assert f"| {BASELINE} | 0.6 |" in text
    assert f"| {DIRECT} | 0.3 (0.50) |" in text
    assert f"| {PEER} | absent |" in text
    assert f"- {PEER}: absent. no Docker engine answers" in text


def test_write_docs_keeps_text_around_the_results(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{report.BEGIN}\nreplaced\n{report.END}\nafter\n")
    report.write_docs(results, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "replaced" not in text
    assert "### Targets" in text
    path.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        report.write_docs(results, path)


def test_each_measured_group_has_a_plot(results: Results, tmp_path: Path) -> None:
    drawn = plots.draw(results, tmp_path)
    assert {path.name for path in drawn} == {"start.png", "trips.png", "idle.png", "neighbours.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_memory_file_counts_once_and_whole() -> None:
    """A sentry and its stubs share one file, of which several processes map a part."""
    size = 8 * 1024**2
    before = processes.memory([psutil.Process()])
    fd = os.memfd_create("benchmark")
    try:
        os.truncate(fd, 2 * size)
        os.pwrite(fd, b"x" * size, 0)
        with mmap.mmap(fd, size // 2) as mapped:
            assert mapped[0] == ord("x")
            assert sum(mapped[i] for i in range(0, len(mapped), 4096)) > 0  # all pages are mapped
            code = "import sys; print(flush=True); sys.stdin.read()"
            with subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[fd],
            ) as other:
                assert other.stdout is not None
                other.stdout.readline()
                found = processes.memory([psutil.Process(), psutil.Process(other.pid)])
                other.kill()
    finally:
        os.close(fd)
    assert found.unseen == 0
    assert found.files - before.files == size
    assert found.processes - before.processes < 32 * 1024**2  # the other's interpreter
    assert found.mib == (found.processes + found.files) / 1024**2


def test_mappings_are_read_with_their_names() -> None:
    text = (
        "7f00-7f10 rw-s 00000000 00:01 77                 /memfd:runsc-memory (deleted)\n"
        "Size:                 64 kB\nRss:      64 kB\nPss:      32 kB\nPss_Dirty:  32 kB\n"
        "7f10-7f20 rw-p 00000000 00:00 0 \nPss:       4 kB\nVmFlags: rd wr\n"
    )
    assert list(processes.read_smaps(text)) == [
        ("/memfd:runsc-memory (deleted)", 77, 32 * 1024),
        ("", 0, 4 * 1024),
    ]


def test_cpu_seconds_has_fine_resolution() -> None:
    own = [psutil.Process()]
    before = processes.cpu_seconds(own)
    while processes.cpu_seconds(own) == before:
        sum(range(10_000))
    assert processes.cpu_seconds([psutil.Process(1)]) >= 0


def test_choose_matches_names_and_includes_baseline() -> None:
    names = [variant.name for variant in choose(["snapshot, *, user"])]
    assert names == [BASELINE, "snapshot, relay, user", "snapshot, direct, user"]
    assert len(choose([])) == len(VARIANTS)
    assert len({variant.code for variant in VARIANTS}) == len(VARIANTS)
    with pytest.raises(ValueError, match="no variant"):
        choose(["nonsense"])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.code)
def test_every_variant_has_a_kernelspec(variant: Variant) -> None:
    spec = kernelspec(variant, "image:latest")
    assert spec["argv"][0] == sys.executable
    if variant.kind in ("dockernel", "gateway"):
        assert variant.oci_runtime in spec["argv"]
        assert "image:latest" in str(spec)
    if variant.kind == "ours":
        stanza = spec["metadata"]["kernel_provisioner"]
        assert stanza == {
            "provisioner_name": "gvisor-provisioner",
            "config": variant.settings,
        }
