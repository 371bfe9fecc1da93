"""Means with intervals, paired comparisons, proportions and the correction for many tests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from spectral.errors import SpectralError
from spectral.stats.reading import (
    CONFIDENCE,
    ROUNDING,
    UPPER,
    Vector,
    check_lengths,
    expand_percentiles,
    read_columns,
    read_groups,
    read_pair,
    read_vector,
    resample_sums,
)


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
    raw = read_vector("summarize", "values", values, finite=False)
    keep = np.ones(len(raw), dtype=bool) if silent is None else ~np.asarray(silent, dtype=bool)
    check_lengths("summarize", {"values": raw, "silent": keep})
    if groups is not None:
        check_lengths("summarize", {"values": raw, "groups": groups})
        groups = np.asarray(groups)[keep]
    n, n_silent = int(keep.sum()), int((~keep).sum())
    if n == 0:
        return Summary(0, n_silent, None if groups is None else 0, *[math.nan] * 5)
    kept = read_vector("summarize", "values", raw[keep])
    std = float(kept.std(ddof=1)) if n > 1 else math.nan
    n_groups, low, high = None, math.nan, math.nan
    if groups is not None:
        n_groups = pd.Series(groups).nunique()
        if n_groups > 1:
            interval = cluster_bootstrap_interval(kept, groups, seed=seed)
            low, high = interval.ci_low, interval.ci_high
    elif n > 1:
        half = float(scipy.stats.t.ppf(UPPER, n - 1)) * std / math.sqrt(n)
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
    columns = read_columns("bootstrap_interval", data)
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
        low, high = np.quantile(result.bootstrap_distribution, [1 - UPPER, UPPER])
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
    columns = read_columns("cluster_bootstrap_interval", data)
    codes = read_groups("cluster_bootstrap_interval", groups, len(columns[0]))
    if statistic is np.mean:
        sums = resample_sums(np.column_stack([columns[0], np.ones(len(codes))]), codes, n_resamples, seed)
        draws = sums[:, 0] / sums[:, 1]
    else:
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(codes == g) for g in range(codes.max() + 1)]
        draws = np.empty(n_resamples)
        for i in range(n_resamples):
            rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
            draws[i] = statistic(*(column[rows] for column in columns))
    low, high = expand_percentiles(draws, int(codes.max()) + 1)
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
    left, right = read_pair("compare_paired", ("a", a), ("b", b))
    if len(left) < 2:
        raise SpectralError(f"compare_paired: needs at least 2 images, got {len(left)}; measure more images.")
    magnitude = np.maximum(np.abs(left), np.abs(right))
    difference = left - right
    difference[np.abs(difference) <= ROUNDING * magnitude] = 0.0
    rounding = float(ROUNDING * magnitude.max())
    mean, low, high, t, p_t = _test_mean_zero(difference, rounding)

    nonzero = difference[difference != 0]
    statistic, p_wilcoxon, rank_biserial = 0.0, 1.0, 0.0
    if len(nonzero):
        ranks = scipy.stats.rankdata(np.abs(nonzero))
        rank_biserial = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
        statistic, p_wilcoxon = map(float, scipy.stats.wilcoxon(nonzero))

    n_groups, grouped = None, (math.nan,) * 5
    if groups is not None:
        codes = read_groups("compare_paired", groups, len(left))
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
    left, right = read_pair("relative_change", ("a", a), ("b", b))
    codes = read_groups("relative_change", groups, len(left)) if groups is not None else None
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
    adjusted = read_vector("holm", "p_values", p_values, finite=False).copy()
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]
    p = adjusted[order]
    if ((p < 0) | (p > 1)).any():
        raise SpectralError(
            f"holm: p-values must lie in [0, 1], got {p.min():g} to {p.max():g}; pass p, not t."
        )
    adjusted[order] = np.minimum(np.maximum.accumulate(p * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _test_mean_zero(values: Vector, rounding: float) -> tuple[float, float, float, float, float]:
    """Return mean, interval, t and p of Student's one-sample test; a spread within rounding is none."""
    n, mean, std = len(values), float(values.mean()), float(values.std(ddof=1))
    if std <= rounding:
        if abs(mean) <= rounding:
            return mean, mean, mean, 0.0, 1.0
        return mean, mean, mean, math.copysign(math.inf, mean), 0.0
    error = std / math.sqrt(n)
    half = float(scipy.stats.t.ppf(UPPER, n - 1)) * error
    return mean, mean - half, mean + half, mean / error, float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1))
