"""Cross-validated regressions: how much of one column the others predict, on rows not seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from spectral.errors import SpectralError
from spectral.stats.dependence import _pearson
from spectral.stats.reading import (
    Codes,
    Matrix,
    Vector,
    check_lengths,
    expand_percentiles,
    is_constant,
    read_clusters,
    read_vector,
    resample_sums,
)

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
) -> Regression:
    """How much of y the layers together predict, on images that the fit has not seen.

    Three estimators: ``ridge`` (linear, standardised, penalty chosen within the training folds), ``forest``
    (extremely randomised trees, nonlinear) and ``best single layer`` (a line on the column that correlates
    best within the training folds). R² is 1 − Σ(y − ŷ)²/Σ(y − ȳ)² over out-of-fold predictions, averaged over
    ``repeats`` partitions; below 0 it predicts worse than the mean. ``r2_std_repeats`` is its spread over
    partitions; the interval comes from resampling images (or clusters), which partitions alone would hide.

    The importances' measures: ``permutation`` (drop in R² when the layer is shuffled within the held-out
    fold), ``coefficient`` (of ridge, in standard deviations of y per standard deviation of the layer) and
    ``chosen`` (share of the fits in which it was the best single layer), as mean and std over all fits.

    Args:
        X: one row per image, one column per layer.
        y: what to predict, one value per image.
        clusters: one label per image; images of one cluster never straddle training and test.
        seed: of partitions, trees and shuffles.
        folds: parts per partition.
        repeats: number of partitions.

    Raises:
        SpectralError: X no table of finite numbers, unequal lengths, fewer than 4 images per fold, or fewer
            clusters than folds. A constant y gives NaN scores and a ``reason`` instead.

    Example:
        >>> x = np.linspace(-1.0, 1.0, 60)
        >>> table = regress_cross_validated(pd.DataFrame({"conv1": x}), 2 * x, repeats=1).scores
        >>> table["estimator"].tolist(), bool(table["r2"][0] > 0.99)
        (['ridge', 'forest', 'best single layer'], True)
    """
    layers, target, codes = _read_regression(X, y, clusters, folds)
    rng = np.random.default_rng(seed)
    parts: list[tuple[str, str, Vector]] = []
    errors = {name: np.full((repeats, len(target)), math.nan) for name in _ESTIMATORS}
    constant = is_constant(target)
    for repeat in range(0 if constant else repeats):
        fold_of = _assign_folds(codes, folds, rng)
        for fold, (name, fit) in itertools.product(range(folds), _ESTIMATORS.items()):
            train, test = fold_of != fold, fold_of == fold
            predict, measures = fit(layers[train], target[train], seed + repeat)
            error = (target[test] - predict(layers[test])) ** 2
            errors[name][repeat, test] = error
            shuffled = _shuffle_each(predict, layers[test], target[test], rng)
            parts.append((name, "permutation", (shuffled - error.mean()) / target.var()))
            parts.extend((name, measure, values) for measure, values in measures.items())
    about = {
        "n": len(target),
        "n_clusters": None if clusters is None else int(codes.max()) + 1,
        "n_layers": layers.shape[1],
        "folds": folds,
        "repeats": repeats,
        "reason": "y is constant" if constant else "",
    }
    scores = [{"estimator": name, **_score(errors[name], target, codes, seed), **about} for name in errors]
    return Regression(pd.DataFrame(scores), _average_importances(X.columns, parts))


def _fit_ridge(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))).fit(X, y)
    return model.predict, {"coefficient": model[-1].coef_ / (y.std() or 1.0)}


def _fit_forest(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(100, min_samples_leaf=5, random_state=seed, n_jobs=1).fit(X, y)
    return model.predict, {}


def _fit_best_single(X: Matrix, y: Vector, seed: int) -> tuple[_Predict, dict[str, Vector]]:
    r = np.nan_to_num([_pearson(column, y) for column in X.T])
    best = int(np.argmax(np.abs(r)))
    slope = r[best] * y.std() / (X[:, best].std() or 1.0)
    centre = X[:, best].mean()
    chosen = np.eye(len(r))[best]
    return lambda new: y.mean() + slope * (new[:, best] - centre), {"chosen": chosen}


def _assign_folds(codes: Codes, folds: int, rng: np.random.Generator) -> Codes:
    """Give whole clusters to folds, the largest first, each to the fold that is emptiest so far."""
    sizes = np.bincount(codes)
    shuffled = rng.permutation(len(sizes))
    fold_of, filled = np.empty(len(sizes), dtype=np.intp), np.zeros(folds)
    for cluster in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[cluster] = filled.argmin()
        filled[fold_of[cluster]] += sizes[cluster]
    return np.asarray(fold_of[codes])


def _shuffle_each(
    predict: _Predict, X: Matrix, y: Vector, rng: np.random.Generator, times: int = 5
) -> Vector:
    """Return the mean squared error with each column shuffled; one large prediction beats many small ones."""
    n, k = X.shape
    tried = np.tile(X, (k, times, 1, 1))
    for column in range(k):
        tried[column, :, :, column] = rng.permuted(tried[column, :, :, column], axis=1)
    predicted = predict(tried.reshape(-1, k)).reshape(k, times, n)
    return np.asarray(((predicted - y) ** 2).mean(axis=(1, 2)))


def _read_regression(
    X: pd.DataFrame, y: ArrayLike, clusters: ArrayLike | None, folds: int
) -> tuple[Matrix, Vector, Codes]:
    name = "regress_cross_validated"
    if not isinstance(X, pd.DataFrame) or X.shape[1] == 0:
        raise SpectralError(
            f"{name}: X must be a DataFrame with one column per layer, got {type(X).__name__}."
        )
    target = read_vector(name, "y", y)
    columns = [read_vector(name, f"column {label!r} of X", X[label]) for label in X]
    check_lengths(name, {"X": X, "y": target})
    if folds < 2 or len(target) < 4 * folds:
        raise SpectralError(
            f"{name}: needs at least 2 folds with 4 images each, got {folds} folds for {len(target)} images; "
            f"use fewer folds or more images."
        )
    codes = np.arange(len(target)) if clusters is None else read_clusters(name, clusters, len(target))
    if codes.max() + 1 < folds:
        raise SpectralError(
            f"{name}: needs at least as many clusters as folds, got {codes.max() + 1} for {folds}."
        )
    return np.column_stack(columns), target, codes


def _score(errors: Matrix, y: Vector, codes: Codes, seed: int) -> dict[str, float]:
    """Return R² from (repeats, N) squared errors, its interval over clusters and its spread over repeats."""
    if np.isnan(errors).any():
        return dict.fromkeys(("r2", "ci_low", "ci_high", "r2_std_repeats"), math.nan)
    deviation = (y - y.mean()) ** 2
    r2 = 1 - errors.mean(axis=1) / deviation.mean()
    sums = resample_sums(np.column_stack([errors.mean(axis=0), deviation]), codes, 2000, seed)
    low, high = expand_percentiles(1 - sums[:, 0] / sums[:, 1], int(codes.max()) + 1)
    spread = float(r2.std(ddof=1)) if len(r2) > 1 else math.nan
    return {"r2": float(r2.mean()), "ci_low": low, "ci_high": high, "r2_std_repeats": spread}


def _average_importances(layers: pd.Index, parts: list[tuple[str, str, Vector]]) -> pd.DataFrame:
    keys = ["estimator", "measure", "layer"]
    rows = [(name, measure, *pair) for name, measure, fit in parts for pair in zip(layers, fit, strict=True)]
    fits = pd.DataFrame(rows, columns=[*keys, "fit"])
    return fits.groupby(keys, sort=False)["fit"].agg(["mean", "std"]).reset_index()


_ESTIMATORS: dict[str, _Fit] = {
    "ridge": _fit_ridge,
    "forest": _fit_forest,
    "best single layer": _fit_best_single,
}
