# Statistical plots.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

# %%
sns.set_theme()
random = np.random.default_rng(7)
kinds = random.choice(["Adelie", "Gentoo", "Chinstrap"], 330)
birds = pd.DataFrame({"kind": kinds, "sex": random.choice(["f", "m"], 330)})
for column, middle in (("bill", 44.0), ("depth", 17.0), ("mass", 4200.0)):
    birds[column] = middle * (1 + birds["kind"].str.len() / 50) + random.normal(size=330)
birds.head()

# %% seaborn's pairplot
sns.pairplot(birds, hue="kind", height=1.6)
plt.show()

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4))
sns.boxplot(birds, x="kind", y="mass", hue="sex", ax=axes[0])
sns.violinplot(birds, x="kind", y="bill", ax=axes[1])
sns.heatmap(birds[["bill", "depth", "mass"]].corr(), annot=True, ax=axes[2])
plt.show()

# %%
sns.relplot(birds, x="bill", y="depth", col="kind", style="sex", height=2.5)
plt.show()
