"""The picture of what each analysis gives, of any network: a function of its table."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral.figures.kinds import (
    NO_LIMITS,
    SHARE,
    Panel,
    draw_estimates,
    draw_images,
    draw_lines,
    draw_maps,
    require_once,
)
from spectral.figures.stability import CEILING
from spectral.figures.style import AVR_LABEL, RHO_LABEL, SIS_LABEL
from spectral.figures.validation import drawn_of
from spectral.table.schema import fill_words, with_bounds

_JITTER = Panel("logit_jitter", "logit jitter")
_TESTS = ("perturbation", "attack", "protocol", "fill")
_OUTCOMES = {"agree": "predictions that stay", "robust": "predictions that stay",
             "stays": "predictions that stay at any shift", "correct": "accuracy",
             "robust_correct": "accuracy under attack", "stays_correct": "accuracy at any shift"}  # fmt: skip
_WEIGHED = {"sis": SIS_LABEL, _JITTER.column: _JITTER.label, "agreement": "agreement with the first",
            "accuracy": "accuracy", "latency_ms": "time per image (ms)",
            "macs": "multiply–accumulates per image"}  # fmt: skip
_CHANGES = {"delta_sis": "alone", "delta_sis_block": "with its block", "delta_sis_last_out": "last"}
_SERIES = "series"
_COUNTS = ("n", "n_clusters", "image", "cluster")
_SHOWN = {"avr": AVR_LABEL, "avr_separable": AVR_LABEL, "am_relative": "AM, relative", "am": "AM",
          "alias_power_ratio": "alias power ratio",
          "alias_power_ratio_channel_median": "alias power ratio, median channel"}  # fmt: skip


@drawn_of("site", "tap", "metric", "value", "image", "cluster", optional=["model"])
def plot_measurement(table: pd.DataFrame) -> Figure:
    """Draw what `spectral.measure` found at each site: a dot per image, the mean with its 95 % interval.

    Of the metrics that it knows names for; `plot_summary` draws the means of all.
    """
    known = table[table["metric"].isin(_SHOWN) & fill_words(table["site"]).ne("")]
    wide = known.assign(column=known["metric"] + " " + known["tap"]).dropna(subset=["value"])
    columns = dict.fromkeys(sorted(wide["column"], key=lambda name: list(_SHOWN).index(name.split()[0])))
    panels = [
        Panel(column, f"{_SHOWN[column.split()[0]]}, {column.split()[1]} tap",
              limits=(0.0, 1.0 + 1e-9) if column.startswith("avr") else (0.0, float("inf")))
        for column in columns
    ]  # fmt: skip
    for column in columns:
        wide[column] = wide["value"].where(wide["column"] == column)
    return draw_images(wide, "plot_measurement", "site", panels[:6])


@drawn_of(optional=["model", "sis", "logit_jitter", "confidence", *_COUNTS])
def plot_stability(table: pd.DataFrame) -> Figure:
    """Draw SIS, logit jitter and confidence of each image, from `spectral.measure_stability`."""
    named = table if "model" in table else table.assign(model="")
    panels = [Panel("sis", SIS_LABEL, limits=(0.0, 1.0 + 1e-9)), _JITTER, Panel("confidence", "confidence")]
    return draw_images(named, "plot_stability", "model", panels)


@drawn_of("model", "metric", "mean", "ci_low", "ci_high", optional=["n", "n_clusters"])
def plot_stability_summary(table: pd.DataFrame) -> Figure:
    """Draw means with intervals, from `spectral.summarize_stability`: a panel per metric."""
    known = table.dropna(subset=["mean"]).drop_duplicates(["model", "metric"])
    wide = known.drop_duplicates("model")[["model", *({"n", "n_clusters"} & set(known))]].set_index("model")
    for metric, own in known.groupby("metric", sort=False):
        ends = own.set_index("model")
        for end, name in (("", "mean"), ("_ci_low", "ci_low"), ("_ci_high", "ci_high")):
            wide[f"{metric}{end}"] = ends[name]
    panels = [Panel(str(metric), str(metric).replace("_", " ")) for metric in dict.fromkeys(known["metric"])]
    return draw_estimates(wide.reset_index(), "plot_stability_summary", "model", panels)


@drawn_of("site", optional=["model", *_CHANGES, *_COUNTS])
def plot_blame(table: pd.DataFrame) -> Figure:
    """Draw how SIS changes where a site is altered, image by image, from `spectral.attribute_instability`."""
    return draw_images(table, "plot_blame", "site", _list_changes())


@drawn_of("site", optional=["model", *with_bounds(*_CHANGES), *_COUNTS])
def plot_blame_summary(table: pd.DataFrame) -> Figure:
    """Draw how SIS changes where a site is altered, from `spectral.analysis.summarize_attribution`."""
    return draw_estimates(table, "plot_blame_summary", "site", _list_changes())


@drawn_of("site", optional=["model", "kind", "row", "column", *with_bounds("psnr_db", "relative_error"),
                           *_COUNTS])  # fmt: skip
def plot_movement(table: pd.DataFrame) -> Figure:
    """Draw how well each site's output moves with the image, from `spectral.measure_equivariance`.

    Errors are averaged, over an image's shifts and over images, and the means are drawn in dB. Its summary,
    of `spectral.analysis.summarize_equivariance`, has estimates in place of images.
    """
    caller, known, exact = "plot_movement", _name_series(table, "kind"), 10 ** (-CEILING / 10)
    relative = Panel("relative_error", "relative error", limits=(0.0, math.inf))
    if "psnr_db_ci_low" in table:
        decibels = [name for name in with_bounds("psnr_db") if name in table]
        label = _label_psnr(table[decibels].ge(CEILING).any(axis=None))
        known = known.assign(**{name: table[name].clip(upper=CEILING) for name in decibels})
        return draw_estimates(known, caller, "site", [Panel("psnr_db", label), relative], series=_SERIES)
    if "psnr_db" in known:
        known = known.assign(mse_ratio=10 ** (-known["psnr_db"] / 10))
    errors = [name for name in ("mse_ratio", "relative_error") if name in known]
    if "image" in known:
        for (site, series), block in known.groupby(["site", _SERIES], sort=False):
            require_once(block, f"{caller}: at {site!r}, {series},", "row", "column")
        keys = [name for name in ("site", _SERIES, "image", "cluster") if name in known]
        known = known.groupby(keys, sort=False)[errors].mean().reset_index()
    label = _label_psnr("mse_ratio" in known and known["mse_ratio"].le(exact).any())
    psnr = Panel("mse_ratio", label, limits=(0.0, math.inf),
                 scale=lambda error: -10 * np.log10(np.maximum(error, exact)))  # fmt: skip
    return draw_images(known, caller, "site", [psnr, relative], series=_SERIES)


@drawn_of("image", "source", "metric", "site", "share", optional=["model", "cluster"])
def plot_budget_images(table: pd.DataFrame) -> Figure:
    """Draw each image's shares of instability, from `spectral.measure_instability_budget`."""
    words = fill_words(table[["image", "source", "site"]])  # a file has no empty text
    known = table[words["image"].ne("") & words["source"].ne("total") & words["site"].eq("")]
    panel = Panel("share", "share of the image's instability", zero=True)
    named = _name_series(known, "metric")
    return draw_images(named, "plot_budget_images", "source", [panel], series=_SERIES)


