"""Means with intervals, paired comparisons, dependence and cross-validated regression.

Rows that share a photograph are not independent: given ``groups`` (one label per row, the photograph), the
photograph and not the crop is the unit. What the data do not determine is NaN with a ``reason``; what the
caller got wrong is a :class:`~spectral.errors.SpectralError`. Results are frozen dataclasses, and
``dataclasses.asdict`` makes a row of each. All intervals are 95 % intervals.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from spectral.errors import SpectralError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Codes = NDArray[np.intp]
CONFIDENCE = 0.95
_UPPER = (1 + CONFIDENCE) / 2
_ROUNDING = 4 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Summary:
    """A mean with its interval; ``n`` counts the rows in the mean, ``n_silent`` those left out of it."""

    n: int
    n_silent: int
    n_groups: int | None
    mean: float
    std: float
    median: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Interval:
    """A statistic, its interval, and the method that gave the interval."""

    estimate: float
    ci_low: float
    ci_high: float
    method: str


@dataclass(frozen=True)
class PairedComparison:
    """Differences a − b: tests and effect sizes; the ``_groups`` fields use one value per group."""

    n: int
    mean_a: float
    mean_b: float
    mean_difference: float
    ci_low: float
    ci_high: float
    t: float
    df: int
    p_t: float
    wilcoxon: float
    p_wilcoxon: float
    d_z: float
    rank_biserial: float
    n_groups: int | None
    mean_difference_groups: float
    ci_low_groups: float
    ci_high_groups: float
    t_groups: float
    p_groups: float


@dataclass(frozen=True)
class RelativeChange:
    """Change of the mean from a to b in percent of the mean of a."""

    n: int
    n_groups: int | None
    mean_a: float
    mean_b: float
    percent: float
    ci_low: float
    ci_high: float
    reason: str = ""


@dataclass(frozen=True)
class Proportion:
    """A share with its Wilson interval."""

    successes: int
    n: int
    proportion: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Correlation:
    """Three measures of dependence; NaN with a ``reason`` where the data determine none."""

    n: int
    n_groups: int | None
    pearson_r: float = math.nan
    pearson_low: float = math.nan
    pearson_high: float = math.nan
    pearson_p: float = math.nan
    r2: float = math.nan
    spearman_rho: float = math.nan
    spearman_low: float = math.nan
    spearman_high: float = math.nan
    spearman_p: float = math.nan
    distance_correlation: float = math.nan
    distance_corrected: float = math.nan
    distance_corrected_low: float = math.nan
    distance_corrected_high: float = math.nan
    distance_p: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class Regression:
    """``scores`` has a row per estimator, ``importances`` one per estimator, measure and layer."""

    scores: pd.DataFrame
    importances: pd.DataFrame


def summarize(
    values: ArrayLike, silent: ArrayLike | None = None, groups: ArrayLike | None = None, seed: int = 0
) -> Summary:
    """Mean, spread and median of one column, with an interval for the mean.

    Without ``groups`` the interval is Student's; with them it comes from :func:`cluster_bootstrap_interval`.
    One value, or one group, has a mean and a NaN interval; none (all silent) has only its counts.

    Args:
        values: one value per image.
        silent: True where the map was silent; those rows are counted and left out of everything else.
        groups: one label per image, the photograph it was cut from.
        seed: of the resampling; unused without ``groups``.

    Shape:
        values, silent and groups are (N,).

    Raises:
        SpectralError: no values, a value that is NaN or infinite, or columns of different lengths.

    Example:
        >>> result = summarize([0.0, 1.0, 2.0, 0.0], silent=[False, False, False, True])
        >>> result.n, result.n_silent, result.mean, result.std, round(result.ci_high, 3)
        (3, 1, 1.0, 1.0, 3.484)
    """
    raw = _read_vector("summarize", "values", values, finite=False)
    keep = np.ones(len(raw), dtype=bool) if silent is None else ~np.asarray(silent, dtype=bool)
    _check_lengths("summarize", {"values": raw, "silent": keep})
    if groups is not None:
        _check_lengths("summarize", {"values": raw, "groups": groups})
        groups = np.asarray(groups)[keep]
    n, n_silent = int(keep.sum()), int((~keep).sum())
    if n == 0:
        return Summary(0, n_silent, None if groups is None else 0, *[math.nan] * 5)
    kept = _read_vector("summarize", "values", raw[keep])
    std = float(kept.std(ddof=1)) if n > 1 else math.nan
    n_groups, low, high = None, math.nan, math.nan
    if groups is not None:
        n_groups = pd.Series(groups).nunique()
        if n_groups > 1:
            interval = cluster_bootstrap_interval(kept, groups, seed=seed)
            low, high = interval.ci_low, interval.ci_high
    elif n > 1:
        half = float(scipy.stats.t.ppf(_UPPER, n - 1)) * std / math.sqrt(n)
        low, high = float(kept.mean()) - half, float(kept.mean()) + half
    return Summary(n, n_silent, n_groups, float(kept.mean()), std, float(np.median(kept)), low, high)


def bootstrap_interval(
    data: ArrayLike | tuple[ArrayLike, ...],
    statistic: Callable[..., Any] = np.mean,
    n_resamples: int = 2000,
    seed: int = 0,
    method: str = "BCa",
) -> Interval:
    """Bootstrap interval of any statistic of independent rows.

    Args:
        data: one column, or a tuple of equally long columns whose rows stay together.
        statistic: takes the column(s), returns a number; one with an ``axis`` argument runs much faster.
        n_resamples: number of resamples.
        seed: of the resampling.
        method: "BCa" (bias corrected and accelerated) or "percentile". Where BCa is undefined (all values
            equal) the percentile interval is given, and ``Interval.method`` says so.

    Raises:
        SpectralError: fewer than 2 rows, unequal lengths, values that are not finite, or an unknown method.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 14; ``scipy.stats.bootstrap``.

    Example:
        >>> result = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 10.0], np.median, method="percentile")
        >>> result.estimate, 1.0 <= result.ci_low < 3.0 < result.ci_high <= 10.0
        (3.0, True)
    """
    if method not in ("BCa", "percentile"):
        raise SpectralError(f"bootstrap_interval: method must be 'BCa' or 'percentile', got {method!r}.")
    columns = _read_columns("bootstrap_interval", data)
    # Small batches bound the memory: by default scipy holds every resample at once. What makes BCa undefined
    # warns twice, as a warning and as 0/0; the percentile interval below is the answer to both.
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            columns, statistic, n_resamples=n_resamples, batch=100, paired=len(columns) > 1,
            confidence_level=CONFIDENCE, method=method, rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = result.confidence_interval
    if np.isnan([low, high]).any():
        low, high = np.quantile(result.bootstrap_distribution, [1 - _UPPER, _UPPER])
        method = "percentile"
    return Interval(float(statistic(*columns)), float(low), float(high), method)


def cluster_bootstrap_interval(
    data: ArrayLike | tuple[ArrayLike, ...],
    groups: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of rows that come in groups: whole groups are drawn with replacement.

    A thousand crops of forty photographs carry the information of something nearer forty images. Plain
    percentiles of G resampled groups are too narrow when G is small, so their levels are widened to
    Φ(±√(G/(G−1))·t) with Student's t at G − 1 degrees of freedom.

    Args:
        data: one column, or a tuple of equally long columns whose rows stay together.
        groups: one label per row.
        statistic: takes the column(s), returns a number.
        n_resamples: number of resamples.
        seed: of the resampling.

    Raises:
        SpectralError: fewer than 2 groups, unequal lengths, or values that are not finite.

    Source:
        Hesterberg, What teachers should know about the bootstrap, 2014 (the expanded percentile interval).

    Example:
        >>> result = cluster_bootstrap_interval([1.0, 1.0, 2.0, 3.0, 3.0], ["a", "a", "b", "c", "c"])
        >>> result.estimate, result.ci_low, result.ci_high
        (2.0, 1.0, 3.0)
    """
    columns = _read_columns("cluster_bootstrap_interval", data)
    codes = _read_groups("cluster_bootstrap_interval", groups, len(columns[0]))
    if statistic is np.mean:
        sums = _resample_sums(np.column_stack([columns[0], np.ones(len(codes))]), codes, n_resamples, seed)
        draws = sums[:, 0] / sums[:, 1]
    else:
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(codes == g) for g in range(codes.max() + 1)]
        draws = np.empty(n_resamples)
        for i in range(n_resamples):
            rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
            draws[i] = statistic(*(column[rows] for column in columns))
    low, high = _expand_percentiles(draws, int(codes.max()) + 1)
    return Interval(float(statistic(*columns)), low, high, "cluster percentile")


