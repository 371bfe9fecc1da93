"""Statistics against closed forms, definitions written out a second time, and seeded simulations."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spectral.errors import SpectralError
from spectral.stats import (
    compare_paired,
    compare_shares,
    correlate,
    correlate_ranks,
    count_share,
    estimate_mean,
    holm,
    regress_cross_validated,
    relative_change,
    summarize,
    summarize_share,
)

pytestmark = pytest.mark.filterwarnings("error")

quick = settings(max_examples=15)
whole = st.integers(-40, 40)
pairs = st.lists(st.tuples(whole, whole), min_size=8, max_size=25)


def draw_clustered(rng: np.random.Generator, n_clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops whose photograph carries most of the variance, about a mean of 0."""
    clusters = np.repeat(np.arange(n_clusters), size)
    return rng.normal(size=n_clusters)[clusters] + 0.5 * rng.normal(size=clusters.size), clusters


# --- summarize --------------------------------------------------------------------------------------------


def test_clusters_in_the_place_of_silent_are_refused():
    with pytest.raises(SpectralError, match=r"silent must be true or false for each value, got \['a', 'b'\]"):
        summarize([1.0, 2.0], ["a", "b"])
    assert summarize([1.0, 2.0], [1, 0]).n_silent == 1


def test_summary_of_three_values_by_hand():
    result = summarize([1.0, 2.0, 3.0])
    # Student's quantile has a closed form at two degrees of freedom; symmetric values have no skewness.
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * math.sqrt(1 / 3)
    assert (result.n, result.mean, result.median) == (3, 2.0, 2.0)
    assert result.std == pytest.approx(1.0)
    assert (result.ci_low, result.ci_high) == pytest.approx((2 - half, 2 + half))


def test_silent_rows_are_counted_and_left_out_even_when_nan():
    result = summarize([5.0, math.nan, 7.0, 0.0], silent=[False, True, False, True])
    assert (result.n, result.n_silent, result.mean) == (2, 2, 6.0)


def test_all_silent_has_counts_and_no_mean():
    result = summarize([0.0, 0.0], silent=[True, True])
    assert (result.n, result.n_silent) == (0, 2)
    assert math.isnan(result.mean)
    assert math.isnan(result.ci_low)


def test_one_value_has_a_mean_and_no_interval():
    result = summarize([4.0])
    assert result.mean == 4.0
    assert math.isnan(result.ci_low)
    assert math.isnan(result.ci_high)
    assert math.isnan(summarize([4.0, 5.0], clusters=["a", "a"]).ci_low)


def test_median_and_top_share_are_of_clusters():
    found = summarize([0.0, 0.0, 0.0, 0.0, 6.0, 1.0, 3.8], clusters=["a", "a", "a", "a", "a", "b", "c"])
    assert (found.mean, found.median) == (2.0, 1.2)
    assert found.top_tenth == pytest.approx(0.3 * 3.8 / 6.0)


def test_values_without_spread_have_an_interval_of_no_width():
    for value in (0.0, 0.3):
        found = summarize([value] * 7)
        assert (found.mean, found.std, found.ci_low, found.ci_high) == pytest.approx((value, 0, value, value))
        assert estimate_mean(np.full(7, value)).df == 6


def test_clusters_of_silent_rows_do_not_count():
    result = summarize([1.0, 2.0, 3.0, 9.0], silent=[0, 0, 0, 1], clusters=["a", "b", "b", "c"])
    assert (result.n, result.n_clusters, result.mean) == (3, 2, 1.75)


def test_the_interval_stays_within_what_the_quantity_can_be():
    result = summarize([0.0, 0.1, 0.9], low=0.0, high=1.0)
    assert (result.ci_low, result.ci_high) == (0.0, 1.0)


def test_results_become_rows():
    row = dataclasses.asdict(summarize([1.0, 2.0]))
    assert list(row) == [
        "n",
        "n_clusters",
        "n_silent",
        "mean",
        "std",
        "median",
        "ci_low",
        "ci_high",
        "top_tenth",
    ]


# --- the one estimator --------------------------------------------------------------------------------------


def find_interval(x: np.ndarray) -> tuple[float, float]:
    """Both methods' intervals from their definitions; Hall's cubic is inverted by searching."""
    n, mean, std = len(x), x.mean(), x.std(ddof=1)
    quantile = scipy.stats.t.ppf(0.975, n - 1)
    skew = scipy.stats.skew(x, bias=False) * (1 - 1 / n) ** 1.5 * math.sqrt(1 - 1 / n) ** -3 / math.sqrt(n)

    def cubic(t: float) -> float:
        return t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6

    ends = [scipy.optimize.brentq(lambda t, q=q: cubic(t) - q, -1e4, 1e4) for q in (-quantile, quantile)]
    low, high = min(-quantile, ends[0]), max(quantile, ends[1])
    return mean - std / math.sqrt(n) * high, mean - std / math.sqrt(n) * low


@pytest.mark.parametrize("n", [4, 5, 12, 40])
def test_the_value_at_an_end_of_the_interval_is_as_doubtful_as_the_level(n):
    """Of skewed values, whose intervals aren't symmetric; of 4 there is no skewness to speak of."""
    values = np.random.default_rng(n).exponential(size=n) ** 2
    found = estimate_mean(values)
    ends = (found.ci_low, found.ci_high)
    assert [estimate_mean(values - end).p for end in ends] == pytest.approx([0.05, 0.05], rel=1e-6)
    low, high = (abs(end - found.mean) for end in ends)
    assert (low == pytest.approx(high)) == (n == 4)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_from_its_definition(seed):
    values = np.random.default_rng(seed).exponential(size=15)
    found = estimate_mean(values)
    assert (found.ci_low, found.ci_high) == pytest.approx(find_interval(values), rel=1e-6)
    student = scipy.stats.ttest_1samp(values, 0)
    interval = student.confidence_interval()
    assert (found.t, found.df) == pytest.approx((student.statistic, 14))
    assert found.p >= student.pvalue
    assert found.ci_low <= interval.low + 1e-12
    assert found.ci_high >= interval.high - 1e-12


def test_symmetric_values_have_students_interval_and_p():
    half = np.random.default_rng(1).normal(size=10)
    values = np.concatenate([0.4 + half, 0.4 - half])
    found, student = estimate_mean(values), scipy.stats.ttest_1samp(values, 0)
    assert (found.p, found.ci_low) == pytest.approx((student.pvalue, student.confidence_interval().low))


