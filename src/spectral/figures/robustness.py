"""Aliases against robustness over networks: each layer's AM, rank correlations, and every attack."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    GREY,
    INK,
    SMALL,
    add_heading,
    add_legend,
    format_units,
    new_figure,
    wrap_name,
)
from spectral.table.schema import BOUNDS, name_decibels, with_bounds

# Training → colour (Okabe–Ito) and label; downsampling → marker: each is told without the other.
TRAININGS = {
    "standard": ("#0072B2", "standard training"),
    "robust": ("#009E73", "on resampled images"),
    "fgsm": ("#D55E00", "adversarial (FGSM)"),
    "pgd": ("#CC79A7", "adversarial (PGD)"),
    "adversarial": ("#E69F00", "adversarial (published)"),
}
OTHER = ("#222222", "other training")
LAYERS = {"strided": "o", "blurpool": "s", "flc": "^", "asap": "D", "wavelet": "v", "aps": "P"}
OTHER_LAYER = "X"
ATTACKS = {
    "pgd-50-weak": ("#F0E442", "s", "PGD at ε = 1/255"),
    "fgsm": ("#56B4E9", "v", "FGSM"),
    "pgd-50": ("#E69F00", "s", "PGD, 50 steps"),
    "apgd-ce": ("#CC79A7", "X", "APGD (AutoAttack's first part)"),
    "autoattack": ("#D55E00", "o", "AutoAttack"),
}
CORRUPTIONS = {
    "gaussian_noise": ("#009E73", "P", "Gaussian noise"),
    "defocus_blur": ("#CC79A7", "^", "defocus blur"),
    "jpeg_compression": ("#222222", "X", "JPEG"),
}
CLEAN = ("white", "D", "clean")
STRENGTH = ("autoattack", "apgd-ce", "pgd-50", "fgsm")  # from strong to weak
# Behind a network's name: the same, adversarially trained; and as long without attacks.
ATTACKED, CONTROL = "-fgsm", "-control"
FEWEST_TICKS = 3
MOST_LEVELS, MOST_NETWORKS = 6, 30  # what fits a page
MEAN_LEVEL = "mean over sites"
FAINT = "#b8b8b8"
METRICS = {
    "am": "AM (amplitude)",
    "am_relative": "am_relative (ratio)",
    "alias_power_ratio_channel_median": "alias power ratio (median of the channels)",
}
HEADLINE = "alias_power_ratio_channel_median"
_KINDS = ("accuracy", "agreement")
_WHO = ("model", "training", "downsampling", "response", "n", "n_clusters")
_OUTCOME = with_bounds(*(f"{STRENGTH[0]}_{kind}" for kind in _KINDS))
_NEEDED = tuple(attack for attack in ATTACKS if attack != "apgd-ce")  # earlier tables have none
_TESTS = with_bounds(*(f"{test}_{kind}" for test in (*_NEEDED, *CORRUPTIONS) for kind in _KINDS))
_MORE = tuple(with_bounds(*(f"{attack}_{kind}" for attack in STRENGTH for kind in _KINDS)))  # if there
_COEFFICIENTS = ("networks", "attack", "metric", "level", "n_networks", *with_bounds("spearman", "partial"))


@figure(
    "fig27_am_robustness",
    title="Aliasing of each downsampling layer against robustness",
    caption=(
        "AM at the dense tap of each downsampling layer, mean over images, against what the attack leaves at "
        "ε = 8/255, both with 95 % intervals: a panel per layer, a mark per network; colour: training; "
        "marker: downsampling; lines: to an adversarially trained network from the same trained as long "
        "without attacks, or from its start where there is none; 0, left of the dotted line: no aliases "
        "beyond rounding. AM grows with amplitude and map size, so it compares "
        "networks within a panel, and is taken in front of batch norm in some and behind it in others. "
        "Networks that differ in architecture, recipe and start: a pattern here is no cause."
    ),
    columns={
        "phase9_networks": (*_WHO, *_OUTCOME),
        "phase9_sites": ("model", "level", "alias_free", *with_bounds("am")),
    },
    optional=_MORE,
)
def plot_am_robustness(source: Source) -> Figure:
    """Robust accuracy over AM, a panel per downsampling layer."""
    networks = _index_networks(source)
    sites = source.rows("phase9_sites", known=["am"])
    sites = sites[sites["model"].isin(networks.index)]
    levels = sorted(set(sites["level"]))
    shown = levels[:MOST_LEVELS]
    n_rows = -(-len(shown) // 2)
    fig = new_figure(FULL_WIDTH, 2.0 * n_rows + 1.2)
    axes = fig.subplots(n_rows, min(2, len(shown)), squeeze=False, sharey=True)
    for ax, level in zip(axes.flat, shown, strict=False):
        _draw_level(ax, sites[sites["level"] == level], networks)
        ax.set_title(level)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax in axes[-1] if len(shown) % 2 == 0 else axes.flat[len(shown) - 2 : len(shown)]:
        ax.set_xlabel("AM at the dense tap (amplitude)")
    fig.supylabel(_say_outcome(networks))
    add_legend(fig, _kind_handles(networks), columns=5)
    some = f"; the first {MOST_LEVELS} of {len(levels)} layers" if len(levels) > len(shown) else ""
    add_heading(fig, source.title, f"{len(networks)} networks; {_say_count(networks)}{some}")
    return fig


@figure(
    "fig28_robustness_relations",
    title="Do networks that alias less withstand attacks better?",
    caption=(
        "Top: am_relative at the dense tap and the alias power ratio at the tap signal, median over "
        "channels, both means over the sites, against what the attack leaves at ε = 8/255, a mark per "
        "network. Bottom: Spearman's correlation over networks "
        "for each metric and layer (filled), and the partial one given clean accuracy (open), by residuals "
        "of ranks, with 95 % intervals over networks. Networks that share a start or differ in "
        "recipe and architecture are no independent draws: intervals are, if anything, too narrow."
    ),
    columns={
        "phase9_networks": (*_WHO, *_OUTCOME, *with_bounds("am_relative", name_decibels(HEADLINE))),
        "phase9_correlation": _COEFFICIENTS,
    },
    optional=_MORE,
)
def plot_robustness_relations(source: Source) -> Figure:
    """Scatter of robust accuracy over two alias metrics, and all rank correlations as dots."""
    networks = _index_networks(source)
    found = source.rows("phase9_correlation", networks="all", attack=_find_strongest(networks))
    levels = [*sorted(set(found["level"]) - {MEAN_LEVEL}), MEAN_LEVEL]
    fig = new_figure(FULL_WIDTH, 0.24 * len(levels) + 4.2)
    grid = fig.add_gridspec(2, 6, height_ratios=[2.2, 0.24 * len(levels) + 0.3])
    columns = {
        "am_relative": ("am_relative", f"{METRICS['am_relative']}, dense tap"),
        HEADLINE: (name_decibels(HEADLINE), "median alias power ratio (dB), signal tap"),
    }
    first: Axes | None = None
    for i, (metric, (column, label)) in enumerate(columns.items()):
        first = ax = fig.add_subplot(grid[0, 3 * i : 3 * i + 3], sharey=first)
        _draw_networks(ax, networks, column)
        ax.set_xlabel(f"{label}, mean over sites")
        ax.set_title(_say_coefficients(found, metric), fontsize=SMALL)
        ax.tick_params(labelleft=i == 0)
        if i == 0:
            ax.set_ylabel(_say_outcome(networks))
    for i, metric in enumerate(METRICS):
        ax = fig.add_subplot(grid[1, 2 * i : 2 * i + 2])
        _draw_coefficients(ax, found[found["metric"] == metric], levels)
        ax.set_title(metric.removeprefix("alias_power_"))
        ax.tick_params(labelleft=i == 0)
        ax.set_xlabel("rank correlation")
        if i == 0:
            ax.set_ylabel("layer (step, path)")
    add_legend(fig, [*_kind_handles(networks), *_coefficient_handles()], columns=4)
    add_heading(fig, source.title, f"{len(networks)} networks; {_say_count(networks)}")
    return fig


@figure(
    "fig29_attacks",
    title="What attacks, corruptions and shifts leave of each network",
    caption=(
        "Left: clean accuracy, and what PGD leaves at ε = 1/255 and FGSM, PGD, APGD and AutoAttack (on at "
        "most 256 of the images) at 8/255. "
        "Middle: three corruptions at severity 3 (ImageNet-C's constants, at 32 px not CIFAR-10-C). Right: "
        "share of pairs of shifted views (up to 3 px, circular) that get one class. All with 95 % intervals; "
        "of whole networks, so of no tap. A star: a stronger attack changed fewer predictions than a weaker "
        "one there."
    ),
    columns={
        "phase9_networks": (
            *(*_WHO, *_TESTS, "attacks_ordered"),
            *with_bounds("clean_accuracy", "test_accuracy", "consistency"),
        )
    },
    optional=_MORE,
)
def plot_attacks(source: Source) -> Figure:
    """Dots with intervals, a line per network: attacks, corruptions, consistency."""
    networks = _index_networks(source)
    shown = networks.iloc[:MOST_NETWORKS]
    kind = _find_kind(networks)
    clean = "clean_accuracy" if kind == "accuracy" else "test_accuracy"
    fig = new_figure(FULL_WIDTH, min(0.23 * len(shown) + 1.7, 8.9))
    left, middle, right = fig.subplots(1, 3, sharey=True, width_ratios=[2.2, 1.6, 1])
    tests = {test: (f"{test}_{kind}", look) for test, look in {**ATTACKS, **CORRUPTIONS}.items()}
    _draw_tests(left, shown, [(clean, CLEAN), *(tests[a] for a in ATTACKS if tests[a][0] in shown)])
    _draw_tests(middle, shown, [tests[corruption] for corruption in CORRUPTIONS])
    _draw_tests(right, shown, [("consistency", (GREY, "o", "consistency"))])
    names = [_say_name(model, row["attacks_ordered"]) for model, row in shown.iterrows()]
    left.set_yticks(range(len(shown)), names[::-1])
    left.set_ylabel("network (*: attacks out of order)")
    for ax, title in ((left, "attacks"), (middle, "corruptions, severity 3"), (right, "shifts")):
        ax.set_title(title)
    left.set_xlabel(f"{networks['response'].iloc[0]} (%)")
    middle.set_xlabel(f"{kind} (%)")
    right.set_xlabel("consistency (%)")
    add_legend(fig, _test_handles(clean), columns=4)
    some = f"; the first {MOST_NETWORKS} of {len(networks)} networks" if len(networks) > len(shown) else ""
    broken = int((~shown["attacks_ordered"].astype(bool)).sum())
    stars = f"; {broken} with attacks out of order" if broken else ""
    add_heading(fig, source.title, f"{_say_count(networks)}, 95 % intervals{some}{stars}")
    return fig


# Networks -------------------------------------------------------------------------------------------------


def _index_networks(source: Source) -> pd.DataFrame:
    rows = source.rows("phase9_networks")
    if rows["model"].duplicated().any():
        raise source.error("phase9_networks", "has a network twice, expected a row for each")
    return rows.set_index("model")


def _find_kind(networks: pd.DataFrame) -> str:
    """accuracy or agreement: what the response is the share of."""
    return str(networks["response"].iloc[0]).rpartition(" ")[2]


def _say_outcome(networks: pd.DataFrame) -> str:
    return f"{networks['response'].iloc[0]} under {ATTACKS[_find_strongest(networks)][2]} (%)"


def _find_strongest(networks: pd.DataFrame) -> str:
    """The strongest attack whose outcome is known of every network."""
    columns = {attack: f"{attack}_{_find_kind(networks)}" for attack in STRENGTH}
    known = (attack for attack in STRENGTH if columns[attack] in networks)
    return next((attack for attack in known if networks[columns[attack]].notna().all()), STRENGTH[0])


def _say_count(networks: pd.DataFrame) -> str:
    return format_units(networks)


def _say_name(model: Hashable, ordered: object) -> str:
    return f"{str(model).removeprefix('bundled/')}{'' if ordered else ' *'}"


def _look(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Colour and marker of a network."""
    colour = TRAININGS.get(str(row["training"]), OTHER)[0]
    marker = LAYERS.get(str(row["downsampling"]), OTHER_LAYER)
    return {"marker": marker, "mfc": colour, "mec": INK, "mew": 0.5, "ms": 5, "ls": ""}


