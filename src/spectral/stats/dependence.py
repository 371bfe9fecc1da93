"""Pearson, Spearman and distance correlation of clusters' means, and partial correlation by ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # loads its parts when they are used: `stats` takes a second
from numpy.typing import ArrayLike

from spectral.stats.estimate import average_clusters
from spectral.stats.reading import (
    LEVEL,
    UPPER,
    Matrix,
    Vector,
    check_draws,
    check_lengths,
    expand_percentiles,
    is_constant,
    read_clusters,
    read_pair,
    read_vector,
)

# How much r² adds to a coefficient's error on Fisher's scale
PEARSON, SPEARMAN = 0.0, 0.5
PERFECT = 1 - 1e-15  # keeps Fisher's z finite


@dataclass(frozen=True)
class Correlation:
    """Three measures of dependence; NaN with a ``reason`` where the data determine none."""

    n: int
    n_clusters: int
    pearson_r: float = math.nan
    pearson_ci_low: float = math.nan
    pearson_ci_high: float = math.nan
    pearson_p: float = math.nan
    r2: float = math.nan
    spearman_rho: float = math.nan
    spearman_ci_low: float = math.nan
    spearman_ci_high: float = math.nan
    spearman_p: float = math.nan
    distance_correlation: float = math.nan
    distance_corrected: float = math.nan
    distance_corrected_ci_low: float = math.nan
    distance_corrected_ci_high: float = math.nan
    distance_p: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation, plain or partial; NaN with a ``reason`` where the data determine none."""

    n: int
    n_given: int
    rho: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p: float = math.nan
    reason: str = ""


