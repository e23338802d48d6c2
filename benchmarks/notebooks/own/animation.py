# An animation of matplotlib, as a page with scripts.

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib import animation

# %%
figure, axis = plt.subplots(figsize=(5, 3))
axis.set_xlim(0, 2 * np.pi)
axis.set_ylim(-1.2, 1.2)
axis.set_title("a wave")
(line,) = axis.plot([], [], lw=2)
x = np.linspace(0, 2 * np.pi, 200)


def draw(frame):
    line.set_data(x, np.sin(x + frame / 5))
    return (line,)


# %% animation of 30 frames
film = animation.FuncAnimation(figure, draw, frames=30, interval=40, blit=True)
page = film.to_jshtml()
plt.close(figure)

# %%
HTML(page[:1000] + "…")