def _kind_handles(networks: pd.DataFrame) -> list[Artist]:
    """Legend entries of the trainings by colour, and of the layers by marker."""
    trainings = [TRAININGS.get(training, OTHER) for training in dict.fromkeys(networks["training"])]
    layers = dict.fromkeys(networks["downsampling"])
    named = {layer: LAYERS[layer] for layer in LAYERS if layer in layers}
    named |= {"other layer": OTHER_LAYER} if set(layers) - set(LAYERS) else {}
    return [
        *(_handle("o", colour, label) for colour, label in dict.fromkeys(trainings)),
        *(_handle(marker, "white", layer) for layer, marker in named.items()),
    ]


def _handle(marker: str, colour: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, mfc=colour, mec=INK, mew=0.5, ms=5, label=label)


# Panels ---------------------------------------------------------------------------------------------------


def _draw_level(ax: Axes, sites: pd.DataFrame, networks: pd.DataFrame) -> None:
    """Draw one layer's panel; what is free of aliases stands at the left edge of the logarithmic axis."""
    free = sites["alias_free"].astype(bool)
    heard = sites.loc[~free, "am"]
    edge = 0.4 * float(heard.min()) if len(heard) else 1.0
    drawn: dict[str, tuple[float, float]] = {}
    attack = _find_strongest(networks)
    for row, silent in zip(sites.to_dict("records"), free, strict=True):
        at = [edge] * 3 if silent else [float(row[f"am{end}"]) for end in BOUNDS]
        drawn[row["model"]] = _draw_point(ax, networks.loc[row["model"]], attack, at)
    for attacked in (model for model in drawn if model.endswith(ATTACKED)):
        plain = attacked.removesuffix(ATTACKED)
        reference = next((name for name in (plain + CONTROL, plain) if name in drawn), None)
        if reference is not None:
            ax.plot(*zip(drawn[reference], drawn[attacked], strict=True), color=GREY, lw=0.6, zorder=2)
    ax.margins(x=0.08)
    _use_log_scale(ax, edge if free.any() else None)
    _limit_shares(ax, networks)


