"""Phase 6, NULA under its perturbations: what do resampling and checkerboards do to a robust network?

Networks under the perturbations that NULA's card tests, and two more: accuracy, agreement with the own clean
prediction, aliases at every site, and what each operator's null space hides. The first network is the base
that the others are compared with. Accuracies are over the images that have labels: --data takes a labelled
set, and otherwise 20 of the samples have one. --models takes any number of networks of one input size.

Example: python experiments/phase6_nula.py --data cifar10 --out results
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral import stats
from spectral.analysis import tabulate_spectrum
from spectral.classes import find_classes, match_labels
from spectral.columns import (
    FEWEST_CLUSTERS,
    SIGNAL_COLUMNS,
    add_holm,
    bound,
    bound_flags,
    bound_summary,
    read_means,
    read_signal,
    tabulate,
)
from spectral.data import ImageSet, load_images
from spectral.data.imageset import spread_over_classes
from spectral.errors import SpectralError
from spectral.figures.nula import FEW_LABELS
from spectral.measurement import describe_sites, measure
from spectral.models import list_bundled, load_model, model_info
from spectral.models.info import ModelInfo
from spectral.network import evaluation_mode
from spectral.perturb import NULA_TESTS, PerturbedImages, Resampling, make_perturbation, measure_predictions
from spectral.perturb.evaluation import Classifier
from spectral.perturb.operators import Checkerboard
from spectral.schema import SIGNAL_METRICS, with_bounds
from spectral.sites import find_sites
from spectral.study.common import PictureResults, identify_network
from spectral.study.options import StudyOptions
from spectral.summary import summarize_measurements
from spectral.synthetic import make_dead_leaves_image

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
CLEAN, WHOLE = "clean", "whole model"
METRICS = ("avr", "am", "am_relative", "alias_power_ratio")  # as published, at the dense tap
MEANS = {metric: ("dense", metric) for metric in METRICS}
SUBSET = 256  # images at whose sites aliases are measured
CHECKED, NULL_AMPLITUDE = 16, 0.1  # images of the check of the null space, and its ‖δ‖∞ in [0, 1] pixels
SILENT = 1e-20  # of an image's power: what is left of a constant image without its mean is rounding
EXAMPLES, EXAMPLE_SIZE, EXAMPLE_SEED = (CLEAN, "resize-0.25", "decimate-2", "checkerboard-0.05"), 32, 2
_FACTS = ["model", "weights"]


COLUMNS = [
    *_FACTS, "perturbation", "unit", "amplitude", "n_labelled", *with_bounds("accuracy", "delta_clean"),
    "delta_clean_p", "delta_clean_p_holm", "base", *with_bounds("delta_base"), "delta_base_p",
    "delta_base_p_holm", "significance", "n", "n_clusters",
    *with_bounds("agreement"), "confidence", "reason",
]  # fmt: skip
CLASS_COLUMNS = [*_FACTS, "perturbation", "label", "class", "n_labelled", *with_bounds("accuracy")]
SITE_COLUMNS = [
    *_FACTS, "perturbation", "site", "site_index", "op", "stride", "n", "n_silent", "n_clusters",
    *with_bounds(*METRICS), "n_signal", *SIGNAL_COLUMNS, "signal", *with_bounds("sis"), "reason",
]  # fmt: skip
NULL_COLUMNS = [
    *_FACTS, "operator", "pixels", "kept", "rank", "null_dimension", "rank_svd",
    *with_bounds("null_share", "null_share_no_mean"), "n", "n_silent", "n_clusters", "checkerboard_share",
    "n_checked", "null_amplitude", "logits_seen", "logits_hidden", "logits_scale",
]  # fmt: skip
COUNTS = ("n_labelled", "n", "n_silent", "n_clusters", "n_signal", "site_index")


class Nula(PictureResults):
    """Any number of networks of one input size, under the same perturbations of the same images.

    Args:
        options: what to run on; the first of its models is the base.

    Raises:
        SpectralError: if no network of the preset is there, their input sizes differ, or --data has no
            labels.
    """

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options)
        self.names, self.missing = find_networks(options)
        self.base = self.names[0]
        click.echo(f"{len(self.names)} networks under {len(TESTS) - 1} perturbations, base {self.base}")
        for name in self.missing:
            own = name.removeprefix("bundled/")
            click.echo(f"  left out  {name}: no such checkpoint; this trains it: {TRAIN_COMMAND} {own}")
        images, labelled = self.images, self.n_labelled
        skipped = len(images.skipped)
        click.echo(f"  images    {len(images)} of {images.source}, {skipped} skipped; {labelled} labelled")
        if labelled < FEW_LABELS:
            rest = f"accuracies rest on {labelled} images" if labelled else "no accuracies without labels"
            click.echo(f"  {rest}: --data cifar10, or a folder per class, gives more")
        self.claim(self.out / "measurements" / "phase6" / "nula.json", self._pictures())

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """The networks."""
        return {name: load_model(name, device=self.options.device) for name in self.names}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width that all networks take."""
        sizes = {name: self.info(name).preprocessing.size for name in self.names}
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
        images = load_images(
            source, size=self.size, limit=options.limit, seed=options.seed, workers=options.workers
        )
        if options.data and not images.has_labels:
            raise SpectralError(
                f"--data: {options.data!r} has no labels; expected cifar10, or a subfolder per class"
            )
        return images

    @cached_property
    def subset(self) -> ImageSet:
        """Those of the images at whose sites aliases are measured: as many of each class."""
        chosen = sorted(spread_over_classes(self.images.labels, self.options.seed)[:SUBSET])
        return dataclasses.replace(self.images, items=[self.images.items[i] for i in chosen])

    @property
    def n_labelled(self) -> int:
        """How many images have a label."""
        return sum(label is not None for label in self.images.labels)

    def info(self, name: str) -> ModelInfo:
        """What `load_model` recorded about a network."""
        info = model_info(self.models[name])
        assert info is not None
        return info

    def describe(self, name: str) -> dict[str, str]:
        """Columns that name a network in every table."""
        return {"model": name, "weights": self.info(name).weights_id}

    def count_clusters(self, images: Sequence[str]) -> int:
        """Count the pictures that these images are, or were cut from."""
        return len(set(self.find_clusters(images)))

    def clusters_of(self, images: pd.Index) -> pd.Series:
        """Return what each of these pictures was cut from, by picture."""
        return pd.Series(self.find_clusters(images), index=images)

    def explain_no_accuracy(self, name: str) -> str:
        """Say why a network has no accuracy on these images; empty if it has one."""
        if not self.n_labelled:
            return f"{self.images.source} has no labels: --data takes images that have"
        matching = match_labels(self.models[name], self.images)
        return "" if matching.index else f"{self.images.source}: {matching.reason}"

    def keep(
        self, name: str, what: str, config: dict[str, Any], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return what an earlier run computed for these weights and options, or compute and keep it."""
        path = self.measurement_folder(name, "phase6") / f"{what}.csv"
        facts = {**config, **self._pictures(), **identify_network(self.models[name])}
        return self.keep_table(path, facts, compute)

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        weights = {name: self.info(name).weights_id for name in self.names}
        return {"preset": self.options.preset, **self._pictures(), "weights": weights, "base": self.base,
                "perturbations": list(TESTS), "subset": len(self.subset)}  # fmt: skip

    def _pictures(self) -> dict[str, Any]:
        images = self.images
        facts = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images),
                 "labelled": self.n_labelled}  # fmt: skip
        return {"images": facts, "seed": self.options.seed}


RESULTS = Nula


def run(nula: Nula) -> None:
    """Write the phase's tables and figures."""
    nula.write_table("phase6_pixels", tabulate_pixels())
    nula.write_table("fig26_null_space", tabulate_null_frequencies(nula.size))
    predictions = {}
    for name in nula.names:
        predictions[name] = predict(nula, name)
        click.echo(f"  {_say(nula, name, predictions[name])}")
    nula.write_table("phase6_nula", tabulate_perturbations(nula, predictions))
    classes = tabulate_classes(nula, predictions)
    if len(classes):
        nula.write_table("phase6_classes", classes)
    nula.write_table("phase6_null_space", tabulate_null_space(nula))
    sites = [row for name in nula.names for row in measure_sites(nula, name)]
    nula.write_table("phase6_sites", tabulate(sites, SITE_COLUMNS, COUNTS))
    nula.draw(
        "fig23_nula_perturbations", "fig24_nula_examples", "fig25_nula_checkerboard", "fig26_null_space"
    )


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


# Predictions ------------------------------------------------------------------------------------------


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
        correct=right.where(table["label"].notna()), agree=table["prediction"] == table["clean_prediction"]
    )


