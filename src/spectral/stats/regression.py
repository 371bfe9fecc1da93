"""Cross-validated regressions: how much of one column the others predict, on rows not seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from spectral.errors import SpectralError, check_choice
from spectral.stats.dependence import find_pearson
from spectral.stats.estimate import average_clusters
from spectral.stats.reading import (
    Matrix,
    Vector,
    check_lengths,
    expand_percentiles,
    is_constant,
    read_clusters,
    read_vector,
    resample_sums,
)
from spectral.table.schema import with_bounds

ESTIMATORS = ("ridge", "forest", "best single layer")
TREES = 100  # of a forest
SHUFFLES = 5  # of each column

_Predict = Callable[[Matrix], Vector]
_Fit = Callable[[Matrix, Vector, int], tuple[_Predict, dict[str, Vector]]]


@dataclass(frozen=True)
class Regression:
    """``scores`` has a row per estimator, ``importances`` one per estimator, measure and layer."""

    scores: pd.DataFrame
    importances: pd.DataFrame


def regress_cross_validated(
    X: pd.DataFrame,
    y: ArrayLike,
    clusters: ArrayLike | None = None,
    seed: int = 0,
    folds: int = 5,
    repeats: int = 5,
    estimators: Sequence[str] = ESTIMATORS,
) -> Regression:
    """How much of y the layers together predict, on photographs that the fit has not seen.

    Given ``clusters``, all of it is of the clusters' means, so that no photograph is in training and test.

    Three estimators: ``ridge`` (linear, standardised, penalty chosen within the training folds), ``forest``
    (extremely randomised trees, nonlinear) and ``best single layer`` (a line on the column that correlates
    best within the training folds). R² is 1 − Σ(y − ŷ)²/Σ(y − ȳ)² over out-of-fold predictions, averaged over
    ``repeats`` partitions; below 0 it predicts worse than the mean. ``r2_std_repeats`` is its spread over
    partitions; the interval comes from resampling clusters, which partitions alone would hide.

    The importances' measures: ``permutation`` (drop in R² when the layer is shuffled within the held-out
    fold), ``coefficient`` (of ridge, in standard deviations of y per standard deviation of the layer) and
    ``chosen`` (share of the fits in which it was the best single layer), as mean and std over all fits.

    Args:
        X: one row per image, one column per layer.
        y: what to predict, one value per image.
        clusters: one label per image, the photograph it was cut from; by default each is its own.
        seed: of partitions, trees and shuffles.
        folds: parts per partition.
        repeats: number of partitions.
        estimators: which of the three.

    Raises:
        SpectralError: X no table of finite numbers, unequal lengths, fewer than 4 clusters per fold, or an
            unknown estimator. A constant y gives NaN scores and a ``reason`` instead.

    Example:
        >>> x = np.linspace(-1.0, 1.0, 60)
        >>> table = regress_cross_validated(pd.DataFrame({"conv1": x}), 2 * x, repeats=1).scores
        >>> table["estimator"].tolist(), bool(table["r2"][0] > 0.99)
        (['ridge', 'forest', 'best single layer'], True)
    """
    n, layers, target = _read_regression(X, y, clusters, folds)
    for name in estimators:
        check_choice(name, _ESTIMATORS, "estimator", "regress_cross_validated")
    fits = {name: fit for name, fit in _ESTIMATORS.items() if name in estimators}
    rng = np.random.default_rng(seed)
    parts: list[tuple[str, str, Vector]] = []
    errors = {name: np.full((repeats, len(target)), math.nan) for name in fits}
    constant = is_constant(target)
    for repeat in range(0 if constant else repeats):
        fold_of = rng.permutation(np.arange(len(target)) % folds)
        for fold, (name, fit) in itertools.product(range(folds), fits.items()):
            train, test = fold_of != fold, fold_of == fold
            predict, measures = fit(layers[train], target[train], seed + repeat)
            error = (target[test] - predict(layers[test])) ** 2
            errors[name][repeat, test] = error
            shuffled = _shuffle_each(predict, layers[test], target[test], rng)
            parts.append((name, "permutation", (shuffled - error.mean()) / target.var()))
            parts.extend((name, measure, values) for measure, values in measures.items())
    about = {
        "n": n,
        "n_clusters": len(target),
        "n_layers": layers.shape[1],
        "folds": folds,
        "repeats": repeats,
        "reason": "y is constant" if constant else "",
    }
    scores = [{"estimator": name, **_score(errors[name], target, seed), **about} for name in errors]
    return Regression(pd.DataFrame(scores), _average_importances(X.columns, parts))


def _fit_ridge(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))).fit(X, y)
    return model.predict, {"coefficient": model[-1].coef_ / (y.std() or 1.0)}


def _fit_forest(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    """Fit the trees of ``ExtraTreesRegressor(100, min_samples_leaf=5)``, without what it does around each.

    On the few clusters of a study, its scheduler takes longer than growing and asking the trees.
    """
    from sklearn import config_context
    from sklearn.tree import ExtraTreeRegressor
    from sklearn.utils import check_array

    draw = np.random.RandomState(seed)
    seeds = [draw.randint(np.iinfo(np.int32).max) for _ in range(TREES)]
    grown_on = check_array(X, dtype=np.float32)  # what trees take
    with config_context(skip_parameter_validation=True):
        trees = [
            ExtraTreeRegressor(min_samples_leaf=5, random_state=own).fit(grown_on, y, check_input=False).tree_
            for own in seeds
        ]

    def predict(new: Matrix) -> Vector:
        asked = check_array(new, dtype=np.float32)
        return np.asarray(sum(tree.predict(asked)[:, 0] for tree in trees) / TREES)

    return predict, {}


def _fit_best_single(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    r = np.nan_to_num([find_pearson(column, y) for column in X.T])
    best = int(np.argmax(np.abs(r)))
    slope = r[best] * y.std() / (X[:, best].std() or 1.0)
    centre = X[:, best].mean()
    chosen = np.eye(len(r))[best]
    return lambda new: y.mean() + slope * (new[:, best] - centre), {"chosen": chosen}


def _shuffle_each(predict: _Predict, X: Matrix, y: Vector, rng: np.random.Generator) -> Vector:
    """Return the mean squared error with each column shuffled; one large prediction beats many small ones."""
    n, k = X.shape
    tried = np.tile(X, (k, SHUFFLES, 1, 1))
    for column in range(k):
        tried[column, :, :, column] = rng.permuted(tried[column, :, :, column], axis=1)
    predicted = predict(tried.reshape(-1, k)).reshape(k, SHUFFLES, n)
    return np.asarray(((predicted - y) ** 2).mean(axis=(1, 2)))


def _read_regression(
    X: pd.DataFrame, y: ArrayLike, clusters: ArrayLike | None, folds: int
) -> tuple[int, Matrix, Vector]:
    """Return the number of images, and the clusters' means of all columns and of y."""
    name = "regress_cross_validated"
    if not isinstance(X, pd.DataFrame) or X.shape[1] == 0:
        raise SpectralError(
            f"{name}: X must be a DataFrame with one column per layer, got {type(X).__name__}."
        )
    target = read_vector(name, "y", y)
    columns = [read_vector(name, f"column {label!r} of X", X[label]) for label in X]
    check_lengths(name, {"X": X, "y": target})
    codes = read_clusters(name, clusters, len(target), fewest=1)
    averaged = average_clusters(target, codes)
    if folds < 2 or len(averaged) < 4 * folds:
        raise SpectralError(
            f"{name}: needs at least 2 folds with 4 clusters each, got {folds} folds for {len(averaged)} "
            f"clusters; use fewer folds or more photographs."
        )
    return len(target), np.column_stack([average_clusters(column, codes) for column in columns]), averaged


