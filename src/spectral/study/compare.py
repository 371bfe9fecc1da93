"""Any models side by side: paired on the same images, at like sites, each against the first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from spectral import stats
from spectral.capture import Tap
from spectral.console import NOTHING, format_mean, format_rows
from spectral.data import ImageSet
from spectral.errors import SpectralError
from spectral.measurement import measure
from spectral.models import model_info
from spectral.schema import RANGES
from spectral.sites import Site, find_sites, pair_sites
from spectral.study.columns import add_holm, compare_columns
from spectral.study.common import name_folder

COLUMNS = [
    "model_a", "model_b", "layer", "layer_index", "site_a", "op_a", "site_b", "op_b", "tap", "metric",
    "n", "n_clusters", "n_silent_a", "n_silent_b", "mean_a", "ci_low_a", "ci_high_a", "mean_b",
    "ci_low_b", "ci_high_b", "difference", "difference_low", "difference_high", "t", "df", "p", "p_holm",
    "wilcoxon_p", "wilcoxon_p_holm", "effect_size", "significance", "reason",
]  # fmt: skip
COUNTS = ("layer_index", "n", "n_clusters", "n_silent_a", "n_silent_b")
SMALLEST_P = 0.001  # that is written out


def compare_models(
    models: Mapping[str, nn.Module],
    images: Mapping[str, ImageSet],
    metrics: Sequence[str],
    taps: Sequence[Tap] = ("input", "dense"),
    *,
    batch_size: int = 32,
    out: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure models on the same images and test each against the first, site by site.

    Like sites are those at the same resolution in the same order of execution. Silent maps of either model
    are left out of the tests. Crops of one photograph aren't independent: the photograph (cluster) is the
    unit of all means, intervals and tests.

    Args:
        models: at least two, by name; the first is the reference.
        images: for each model, the same pictures in the same order.
        metrics: as for `spectral.measure`.
        taps: where AVR is taken.
        batch_size: images per forward pass.
        out: folder of the measurements, which are continued after an interruption.
        progress: show bars.

    Returns:
        A row per model, like site, tap and metric: means with intervals of the reference (``_a``) and of the
        model (``_b``), their difference b − a with its interval, t test and Wilcoxon's, Holm-corrected over
        the whole table, and the effect size d_z. Sites without a counterpart, or
        without a dense map, have a row with the reason. Of the whole models: sis, and agreement, the share
        of images that both give the same class, under ``mean_b``.

    Raises:
        SpectralError: for fewer than two models, one without a site like one of the reference's, or as
            `spectral.measure`.
    """
    names = list(models)
    if len(names) < 2:
        raise SpectralError(f"compare: expected at least 2 models, got {len(names)}")
    at_sites = set(metrics) != {"sis"}
    sites = {name: find_sites(model, images[name].size or 32) if at_sites else []
             for name, model in models.items()}  # fmt: skip
    measurable = {name: [site for site in own if site.measurable] for name, own in sites.items()}
    layers = pair_sites(measurable, reference=names[0]) if at_sites else {}
    if at_sites:
        _require_like_sites(layers, sites, names)
    tables = {
        name: measure(
            model, images[name], metrics, taps=taps, batch_size=batch_size, progress=progress,
            out=out / name_folder(name) if out else None, sites=measurable[name] if at_sites else None,
        )
        for name, model in models.items()
    }  # fmt: skip
    order = list(images[names[0]].ids)
    clusters = pd.Series(images[names[0]].clusters, index=order)
    asked = [(tap, metric) for metric in metrics for tap in dict.fromkeys([*taps, "dense"])]
    values = {name: _spread(table, order) for name, table in tables.items()}
    ops = {name: {site.name: site.op for site in own} for name, own in sites.items()}
    pairing = _Pairing(layers, ops, values, asked, clusters)
    rows: list[dict[str, Any]] = []
    for name in names[1:]:
        rows += pairing.compare(names[0], name)
        rows += _list_unmatched(layers, sites, tables, names[0], name)
        same_classes = _count_classes(models[names[0]]) == _count_classes(models[name])
        rows += pairing.compare_whole(names[0], name, same_classes)
    return _finish(rows)


