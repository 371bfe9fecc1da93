"""Statistics over networks: do those that alias less withstand attacks better, and what does training change?

Each takes tables with a row per network, or per network and site, such as phase 9 of the study writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from spectral import stats
from spectral.arguments.values import as_list
from spectral.measurement import ALIAS_METRICS
from spectral.perturb.attacks import ATTACKS
from spectral.stats.columns import add_holm, bound, tabulate
from spectral.table.schema import BOUNDS, with_bounds

WEAK, FULL = "pgd-50-weak", "autoattack"
RESPONSES = (*ATTACKS, WEAK)
ATTACKED, CONTROL = "-fgsm", "-control"
"""Endings of names: trained on attacks, and trained as long without."""
METRICS = ALIAS_METRICS  # as published, at the dense tap
HEADLINE = "alias_power_ratio_channel_median"  # at the tap signal, where any two networks can be compared
# Metric → the column that says where it is rounding.
FREE = {**dict.fromkeys(METRICS, "alias_free"), HEADLINE: "signal_alias_free"}
MEAN_LEVEL = "mean over sites"
FEWEST = 4  # networks in a correlation
RESAMPLES = 20_000  # p can then survive the correction over all that the table shows
CONFOUNDS = (
    "architectures, layers, recipes and lengths of training differ between networks, and those tuned from "
    "one start are no independent draws; AM's amplitude is that in front of batch norm in strided networks "
    "and behind the activation in others"
)
ALIKE = "the two of a pair differ in the attack alone, but each was trained once"
UNLIKE = "the two of a pair differ in the whole recipe, its length too, not in the attack alone"
CORRELATION_COLUMNS = [
    "networks", "attack", "response", "metric", "level", "n_networks", "n_alias_free",
    *with_bounds("spearman"), "spearman_p", "spearman_p_holm", "given", *with_bounds("partial"), "partial_p",
    "partial_p_holm", "significance", "reason",
    "confounds",
]  # fmt: skip
PAIR_COLUMNS = [
    "pair", "reference", "metric", "level", "unit", "n", "n_alias_free", "n_lower",
    *with_bounds("log_ratio", "ratio"), "p", "p_holm", "significance", "reason", "confounds",
]  # fmt: skip
COUNTS = ("n", "n_networks", "n_alias_free", "n_lower")


def place_sites(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say where each site is: at the how manieth loss of resolution, and on which path of the block.

    Example:
        >>> sizes = ("32x32", "32x32", "16x16")
        >>> names = ("layer2.0.conv1", "layer2.0.shortcut.0", "layer3.0.conv1")
        >>> records = [{"name": n, "input_size": s} for n, s in zip(names, sizes)]
        >>> [record["level"] for record in place_sites(records)]
        ['step 1, main path', 'step 1, shortcut', 'step 2, main path']
    """
    steps: dict[str, int] = {}
    placed = []
    for index, record in enumerate(records):
        step = steps.setdefault(str(record["input_size"]), len(steps) + 1)
        aside = any(word in str(record["name"]).lower() for word in ("shortcut", "downsample", "skip"))
        path = "shortcut" if aside else "main path"
        placed.append({**record, "site": record["name"], "site_index": index, "step": step, "path": path,
                       "level": f"step {step}, {path}"})  # fmt: skip
    return placed


