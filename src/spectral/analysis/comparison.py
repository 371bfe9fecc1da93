"""Any models side by side: paired on the same images, at like sites, each against the first."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from spectral import stats
from spectral.classes import match_models
from spectral.data import Images, ImageSet
from spectral.errors import SpectralError, SpectralWarning
from spectral.files.atomic import find_folder
from spectral.hooks.capture import Tap
from spectral.intake import Feed
from spectral.measurement import measure
from spectral.pairing import SitePair, match_sites
from spectral.processes.ranks import shared
from spectral.sites import Site, find_sites
from spectral.stats.columns import add_holm, bound, bound_summary, compare_columns
from spectral.surgery.report import find_original_names
from spectral.table.schema import (
    ALIAS_FREE,
    POWER_RATIOS,
    RANGES,
    SCALE_FREE,
    fill_words,
    to_decibels,
    with_bounds,
)

CALLER = "compare_models"
IN_DECIBELS = {name: name.replace("ratio", "db") for name in POWER_RATIOS}
COLUMNS = [
    "model_a", "model_b", "layer", "layer_index", "site_a", "op_a", "site_b", "op_b", "pairing", "tap",
    "metric", "n", "n_clusters", "n_silent_a", "n_silent_b", *with_bounds("mean_a", "mean_b", "difference"),
    "t", "df", "p", "p_holm", "wilcoxon_p", "wilcoxon_p_holm", "significance", "effect_size", "reason",
]  # fmt: skip
COUNTS = ("layer_index", "n", "n_clusters", "n_silent_a", "n_silent_b")
WORDS = ("layer", "tap", "metric", "reason", "site_a", "site_b", "op_a", "op_b", "pairing")


@shared
def compare_models(
    models: Mapping[str, nn.Module],
    images: Any,
    metrics: Sequence[str] = SCALE_FREE,
    taps: Sequence[Tap] = ("input", "dense", "signal"),
    *,
    batch_size: int = 32,
    out: Path | None = None,
    progress: bool = True,
    preprocessing: Any = None,
) -> pd.DataFrame:
    """Measure models on the same images and test each against the first, site by site.

    Like sites are those of `spectral.match_sites`, each paired at most once. The metrics by default are free
    of scale: AM grows with a map's amplitude and size, and compares like sites of like networks alone. Silent
    maps of either model are left out. Crops of one photograph aren't independent: the photograph (cluster) is
    the unit of all means, intervals and tests.

    Args:
        models: at least two, by name; the first is the reference.
        images: as for `spectral.measure`; where the models take them at different sizes, a dictionary of the
            same pictures in the same order for each, by the models' names.
        metrics: as for `spectral.measure`; ratios of powers are compared in dB (alias_power_db, …), image by
            image, what is below −100 dB counting as −100, where it is rounding.
        taps: as for `spectral.measure`. Only at ``signal`` are two networks' maps alike whatever their norms
            and the place of their pools.
        batch_size: images per forward pass.
        out: folder of the measurements, which are continued after an interruption.
        progress: show bars.
        preprocessing: as for `spectral.measure`, of all models.

    Returns:
        A row per model, pair of like sites, tap and metric: both sites and why they are alike (``pairing``),
        the means of both on the images where neither is silent, their difference b − a with its interval, t
        test and Wilcoxon's, Holm-corrected over the whole table, and the effect size d_z. Sites without a
        counterpart, or without a dense map, have a row with the reason. Of the whole models: sis, and
        agreement, the share of images that both give the same class, under ``mean_b``.

    Raises:
        SpectralError: for fewer than two models, one without a site like one of the reference's, sets that
            share no image, or as `spectral.measure`.
    """
    names = list(models)
    if len(names) < 2:
        raise SpectralError(f"compare: expected at least 2 models, got {len(names)}")
    at_sites = set(metrics) != {"sis"}
    own = isinstance(images, Mapping) and set(images) == set(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)  # of the images, which measure says
        feeds = {
            name: Feed(
                model,
                images[name] if own else images,
                caller=CALLER,
                preprocessing=preprocessing,
                name=name,
                lazily=True,
            )
            for name, model in models.items()
        }
    sites = {name: find_sites(models[name], feed.example) if at_sites else [] for name, feed in feeds.items()}
    before = {name: find_original_names(model, sites[name]) for name, model in models.items()}
    first = names[0]
    pairs = {name: match_sites(sites[first], sites[name], before[first], before[name]) for name in names[1:]}
    if own:
        _require_shared(feeds)
    if at_sites:
        _require_pairs(pairs, sites, names[0])
    tables = {
        name: measure(
            feed.model, feed.images, metrics, taps=taps, batch_size=batch_size, progress=progress,
            out=find_folder(out, name) if out else None, sites=sites[name] if at_sites else None,
            preprocessing=feed.preparation if feed.normalises else None,
        )
        for name, feed in feeds.items()
    }  # fmt: skip
    seen = _keep_readable(feeds[first].images)  # only now is it known which images can be read
    measured = {
        name: Measured(name, feed.model, sites[name], seen, tables[name], feed.probe.width)
        for name, feed in feeds.items()
    }
    asked = list(itertools.product(metrics, dict.fromkeys([*taps, "dense", "signal"])))
    rows: list[dict[str, Any]] = []
    for name in names[1:]:
        a, b = measured[names[0]], measured[name]
        facts = {"model_a": a.name, "model_b": b.name}
        found = [*_compare_sites(a, b, pairs[name], asked), *_list_unmatched(a, b, pairs[name])]
        rows += [facts | row for row in [*found, *_compare_whole(a, b)]]
    tested = ("p_holm", "wilcoxon_p_holm", "significance")
    table = pd.DataFrame(rows, columns=[column for column in COLUMNS if column not in tested])
    for column in WORDS:
        table[column] = fill_words(table[column])
    return add_holm(table, "p", "wilcoxon_p")[COLUMNS].astype(dict.fromkeys(COUNTS, "Int64"))


def _keep_readable(images: Images) -> Images:
    """Leave out the images that turned out to be broken: they are of no model's values."""
    return images.readable() if isinstance(images, ImageSet) else images


