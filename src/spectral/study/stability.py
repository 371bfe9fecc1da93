"""What the stability measurements say: equivariance and attribution per site, with intervals and tests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.console import NOTHING, format_mean, format_rows
from spectral.figures.spec import BOUNDS, with_bounds
from spectral.stability import ALL_SITES
from spectral.study.columns import bound_summary, to_decibels
from spectral.study.phase3 import add_holm, significance

EQUIVARIANCE_COLUMNS = [
    "site", "op", "stride", "total_stride", "kind", "shifts", "n", "n_flat", "unit", "n_units", "psnr_db",
    "psnr_db_low", "psnr_db_high", "psnr_db_median", "mse_ratio", *with_bounds("relative_error"), "reason",
]  # fmt: skip
ATTRIBUTION_COLUMNS = [
    "site", "op", "method", "placement", "n", "unit", "n_units", "sis_original", "sis",
    *with_bounds("delta_sis"), "t", "df", "p", "p_holm", "significance", "effect_size",
    *with_bounds("agreement"), "n_labelled", "accuracy_original", "accuracy",
    *with_bounds("accuracy_change"), "reason",
]  # fmt: skip
COUNTS = ("shifts", "n", "n_flat", "n_units", "df", "n_labelled")
WORDS = ("site", "op", "stride", "total_stride", "kind", "method", "placement", "unit", "reason")
FEW = 2  # what a test needs
SMALLEST_P = 0.001  # that is written out


def summarize_equivariance(
    table: pd.DataFrame, photographs: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """One row per site and kind of shift: PSNR of the mean error, with its interval.

    An image's error is the mean of ``mse_ratio`` over its shifts of one kind; ``psnr_db`` is that of the mean
    over images, in which an exact image counts as an error of 0. ``psnr_db_median`` is the images' median.
    Flat maps are counted and left out. Intervals come from resampled images, or photographs.

    Args:
        table: from `measure_equivariance`, with its ``attrs``.
        photographs: what each image was cut from, where several are cut from one.
        seed: of the resampling.
    """
    rows: list[dict[str, Any]] = []
    for _, block in table.groupby(["site", "kind"], sort=False):
        first = block.iloc[0]
        facts = {key: first[key] for key in ("site", "op", "stride", "total_stride", "kind")}
        shifts = len(block[["row", "column"]].drop_duplicates())
        images = block.groupby("image", sort=False)[["mse_ratio", "relative_error"]].mean()
        loud = images[images["mse_ratio"].notna()]
        rows.append({**facts, "shifts": shifts, "n": len(loud), "n_flat": len(images) - len(loud),
                     **_describe_errors(loud, photographs, seed)})  # fmt: skip
    rows += [
        {"site": record["name"], "op": record["op"], "stride": record["stride"], "n": 0,
         "reason": record["reason"]}
        for record in table.attrs["sites"] if record["reason"]
    ]  # fmt: skip
    return _finish(rows, EQUIVARIANCE_COLUMNS)


def summarize_attribution(
    table: pd.DataFrame, photographs: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """One row per site, replaced or not: ΔSIS with its paired test, agreement and change of accuracy.

    Holm's correction is over the single sites; all sites together are one hypothesis of its own.

    Args:
        table: from `attribute_instability`, with its ``attrs``.
        photographs: what each image was cut from, where several are cut from one: the unit of tests then.
        seed: of the resampling.
    """
    rows = [
        {**{key: block[key].iloc[0] for key in ("site", "op", "method", "placement")},
         **_test_variant(block, photographs, seed)}
        for _, block in table.groupby("site", sort=False)
    ]  # fmt: skip
    rows += [
        {"site": record["name"], "op": record["op"], "n": 0, "reason": record["reason"]}
        for record in table.attrs["sites"] if not record["replaced"]
    ]  # fmt: skip
    found = _finish(rows, [c for c in ATTRIBUTION_COLUMNS if c not in ("p_holm", "significance")])
    found["whole"] = found["site"] == ALL_SITES
    add_holm(found, "p", by=["whole"])
    found["significance"] = [significance(p) for p in found["p_holm"]]
    return found[ATTRIBUTION_COLUMNS]


def format_attribution(table: pd.DataFrame) -> str:
    """Write an attribution as text: a line per replaced site, then the reasons for the others."""
    found = table[table["n"] > 0]
    first = found.iloc[0]
    lines = [
        f"SIS of the network as it is: {first['sis_original']:.4g}; n = {first['n']} images, units of the "
        f"test: {first['n_units']} {first['unit']}s",
        "means ± half their 95 % intervals",
        "",
    ]
    header = ["site", "op", "ΔSIS", "p (Holm)", "agreement"]
    if (found["n_labelled"] > 0).any():
        header.append(f"Δaccuracy (n = {first['n_labelled']})")
    lines.append(format_rows(header, [_format_row(row)[: len(header)] for row in found.to_dict("records")]))
    for row in table[table["reason"] != ""].to_dict("records"):
        what = "not replaced" if row["n"] == 0 else "not tested"
        lines.append(f"{what}: {row['site']} ({row['op']}): {row['reason']}")
    return "\n".join(lines)


def _format_row(row: Mapping[Hashable, Any]) -> list[str]:
    p = row["p_holm"]
    said = NOTHING if np.isnan(p) else "< 0.001" if p < SMALLEST_P else f"{p:.3f}"
    means = [
        format_mean(*(row[f"{name}{end}"] for end in BOUNDS))
        for name in ("delta_sis", "agreement", "accuracy_change")
    ]
    return [row["site"], row["op"], means[0], f"{said} {row['significance']}".rstrip(), *means[1:]]


def _describe_errors(loud: pd.DataFrame, photographs: Mapping[str, str] | None, seed: int) -> dict[str, Any]:
    unit = _unit(loud.index, photographs)
    if loud.empty:
        return unit
    # Without photographs each image is one: a resampled mean of squares, unlike Student's, is never below 0.
    groups = [photographs[image] for image in loud.index] if photographs else list(loud.index)
    found = stats.summarize(loud["mse_ratio"], groups=groups, seed=seed)
    with np.errstate(divide="ignore"):
        median = float(np.median(-10 * np.log10(loud["mse_ratio"])))
    return {
        **unit, "psnr_db": -to_decibels(found.mean), "psnr_db_low": -to_decibels(found.ci_high),
        "psnr_db_high": -to_decibels(found.ci_low), "psnr_db_median": median, "mse_ratio": found.mean,
        **bound_summary("relative_error", stats.summarize(loud["relative_error"], groups=groups, seed=seed)),
    }  # fmt: skip


def _test_variant(block: pd.DataFrame, photographs: Mapping[str, str] | None, seed: int) -> dict[str, Any]:
    groups = [photographs[image] for image in block["image"]] if photographs else None
    unit = _unit(block["image"], photographs)
    delta = stats.summarize(block["delta_sis"], groups=groups, seed=seed)
    agreement = stats.summarize(block["agree"].astype(float), groups=groups, seed=seed)
    row = {
        "n": len(block), **unit, "sis_original": block["sis_original"].mean(), "sis": block["sis"].mean(),
        **bound_summary("delta_sis", delta), **bound_summary("agreement", agreement),
        **_weigh_accuracy(block[block["label"].notna()], photographs, seed),
    }  # fmt: skip
    if unit["n_units"] < FEW:
        return {**row, "reason": f"a test needs {FEW} {unit['unit']}s"}
    test = stats.compare_paired(block["sis"], block["sis_original"], groups)
    t, p = (test.t, test.p_t) if groups is None else (test.t_groups, test.p_groups)
    return {**row, "t": t, "df": unit["n_units"] - 1, "p": p, "effect_size": test.d_z}


def _weigh_accuracy(
    labelled: pd.DataFrame, photographs: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    if labelled.empty:
        return {"n_labelled": 0}
    groups = [photographs[image] for image in labelled["image"]] if photographs else None
    change = stats.summarize(labelled["correct"] - labelled["correct_original"], groups=groups, seed=seed)
    return {
        "n_labelled": len(labelled), "accuracy_original": labelled["correct_original"].mean(),
        "accuracy": labelled["correct"].mean(), **bound_summary("accuracy_change", change),
    }  # fmt: skip


def _unit(
    images: Sequence[str] | pd.Series | pd.Index, photographs: Mapping[str, str] | None
) -> dict[str, Any]:
    if not photographs:
        return {"unit": "image", "n_units": len(images)}
    return {"unit": "photograph", "n_units": len({photographs[image] for image in images})}


def _finish(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A table in which counts stay whole numbers and missing words are empty."""
    table = pd.DataFrame(rows, columns=columns)
    for column in columns:
        if column in COUNTS:
            table[column] = table[column].astype("Int64")
        elif column in WORDS:
            table[column] = table[column].astype(object).fillna("")
        else:
            table[column] = table[column].astype(float)
    return table