columns = st.lists(
    st.floats(-50, 50, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=2, max_size=40
)


@settings(max_examples=200)
@given(columns, st.floats(-30, 30))
def test_the_interval_leaves_out_zero_exactly_where_p_is_below_the_level(values, centre):
    found = estimate_mean(np.array(values) - centre)
    outside = found.ci_low > 0 or found.ci_high < 0
    assert outside == (found.p < 0.05) or found.p == pytest.approx(0.05, abs=1e-9)


@quick
@given(columns, st.floats(0.01, 100), st.floats(-20, 20))
def test_the_estimate_moves_and_stretches_with_the_values(values, scale, shift):
    x = np.array(values)
    assume(np.ptp(x) > 0.01)
    one, two = estimate_mean(x), estimate_mean(scale * x + shift)
    moved = [scale * bound + shift for bound in (one.mean, one.ci_low, one.ci_high)]
    assert (two.mean, two.ci_low, two.ci_high) == pytest.approx(moved, rel=1e-6, abs=1e-6 * scale)
    mirrored = estimate_mean(-x)
    assert (mirrored.ci_low, mirrored.ci_high) == pytest.approx((-one.ci_high, -one.ci_low), abs=1e-9)


@quick
@given(columns, st.integers(2, 5))
def test_copies_in_a_cluster_add_nothing_and_single_images_are_the_ordinary_case(values, times):
    x = np.array(values)
    names = np.arange(len(x))
    alone = summarize(x)
    own = dataclasses.asdict(summarize(x, clusters=names))
    assert own == pytest.approx(dataclasses.asdict(alone), rel=0, abs=0, nan_ok=True)
    copied = summarize(np.repeat(x, times), clusters=np.repeat(names, times))
    assert dataclasses.asdict(dataclasses.replace(copied, n=len(x))) == pytest.approx(
        dataclasses.asdict(alone), nan_ok=True
    )
    y = np.roll(x, 1)
    pair = compare_paired(x, y)
    assert compare_paired(x, y, names) == pair
    twice = compare_paired(np.repeat(x, times), np.repeat(y, times), np.repeat(names, times))
    assert dataclasses.asdict(dataclasses.replace(twice, n=len(x))) == pytest.approx(
        dataclasses.asdict(pair), nan_ok=True
    )


@pytest.mark.parametrize("n", [3, 7, 12])
@pytest.mark.parametrize("ties", [False, True])
def test_signed_ranks_against_all_patterns_of_signs(n, ties):
    rng = np.random.default_rng(n)
    values = rng.normal(0.3, size=n)
    values = np.sign(values) * np.ceil(2 * np.abs(values)) if ties else values
    result = compare_paired(values, np.zeros(n))
    ranks = scipy.stats.rankdata(np.abs(values))
    patterns = np.array(list(itertools.product((0, 1), repeat=n))) @ ranks
    far = np.abs(patterns - ranks.sum() / 2) >= abs(ranks[values > 0].sum() - ranks.sum() / 2) - 1e-9
    assert result.wilcoxon_p == pytest.approx(far.mean())


@pytest.mark.parametrize("n", [5, 50, 51, 1000])
def test_no_p_is_below_that_of_the_most_extreme_pattern(n):
    result = compare_paired(np.random.default_rng(n).uniform(1, 2, size=n), np.zeros(n))
    assert result.wilcoxon_p >= 2.0 ** (1 - n)
    if n <= 50:
        assert result.wilcoxon_p == pytest.approx(2.0 ** (1 - n))


@pytest.mark.parametrize("n", [51, 80])
def test_of_many_values_the_signed_ranks_are_taken_as_normal(n):
    values = np.arange(1.0, n + 1) * np.where(np.arange(n) % 3 == 1, -1, 1)
    mean, variance = n * (n + 1) / 4, n * (n + 1) * (2 * n + 1) / 24
    z = (values[values > 0].sum() - mean) / math.sqrt(variance)
    assert compare_paired(values, np.zeros(n)).wilcoxon_p == pytest.approx(math.erfc(z / math.sqrt(2)))


# --- compare_paired ---------------------------------------------------------------------------------------


def test_paired_comparison_by_hand():
    result = compare_paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert (result.n, result.n_clusters, result.df) == (3, 3, 2)
    assert (result.mean_a, result.mean_b, result.difference) == (4.0, 2.0, 2.0)
    assert result.t == pytest.approx(t)
    assert result.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))  # closed form at two degrees of freedom
    assert (result.ci_low, result.ci_high) == pytest.approx((2 - half, 2 + half))
    assert result.effect_size == pytest.approx(2.0)
    # 1 of 8 sign patterns, twice
    assert (result.wilcoxon, result.wilcoxon_p) == pytest.approx((0.0, 2 / 2**3))


def test_identical_models_differ_in_nothing():
    values = np.random.default_rng(7).random(50)
    result = compare_paired(values, values)
    assert (result.t, result.p, result.effect_size) == (0.0, 1.0, 0.0)
    assert (result.wilcoxon, result.wilcoxon_p, result.rank_biserial) == (0.0, 1.0, 0.0)
    assert (result.ci_low, result.ci_high) == (0.0, 0.0)


def test_rounding_is_no_difference():
    result = compare_paired([0.1 + 0.2, 0.5, 0.7], [0.3, 0.5, 0.7])
    assert (result.t, result.p, result.wilcoxon_p) == (0.0, 1.0, 1.0)
    # Nor does it rank among real differences, all of which are positive here.
    assert compare_paired([0.3, 2.0, 3.0, 4.0], [0.1 + 0.2, 1.0, 1.5, 3.5]).rank_biserial == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_constant_difference_is_infinitely_certain(sign):
    b = np.random.default_rng(8).random(10)
    result = compare_paired(b + sign * 0.1, b)
    assert (result.t, result.p, result.effect_size) == (sign * math.inf, 0.0, sign * math.inf)
    assert (result.ci_low, result.ci_high) == pytest.approx((sign * 0.1, sign * 0.1))
    assert result.rank_biserial == sign


