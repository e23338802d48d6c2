"""Files for the notebooks of ours, made once for a run: the same ones each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS = 300_000
LARGE_ROWS = 2_000_000
CITIES = ("Aarhus", "Bergen", "Córdoba", "Delft", "Évora", "Freiburg", "Graz", "Hàlle", "İzmir")


def make(folder: Path) -> None:
    """Write a CSV of 20 MB, two Parquet files of 10 and 130 MB where pyarrow is, and 200 files.

    Without numpy and pandas nothing is written: then the notebooks that read it are left out, too.
    """
    (folder / "small").mkdir(parents=True)
    for number in range(200):
        text = "".join(f"{number},{line},{line * number % 97}\n" for line in range(60))
        (folder / "small" / f"{number:03}.csv").write_text(text)
    try:
        import numpy as np
        import pandas as pd  # type: ignore[import-untyped]
    except ImportError:
        return
    random = np.random.default_rng(31)
    words = np.array([f"{city} {number}" for city in CITIES for number in range(60)])
    sales = pd.DataFrame(
        {
            "when": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(random.integers(0, 365 * 86_400, ROWS), "s"),
            "shop": random.choice(words, ROWS),
            "article": random.integers(0, 5_000, ROWS),
            "price": random.gamma(2.0, 20.0, ROWS).round(2),
            "count": random.poisson(3, ROWS),
            "comment": random.choice(np.array(["fine", "late", "Broken on arrival", ""]), ROWS),
        }
    )
    sales.to_csv(folder / "sales.csv", index=False)
    try:
        sales.to_parquet(folder / "sales.parquet")
        columns: dict[str, Any] = {
            f"sensor{number}": random.normal(size=LARGE_ROWS) for number in range(8)
        }
        columns["station"] = random.integers(0, 500, LARGE_ROWS)
        pd.DataFrame(columns).to_parquet(folder / "sensors.parquet")
    except ImportError:
        pass