@drawn_of(optional=["model", *_TESTS, "pair", *_OUTCOMES, *_COUNTS])
def plot_predictions(table: pd.DataFrame) -> Figure:
    """Draw which share of predictions stays, and is right, under each perturbation or attack.

    Args:
        table: from `spectral.measure_predictions`, `measure_robustness`, `measure_consistency` or
            `measure_worst_shift`.
    """
    row = next((name for name in _TESTS if name in table), "fill")
    panels = [Panel(column, f"{name} (share)", limits=SHARE) for column, name in _OUTCOMES.items()]
    return draw_images(table, "plot_predictions", row, panels)


@drawn_of("perturbation", optional=["model", *with_bounds("agreement", "accuracy"), "n", "n_clusters"])
def plot_perturbed(table: pd.DataFrame) -> Figure:
    """Draw accuracy and agreement of networks, from `spectral.analysis.compare_perturbed`."""
    panels = [Panel("agreement", "predictions that stay (share)", limits=SHARE),
              Panel("accuracy", "accuracy", limits=SHARE)]  # fmt: skip
    return draw_estimates(table, "plot_perturbed", "perturbation", panels)


@drawn_of("model", "perturbation", "class", "accuracy",
          optional=["label", "n", *with_bounds("accuracy")])  # fmt: skip