@quick
@given(pairs)
def test_rank_biserial_counts_walsh_averages(rows):
    a, b = np.array(rows, dtype=float).T
    d = (a - b)[a != b]
    assume(len(d) > 0)
    sums = (d[:, None] + d)[np.triu_indices(len(d))]
    favourable = (sums > 0).sum() + 0.5 * (sums == 0).sum()
    result = compare_paired(a, b)
    assert result.rank_biserial == pytest.approx(2 * favourable / len(sums) - 1, abs=1e-12)
    assert result.wilcoxon == pytest.approx(min(favourable, len(sums) - favourable))


@quick
@given(pairs)
def test_swapping_the_models_flips_signs_and_keeps_p(rows):
    a, b = np.array(rows, dtype=float).T
    one, two = compare_paired(a, b), compare_paired(b, a)
    assert (one.t, one.effect_size, one.rank_biserial) == pytest.approx(
        (-two.t, -two.effect_size, -two.rank_biserial)
    )
    assert (one.p, one.wilcoxon_p) == pytest.approx((two.p, two.wilcoxon_p))
    assert (one.ci_low, one.ci_high) == pytest.approx((-two.ci_high, -two.ci_low))


def test_clusters_are_compared_by_their_mean_differences():
    a, b = [4.0, 2.0, 5.0, 3.0, 9.0, 5.0], [1.0, 1.0, 2.0, 0.0, 4.0, 4.0]
    result = compare_paired(a, b, clusters=["x", "x", "y", "y", "z", "z"])
    means = compare_paired([3.0, 4.0, 7.0], [1.0, 1.0, 4.0])  # of x, y and z
    assert dataclasses.asdict(dataclasses.replace(result, n=3)) == pytest.approx(dataclasses.asdict(means))


# --- holm, proportion, relative change --------------------------------------------------------------------


def test_holm_by_hand_keeps_order_and_nan():
    # Four tests: 4 × 0.005, 3 × 0.01, 2 × 0.03, then 1 × 0.04 lifted to the value before it.
    adjusted = holm([0.01, 0.04, math.nan, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
    assert np.isnan(holm([math.nan, math.nan])).all()


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holm_agrees_with_the_step_down_procedure(p_values, level):
    adjusted = holm(p_values)
    rejected = set()
    for left, i in zip(range(len(p_values), 0, -1), np.argsort(p_values, kind="stable"), strict=True):
        if left * p_values[i] > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert (adjusted >= p_values).all()
    assert adjusted.max() <= 1
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()


@pytest.mark.parametrize(("k", "n"), [(0, 12), (7, 20), (20, 20)])
def test_wilson_interval_from_its_formula(k, n):
    z = 1.959963984540054
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    for result in (count_share(k, n), summarize_share([True] * k + [False] * (n - k))):
        assert (result.share, result.n, result.n_clusters) == (pytest.approx(k / n), n, n)
        assert (result.ci_low, result.ci_high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_crops_that_agree_are_one_image_and_crops_that_do_not_are_more():
    flags = np.random.default_rng(9).random(30) < 0.6
    alone = summarize_share(flags)
    crops = summarize_share(np.repeat(flags, 7), np.repeat(np.arange(30), 7))
    assert dataclasses.replace(crops, n=30) == alone
    mixed = summarize_share([0, 1] * 60, np.repeat(np.arange(6), 20))  # each photograph has the same share
    single, images = (summarize_share([0, 1] * n) for n in (3, 60))
    assert images.ci_low > mixed.ci_low > single.ci_low


@pytest.mark.parametrize("flag", [0, 1])
def test_shares_of_nothing_and_all_rest_on_the_photographs(flag):
    result, alone = summarize_share([flag] * 40, np.repeat(np.arange(10), 4)), summarize_share([flag] * 10)
    assert dataclasses.asdict(dataclasses.replace(result, n=10)) == pytest.approx(dataclasses.asdict(alone))


def test_shares_that_differ_in_no_image_may_differ_in_others():
    result = compare_shares([0, 1, 1, 0] * 5, [0, 1, 1, 0] * 5)
    room = count_share(0, 20).ci_high
    assert (result.difference, result.p) == (0.0, 1.0)
    assert (result.ci_low, result.ci_high) == pytest.approx((-room, room))


@pytest.mark.parametrize("n", range(2, 12))
def test_shares_that_differ_in_every_image_have_the_sign_test_s_p(n):
    result = compare_shares([1] * n, [0] * n)
    assert result.p == pytest.approx(2 * 0.5**n)
    assert (result.ci_low > 0) == (result.p < 0.05)
    assert result.ci_high == 1.0


def test_shares_that_differ_in_some_images_are_compared_as_values_are():
    a, b = [1, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0, 0]
    assert compare_shares(a, b) == compare_paired(a, b)
    few = compare_shares([1, 1, 0], [0, 0, 0])  # whose interval would reach beyond a difference of 1
    assert (few.ci_high, few.ci_low) == (1.0, compare_paired([1, 1, 0], [0, 0, 0]).ci_low)


def test_differences_that_cancel_within_a_photograph_are_none():
    first, second = np.tile([0.3, 0, 0], 10), np.tile([0, 0.1, 0.2], 10)
    found = compare_paired(first, second, np.repeat(range(10), 3))
    assert (found.difference, found.p, found.wilcoxon_p, found.rank_biserial) == (0, 1, 1, 0)
    faint = compare_paired(np.full(10, 1e-9), np.zeros(10))  # small, and no rounding
    assert (found.n_clusters, faint.rank_biserial) == (10, 1)


def test_relative_change_of_a_known_effect():
    rng = np.random.default_rng(9)
    a = rng.gamma(4.0, size=400)
    result = relative_change(a, a * rng.uniform(0.5, 0.7, size=400))
    assert result.percent == pytest.approx(100 * (result.mean_b / result.mean_a - 1))
    assert result.ci_low <= -40 <= result.ci_high
    assert result.ci_high - result.ci_low < 2  # unpaired it would be about ten times that


def test_relative_change_of_symmetric_values_is_fiellers():
    """Student's t of b − r a at both ends is the quantile: a quadratic in r."""
    rng = np.random.default_rng(10)
    a, b = rng.normal(5, 1, size=12), rng.normal(4, 1, size=12)
    result = relative_change(a, b)
    for end in (result.ci_low, result.ci_high):
        assert compare_paired(b, (1 + end / 100) * a).p == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.2, 1.99, 0.68, 1.44, 1.06, 0.2], [1.0, 1.44, 0.07, 0.85, 0.02, 0.31]),
        ([1.29, 0.34, 0.33, 0.17, 0.71, 0.85, 0.13], [2.13, 0.14, 2.23, 1.92, 1.68, 1.08, 1.44]),
    ],
)
def test_relative_change_and_p_agree_where_p_has_several_peaks(a, b):
    """Skewed differences: p of no change is below the level, and above it on both sides."""
    result, p = relative_change(a, b), compare_paired(b, a).p
    assert p < 0.05
    assert result.ci_low > 0 or result.ci_high < 0


