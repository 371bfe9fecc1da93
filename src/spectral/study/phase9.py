"""Phase 9, robustness: do networks that alias less withstand attacks better?

Networks that differ in their downsampling and in their training, on the same pictures: aliases at every
downsampling site; what FGSM, PGD and AutoAttack leave of their predictions at ε = 8/255, and PGD at 1/255,
which tells networks apart that were never attacked in training; corruptions and shifts. AutoAttack's cheap
first part sees all pictures, the whole of it at most 256 of them, spread evenly. Then rank correlations over
the networks, plain and given clean accuracy, and what adversarial training changes in the aliases of one and
the same architecture. With --data, labelled pictures, the response is robust accuracy; otherwise robust
agreement, the share of the own predictions that an attack can't change. --models takes any number of
networks; of a network with -fgsm behind its name and the same with -control, trained as long without attacks,
or else without either, a pair is made. The preset paper takes RobustBench's, which the paper
of the aliasing metric measured, and CIFAR-10.

Example: python experiments/phase9_robustness.py --data cifar10 --limit 64 --out results
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import cached_property, partial
from itertools import pairwise, product
from multiprocessing import get_context
from typing import Any, Literal

import click
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectral import stats
from spectral.classes import match_labels
from spectral.columns import (
    SIGNAL_COLUMNS,
    add_holm,
    average_signals,
    average_sites,
    bound,
    bound_flags,
    bound_share,
    bound_summary,
    read_means,
    read_signal,
    tabulate,
)
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.measurement import describe_sites, measure
from spectral.models import list_bundled, load_model, model_info
from spectral.models.info import ModelInfo
from spectral.perturb import measure_predictions
from spectral.perturb.attacks import ATTACKS, measure_robustness
from spectral.perturb.corruptions import Corruption
from spectral.schema import ALIAS_FREE, BOUNDS, SIGNAL_METRICS, with_bounds
from spectral.sites import find_sites
from spectral.stability import measure_consistency
from spectral.study.common import PictureResults, identify_network
from spectral.study.options import StudyOptions
from spectral.study.tuning import name_architecture
from spectral.study.zoo import ATTACKED, CONTROL, list_zoo
from spectral.summary import summarize_measurements
from spectral.surgery import METHODS
from spectral.surgery.report import find_report

LIMIT = 28  # pictures: AutoAttack takes minutes for each network that withstands it
IMAGES = {"bundled": "samples", "paper": "cifar10"}
# WRN-28-10 in figure 4 of the aliasing metric's paper, and ResNet-18 in figure 5
PAPER = (
    "Standard", "Carmon2019Unlabeled", "Wang2020Improving", "Hendrycks2019Using", "Wong2020Fast",
    "Rice2020Overfitting-L2", "Sehwag2021Proxy_R18",
)  # fmt: skip
EPSILON, WEAK_EPSILON = 8 / 255, 1 / 255
# At 8/255 a network that was never attacked keeps nothing: only a weak attack tells such networks apart.
WEAK = "pgd-50-weak"
TESTS = {**{attack: (attack, EPSILON) for attack in ATTACKS}, WEAK: ("pgd-50", WEAK_EPSILON)}
FULL = "autoattack"  # its later parts take minutes for each network that withstands the first, apgd-ce
FULL_LIMIT = 256  # so they see at most so many pictures, spread evenly over all
ORDER = ("fgsm", "pgd-50", FULL)  # from weak to strong
BATCH = 256  # AutoAttack's slow parts see only what the others left: small batches are waste
CORRUPTIONS, SEVERITY = (
    ("gaussian_noise", "defocus_blur", "jpeg_compression"),
    3,
)  # a noise, a blur, a digital
PROTOCOL, PAIRS = "cifar-circular", 4
METRICS = ("am", "am_relative", "alias_power_ratio")  # as published, at the dense tap
HEADLINE = "alias_power_ratio_channel_median"  # at the tap signal, where any two networks can be compared
# Metric → the column that says where it is rounding.
FREE = {**dict.fromkeys(METRICS, "alias_free"), HEADLINE: "signal_alias_free"}
MEAN_LEVEL = "mean over sites"
FEWEST = 4  # networks in a correlation
RESAMPLES = 20_000  # p can then survive the correction over all that the table shows
TRAIN_COMMAND = "python experiments/train_zoo.py --data cifar10 --only"
CONFOUNDS = (
    "architectures, layers, recipes and lengths of training differ between networks, and those tuned from "
    "one start are no independent draws; AM's amplitude is that in front of batch norm in strided networks "
    "and behind the activation in others"
)
ALIKE = "the two of a pair differ in the attack alone, but each was trained once"
UNLIKE = "the two of a pair differ in the whole recipe, its length too, not in the attack alone"
MEANS = {metric: ("dense", metric) for metric in METRICS}
Described = tuple[dict[str, Any], list[dict[str, Any]]]  # the row of a network, and those of its sites
_FACTS = ["model", "weights", "architecture", "downsampling", "training"]


_ALIASES = (*METRICS, "alias_power_db")
_SHARES = [f"{test}_{kind}" for test in (*TESTS, *CORRUPTIONS) for kind in ("accuracy", "agreement")]
NETWORK_COLUMNS = [
    *_FACTS, "tuned_from", "data_id", "epochs", "seed", *with_bounds("test_accuracy"), "test_images",
    "response", "n", "n_labelled", "n_clusters", f"n_{FULL}", *with_bounds("clean_accuracy", *_SHARES),
    "epsilon", "epsilon_weak", "attacks_ordered", "severity", "corruption_note", "corruption_reason",
    *with_bounds("consistency", "sis"), "sites", "measurable", *SIGNAL_COLUMNS, *with_bounds(*_ALIASES),
    "aliasing_reason",
]  # fmt: skip
SITE_COLUMNS = [
    *_FACTS, "site", "site_index", "step", "path", "level", "op", "kernel", "stride", "input_size",
    "output_size", "channels", "n", "n_silent", *with_bounds(*_ALIASES), "alias_free", "n_signal",
    *SIGNAL_COLUMNS, "signal_alias_free", "signal", "reason",
]  # fmt: skip
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
COUNTS = ("n", "n_labelled", "n_clusters", f"n_{FULL}", "n_silent", "n_signal", "sites", "measurable",
          "site_index", "step", "epochs", "channels", "seed", "test_images", "n_networks", "n_alias_free",
          "n_lower", "severity")  # fmt: skip


class Robustness(PictureResults):
    """Any number of networks, attacked on the same pictures.

    Args:
        options: what to run on.

    Raises:
        SpectralError: if none of the zoo's networks is there, or --data has no labels of the networks.
    """

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options)
        self.networks: dict[str, dict[str, str]] = {}
        self.names, self.missing = find_networks(options)
        click.echo(f"{len(self.names)} networks under {', '.join(ATTACKS)} at ε = 8/255, and pgd-50 at 1/255")
        if self.missing:
            command = f"{TRAIN_COMMAND} {','.join(self.missing)}"
            click.echo(
                f"  left out  {', '.join(self.missing)}: no such checkpoints; this trains them: {command}"
            )
        images = self.images
        click.echo(f"  images    {len(images)} of {images.source}, {len(images.skipped)} skipped")
        if not self.has_labels:
            click.echo(
                "  not all of them have labels: the response is agreement with the own clean prediction"
            )
        # networks may come and go, but not the pictures
        self.claim(self.out / "measurements" / "phase9" / "robustness.json", self._pictures())

    @cached_property
    def infos(self) -> dict[str, ModelInfo]:
        """What `load_model` says about each network; the networks themselves are loaded one at a time."""
        infos = {}
        for name in self.names:
            model = load_model(name)
            infos[name], self.networks[name] = _info(model), identify_network(model)
        return infos

    @cached_property
    def images(self) -> ImageSet:
        """The pictures at the first network's size, with their labels if all networks know all of them."""
        options = self.options
        source = options.data or options.images or IMAGES[options.preset]
        size = self.infos[self.names[0]].preprocessing.size
        images = load_images(source, size=size, limit=options.limit or LIMIT, seed=options.seed,
                             workers=options.workers).keep_decoded()  # fmt: skip
        if options.data and not images.has_labels:
            raise SpectralError(
                f"--data: {source!r} has no labels; expected cifar10, or a subfolder per class (--images "
                f"takes pictures without)"
            )
        reasons = {name: match_labels(info, images).reason for name, info in self.infos.items()}
        others = [name for name, reason in reasons.items() if reason]
        if options.data and others:
            raise SpectralError(
                f"--data: not all labels of {images.source} count classes of {others[0]}: "
                f"{reasons[others[0]]}; leave it out, or pass the pictures as --images, which does without "
                f"labels"
            )
        return _drop_labels(images) if others else images

    @property
    def has_labels(self) -> bool:
        """Whether all pictures have a label: the response is then accuracy, else agreement."""
        return all(label is not None for label in self.images.labels)

    def images_for(self, name: str) -> ImageSet:
        """Return the pictures at a network's own size."""
        size = self.infos[name].preprocessing.size
        return self.images if self.images.size == size else self.images.resized(size)

    def images_under(self, test: str, name: str) -> ImageSet:
        """Return the pictures of an attack: all, or every so manieth where it is slow."""
        images = self.images_for(name)
        return images[:: -(-len(images) // FULL_LIMIT)] if test == FULL else images

    def keep(
        self, name: str, what: str, config: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return what an earlier run computed for these weights and options, or compute and keep it."""
        path = self.measurement_folder(name, "phase9") / f"{what}.csv"
        _ = self.infos  # looks at the networks
        facts = {**config, **self._pictures(), **self.networks[name]}
        return self.keep_table(path, facts, compute)

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        weights = {name: info.weights_id for name, info in self.infos.items()}
        return {"preset": self.options.preset, **self._pictures(), "weights": weights,
                "epsilon": [EPSILON, WEAK_EPSILON], "batch": BATCH, "full_limit": FULL_LIMIT,
                "severity": SEVERITY, "pairs": PAIRS}  # fmt: skip

    def _pictures(self) -> dict[str, Any]:
        images = self.images
        facts = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images)}
        return {"images": {**facts, "labelled": self.has_labels}, "seed": self.options.seed}


RESULTS = Robustness


def find_networks(options: StudyOptions) -> tuple[tuple[str, ...], list[str]]:
    """Return the networks to compare, and those of the small zoo that aren't there.

    Raises:
        SpectralError: if none is there.

    Example:
        >>> find_networks(StudyOptions(preset="paper"))[0][:2]
        ('robustbench/Standard', 'robustbench/Carmon2019Unlabeled')
    """
    if options.models:
        return tuple(dict.fromkeys(options.models)), []
    if options.preset == "paper":
        return tuple(f"robustbench/{name}" for name in PAPER), []
    there = set(list_bundled())
    names = tuple(f"bundled/{name}" for name in list_zoo("small") if name in there)
    missing = [name for name in list_zoo("small") if name not in there]
    if not names:
        raise SpectralError(
            f"none of the zoo's networks is there; this trains them: {TRAIN_COMMAND.removesuffix(' --only')}"
        )
    return names, missing


def run(study: Robustness) -> None:
    """Write the phase's tables and figures."""
    rows: list[dict[str, Any]] = []
    site_rows: list[dict[str, Any]] = []
    for name, (row, own) in zip(study.names, describe_networks(study), strict=True):
        rows.append(row)
        site_rows += own
        click.echo(f"  {_say(row)}")
        if not row["attacks_ordered"]:
            click.echo(
                f"  {name}: a stronger attack changed fewer predictions than a weaker one; see the table"
            )
    networks, sites = tabulate(rows, NETWORK_COLUMNS, COUNTS), tabulate(site_rows, SITE_COLUMNS, COUNTS)
    study.write_table("phase9_networks", networks)
    study.write_table("phase9_sites", sites)
    options = study.options
    correlations = correlate_networks(networks, sites, options.seed, options.progress)
    study.write_table("phase9_correlation", correlations)
    pairs = compare_pairs(sites)
    study.write_table("phase9_pairs", pairs)
    for sentence in summarize_findings(correlations, pairs):
        click.echo(f"  {sentence}")
    study.draw("fig27_am_robustness", "fig28_robustness_relations", "fig29_attacks")


# One network ---------------------------------------------------------------------------------------------


def describe_networks(study: Robustness) -> Iterator[Described]:
    """Measure every network, as many at a time as ``--jobs`` says, in the order of their names."""
    jobs = min(study.options.jobs, len(study.names))
    if jobs == 1:
        yield from (describe_network(study, name) for name in study.names)
        return
    # CUDA can't be forked; each process looks at the networks and pictures once
    with ProcessPoolExecutor(jobs, get_context("spawn"), _open_quietly, (study.options,)) as pool:
        try:
            yield from pool.map(_describe_in_process, study.names)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_OPENED: list[Robustness] = []  # in a process of the pool, its own


def _open_quietly(options: StudyOptions) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    with redirect_stdout(None):
        _OPENED.append(Robustness(dataclasses.replace(options, progress=False)))


def _describe_in_process(name: str) -> Described:
    return describe_network(_OPENED[0], name)


def describe_network(study: Robustness, name: str) -> Described:
    """Measure one network: its row, and those of its sites."""
    model = load_model(name, device=study.options.device)
    facts = find_facts(name, model)
    aliases, sites = measure_aliases(study, name, model)
    row = {
        **facts, **find_training(_info(model)),
        "response": "robust accuracy" if study.has_labels else "robust agreement",
        **measure_attacks(study, name, model), **measure_corruptions(study, name, model),
        **measure_shifts(study, name, model), **aliases,
    }  # fmt: skip
    return row, [{**facts, **site} for site in sites]


def find_facts(name: str, model: nn.Module) -> dict[str, str]:
    """What kind of network it is: its architecture, what halves its maps, and how it was trained."""
    info, report, architecture = _info(model), find_report(model), name_architecture(model)
    named = (method for method in METHODS if architecture.endswith(f"-{method}"))
    known = {"strided": "strided", "blurpool": "blurpool", "nula": "blurpool"}
    own = max(named, key=len, default=known.get(str(info.family), "as published"))
    recipe = info.metadata.get("recipe", {})
    published = "adversarial" if "threat" in info.metadata and not name.endswith("/Standard") else "standard"
    training = recipe.get("attack") or ("robust" if recipe.get("perturb") else published)
    return {"model": name, "weights": info.weights_id, "architecture": architecture,
            "downsampling": report.method if report else own, "training": training}  # fmt: skip


def find_training(info: ModelInfo) -> dict[str, Any]:
    """What a checkpoint says of its training and of its own test images."""
    kept = ("tuned_from", "data_id", "epochs", "seed", "test_images")
    row = {key: info.metadata[key] for key in kept if key in info.metadata}
    accuracy, n = (info.metadata.get(key) for key in ("test_accuracy", "test_images"))
    if accuracy is not None and n is not None:
        row |= bound_share("test_accuracy", round(accuracy * n), n)
    return row


def measure_attacks(study: Robustness, name: str, model: nn.Module) -> dict[str, Any]:
    """Attack every picture; each attack is kept by itself, so that an interrupted run goes on behind it."""
    options = study.options
    row: dict[str, Any] = {"epsilon": EPSILON, "epsilon_weak": WEAK_EPSILON}
    robust: dict[str, pd.Series] = {}
    for test, (attack, epsilon) in TESTS.items():
        images = study.images_under(test, name)
        config = {"attack": attack, "epsilon": epsilon, "batch": BATCH, "n": len(images)}
        run_attack = partial(
            measure_robustness, model, images, [attack], epsilon=epsilon, batch_size=BATCH,
            seed=options.seed, progress=options.progress,
        )  # fmt: skip
        table = study.keep(name, f"robustness-{test}", config, run_attack).set_index("image")
        robust[test] = table["robust"].astype(bool)
        row |= _share(study, f"{test}_agreement", table["robust"])
        row |= _share(study, f"{test}_accuracy", table["robust_correct"])
        if test != FULL:
            row |= _share(study, "clean_accuracy", table["correct"])
            row |= {"n": len(images), "n_labelled": int(table["correct"].notna().sum())}
    row |= {"n_clusters": len(set(study.clusters.values())), f"n_{FULL}": len(robust[FULL])}
    row["attacks_ordered"] = all(_leaves_more(robust[a], robust[b]) for a, b in pairwise(ORDER))
    return row


def _leaves_more(weaker: pd.Series, stronger: pd.Series) -> bool:
    """Whether the weaker of two attacks leaves at least as many of the pictures that both saw."""
    shared = weaker.index.intersection(stronger.index)
    return bool(weaker[shared].sum() >= stronger[shared].sum())


def measure_corruptions(study: Robustness, name: str, model: nn.Module) -> dict[str, Any]:
    """Classify the pictures under corruptions; without the library that makes them, the reason."""
    images, options = study.images_for(name), study.options
    tests = {kind: Corruption(kind, SEVERITY, options.seed) for kind in CORRUPTIONS}

    def compute() -> pd.DataFrame:
        table = measure_predictions(
            model, images, list(tests.values()), batch_size=options.batch_size, progress=options.progress
        )
        kinds = {test.name: kind for kind, test in tests.items()}
        return table.assign(corruption=table["perturbation"].map(kinds)).dropna(subset=["corruption"])

    try:
        table = study.keep(name, "corruptions", {"kinds": list(CORRUPTIONS), "severity": SEVERITY}, compute)
    except SpectralError as error:
        return {"corruption_reason": str(error)}
    row: dict[str, Any] = {"severity": SEVERITY, "corruption_note": Corruption.note}
    for corruption, own in table.set_index("image").groupby("corruption", sort=False):
        row |= _share(study, f"{corruption}_agreement", own["agree"])
        row |= _share(study, f"{corruption}_accuracy", own["correct"])
    return row


def measure_shifts(study: Robustness, name: str, model: nn.Module) -> dict[str, Any]:
    """Measure how often two shifted views of a picture get one class."""
    images, options = study.images_for(name), study.options

    def compute() -> pd.DataFrame:
        return measure_consistency(
            model, images, PROTOCOL, pairs=PAIRS, seed=options.seed, batch_size=4 * options.batch_size
        )

    table = study.keep(name, "consistency", {"protocol": PROTOCOL, "pairs": PAIRS}, compute)
    agree = table.groupby("image", sort=False)["agree"].mean()
    found = stats.summarize(agree, None, study.find_clusters(agree.index), 0.0, 1.0)
    return bound_summary("consistency", found)


def measure_aliases(
    study: Robustness, name: str, model: nn.Module
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure aliases at every site, and SIS: the network's columns, and a row for each site."""
    images, options = study.images_for(name), study.options
    found = find_sites(model, images.size or 32)
    metrics = (*METRICS, *SIGNAL_METRICS, "sis") if any(site.measurable for site in found) else ("sis",)
    table = measure(
        model, images, metrics, taps=("dense", "signal"), batch_size=options.batch_size,
        progress=options.progress, out=study.measurement_folder(name, "phase9"), sites=found,
    )  # fmt: skip
    records = place_sites(table.attrs["sites"] or describe_sites(found))
    summary = summarize_measurements(table)
    rows = [
        {**record, **read_means(summary, record["name"], MEANS), **read_signal(summary, record["name"])}
        for record in records
    ]
    for site, (ratio, free) in product(
        rows, (("alias_power_ratio", "alias_free"), (HEADLINE, FREE[HEADLINE]))
    ):
        site[free] = site[ratio] < ALIAS_FREE if ratio in site else None
    measurable = [record for record in records if record["measurable"]]
    row = {
        **average_signals(table), **average_sites(table, METRICS),
        **read_means(summary, "", {"sis": ("", "sis")}), "n": len(images), "sites": len(records),
        "measurable": len(measurable),
        "aliasing_reason": "" if measurable else "; ".join({str(r["reason"]) for r in records}),
    }  # fmt: skip
    return row, rows


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


# Over networks ---------------------------------------------------------------------------------------------


def correlate_networks(
    networks: pd.DataFrame, sites: pd.DataFrame, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """Rank correlation of each alias metric at each level with each attack's response, over networks.

    Over all networks, and over those of each way of training: between these the two always differ together.
    Aliases that are rounding count as none, so that such networks are tied. Partial: given clean accuracy.
    Holm's correction is over the whole table.
    """
    values, free = tabulate_levels(sites)
    trainings = networks.groupby("training", sort=False)["model"].agg(list)
    groups = {"all": list(networks["model"])}
    groups |= {str(name): own for name, own in trainings.items() if len(own) >= FEWEST}
    cases = [(*case, *key) for case in product(groups, TESTS) for key in values.columns]
    table, response = networks.set_index("model"), str(networks["response"].iloc[0])
    rows = []
    for group, attack, metric, level in tqdm(cases, "correlating", disable=not progress, leave=False):
        own: pd.Series = values[metric, level].loc[values.index.isin(groups[group])].dropna()
        chosen = table.loc[own.index]
        outcome = chosen[f"{attack}_{response.rpartition(' ')[2]}"]
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


# Small things ----------------------------------------------------------------------------------------------


def _info(model: nn.Module) -> ModelInfo:
    info = model_info(model)
    assert info is not None
    return info


def _drop_labels(images: ImageSet) -> ImageSet:
    items = [dataclasses.replace(item, label=None) for item in images.items]
    return dataclasses.replace(images, items=items, classes=None)


def _share(study: Robustness, name: str, values: pd.Series) -> dict[str, float]:
    """The share of true values among the known, with its interval."""
    known = values.astype("boolean").dropna().astype(float)
    if known.empty:
        return {}
    return bound_flags(name, known, pd.Series(study.find_clusters(known.index), index=known.index))


def _say_interval(row: Mapping[Any, Any], name: str, form: str) -> str:
    mean, low, high = (float(row[f"{name}{end}"]) for end in BOUNDS)
    if math.isnan(mean):
        return "undetermined"
    return f"{mean:{form}}" + (
        f" ({low:{form}} to {high:{form}})" if not math.isnan(low) else " (no interval)"
    )


def _say(row: Mapping[str, Any]) -> str:
    kind = row["response"].rpartition(" ")[2]
    attacks = ", ".join(f"{attack} {row[f'{attack}_{kind}']:.1%}" for attack in ATTACKS)
    decibels = row.get("alias_power_db_channel_median", math.nan)
    aliases = f"aliases {decibels:.1f} dB" if not math.isnan(decibels) else "no aliases measured"
    return f"{row['model']} ({row['training']}): {aliases}; {row['response']}: {attacks}"
