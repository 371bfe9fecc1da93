"""Phase 6, NULA under its perturbations: what do resampling and checkerboards do to a robust network?

Networks under the perturbations that NULA's card tests, and two more: accuracy, agreement with the own clean
prediction, aliases at every site, and what each operator's null space hides. The first network is the base
that the others are compared with. Accuracies are over the images that have labels: --data takes a labelled
set, and otherwise 20 of the samples have one. --models takes any number of networks of one input size.

Example: python experiments/phase6_nula.py --data cifar10 --out results
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectral.analysis.perturbations import (
    CLASS_COLUMNS as PER_CLASS,
)
from spectral.analysis.perturbations import (
    CLEAN,
    PERTURBED_COLUMNS,
    check_blindness,
    compare_classes,
    compare_perturbed,
    describe_null_space,
    tabulate_null_frequencies,
)
from spectral.classes import find_classes, match_labels
from spectral.data import ImageSet
from spectral.data.imageset import spread_over_classes
from spectral.errors import SpectralError
from spectral.figures.nula import FEW_LABELS
from spectral.measurement import ALIAS_METRICS, describe_sites, measure
from spectral.models import list_bundled
from spectral.perturb import NULA_TESTS, PerturbedImages, Resampling, make_perturbation, measure_predictions
from spectral.runs.summary import summarize_measurements
from spectral.sites import find_sites
from spectral.stats.columns import SIGNAL_COLUMNS, read_means, tabulate, tabulate_sites
from spectral.study.declaration import Phase, Table, Units
from spectral.study.networks import Networks, yield_to_data
from spectral.study.options import StudyOptions
from spectral.synthetic import make_dead_leaves_image
from spectral.table.schema import SIGNAL_METRICS, with_bounds

BUNDLED = ("bundled/nula-w32", "bundled/nula-w32-robust", "bundled/resnet20", "bundled/resnet20-blurpool")
NETWORKS = {"bundled": BUNDLED, "paper": (*BUNDLED[:2], "nula/robust", *BUNDLED[2:])}
IMAGES = {"bundled": "samples", "paper": "cifar10"}
TRAIN_COMMAND = "python experiments/train_zoo.py --data cifar10 --only"
# The card's own, and what it leaves open: its third kind of training, ε as the network's input has it, and
# noise, under which its second version is said to be better.
TESTS = (
    *NULA_TESTS, "blur-decimate-2", "checkerboard-0.03-normalised", "checkerboard-0.05-normalised",
    "gaussian-0.05",
)  # fmt: skip
WHOLE = "whole model"
METRICS = ("avr", *ALIAS_METRICS)  # as published, at the dense tap
MEANS = {metric: ("dense", metric) for metric in METRICS}
SUBSET = 256  # images at whose sites aliases are measured
CHECKED = 16  # images of the check of the null space
EXAMPLES, EXAMPLE_SIZE, EXAMPLE_SEED = (CLEAN, "resize-0.25", "decimate-2", "checkerboard-0.05"), 32, 2
_FACTS = ["model", "weights"]


COLUMNS = [*_FACTS, *PERTURBED_COLUMNS[1:]]
CLASS_COLUMNS = [*_FACTS, *PER_CLASS[1:]]
SITE_COLUMNS = [
    *_FACTS, "perturbation", "site", "site_index", "op", "stride", "n", "n_silent", "n_clusters",
    *with_bounds(*METRICS), "n_signal", *SIGNAL_COLUMNS, "signal", *with_bounds("sis"), "reason",
]  # fmt: skip
NULL_COLUMNS = [
    *_FACTS, "operator", "pixels", "kept", "rank", "null_dimension", "rank_svd",
    *with_bounds("null_share", "null_share_no_mean"), "n", "n_silent", "n_clusters", "checkerboard_share",
    "n_checked", "null_amplitude", "logits_seen", "logits_hidden", "logits_scale",
]  # fmt: skip
COUNTS = ("n_labelled", "n", "n_silent", "n_clusters", "n_signal", "site_index", "rank_svd")


class Nula(Networks):
    """Any number of networks of one input size, under the same perturbations of the same images.

    Args:
        options: what to run on; the first of its models is the base.

    Raises:
        SpectralError: if no network of the preset is there, their input sizes differ, or --data has no
            labels.
    """

    folder = "phase6"

    def __init__(self, options: StudyOptions) -> None:
        names, self.missing = find_networks(options)
        super().__init__(options, names)
        self.base = self.names[0]
        click.echo(f"{len(self.names)} networks under {len(TESTS) - 1} perturbations, base {self.base}")
        for name in self.missing:
            own = name.removeprefix("bundled/")
            click.echo(f"  left out  {name}: no such checkpoint; this trains it: {TRAIN_COMMAND} {own}")
        self.introduce()
        labelled = self.n_labelled
        if labelled < FEW_LABELS:
            rest = f"accuracies rest on {labelled} images" if labelled else "no accuracies without labels"
            click.echo(f"  {rest}: --data cifar10, or a folder per class, gives more")

    @classmethod
    def list_unread(cls, options: StudyOptions) -> dict[str, str]:
        """Of --images, what --data takes the place of."""
        return yield_to_data(options)

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """The networks."""
        return {name: self.load(name) for name in self.names}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width that all networks take."""
        _ = self.models  # looks at the networks
        sizes = {name: self.infos[name].preprocessing.size for name in self.names}
        other = next((name for name in self.names if sizes[name] != sizes[self.base]), None)
        if other is not None:
            own, expected = ("×".join(map(str, sizes[name])) for name in (other, self.base))
            raise SpectralError(
                f"phase 6 perturbs the same pixels for all networks: expected all of the size of {self.base} "
                f"({expected}), got {other} ({own}); leave it out of --models"
            )
        return sizes[self.base]

    @cached_property
    def images(self) -> ImageSet:
        """The images, at the networks' size."""
        options = self.options
        source = options.data or options.images or IMAGES[options.preset]
        return self.open_pictures(source, self.size, options.limit)

    @cached_property
    def subset(self) -> ImageSet:
        """Those of the images at whose sites aliases are measured: as many of each class."""
        chosen = sorted(spread_over_classes(self.images.labels, self.options.seed)[:SUBSET])
        return dataclasses.replace(self.images, items=[self.images.items[i] for i in chosen])

    @property
    def n_labelled(self) -> int:
        """How many images have a label."""
        return sum(label is not None for label in self.images.labels)

    def describe(self, name: str) -> dict[str, str]:
        """Columns that name a network in every table."""
        return {"model": name, "weights": self.identities[name]["weights"]}

    def explain_no_accuracy(self, name: str) -> str:
        """Say why a network has no accuracy on these images; empty if it has one."""
        if not self.n_labelled:
            return f"{self.images.source} has no labels: --data takes images that have"
        matching = match_labels(self.models[name], self.images)
        return "" if matching.index else f"{self.images.source}: {matching.reason}"

    def say_more(self) -> str:
        """How many have a label."""
        return f"; {self.n_labelled} labelled"

    def add_weights(self, table: pd.DataFrame) -> pd.DataFrame:
        """Put the weights of each row's model behind it."""
        table.insert(1, "weights", [self.describe(name)["weights"] for name in table["model"]])
        return table

    def describe_pictures(self) -> dict[str, Any]:
        """What determines the numbers of any network."""
        found = super().describe_pictures()
        return {**found, "images": {**found["images"], "labelled": self.n_labelled}}

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        return {**super().config(), "base": self.base, "perturbations": list(TESTS),
                "subset": len(self.subset)}  # fmt: skip