def correlate(
    x: ArrayLike, y: ArrayLike, clusters: ArrayLike | None = None, n_resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Pearson, Spearman and distance correlation, each with an interval and a p-value.

    ``distance_correlation`` is the plain estimate in [0, 1]; it is biased upwards (about 0.05 for 1000
    independent pairs). ``distance_corrected`` is the root of the bias-corrected squared estimate, 0 where
    that is negative, and carries the interval: percentiles over random halves of the images, because a
    bootstrap's repeated rows sit at distance 0 from each other and push the estimate up. It leaves out 0
    exactly where its p, from permutations, is below 0.05. Pearson's interval is Fisher's and
    Spearman's Bonett and Wright's, both as wide as makes them leave out 0 exactly where Student's p < 0.05;
    Spearman's p is never below that of a perfect order by chance.

    With ``clusters`` all of it is of the clusters' means: does a photograph's x tell of its y? Within-cluster
    dependence would need an error of its own, and cluster-robust ones reject twice as often as they should
    where values are skewed (``benchmarks/nulls.py``).

    Distances are kept as matrices: memory grows as N², 8 MB each for 1000 clusters.

    Args:
        x: one value per image.
        y: one value per image, same order.
        clusters: one label per image, the photograph it was cut from; by default each is its own.
        n_resamples: number of halves, and of permutations.
        seed: of all random draws.

    Raises:
        SpectralError: unequal lengths, or values that are not finite. Fewer than 4 clusters, or a constant
            column, give NaN and a ``reason`` instead.

    Source:
        Bonett and Wright 2000; Székely, Rizzo and Bakirov 2007; Székely and Rizzo 2013 (bias correction);
        Politis and Romano 1994 (subsampling).

    Example:
        >>> result = correlate([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0], n_resamples=99)
        >>> round(result.pearson_r, 6), round(result.spearman_rho, 6)
        (0.8, 0.8)
        >>> correlate([1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 4.0, 3.0]).reason
        'x is constant'
    """
    check_draws("correlate", n_resamples, seed)
    u, v = read_pair("correlate", ("x", x), ("y", y))
    codes = read_clusters("correlate", clusters, len(u), fewest=0)
    n, u, v = len(u), average_clusters(u, codes), average_clusters(v, codes)
    n_clusters = len(u)
    constant = [name for name, column in (("x", u), ("y", v)) if is_constant(column)]
    if n_clusters < 4 or constant:
        few = f"needs at least 4 clusters, got {n_clusters}"
        flat = f"{' and '.join(constant)} {'is' if len(constant) == 1 else 'are'} constant"
        return Correlation(n, n_clusters, reason=few if n_clusters < 4 else flat)
    spearman = _test_ranks(_spearman(u, v), n_clusters)
    # Unit ranges change no other coefficient and keep products clear of overflow and underflow.
    u, v = (u - u.min()) / np.ptp(u), (v - v.min()) / np.ptp(v)
    pearson = _test_pearson(find_pearson(u, v), n_clusters)
    distance = _measure_distance_dependence(u, v, n_resamples, np.random.default_rng(seed))
    reason = "too few clusters for an interval of the distance correlation" if math.isnan(distance[2]) else ""
    return Correlation(n, n_clusters, *pearson, pearson[0] ** 2, *spearman, *distance, reason)


def correlate_ranks(
    x: ArrayLike,
    y: ArrayLike,
    given: Mapping[str, ArrayLike] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's correlation of a few rows, or what is left of it when other columns are given.

    All columns are ranked. The partial correlation is Pearson's of the residuals of both ranks after linear
    regression on the ranks of the given columns: what they explain by a straight line in ranks, and no more,
    is taken out. For one given column z that is (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)) of Spearman's
    coefficients. p is the larger of Student's and that of permutations of y's residuals: few rows in perfect
    order are no proof, and few permutations say little of a rare value. The interval is Bonett and Wright's,
    as wide as makes it leave out 0 exactly where p < 0.05.

    Args:
        x: one value per row.
        y: one value per row, same order.
        given: columns by name, same order.
        n_resamples: number of permutations.
        seed: of these.

    Raises:
        SpectralError: unequal lengths, or values that are not finite. Fewer rows than 4 and one for each
            given column, or a column without spread beside the given ones, give NaN and a ``reason`` instead.

    Source:
        Kendall, Partial rank correlation, 1942; Freedman and Lane, A nonstochastic interpretation of
        reported significance levels, 1983 (permuted residuals); Bonett and Wright 2000.

    Example:
        >>> size = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        >>> x, y = [2.0, 1.0, 4.0, 3.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]
        >>> round(correlate_ranks(x, y).rho, 3), round(correlate_ranks(x, y, {"size": size}).rho, 3)
        (0.886, 0.56)
    """
    name = "correlate_ranks"
    check_draws(name, n_resamples, seed)
    u, v = read_pair(name, ("x", x), ("y", y))
    others = [read_vector(name, str(key), column) for key, column in (given or {}).items()]
    check_lengths(name, {"x": u, **dict(zip(given or {}, others, strict=True))})
    n, k = len(u), len(others)
    columns = np.stack([u, v, *others])
    if n < 4 + k:
        return RankCorrelation(n, k, reason=f"needs at least {4 + k} rows, got {n}")
    ranks = _rank(columns)
    residuals = _remove(ranks[:2], ranks[2:])
    flat = [label for label, own in (("x", residuals[0]), ("y", residuals[1])) if _is_flat(own)]
    if flat:
        why = "constant" if not k or any(is_constant(c) for c in (u, v)) else "determined by what is given"
        return RankCorrelation(n, k, reason=f"{' and '.join(flat)} {'is' if len(flat) == 1 else 'are'} {why}")
    rho = float(_correlate_rows(*residuals))
    shuffled = np.random.default_rng(seed).permuted(np.tile(residuals[1], (n_resamples, 1)), axis=1)
    # a permutation puts something back along the given columns
    draws = np.abs(_correlate_rows(residuals[0], _remove(shuffled, ranks[2:])))
    p, limit = _judge(abs(rho), draws, rounding=1e-9)
    p = max(p, _student(rho, n - 2 - k))
    if math.isinf(limit):
        return RankCorrelation(n, k, rho, p=p, reason=f"no interval: no p < {LEVEL} of so few permutations")
    limit = max(limit, _find_limit(n - 2 - k))
    return RankCorrelation(n, k, rho, *_span(rho, limit, SPEARMAN, _find_next_rank(n)), p)


def _judge(observed: float, draws: Vector, rounding: float) -> tuple[float, float]:
    """Return p of a value among what permutations give, and the largest value of which p isn't significant.

    Values that differ by rounding alone count as ties.
    """
    p = (1 + int((draws >= observed - rounding).sum())) / (1 + len(draws))
    significant = np.arange(1, len(draws) + 2) / (1 + len(draws)) < LEVEL
    fewer = int(significant.sum())  # than so many draws may reach a significant value
    return p, float(np.sort(draws)[-fewer]) + rounding if fewer else math.inf


def _rank(columns: Matrix) -> Matrix:
    """Rank along the last axis, about 0: the mean of N ranks is (N + 1) / 2, ties or not."""
    return np.asarray(scipy.stats.rankdata(columns, axis=-1) - (columns.shape[-1] + 1) / 2)


def _remove(columns: Matrix, given: Matrix) -> Matrix:
    """Return columns (…, M, N) without what linear regression on others (…, K, N) explains, all of mean 0."""
    return np.asarray(columns - columns @ np.linalg.pinv(given, rcond=1e-9) @ given)


def _is_flat(residuals: Vector) -> bool:
    return bool(np.abs(residuals).max() < 1e-9 * len(residuals))


def _correlate_rows(x: Matrix, y: Matrix) -> Matrix:
    """Pearson's coefficient along the last axis of columns whose mean is 0; NaN where one has no spread."""
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-9, np.clip((x * y).sum(-1) / scale, -1, 1), math.nan)


