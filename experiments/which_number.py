"""Write docs/which-number.md: which number to trust for what, with measurements as its examples.

Example: python experiments/which_number.py --limit 128
"""

# ruff: noqa: E501 - the rows of a page's tables are as long as they are

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd

import spectral
from spectral.table.schema import to_decibels

NETWORK = "bundled/resnet20"
LAYER = "layer2.0.conv1"
MEDIAN = "alias_power_ratio_channel_median"
PAIRS = 8  # of rolls of each image: one pair alone is off by .04
METRICS = ("avr", "avr_separable_exclude_dc", "am_relative", "alias_power_ratio", MEDIAN)

PAGE = """# Which number to trust for what

Made by `experiments/which_number.py`: {network} on {n} crops at 32 px ({source}), means over photographs.

| question | number | where | not |
|---|---|---|---|
| Does this site alias more than that one, in any network? | `alias_power_ratio_channel_median` and `…_p90`, in dB, \
beside `…_white_noise` | tap `signal` | the pooled ratio; AM |
| How much of a map lies above the new Nyquist frequency? | `avr_separable_exclude_dc` | tap `signal` | radial AVR with \
the mean |
| What did the study report? | `avr`, `avr_pooled` | taps `input`, `dense` | |
| Like sites of like networks, in amplitude? | `am`; free of scale: `am_relative` | tap `dense` | AM between networks |
| Does the answer change when the image moves? | `logit_jitter`, and `n_changed` of the predictions | whole network | \
SIS alone |
| Is that because of the lattice? | `comb_contrast` | whole network | SIS |
| Which site is to blame? | `delta_sis` with `delta_sis_block` and `delta_sis_last_out`, where predictions stay \
| `attribute_instability` | a correlation of AVR with SIS |

## The tap: `dense` isn't one map, `signal` is

`convert(model, "strided")` moves the decimation behind norm and activation. Not one logit changes; the dense map does.

| {layer} | as it is | converted |
|---|---|---|
{taps}

## The mean, and loud channels

At `dense` the mean is part of AVR's denominator, though decimation can't harm it. The pooled ratio is that of the
loudest channels; the median over channels that of an ordinary one.

| site | `avr` (radial, dense) | `avr_separable_exclude_dc` (signal) | pooled ratio (signal) | channel median (signal) |
|---|---|---|---|---|
{sites}

## The level of white noise depends on the map's size

The highest frequency of an even lattice is its own mirror image. It counts half, and still small maps fold more.

| map, stride 2 | white noise |
|---|---|
{noise}

## SIS is mostly confidence

A tenth of the photographs carries {top:.0%} of its mean. Its Spearman correlation with the confidence is {rho:.2f}
({rho_low:.2f} to {rho_high:.2f}), that of logit jitter {jitter_rho:.2f} ({jitter_low:.2f} to {jitter_high:.2f}). SIS under shifts
by the total stride ({stride} px), which move every lattice onto itself and can't alias, is {at:.4f}, under shifts by one
pixel {sis:.4f}: what comes in over a border moves the prediction too, and the more the farther. The comb contrast has
the lattice's part alone: {comb:.4f} ({comb_low:.4f} to {comb_high:.4f}).

| network | SIS, median | SIS, mean | logit jitter, mean | comb contrast, mean | agreement of two random rolls |
|---|---|---|---|---|---|
{stability}

The last column, consistency under rolls by any number of pixels, is about the same for all: most of what such a roll
does is at the border. It is no headline.
"""