def plot_classes(table: pd.DataFrame) -> Figure:
    """Draw accuracy by class, from `spectral.analysis.compare_classes`."""
    named = table.assign(series=table["model"].astype(str) + ", " + table["perturbation"].astype(str))
    row = "class" if fill_words(table["class"]).ne("").all() else "label"
    panel = Panel("accuracy", "accuracy", limits=SHARE)
    return draw_estimates(named, "plot_classes", row, [panel], series="series")


@drawn_of("model", optional=["n", "n_clusters", *with_bounds(*_WEIGHED)])
def plot_models(table: pd.DataFrame) -> Figure:
    """Draw what networks cost and give, from `spectral.analysis.weigh_models`."""
    panels = [Panel(column, name, limits=SHARE if column in ("agreement", "accuracy") else NO_LIMITS)
              for column, name in _WEIGHED.items()]  # fmt: skip
    return draw_estimates(table, "plot_models", "model", panels)


@drawn_of("offset", "confidence", optional=["fill", "image", "cluster"])
def plot_diagonal(table: pd.DataFrame) -> Figure:
    """Draw how confidence moves along a diagonal shift, from `spectral.measure_diagonal`."""
    named = table if "fill" in table else table.assign(fill="")
    names = "diagonal shift (pixels)", "confidence, mean over images"
    return draw_lines(named, "plot_diagonal", "offset", "confidence", "fill", "fill", names)


@drawn_of("f_u", "f_v", "power", optional=["site", "tap"])
def plot_spectra(table: pd.DataFrame) -> Figure:
    """Draw the power spectra at each site and tap, from `spectral.analysis.measure_spectra`."""
    return draw_maps(
        table, "plot_spectra", "power", ("site", "tap"), "power (dB, each next to its peak)", "own"
    )


@drawn_of("f_u", "f_v", "power", optional=["site", "panel"])
def plot_folding(table: pd.DataFrame) -> Figure:
    """Draw a site's spectra before and behind its decimation, from `spectral.analysis.measure_folding`."""
    return draw_maps(
        table, "plot_folding", "power", ("site", "panel"), "power (dB next to the peak)", "common"
    )


@drawn_of("f_u", "f_v", "share", optional=["operator"])
def plot_null_frequencies(table: pd.DataFrame) -> Figure:
    """Draw what resampling hides, from `spectral.analysis.tabulate_null_frequencies`."""
    return draw_maps(table, "plot_null_frequencies", "share", ("operator",), "hidden share of the power")


@drawn_of("f_u", "f_v", optional=["error", "disagreement", "network", "norm"])
def plot_sensitivity(table: pd.DataFrame) -> Figure:
    """Draw which frequencies change predictions, from `spectral.measure_fourier_heatmap`."""
    known = "error" in table and table["error"].notna().any()
    value, label = ("error", "error") if known else ("disagreement", "predictions that change (share)")
    return draw_maps(table, "plot_sensitivity", value, ("network", "norm"), label)