def compare_paired(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> PairedComparison:
    """Compare two models on the same images; every difference is a − b.

    All differences zero gives t = 0, p = 1 and effects of 0; a constant difference other than zero gives
    t = ±∞, p = 0 and d_z = ±∞ (no spread speaks against it). Differences within the rounding of float64
    count as zero. The rank-biserial correlation is (W⁺ − W⁻)/(W⁺ + W⁻), the Wilcoxon statistic min(W⁺, W⁻),
    both over non-zero differences. With ``groups`` the same t test is repeated on each group's mean
    difference, with n_groups − 1 degrees of freedom: the one to trust when crops share photographs.

    Args:
        a: one value per image, first model.
        b: one value per image, second model, same order.
        groups: one label per image, the photograph it was cut from.

    Raises:
        SpectralError: unequal lengths, fewer than 2 images or groups, or values that are not finite.

    Example:
        >>> result = compare_paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> result.mean_difference, round(result.t, 3), round(result.d_z, 3), result.rank_biserial
        (2.0, 3.464, 2.0, 1.0)
    """
    left, right = _read_pair("compare_paired", ("a", a), ("b", b))
    if len(left) < 2:
        raise SpectralError(f"compare_paired: needs at least 2 images, got {len(left)}; measure more images.")
    magnitude = np.maximum(np.abs(left), np.abs(right))
    difference = left - right
    difference[np.abs(difference) <= _ROUNDING * magnitude] = 0.0
    rounding = float(_ROUNDING * magnitude.max())
    mean, low, high, t, p_t = _test_mean_zero(difference, rounding)

    nonzero = difference[difference != 0]
    statistic, p_wilcoxon, rank_biserial = 0.0, 1.0, 0.0
    if len(nonzero):
        ranks = scipy.stats.rankdata(np.abs(nonzero))
        rank_biserial = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
        statistic, p_wilcoxon = map(float, scipy.stats.wilcoxon(nonzero))

    n_groups, grouped = None, (math.nan,) * 5
    if groups is not None:
        codes = _read_groups("compare_paired", groups, len(left))
        n_groups = int(codes.max()) + 1
        grouped = _test_mean_zero(np.bincount(codes, difference) / np.bincount(codes), rounding)
    return PairedComparison(
        len(left), float(left.mean()), float(right.mean()), mean, low, high, t, len(left) - 1, p_t,
        statistic, p_wilcoxon, t / math.sqrt(len(left)), rank_biserial, n_groups, *grouped,
    )  # fmt: skip


def relative_change(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, n_resamples: int = 2000, seed: int = 0
) -> RelativeChange:
    """Percent by which the mean of b differs from the mean of a, on the same images.

    The rows, or the photographs where ``groups`` are given, are resampled with a and b kept together.

    Args:
        a: baseline, one value per image.
        b: intervention, one value per image, same order.
        groups: one label per image, the photograph it was cut from.
        n_resamples: number of resamples.
        seed: of the resampling.

    Units:
        percent; −40 means that b's mean is 40 % smaller than a's.

    Raises:
        SpectralError: unequal lengths, fewer than 2 images or groups, or values that are not finite.

    Example:
        >>> relative_change([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).percent
        -50.0
    """
    left, right = _read_pair("relative_change", ("a", a), ("b", b))
    codes = _read_groups("relative_change", groups, len(left)) if groups is not None else None
    n_groups = None if codes is None else int(codes.max()) + 1
    means = (float(left.mean()), float(right.mean()))
    if means[0] == 0:
        reason = "the mean of a is 0, so no change relative to it exists"
        return RelativeChange(len(left), n_groups, *means, math.nan, math.nan, math.nan, reason)

    def percent(x: Vector, y: Vector, axis: int = -1) -> Any:
        base = x.mean(axis=axis)
        return 100 * (y.mean(axis=axis) / np.where(base == 0, math.nan, base) - 1)

    if codes is None:
        interval = bootstrap_interval((left, right), percent, n_resamples, seed)
    else:
        interval = cluster_bootstrap_interval((left, right), codes, percent, n_resamples, seed)
    change, low, high = interval.estimate, interval.ci_low, interval.ci_high
    reason = "" if math.isfinite(low + high) else "no interval: the mean of a is 0 in some resamples"
    return RelativeChange(len(left), n_groups, *means, change, low, high, reason)


def proportion_interval(successes: int, n: int) -> Proportion:
    """Share of successes with Wilson's interval, which stays inside [0, 1].

    Args:
        successes: how many.
        n: out of how many.

    Raises:
        SpectralError: counts that are no whole numbers with 0 ≤ successes ≤ n and n ≥ 1.

    Source:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Example:
        >>> result = proportion_interval(0, 10)
        >>> result.proportion, result.ci_low, round(result.ci_high, 4)
        (0.0, 0.0, 0.2775)
    """
    if not (float(successes).is_integer() and float(n).is_integer() and 0 <= successes <= n and n >= 1):
        raise SpectralError(
            f"proportion_interval: successes and n must be whole numbers with 0 ≤ successes ≤ n and n ≥ 1, "
            f"got {successes} of {n}."
        )
    low, high = scipy.stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(int(successes), int(n), successes / n, float(low), float(high))


def holm(p_values: ArrayLike) -> Vector:
    """Holm's step-down adjustment: the family-wise error rate is held whatever the dependence between tests.

    Args:
        p_values: raw p-values; a NaN (a test that could not be made) stays NaN and is not counted.

    Shape:
        (K,) to (K,), in the same order.

    Raises:
        SpectralError: a p-value outside [0, 1].

    Source:
        Holm, A simple sequentially rejective multiple test procedure, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    adjusted = _read_vector("holm", "p_values", p_values, finite=False).copy()
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]
    p = adjusted[order]
    if ((p < 0) | (p > 1)).any():
        raise SpectralError(
            f"holm: p-values must lie in [0, 1], got {p.min():g} to {p.max():g}; pass p, not t."
        )
    adjusted[order] = np.minimum(np.maximum.accumulate(p * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def correlate(
    x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, n_resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Pearson, Spearman and distance correlation, each with an interval and a p-value.

    ``distance_correlation`` is the plain estimate in [0, 1]; it is biased upwards (about 0.05 for 1000
    independent pairs). ``distance_corrected`` is the root of the bias-corrected squared estimate, 0 where
    that is negative, and carries the interval: percentiles over random halves of the images, because a
    bootstrap's repeated rows sit at distance 0 from each other and push the estimate up. It covers
    89 to 99 % in simulations, least where the dependence is weak. Pearson's interval is Fisher's,
    Spearman's is Bonett and Wright's, the distance p-value comes from permutations.

    With ``groups``, Pearson's and Spearman's intervals and p-values come from a jackknife that deletes one
    group at a time (on Fisher's scale, Student's t with G − 1 degrees of freedom), halves are halves of the
    groups, and the distance p-value comes from a wild bootstrap with one random sign per group.

    Args:
        x: one value per image.
        y: one value per image, same order.
        groups: one label per image, the photograph it was cut from; memory then grows as N².
        n_resamples: number of halves, and of permutations or sign draws.
        seed: of all random draws.

    Raises:
        SpectralError: unequal lengths, fewer than 2 groups, or values that are not finite. Fewer than 4
            images, or a constant column, give NaN and a ``reason`` instead.

    Source:
        Bonett and Wright 2000; Székely, Rizzo and Bakirov 2007; Székely and Rizzo 2013 (bias correction);
        Politis and Romano 1994 (subsampling); Leucht and Neumann 2013 (wild bootstrap of V-statistics).

    Example:
        >>> result = correlate([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0], n_resamples=99)
        >>> round(result.pearson_r, 6), round(result.spearman_rho, 6)
        (0.8, 0.8)
        >>> correlate([1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 4.0, 3.0]).reason
        'x is constant'
    """
    u, v = _read_pair("correlate", ("x", x), ("y", y))
    n = len(u)
    codes = None if groups is None else _read_groups("correlate", groups, n)
    n_groups = None if codes is None else int(codes.max()) + 1
    constant = [name for name, column in (("x", u), ("y", v)) if _is_constant(column)]
    if n < 4 or constant:
        reason = f"needs at least 4 images, got {n}" if n < 4 else f"{' and '.join(constant)} is constant"
        return Correlation(n, n_groups, reason=reason)
    spearman = _test_coefficient(_spearman, u, v, codes, spread=0.5)
    # Unit ranges change no other coefficient and keep products clear of overflow and underflow.
    u, v = (u - u.min()) / np.ptp(u), (v - v.min()) / np.ptp(v)
    pearson = _test_coefficient(_pearson, u, v, codes, spread=0.0)
    distance = _measure_distance_dependence(u, v, codes, n_resamples, np.random.default_rng(seed))
    reason = "too few images for an interval of the distance correlation" if math.isnan(distance[2]) else ""
    if math.isnan(pearson[1]):
        reason = "no interval over groups: x or y is constant without one of them"
    return Correlation(n, n_groups, *pearson, pearson[0] ** 2, *spearman, *distance, reason)


def regress_cross_validated(
    X: pd.DataFrame,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    seed: int = 0,
    folds: int = 5,
    repeats: int = 5,
) -> Regression:
    """How much of y the layers together predict, on images that the fit has not seen.

    Three estimators: ``ridge`` (linear, standardised, penalty chosen within the training folds), ``forest``
    (extremely randomised trees, nonlinear) and ``best single layer`` (a line on the column that correlates
    best within the training folds). R² is 1 − Σ(y − ŷ)²/Σ(y − ȳ)² over out-of-fold predictions, averaged over
    ``repeats`` partitions; below 0 it predicts worse than the mean. ``r2_std_repeats`` is its spread over
    partitions; the interval comes from resampling images (or groups), which partitions alone would hide.

    The importances' measures: ``permutation`` (drop in R² when the layer is shuffled within the held-out
    fold), ``coefficient`` (of ridge, in standard deviations of y per standard deviation of the layer) and
    ``chosen`` (share of the fits in which it was the best single layer), as mean and std over all fits.

    Args:
        X: one row per image, one column per layer.
        y: what to predict, one value per image.
        groups: one label per image; images of one group never straddle training and test.
        seed: of partitions, trees and shuffles.
        folds: parts per partition.
        repeats: number of partitions.

    Raises:
        SpectralError: X no table of finite numbers, unequal lengths, fewer than 4 images per fold, or fewer
            groups than folds. A constant y gives NaN scores and a ``reason`` instead.

    Example:
        >>> x = np.linspace(-1.0, 1.0, 60)
        >>> table = regress_cross_validated(pd.DataFrame({"conv1": x}), 2 * x, repeats=1).scores
        >>> table["estimator"].tolist(), bool(table["r2"][0] > 0.99)
        (['ridge', 'forest', 'best single layer'], True)
    """
    layers, target, codes = _read_regression(X, y, groups, folds)
    rng = np.random.default_rng(seed)
    parts: list[tuple[str, str, Vector]] = []
    errors = {name: np.full((repeats, len(target)), math.nan) for name in _ESTIMATORS}
    constant = _is_constant(target)
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
        "n_groups": None if groups is None else int(codes.max()) + 1,
        "n_layers": layers.shape[1],
        "folds": folds,
        "repeats": repeats,
        "reason": "y is constant" if constant else "",
    }
    scores = [{"estimator": name, **_score(errors[name], target, codes, seed), **about} for name in errors]
    return Regression(pd.DataFrame(scores), _average_importances(X.columns, parts))


