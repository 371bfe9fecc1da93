"""Pearson, Spearman and distance correlation, with intervals that know about clusters; partial by ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from spectral.stats.reading import (
    UPPER,
    Codes,
    Matrix,
    Vector,
    check_lengths,
    expand_percentiles,
    is_constant,
    read_clusters,
    read_pair,
    read_vector,
)

_Coefficient = Callable[[Vector, Vector], float]
_DETERMINED = 0.9  # share of the resamples that must have a coefficient for an interval


@dataclass(frozen=True)
class Correlation:
    """Three measures of dependence; NaN with a ``reason`` where the data determine none."""

    n: int
    n_clusters: int | None
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
    bootstrap's repeated rows sit at distance 0 from each other and push the estimate up. It covers
    89 to 99 % in simulations, least where the dependence is weak. Pearson's interval is Fisher's,
    Spearman's is Bonett and Wright's, the distance p-value comes from permutations.

    With ``clusters``, Pearson's and Spearman's intervals and p-values come from a jackknife that deletes one
    cluster at a time (on Fisher's scale, Student's t with G − 1 degrees of freedom), halves are halves of the
    clusters, and the distance p-value comes from a wild bootstrap with one random sign per cluster.

    Distances are kept as matrices: memory grows as N², 8 MB each for 1000 images.

    Args:
        x: one value per image.
        y: one value per image, same order.
        clusters: one label per image, the photograph it was cut from.
        n_resamples: number of halves, and of permutations or sign draws.
        seed: of all random draws.

    Raises:
        SpectralError: unequal lengths, fewer than 2 clusters, or values that are not finite. Fewer than 4
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
    u, v = read_pair("correlate", ("x", x), ("y", y))
    n = len(u)
    codes = None if clusters is None else read_clusters("correlate", clusters, n)
    n_clusters = None if codes is None else int(codes.max()) + 1
    constant = [name for name, column in (("x", u), ("y", v)) if is_constant(column)]
    if n < 4 or constant:
        reason = f"needs at least 4 images, got {n}" if n < 4 else f"{' and '.join(constant)} is constant"
        return Correlation(n, n_clusters, reason=reason)
    spearman = _test_coefficient(_spearman, u, v, codes, spread=0.5)
    # Unit ranges change no other coefficient and keep products clear of overflow and underflow.
    u, v = (u - u.min()) / np.ptp(u), (v - v.min()) / np.ptp(v)
    pearson = _test_coefficient(_pearson, u, v, codes, spread=0.0)
    distance = _measure_distance_dependence(u, v, codes, n_resamples, np.random.default_rng(seed))
    reason = "too few images for an interval of the distance correlation" if math.isnan(distance[2]) else ""
    if math.isnan(pearson[1]):
        reason = "no interval over clusters: x or y is constant without one of them"
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
    coefficients. The interval resamples rows, ranking each resample anew, with percentiles widened for few
    rows; p permutes the residuals of y, so that it holds at any n.

    Args:
        x: one value per row.
        y: one value per row, same order.
        given: columns by name, same order.
        n_resamples: number of resamples, and of permutations.
        seed: of both.

    Raises:
        SpectralError: unequal lengths, or values that are not finite. Fewer rows than 4 and one for each
            given column, or a column without spread beside the given ones, give NaN and a ``reason`` instead.

    Source:
        Kendall, Partial rank correlation, 1942; Freedman and Lane, A nonstochastic interpretation of
        reported significance levels, 1983 (permuted residuals); Hesterberg 2014 (widened percentiles).

    Example:
        >>> size = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        >>> x, y = [2.0, 1.0, 4.0, 3.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]
        >>> round(correlate_ranks(x, y).rho, 3), round(correlate_ranks(x, y, {"size": size}).rho, 3)
        (0.886, 0.56)
    """
    name = "correlate_ranks"
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
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(residuals[1], (n_resamples, 1)), axis=1)
    # a permutation puts something back along the given columns
    draws = np.abs(_correlate_rows(residuals[0], _remove(shuffled, ranks[2:])))
    p = (1 + int((draws >= abs(rho) - 1e-9).sum())) / (1 + n_resamples)
    resampled = _rank(columns[:, rng.integers(n, size=(n_resamples, n))].swapaxes(0, 1))
    found = _correlate_rows(*_remove(resampled[:, :2], resampled[:, 2:]).swapaxes(0, 1))
    known = found[np.isfinite(found)]
    if len(known) < _DETERMINED * n_resamples:
        return RankCorrelation(n, k, rho, p=p, reason="no interval: too many resamples determine none")
    return RankCorrelation(n, k, rho, *expand_percentiles(known, n), p)


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
        error, critical = math.sqrt((1 + spread * r**2) / (n - 3)), scipy.stats.norm.ppf(UPPER)
        p = 2 * scipy.stats.t.sf(abs(math.sinh(z)) * math.sqrt(n - 2), n - 2)
    else:
        df = int(codes.max())
        without = [statistic(x[codes != g], y[codes != g]) for g in range(df + 1)]
        error = math.sqrt(df) * float(np.arctanh(np.clip(without, -limit, limit)).std())
        critical = scipy.stats.t.ppf(UPPER, df)
        p = 2 * scipy.stats.t.sf(abs(z) / error if error else math.inf, df)
    return r, math.tanh(z - critical * error), math.tanh(z + critical * error), float(p)


def _measure_distance_dependence(
    x: Vector, y: Vector, codes: Codes | None, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float, float, float, float]:
    """Return the plain and the corrected distance correlation, the latter's interval, and p."""
    n = len(x)
    distances = (np.abs(x[:, None] - x), np.abs(y[:, None] - y))
    squared = _unbiased_squares(*distances, np.ones((n, 1)))[0]
    clusters = np.arange(n) if codes is None else codes
    low, high = _halve_percentiles(squared, distances, clusters, n_resamples, rng)
    corrected, low, high = np.sqrt(np.clip([squared, low, high], 0, 1)).tolist()
    a, b = (_centre(matrix) for matrix in distances)
    if codes is None:
        orders = (rng.permutation(n) for _ in range(n_resamples))
        observed, draws = np.vdot(a, b), np.array([np.vdot(a, b[order][:, order]) for order in orders])
    else:
        member = np.eye(codes.max() + 1)[codes]
        between = member.T @ (a * b) @ member
        signs = rng.choice([-1.0, 1.0], size=(n_resamples, len(between)))
        observed, draws = between.sum(), ((signs @ between) * signs).sum(axis=1)
    # Equal arrangements must count as ties although their sums may round differently.
    p = (1 + int((draws >= observed * (1 - 1e-9)).sum())) / (1 + n_resamples)
    plain = float(np.vdot(a, b)) / math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    return math.sqrt(max(plain, 0.0)), corrected, low, high, p


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
    whole: float, distances: tuple[Matrix, Matrix], codes: Codes, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return an interval from halves of the clusters: they vary about the whole as it about the truth."""
    n_clusters = int(codes.max()) + 1
    half = (n_clusters + 1) // 2
    drawn = [(rng.permutation(n_clusters) < half)[codes] for _ in range(n_resamples)]
    draws = _unbiased_squares(*distances, np.array(drawn, dtype=np.float64).T)
    scale = math.sqrt(half / (n_clusters - half))
    low, high = expand_percentiles(draws, n_clusters)
    return whole + scale * (low - whole), whole + scale * (high - whole)


def _centre(distances: Matrix) -> Matrix:
    means = distances.mean(axis=0)
    return np.asarray(distances - means - means[:, None] + means.mean())