def tabulate_perturbations(nula: Nula, predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per network and perturbation; p values are Holm-corrected over the table."""
    correct = {name: find_correct(table) for name, table in predictions.items()}
    rows = []
    for name, table in predictions.items():
        reason = nula.explain_no_accuracy(name)
        for test, own in table.groupby("perturbation", sort=False):
            row = {**nula.describe(name), "perturbation": str(test), **_describe_amplitude(str(test))}
            row |= _share_of_agreement(own) | {"reason": reason}
            if not reason:
                right, clusters = correct[name], nula.clusters_of(correct[name].index)
                row |= {"n_labelled": len(right), **bound_flags("accuracy", right[test], clusters)}
                row |= (
                    {} if test == CLEAN else _difference("delta_clean", right[test], right[CLEAN], clusters)
                )
            if not reason and name != nula.base and nula.base in correct and len(correct[nula.base]):
                found = _difference("delta_base", correct[name][test], correct[nula.base][test], clusters)
                row |= {**found, "base": nula.base}
            rows.append(row)
    tested = ("delta_base_p_holm", "delta_clean_p_holm", "significance")
    columns = [column for column in COLUMNS if column not in tested]
    return add_holm(tabulate(rows, columns, COUNTS), "delta_base_p", "delta_clean_p")[COLUMNS]


def tabulate_classes(nula: Nula, predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy of each network on each class under each perturbation."""
    rows = []
    for name, table in predictions.items():
        classes = find_classes(nula.models[name])
        known = table[table["correct"].notna()]
        for test, own in known.groupby("perturbation", sort=False):
            facts = {**nula.describe(name), "perturbation": test}
            for _, alike in own.groupby("label"):
                label = int(alike["label"].iloc[0])
                counted = {
                    "label": label,
                    "class": classes[label] if classes else "",
                    "n_labelled": len(alike),
                }
                share = bound_flags("accuracy", alike["correct"], alike["cluster"])
                rows.append({**facts, **counted, **share})
    return pd.DataFrame(rows, columns=CLASS_COLUMNS)


def find_correct(table: pd.DataFrame) -> pd.DataFrame:
    """Which labelled images are right: a row per image, a column per perturbation."""
    known = table[table["correct"].notna()]
    return known.pivot(index="image", columns="perturbation", values="correct").astype(bool)


def _difference(name: str, a: pd.Series, b: pd.Series, clusters: pd.Series) -> dict[str, float]:
    """Difference of two shares of the same images; nothing of fewer than two clusters."""
    if clusters.nunique() < FEWEST_CLUSTERS:
        return {}
    found = stats.compare_shares(a.astype(float), b.astype(float), clusters)
    return {**bound(name, found.difference, found.ci_low, found.ci_high), f"{name}_p": found.p}


def _share_of_agreement(own: pd.DataFrame) -> dict[str, Any]:
    """Share of images that keep the own clean prediction."""
    counts = {"n": len(own), "n_clusters": own["cluster"].nunique(), "confidence": own["confidence"].mean()}
    if own["perturbation"].iloc[0] == CLEAN:  # by definition
        return counts | bound("agreement", 1.0, 1.0, 1.0)
    return counts | bound_flags("agreement", own["agree"], own["cluster"])


def _describe_amplitude(test: str) -> dict[str, Any]:
    """Unit in which a checkerboard's ε is given, and its amplitude in pixels of [0, 1]."""
    operator = make_perturbation(test)
    if not isinstance(operator, Checkerboard):
        return {}
    return {"unit": operator.unit, "amplitude": float(operator.delta((1, 1)))}


# Sites ------------------------------------------------------------------------------------------------


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
            out=nula.measurement_folder(name, "phase6") / test,
        )  # fmt: skip
        records = table.attrs["sites"] or describe_sites(sites)
        summary = summarize_measurements(table)
        facts = {**nula.describe(name), "perturbation": test}
        counted = {"n_clusters": nula.count_clusters(nula.subset.ids)}
        rows += [
            {**facts, **record, "site": record["name"], "site_index": index,
             **(counted if record["measurable"] else {}), **read_means(summary, record["name"], MEANS),
             **read_signal(summary, record["name"])}
            for index, record in enumerate(records)
        ]  # fmt: skip
        rows.append({**facts, "site": WHOLE, **counted, **read_means(summary, "", {"sis": ("", "sis")})})
    return rows