def format_comparison(table: pd.DataFrame) -> str:
    """Write a comparison as text: a block per model, tap and metric, a line per like site."""
    lines: list[str] = []
    for model, rows in table.groupby("model_b", sort=False):
        reference = rows["model_a"].iloc[0]
        lines.append(f"a: {reference}, b: {model}\nmeans and difference b − a, each ± half its 95 % interval")
        for (tap, metric), block in rows[rows["layer"] != ""].groupby(["tap", "metric"], sort=False):
            counts = f"{block['n'].min()} images of {block['n_clusters'].min()} clusters (photographs)"
            lines.append(f"\n{metric}, {tap} tap; n = {counts}")
            header = ["like site", "a", "b", "difference", "p (Holm)", "effect d_z"]
            lines.append(format_rows(header, [_format_row(row) for row in block.to_dict("records")]))
        lines += ["", *_format_whole(rows), ""]
    return "\n".join(lines).rstrip()


def _format_row(row: Mapping[Any, Any]) -> list[str]:
    means = [format_mean(*(row[f"{key}_{side}"] for key in ("mean", "ci_low", "ci_high"))) for side in "ab"]
    if row["reason"]:
        return [row["layer"], *means, NOTHING, row["reason"], NOTHING]
    between = format_mean(*(row[f"difference{end}"] for end in ("", "_low", "_high")))
    return [row["layer"], *means, between, _format_p(row), f"{row['effect_size']:.2f}"]


def _format_p(row: Mapping[Any, Any]) -> str:
    p = "< 0.001" if row["p_holm"] < SMALLEST_P else f"{row['p_holm']:.3f}"
    return f"{p} {row['significance']}".rstrip()


def _format_whole(rows: pd.DataFrame) -> list[str]:
    """What is said of the whole models, and which sites could not be compared."""
    lines = []
    for row in rows[rows["layer"] == ""].to_dict("records"):
        if row["metric"] == "sis":
            _, a, b, between, p, effect = _format_row(row)
            lines.append(f"whole model: sis a {a}, b {b}")
            lines.append(f"             difference {between}, p {p}, effect d_z {effect}")
        elif row["metric"] == "agreement" and not row["reason"]:
            share = format_mean(row["mean_b"], row["ci_low_b"], row["ci_high_b"])
            lines.append(f"same class for {share} of {row['n']} images")
        elif row["metric"] == "agreement":
            lines.append(f"same class: not compared, {row['reason']}")
        else:
            side = "a" if row["site_a"] else "b"
            lines.append(
                f"not compared: {row[f'site_{side}']} of {side} ({row[f'op_{side}']}): {row['reason']}"
            )
    return lines


@dataclass(frozen=True)
class _Pairing:
    """Values of the models on the same images, ready to be paired.

    Attributes:
        layers: (model, site) → (position, label), as `pair_sites` gives it.
        ops: kinds of the sites, per model.
        values: per model, a row per image and a column per (site, tap, metric).
        asked: (tap, metric) in the order in which they are reported.
        clusters: what each image was cut from.
    """

    layers: Mapping[tuple[str, str], tuple[int, str]]
    ops: Mapping[str, Mapping[str, str]]
    values: Mapping[str, pd.DataFrame]
    asked: Sequence[tuple[str, str]]
    clusters: pd.Series

    def compare(self, a: str, b: str) -> list[dict[str, Any]]:
        """Return the rows of two models' like sites, for each metric and tap in order of depth."""
        there = {label: site for (model, site), (_, label) in self.layers.items() if model == a}
        own = [(index, label, site) for (model, site), (index, label) in self.layers.items() if model == b]
        like = [(index, label, there[label], site) for index, label, site in sorted(own) if label in there]
        rows = []
        for (tap, metric), (index, label, *sites) in itertools.product(self.asked, like):
            sides = list(zip((a, b), sites, strict=True))
            if not all((site, tap, metric) in self.values[model].columns for model, site in sides):
                continue
            facts = {"layer": label, "layer_index": index, "site_a": sites[0], "site_b": sites[1],
                     "op_a": self.ops[a][sites[0]], "op_b": self.ops[b][sites[1]]}  # fmt: skip
            values = [self.values[model][(site, tap, metric)] for model, site in sides]
            silent = [self.values[model][(site, tap, "power")] <= 0 for model, site in sides]
            rows.append({"model_a": a, "model_b": b, **facts, "tap": tap, "metric": metric,
                         **self._test(values, silent, metric)})  # fmt: skip
        return rows

    def compare_whole(self, a: str, b: str, same_classes: bool) -> list[dict[str, Any]]:
        """Return the rows of the whole models: SIS if it was measured, and agreement."""
        rows = []
        facts = {"model_a": a, "model_b": b, "layer": "", "tap": ""}
        key = ("", "", "sis")
        if all(key in self.values[m].columns for m in (a, b)):
            values = [self.values[m][key] for m in (a, b)]
            loud = [pd.Series(False, index=values[0].index)] * 2
            rows.append({**facts, "metric": "sis", **self._test(values, loud, "sis")})
        key = ("", "", "prediction")
        if not same_classes:
            rows.append({**facts, "metric": "agreement", "n": 0, "reason": "their classes differ in number"})
            return rows
        if all(key in self.values[m].columns for m in (a, b)):
            same = (self.values[a][key] == self.values[b][key]).astype(float)
            found = stats.summarize_share(same, self.clusters)
            share = {"mean_b": found.share, "ci_low_b": found.ci_low, "ci_high_b": found.ci_high}
            counts = {"n": found.n, "n_clusters": found.n_clusters}
            rows.append({**facts, "metric": "agreement", **counts, **share})
        return rows

    def _test(self, values: Sequence[pd.Series], silent: Sequence[pd.Series], metric: str) -> dict[str, Any]:
        """Both means, and what the pairs without silent maps say of their difference."""
        row: dict[str, Any] = {}
        loud = ~(silent[0] | silent[1])
        for side, own, mute in zip("ab", values, silent, strict=True):
            found = stats.summarize(own, ~loud, self.clusters, *RANGES.get(metric, ()))
            row |= {f"n_silent_{side}": int(mute.sum()), f"mean_{side}": found.mean,
                    f"ci_low_{side}": found.ci_low, f"ci_high_{side}": found.ci_high}  # fmt: skip
        a, b = values
        return row | compare_columns(b, a, silent[1], silent[0], self.clusters)


