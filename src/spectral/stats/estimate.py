"""The one estimator of every row: the mean of the clusters' means, with an interval and a test that agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used: `stats` takes a second

from spectral.stats.reading import ROUNDING, UPPER, Codes, Vector, read_vector

FEWEST_SKEWED = 5  # values that have a skewness
EXACT = 50  # clusters up to which the signed-rank test counts all patterns of signs


@dataclass(frozen=True)
class Mean:
    """The mean of independent values, its interval, and the test that it is 0; NaN where there is none."""

    mean: float
    std: float
    ci_low: float
    ci_high: float
    t: float
    df: int
    p: float


def average_clusters(values: Vector, codes: Codes) -> Vector:
    """Return each cluster's mean: however many images it has, it is one value.

    Example:
        >>> average_clusters(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1])).tolist()
        [2.0, 5.0]
    """
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))


def estimate_mean(values: Vector, rounding: float | None = None) -> Mean:
    """Estimate the mean of independent values, one per cluster.

    The interval is Student's, on each side widened to Hall's where that reaches farther: Hall's takes the
    skewness out of t by a cubic. Student's alone misses the mean of skewed values too often (exponential,
    20 values: 8 %), Hall's alone that of symmetric ones with long tails (8 %), and what both miss is near
    5 % for either; ``benchmarks/nulls.py`` has the simulations. p is the larger of both methods' p, so that
    the interval leaves out 0 exactly where p < 0.05. Symmetric values have Student's own.

    Args:
        values: at least one.
        rounding: what counts as no spread; by default the values' own rounding.

    Source:
        P. Hall, On the removal of skewness by transformation, J. R. Statist. Soc. B 54, 1992.

    Example:
        >>> found = estimate_mean(np.array([1.0, 2.0, 3.0]))
        >>> found.mean, found.df, round(found.ci_high, 3), round(found.p, 4)
        (2.0, 2, 4.484, 0.0742)
    """
    values = read_vector("estimate_mean", "values", values, finite=False)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Mean(mean, math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    std = float(values.std(ddof=1))
    if std <= (ROUNDING * float(np.abs(values).max()) if rounding is None else rounding):
        if abs(mean) <= (rounding or 0.0):  # no difference from 0, nor may the interval know one
            return Mean(mean, std, min(mean, 0.0), max(mean, 0.0), 0.0, n - 1, 1.0)
        return Mean(mean, std, mean, mean, math.copysign(math.inf, mean), n - 1, 0.0)
    error, skew = std / math.sqrt(n), _find_skewness((values - mean) / std) / math.sqrt(n)
    t, quantile = mean / error, float(scipy.special.stdtrit(n - 1, UPPER))
    low = mean - error * max(quantile, _restore(quantile, skew))
    high = mean - error * min(-quantile, _restore(-quantile, skew))
    p = max(float(2 * scipy.special.stdtr(n - 1, -abs(x))) for x in (t, _straighten(t, skew)))
    return Mean(mean, std, low, high, t, n - 1, p)


def rank_signs(values: Vector) -> tuple[float, float, float]:
    """Wilcoxon's signed-rank test that independent values are symmetric about 0; zeros are left out.

    Of up to 50 values p is exact, ties or not: no smaller than 2 / 2ⁿ, the share of the two extreme patterns
    of signs. Beyond that it is the normal approximation.

    Returns:
        The statistic min(W⁺, W⁻), p, and the rank-biserial correlation (W⁺ − W⁻) / (W⁺ + W⁻).

    Example:
        >>> rank_signs(np.array([1.0, 2.0, 3.0]))
        (0.0, 0.25, 1.0)
    """
    nonzero = values[values != 0]
    if not len(nonzero):
        return 0.0, 1.0, 0.0
    ranks = scipy.stats.rankdata(np.abs(nonzero))
    total, positive = float(ranks.sum()), float(ranks[nonzero > 0].sum())
    larger = max(positive, total - positive)
    if len(nonzero) <= EXACT:
        chance = _count_sums(np.rint(2 * ranks).astype(np.intp))
        p = 2 * float(chance[round(2 * larger) :].sum())
    else:
        p = float(2 * scipy.special.ndtr((total / 2 - larger) / (math.sqrt(float(ranks @ ranks)) / 2)))
    return total - larger, min(p, 1.0), 2 * positive / total - 1


def find_top_share(values: Vector) -> float:
    """Return the share of a sum that the largest tenth of values has: 1 − the Lorenz curve at 0.9.

    A tenth of 15 values are one and a half, so that equal values give 0.1 however many there are.

    Args:
        values: not negative; else, or where all are 0, the share is NaN.

    Example:
        >>> find_top_share(np.ones(15)), find_top_share(np.array([0.0, 0.0, 1.0, 0.0]))
        (0.1, 0.4)
    """
    if values.min() < 0 or values.max() <= 0:
        return math.nan
    ordered = np.sort(values / values.max())[::-1]  # parts of the least float there is would be 0
    weight = np.clip(0.1 * len(values) - np.arange(len(values)), 0.0, 1.0)
    return float(weight @ ordered / ordered.sum())


def find_effective_size(means: Vector, n: int) -> float:
    """How many independent images would know a share of them as well as these clusters do.

    As many as have the variance p (1 − p) / n of the clusters' mean share. Two clusters more, one without and
    one with all of it, stand by while that is found, and are taken off again: few clusters near 0 or 1 look
    more certain than they are. Images that are their own clusters count as what they are.

    Args:
        means: each cluster's share.
        n: number of images, the most that there can be.

    Source:
        A. Agresti and B. A. Coull, Approximate is better than "exact" for interval estimation of binomial
        proportions, The American Statistician 52, 1998 (the pseudo-observations).

    Example:
        >>> round(find_effective_size(np.array([0.0, 1.0, 1.0, 0.0, 1.0]), 40), 9)
        5.0
    """
    padded = np.append(means, (0.0, 1.0))
    share = float(padded.mean())
    found = share * (1 - share) * len(padded) ** 2 / float(((padded - share) ** 2).sum()) - 2
    return min(max(found, 1.0), float(n))


def _find_skewness(standardized: Vector) -> float:
    """Skewness without the bias of a normal sample; 0 of a few values, which say nothing of it."""
    n = len(standardized)
    return n / ((n - 1) * (n - 2)) * float((standardized**3).sum()) if n >= FEWEST_SKEWED else 0.0


def _straighten(t: float, skew: float) -> float:
    """Hall's cubic, which is monotone; ``skew`` is skewness / √n."""
    return t + skew * (t**2 / 3 + 1 / 6) + skew**2 * t**3 / 27


def _restore(y: float, skew: float) -> float:
    """Invert Hall's cubic."""
    if abs(skew) < 1e-9:  # the closed form is 0 / 0
        return y
    return float(3 / skew * (np.cbrt(1 + skew * (y - skew / 6)) - 1))


def _count_sums(ranks: Codes) -> Vector:
    """Probability of each sum of ranks, each of them taken or left with probability ½."""
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0] = 1.0
    for rank in ranks:
        taken = np.zeros_like(chance)
        taken[rank:] = chance[: len(chance) - rank]
        chance = (chance + taken) / 2
    return chance
