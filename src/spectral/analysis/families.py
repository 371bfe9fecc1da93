"""Families of networks side by side, image by image, at like sites: paired tests over tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.analysis.layout import read_sites
from spectral.arguments.values import as_list
from spectral.errors import SpectralError
from spectral.runs.summary import pool_ratio
from spectral.stats.columns import add_holm, bound_summary, compare_columns
from spectral.table.schema import ALIAS_FREE, POWER_RATIOS, RANGES, SIGNAL_METRICS, to_decibels

PER_IMAGE = ("image", "cluster", "family", "layer", "layer_index", "stride", "tap", "avr", "power", "silent")
SIGNAL = ("image", "cluster", "model", "family", "site", "layer", "layer_index", "power")
NOISE = SIGNAL_METRICS[-1]
COMPARED = SIGNAL_METRICS[:-1]


def compare_families(per_image: pd.DataFrame, families: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Paired comparison of AVR for each pair of families, at each layer and tap.

    Args:
        per_image: measurements of several networks (`spectral.measure`, put together), whose sites of equal
            names are compared (see `lay_out_sites`); or a row per image, family, layer and tap: image,
            cluster, model, family, site, layer, layer_index, op, stride, tap, avr, power and silent.
        families: their order; by default that of the table.

    Returns:
        Means of both with intervals (of photographs), the difference a − b with its tests, Holm-corrected
        over the table.

    Raises:
        SpectralError: if no two families have a layer in common.

    Example:
        >>> rows = [{"image": i, "cluster": i, "model": f, "family": f, "site": "conv", "layer": "conv",
        ...          "layer_index": 0, "op": "conv", "stride": "2x2", "tap": "dense", "avr": a + int(i) / 100,
        ...          "power": 1.0, "silent": False} for f, a in (("x", 0.5), ("y", 0.25)) for i in "123"]
        >>> compare_families(pd.DataFrame(rows))["difference"].round(3).tolist()
        [0.25]
    """
    per_image = read_sites(per_image, PER_IMAGE, "compare_families")
    order = list(dict.fromkeys(per_image["family"])) if families is None else as_list(families)
    rows = []
    for (tap, index, layer), block in _number_layers(per_image).groupby(["tap", "layer_index", "layer"]):
        present = [family for family in order if family in set(block["family"])]
        for a, b in combinations(present, 2):
            first, second = (block[block["family"] == family].set_index("image") for family in (a, b))
            facts = {"layer": layer, "layer_index": index, "tap": tap, "stride": first["stride"].iloc[0]}
            rows.append({**facts, **_compare(first, second)})
    if not rows:
        raise SpectralError(
            f"compare_families: no layer is common to two of the families {', '.join(map(str, order))}: "
            "lay_out_sites(table, layers=spectral.pair_sites(…)) says which sites are alike"
        )
    return _add_holm(pd.DataFrame(rows))


def compare_signals(signal: pd.DataFrame, families: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Paired comparison of each family with the first at the tap ``signal``, of each metric at each layer.

    Ratios of powers are compared in dB, image by image, what is below −100 dB counting as −100, where it is
    rounding; ``white_noise`` is that of noise on the lattice.

    Args:
        signal: measurements of several networks (`spectral.measure`, put together), or a row per image,
            family and layer: image, cluster, model, family, site, layer, layer_index, power and such of the
            metrics of `spectral.table.schema.SIGNAL_METRICS` as were measured.
        families: their order, the first being what the others are compared with; by default the table's.
    """
    signal = read_sites(signal, (*SIGNAL, *POWER_RATIOS[1:2], NOISE), "compare_signals", ("signal",))
    order = list(dict.fromkeys(signal["family"])) if families is None else as_list(families)
    compared = [metric for metric in COMPARED if metric in signal]
    rows = []
    for (index, layer), block in _number_layers(signal).groupby(["layer_index", "layer"]):
        own = {family: part.set_index("image") for family, part in block.groupby("family", sort=False)}
        for metric, family in product(compared, order):
            if family not in own:
                continue
            facts = {"layer": layer, "layer_index": index, "metric": metric,
                     "model": own[family]["model"].iloc[0], "family": family,
                     "site": own[family]["site"].iloc[0]}  # fmt: skip
            described = _describe_signal(own[family], own.get(order[0]), metric, family == order[0])
            rows.append({**facts, **described})
    return _add_holm(pd.DataFrame(rows))


def _number_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Give layers of one name one place, the first: what comes before them differs between networks."""
    first = table.groupby("layer")["layer_index"].transform("min")
    return table.assign(layer_index=first)


def _add_holm(table: pd.DataFrame) -> pd.DataFrame:
    if "p" not in table:  # one family, one photograph, or none with a layer of the first
        table = table.assign(p=np.nan, wilcoxon_p=np.nan)
    return add_holm(table, "p", "wilcoxon_p")


def _describe_signal(
    own: pd.DataFrame, base: pd.DataFrame | None, metric: str, is_first: bool
) -> dict[str, Any]:
    in_decibels = metric in POWER_RATIOS
    sides = [own] if base is None else [own, base]
    values = [
        side[metric].map(to_decibels, na_action="ignore") if in_decibels else side[metric] for side in sides
    ]
    silent = [(side["power"] <= 0) | side[metric].isna() for side in sides]
    limits = (to_decibels(ALIAS_FREE), np.inf) if in_decibels else RANGES[metric]
    summary = stats.summarize(values[0], silent[0], own["cluster"], *limits)
    row = {"unit": "dB" if in_decibels else "share", "n": summary.n, "n_clusters": summary.n_clusters,
           "n_silent": summary.n_silent, **bound_summary("mean", summary), "median": summary.median,
           "white_noise": to_decibels(own[NOISE].iloc[0]) if in_decibels else np.nan}  # fmt: skip
    if base is None or is_first:
        return row
    found = compare_columns(values[0], values[1], silent[0], silent[1], own["cluster"])
    return row | {name: value for name, value in found.items() if name not in ("n", "n_clusters")}


def _compare(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for side, block in (("a", first), ("b", second)):
        summary = stats.summarize(block["avr"], block["silent"], block["cluster"], 0.0, 1.0)
        row |= {f"{key}_{side}": block[key].iloc[0] for key in ("family", "model", "site", "op")}
        row |= bound_summary(f"mean_{side}", summary)
        pooled = pool_ratio(block["avr"], block["power"], block["cluster"])
        row |= {f"std_{side}": summary.std, f"avr_pooled_{side}": pooled}
        row[f"n_silent_{side}"] = summary.n_silent
    return row | compare_columns(
        first["avr"], second["avr"], first["silent"], second["silent"], first["cluster"]
    )