def _use_log_scale(ax: Axes, edge: float | None) -> None:
    """Make the horizontal axis logarithmic with plain numbers, and 0 at its left edge if one is given."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    start = low if edge is None else 2.4 * edge
    for steps in ((1,), (1, 2, 5), (1, 2, 3, 4, 6, 8)):  # the coarsest that make a scale
        ticks = [
            step * 10.0**power for power in powers for step in steps if start <= step * 10.0**power <= high
        ]
        if len(ticks) >= FEWEST_TICKS:
            break
    labels = [f"{x:g}" for x in ticks]
    if edge is not None:
        ax.axvline(1.6 * edge, color=GREY, lw=0.6, ls=(0, (2, 2)), zorder=0)
        ticks, labels = [edge, *ticks], ["0", *labels]
    ax.set_xticks(ticks, labels)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low, high)


def _draw_networks(ax: Axes, networks: pd.DataFrame, column: str) -> None:
    floor, attack = -60.0, _find_strongest(networks)  # dB; below it is as good as nothing
    for _, row in networks.dropna(subset=[column]).iterrows():
        at = [float(row[f"{column}{end}"]) for end in BOUNDS]
        _draw_point(ax, row, attack, [max(x, floor) for x in at] if "_db" in column else at)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _limit_shares(ax, networks)


def _draw_point(ax: Axes, row: pd.Series, attack: str, x: Sequence[float]) -> tuple[float, float]:
    """Draw a network with both intervals; return where it is."""
    kind = str(row["response"]).rpartition(" ")[2]
    y = [100 * float(row[f"{attack}_{kind}{end}"]) for end in BOUNDS]
    if all(map(math.isfinite, x)):
        ax.plot(x[1:], [y[0]] * 2, color=FAINT, lw=0.7, zorder=1)
    if all(map(math.isfinite, y)):
        ax.plot([x[0]] * 2, y[1:], color=FAINT, lw=0.7, zorder=1)
    ax.plot(x[0], y[0], zorder=3, **_look(row.to_dict()))
    return x[0], y[0]


def _limit_shares(ax: Axes, networks: pd.DataFrame) -> None:
    highest = networks[f"{_find_strongest(networks)}_{_find_kind(networks)}_ci_high"].max()
    top = 100 * float(highest) if pd.notna(highest) else 100.0
    ax.set_ylim(-0.05 * max(top, 5), 1.12 * max(top, 5))
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _say_coefficients(found: pd.DataFrame, metric: str) -> str:
    """Write a metric's two coefficients for the mean over sites."""
    rows = found[(found["metric"] == metric) & (found["level"] == MEAN_LEVEL)]
    if rows.empty or not math.isfinite(rows["spearman"].iloc[0]):
        return "Spearman: undetermined"
    row = rows.iloc[0]
    lines = [("Spearman", "spearman"), ("given clean accuracy", "partial")]
    return "\n".join(f"{label} {_say_interval(row, column)}" for label, column in lines)