def find_pearson(x: Vector, y: Vector) -> float:
    """Pearson's coefficient; NaN where one column has no spread."""
    x, y = x - x.mean(), y - y.mean()
    with np.errstate(invalid="ignore"):
        return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _spearman(x: Vector, y: Vector) -> float:
    return find_pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


def _test_pearson(r: float, n: int) -> tuple[float, float, float, float]:
    """Return Pearson's coefficient, its interval and Student's p."""
    return r, *_span(r, _find_limit(n - 2), PEARSON), _student(r, n - 2)


def _test_ranks(rho: float, n: int) -> tuple[float, float, float, float]:
    """Return Spearman's coefficient, its interval and p: few rows in perfect order are no proof.

    Two of the n! orders are perfect, so that p is never below 2 / n!.
    """
    least = 2 / math.factorial(min(n, 20))
    limit = _find_limit(n - 2) if least < LEVEL else 1.0
    return rho, *_span(rho, limit, SPEARMAN, _find_next_rank(n)), max(_student(rho, n - 2), least)


def _find_next_rank(n: int) -> float:
    """Return the largest Spearman coefficient below 1 of n rows: two neighbours have changed places."""
    return 1 - 12 / (n * (n**2 - 1))


def _student(r: float, df: int) -> float:
    """Student's p of a correlation."""
    t = math.sinh(math.atanh(min(abs(r), PERFECT))) * math.sqrt(df)
    return float(2 * scipy.special.stdtr(df, -t))


def _find_limit(df: int) -> float:
    """Return the largest correlation that isn't significant by Student's test."""
    quantile = float(scipy.special.stdtrit(df, UPPER))
    return quantile / math.sqrt(df + quantile**2)


def _span(r: float, limit: float, spread: float, most: float = PERFECT) -> tuple[float, float]:
    """Return a coefficient's interval from the largest one that isn't significant.

    Its half width is Fisher's z of that, where Fisher has 1.96 / √(n − 3): next to nothing, but the interval
    then leaves out 0 exactly where p < 0.05. ``spread`` scales r² in the error on Fisher's scale. That of a
    larger coefficient than ``most`` reaches from the interval of this one to the coefficient: ranks in
    perfect order are at no infinite place of Fisher's scale.
    """
    if most < limit < 1:
        most = (1 + limit) / 2  # significant still
    centre, limit = min(max(r, -most), most), min(limit, PERFECT)
    half = math.atanh(limit) * math.sqrt((1 + spread * centre**2) / (1 + spread * limit**2))
    low, high = math.tanh(math.atanh(centre) - half), math.tanh(math.atanh(centre) + half)
    return min(low, r), max(high, r)