@dataclass(frozen=True)
class Measured:
    """A model and what was measured of it.

    Attributes:
        name: what the table calls it.
        model: the network.
        sites: all that it has.
        images: what the reference saw, by which models are paired.
        table: from `measure`.
        width: how many class scores it gives, None where that isn't known.
    """

    name: str
    model: nn.Module
    sites: Sequence[Site]
    images: Images
    table: pd.DataFrame
    width: int | None

    @cached_property
    def values(self) -> pd.DataFrame:
        """One row per image, in the order of the set; a column per (site, tap, metric); NaN of others."""
        known = self.table[self.table["reason"] == ""]
        wide = known.pivot(index="image", columns=["site", "tap", "metric"], values="value")
        return wide.reindex(index=list(self.images.ids))

    @cached_property
    def clusters(self) -> pd.Series:
        """What each image was cut from."""
        return pd.Series(self.images.clusters, index=list(self.images.ids))

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why sites weren't measured, by name."""
        rows = self.table[self.table["reason"] != ""]
        return dict(zip(rows["site"], rows["reason"], strict=True))

    def column(self, site: str, tap: str, metric: str) -> pd.Series | None:
        """Return the values of one metric by image, NaN where the site didn't run; None if there are none."""
        key = (site, tap, metric)
        return self.values[key] if key in self.values.columns else None

    def silent(self, site: str, tap: str, metric: str) -> pd.Series:
        """Whether a map was silent, by image, or had no channel of which the metric is."""
        power, own = self.column(site, tap, "power"), self.column(site, tap, metric)
        if power is None or own is None:
            return pd.Series(False, self.values.index)
        return (power <= 0) | (power.notna() & own.isna())


