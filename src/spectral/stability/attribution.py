"""Which site is to blame: each replaced by an alias-free one in turn, and what that does to predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from spectral.errors import SpectralError, SpectralWarning
from spectral.inputs import Inputs
from spectral.intake import Feed
from spectral.measurement import insert_clusters, measure
from spectral.network import Take
from spectral.sites import Site
from spectral.stability.reading import check_counts, choose_sites, name_of
from spectral.surgery import convert
from spectral.surgery.report import ConversionReport, conversion_report
from spectral.table import widen

CALLER = "attribute_instability"
ALL_SITES = "all sites"  # no module path has a blank
COLUMNS = [
    "model", "site", "op", "method", "placement", "image", "cluster", "sis_original", "sis", "delta_sis",
    "prediction_original", "prediction", "agree", "label", "correct_original", "correct",
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The network with one site replaced, or with several that are one operator of a module that reruns.

    Attributes:
        name: the site's, or ``"all sites"``.
        op: its kind.
        placement: where the layer is.
        model: the converted copy.
    """

    name: str
    op: str
    placement: str
    model: nn.Module


def attribute_instability(
    model: nn.Module,
    images: Any,
    method: str = "ideal",
    *,
    sites: Sequence[Site | str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Replace one site at a time by an anti-aliasing layer, and see what becomes of each prediction.

    `convert` puts the layer behind the site's dense map and keeps the weights, so nothing but that decimation
    changes. ``delta_sis`` is SIS with the layer less SIS without, on the same image: negative where the site
    made predictions unstable. The network isn't trained with the layer, so its predictions change too, and
    one that always answers the same is stable: read ``delta_sis`` beside ``agree`` and ``correct``. The
    effects of single sites needn't add up to that of all.

    A block's convolution and its shortcut are two sites. The calls of one operator in a module that runs
    several times are replaced together, in one row with all their names.

    Args:
        model: classifier.
        images: as for `spectral.measure`.
        method: a name in ``METHODS``; the default leaves nothing that could alias.
        sites: which to replace, as sites or their names; by default all that `convert` replaces.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image and replaced site, and, under ``"all sites"``, with all of them replaced: model,
        site, op, method, placement, image, cluster, sis_original, sis, delta_sis, prediction_original,
        prediction, agree (whether the two are the same), label, correct_original and correct; these three are
        NaN where no label is known, or the labels are of other classes than the model's. ``attrs["sites"]``
        lists every site: name, op, stride, replaced and, if it wasn't, the reason. There are no rows if none
        of the model's sites can be replaced.

    Raises:
        SpectralError: for an unknown method or site, no images, a model without sites, one that is no
            classifier, or if no site that is asked for can be replaced.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = attribute_instability(net, torch.rand(2, 3, 16, 16), progress=False)
        >>> table["site"].unique().tolist(), len(table)
        (['0', 'all sites'], 4)
    """
    (batch_size,) = check_counts(CALLER, batch_size=batch_size)
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    feed.require_scores()
    source, example = feed.images, feed.example
    every = {site.name for site in choose_sites(model, example, sites, CALLER)}
    whole = convert(model, method, None if sites is None else lambda s: s.name in every, example=example)
    report = conversion_report(whole)
    records = [
        {"name": row.site, "op": row.op, "stride": "x".join(map(str, row.stride)), "replaced": row.replaced,
         "reason": row.reason}
        for row in report.rows if row.site in every
    ]  # fmt: skip
    before = _predict(model, feed, batch_size)
    count = len(report.units) + bool(report.units)
    hidden = not (progress and count)
    bar = tqdm(total=count, desc=f"attributing {name_of(model)}", unit="variant", disable=hidden)
    frames = []
    with bar:
        for variant in _make_variants(model, method, whole, report, example, records):
            after = _predict(variant.model, feed, batch_size)
            frames.append(_tabulate(variant, method, before, after))
            bar.update()
    table = (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=[c for c in COLUMNS[1:] if c != "cluster"])
    )
    table.insert(0, "model", name_of(model))
    table = insert_clusters(table, source)
    table.attrs["sites"] = records
    return table[COLUMNS]


def _make_variants(
    model: nn.Module,
    method: str,
    whole: nn.Module,
    report: ConversionReport,
    example: Inputs,
    records: list[dict[str, Any]],
) -> Iterator[Variant]:
    """Yield a network per unit, one at a time, and the one with all; note in ``records`` what fails."""
    if not report.units:
        return
    rows = {row.site: row for row in report.rows}
    for unit in report.units:
        own = rows[unit.sites[0]]
        try:
            single = convert(model, method, lambda site, u=unit: site.name in u.sites, example=example)  # type: ignore[misc]
        except SpectralError as error:
            for record in records:
                if record["name"] in unit.sites:
                    record |= {"replaced": False, "reason": f"not by itself: {error}"}
            continue
        placement = {r.site: r.placement for r in conversion_report(single).rows}[unit.sites[0]]
        yield Variant(", ".join(unit.sites), own.op, placement or "", single)
    ops = dict.fromkeys(row.op for row in report.replaced)
    yield Variant(ALL_SITES, "+".join(ops), "", whole)


def _predict(model: nn.Module, feed: Feed, batch_size: int) -> pd.DataFrame:
    """SIS, prediction and, where known, label of every image, in their order."""
    prepared = feed.preparation if feed.normalises else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)  # of the images, said once by their own feed
        table = measure(model, feed.images, ("sis",), batch_size=batch_size, progress=False,
                        preprocessing=prepared, logits=feed.logits)  # fmt: skip
    wide = widen(table)
    return wide if "label" in wide else wide.assign(label=np.nan)


def _tabulate(variant: Variant, method: str, before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    label = before["label"]
    known = label.notna()
    return pd.DataFrame({
        "site": variant.name, "op": variant.op, "method": method, "placement": variant.placement,
        "image": before.index, "sis_original": before["sis"], "sis": after["sis"],
        "delta_sis": after["sis"] - before["sis"],
        "prediction_original": before["prediction"].astype(int),
        "prediction": after["prediction"].astype(int), "agree": after["prediction"] == before["prediction"],
        "label": label,
        "correct_original": (before["prediction"] == label).where(known).astype(float),
        "correct": (after["prediction"] == label).where(known).astype(float),
    }).reset_index(drop=True)  # fmt: skip
