# Arrays, small and large.

# %%
import numpy as np
import pandas as pd

random = np.random.default_rng(20)

# %% np.ones of 64 MB
np.ones(64_000_000 // 8).sum()

# %% sum of four frames of 50,000 rows
frames = [pd.DataFrame(random.random((50_000, 100))) for _ in range(4)]
sum(frames[1:], frames[0]).iloc[0, :3]

# %% matrices of 1,000 rows
a, b = random.random((2, 1_000, 1_000))
np.linalg.norm(a @ b), np.linalg.solve(a, b).shape

# %%
signal = random.normal(size=1 << 18)
np.abs(np.fft.rfft(signal))[:3]

# %% 20,000 small arrays
total = 0.0
for number in range(20_000):
    total += np.sqrt(np.arange(10) + number).mean()
total

# %%
sorted_ = np.sort(random.random(1_000_000))
np.searchsorted(sorted_, [0.1, 0.5, 0.9]), np.unique(random.integers(0, 9, 500_000))

# %%
cube = random.random((200, 200, 100))
(cube - cube.mean(axis=0)).std(axis=(1, 2))[:3]