@quick
@given(st.integers(0, 10_000), st.integers(2, 20), st.sampled_from([0.1, 1.0, 3.0]), st.booleans())
def test_relative_change_excludes_zero_exactly_where_the_paired_test_does(seed, n, tail, faint):
    rng = np.random.default_rng(seed)
    a, b = np.exp(tail * rng.normal(size=(2, n)))
    b = a + 1e-9 * b * rng.choice([-1, 1], n) if faint else b
    result = relative_change(a, b)
    if not math.isnan(result.ci_low):
        assert (result.ci_low > 0 or result.ci_high < 0) == (compare_paired(b, a).p < 0.05)
        assert result.ci_low <= result.percent <= result.ci_high


def test_a_difference_that_is_rounding_is_none_to_the_interval_and_to_p():
    a = np.array([1.0, 2.0, 4.0])
    result = compare_paired([1.0, 1e-22, 3e-22], [1.0, 3e-22, 5e-22])
    assert result.p == 1
    assert result.ci_low <= 0 <= result.ci_high
    assert compare_paired(a, a * (1 + 1e-16)).p == 1


def test_relative_change_over_clusters_is_wider():
    rng = np.random.default_rng(10)
    values, clusters = draw_clustered(rng, n_clusters=15, size=12)
    a = np.full(values.size, 10.0)
    plain, clustered = relative_change(a, a + values), relative_change(a, a + values, clusters)
    assert (plain.n_clusters, clustered.n_clusters) == (180, 15)
    assert clustered.percent == pytest.approx(plain.percent)
    assert clustered.ci_high - clustered.ci_low > 2 * (plain.ci_high - plain.ci_low)


def test_no_change_is_relative_to_zero():
    result = relative_change([0.0, 0.0], [1.0, 2.0])
    assert math.isnan(result.percent)
    assert "mean of a is 0" in result.reason
    assert "may be 0" in relative_change([0.0, 0.0, 1.0], [1.0, 2.0, 1.0]).reason


# --- correlate --------------------------------------------------------------------------------------------


def centre_distances(x: np.ndarray, unbiased: bool) -> np.ndarray:
    """Double-centred (or U-centred) distance matrix, straight from the definition."""
    d, n = np.abs(x[:, None] - x[None, :]), len(x)
    inner, outer = (n - 2, (n - 1) * (n - 2)) if unbiased else (n, n * n)
    centred = d - d.sum(0)[None, :] / inner - d.sum(1)[:, None] / inner + d.sum() / outer
    if unbiased:
        np.fill_diagonal(centred, 0)
    return centred