# --- dependence -------------------------------------------------------------------------------------------


_Coefficient = Callable[[Vector, Vector], float]


def _pearson(x: Vector, y: Vector) -> float:
    x, y = x - x.mean(), y - y.mean()
    with np.errstate(invalid="ignore"):
        return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _spearman(x: Vector, y: Vector) -> float:
    return _pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


def _test_coefficient(
    statistic: _Coefficient, x: Vector, y: Vector, codes: Codes | None, spread: float
) -> tuple[float, float, float, float]:
    """Return coefficient, interval and p; ``spread`` scales r² in the error of independent rows."""
    n, r = len(x), statistic(x, y)
    limit = 1 - 1e-15  # keeps Fisher's z finite for a perfect correlation
    z = float(np.arctanh(np.clip(r, -limit, limit)))
    if codes is None:
        error, critical = math.sqrt((1 + spread * r**2) / (n - 3)), scipy.stats.norm.ppf(_UPPER)
        p = 2 * scipy.stats.t.sf(abs(math.sinh(z)) * math.sqrt(n - 2), n - 2)
    else:
        df = int(codes.max())
        without = [statistic(x[codes != g], y[codes != g]) for g in range(df + 1)]
        error = math.sqrt(df) * float(np.arctanh(np.clip(without, -limit, limit)).std())
        critical = scipy.stats.t.ppf(_UPPER, df)
        p = 2 * scipy.stats.t.sf(abs(z) / error if error else math.inf, df)
    return r, math.tanh(z - critical * error), math.tanh(z + critical * error), float(p)


