"""Results of a run: samples by figure and variant, and the reasons for what is missing."""

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
    """``samples``: figure → variant → values. ``absent``: variant → why it was not measured.

    ``failures``: (variant, figure or stage, reason) of each measurement that failed.
    ``facts``: variant → facts about its kernels.
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
        """Return a quantile of the samples; None if there are none."""
        values = self.values(figure, variant)
        return quantile(values, share) if values else None

    def ratio(
        self, figure: str, variant: str, share: float = 0.5, base: str = BASELINE
    ) -> float | None:
        """Return the variant's quantile divided by the baseline's; None if one is missing."""
        value = self.value(figure, variant, share)
        reference = self.value(figure, base, share)
        return value / reference if value is not None and reference else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"format": FORMAT, **self.__dict__}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        content = json.loads(path.read_text())
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} does not have the format {FORMAT} of this program")
        content["failures"] = [tuple(failure) for failure in content["failures"]]
        return cls(**content)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` quantile, with linear interpolation between two values."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