def find_networks(options: StudyOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the networks to test, and those of the preset whose checkpoint isn't there.

    Raises:
        SpectralError: if none of them is.
    """
    if options.models:
        return tuple(dict.fromkeys(options.models)), ()
    there = {f"bundled/{name}" for name in list_bundled()}
    asked = NETWORKS[options.preset]
    missing = tuple(name for name in asked if name.startswith("bundled/") and name not in there)
    found = tuple(name for name in asked if name not in missing)
    if not found:
        raise SpectralError(
            f"none of the checkpoints {', '.join(missing)} is there; train them with "
            f"{TRAIN_COMMAND.removesuffix(' --only')}, or choose --models"
        )
    return found, missing


def measure_network(nula: Nula, name: str) -> Mapping[str, Any]:
    """Classify all images under each perturbation, and measure aliases at the network's sites."""
    return {"predictions": predict(nula, name), "sites": measure_sites(nula, name)}


def predict(nula: Nula, name: str) -> pd.DataFrame:
    """Classify all images, clean and under each perturbation: a row per image and perturbation."""
    options = nula.options

    def compute() -> pd.DataFrame:
        at_once = 4 * options.batch_size
        return measure_predictions(
            nula.models[name], nula.images, TESTS, batch_size=at_once, progress=options.progress
        )

    table = nula.keep(name, "predictions", {"perturbations": list(TESTS)}, compute)
    right = (table["prediction"] == table["label"]).astype("boolean")
    return table.assign(
        model=name,
        correct=right.where(table["label"].notna()),
        agree=table["prediction"] == table["clean_prediction"],
    )


def split_networks(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the predictions of each network, in their order."""
    return {str(name): own for name, own in predictions.groupby("model", sort=False)}


def tabulate_perturbations(nula: Nula, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per network and perturbation; p values are Holm-corrected over the table."""
    reasons = {name: nula.explain_no_accuracy(name) for name in nula.names}
    return nula.add_weights(compare_perturbed(split_networks(predictions), reasons))


def tabulate_classes(nula: Nula, predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each network on each class under each perturbation."""
    classes = {name: find_classes(nula.models[name]) for name in nula.names}
    return nula.add_weights(compare_classes(split_networks(predictions), classes))


def measure_sites(nula: Nula, name: str) -> list[dict[str, Any]]:
    """Measure aliases at a network's sites, and its SIS, clean and under each perturbation.

    The published metrics are of the dense map; the others, by which networks can be compared, of the tap
    ``signal``, whose column says what stands between the two.
    """
    sites = find_sites(nula.models[name], nula.size)
    metrics = (*METRICS, *SIGNAL_METRICS, "sis") if any(site.measurable for site in sites) else ("sis",)
    rows = []
    for test in tqdm(TESTS, f"sites of {name}", disable=not nula.options.progress, leave=False):
        table = measure(
            nula.models[name], PerturbedImages(nula.subset, test), metrics, taps=("dense", "signal"),
            sites=sites, batch_size=nula.options.batch_size, progress=False,
            out=nula.measurement_folder(name, nula.folder) / test,
        )  # fmt: skip
        records = table.attrs["sites"] or describe_sites(sites)
        summary = summarize_measurements(table)
        facts = {**nula.describe(name), "perturbation": test}
        counted = {"n_clusters": len(set(nula.subset.clusters))}
        rows += [
            {**facts, **(counted if row["measurable"] else {}), **row}
            for row in tabulate_sites(summary, records, MEANS)
        ]
        rows.append({**facts, "site": WHOLE, **counted, **read_means(summary, "", {"sis": ("", "sis")})})
    return rows


def find_resamplings() -> list[Resampling]:
    """Return those of the perturbations that bring an image to fewer samples."""
    operators = (make_perturbation(test) for test in TESTS)
    return [operator for operator in operators if isinstance(operator, Resampling)]


def tabulate_null_space(nula: Nula) -> pd.DataFrame:
    """One row per network and operator: the operator's dimensions and shares, and the network's check."""
    images = torch.cat([batch for _, batch in nula.subset.batches(nula.options.batch_size)]).double()
    operators = find_resamplings()
    own = {op.name: describe_null_space(op, images, nula.subset.clusters) for op in operators}
    counted = {"n": len(nula.subset), "n_clusters": len(set(nula.subset.clusters))}
    rows = [
        {**nula.describe(name), **counted, **own[operator.name],
         **check_blindness(nula.models[name], operator, images[:CHECKED], nula.options.seed)}
        for name in nula.names
        for operator in operators
    ]  # fmt: skip
    return tabulate(rows, NULL_COLUMNS, COUNTS)


def tabulate_pixels() -> pd.DataFrame:
    """Pixels of one dead-leaves image, clean and perturbed: a row per panel and pixel.

    No photograph: a table that is published must be free to copy.
    """
    image = make_dead_leaves_image(EXAMPLE_SIZE, EXAMPLE_SEED)[None].double().round(decimals=2)
    rows, columns = np.indices((EXAMPLE_SIZE, EXAMPLE_SIZE)).reshape(2, -1)
    frames = []
    for test in EXAMPLES:
        red, green, blue = make_perturbation(test)(image)[0].flatten(1).round(decimals=3).numpy()
        colours = {"red": red, "green": green, "blue": blue}
        frames.append(pd.DataFrame({"panel": test, "row": rows, "column": columns, **colours}))
    return pd.concat(frames, ignore_index=True)


def _say(nula: Nula, name: str, measured: Mapping[str, Any]) -> str:
    """Summarise a network in a line: its share clean, and where it is lowest."""
    table = measured["predictions"]
    what = "agreement" if nula.n_labelled < FEW_LABELS or nula.explain_no_accuracy(name) else "accuracy"
    flags = table["agree"] if what == "agreement" else table["correct"]
    photographs = flags.groupby([table["perturbation"], table["cluster"]], sort=False).mean()
    shares = photographs.groupby(level=0, sort=False).mean()
    worst = shares.drop(CLEAN)
    start = "" if what == "agreement" else f"{shares[CLEAN]:.1%} clean, "
    return f"{name}: {what} {start}lowest {worst.min():.1%} under {worst.idxmin()}"


PHASE = Phase(
    "nula",
    Nula,
    (
        Table("phase6_pixels", lambda nula: tabulate_pixels(), figures=("fig24_nula_examples",)),
        Table("fig26_null_space", lambda nula: tabulate_null_frequencies(nula.size, find_resamplings()),
              figures=("fig26_null_space",), seconds=3),
        Table("phase6_nula", tabulate_perturbations, needs=("predictions",),
              figures=("fig23_nula_perturbations", "fig25_nula_checkerboard"), seconds=5),
        Table("phase6_classes", tabulate_classes, needs=("predictions",), optional=True),
        Table("phase6_null_space", tabulate_null_space, seconds=10),
        Table("phase6_sites", lambda nula, sites: tabulate(sites, SITE_COLUMNS, COUNTS), needs=("sites",)),
    ),
    Units(lambda nula: nula.names, measure_network, _say, seconds=100),
)  # fmt: skip