def _measure_distance_dependence(
    x: Vector, y: Vector, codes: Codes | None, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float, float, float, float]:
    """Return the plain and the corrected distance correlation, the latter's interval, and p."""
    import dcor  # compiles for seconds on first import

    def unbiased(u: Vector, v: Vector) -> float:
        # U-centring divides by n − 3.
        return float(dcor.u_distance_correlation_sqr(u, v, method="avl")) if len(u) > 3 else math.nan

    squared, clusters = unbiased(x, y), np.arange(len(x)) if codes is None else codes
    low, high = _halve_percentiles(unbiased, x, y, clusters, n_resamples, rng)
    corrected, low, high = np.sqrt(np.clip([squared, low, high], 0, 1)).tolist()
    if codes is None:
        covariances = [
            dcor.distance_covariance_sqr(x, v, method="avl")
            for v in (y, *(rng.permutation(y) for _ in range(n_resamples)))
        ]
        observed, draws = covariances[0], np.array(covariances[1:])
    else:
        member = np.eye(codes.max() + 1)[codes]
        between = member.T @ (_centre_distances(x) * _centre_distances(y)) @ member
        signs = rng.choice([-1.0, 1.0], size=(n_resamples, len(between)))
        observed, draws = between.sum(), ((signs @ between) * signs).sum(axis=1)
    # Equal arrangements must count as ties although their sums may round differently.
    p = (1 + int((draws >= observed * (1 - 1e-9)).sum())) / (1 + n_resamples)
    return float(dcor.distance_correlation(x, y, method="avl")), corrected, low, high, p


