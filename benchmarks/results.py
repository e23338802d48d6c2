"""What a run found out: samples by figure and variant, and what could not be had and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.variants import BASELINE

FORMAT = 1


@dataclass
class Results:
    """``samples``: figure → variant → values. ``absent``: variant → why there is nothing of it.

    ``failures``: (variant, figure or stage, reason) of what was tried and did not work.
    ``facts``: variant → what was found out about its kernels.
    """

    machine: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    variants: list[str] = field(default_factory=list)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, variant: str, samples: Mapping[str, Sequence[float]]) -> None:
        for figure, values in samples.items():
            self.samples.setdefault(figure, {}).setdefault(variant, []).extend(values)

    def values(self, figure: str, variant: str) -> list[float]:
        return self.samples.get(figure, {}).get(variant, [])

    def value(self, figure: str, variant: str, share: float = 0.5) -> float | None:
        """A quantile of the samples; None where there are none."""
        values = self.values(figure, variant)
        return quantile(values, share) if values else None

    def ratio(
        self, figure: str, variant: str, share: float = 0.5, base: str = BASELINE
    ) -> float | None:
        """The variant's quantile over the baseline's; None where there is no such thing."""
        value = self.value(figure, variant, share)
        reference = self.value(figure, base, share)
        return value / reference if value is not None and reference else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"format": FORMAT, **self.__dict__}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        content = json.loads(path.read_text())
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not of the format that this program writes")
        content["failures"] = [tuple(failure) for failure in content["failures"]]
        return cls(**content)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed, between two of them by proportion."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
