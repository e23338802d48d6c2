# Figures of every kind, with text.

# %%
import io

import matplotlib.pyplot as plt
import numpy as np

# %matplotlib inline
random = np.random.default_rng(5)
x = np.linspace(0, 10, 400)

# %% figure of four axes
figure, axes = plt.subplots(2, 2, figsize=(9, 6))
axes[0, 0].plot(x, np.sin(x), label="sine")
axes[0, 0].plot(x, np.cos(x), "--", label="cosine")
axes[0, 0].legend()
axes[0, 1].hist(random.normal(size=5_000), bins=40)
axes[1, 0].scatter(*random.normal(size=(2, 500)), c=random.random(500))
axes[1, 1].bar(["a", "b", "c", "d"], [3, 7, 2, 5])
for axis, title in zip(axes.flat, ("lines", "histogram", "points", "bars"), strict=True):
    axis.set_title(title)
    axis.set_xlabel("x")
    axis.set_ylabel("y")
figure.tight_layout()
plt.show()

# %%
grid = np.meshgrid(np.linspace(-3, 3, 120), np.linspace(-3, 3, 120))
height = np.exp(-(grid[0] ** 2) - grid[1] ** 2) * np.sin(3 * grid[0])
figure, axes = plt.subplots(1, 3, figsize=(12, 3.5))
figure.colorbar(axes[0].contourf(*grid, height, levels=20), ax=axes[0])
axes[1].imshow(height, cmap="viridis")
axes[2].streamplot(*grid, height, -height.T)
plt.show()

# %% figure with much text
figure, axis = plt.subplots(figsize=(8, 6))
for number, (at, up) in enumerate(random.random((80, 2))):
    axis.annotate(f"point {number}", (at, up), fontsize=6 + number % 5)
axis.set_title(r"$\sum_{i=0}^n \frac{\alpha_i}{\sqrt{1 + \beta^2}}$ and words: äöü ŝ λ")
plt.show()

# %%
figure = plt.figure(figsize=(9, 4))
figure.add_subplot(131, projection="3d").plot_surface(*grid, height, rstride=6, cstride=6)
figure.add_subplot(132, projection="polar").plot(x, x)
figure.add_subplot(133).boxplot(random.normal(size=(100, 6)))
for form in ("svg", "pdf", "png"):
    figure.savefig(io.BytesIO(), format=form)
plt.show()