def correlate_networks(
    networks: pd.DataFrame,
    sites: pd.DataFrame,
    seed: int = 0,
    progress: bool = False,
    attacks: str | Sequence[str] = RESPONSES,
) -> pd.DataFrame:
    """Rank correlation of each alias metric at each level with each attack's response, over networks.

    Args:
        networks: a row per network: model, training, response, accuracies or agreements under attacks
            (``fgsm_accuracy``, …), clean_accuracy and test_accuracy.
        sites: a row per network and site: model, level, the metrics, alias_free and signal_alias_free.
        seed: of the resampling.
        progress: show a bar.
        attacks: which responses.

    Over all networks, and over those of each way of training: between these the two always differ together.
    Aliases that are rounding count as none, so that such networks are tied. A network that an attack couldn't
    attack is left out there, and of ``n_networks``. Partial: given clean accuracy.
    Holm's correction is over the whole table.

    Example:
        >>> sites = pd.DataFrame({"model": list("abcd"), "level": "step 1", "alias_free": False,
        ...     "signal_alias_free": False, **dict.fromkeys((*METRICS, HEADLINE), [0.1, 0.2, 0.3, 0.4])})
        >>> networks = pd.DataFrame({"model": list("abcd"), "training": "standard", "clean_accuracy": 0.9,
        ...     "test_accuracy": None, "response": "robust accuracy", "fgsm_accuracy": [0.4, 0.3, 0.2, 0.1]})
        >>> table = correlate_networks(networks, sites, attacks=["fgsm"])
        >>> round(table.loc[0, "spearman"].item(), 6)
        -1.0
    """
    values, free = tabulate_levels(sites)
    trainings = networks.groupby("training", sort=False)["model"].agg(list)
    groups = {"all": list(networks["model"])}
    groups |= {str(name): own for name, own in trainings.items() if len(own) >= FEWEST}
    cases = [(*case, *key) for case in product(groups, as_list(attacks)) for key in values.columns]
    table, response = networks.set_index("model"), str(networks["response"].iloc[0])
    rows = []
    for group, attack, metric, level in tqdm(cases, "correlating", disable=not progress, leave=False):
        own: pd.Series = values[metric, level].loc[values.index.isin(groups[group])].dropna()
        outcome = table[f"{attack}_{response.rpartition(' ')[2]}"].loc[own.index].dropna()
        own, chosen = own[outcome.index], table.loc[outcome.index]
        rows.append({
            "networks": group, "attack": attack, "response": response, "metric": metric, "level": level,
            "n_networks": len(own), "n_alias_free": int(free[metric, level][own.index].sum()),
            **_correlate(own, outcome, chosen, seed), "confounds": CONFOUNDS,
        })  # fmt: skip
    tested = ("spearman_p_holm", "partial_p_holm", "significance")
    columns = [column for column in CORRELATION_COLUMNS if column not in tested]
    found = tabulate(rows, columns, COUNTS)
    return add_holm(found, "spearman_p", "partial_p")[CORRELATION_COLUMNS]