def _say_interval(row: pd.Series, column: str) -> str:
    mean, low, high = (float(row[f"{column}{end}"]) for end in BOUNDS)
    if not math.isfinite(mean):
        return "undetermined"
    interval = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low + high) else " (no interval)"
    return f"{mean:+.2f}{interval}".replace("-", "−")


def _draw_coefficients(ax: Axes, found: pd.DataFrame, levels: Sequence[str]) -> None:
    """Draw both coefficients of each level with their intervals."""
    for row in found.to_dict("records"):
        y = len(levels) - 1 - levels.index(row["level"])
        for column, aside, fill in (("spearman", 0.15, INK), ("partial", -0.15, "white")):
            mean, low, high = (float(row[f"{column}{end}"]) for end in BOUNDS)
            if math.isfinite(low + high):
                ax.hlines(y + aside, low, high, color=GREY, lw=0.9, zorder=2)
            if math.isfinite(mean):
                ax.plot(mean, y + aside, "o", mfc=fill, mec=INK, mew=0.6, ms=4, zorder=3)
    ax.axvline(0, color=INK, lw=0.6, zorder=0)
    ax.set_yticks(range(len(levels)), [wrap_name(level, 30) for level in reversed(levels)])
    ax.set(xlim=(-1.08, 1.08), ylim=(-0.6, len(levels) - 0.4), xticks=[-1, 0, 1])
    ax.tick_params(axis="y", length=0)


