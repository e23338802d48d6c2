# A pipeline, a grid search and some models.

# %%
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# %%
digits = load_digits()
train, test, labels, truth = train_test_split(digits.data, digits.target, random_state=1)
train.shape

# %% grid search
pipeline = make_pipeline(StandardScaler(), PCA(), LogisticRegression(max_iter=200))
grid = {"pca__n_components": [10, 20], "logisticregression__C": [0.1, 1.0]}
search = GridSearchCV(pipeline, grid, cv=3).fit(train, labels)
search.best_params_

# %%
print(classification_report(truth, search.predict(test)))
search

# %% KNN
neighbours = KNeighborsClassifier().fit(train, labels)
np.mean([neighbours.score(test, truth) for _ in range(10)])

# %% random forest
forest = RandomForestClassifier(60, random_state=1).fit(train, labels)
confusion_matrix(truth, forest.predict(test))

# %% random forest, n_jobs=2
RandomForestClassifier(60, n_jobs=2, random_state=1).fit(train, labels).score(test, truth)

# %%
points, kinds = make_classification(1_500, 10, random_state=1)
columns = ColumnTransformer([("scaled", StandardScaler(), [0, 1, 2])], remainder="passthrough")
boosted = make_pipeline(columns, GradientBoostingClassifier(n_estimators=40, random_state=1))
boosted.fit(points, kinds).score(points, kinds)