def _require_like_sites(
    layers: Mapping[tuple[str, str], tuple[int, str]],
    sites: Mapping[str, Sequence[Site]],
    names: Sequence[str],
) -> None:
    """Refuse a model that has nothing to compare with the reference."""
    labels = {name: {label for (model, _), (_, label) in layers.items() if model == name} for name in names}
    for name in names:
        if not labels[name]:
            why = next((f" ({site.name}: {site.reason})" for site in sites[name]), "")
            raise SpectralError(
                f"compare: {name} has no downsampling site that can be measured{why}; --metrics sis compares "
                f"the whole models"
            )
        if not labels[name] & labels[names[0]]:
            raise SpectralError(
                f"compare: {names[0]} and {name} have no like sites (same resolution, same order); "
                f"--metrics sis compares the whole models"
            )


def _spread(table: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """One row per image, in the order of the set; a column per (site, tap, metric)."""
    wide = table.pivot(index="image", columns=["site", "tap", "metric"], values="value")
    return wide.reindex(index=list(order))


def _list_unmatched(
    layers: Mapping[tuple[str, str], tuple[int, str]],
    sites: Mapping[str, Sequence[Site]],
    tables: Mapping[str, pd.DataFrame],
    a: str,
    b: str,
) -> list[dict[str, Any]]:
    """Return a row for each site that has no partner, or can't be measured, with the reason."""
    rows = []
    for side, name, other in (("a", a, b), ("b", b, a)):
        failed = {r["name"]: r["reason"] for r in tables[name].attrs["sites"] if not r["measurable"]}
        partners = {label for (model, _), (_, label) in layers.items() if model == other}
        for site in sites[name]:
            reason = site.reason or failed.get(site.name)
            if reason is None and layers[(name, site.name)][1] not in partners:
                reason = f"no like site in {other}"
            if reason is not None:
                rows.append({"model_a": a, "model_b": b, f"site_{side}": site.name, f"op_{side}": site.op,
                             "n": 0, "reason": reason})  # fmt: skip
    return rows


def _count_classes(model: nn.Module) -> int | None:
    info = model_info(model)
    return info.num_classes if info else None


def _finish(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Correct the tests and put the columns in order."""
    table = pd.DataFrame(
        rows, columns=[c for c in COLUMNS if not c.endswith("_holm") and c != "significance"]
    )
    for column in ("layer", "tap", "metric", "reason", "site_a", "site_b", "op_a", "op_b"):
        table[column] = table[column].astype(object).fillna("")
    return add_holm(table, "p", "wilcoxon_p")[COLUMNS].astype(dict.fromkeys(COUNTS, "Int64"))