def measure_distance_correlation(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Squared distance correlation; the normalisation of the sums cancels."""
    a, b = centre_distances(x, unbiased), centre_distances(y, unbiased)
    return (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())


@pytest.mark.parametrize("ties", [False, True])
def test_distance_correlation_from_its_definition(ties):
    rng = np.random.default_rng(11)
    x = rng.normal(size=60)
    y = x**2 + rng.normal(size=60)
    if ties:
        x, y = x.round(), y.round()
    result = correlate(x, y, n_resamples=19)
    assert result.distance_correlation == pytest.approx(math.sqrt(measure_distance_correlation(x, y, False)))
    assert result.distance_corrected == pytest.approx(math.sqrt(measure_distance_correlation(x, y, True)))


def test_distance_correlation_of_normal_variables_meets_theory():
    rho = 0.6
    x, e = np.random.default_rng(12).normal(size=(2, 1000))
    result = correlate(x, rho * x + math.sqrt(1 - rho**2) * e, n_resamples=200)
    root = math.sqrt(1 - rho**2)
    numerator = rho * math.asin(rho) + root - rho * math.asin(rho / 2) - math.sqrt(4 - rho**2) + 1
    truth = math.sqrt(numerator / (1 + math.pi / 3 - math.sqrt(3)))
    assert result.distance_corrected_ci_low <= truth <= result.distance_corrected_ci_high
    assert result.distance_corrected == pytest.approx(truth, abs=0.05)
    assert result.distance_corrected_ci_high - result.distance_corrected_ci_low < 0.17


def test_distance_interval_is_as_wide_as_the_estimate_varies():
    rng = np.random.default_rng(27)
    results = []
    for seed in range(100):
        x, e = rng.normal(size=(2, 61))
        results.append(correlate(x, x + e, n_resamples=99, seed=seed))
    width = np.mean([r.distance_corrected_ci_high - r.distance_corrected_ci_low for r in results])
    assert 0.85 < width / (2 * 1.96 * np.std([r.distance_corrected for r in results])) < 1.4


def test_pearson_interval_is_fishers():
    rng = np.random.default_rng(13)
    basis, _ = np.linalg.qr(np.column_stack([np.ones(28), rng.normal(size=(28, 2))]))
    x, e = basis[:, 1], basis[:, 2]  # centred and orthonormal, so r is exactly what is mixed in
    result = correlate(x, 0.5 * x + math.sqrt(0.75) * e, n_resamples=19)
    assert (result.pearson_r, result.r2) == pytest.approx((0.5, 0.25))
    # atanh(0.5) = ln(3)/2, and 1/√(28 − 3) = 0.2: but for what makes it agree with Student's p
    bounds = [math.tanh(math.log(3) / 2 + side * 1.959964 * 0.2) for side in (-1, 1)]
    assert (result.pearson_ci_low, result.pearson_ci_high) == pytest.approx(bounds, abs=1e-3)


def test_spearman_without_ties_from_rank_differences():
    rng = np.random.default_rng(14)
    x, y = rng.normal(size=(2, 40))
    y += x
    d = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    rho = 1 - 6 * (d**2).sum() / (40 * (40**2 - 1))
    result = correlate(x, y, n_resamples=19)
    assert result.spearman_rho == pytest.approx(rho)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 37)
    bounds = [math.tanh(math.atanh(rho) + side * half) for side in (-1, 1)]
    assert (result.spearman_ci_low, result.spearman_ci_high) == pytest.approx(bounds, abs=8e-3)


def test_p_values_meet_scipy_with_and_without_ties():
    rng = np.random.default_rng(15)
    x = rng.normal(size=50).round(1)
    y = 0.3 * x + rng.normal(size=50).round(1)
    result = correlate(x, y, n_resamples=19)
    assert result.pearson_p == pytest.approx(scipy.stats.pearsonr(x, y).pvalue, rel=1e-6)
    assert result.spearman_p == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, rel=1e-6)


def test_only_distance_correlation_sees_a_parabola():
    x = np.arange(-30.0, 31.0)
    result = correlate(x, x**2, n_resamples=199)
    assert abs(result.pearson_r) < 1e-12
    assert abs(result.spearman_rho) < 1e-12
    assert result.distance_p == 1 / 200
    assert result.distance_corrected_ci_low > 0.3


def test_perfect_correlation_is_certain():
    x = np.arange(10.0)
    for clusters in (None, np.repeat(np.arange(5), 2)):
        result = correlate(x, -2 * x + 1, clusters, n_resamples=199)
        assert (result.pearson_r, result.spearman_rho) == pytest.approx((-1.0, -1.0))
        assert (result.pearson_ci_low, result.pearson_ci_high) == pytest.approx((-1.0, -1.0))
        assert result.distance_correlation == pytest.approx(1.0)
        assert result.pearson_p < 1e-12


@quick
@given(pairs, st.floats(0.5, 3), st.floats(-50, 50), st.booleans())
def test_affine_maps_change_signs_at_most(rows, scale, shift, flip):
    x, y = np.array(rows, dtype=float).T
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    sign = -1 if flip else 1
    one, two = correlate(x, y, n_resamples=9), correlate(sign * scale * x + shift, y, n_resamples=9)
    assert two.pearson_r == pytest.approx(sign * one.pearson_r, abs=1e-9)
    assert two.spearman_rho == pytest.approx(sign * one.spearman_rho, abs=1e-9)
    assert two.distance_correlation == pytest.approx(one.distance_correlation, abs=1e-6)
    assert two.distance_corrected**2 == pytest.approx(one.distance_corrected**2, abs=1e-9)


@quick
@given(pairs)
def test_coefficients_stay_in_range_symmetric_and_inside_their_intervals(rows):
    x, y = np.array(rows, dtype=float).T
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    one, two = correlate(x, y, n_resamples=9), correlate(y, x, n_resamples=9)
    slack = 1e-12
    assert one.pearson_ci_low - slack <= one.pearson_r <= one.pearson_ci_high + slack
    assert one.spearman_ci_low - slack <= one.spearman_rho <= one.spearman_ci_high + slack
    assert 0 <= one.distance_correlation <= 1 + slack
    assert 0 <= one.distance_corrected <= 1
    assert 0 <= one.distance_corrected_ci_low <= one.distance_corrected_ci_high <= 1
    assert (one.pearson_r, one.distance_correlation) == pytest.approx(
        (two.pearson_r, two.distance_correlation)
    )


@settings(max_examples=100)
@given(st.integers(4, 40), st.integers(0, 10_000), st.floats(0, 1))
def test_correlations_and_their_p_agree_about_zero(n, seed, strength):
    x, noise = np.random.default_rng(seed).normal(size=(2, n))
    found = correlate(x, strength * x + noise, n_resamples=39, seed=seed)
    for name in ("pearson", "spearman"):
        low, high, p = (getattr(found, f"{name}_{end}") for end in ("ci_low", "ci_high", "p"))
        assert (low > 0 or high < 0) == (p < 0.05)
    low = found.distance_corrected_ci_low
    assert math.isnan(low) or (low > 0) == (found.distance_p < 0.05)
    given = {"noise": np.random.default_rng(seed + 1).normal(size=n)} if n % 2 and n > 4 else None
    ranks = correlate_ranks(x, strength * x + noise, given, 39, seed)
    assert (ranks.ci_low > 0 or ranks.ci_high < 0) == (ranks.p < 0.05)


def test_a_distance_correlation_that_halves_cannot_tell_from_none_is_bounded_by_its_test():
    """Of 24 pairs with r = 0.6 the test is mostly sure, and halves of them are not."""
    rng, held = np.random.default_rng(0), []
    truth = 0.5497  # Székely, Rizzo and Bakirov's closed form for normal variables
    for seed in range(60):
        x, e = rng.normal(size=(2, 24))
        found = correlate(x, 0.6 * x + 0.8 * e, n_resamples=99, seed=seed)
        held.append(found.distance_corrected_ci_low <= truth <= found.distance_corrected_ci_high)
        assert (found.distance_corrected_ci_low > 0) == (found.distance_p < 0.05)
    assert sum(held) >= 53  # of 57 expected, fewer in one of a hundred


def test_copies_in_a_cluster_change_no_correlation_and_no_regression():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 30))
    names, times = np.arange(30), rng.integers(1, 4, 30)
    once, copied = (
        correlate(x, y, n_resamples=99),
        correlate(np.repeat(x, times), np.repeat(y, times), np.repeat(names, times), n_resamples=99),
    )
    assert dataclasses.asdict(dataclasses.replace(copied, n=30)) == pytest.approx(dataclasses.asdict(once))
    layers = pd.DataFrame({"a": x, "b": rng.normal(size=30)})
    one = regress_cross_validated(layers, y, repeats=1).scores
    two = regress_cross_validated(
        layers.loc[np.repeat(names, times)], np.repeat(y, times), np.repeat(names, times), repeats=1
    ).scores
    pd.testing.assert_frame_equal(one.drop(columns="n"), two.drop(columns="n"))


@quick
@given(pairs)
def test_monotone_maps_do_not_change_ranks(rows):
    x, y = np.array(rows, dtype=float).T
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)
    one, two = correlate(x, y, n_resamples=9), correlate(np.exp(x / 8), y**3 + y, n_resamples=9)
    assert two.spearman_rho == pytest.approx(one.spearman_rho, abs=1e-12)


def test_permutation_p_is_uniform_for_independent_pairs():
    rng = np.random.default_rng(16)
    p = [correlate(*rng.normal(size=(2, 20)), n_resamples=39, seed=s).distance_p for s in range(150)]
    # Exactly 5 % and 50 % in the long run, within 3.3 binomial standard errors.
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.06
    assert abs(np.mean(np.array(p) <= 0.5) - 0.5) < 0.14


def test_crops_of_few_photographs_do_not_correlate_by_themselves():
    rng = np.random.default_rng(17)
    naive, grouped = [], []
    for seed in range(70):
        (x, clusters), (y, _) = (draw_clustered(rng, n_clusters=12, size=6) for _ in range(2))
        for kept, labels in ((naive, None), (grouped, clusters)):
            result = correlate(x, y, labels, n_resamples=99, seed=seed)
            kept.append((result.pearson_p <= 0.05, result.spearman_p <= 0.05, result.distance_p <= 0.05))
    assert (np.mean(grouped, axis=0) <= 0.14).all()  # 0.05 + 3.3 standard errors
    assert (np.mean(naive, axis=0) >= 0.25).all()


def test_a_real_correlation_is_found_over_groups():
    rng = np.random.default_rng(18)
    x, clusters = draw_clustered(rng, n_clusters=20, size=6)
    result = correlate(x, x + 0.5 * rng.normal(size=x.size), clusters, n_resamples=199)
    assert result.n_clusters == 20
    assert result.pearson_ci_low > 0.7
    assert result.spearman_p < 0.001
    assert result.distance_p <= 0.01
    assert result.distance_corrected_ci_low < result.distance_corrected < result.distance_corrected_ci_high


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0] * 6, np.arange(6.0), "x is constant"),
        (np.arange(6.0), [0.1 + 0.2, 0.3] * 3, "y is constant"),
        ([1.0] * 5, [2.0] * 5, "x and y are constant"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], "at least 4 clusters, got 3"),
    ],
)
def test_undetermined_correlation_says_why(x, y, reason):
    result = correlate(x, y)
    assert reason in result.reason
    assert math.isnan(result.pearson_r)
    assert math.isnan(result.distance_p)


def test_missing_intervals_say_why():
    few = correlate([1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0], n_resamples=19)
    assert math.isnan(few.distance_corrected_ci_low)
    assert "too few clusters" in few.reason
    assert few.pearson_ci_low < few.pearson_r
    assert "needs at least 4 clusters, got 3" in correlate(range(9), range(9), [1, 2, 3] * 3).reason
    flat = correlate([0.0, 2.0, 1.0, 1.0, 0.5, 1.5, 2.0, 0.0], range(8), [1, 1, 2, 2, 3, 3, 4, 4])
    assert flat.reason == "x is constant"  # every cluster has the same mean


@pytest.mark.parametrize("n", [4, 5, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_ranks_in_perfect_order_are_no_proof(n: int, sign: int) -> None:
    x = np.arange(n) ** 3.0
    found, alone = correlate(x, sign * np.exp(x / x.max()), n_resamples=19), correlate_ranks(x, sign * x)
    assert found.spearman_rho == alone.rho == pytest.approx(sign)
    orders = [abs(scipy.stats.spearmanr(x, order).statistic) for order in itertools.permutations(x)]
    assert found.spearman_p == pytest.approx(np.mean(np.array(orders) > 1 - 1e-9))
    spans = [(found.spearman_ci_low, found.spearman_ci_high, found.spearman_p)]
    spans += [(alone.ci_low, alone.ci_high, alone.p)] if not alone.reason else []
    for low, high, p in spans:
        inner, outer = sorted((sign * low, sign * high))
        assert (inner > 0) == (p < 0.05)
        assert inner < 0.9
        assert outer == pytest.approx(1)


def test_correlation_repeats_with_its_seed():
    x, y = np.random.default_rng(19).normal(size=(2, 30))
    first, again, other = (correlate(x, y, n_resamples=50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


# --- correlate_ranks --------------------------------------------------------------------------------------


def draw_sharing(rng: np.random.Generator, n: int, rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y that share z, and of which what is left has correlation rho."""
    x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    z = rng.normal(size=n)
    return x + z, y + z, z


def from_three(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """The closed form of one given column, from scipy's Spearman coefficients."""
    xy, xz, yz = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))


