# A time series by hour: resampling, rolling means, time zones, and a plot of it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

# %matplotlib inline

# %%
random = np.random.default_rng(4)
index = pd.date_range("2015-01-01", periods=90_000, freq="h", tz="Europe/Rome")
hours = np.arange(len(index))
load = 50 + 10 * np.sin(hours * 2 * np.pi / 24) + random.normal(0, 3, len(index))
series = pd.Series(load, index=index, name="load")
series.head(3)

# %% resample and rolling means
daily = series.resample("D").agg(["mean", "min", "max"])
weekly = series.rolling("7D").mean()
shifted = pd.concat({lag: series.shift(lag) for lag in (1, 24, 168)}, axis=1).dropna()
shifted.corrwith(series)

# %%
by_hour = series.groupby([series.index.month, series.index.hour]).mean().unstack()
by_hour.round(1).iloc[:3, :6]

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
daily["mean"].plot(ax=axes[0], title="by day")
weekly.iloc[::24].plot(ax=axes[1], title="rolling week")
plt.tight_layout()

# %%
series.tz_convert("America/New_York").index.strftime("%d.%m.%Y %H:%M")[:5]