@click.command()
@click.option("--limit", type=click.IntRange(min=16), default=128, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/which-number.md"))
def main(limit: int, out: Path) -> None:
    """Measure the examples and write the page."""
    images = spectral.load_images("samples", size=32, limit=limit)
    model = spectral.load_model(NETWORK)
    networks = {NETWORK: model, f"{NETWORK}+strided": spectral.convert(model, "strided"),
                "bundled/resnet20-blurpool": spectral.load_model("bundled/resnet20-blurpool"),
                f"{NETWORK}+flc": spectral.convert(model, "flc")}  # fmt: skip
    own, twin = (measure(networks[name], images) for name in (NETWORK, f"{NETWORK}+strided"))
    tables = {name: spectral.measure_stability(net, images, progress=False) for name, net in networks.items()}
    summaries = {name: spectral.summarize_stability(t).set_index("metric") for name, t in tables.items()}
    rolled = {name: measure_agreement(net, images) for name, net in networks.items()}
    text = PAGE.format(
        network=NETWORK, n=len(images), source=images.source, layer=LAYER, taps=compare_taps(own, twin),
        sites=compare_sites(own), noise=tabulate_noise(), stability=compare_stability(summaries, rolled),
        **describe_sis(summaries[NETWORK], tables[NETWORK]),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    click.echo(str(out))


def measure(model: object, images: object) -> pd.Series:
    """Return means by site, tap and metric; sites have the names of the network that isn't converted."""
    table = spectral.measure(model, images, METRICS, taps=("dense", "signal"), progress=False)  # type: ignore[arg-type]
    summary = spectral.summarize_measurements(table)
    summary["site"] = summary["site"].str.removesuffix(".antialias")
    return summary.set_index(["site", "tap", "metric"])["mean"]


def measure_agreement(model: object, images: object) -> float:
    """Return how often two random rolls have one prediction: the mean over photographs, of several pairs."""
    pairs = spectral.measure_consistency(model, images, pairs=PAIRS)  # type: ignore[arg-type]
    return spectral.stats.summarize(pairs["agree"].astype(float), None, pairs["cluster"]).mean


def compare_taps(own: pd.Series, twin: pd.Series) -> str:
    rows = [(tap, metric) for tap in ("dense", "signal") for metric in ("avr", "alias_power_ratio")]
    return "\n".join(
        f"| `{metric}`, {tap} | {own[LAYER, tap, metric]:.3f} | {twin[LAYER, tap, metric]:.3f} |"
        for tap, metric in rows
    )


def compare_sites(own: pd.Series) -> str:
    lines = []
    for site in filter(None, own.index.get_level_values("site").unique()):
        means = [own[site, "dense", "avr"], own[site, "signal", "avr_separable_exclude_dc"]]
        ratios = [to_decibels(own[site, "signal", name]) for name in ("alias_power_ratio", MEDIAN)]
        cells = [f"{mean:.3f}" for mean in means] + [f"{ratio:.1f} dB" for ratio in ratios]
        lines.append(f"| {site} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabulate_noise() -> str:
    sizes = (4, 8, 14, 16, 32, 112)
    found = [(n, spectral.find_white_noise_ratio((n, n), 2)) for n in sizes]
    return "\n".join(f"| {n} × {n} | {ratio:.3f} ({to_decibels(ratio):.1f} dB) |" for n, ratio in found)


def describe_sis(summary: pd.DataFrame, table: pd.DataFrame) -> dict[str, object]:
    sis, jitter, comb = (summary.loc[name] for name in ("sis", "logit_jitter", "comb_contrast"))
    at = table.groupby("cluster")["sis_total_stride"].mean().mean()
    ends = ("confidence_rho", "confidence_rho_ci_low", "confidence_rho_ci_high")
    return {
        "top": sis["top_tenth"], "sis": sis["mean"], "at": at, "stride": sis["total_stride"].partition("x")[0],
        **dict(zip(("rho", "rho_low", "rho_high"), sis[list(ends)], strict=True)),
        **dict(zip(("jitter_rho", "jitter_low", "jitter_high"), jitter[list(ends)], strict=True)),
        "comb": comb["mean"], "comb_low": comb["ci_low"], "comb_high": comb["ci_high"],
    }  # fmt: skip


def compare_stability(summaries: dict[str, pd.DataFrame], rolled: dict[str, float]) -> str:
    lines = []
    for name, rows in summaries.items():
        sis, jitter, comb = (rows.loc[key] for key in ("sis", "logit_jitter", "comb_contrast"))
        cells = [f"{v:.4f}" for v in (sis["median"], sis["mean"], jitter["mean"], comb["mean"])]
        cells.append(f"{rolled[name]:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