# Null spaces ------------------------------------------------------------------------------------------


def find_resamplings() -> list[Resampling]:
    """Return those of the perturbations that bring an image to fewer samples."""
    operators = (make_perturbation(test) for test in TESTS)
    return [operator for operator in operators if isinstance(operator, Resampling)]


def tabulate_null_space(nula: Nula) -> pd.DataFrame:
    """One row per network and operator: the operator's dimensions and shares, and the network's check."""
    ids = nula.subset.ids
    images = torch.cat([batch for _, batch in nula.subset.batches(nula.options.batch_size)]).double()
    operators = find_resamplings()
    own = {op.name: describe_null_space(op, images, nula.subset.clusters) for op in operators}
    counted = {"n": len(ids), "n_clusters": nula.count_clusters(ids)}
    rows = [
        {**nula.describe(name), **counted, **own[operator.name],
         **check_blindness(nula.models[name], operator, images[:CHECKED], nula.options.seed)}
        for name in nula.names
        for operator in operators
    ]  # fmt: skip
    return tabulate(rows, NULL_COLUMNS, COUNTS)


def describe_null_space(operator: Resampling, images: Tensor, clusters: Sequence[str]) -> dict[str, Any]:
    """Describe what an operator D annihilates of one channel, and which share of images' power that is.

    Args:
        operator: its D.
        images: (N, C, H, W), float64.
        clusters: what each image was cut from.
    """
    size = (images.shape[-2], images.shape[-1])
    dense = operator.matrix(size, "down")
    flat, power = images - images.mean((-2, -1), keepdim=True), images.square().sum((1, 2, 3))
    row: dict[str, Any] = {
        "operator": operator.name, "pixels": math.prod(size), "kept": len(dense),
        "rank": operator.rank(size), "null_dimension": operator.null_dimension(size),
        # of the whole matrix, not of its axes': a second way to the same number
        "rank_svd": int(torch.linalg.matrix_rank(dense)),
        "checkerboard_share": float(compute_null_share(operator, Checkerboard(1.0).delta(size).double())),
    }  # fmt: skip
    for name, pictures in (("null_share", images), ("null_share_no_mean", flat)):
        shares = compute_null_share(operator, pictures).numpy()
        silent = (pictures.square().sum((1, 2, 3)) <= SILENT * power).numpy()
        found = stats.summarize(shares, silent, clusters, 0.0, 1.0)
        row |= bound_summary(name, found) | {"n_silent": found.n_silent}
    return row


