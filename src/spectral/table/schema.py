"""What tables call things: columns, the bounds of intervals, and files, in one place for every room."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Words = TypeVar("Words", "pd.Series", "pd.DataFrame")

VERSION = 2  # of what follows; what an earlier one wrote is computed anew, or refused

MODEL, IMAGES = ("model", "weights"), ("images", "image", "cluster")
PLACE = ("site", "call", "op", "stride", "tap")
MEASUREMENT = (*MODEL, *IMAGES, *PLACE, "metric", "value", "reason")
"""Columns of a table of measurements: a row per number, and a row with the reason per site that has none.

``weights`` is the id of the weights and ``images`` the source of the images with their fingerprint, so that
tables of several runs can be joined; ``cluster`` is what an image was cut from, the photograph, and the image
itself where it was cut from nothing: the unit of every interval and test.
"""

SUMMARY = (
    "model", *PLACE, "metric", "n", "n_clusters", "n_silent", "n_absent", "mean", "std", "ci_low", "ci_high",
    "median", "top_tenth", "db", "db_ci_low", "db_ci_high", "avr_pooled", "reason", "weights", "images",
)  # fmt: skip
"""Columns of a summary: ``n`` images in the mean, of ``n_clusters`` clusters; ``n_silent`` with a silent map
and ``n_absent`` on which the site didn't run, or that have no row, are left out of it. ``median`` is that of
the clusters' means, ``top_tenth`` the share of their sum that the tenth with the largest ones has. ``db`` is
the mean of a ratio of powers in dB, with its interval."""

NOT_AVERAGED = ("power", "label", "prediction")  # they say what a map or an image is

_SHARES = ("avr", "avr_separable", "avr_exclude_dc", "avr_separable_exclude_dc", "avr_hann", "nonaliased",
           "aliased", "tangled", "nopass", "sis", "sis_circular", "confidence",
           "changed")  # fmt: skip
POWER_RATIOS = ("alias_power_ratio", "alias_power_ratio_channel_median", "alias_power_ratio_channel_p90",
                "alias_power_ratio_white_noise")  # fmt: skip
SIGNAL_METRICS = ("avr_separable_exclude_dc", *POWER_RATIOS[1:])
"""What networks are compared by at the tap ``signal``: the same in every way of writing one network."""

_SIZES = (*POWER_RATIOS, "logit_jitter", "am", "am_relative", "live_channels", "power")
RANGES = {**dict.fromkeys(_SHARES, (0.0, 1.0)), **dict.fromkeys(_SIZES, (0.0, math.inf))}
"""What values of a metric lie between, and so do their means' intervals."""

SCALE_FREE = ("avr", "avr_separable", "avr_separable_exclude_dc", "am_relative", *POWER_RATIOS[:3], "sis")
"""Metrics that compare any networks: none grows with a map's amplitude or size."""

ALIAS_FREE = 1e-10
"""An alias power ratio below it is rounding: none. In dB it counts as −100."""

BOUNDS = ("", "_ci_low", "_ci_high")
"""Behind a column's name: the estimate itself, and the bounds of its 95 % interval. In a long table, whose
rows have one estimate each, these are ``mean``, ``ci_low`` and ``ci_high``."""

_DECIBELS = (*(metric.replace("ratio", "db") for metric in POWER_RATIOS), "psnr_db")
UNITS = {**dict.fromkeys(_SHARES, "share"), **dict.fromkeys(_DECIBELS, "dB"), "latency_ms": "ms"}
"""Units of columns; others have none."""

WORDS = frozenset({
    "accuracy_source", "aliasing_reason", "attack", "base", "block", "class", "cluster", "device",
    "downsampling", "family", "family_a", "family_b", "fill", "grid", "image", "images", "input_kind", "kind",
    "layer", "level", "method", "metric", "model", "model_a", "model_b", "name", "network", "networks", "op",
    "operator", "panel", "perturbation", "predictor", "predictors", "protocol", "reason", "repair",
    "response", "run", "significance", "site", "source", "state", "stride", "tap", "total_stride", "training",
    "weights",
})  # fmt: skip
"""Columns that name something, as do those that end in ``_reason``; all others that are read are numbers."""

EITHER = frozenset({"label"})
"""Columns with a number, or a name where nobody numbered the classes."""

# A run's folder: pandas and pyarrow read its shards as one table and pass over names that begin with _.
SHARD = "shard-{}{:06d}.parquet"  # who has written it, where several do, and its number
RUN_FILE, SITES_FILE = "_run.json", "_sites.json"
SWEEP_FILE = "_sweep.json"  # of a sweep's folder, which has runs in folders of its own


def name_decibels(metric: str) -> str:
    """Name the column that has a ratio of powers in dB.

    Example:
        >>> name_decibels("alias_power_ratio_channel_median")
        'alias_power_db_channel_median'
    """
    return metric.replace("ratio", "db")


def to_decibels(ratio: float) -> float:
    """Write a ratio of powers in dB; what is no more than rounding is −100, what isn't known NaN.

    Example:
        >>> to_decibels(0.1), to_decibels(0.0)
        (-10.0, -100.0)
    """
    return 10 * math.log10(max(ratio, ALIAS_FREE)) if not math.isnan(ratio) else math.nan


def fill_words(words: Words) -> Words:
    """Return columns of words in which what is unknown is the empty one, whatever their type without any.

    Example:
        >>> import pandas as pd
        >>> fill_words(pd.Series([float("nan"), "conv1"])).tolist()
        ['', 'conv1']
    """
    return words.astype(object).fillna("")


def with_bounds(*names: str) -> list[str]:
    """Return the columns of estimates with their intervals, as all tables call them.

    Example:
        >>> with_bounds("sis")
        ['sis', 'sis_ci_low', 'sis_ci_high']
    """
    return [f"{name}{end}" for name in names for end in BOUNDS]
