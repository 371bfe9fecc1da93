"""Do the tests hold their level, and do the intervals hold the truth, where nothing is there to be found?

Photographs with skewed values and unequal numbers of crops, drawn again and again under the null: the share
of p < 0.05 of every test that a table prints (size), and the share of 95 % intervals that hold the true value
(coverage). Writes nothing; prints a table.

Example: python benchmarks/nulls.py --simulations 300 --clusters 50 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral import stats

Vector = NDArray[np.float64]
LEVEL = 0.05
SKEW = 0.75  # σ of the logarithm of the photographs' means: a skewness of 3.3
RESAMPLES = 199  # of permutations
# What normal variables with a correlation of ½ have: 6 / π · arcsin(r / 2); Székely, Rizzo and Bakirov 2007
SPEARMAN_OF_HALF, DISTANCE_OF_HALF = 0.4826, 0.4541


@dataclass(frozen=True)
class Crops:
    """Crops of photographs: which photograph each was cut from."""

    clusters: NDArray[np.intp]
    rng: np.random.Generator

    @classmethod
    def draw(cls, n_clusters: int, rng: np.random.Generator) -> Crops:
        """Draw photographs of which two in five are whole, and the others have from 2 to 30 crops."""
        whole = rng.random(n_clusters) < 0.4
        sizes = np.where(whole, 1, rng.integers(2, 31, n_clusters))
        return cls(np.repeat(np.arange(n_clusters), sizes), rng)

    def values(self) -> Vector:
        """Values ≥ 0 of mean 1: a skewed mean of each photograph, times what each crop adds."""
        n = int(self.clusters.max()) + 1
        means = np.exp(SKEW * self.rng.normal(size=n) - SKEW**2 / 2)
        crops: Vector = means[self.clusters] * self.rng.gamma(4, 1 / 4, len(self.clusters))
        return crops

    def flags(self, share: float, spread: float = 3.0) -> Vector:
        """True or false, each photograph with a share of its own."""
        n = int(self.clusters.max()) + 1
        shares = self.rng.beta(spread * share, spread * (1 - share), n)
        drawn: Vector = (self.rng.random(len(self.clusters)) < shares[self.clusters]).astype(float)
        return drawn


Found = dict[str, float]  # name of a test → its p, or name of an interval → 1 if it holds the truth


def find_mean(crops: Crops) -> Found:
    """The mean of a summary: skewed values of mean 1."""
    found = stats.summarize(crops.values(), clusters=crops.clusters)
    return {"mean, coverage": float(found.ci_low <= 1 <= found.ci_high)}


def find_differences(crops: Crops) -> Found:
    """Two networks of one kind on the same crops: skewed values, exchangeable between the two."""
    shared = crops.values()
    a, b = (shared * crops.values() for _ in range(2))
    found = stats.compare_paired(a, b, crops.clusters)
    change = stats.relative_change(a, b, crops.clusters)
    return {
        "difference, p": found.p,
        "difference, wilcoxon_p": found.wilcoxon_p,
        "difference, coverage": float(found.ci_low <= 0 <= found.ci_high),
        "change in percent, coverage": float(change.ci_low <= 0 <= change.ci_high),
    }


def find_skewed_difference(crops: Crops) -> Found:
    """A difference of mean 0 that is skewed itself, as where few photographs carry it."""
    found = stats.compare_paired(crops.values(), np.ones(len(crops.clusters)), crops.clusters)
    return {"skewed difference, p": found.p}


def find_shares(crops: Crops) -> Found:
    """Shares near the middle and near the end, and two networks' shares on the same crops."""
    held: Found = {}
    for share in (0.6, 0.92):
        found = stats.summarize_share(crops.flags(share), crops.clusters)
        held[f"share of {share}, coverage"] = float(found.ci_low <= share <= found.ci_high)
    between = stats.compare_shares(crops.flags(0.6), crops.flags(0.6), crops.clusters)
    held["difference of shares, p"] = between.p
    held["difference of shares, coverage"] = float(between.ci_low <= 0 <= between.ci_high)
    return held


def find_correlations(crops: Crops) -> Found:
    """Two skewed columns that have nothing to do with each other."""
    seed = int(crops.rng.integers(2**31))
    found = stats.correlate(crops.values(), crops.values(), crops.clusters, RESAMPLES, seed)
    return {
        "correlation, pearson_p": found.pearson_p,
        "correlation, spearman_p": found.spearman_p,
        "correlation, distance_p": found.distance_p,
        "correlation, Pearson coverage": float(found.pearson_ci_low <= 0 <= found.pearson_ci_high),
        "correlation, distance coverage": float(found.distance_corrected_ci_low <= 0),
        "correlation, Spearman coverage": float(found.spearman_ci_low <= 0 <= found.spearman_ci_high),
    }


