"""Tests hold their level and intervals the truth: the benchmark in small, and the one estimator in large."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from spectral.stats import estimate_mean

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "nulls.py"


@pytest.fixture(scope="module")
def nulls() -> ModuleType:
    """The benchmark, which isn't part of the package."""
    spec = importlib.util.spec_from_file_location("nulls", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nulls"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_test_and_interval_of_the_tables(nulls):
    """Within 3.3 standard errors of what is asked of 300 simulations; this is a third of them."""
    table = nulls.simulate(simulations=100, n_clusters=50, seed=11).set_index(["what", "kind"])["share"]
    slack = 3.3 * np.sqrt(0.05 * 0.95 / 100)
    sizes, coverages = table.xs("size", level="kind"), table.xs("coverage", level="kind")
    assert len(sizes) == 11
    assert len(coverages) == 16
    assert (sizes <= 0.05 + slack).all(), sizes
    assert (coverages >= 0.95 - slack).all(), coverages


def lognormal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return np.exp(rng.normal(size=size)) - np.exp(0.5)


def exponential(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=size) - 1


def between_lognormal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return lognormal(rng, size) - lognormal(rng, size)


def flags(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=size)


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize(
    "draw", [np.random.Generator.normal, exponential, lognormal, between_lognormal, flags]
)
def test_the_estimator_covers_skewed_values_and_long_tails(draw: Callable[..., np.ndarray], n: int):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(1500, n)) if draw is np.random.Generator.normal else draw(rng, (1500, n))
    found = [estimate_mean(row) for row in values]
    covered = np.mean([f.ci_low <= 0 <= f.ci_high for f in found])
    rejected = np.mean([f.p < 0.05 for f in found])
    assert covered == pytest.approx(1 - rejected)
    error = np.sqrt(0.05 * 0.95 / 1500)
    assert 0.93 - error <= covered <= 0.98


def test_students_interval_alone_would_not_do(nulls):
    """What the estimator is for: Student's interval of 20 exponential values misses 8 % of the means."""
    values = exponential(np.random.default_rng(0), (1500, 20))
    error = values.std(axis=1, ddof=1) / np.sqrt(20)
    assert np.mean(np.abs(values.mean(axis=1)) <= 2.093 * error) < 0.93