def _coefficient_handles() -> list[Artist]:
    return [_handle("o", INK, "correlation"), _handle("o", "#f2f2f2", "given clean accuracy")]


def _draw_tests(ax: Axes, networks: pd.DataFrame, tests: Sequence[tuple[str, tuple[str, str, str]]]) -> None:
    """Draw shares with intervals, a line per network, the tests of one a little apart."""
    for place, row in enumerate(networks.to_dict("records")):
        for i, (column, (colour, marker, _)) in enumerate(tests):
            y = len(networks) - 1 - place + 0.6 * ((len(tests) - 1) / 2 - i) / len(tests)
            mean, low, high = (100 * float(row[f"{column}{end}"]) for end in BOUNDS)
            if math.isfinite(low + high):
                ax.hlines(y, max(low, 0.0), min(high, 100.0), color=FAINT, lw=0.8, zorder=1)
            if math.isfinite(mean):
                ax.plot(mean, y, ls="", marker=marker, mfc=colour, mec=INK, mew=0.5, ms=4, zorder=3)
    ax.set(xlim=(-3, 103), ylim=(-0.6, len(networks) - 0.4), xticks=[0, 25, 50, 75, 100])
    ax.tick_params(axis="y", length=0)
    edges = [place + 0.5 for place in range(len(networks) - 1)]
    ax.hlines(edges, 0, 1, transform=ax.get_yaxis_transform(), color="#e4e4e4", lw=0.5, zorder=0)


def _test_handles(clean: str) -> list[Artist]:
    own = "clean accuracy" if clean == "clean_accuracy" else "test accuracy of the checkpoint"
    looks: Iterable[tuple[str, str, str]] = [(*CLEAN[:2], own), *ATTACKS.values(), *CORRUPTIONS.values()]
    return [_handle(marker, colour, label) for colour, marker, label in looks]
