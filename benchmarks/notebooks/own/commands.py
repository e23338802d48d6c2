# Programs, a shell, and many small files.

# %%
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

# %% !ls
# !ls small | head -3

# %% subprocess.run of true
for _ in range(10):
    subprocess.run(["true"], check=True)

# %% a shell pipe
subprocess.run("cat small/*.csv | sort | uniq | wc -l", shell=True, capture_output=True).stdout

# %%
version = [sys.executable, "-c", "import sys; print(sys.version)"]
subprocess.run(version, capture_output=True, text=True).stdout[:4]

# %% 200 small files
rows = 0
for path in sorted(Path("small").glob("*.csv")):
    with path.open() as file:
        rows += sum(int(row[2]) for row in csv.reader(file))
rows

# %% 500 files written and removed
with tempfile.TemporaryDirectory() as folder:
    for number in range(500):
        Path(folder, str(number)).write_text("x" * number)
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
size

# %%
# !echo one; echo two
