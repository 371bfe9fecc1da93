"""Phase 9, robustness: do networks that alias less withstand attacks better?

Networks that differ in their downsampling and in their training, on the same pictures: aliases at every
downsampling site; what FGSM, PGD and AutoAttack leave of their predictions at ε = 8/255, and PGD at 1/255,
which tells networks apart that were never attacked in training; corruptions and shifts. AutoAttack's cheap
first part sees all pictures, the whole of it at most --full-limit of them, spread evenly. Then rank
correlations over the networks, plain and given clean accuracy, and what adversarial training changes in the
aliases of one and the same architecture. With --data, labelled pictures, the response is robust accuracy;
otherwise robust agreement, the share of the own predictions that an attack can't change. --models takes any
number of networks; of a network with -fgsm behind its name and the same with -control, trained as long
without attacks, or else without either, a pair is made. The preset paper takes RobustBench's, which the paper
of the aliasing metric measured, and CIFAR-10.

Example: python experiments/phase9_robustness.py --data cifar10 --limit 64 --out results
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property, partial
from itertools import pairwise, product
from typing import Any

import click
import pandas as pd
from torch import nn

from spectral import stats
from spectral.analysis import compare_pairs, correlate_networks, place_sites
from spectral.analysis.robustness import FREE, FULL, HEADLINE, METRICS, WEAK, summarize_findings
from spectral.classes import match_labels
from spectral.data import ImageSet
from spectral.errors import MaskedGradientError, SpectralError, StorageError
from spectral.experiments.zoo import list_zoo
from spectral.models import list_bundled
from spectral.models.architectures import name_architecture
from spectral.models.info import ModelInfo
from spectral.perturb import measure_predictions
from spectral.perturb.attacks import ATTACKS, measure_robustness
from spectral.perturb.corruptions import Corruption
from spectral.runs.summary import summarize_measurements
from spectral.stats.columns import (
    SIGNAL_COLUMNS,
    bound_flags,
    bound_share,
    bound_summary,
    tabulate,
    tabulate_sites,
)
from spectral.study.declaration import Phase, Table, Units
from spectral.study.networks import Networks, describe_aliases, yield_to_data
from spectral.study.options import StudyOptions
from spectral.surgery import METHODS
from spectral.surgery.report import find_report
from spectral.table.schema import ALIAS_FREE, with_bounds

LIMIT = 28  # pictures: AutoAttack takes minutes for each network that withstands it
IMAGES = {"bundled": "samples", "paper": "cifar10"}
# WRN-28-10 in figure 4 of the aliasing metric's paper, and ResNet-18 in figure 5
PAPER = (
    "Standard", "Carmon2019Unlabeled", "Wang2020Improving", "Hendrycks2019Using", "Wong2020Fast",
    "Rice2020Overfitting-L2", "Sehwag2021Proxy_R18",
)  # fmt: skip
EPSILON, WEAK_EPSILON = 8 / 255, 1 / 255
# At 8/255 a network that was never attacked keeps nothing: only a weak attack tells such networks apart.
TESTS = {**{attack: (attack, EPSILON) for attack in ATTACKS}, WEAK: ("pgd-50", WEAK_EPSILON)}
ORDER = ("fgsm", "pgd-50", FULL)  # from weak to strong
BATCH = 256  # AutoAttack's slow parts see only what the others left: small batches are waste
CORRUPTIONS, SEVERITY = (
    ("gaussian_noise", "defocus_blur", "jpeg_compression"),
    3,
)  # a noise, a blur, a digital
PROTOCOL, PAIRS = "cifar-circular", 4
TRAIN_COMMAND = "python experiments/train_zoo.py --data cifar10 --only"
MEANS = {metric: ("dense", metric) for metric in METRICS}
_FACTS = ["model", "weights", "architecture", "downsampling", "training"]


_ALIASES = (*METRICS, "alias_power_db")
_SHARES = [f"{test}_{kind}" for test in (*TESTS, *CORRUPTIONS) for kind in ("accuracy", "agreement")]
NETWORK_COLUMNS = [
    *_FACTS, "tuned_from", "data_id", "epochs", "seed", *with_bounds("test_accuracy"), "test_images",
    "response", "n", "n_labelled", "n_clusters", f"n_{FULL}", *with_bounds("clean_accuracy", *_SHARES),
    "epsilon", "epsilon_weak", "attacks_ordered", "attack_reason", "severity", "corruption_note",
    "corruption_reason", *with_bounds("consistency", "sis"), "sites", "measurable", *SIGNAL_COLUMNS,
    *with_bounds(*_ALIASES), "aliasing_reason",
]  # fmt: skip
SITE_COLUMNS = [
    *_FACTS, "site", "site_index", "step", "path", "level", "op", "kernel", "stride", "input_size",
    "output_size", "channels", "n", "n_silent", *with_bounds(*_ALIASES), "alias_free", "n_signal",
    *SIGNAL_COLUMNS, "signal_alias_free", "signal", "reason",
]  # fmt: skip
COUNTS = ("n", "n_labelled", "n_clusters", f"n_{FULL}", "n_silent", "n_signal", "sites", "measurable",
          "site_index", "step", "epochs", "channels", "seed", "test_images", "n_networks", "n_alias_free",
          "n_lower", "severity")  # fmt: skip


class Robustness(Networks):
    """Any number of networks, attacked on the same pictures.

    Args:
        options: what to run on.

    Raises:
        SpectralError: if none of the zoo's networks is there, or --data has no labels of the networks.
    """

    folder = "phase9"

    def __init__(self, options: StudyOptions) -> None:
        names, self.missing = find_networks(options)
        super().__init__(options, names)
        click.echo(f"{len(self.names)} networks under {', '.join(ATTACKS)} at ε = 8/255, and pgd-50 at 1/255")
        if self.missing:
            command = f"{TRAIN_COMMAND} {','.join(self.missing)}"
            click.echo(
                f"  left out  {', '.join(self.missing)}: no such checkpoints; this trains them: {command}"
            )
        for name in self.names:
            self.load(name)  # to know its size, classes and weights; kept is none of them
        self.introduce()
        if not self.has_labels:
            click.echo(
                "  not all of them have labels: the response is agreement with the own clean prediction"
            )

    @classmethod
    def list_unread(cls, options: StudyOptions) -> dict[str, str]:
        """Of --images, what --data takes the place of."""
        return yield_to_data(options)

    @cached_property
    def images(self) -> ImageSet:
        """The pictures at the first network's size, with their labels if all networks know all of them."""
        options = self.options
        source = options.data or options.images or IMAGES[options.preset]
        size = self.infos[self.names[0]].preprocessing.size
        images = self.open_pictures(source, size, options.limit or LIMIT).keep_decoded()
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

    def images_under(self, test: str, name: str) -> ImageSet:
        """Return the pictures of an attack: all, or every so manieth where it is slow.

        AutoAttack's later parts take minutes for each network that withstands the first, apgd-ce.
        """
        images = self.images_for(name)
        return images[:: -(-len(images) // self.options.full_limit)] if test == FULL else images

    def describe_pictures(self) -> dict[str, Any]:
        """What determines the numbers of any network."""
        found = super().describe_pictures()
        return {**found, "images": {**found["images"], "labelled": self.has_labels}}

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        return {**super().config(), "epsilon": [EPSILON, WEAK_EPSILON], "batch": BATCH,
                "full_limit": self.options.full_limit, "severity": SEVERITY, "pairs": PAIRS}  # fmt: skip


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


# One network ---------------------------------------------------------------------------------------------


def measure_network(study: Robustness, name: str) -> Mapping[str, Any]:
    """Measure one network: its row, and those of its sites."""
    model = study.load(name)
    facts = find_facts(name, model, study.infos[name])
    aliases, sites = measure_aliases(study, name, model)
    row = {
        **facts, **find_training(study.infos[name]),
        "response": "robust accuracy" if study.has_labels else "robust agreement",
        **measure_attacks(study, name, model), **measure_corruptions(study, name, model),
        **measure_shifts(study, name, model), **aliases,
    }  # fmt: skip
    return {"networks": [row], "sites": [{**facts, **site} for site in sites]}


def find_facts(name: str, model: nn.Module, info: ModelInfo) -> dict[str, str]:
    """What kind of network it is: its architecture, what halves its maps, and how it was trained."""
    report, architecture = find_report(model), name_architecture(model)
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
    reasons = {}
    for test, (attack, epsilon) in TESTS.items():
        images = study.images_under(test, name)
        config = {"attack": attack, "epsilon": epsilon, "batch": BATCH, "n": len(images)}
        run_attack = partial(
            measure_robustness, model, images, [attack], epsilon=epsilon, batch_size=BATCH,
            seed=options.seed, progress=options.progress,
        )  # fmt: skip
        try:
            table = study.keep(name, f"robustness-{test}", config, run_attack).set_index("image")
        except MaskedGradientError as error:
            reasons[test] = str(error)
            continue
        robust[test] = table["robust"].astype("boolean").dropna().astype(bool)
        if unknown := len(table) - len(robust[test]):
            reasons[test] = f"{unknown} of {len(table)} images couldn't be attacked: no gradient reaches them"
        row |= _share(study, f"{test}_agreement", table["robust"])
        row |= _share(study, f"{test}_accuracy", table["robust_correct"])
        if test == FULL:
            row[f"n_{FULL}"] = len(robust[FULL])
        else:
            row |= _share(study, "clean_accuracy", table["correct"])
            row |= {"n": len(images), "n_labelled": int(table["correct"].notna().sum())}
    row["n_clusters"] = len(set(study.clusters.values()))
    row["attacks_ordered"] = all(
        _leaves_more(robust[a], robust[b]) for a, b in pairwise(test for test in ORDER if test in robust)
    )
    row["attack_reason"] = "; ".join(f"{test}: {reason}" for test, reason in reasons.items())
    return row


def _leaves_more(weaker: pd.Series, stronger: pd.Series) -> bool:
    """Whether the weaker of two attacks leaves at least as many of the pictures that both attacked."""
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
    except StorageError:
        raise
    except SpectralError as error:
        return {"corruption_reason": str(error)}
    row: dict[str, Any] = {"severity": SEVERITY, "corruption_note": Corruption.note}
    for corruption, own in table.set_index("image").groupby("corruption", sort=False):
        row |= _share(study, f"{corruption}_agreement", own["agree"])
        row |= _share(study, f"{corruption}_accuracy", own["correct"])
    return row


def measure_shifts(study: Robustness, name: str, model: nn.Module) -> dict[str, Any]:
    """Measure how often two shifted views of a picture get one class."""
    agree = study.measure_agreement(name, model, PROTOCOL, PAIRS, "consistency")
    found = stats.summarize(agree, None, study.find_clusters(agree.index), 0.0, 1.0)
    return bound_summary("consistency", found)


def measure_aliases(
    study: Robustness, name: str, model: nn.Module
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure aliases at every site, and SIS: the network's columns, and a row for each site."""
    table, found = study.measure_sites(name, model, METRICS)
    records = place_sites(found)
    rows = tabulate_sites(summarize_measurements(table), records, MEANS)
    for site, (ratio, free) in product(
        rows, (("alias_power_ratio", "alias_free"), (HEADLINE, FREE[HEADLINE]))
    ):
        site[free] = site[ratio] < ALIAS_FREE if ratio in site else None
    return {**describe_aliases(table, records, METRICS), "n": len(study.images)}, rows


# Small things ----------------------------------------------------------------------------------------------


def _drop_labels(images: ImageSet) -> ImageSet:
    items = [dataclasses.replace(item, label=None) for item in images.items]
    return dataclasses.replace(images, items=items, classes=None)


def _share(study: Robustness, name: str, values: pd.Series) -> dict[str, float]:
    """The share of true values among the known, with its interval."""
    known = values.astype("boolean").dropna().astype(float)
    if known.empty:
        return {}
    return bound_flags(name, known, pd.Series(study.find_clusters(known.index), index=known.index))


def _say(study: Robustness, name: str, found: Mapping[str, Any]) -> str:
    """Say in a line what was found of a network, and in another where attacks aren't ordered."""
    (row,) = found["networks"]
    kind = row["response"].rpartition(" ")[2]
    shares = {attack: row.get(f"{attack}_{kind}", math.nan) for attack in ATTACKS}
    attacks = ", ".join(
        f"{attack} {'unknown' if math.isnan(share) else f'{share:.1%}'}" for attack, share in shares.items()
    )
    decibels = row.get("alias_power_db_channel_median", math.nan)
    aliases = f"aliases {decibels:.1f} dB" if not math.isnan(decibels) else "no aliases measured"
    said = f"{name} ({row['training']}): {aliases}; {row['response']}: {attacks}"
    if row["attack_reason"]:
        said = f"{said}\n  {name}: {row['attack_reason']}"
    if row["attacks_ordered"]:
        return said
    return f"{said}\n  {name}: a stronger attack changed fewer predictions than a weaker one; see the table"


def _correlate(study: Robustness, networks: pd.DataFrame, sites: pd.DataFrame) -> pd.DataFrame:
    return correlate_networks(networks, sites, study.options.seed, study.options.progress, tuple(TESTS))


PHASE = Phase(
    "robustness",
    Robustness,
    (
        Table("phase9_networks", lambda study, rows: tabulate(rows, NETWORK_COLUMNS, COUNTS),
              needs=("networks",), figures=("fig27_am_robustness",)),
        Table("phase9_sites", lambda study, rows: tabulate(rows, SITE_COLUMNS, COUNTS), needs=("sites",)),
        Table("phase9_correlation", _correlate, needs=("phase9_networks", "phase9_sites"),
              figures=("fig28_robustness_relations",), seconds=20),
        Table("phase9_pairs", lambda study, sites: compare_pairs(sites), needs=("phase9_sites",),
              figures=("fig29_attacks",)),
    ),
    Units(lambda study: study.names, measure_network, _say, seconds=400),
    conclude=lambda study, made: summarize_findings(made["phase9_correlation"], made["phase9_pairs"]),
)  # fmt: skip