def _measure_distance_dependence(
    x: Vector, y: Vector, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float, float, float, float]:
    """Return the plain and the corrected distance correlation, the latter's interval, and p.

    Where halves leave the lower bound at 0 although p is significant, it is the estimate less the largest
    one that isn't; where p isn't, it is 0.
    """
    n = len(x)
    distances = (np.abs(x[:, None] - x), np.abs(y[:, None] - y))
    squared = float(_unbiased_squares(*distances, np.ones((n, 1)))[0])
    low, high = _halve_percentiles(squared, distances, n_resamples, rng)
    a, b = (_centre(matrix, n - 2, (n - 1) * (n - 2)) * (1 - np.eye(n)) for matrix in distances)
    orders = (rng.permutation(n) for _ in range(n_resamples))
    draws = np.array([np.vdot(a, b[order][:, order]) for order in orders])
    p, limit = _judge(squared, _divide(draws, a, b), rounding=1e-9)
    corrected, low, high, limit = np.sqrt(np.clip([squared, low, high, limit], 0, 1)).tolist()
    if not math.isnan(low):
        low = 0.0 if p >= LEVEL else low if low > 0 else corrected - limit
    a, b = (_centre(matrix, n, n**2) for matrix in distances)
    plain = float(_divide(np.vdot(a, b), a, b))
    return math.sqrt(max(plain, 0.0)), corrected, low, high, p


def _divide(inner: Any, a: Matrix, b: Matrix) -> Any:
    """Divide inner products of centred distances by their norms; 0 where one has none."""
    norms = math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    return inner / norms if norms > 0 else 0 * inner


def _unbiased_squares(a: Matrix, b: Matrix, chosen: Matrix) -> Vector:
    """Bias-corrected squared distance correlation of each column's choice of rows (0 or 1), all at once.

    The U-centred inner product of a subset needs only sums over it, which are products with the choices:
    thousands of subsets cost a few matrix products, and no distance is computed twice.
    """
    m = chosen.sum(axis=0)
    rows_a, rows_b = a @ chosen, b @ chosen

    def inner(u: Matrix, v: Matrix, rows_u: Matrix, rows_v: Matrix) -> Vector:
        pairs = (chosen * ((u * v) @ chosen)).sum(axis=0)
        rows = (chosen * rows_u * rows_v).sum(axis=0)
        totals = (chosen * rows_u).sum(axis=0) * (chosen * rows_v).sum(axis=0)
        return np.asarray((pairs - 2 * rows / (m - 2) + totals / ((m - 1) * (m - 2))) / (m * (m - 3)))

    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(inner(a, a, rows_a, rows_a) * inner(b, b, rows_b, rows_b))
        squares = inner(a, b, rows_a, rows_b) / scale
    squares = np.where(scale > 0, squares, 0.0)
    return np.where(m > 3, squares, math.nan)  # U-centring divides by m − 3


def _halve_percentiles(
    whole: float, distances: tuple[Matrix, Matrix], n_resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return an interval from halves of the rows: they vary about the whole as it about the truth."""
    n = len(distances[0])
    half = (n + 1) // 2
    drawn = np.array([rng.permutation(n) < half for _ in range(n_resamples)], dtype=np.float64)
    draws = _unbiased_squares(*distances, drawn.T)
    scale = math.sqrt(half / (n - half))
    low, high = expand_percentiles(draws, n)
    return whole + scale * (low - whole), whole + scale * (high - whole)


def _centre(distances: Matrix, rows: float, pairs: float) -> Matrix:
    """Centre distances by their sums over rows and over all pairs, each divided by how many count."""
    sums = distances.sum(axis=0)
    centred: Matrix = distances - sums / rows - sums[:, None] / rows + distances.sum() / pairs
    return centred
