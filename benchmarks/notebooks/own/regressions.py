# Regressions and their summaries.

# %%
import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf

# %%
random = np.random.default_rng(10)
table = pd.DataFrame(random.normal(size=(20_000, 4)), columns=list("abcd"))
table["group"] = random.choice(["x", "y", "z"], len(table))
table["result"] = 2 * table["a"] - table["b"] + random.normal(size=len(table))
table["bought"] = (table["result"] > 0).astype(int)

# %% least squares by statsmodels
model = smf.ols("result ~ a + b * c + C(group)", table).fit()
model.summary()

# %%
sm.stats.anova_lm(model, typ=2)

# %%
smf.logit("bought ~ a + b + c", table).fit(disp=0).params

# %% seasonal model of statsmodels
steps = np.arange(240)
series = pd.Series(steps / 20 + 3 * np.sin(steps * np.pi / 6) + random.normal(size=240))
sm.tsa.ExponentialSmoothing(series, trend="add", seasonal="add", seasonal_periods=12).fit().sse

# %%
sm.tsa.seasonal_decompose(series, period=12).trend.dropna().head()