def tabulate_levels(sites: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spread the sites' means: a row per network, a column per metric and level, with the mean over sites.

    Returns:
        The values, 0 where the site is free of aliases; and which levels of which networks are so, a column
        per metric and level too.
    """
    known = sites.dropna(subset=list(FREE), how="all")
    free = {metric: known[column].eq(True) for metric, column in FREE.items()}
    heard = known.assign(**{metric: known[metric].mask(free[metric], 0.0) for metric in FREE})
    levels = [*sorted(heard["level"].unique()), MEAN_LEVEL]
    columns = pd.MultiIndex.from_product([FREE, levels])
    means = _spread_levels(heard, "mean").reindex(columns=columns)
    silent = _spread_levels(known.assign(**free), "all").reindex(index=means.index, columns=columns)
    return means, silent.eq(True)


def _spread_levels(sites: pd.DataFrame, aggregate: Literal["mean", "all"]) -> pd.DataFrame:
    everywhere = pd.concat([sites, sites.assign(level=MEAN_LEVEL)])
    return everywhere.pivot_table(
        index="model", columns="level", values=list(FREE), aggfunc=aggregate, sort=False
    )


def _correlate(x: pd.Series, y: pd.Series, chosen: pd.DataFrame, seed: int) -> dict[str, Any]:
    """One row's coefficients; clean accuracy is that of the checkpoints' own test images if all tell it."""
    if len(x) < FEWEST:
        return {"reason": f"needs at least {FEWEST} networks, got {len(x)}"}
    plain = stats.correlate_ranks(x, y, None, RESAMPLES, seed)
    row: dict[str, Any] = bound("spearman", plain.rho, plain.ci_low, plain.ci_high)
    row |= {"spearman_p": plain.p, "reason": plain.reason}
    given = next((c for c in ("test_accuracy", "clean_accuracy") if chosen[c].notna().all()), None)
    if given is None:
        return row | {"reason": plain.reason or "no clean accuracy is known to be given"}
    partial = stats.correlate_ranks(x, y, {given: chosen[given]}, RESAMPLES, seed)
    row |= bound("partial", partial.rho, partial.ci_low, partial.ci_high)
    return row | {"given": given, "partial_p": partial.p, "reason": plain.reason or partial.reason}


def compare_pairs(sites: pd.DataFrame) -> pd.DataFrame:
    """Log-ratio of each alias metric, an adversarially trained network to the same without attacks.

    The same is its control, trained from the same start for as long without attacks, where that is there;
    else the start itself. Rows over all pairs say so where they hold both kinds.

    A row per pair over its sites, which are no sample of anything and have a mean without an interval; and
    for all pairs a row per level and one for the means over sites, where the pair is the unit. Sites free of
    aliases in either have no ratio and are counted. Holm's correction is over the whole table.
    """
    logs = _log_ratios(sites)
    rows = []
    for metric in FREE:
        own = logs[logs["metric"] == metric]
        for pair, at_sites in own.groupby("pair", sort=False):
            rows.append(_summarize_logs(at_sites, pair=pair, metric=metric, level=MEAN_LEVEL, unit="site"))
        for level, at_level in own.groupby("level"):
            rows.append(_summarize_logs(at_level, pair="all", metric=metric, level=level, unit="pair"))
        if len(own):
            means = own.groupby("pair", sort=False).agg(
                {"log_ratio": "mean", "alias_free": "all", "reference": "first"}
            )
            rows.append(_summarize_logs(means, pair="all", metric=metric, level=MEAN_LEVEL, unit="pair"))
    tested = ("p_holm", "significance")
    table = tabulate(rows, [column for column in PAIR_COLUMNS if column not in tested], COUNTS)
    return add_holm(table, "p")[PAIR_COLUMNS]


def _log_ratios(sites: pd.DataFrame) -> pd.DataFrame:
    """One row per pair, site and metric; NaN where either has no aliases there."""
    names = set(sites["model"])
    rows = []
    for attacked in (name for name in dict.fromkeys(sites["model"]) if name.endswith(ATTACKED)):
        plain = attacked.removesuffix(ATTACKED)
        reference = next((name for name in (plain + CONTROL, plain) if name in names), None)
        if reference is None:
            continue
        one, two = (sites[sites["model"] == name] for name in (reference, attacked))
        pair = one.merge(two, on=["site", "level"], suffixes=("_a", "_b"))
        for metric, column in FREE.items():
            both = pair.dropna(subset=[f"{metric}_a", f"{metric}_b"])
            free = both[f"{column}_a"].eq(True) | both[f"{column}_b"].eq(True)
            ratio = (both[f"{metric}_b"] / both[f"{metric}_a"]).mask(free)
            facts = {"pair": plain, "reference": reference, "level": both["level"], "metric": metric,
                     "alias_free": free}  # fmt: skip
            rows.append(pd.DataFrame({**facts, "log_ratio": np.log(ratio)}))
    columns = ["pair", "reference", "level", "metric", "alias_free", "log_ratio"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def _summarize_logs(logs: pd.DataFrame, **facts: Any) -> dict[str, Any]:
    known = logs["log_ratio"].dropna()
    kinds = {name.endswith(CONTROL) for name in logs["reference"]}
    reference = {frozenset({True}): "control", frozenset({False}): "start"}.get(frozenset(kinds), "both")
    row = {**facts, "reference": reference, "confounds": ALIKE if kinds == {True} else UNLIKE,
           "n": len(known), "n_alias_free": int(logs["alias_free"].sum()),
           "n_lower": int((known < 0).sum()), "reason": ""}  # fmt: skip
    if known.empty:
        return row | {"reason": "free of aliases before or after: there is no ratio"}
    mean, low, high = float(known.mean()), math.nan, math.nan
    if facts["unit"] == "site":
        row["reason"] = "the sites of one pair are no sample: no interval"
    elif len(known) > 1:
        found = stats.compare_paired(known, np.zeros(len(known)))
        low, high = found.ci_low, found.ci_high
        row["p"] = found.p
    else:
        row["reason"] = "one pair has no interval"
    return row | bound("log_ratio", mean, low, high) | bound("ratio", *np.exp([mean, low, high]).tolist())


def summarize_findings(correlations: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Say in a few sentences what the tables say of aliases and of AM, with its doubt."""
    said = []
    overall = correlations[(correlations["metric"] == HEADLINE) & (correlations["level"] == MEAN_LEVEL)]
    asked = (("all", FULL), ("standard", WEAK))
    chosen = overall[[key in asked for key in zip(overall["networks"], overall["attack"], strict=True)]]
    for row in chosen.to_dict("records"):
        start = f"aliases against {row['response']} under {row['attack']}, networks: {row['networks']}"
        if math.isnan(row["spearman"]):
            said.append(f"{start}: {row['reason']}")
            continue
        said.append(
            f"{start} {row['n_networks']}: Spearman {_say_interval(row, 'spearman', '+.2f')}, given clean "
            f"accuracy {_say_interval(row, 'partial', '+.2f')}"
        )
    chosen = pairs.query("pair == 'all' and metric == 'am'")
    for row in chosen[chosen["level"] == MEAN_LEVEL].to_dict("records"):
        said.append(
            f"AM after adversarial training, over that before: {_say_interval(row, 'ratio', '.2f')}, lower "
            f"in {row['n_lower']} of {row['n']} pairs"
        )
    return said


def _say_interval(row: Mapping[Any, Any], name: str, form: str) -> str:
    mean, low, high = (float(row[f"{name}{end}"]) for end in BOUNDS)
    if math.isnan(mean):
        return "undetermined"
    return f"{mean:{form}}" + (
        f" ({low:{form}} to {high:{form}})" if not math.isnan(low) else " (no interval)"
    )
