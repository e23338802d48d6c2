"""What the search for leftovers says of sandboxes of other runs, which end meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import leaks


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cgroup, as one has while its sandbox starts or ends."""
    path = tmp_path / "gvisor-kernel" / "of-another-run"
    path.mkdir(parents=True)
    monkeypatch.setattr(leaks, "SEARCH_SECONDS", 0)
    monkeypatch.setattr(leaks, "GRACE_SECONDS", 0.2)
    return path


def find(cgroup: Path) -> leaks.Things:
    return leaks.find_leftovers(frozenset(), lambda: frozenset({f"{leaks.CGROUP}{cgroup}"}))


def test_what_nobody_has_is_left(cgroup: Path) -> None:
    assert find(cgroup) == {f"{leaks.CGROUP}{cgroup}"}


@pytest.mark.parametrize(("ends_at", "grace"), [(1, 0), (2, 0.2)])
def test_a_sandbox_of_another_run_may_end_during_the_search(
    ends_at: int, grace: float, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last search it is not found any more; or it is, and would not be in another one."""
    monkeypatch.setattr(leaks, "GRACE_SECONDS", grace)
    searches = 0

    def search(wanted: set[str]) -> set[str]:
        nonlocal searches
        searches += 1
        if searches == ends_at:
            cgroup.rmdir()
        return wanted if searches < ends_at else set()

    monkeypatch.setattr(leaks, "_sandboxes_of_other_runs", search)
    assert not find(cgroup)