def from_inverse(columns: list[np.ndarray]) -> float:
    """Any number of given columns: minus the normalised entry of the inverse of Spearman's matrix."""
    inverse = np.linalg.inv(pd.DataFrame(np.transpose(columns)).corr(method="spearman").to_numpy())
    return -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])


def test_students_test_is_held_too_where_permutations_of_few_rows_are_bolder():
    x, y = [-0.511, 2.973, -0.846, 0.449, 0.306, -1.92], [-1.147, -1.816, -0.153, -1.315, -0.897, -1.535]
    found = correlate_ranks(x, y, {"z": [0.673, 0.597, 1.486, -0.176, 0.738, 1.13]}, 199)
    t = found.rho * math.sqrt(3 / (1 - found.rho**2))
    assert found.rho == pytest.approx(1 / 6)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(t, 3))


@quick
@given(st.integers(0, 10_000), st.integers(6, 40), st.booleans())
def test_partial_rank_correlation_is_the_closed_form(seed, n, ties):
    columns = draw_sharing(np.random.default_rng(seed), n, 0.4)
    x, y, z = (column.round() for column in columns) if ties else columns
    assume(min(len(set(column)) for column in (x, y, z)) > 2)
    assume(all(abs(scipy.stats.spearmanr(c, z).statistic) < 1 - 1e-9 for c in (x, y)))
    assert correlate_ranks(x, y, {"z": z}, 9).rho == pytest.approx(from_three(x, y, z), abs=1e-9)
    assert correlate_ranks(x, y, None, 9).rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_several_given_columns_are_the_inverse_of_the_correlation_matrix():
    rng = np.random.default_rng(0)
    x, y, z = draw_sharing(rng, 25, 0.5)
    w = x + rng.normal(size=25)
    result = correlate_ranks(x, y, {"z": z, "w": w}, 9)
    assert result.rho == pytest.approx(from_inverse([x, y, z, w]), abs=1e-9)
    assert (result.n, result.n_given) == (25, 2)
    twice = correlate_ranks(x, y, {"z": z, "again": z**3}, 9)  # the same ranks once more take nothing away
    assert twice.rho == pytest.approx(from_three(x, y, z), abs=1e-9)