@drawn_of("rho", "site", "tap", optional=["power", "power_mean"])
def plot_profiles(table: pd.DataFrame) -> Figure:
    """Draw radial power profiles of each site, from `spectral.analysis.measure_profiles` or its summaries."""
    value = "power_mean" if "power_mean" in table else "power"
    labels = RHO_LABEL, "power (dB next to the peak), mean"
    return draw_lines(table, "plot_profiles", "rho", value, "site", "tap", labels, power=True)


@drawn_of("frequency", "avr", "site", "tap")
def plot_frequency_sweep(table: pd.DataFrame) -> Figure:
    """Draw AVR over the frequency of a sinusoid, from `spectral.analysis.sweep_frequencies`."""
    labels = "frequency of the image (1 = Nyquist)", AVR_LABEL
    return draw_lines(table, "plot_frequency_sweep", "frequency", "avr", "site", "tap", labels)


@drawn_of("site", "tap", "avr", "silent")
def plot_image_avr(table: pd.DataFrame) -> Figure:
    """Draw the AVR of one image at each site and tap, from `spectral.analysis.measure_image_avr`."""
    known = table.assign(avr=table["avr"].mask(table["silent"].astype(bool)))
    return draw_estimates(known, "plot_image_avr", "site", [Panel("avr", AVR_LABEL)], "tap")


def _name_series(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Name what colours tell apart: a column's words, and the networks where there are several."""
    words = table[column].astype(str) if column in table else pd.Series("", table.index)
    if "model" in table and table["model"].nunique() > 1:
        words = table["model"].astype(str) + ", " + words
    return table.assign(**{_SERIES: words})


def _label_psnr(capped: bool | np.bool_) -> str:
    return f"PSNR of the mean error (dB{f'; {CEILING:.0f}: that or more' if capped else ''})"


def _list_changes() -> list[Panel]:
    return [Panel(column, f"ΔSIS, {name}", zero=True) for column, name in _CHANGES.items()]


ANSWERS: dict[str, tuple[tuple[str, ...], Callable[[pd.DataFrame], Figure]]] = {
    "measurement": (("image", "site", "tap", "metric", "value", "reason"), plot_measurement),
    "stability": (("image", "sis", "logit_jitter", "margin"), plot_stability),
    "stability_summary": (("model", "metric", "mean", "ci_low", "ci_high", "confidence_rho"),
                          plot_stability_summary),
    "blame": (("image", "site", "delta_sis", "delta_sis_last_out"), plot_blame),
    "blame_summary": (("site", "method", "delta_sis", "delta_sis_ci_low", "delta_sis_last_out"),
                      plot_blame_summary),
    "movement": (("site", "kind", "psnr_db", "relative_error"), plot_movement),
    "budget_images": (("image", "source", "metric", "share", "first_in"), plot_budget_images),
    "predictions": (("image", "perturbation", "agree"), plot_predictions),
    "robustness": (("image", "attack", "robust"), plot_predictions),
    "consistency": (("image", "protocol", "agree"), plot_predictions),
    "worst_shift": (("image", "max_shift", "stays"), plot_predictions),
    "diagonal": (("image", "offset", "confidence"), plot_diagonal),
    "perturbed": (("model", "perturbation", "agreement", "delta_clean"), plot_perturbed),
    "classes": (("model", "perturbation", "class", "accuracy"), plot_classes),
    "models": (("model", "sis", "latency_ms", "macs", "latency_runs"), plot_models),
    "folding": (("f_u", "f_v", "power", "site", "panel"), plot_folding),
    "spectra": (("f_u", "f_v", "power", "site", "tap"), plot_spectra),
    "null_frequencies": (("operator", "f_u", "f_v", "share"), plot_null_frequencies),
    "sensitivity": (("f_u", "f_v", "norm", "disagreement"), plot_sensitivity),
    "profiles": (("site", "tap", "rho", "power"), plot_profiles),
    "frequency_sweep": (("grid", "frequency", "site", "tap", "avr"), plot_frequency_sweep),
    "image_avr": (("site", "tap", "avr", "silent", "height"), plot_image_avr),
}  # fmt: skip
"""By name, the columns that tell a table, and its picture; told apart in this order."""
