# Work in several processes and threads.

# %%
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
from joblib import Parallel, delayed


# %%
def work(number):
    return sum(math.sqrt(i * number) for i in range(30_000))


# %% joblib with two workers
results = Parallel(n_jobs=2)(delayed(work)(number) for number in range(40))
round(sum(results))

# %% multiprocessing.Pool of two
with multiprocessing.get_context("fork").Pool(2) as pool:
    total = sum(pool.imap_unordered(work, range(40), chunksize=4))
round(total)

# %% threads: 200 tasks
with ThreadPoolExecutor(8) as threads:
    sums = list(threads.map(lambda n: np.arange(n * 100).sum(), range(200)))
int(max(sums))

# %%
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
    print(round(sum(executor.map(math.sqrt, range(100), chunksize=10))))

# %%
Parallel(n_jobs=4, prefer="threads")(delayed(math.isqrt)(number) for number in range(200))[-1]