def test_what_is_shared_alone_leaves_nothing():
    """Two columns that agree by a third: a strong rank correlation, and next to none given the third."""
    x, y, z = draw_sharing(np.random.default_rng(1), 400, 0.0)
    plain, partial = correlate_ranks(x, y), correlate_ranks(x, y, {"z": z})
    assert plain.rho > 0.4
    assert plain.p < 0.01
    assert abs(partial.rho) < 0.1
    assert partial.p > 0.05
    assert partial.ci_low < 0 < partial.ci_high


@quick
@given(st.integers(0, 10_000), st.sampled_from([-1, 1]))
def test_rank_correlations_see_ranks_only(seed, sign):
    x, y, z = draw_sharing(np.random.default_rng(seed), 12, 0.6)
    one = correlate_ranks(x, y, {"z": z}, 39)
    two = correlate_ranks(sign * np.exp(x), y**3, {"z": -np.arctan(z)}, 39)
    assert two.rho == pytest.approx(sign * one.rho, abs=1e-9)
    assert two.p == pytest.approx(one.p)
    low, high = sorted((sign * two.ci_low, sign * two.ci_high))
    assert (low, high) == pytest.approx((one.ci_low, one.ci_high), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("partial", [False, True])
def test_rank_intervals_cover_and_p_is_uniform(partial):
    rng = np.random.default_rng(2)
    x, y, z = draw_sharing(rng, 20_000, 0.6)
    truth = from_three(x, y, z) if partial else scipy.stats.spearmanr(x, y).statistic
    covered, rejected = 0, 0
    for seed in range(120):
        x, y, z = draw_sharing(rng, 14, 0.6)
        found = correlate_ranks(x, y, {"z": z} if partial else None, 300, seed)
        covered += found.ci_low <= truth <= found.ci_high
        x, y, z = draw_sharing(rng, 14, 0.0)
        rejected += (
            correlate_ranks(x if partial else x - z, y, {"z": z} if partial else None, 99, seed).p <= 0.05
        )
    assert covered >= 0.92 * 120
    assert 1 <= rejected <= 14  # 6 expected; 14 or more in one of a thousand


def test_a_perfect_order_of_few_rows_is_no_proof():
    result = correlate_ranks([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], n_resamples=4000)
    assert result.rho == pytest.approx(1)
    assert result.p == pytest.approx(2 / 24, abs=0.015)  # two of 24 orders are as extreme
    assert result.ci_low <= 0


def test_rank_correlations_that_nothing_determines_have_a_reason():
    x = np.arange(6.0)
    assert correlate_ranks(x, np.ones(6)).reason == "y is constant"
    assert correlate_ranks(x, x[::-1] ** 2, {"z": x}).reason == "x and y are determined by what is given"
    assert correlate_ranks(x[:4], x[:4], {"z": [3.0, 1.0, 2.0, 4.0]}).reason == "needs at least 5 rows, got 4"
    few = correlate_ranks(x[:5], [2.0, 1.0, 3.0, 5.0, 4.0], {"z": [1.0, 3.0, 2.0, 5.0, 4.0]})
    assert few.ci_low < 0 < few.rho < few.ci_high
    once = correlate_ranks(x, x**2, n_resamples=19)  # 1 / 20 isn't below the level
    assert (once.rho, once.p) == (pytest.approx(1), 0.05)
    assert once.reason.startswith("no interval: no p < 0.05")
    assert math.isnan(once.ci_low)


def test_rank_correlation_repeats_with_its_seed():
    x, y = np.random.default_rng(3).normal(size=(2, 12))
    first, again, other = (correlate_ranks(x, y, None, 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


# --- regression -------------------------------------------------------------------------------------------


def make_layers(n: int, k: int, seed: int) -> tuple[pd.DataFrame, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.normal(size=(n, k)), columns=[f"layer{i}" for i in range(k)]), rng


def look_up(table: pd.DataFrame, **where: str) -> pd.Series:
    """The one row of the table with these values."""
    rows = table[np.logical_and.reduce([table[key] == value for key, value in where.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_forest_is_that_of_scikit_learn():
    from sklearn.ensemble import ExtraTreesRegressor

    rng = np.random.default_rng(5)
    layers, y = pd.DataFrame(rng.normal(size=(24, 3))), rng.normal(size=24)
    found = regress_cross_validated(layers, y, seed=3, folds=2, repeats=1, estimators=["forest"]).scores
    fold_of = np.random.default_rng(3).permutation(np.arange(24) % 2)
    errors = np.empty(24)
    for fold in range(2):
        train, test = fold_of != fold, fold_of == fold
        forest = ExtraTreesRegressor(100, min_samples_leaf=5, random_state=3).fit(layers[train], y[train])
        errors[test] = (y[test] - forest.predict(layers[test])) ** 2
    assert found["r2"].item() == pytest.approx(1 - errors.sum() / ((y - y.mean()) ** 2).sum(), abs=1e-12)


def test_only_the_forest_finds_a_parabola():
    half, _ = make_layers(150, 3, seed=20)
    layers = pd.concat([half, -half], ignore_index=True)  # so that no line correlates with an even function
    scores = regress_cross_validated(layers, layers["layer1"] ** 2, repeats=1).scores.set_index("estimator")
    assert scores.loc["forest", "r2"] > 0.8
    assert scores.loc["ridge", "r2"] < 0.05
    assert scores.loc["best single layer", "r2"] < 0.05


def test_noise_predicts_nothing():
    layers, rng = make_layers(300, 5, seed=21)
    scores = regress_cross_validated(layers, rng.normal(size=300), repeats=1).scores
    assert (scores["r2"] <= 0.05).all()
    assert (scores["r2_ci_low"] <= scores["r2"]).all()
    assert (scores["r2"] <= scores["r2_ci_high"]).all()


def test_linear_prediction_reaches_the_known_share():
    layers, rng = make_layers(600, 3, seed=22)
    y = layers["layer0"] + layers["layer2"] + math.sqrt(2) * rng.normal(size=600)
    result = regress_cross_validated(layers, y, repeats=1)
    ridge = look_up(result.scores, estimator="ridge")
    assert ridge["r2"] == pytest.approx(0.5, abs=0.08)  # two of four parts of the variance
    assert ridge["r2_ci_low"] < 0.5 < ridge["r2_ci_high"]
    assert look_up(result.scores, estimator="best single layer")["r2"] == pytest.approx(0.25, abs=0.08)


def test_importances_of_a_noise_free_sum():
    layers, _ = make_layers(400, 3, seed=23)
    table = regress_cross_validated(layers, layers["layer0"] + layers["layer1"], repeats=1).importances
    # Shuffling a part that carries half of the variance adds twice that half to the error.
    for layer, drop, coefficient in (("layer0", 1, 0.5**0.5), ("layer1", 1, 0.5**0.5), ("layer2", 0, 0)):
        assert look_up(table, estimator="ridge", measure="permutation", layer=layer)["mean"] == pytest.approx(
            drop, abs=0.15
        )
        assert look_up(table, estimator="ridge", measure="coefficient", layer=layer)["mean"] == pytest.approx(
            coefficient, abs=0.06
        )
    chosen = table[table["measure"] == "chosen"].set_index("layer")["mean"]
    assert chosen.sum() == pytest.approx(1.0)
    assert chosen["layer2"] == 0


def test_a_photograph_cannot_be_recognised_across_folds():
    rng = np.random.default_rng(24)
    clusters = np.repeat(np.arange(30), 8)
    marks = rng.normal(size=(30, 4))[clusters] + 0.01 * rng.normal(size=(240, 4))
    layers, y = pd.DataFrame(marks, columns=list("abcd")), rng.normal(size=30)[clusters]
    leaky = look_up(regress_cross_validated(layers, y, repeats=1).scores, estimator="forest")
    honest = look_up(regress_cross_validated(layers, y, clusters, repeats=1).scores, estimator="forest")
    assert leaky["r2"] > 0.8
    assert honest["r2"] < 0.15
    assert honest["n_clusters"] == 30


def test_constant_target_and_constant_layer():
    layers, rng = make_layers(60, 2, seed=25)
    layers["layer1"] = 3.0
    result = regress_cross_validated(layers, np.full(60, 0.1), repeats=1)
    assert result.scores["r2"].isna().all()
    assert (result.scores["reason"] == "y is constant").all()
    assert result.importances.empty
    kept = regress_cross_validated(layers, layers["layer0"] + 0.01 * rng.normal(size=60), repeats=1)
    assert look_up(kept.scores, estimator="ridge")["r2"] > 0.99
    assert (
        look_up(kept.importances, estimator="best single layer", measure="chosen", layer="layer1")["mean"]
        == 0
    )


def test_regression_repeats_with_its_seed():
    layers, rng = make_layers(60, 2, seed=26)
    y = layers["layer0"] + rng.normal(size=60)
    first, again = (regress_cross_validated(layers, y, seed=3, repeats=1) for _ in range(2))
    pd.testing.assert_frame_equal(first.scores, again.scores)
    pd.testing.assert_frame_equal(first.importances, again.importances)


# --- bad input --------------------------------------------------------------------------------------------

LAYERS = pd.DataFrame({"conv1": np.arange(40.0), "conv2": np.arange(40.0) % 7})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: summarize([]),
            r"summarize: values must be one column of at least one value, got shape \(0,\)",
        ),
        (lambda: summarize([[1.0, 2.0]]), r"summarize: values must be one column .* got shape \(1, 2\)"),
        (lambda: summarize(["a"]), "summarize: values must be numbers"),
        (lambda: summarize([1.0, math.nan, math.inf]), r"finite, got nan at position 1 \(2 of 3 in all\)"),
        (lambda: summarize([1.0, 2.0], silent=[True]), "equally long .* values: 2, silent: 1"),
        (lambda: summarize([1.0, 2.0], silent=[1, 2]), r"silent must be true or false .* got \[1, 2\]"),
        (lambda: summarize([1.0, 2.0], clusters=["a"]), "equally long .* values: 2, clusters: 1"),
        (lambda: compare_paired([1.0, 2.0], [1.0, 2.0], ["a", "a"]), "at least 2 clusters, got 1"),
        (lambda: summarize([1.0, 2.0], clusters=["a", None]), "every row needs a cluster, got 1 without"),
        (lambda: summarize_share([0.0, 0.5]), "flags must be true or false"),
        (lambda: compare_shares([0, 1], [1, 2]), "compare_shares: flags must be true or false"),
        (lambda: compare_paired([1.0, 2.0], [1.0]), "compare_paired: columns must be .* a: 2, b: 1"),
        (lambda: compare_paired([1.0], [2.0]), "compare_paired: needs at least 2 images, got 1"),
        (lambda: relative_change([1.0, 2.0], [1.0, math.nan]), "relative_change: b must be finite"),
        (lambda: holm([0.5, 1.5]), r"holm: p-values must lie in \[0, 1\], got 0.5 to 1.5"),
        (lambda: count_share(5, 4), "0 ≤ successes ≤ n and n ≥ 1, got 5 of 4"),
        (lambda: count_share(0, 0), "0 ≤ successes ≤ n and n ≥ 1, got 0 of 0"),
        (
            lambda: correlate([1.0, math.inf], [1.0, 2.0]),
            "correlate: x must be finite, got inf at position 1",
        ),
        (lambda: correlate([1.0, 2.0], [1.0]), "correlate: columns must be .* x: 2, y: 1"),
        (lambda: correlate_ranks([1.0, 2.0], [1.0, math.nan]), "correlate_ranks: y must be finite"),
        (lambda: correlate_ranks([1.0, 2.0], [1.0, 2.0], {"size": [1.0]}), "x: 2, size: 1"),
        (lambda: regress_cross_validated(LAYERS.to_numpy(), LAYERS["conv1"]), "DataFrame .* got ndarray"),
        (lambda: regress_cross_validated(LAYERS, np.ones(39)), "X: 40, y: 39"),
        (lambda: regress_cross_validated(LAYERS, np.ones(40), folds=11), "got 11 folds for 40 clusters"),
        (lambda: regress_cross_validated(LAYERS, np.ones(40), [1, 2] * 20), "got 5 folds for 2 clusters"),
        (lambda: regress_cross_validated(LAYERS / 0, np.ones(40)), "column 'conv1' of X must be finite"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(SpectralError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