def compute_null_share(operator: Resampling, images: Tensor) -> Tensor:
    """Share of images' power that lies in the null space of an operator's D; NaN for an image without power.

    Shape:
        (…, C, H, W) → (…), power summed over channels; (H, W) → a scalar.

    Example:
        >>> compute_null_share(make_perturbation("decimate-2"), torch.ones(3, 4, 4))
        tensor(0.7500)
    """
    axes = tuple(range(-min(images.ndim, 3), 0))
    return operator.project_null(images).square().sum(axes) / images.square().sum(axes)


def check_blindness(model: nn.Module, operator: Resampling, images: Tensor, seed: int) -> dict[str, float]:
    """Check that f∘T doesn't see a random δ in ker D, in float64; and that f itself does.

    Returns:
        Largest change of a logit that δ makes without T (``logits_seen``) and behind T (``logits_hidden``:
        rounding), and the largest logit (``logits_scale``).
    """
    classify = Classifier(copy.deepcopy(model).double())
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hidden = operator.project_null(noise - 0.5)
    delta = NULL_AMPLITUDE * hidden / hidden.abs().amax((-3, -2, -1), keepdim=True)
    with evaluation_mode(classify.model), torch.no_grad():
        plain, seen = classify.logits(images), classify.logits(images + delta)
        behind, unseen = classify.logits(operator(images)), classify.logits(operator(images + delta))
    return {
        "n_checked": len(images), "null_amplitude": NULL_AMPLITUDE,
        "logits_seen": float((seen - plain).abs().max()),
        "logits_hidden": float((unseen - behind).abs().max()), "logits_scale": float(behind.abs().max()),
    }  # fmt: skip


def tabulate_null_frequencies(size: tuple[int, int]) -> pd.DataFrame:
    """Share of each Fourier basis image's power in ker D: a row per operator and frequency ≥ 0.

    Shares are even in each frequency: of a real D, a frequency and its negative lose the same.
    """
    count = math.prod(size)
    basis = torch.fft.ifft2(torch.eye(count, dtype=torch.float64).view(count, *size), norm="ortho")
    frames = []
    for operator in find_resamplings():
        share = sum(operator.project_null(part).square().sum((-2, -1)) for part in (basis.real, basis.imag))
        assert isinstance(share, Tensor)
        bins = tabulate_spectrum(torch.fft.fftshift(share.view(size)))
        bins = bins.assign(operator=operator.name, f_u=bins["f_u"].abs(), f_v=bins["f_v"].abs())
        frames.append(bins.drop_duplicates(["f_u", "f_v"]).sort_values(["f_u", "f_v"]))
    table = pd.concat(frames, ignore_index=True).rename(columns={"power": "share"})
    # a projection's rounding is of no interest, and would differ from machine to machine
    return table.assign(share=table["share"].clip(0, 1).round(9))[["operator", "f_u", "f_v", "share"]]


# Examples ---------------------------------------------------------------------------------------------


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


def _say(nula: Nula, name: str, table: pd.DataFrame) -> str:
    """Summarise a network in a line: its share clean, and where it is lowest."""
    what = "agreement" if nula.n_labelled < FEW_LABELS or nula.explain_no_accuracy(name) else "accuracy"
    flags = table["agree"] if what == "agreement" else table["correct"]
    shares = flags.groupby(table["perturbation"], sort=False).mean()
    worst = shares.drop(CLEAN)
    start = "" if what == "agreement" else f"{shares[CLEAN]:.1%} clean, "
    return f"{name}: {what} {start}lowest {worst.min():.1%} under {worst.idxmin()}"
