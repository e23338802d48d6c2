# Interactive figures.

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

# %%
random = np.random.default_rng(8)
table = pd.DataFrame(random.normal(size=(20_000, 3)), columns=["x", "y", "size"]).abs()
table["kind"] = random.choice(["one", "two", "three"], len(table))

# %% scatter of 20,000 points by plotly
figure = px.scatter(table, x="x", y="y", color="kind", opacity=0.4)
figure

# %%
px.histogram(table, x="x", color="kind", marginal="box", nbins=60)

# %%
surface = go.Figure(go.Surface(z=np.outer(np.sin(np.arange(100) / 9), np.cos(np.arange(100) / 9))))
surface.update_layout(title="a surface", width=600)
surface

# %%
len(figure.to_html(include_plotlyjs="cdn")), len(surface.to_json())
