"""What perturbations do to networks' predictions, and what resampling hides from them: null spaces."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectral import stats
from spectral.analysis.spectra import tabulate_spectrum
from spectral.errors import SpectralError
from spectral.network import evaluation_mode
from spectral.perturb import Checkerboard, Resampling, make_perturbation
from spectral.perturb.evaluation import Classifier
from spectral.stats.columns import (
    FEWEST_CLUSTERS,
    add_holm,
    bound,
    bound_flags,
    bound_summary,
    tabulate,
)
from spectral.table.arguments import read_columns, require_columns
from spectral.table.schema import with_bounds

CLEAN = "clean"
NO_LABELS = "none of these images has a label"
PREDICTIONS = ("image", "cluster", "perturbation", "prediction", "confidence", "agree", "correct")
NULL_AMPLITUDE = 0.1  # ‖δ‖∞ of the check of the null space, in [0, 1] pixels
SILENT = 1e-20  # of an image's power: what is left of a constant image without its mean is rounding
_MOST_ENTRIES = 2**24  # of a matrix whose singular values are looked at: 128 MiB, and some seconds
PERTURBED_COLUMNS = [
    "model", "perturbation", "unit", "amplitude", "n_labelled", *with_bounds("accuracy", "delta_clean"),
    "delta_clean_p", "delta_clean_p_holm", "base", *with_bounds("delta_base"), "delta_base_p",
    "delta_base_p_holm", "significance", "n", "n_clusters",
    *with_bounds("agreement"), "confidence", "reason",
]  # fmt: skip
CLASS_COLUMNS = ["model", "perturbation", "label", "class", "n_labelled", *with_bounds("accuracy")]
COUNTS = ("n_labelled", "n", "n_clusters")


def compare_perturbed(
    predictions: Mapping[str, pd.DataFrame], reasons: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Accuracy and agreement of networks under perturbations, against their own clean ones and the first.

    Args:
        predictions: by network, what `spectral.measure_predictions` gave on the same images, with the
            perturbation ``clean`` among them; the first network is the one that the others are compared with.
        reasons: why a network has no accuracy on these images, by network; empty where it has one. Of images
            without labels none has.

    Returns:
        A row per network and perturbation: accuracy over the images that have labels and its differences,
        agreement with the own clean prediction, each with its interval; p-values are Holm-corrected over the
        table.

    Raises:
        SpectralError: for another table.

    Example:
        >>> rows = {"image": list("abab"), "cluster": list("abab"), "prediction": [1, 2, 1, 1],
        ...         "perturbation": ["clean", "clean", "decimate-2", "decimate-2"], "confidence": 0.9,
        ...         "correct": [True, True, True, False], "agree": [True, True, True, False]}
        >>> compare_perturbed({"net": pd.DataFrame(rows)})["accuracy"].tolist()
        [1.0, 0.5]
    """
    predictions = {
        name: _read_predictions(table, "compare_perturbed", name) for name, table in predictions.items()
    }
    correct = {name: find_correct(table) for name, table in predictions.items()}
    base = next(iter(predictions), "")
    rows = []
    for name, table in predictions.items():
        reason = (reasons or {}).get(name, "") or (NO_LABELS if correct[name].empty else "")
        clusters = table.drop_duplicates("image").set_index("image")["cluster"][correct[name].index]
        for test, own in table.groupby("perturbation", sort=False):
            row = {"model": name, "perturbation": str(test), **_describe_amplitude(str(test))}
            row |= _share_of_agreement(own) | {"reason": reason}
            if not reason:
                right = correct[name]
                row |= {"n_labelled": len(right), **bound_flags("accuracy", right[test], clusters)}
                row |= (
                    {} if test == CLEAN else _difference("delta_clean", right[test], right[CLEAN], clusters)
                )
            if not reason and name != base and len(correct[base]):
                if not correct[base].index.equals(correct[name].index):
                    raise SpectralError(
                        f"compare_perturbed: {base!r} and {name!r} aren't on the same images with labels, so "
                        f"that nothing can be paired; predict them on one set"
                    )
                found = _difference("delta_base", correct[name][test], correct[base][test], clusters)
                row |= {**found, "base": base}
            rows.append(row)
    tested = ("delta_base_p_holm", "delta_clean_p_holm", "significance")
    columns = [column for column in PERTURBED_COLUMNS if column not in tested]
    return add_holm(tabulate(rows, columns, COUNTS), "delta_base_p", "delta_clean_p")[PERTURBED_COLUMNS]