def find_rank_correlations(crops: Crops) -> Found:
    """Networks, a few of them, each a row of its own; both columns depend on a third."""
    n, seed = 15, int(crops.rng.integers(2**31))
    x, y = (np.exp(crops.rng.normal(size=n)) for _ in range(2))
    third = crops.rng.normal(size=n)
    plain = stats.correlate_ranks(x, y, None, RESAMPLES, seed)
    partial = stats.correlate_ranks(
        third + crops.rng.normal(size=n), third + crops.rng.normal(size=n), {"third": third}, RESAMPLES, seed
    )
    return {
        "networks, spearman_p": plain.p,
        "networks, partial_p": partial.p,
        "networks, Spearman coverage": float(plain.ci_low <= 0 <= plain.ci_high),
        "networks, partial coverage": float(partial.ci_low <= 0 <= partial.ci_high),
    }


def find_pairs(crops: Crops) -> Found:
    """Eight pairs of networks, each a log-ratio."""
    logs = crops.rng.normal(size=8)
    found = stats.compare_paired(logs, np.zeros(len(logs)))
    return {
        "pairs of networks, p": found.p,
        "pairs of networks, coverage": float(found.ci_low <= 0 <= found.ci_high),
    }


def find_real_change(crops: Crops) -> Found:
    """A change that is there: 30 % less, as of a source's share of the instability."""
    shared = crops.values()
    a, b = shared * crops.values(), 0.7 * shared * crops.values()
    found = stats.relative_change(a, b, crops.clusters)
    return {"change by −30 %, coverage": float(found.ci_low <= -30 <= found.ci_high)}


def find_real_correlations(crops: Crops) -> Found:
    """Normal columns whose correlation is known, one value a photograph: Pearson's r is 0.5."""
    x, e = crops.rng.normal(size=(2, int(crops.clusters.max()) + 1))
    found = stats.correlate(x, 0.5 * x + np.sqrt(0.75) * e, None, RESAMPLES, int(crops.rng.integers(2**31)))
    return {
        f"correlation of 0.5, {name} coverage": float(low <= truth <= high)
        for name, truth, low, high in (
            ("Pearson", 0.5, found.pearson_ci_low, found.pearson_ci_high),
            ("Spearman", SPEARMAN_OF_HALF, found.spearman_ci_low, found.spearman_ci_high),
            ("distance", DISTANCE_OF_HALF, found.distance_corrected_ci_low, found.distance_corrected_ci_high),
        )
    }


def find_family(crops: Crops) -> Found:
    """A table of 20 tests on the same crops: does one survive Holm's correction?"""
    p = [stats.compare_paired(crops.values(), crops.values(), crops.clusters).p for _ in range(20)]
    return {"any of 20 tests, p_holm": float(stats.holm(p).min())}


CASES: tuple[Callable[[Crops], Found], ...] = (
    find_mean, find_differences, find_skewed_difference, find_shares, find_correlations,
    find_rank_correlations, find_pairs, find_real_change, find_real_correlations, find_family,
)  # fmt: skip


def simulate(simulations: int, n_clusters: int, seed: int) -> pd.DataFrame:
    """Draw and test again and again.

    Args:
        simulations: how often.
        n_clusters: photographs of each draw.
        seed: of all draws.

    Returns:
        A row per test or interval: what, kind (size or coverage), the share, and its standard error if it is
        as it should be.
    """
    draws = pd.DataFrame(_draw(simulations, n_clusters, seed))
    rows = []
    for name, values in draws.items():
        coverage = str(name).endswith("coverage")
        share = float(values.mean() if coverage else (values < LEVEL).mean())
        error = float(np.sqrt(LEVEL * (1 - LEVEL) / simulations))
        rows.append({"what": str(name).removesuffix(", coverage"), "kind": "coverage" if coverage else "size",
                     "share": share, "standard_error": error})  # fmt: skip
    return pd.DataFrame(rows)


def _draw(simulations: int, n_clusters: int, seed: int) -> Iterator[Found]:
    for stream in np.random.SeedSequence(seed).spawn(simulations):
        crops = Crops.draw(n_clusters, np.random.default_rng(stream))
        yield {name: value for case in CASES for name, value in case(crops).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = simulate(options.simulations, options.clusters, options.seed)
    with pd.option_context("display.width", 120):
        print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
