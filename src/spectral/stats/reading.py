"""Reading columns of numbers, and resampling clusters: what every statistic here does first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from numpy.typing import ArrayLike, NDArray

from spectral.arguments.values import is_integer
from spectral.errors import SpectralError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Codes = NDArray[np.intp]
LEVEL = 0.05  # of every test: an interval leaves out 0 where p is below it
UPPER = 1 - LEVEL / 2
ROUNDING = 4 * np.finfo(np.float64).eps


def is_constant(values: Vector) -> bool:
    """Whether a column has no spread beyond rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def read_vector(function: str, name: str, values: ArrayLike, finite: bool = True) -> Vector:
    """Return a column as float64, or say in one sentence what is wrong with it."""
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


def check_lengths(function: str, columns: dict[str, Any]) -> None:
    """Refuse columns of different lengths."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise SpectralError(f"{function}: columns must be equally long and in the same order, got {got}.")


def read_pair(function: str, a: tuple[str, ArrayLike], b: tuple[str, ArrayLike]) -> tuple[Vector, Vector]:
    """Read two columns of one length."""
    left, right = read_vector(function, *a), read_vector(function, *b)
    check_lengths(function, {a[0]: left, b[0]: right})
    return left, right


def read_clusters(function: str, clusters: ArrayLike | None, n: int, fewest: int = 2) -> Codes:
    """Turn one label per row into codes 0…G−1; without labels each row is a cluster of its own."""
    if clusters is None:
        return np.arange(n)
    labels_of_rows = read_labels(function, "clusters", clusters, n)
    try:
        codes, labels = pd.factorize(labels_of_rows)
    except TypeError:
        raise SpectralError(f"{function}: clusters must be names or numbers, got {clusters!r:.60}.") from None
    if (codes < 0).any():
        raise SpectralError(
            f"{function}: every row needs a cluster, got {int((codes < 0).sum())} without; name them."
        )
    if len(labels) < fewest:
        raise SpectralError(
            f"{function}: needs at least {fewest} clusters, got {len(labels)}; measure more photographs."
        )
    return codes


def read_labels(function: str, name: str, labels: ArrayLike, n: int) -> NDArray[Any]:
    """Return one label per row as an array, or say in one sentence what is wrong with them."""
    try:
        found = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        found = np.empty(())
    if found.ndim != 1:
        raise SpectralError(f"{function}: {name} must be one column of labels, got {labels!r:.60}.")
    check_lengths(function, {"values": range(n), name: found})
    return found


def check_draws(function: str, n_resamples: int, seed: int) -> None:
    """Refuse numbers that nothing can be drawn with."""
    if not is_integer(n_resamples) or n_resamples < 1 or not is_integer(seed) or seed < 0:
        raise SpectralError(
            f"{function}: n_resamples must be a whole number ≥ 1 and seed one ≥ 0, got "
            f"{n_resamples!r:.20} and {seed!r:.20}."
        )


def resample_sums(columns: Matrix, n_resamples: int, seed: int) -> Matrix:
    """Return (n_resamples, K) column sums over rows drawn with replacement."""
    n = len(columns)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples)
    return np.asarray(counts @ columns)


def expand_percentiles(draws: Vector, n_clusters: int) -> tuple[float, float]:
    """Percentiles of resampled means, widened for few clusters as Student's t is against the normal."""
    widened = math.sqrt(n_clusters / (n_clusters - 1)) * scipy.special.stdtrit(n_clusters - 1, UPPER)
    tail = float(scipy.special.ndtr(-widened))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