def _score(errors: Matrix, y: Vector, seed: int) -> dict[str, float]:
    """Return R² from (repeats, N) squared errors, its interval over rows and its spread over repeats."""
    if np.isnan(errors).any():
        return dict.fromkeys(("r2", *with_bounds("r2")[1:], "r2_std_repeats"), math.nan)
    deviation = (y - y.mean()) ** 2
    r2 = 1 - errors.mean(axis=1) / deviation.mean()
    sums = resample_sums(np.column_stack([errors.mean(axis=0), deviation]), 2000, seed)
    low, high = expand_percentiles(1 - sums[:, 0] / sums[:, 1], len(y))
    spread = float(r2.std(ddof=1)) if len(r2) > 1 else math.nan
    bounds = dict(zip(with_bounds("r2"), (float(r2.mean()), low, high), strict=True))
    return {**bounds, "r2_std_repeats": spread}


def _average_importances(layers: pd.Index, parts: list[tuple[str, str, Vector]]) -> pd.DataFrame:
    keys = ["estimator", "measure", "layer"]
    rows = [(name, measure, *pair) for name, measure, fit in parts for pair in zip(layers, fit, strict=True)]
    fits = pd.DataFrame(rows, columns=[*keys, "fit"])
    return fits.groupby(keys, sort=False)["fit"].agg(["mean", "std"]).reset_index()


_ESTIMATORS: dict[str, _Fit] = dict(zip(ESTIMATORS, (_fit_ridge, _fit_forest, _fit_best_single), strict=True))