def _halve_percentiles(
    statistic: _Coefficient, x: Vector, y: Vector, codes: Codes, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return an interval from halves of the groups: they vary about the whole as it about the truth."""
    n_groups = int(codes.max()) + 1
    half = (n_groups + 1) // 2
    draws = np.empty(n_resamples)
    for i in range(n_resamples):
        drawn = (rng.permutation(n_groups) < half)[codes]
        draws[i] = statistic(x[drawn], y[drawn])
    whole, scale = statistic(x, y), math.sqrt(half / (n_groups - half))
    low, high = _expand_percentiles(draws, n_groups)
    return whole + scale * (low - whole), whole + scale * (high - whole)


def _centre_distances(x: Vector) -> Matrix:
    distances = np.abs(x[:, None] - x)
    means = distances.mean(axis=0)
    return np.asarray(distances - means - means[:, None] + means.mean())


# --- regression -------------------------------------------------------------------------------------------

_Predict = Callable[[Matrix], Vector]
_Fit = Callable[[Matrix, Vector, int], tuple[_Predict, dict[str, Vector]]]


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


_ESTIMATORS: dict[str, _Fit] = {
    "ridge": _fit_ridge,
    "forest": _fit_forest,
    "best single layer": _fit_best_single,
}


def _assign_folds(codes: Codes, folds: int, rng: np.random.Generator) -> Codes:
    """Give whole groups to folds, the largest first, each to the fold that is emptiest so far."""
    sizes = np.bincount(codes)
    shuffled = rng.permutation(len(sizes))
    fold_of, filled = np.empty(len(sizes), dtype=np.intp), np.zeros(folds)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
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
    X: pd.DataFrame, y: ArrayLike, groups: ArrayLike | None, folds: int
) -> tuple[Matrix, Vector, Codes]:
    name = "regress_cross_validated"
    if not isinstance(X, pd.DataFrame) or X.shape[1] == 0:
        raise SpectralError(
            f"{name}: X must be a DataFrame with one column per layer, got {type(X).__name__}."
        )
    target = _read_vector(name, "y", y)
    columns = [_read_vector(name, f"column {label!r} of X", X[label]) for label in X]
    _check_lengths(name, {"X": X, "y": target})
    if folds < 2 or len(target) < 4 * folds:
        raise SpectralError(
            f"{name}: needs at least 2 folds with 4 images each, got {folds} folds for {len(target)} images; "
            f"use fewer folds or more images."
        )
    codes = np.arange(len(target)) if groups is None else _read_groups(name, groups, len(target))
    if codes.max() + 1 < folds:
        raise SpectralError(
            f"{name}: needs at least as many groups as folds, got {codes.max() + 1} for {folds}."
        )
    return np.column_stack(columns), target, codes


def _score(errors: Matrix, y: Vector, codes: Codes, seed: int) -> dict[str, float]:
    """Return R² from (repeats, N) squared errors, its interval over groups and its spread over repeats."""
    if np.isnan(errors).any():
        return dict.fromkeys(("r2", "ci_low", "ci_high", "r2_std_repeats"), math.nan)
    deviation = (y - y.mean()) ** 2
    r2 = 1 - errors.mean(axis=1) / deviation.mean()
    sums = _resample_sums(np.column_stack([errors.mean(axis=0), deviation]), codes, 2000, seed)
    low, high = _expand_percentiles(1 - sums[:, 0] / sums[:, 1], int(codes.max()) + 1)
    spread = float(r2.std(ddof=1)) if len(r2) > 1 else math.nan
    return {"r2": float(r2.mean()), "ci_low": low, "ci_high": high, "r2_std_repeats": spread}


def _average_importances(layers: pd.Index, parts: list[tuple[str, str, Vector]]) -> pd.DataFrame:
    keys = ["estimator", "measure", "layer"]
    rows = [(name, measure, *pair) for name, measure, fit in parts for pair in zip(layers, fit, strict=True)]
    fits = pd.DataFrame(rows, columns=[*keys, "fit"])
    return fits.groupby(keys, sort=False)["fit"].agg(["mean", "std"]).reset_index()


# --- resampling and reading -------------------------------------------------------------------------------


def _test_mean_zero(values: Vector, rounding: float) -> tuple[float, float, float, float, float]:
    """Return mean, interval, t and p of Student's one-sample test; a spread within rounding is none."""
    n, mean, std = len(values), float(values.mean()), float(values.std(ddof=1))
    if std <= rounding:
        if abs(mean) <= rounding:
            return mean, mean, mean, 0.0, 1.0
        return mean, mean, mean, math.copysign(math.inf, mean), 0.0
    error = std / math.sqrt(n)
    half = float(scipy.stats.t.ppf(_UPPER, n - 1)) * error
    return mean, mean - half, mean + half, mean / error, float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1))