def _compare_sites(
    a: Measured, b: Measured, pairs: Sequence[SitePair], asked: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the rows of two models' like sites, for each metric and tap in the order of the reference."""
    rows = []
    for (metric, tap), (index, pair) in itertools.product(asked, enumerate(pairs)):
        columns = [a.column(pair.a.name, tap, metric), b.column(pair.b.name, tap, metric)]
        if any(column is None for column in columns):
            continue
        silent = [a.silent(pair.a.name, tap, metric), b.silent(pair.b.name, tap, metric)]
        facts = {"layer": pair.a.name, "layer_index": index, "site_a": pair.a.name, "op_a": pair.a.op,
                 "site_b": pair.b.name, "op_b": pair.b.op, "pairing": pair.why, "tap": tap}  # fmt: skip
        values = [column for column in columns if column is not None]
        rows.append({**facts, **_test(values, silent, a.clusters, metric)})
    return rows


def _compare_whole(a: Measured, b: Measured) -> list[dict[str, Any]]:
    """Return the rows of the whole models: SIS if it was measured, and agreement."""
    rows = []
    facts: dict[str, Any] = {"layer": "", "tap": ""}
    both = [side.column("", "", "sis") for side in (a, b)]
    if all(column is not None for column in both):
        loud = [pd.Series(False, index=a.values.index)] * 2
        rows.append({**facts, **_test([c for c in both if c is not None], loud, a.clusters, "sis")})
    first, second = (side.column("", "", "prediction") for side in (a, b))
    if first is None or second is None:
        return rows
    matching = match_models(a.model, b.model, (a.width, b.width))
    if not matching.index:
        return [*rows, {**facts, "metric": "agreement", "n": 0, "reason": matching.reason}]
    both_ran = first.notna() & second.notna()
    same = (first.map(matching.index) == second)[both_ran]
    found = stats.summarize_share(same.astype(float), a.clusters[both_ran])
    counts = {"n": found.n, "n_clusters": found.n_clusters}
    share = bound("mean_b", found.share, found.ci_low, found.ci_high)
    return [*rows, {**facts, "metric": "agreement", **counts, **share}]


def _test(
    values: Sequence[pd.Series], silent: Sequence[pd.Series], clusters: pd.Series, metric: str
) -> dict[str, Any]:
    """Both means, and what the pairs without silent maps say of their difference."""
    ran = (values[0].notna() | silent[0]) & (values[1].notna() | silent[1])
    if not ran.any():
        return {"metric": metric, "n": 0, "reason": "no image reached both sites"}
    own = [v[ran] for v in values]
    name, limits = metric, RANGES.get(metric, ())
    if metric in IN_DECIBELS:
        own = [v.map(to_decibels) for v in own]
        name, limits = IN_DECIBELS[metric], (to_decibels(ALIAS_FREE), np.inf)
    row: dict[str, Any] = {"metric": name}
    mute = [m[ran] for m in silent]
    for side, mine, one in zip("ab", own, mute, strict=True):
        found = stats.summarize(mine, mute[0] | mute[1], clusters[mine.index], *limits)
        row |= {f"n_silent_{side}": int(one.sum()), **bound_summary(f"mean_{side}", found)}
    return row | compare_columns(own[1], own[0], mute[1], mute[0], clusters)


def _require_shared(feeds: Mapping[str, Feed]) -> None:
    """Refuse a model whose images are none of the reference's: there is no image to pair."""
    reference, *others = feeds
    ids = feeds[reference].images.ids
    for name in others:
        own = feeds[name].images.ids
        if set(ids).isdisjoint(own):
            raise SpectralError(
                f"compare: the sets of {reference} and {name} share no image (the first are {ids[0]!r} and "
                f"{own[0]!r}), so nothing can be paired; give each model the same pictures under the same ids"
            )


def _require_pairs(
    pairs: Mapping[str, Sequence[SitePair]], sites: Mapping[str, Sequence[Site]], reference: str
) -> None:
    """Refuse a model that has nothing to compare with the reference."""
    for name in sites:
        if not any(site.measurable for site in sites[name]):
            why = next((f" ({site.name}: {site.reason})" for site in sites[name]), "")
            raise SpectralError(
                f"compare: {name} has no downsampling site that can be measured{why}; --metrics sis compares "
                f"the whole models"
            )
    for name, found in pairs.items():
        if not found:
            raise SpectralError(
                f"compare: {reference} and {name} have no like sites (same resolution, same order); "
                f"--metrics sis compares the whole models"
            )


def _list_unmatched(a: Measured, b: Measured, pairs: Sequence[SitePair]) -> list[dict[str, Any]]:
    """Return a row for each site that has no partner, or can't be measured, with the reason."""
    rows = []
    for side, own, other in (("a", a, b), ("b", b, a)):
        paired = {getattr(pair, side).name for pair in pairs}
        for site in own.sites:
            reason = site.reason or own.reasons.get(site.name)
            if reason is None and site.name not in paired:
                reason = f"no like site in {other.name}"
            if reason is not None:
                rows.append({f"site_{side}": site.name, f"op_{side}": site.op, "n": 0, "reason": reason})
    return rows
