# SQL: sqlite in a file, and duckdb on files.

# %%
import csv
import sqlite3
import tempfile

import duckdb

# %% sqlite: 50,000 rows in a file
folder = tempfile.TemporaryDirectory()
base = sqlite3.connect(f"{folder.name}/shop.sqlite")
base.execute("CREATE TABLE sales (whole TEXT, shop TEXT, article INT, price REAL, count INT)")
with open("sales.csv") as file:
    rows = [row[:5] for row, _ in zip(csv.reader(file), range(50_000))]
with base:
    base.executemany("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", rows)
    base.execute("CREATE INDEX by_shop ON sales (shop)")

# %%
base.execute("SELECT shop, sum(price * count) s FROM sales GROUP BY 1 ORDER BY s DESC").fetchmany(5)

# %% sqlite: 50 small transactions
for number in range(50):
    with base:
        base.execute("UPDATE sales SET count = count + 1 WHERE article = ?", (number,))

# %% duckdb on CSV and Parquet
cities = duckdb.sql("SELECT shop, sum(price * count) s FROM 'sales.csv' GROUP BY 1 ORDER BY s")
cities.fetchall()[:3]

# %%
base.close()
duckdb.sql("SELECT station, avg(sensor0) a FROM 'sensors.parquet' GROUP BY 1 ORDER BY a LIMIT 5")
