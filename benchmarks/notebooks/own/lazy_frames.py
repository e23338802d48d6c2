# The same sales by polars, eager and lazy.

# %%
import tempfile

import polars as pl

# %% scan_csv and group_by of polars
sales = pl.scan_csv("sales.csv", try_parse_dates=True)
by_shop = (
    sales.with_columns(amount=pl.col("price") * pl.col("count"))
    .group_by("shop")
    .agg(pl.col("amount").sum(), pl.col("price").mean(), pl.len())
    .sort("amount", descending=True)
    .collect()
)
by_shop.head()

# %%
table = pl.read_csv("sales.csv", try_parse_dates=True)
table.describe()

# %%
table.with_columns(city=pl.col("shop").str.replace(r" \d+$", "")).pivot(
    "comment", index="city", values="price", aggregate_function="mean"
)

# %%
joined = table.join(by_shop.select("shop", total="amount"), on="shop").sort("when")
joined.group_by_dynamic("when", every="1w").agg(pl.col("price").quantile(0.9)).head()

# %%
with tempfile.NamedTemporaryFile() as file:
    joined.write_parquet(file.name)
    columns = pl.read_parquet(file.name, columns=["shop", "total"])
columns.n_unique()
