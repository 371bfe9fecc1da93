"""Every shift of a range instead of random ones: the worst of them, and the prediction along a diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError, check_choice
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take
from spectral.network.inputs import Inputs
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.stability.reading import check_counts, find_size, predict_views
from spectral.stability.shifts import shift_whole

FILLS = ("circular", "zeros")
DIAGONAL_STEPS = 33
WholeShifts = list[tuple[int, int]]


@shared
def measure_worst_shift(
    model: nn.Module,
    images: Any,
    max_shift: int = 3,
    *,
    fill: str = "circular",
    batch_size: int = 64,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Try every shift of up to ±``max_shift`` pixels; the mean of ``stays`` is the worst-case consistency.

    Of labelled images the mean of ``stays_correct`` is the accuracy against the worst shift: an image counts
    if no shift, and none at all, gets it wrong.

    All (2 r + 1)² − 1 shifts but none at all: along one axis alone, along both, and in both directions.
    Nothing is drawn, so nothing is seeded. The margin of a shift is the probability of the class that the
    unshifted image gets, less the largest other one; the worst shift is the one of the smallest margin, the
    first of equal ones in the order of rows, then columns.

    Args:
        model: classifier.
        images: as for `spectral.measure`.
        max_shift: r, the largest shift.
        fill: ``"circular"`` (rolled), or ``"zeros"`` of the images as given, whose edge is an effect of its
            own.
        batch_size: views per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image: image, cluster, fill, max_shift, n_shifts, prediction (of the unshifted image),
        n_changed (how many shifts change it), stays (whether none does), worst_row, worst_column
        (down and right), worst_prediction, worst_margin, label, correct (the prediction is the label) and
        stays_correct (correct and stays); these three are missing where no label is known, or the labels are
        of other classes than the model's.

    Units:
        Shifts in pixels of the network's input; margins are differences of probabilities.

    Raises:
        SpectralError: for an unknown fill, a shift or a number out of range, no images, or a model that is
            no classifier.

    Source:
        L. Engstrom et al., Exploring the Landscape of Spatial Robustness, ICML 2019, of shifts alone.

    Example:
        >>> import torch
        >>> mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_worst_shift(mean, torch.rand(4, 3, 8, 8).double(), max_shift=1)
        >>> table["n_shifts"].tolist(), float(table["stays"].mean())
        ([8, 8, 8, 8], 1.0)
    """
    caller = "measure_worst_shift"
    (batch_size,) = check_counts(caller, batch_size=batch_size)
    check_choice(fill, FILLS, "fill", caller)
    feed = Feed(model, images, caller=caller, preprocessing=preprocessing, logits=logits)
    feed.require_scores()
    source = feed.images
    labels = feed.number_labels(source.labels)
    max_shift = as_integer(max_shift, f"{caller}: max_shift")
    _check_range(caller, "max_shift", max_shift, 1, min(find_size(feed)) - 1)
    axis = range(-max_shift, max_shift + 1)
    shifts = [shift for shift in product(axis, axis) if shift != (0, 0)]
    at_once = max(1, batch_size // len(shifts))
    share = Sharing(feed, at_once)

    def look(indices: Sequence[int], batch: Inputs) -> list[dict[str, Any]]:
        found = _predict_shifted(feed, batch, [(0, 0), *shifts], fill, batch_size)
        return [
            {"image": source.ids[index], "fill": fill, "max_shift": max_shift,
             "n_shifts": len(shifts), **_find_worst(probabilities, shifts), "label": labels[index]}
            for index, probabilities in zip(indices, found, strict=True)
        ]  # fmt: skip

    parts = share.run(feed.read_batches, look, f"shifting {feed.name}", progress)
    table = pd.DataFrame([row for part in parts for row in part]).astype({"label": "Int64"})
    table["correct"] = table["prediction"] == table["label"]  # missing where the label is
    table["stays_correct"] = (table["correct"] & table["stays"]).mask(table["correct"].isna())
    return insert_clusters(table, source)


@shared
def measure_diagonal(
    model: nn.Module,
    images: Any,
    steps: int = DIAGONAL_STEPS,
    *,
    batch_size: int = 64,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Follow the prediction while the image is rolled down and right, one pixel on both axes at a time.

    Circular, so that offsets are possible at every size: at 32 pixels the 33rd view is the first one again.

    Args:
        model: classifier.
        images: as for `spectral.measure`.
        steps: how many offsets, from 0 on.
        batch_size: views per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image and offset: image, cluster, fill, offset, prediction, confidence (the probability of
        the class that is predicted at offset 0), changed (whether another class is predicted than there).

    Units:
        Offsets in pixels of the network's input, on each axis; confidences are probabilities.

    Raises:
        SpectralError: for a number out of range, no images, or a model that is no classifier.

    Example:
        >>> import torch
        >>> mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_diagonal(mean, torch.rand(1, 3, 8, 8).double(), steps=9, progress=False)
        >>> int(table["offset"].max()), bool(table["changed"].any())
        (8, False)
    """
    caller = "measure_diagonal"
    steps, batch_size = check_counts(caller, steps=steps, batch_size=batch_size)
    feed = Feed(model, images, caller=caller, preprocessing=preprocessing, logits=logits)
    feed.require_scores()
    find_size(feed)
    source = feed.images
    offsets = [(step, step) for step in range(steps)]
    at_once = max(1, batch_size // steps)
    share = Sharing(feed, at_once)

    def look(indices: Sequence[int], batch: Inputs) -> pd.DataFrame:
        found = _predict_shifted(feed, batch, offsets, "circular", batch_size)
        frames = []
        for index, probabilities in zip(indices, found, strict=True):
            classes = probabilities.argmax(1)
            frames.append(pd.DataFrame({
                "image": source.ids[index], "fill": "circular", "offset": np.arange(steps),
                "prediction": classes, "confidence": probabilities[:, classes[0]],
                "changed": classes != classes[0],
            }))  # fmt: skip
        return pd.concat(frames)

    frames = share.run(feed.read_batches, look, f"shifting {feed.name}", progress)
    return insert_clusters(pd.concat(frames, ignore_index=True), source)


def _predict_shifted(
    feed: Feed, batch: Inputs, shifts: WholeShifts, fill: str, batch_size: int
) -> npt.NDArray[np.float64]:
    """Probabilities (images, shifts, classes)."""
    views = [
        (k, partial(shift_whole, shift=shift, fill=fill)) for k in range(batch.count) for shift in shifts
    ]
    parts = predict_views(feed, batch, views, batch_size)
    found: npt.NDArray[np.float64] = parts.unflatten(0, (batch.count, len(shifts))).numpy()
    return found


def _find_worst(probabilities: npt.NDArray[np.float64], shifts: WholeShifts) -> dict[str, int | float | bool]:
    """Describe what the shifts do to one image, whose own probabilities come first."""
    clean = int(probabilities[0].argmax())
    shifted = probabilities[1:]
    classes = shifted.argmax(1)
    margins = shifted[:, clean] - np.delete(shifted, clean, axis=1).max(1)
    changed = classes != clean
    # A tie with an earlier class has margin 0 and changes the prediction: it is the worse of the two.
    worst = int(np.lexsort((~changed, margins))[0])
    return {
        "prediction": clean, "n_changed": int(changed.sum()), "stays": not changed.any(),
        "worst_row": shifts[worst][0], "worst_column": shifts[worst][1],
        "worst_prediction": int(classes[worst]), "worst_margin": float(margins[worst]),
    }  # fmt: skip


def _check_range(caller: str, name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpectralError(f"{caller}: {name} must be from {low} to {high} for these images, got {value}")