def _resample_sums(columns: Matrix, codes: Codes, n_resamples: int, seed: int) -> Matrix:
    """Return (n_resamples, K) column sums over groups drawn with replacement."""
    sums = np.stack([np.bincount(codes, column) for column in columns.T], axis=1)
    counts = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), n_resamples
    )
    return np.asarray(counts @ sums)


def _expand_percentiles(draws: Vector, n_groups: int) -> tuple[float, float]:
    widened = math.sqrt(n_groups / (n_groups - 1)) * scipy.stats.t.ppf(_UPPER, n_groups - 1)
    tail = float(scipy.stats.norm.cdf(-widened))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _is_constant(values: Vector) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _read_vector(function: str, name: str, values: ArrayLike, finite: bool = True) -> Vector:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SpectralError(f"{function}: {name} must be numbers, got {values!r:.60}.") from None
    if vector.ndim != 1 or len(vector) == 0:
        raise SpectralError(
            f"{function}: {name} must be one column of at least one value, got shape {vector.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(vector))
    if finite and len(bad):
        raise SpectralError(
            f"{function}: {name} must be finite, got {vector[bad[0]]} at position {bad[0]} ({len(bad)} of "
            f"{len(vector)} in all); leave out what could not be measured."
        )
    return vector


def _check_lengths(function: str, columns: dict[str, Any]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise SpectralError(f"{function}: columns must be equally long and in the same order, got {got}.")


def _read_pair(function: str, a: tuple[str, ArrayLike], b: tuple[str, ArrayLike]) -> tuple[Vector, Vector]:
    left, right = _read_vector(function, *a), _read_vector(function, *b)
    _check_lengths(function, {a[0]: left, b[0]: right})
    return left, right


def _read_columns(function: str, data: Any) -> tuple[Vector, ...]:
    several = isinstance(data, tuple) and len(data) > 0 and np.ndim(data[0]) > 0
    columns = tuple(_read_vector(function, "data", column) for column in (data if several else (data,)))
    _check_lengths(function, {f"column {i}": column for i, column in enumerate(columns)})
    if len(columns[0]) < 2:
        raise SpectralError(f"{function}: needs at least 2 rows, got 1; measure more images.")
    return columns


def _read_groups(function: str, groups: ArrayLike, n: int) -> Codes:
    _check_lengths(function, {"values": range(n), "groups": groups})
    codes, labels = pd.factorize(np.asarray(groups))
    if (codes < 0).any():
        raise SpectralError(
            f"{function}: every row needs a group, got {int((codes < 0).sum())} without; name them."
        )
    if len(labels) < 2:
        raise SpectralError(
            f"{function}: needs at least 2 groups, got {len(labels)}; leave groups out for one."
        )
    return codes