def compare_classes(
    predictions: Mapping[str, pd.DataFrame], classes: Mapping[str, Sequence[str] | None]
) -> pd.DataFrame:
    """Accuracy of each network on each class under each perturbation.

    Args:
        predictions: as for `compare_perturbed`, with labels.
        classes: names of each network's classes; None, or no entry, where they aren't known.

    Raises:
        SpectralError: for another table.
    """
    rows = []
    for name, table in predictions.items():
        table = _read_predictions(table, "compare_classes", name)
        names = classes.get(name) or ()
        known = table[table["correct"].notna()]
        for test, own in known.groupby("perturbation", sort=False):
            for _, alike in own.groupby("label"):
                label = int(alike["label"].iloc[0])
                share = bound_flags("accuracy", alike["correct"], alike["cluster"])
                rows.append({"model": name, "perturbation": test, "label": label,
                             "class": names[label] if label < len(names) else "", "n_labelled": len(alike),
                             **share})  # fmt: skip
    return pd.DataFrame(rows, columns=CLASS_COLUMNS)


def _read_predictions(table: pd.DataFrame, caller: str, name: str) -> pd.DataFrame:
    """Return a table of predictions, typed; it has each image once under each perturbation."""
    require_columns(table, PREDICTIONS, caller, "spectral.measure_predictions")
    table = read_columns(table, PREDICTIONS, lambda problem: SpectralError(f"{caller}: {name}: it {problem}"))
    again = table.duplicated(["image", "perturbation"])
    if again.any():
        row = table[again].iloc[0]
        raise SpectralError(
            f"{caller}: {name}: image {row['image']!r} is there twice under {row['perturbation']!r}"
        )
    return table


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
    confidence = stats.summarize(own["confidence"], None, own["cluster"])
    counts = {"n": len(own), "n_clusters": confidence.n_clusters, "confidence": confidence.mean}
    if own["perturbation"].iloc[0] == CLEAN:  # by definition
        return counts | bound("agreement", 1.0, 1.0, 1.0)
    return counts | bound_flags("agreement", own["agree"], own["cluster"])


def _describe_amplitude(test: str) -> dict[str, Any]:
    """Unit in which a checkerboard's ε is given, and its amplitude in pixels of [0, 1]."""
    operator = make_perturbation(test)
    if not isinstance(operator, Checkerboard):
        return {}
    return {"unit": operator.unit, "amplitude": float(operator.delta((1, 1)))}


def describe_null_space(operator: Resampling, images: Tensor, clusters: Sequence[str]) -> dict[str, Any]:
    """Describe what an operator D annihilates of one channel, and which share of images' power that is.

    Args:
        operator: its D.
        images: (N, C, H, W), float64.
        clusters: what each image was cut from.

    Returns:
        Dimensions, ``rank_svd`` where the whole matrix of D isn't too large for it, and the shares.
    """
    size = (images.shape[-2], images.shape[-1])
    kept = operator.down(images[:1, :1]).numel()
    small = kept * math.prod(size) <= _MOST_ENTRIES
    flat, power = images - images.mean((-2, -1), keepdim=True), images.square().sum((1, 2, 3))
    row: dict[str, Any] = {
        "operator": operator.name, "pixels": math.prod(size), "kept": kept,
        "rank": operator.rank(size), "null_dimension": operator.null_dimension(size),
        # of the whole matrix, not of its axes': a second way to the same number
        "rank_svd": int(torch.linalg.matrix_rank(operator.matrix(size, "down"))) if small else None,
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


def tabulate_null_frequencies(size: tuple[int, int], operators: Iterable[Resampling]) -> pd.DataFrame:
    """Share of each Fourier basis image's power in ker D: a row per operator and frequency ≥ 0.

    Shares are even in each frequency: of a real D, a frequency and its negative lose the same.
    """
    count = math.prod(size)
    basis = torch.fft.ifft2(torch.eye(count, dtype=torch.float64).view(count, *size), norm="ortho")
    frames = []
    for operator in operators:
        share = sum(operator.project_null(part).square().sum((-2, -1)) for part in (basis.real, basis.imag))
        assert isinstance(share, Tensor)
        bins = tabulate_spectrum(torch.fft.fftshift(share.view(size)))
        bins = bins.assign(operator=operator.name, f_u=bins["f_u"].abs(), f_v=bins["f_v"].abs())
        frames.append(bins.drop_duplicates(["f_u", "f_v"]).sort_values(["f_u", "f_v"]))
    table = pd.concat(frames, ignore_index=True).rename(columns={"power": "share"})
    # a projection's rounding is of no interest, and would differ from machine to machine
    return table.assign(share=table["share"].clip(0, 1).round(9))[["operator", "f_u", "f_v", "share"]]
