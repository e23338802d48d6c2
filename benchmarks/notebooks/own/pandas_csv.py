# Sales of a year: what most notebooks with a table begin with.

# %%
import tempfile

import numpy as np
import pandas as pd

# %% read_csv of 20 MB
sales = pd.read_csv("sales.csv", parse_dates=["when"])
sales.info()

# %%
sales.head()

# %%
sales.describe(include="all")

# %% value_counts of strings
sales["shop"].value_counts().head(10)

# %% strings of 300,000 rows
city = sales["shop"].str.rsplit(n=1).str[0].str.upper()
late = sales["comment"].fillna("").str.contains("late|broken", case=False)
pd.crosstab(city, late, normalize="index")

# %% groupby, sort, merge of 300,000 rows
sales["amount"] = sales["price"] * sales["count"]
by_shop = sales.groupby(["shop", sales["when"].dt.month])["amount"].agg(["sum", "mean", "max"])
ordered = sales.sort_values(["amount", "when"], ascending=False)
articles = pd.DataFrame({"article": np.arange(5_000), "group": np.arange(5_000) % 40})
merged = ordered.merge(articles, on="article", how="left")
merged.groupby("group")["amount"].sum().nlargest(5)

# %%
pivot = merged.pivot_table(index="group", columns=merged["when"].dt.quarter, values="amount")
pivot.style.background_gradient().to_html()[:100]

# %%
with tempfile.TemporaryFile() as file:
    merged.drop_duplicates(["shop", "article"]).to_csv(file, index=False)
