# Measurements of many stations: a file larger than what fits into a cache.

# %%
import tempfile

import pandas as pd
import pyarrow.parquet as pq

# %% read_parquet of 130 MB
sensors = pd.read_parquet("sensors.parquet")
sensors.shape

# %%
sensors.memory_usage(deep=True)

# %% frame of 2,000,000 rows: filter and arithmetic
warm = sensors[(sensors["sensor0"] > 0) & (sensors["sensor1"] < 1)]
scaled = (sensors - sensors.mean()) / sensors.std()
scaled.corr().round(2)

# %%
warm.groupby("station").mean().sort_values("sensor2").head()

# %%
pd.concat([warm, warm]).quantile([0.1, 0.5, 0.9])

# %%
table = pq.read_table("sales.parquet", columns=["shop", "price", "count"])
sales = table.to_pandas()
with tempfile.NamedTemporaryFile() as file:
    sales.groupby("shop").sum().to_parquet(file.name)
    again = pd.read_parquet(file.name)
again.head()
