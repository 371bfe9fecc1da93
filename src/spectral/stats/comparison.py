"""Means with intervals, paired comparisons, proportions and the correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import ArrayLike

from spectral.errors import SpectralError
from spectral.stats.estimate import (
    average_clusters,
    estimate_mean,
    find_effective_size,
    find_top_share,
    rank_signs,
)
from spectral.stats.reading import (
    LEVEL,
    ROUNDING,
    UPPER,
    Codes,
    Vector,
    read_clusters,
    read_labels,
    read_pair,
    read_vector,
)


@dataclass(frozen=True)
class Summary:
    """A mean over clusters with its interval; ``n`` counts the rows in it, ``n_silent`` those left out.

    ``std`` and ``median`` are those of the clusters' means too, and ``top_tenth`` is the share of their sum
    that the tenth with the largest ones has; NaN where one is negative or all are 0.
    """

    n: int
    n_clusters: int
    n_silent: int
    mean: float
    std: float
    median: float
    ci_low: float
    ci_high: float
    top_tenth: float = math.nan


@dataclass(frozen=True)
class PairedComparison:
    """Differences a − b of ``n`` rows, each cluster one value: interval, tests and effect sizes."""

    n: int
    n_clusters: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    t: float
    df: int
    p: float
    wilcoxon: float
    wilcoxon_p: float
    effect_size: float
    rank_biserial: float


@dataclass(frozen=True)
class RelativeChange:
    """Change of the mean from a to b in percent of the mean of a."""

    n: int
    n_clusters: int
    mean_a: float
    mean_b: float
    percent: float
    ci_low: float
    ci_high: float
    reason: str = ""


@dataclass(frozen=True)
class Share:
    """A share with its interval; ``n`` counts the rows."""

    n: int
    n_clusters: int
    share: float
    ci_low: float
    ci_high: float


def summarize(
    values: ArrayLike,
    silent: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Summary:
    """Mean, spread and median of one column, with an interval for the mean.

    The mean is that of the clusters' means, and the interval is `estimate_mean`'s of these. One cluster has a
    mean and a NaN interval; none (all silent) has only its counts.

    Args:
        values: one value per image.
        silent: True where the map was silent; those rows are counted and left out of everything else.
        clusters: one label per image, the photograph it was cut from; by default each is its own.
        low: what the quantity can't be below, nor its interval.
        high: what it can't be above.

    Shape:
        values, silent and clusters are (N,).

    Raises:
        SpectralError: no values, a value that is NaN or infinite, or columns of different lengths.

    Example:
        >>> result = summarize([0.0, 1.0, 2.0, 0.0], silent=[False, False, False, True])
        >>> result.n, result.n_silent, result.mean, result.std, round(result.ci_high, 3)
        (3, 1, 1.0, 1.0, 3.484)
    """
    raw = read_vector("summarize", "values", values, finite=False)
    flags = (
        np.zeros(len(raw), dtype=bool)
        if silent is None
        else read_labels("summarize", "silent", silent, len(raw))
    )
    if flags.dtype != bool and not all(flag in (True, False) for flag in flags.tolist()):
        # text would count as true: clusters in the place of flags as all silent
        raise SpectralError(
            f"summarize: silent must be true or false for each value, got {flags[:3].tolist()}"
        )
    keep = ~flags.astype(bool)
    codes = read_clusters("summarize", clusters, len(raw), fewest=0)
    n, n_silent = int(keep.sum()), int((~keep).sum())
    if n == 0:
        return Summary(0, 0, n_silent, *[math.nan] * 6)
    kept = read_vector("summarize", "values", raw[keep])
    means = average_clusters(kept, np.unique(codes[keep], return_inverse=True)[1])
    found = estimate_mean(means)
    median = float(np.median(means))
    ci_low, ci_high = (float(np.clip(bound, low, high)) for bound in (found.ci_low, found.ci_high))
    share = find_top_share(means)
    return Summary(n, len(means), n_silent, found.mean, found.std, median, ci_low, ci_high, share)


def compare_paired(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None) -> PairedComparison:
    """Compare two models on the same images; every difference is a − b.

    All of it is of the clusters' mean differences, each cluster one value: the mean with `estimate_mean`'s
    interval and p, Wilcoxon's test, and the effect sizes d_z = mean / standard deviation and the
    rank-biserial correlation (W⁺ − W⁻) / (W⁺ + W⁻). All differences zero gives t = 0, p = 1 and effects of 0;
    a constant difference other than zero gives t = ±∞, p = 0 and d_z = ±∞ (no spread speaks against it).
    Differences within the rounding of float64 count as zero. The Wilcoxon statistic is min(W⁺, W⁻) over
    non-zero differences.

    Args:
        a: one value per image, first model.
        b: one value per image, second model, same order.
        clusters: one label per image, the photograph it was cut from; by default each is its own.

    Raises:
        SpectralError: unequal lengths, fewer than 2 images or clusters, or values that are not finite.

    Example:
        >>> result = compare_paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> result.difference, round(result.t, 3), round(result.effect_size, 3), result.rank_biserial
        (2.0, 3.464, 2.0, 1.0)
    """
    left, right, codes = _read_paired("compare_paired", a, b, clusters)
    magnitude = np.maximum(np.abs(left), np.abs(right))
    difference = left - right
    difference[np.abs(difference) <= ROUNDING * magnitude] = 0.0
    means = average_clusters(difference, codes)
    means[np.abs(means) <= ROUNDING * average_clusters(magnitude, codes)] = 0.0  # what cancels in a cluster
    found = estimate_mean(means, rounding=float(ROUNDING * magnitude.max()))
    wilcoxon, wilcoxon_p, rank_biserial = rank_signs(means)
    mean_a, mean_b = (float(average_clusters(side, codes).mean()) for side in (left, right))
    return PairedComparison(
        len(left), len(means), mean_a, mean_b, found.mean, found.ci_low, found.ci_high, found.t,
        found.df, found.p, wilcoxon, wilcoxon_p, found.t / math.sqrt(len(means)), rank_biserial,
    )  # fmt: skip


def compare_shares(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None) -> PairedComparison:
    """Compare two shares of the same images, as `compare_paired` of true and false.

    Where all clusters differ alike, most often in nothing, there is no spread to judge by: the interval is
    then Wilson's of no exception in so many clusters, and p the sign test's.

    Args:
        a: true or false, one per image, first model.
        b: the same of the second model.
        clusters: one label per image, the photograph it was cut from; by default each is its own.

    Raises:
        SpectralError: as `compare_paired`, or for a value that is neither 0 nor 1.

    Example:
        >>> found = compare_shares([0, 1, 1, 0, 1], [0, 1, 1, 0, 1])
        >>> found.difference, round(found.ci_low, 3), round(found.ci_high, 3), found.p
        (0.0, -0.434, 0.434, 1.0)
    """
    for flags in (a, b):
        _read_flags("compare_shares", flags)
    found = compare_paired(a, b, clusters)
    if found.ci_low < found.ci_high:
        return replace(found, ci_low=max(found.ci_low, -1.0), ci_high=min(found.ci_high, 1.0))
    room = find_wilson_interval(0.0, found.n_clusters)[1]
    low, high = max(found.difference - room, -1.0), min(found.difference + room, 1.0)
    if found.wilcoxon_p >= LEVEL:  # the interval may not know better than the test
        low, high = min(low, 0.0), max(high, 0.0)
    return replace(found, ci_low=low, ci_high=high, p=found.wilcoxon_p)


def relative_change(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None) -> RelativeChange:
    """Percent by which the mean of b differs from the mean of a, on the same images.

    Both are means of the clusters' means. The interval holds those ratios r for which `compare_paired` of b
    and r · a would not give p < 0.05, so that it leaves out 0 exactly where that test of b and a does.

    Args:
        a: baseline, one value per image.
        b: intervention, one value per image, same order.
        clusters: one label per image, the photograph it was cut from; by default each is its own.

    Units:
        percent; −40 means that b's mean is 40 % smaller than a's.

    Raises:
        SpectralError: unequal lengths, fewer than 2 images or clusters, or values that are not finite.

    Source:
        E. C. Fieller, Some problems in interval estimation, J. R. Statist. Soc. B 16, 1954.

    Example:
        >>> relative_change([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).percent
        -50.0
    """
    left, right, codes = _read_paired("relative_change", a, b, clusters)
    base, other = average_clusters(left, codes), average_clusters(right, codes)
    counts, means = (len(left), len(base)), (float(base.mean()), float(other.mean()))
    if means[0] == 0:
        reason = "the mean of a is 0, so no change relative to it exists"
        return RelativeChange(*counts, *means, math.nan, math.nan, math.nan, reason)
    scale = ROUNDING * float(max(np.abs(base).max(), np.abs(other).max()))
    # Of the change and not of the ratio, whose digits a small change has lost.
    difference = other - base
    change = float(difference.mean()) / means[0]

    def excess(x: float) -> float:
        return estimate_mean(difference - x * base, rounding=scale * max(1.0, abs(1 + x))).p - LEVEL

    reason = ""
    if estimate_mean(base, rounding=scale).p >= LEVEL:
        low = high = math.nan
        reason = "no interval: the mean of a may be 0"
    else:
        low, high = (_find_crossing(excess, change, step) for step in (-1.0, 1.0))
    return RelativeChange(*counts, *means, 100 * change, 100 * low, 100 * high, reason)


def summarize_share(flags: ArrayLike, clusters: ArrayLike | None = None) -> Share:
    """Share of true values, the mean of the clusters' shares, with an interval that stays inside [0, 1].

    Wilson's interval at the number of independent images that would know the share as well
    (`find_effective_size`): the images themselves where each is its own cluster.

    Args:
        flags: true or false, one per image.
        clusters: one label per image, the photograph it was cut from; by default each is its own.

    Raises:
        SpectralError: no values, one that is neither 0 nor 1, or columns of different lengths.

    Source:
        E. L. Korn and B. I. Graubard, Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data, Survey Methodology 24, 1998.

    Example:
        >>> alone, crops = summarize_share([0, 1] * 20), summarize_share([0, 1] * 20, [0, 1] * 20)
        >>> round(alone.ci_low, 3), round(crops.ci_low, 3)
        (0.352, 0.095)
    """
    values = _read_flags("summarize_share", flags)
    means = average_clusters(values, read_clusters("summarize_share", clusters, len(values), fewest=1))
    share = min(max(float(means.mean()), 0.0), 1.0)
    low, high = find_wilson_interval(share, find_effective_size(means, len(values)))
    return Share(len(values), len(means), share, low, high)


def count_share(successes: int, n: int) -> Share:
    """Share of successes among n independent images, as `summarize_share` of so many flags.

    Args:
        successes: how many.
        n: out of how many.

    Raises:
        SpectralError: counts that are no whole numbers with 0 ≤ successes ≤ n and n ≥ 1.

    Source:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Example:
        >>> result = count_share(0, 10)
        >>> result.share, result.ci_low, round(result.ci_high, 4)
        (0.0, 0.0, 0.2775)
    """
    if not (float(successes).is_integer() and float(n).is_integer() and 0 <= successes <= n and n >= 1):
        raise SpectralError(
            f"count_share: successes and n must be whole numbers with 0 ≤ successes ≤ n and n ≥ 1, "
            f"got {successes} of {n}."
        )
    return Share(int(n), int(n), successes / n, *find_wilson_interval(successes / n, n))


def find_wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of n images, which need not be a whole number."""
    z = float(scipy.special.ndtri(UPPER))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


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


def _read_flags(function: str, flags: ArrayLike) -> Vector:
    values = read_vector(function, "flags", flags)
    if not np.isin(values, (0.0, 1.0)).all():
        raise SpectralError(f"{function}: flags must be true or false")
    return values


def _read_paired(
    function: str, a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None
) -> tuple[Vector, Vector, Codes]:
    left, right = read_pair(function, ("a", a), ("b", b))
    if len(left) < 2:
        raise SpectralError(f"{function}: needs at least 2 images, got {len(left)}; measure more images.")
    return left, right, read_clusters(function, clusters, len(left), fewest=2)


def _find_crossing(excess: Callable[[float], float], start: float, direction: float) -> float:
    """Where p falls below the level, from a change of p = 1 on; infinite if it never does.

    p needn't fall evenly where values are skewed: no change at all, which a test beside the interval is
    about, is asked first.
    """
    if excess(start) < 0:  # no spread at all
        return start
    inside, step = start, 1e-3 * max(abs(1 + start), 1e-3)
    if -start * direction > 0:
        if excess(0.0) < 0:
            return _find_root(excess, start, 0.0)
        inside = 0.0
    for _ in range(60):
        outside = inside + direction * step
        if excess(outside) < 0:
            return _find_root(excess, inside, outside)
        inside, step = outside, 2 * step
    return direction * math.inf


def _find_root(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where p crosses the level between a change inside an interval and one outside of it."""
    ends = sorted((inside, outside))
    accuracy = 1e-12 * max(abs(inside), abs(outside))
    return float(scipy.optimize.brentq(excess, *ends, xtol=accuracy, rtol=1e-12))
