"""SIS and what has to stand beside it: logit jitter, the lattice's share, and how certain predictions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.metrics.instability import compute_logit_jitter, compute_logit_spread
from spectral.network import Scores, Take
from spectral.network.inputs import Inputs
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.sites import find_sites
from spectral.stability.borders import CircularBorders
from spectral.stability.lattice import find_total_stride
from spectral.stability.reading import check_counts
from spectral.stability.shifted import ShiftedPredictions

CALLER = "measure_stability"
TINY = torch.finfo(torch.float64).tiny  # a probability that has left float64's range counts as this
COLUMNS = [
    "model", "image", "cluster", "total_stride", "sis", "sis_circular", "logit_jitter", "comb_contrast",
    "sis_total_stride", "prediction", "confidence", "margin", "logit_margin", "n_shifts", "n_changed",
    "label", "correct", "sis_circular_reason", "logit_jitter_reason", "comb_contrast_reason",
]  # fmt: skip


@shared
def measure_stability(
    model: nn.Module,
    images: Any,
    *,
    comb: bool = True,
    circular: bool = True,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
    name: str | None = None,
) -> pd.DataFrame:
    """Measure SIS image by image, and beside it what tells its causes apart.

    SIS is mostly how certain a prediction is: the same movement of the logits counts much where classes are
    near each other and nothing where one has all of the probability. And it is not specific to aliasing:
    what enters over a border moves it as well. Therefore:

    - ``logit_jitter``, J(x) = mean over shifts of ‖z(x_d) − z(x)‖² / Var with z the logits and Var the mean
      over all these images of ‖z(x) − z̄‖²: no softmax, no scale. Its mean over the images is the network's.
    - ``comb_contrast``, C = ½ [SIS(T − 1) + SIS(T + 1)] − SIS(T), with SIS(t) under shifts by t pixels and T
      the network's total stride: the part of the instability that has the lattice's period. A shift by T
      moves every lattice onto itself and can't alias, while what moves in over a border grows evenly with the
      shift: of that C has nothing. What is left of it in C is the bend of SIS(t) from T − 1 to T + 1, small
      where T is large. An axis along which T is 1 takes no part.
    - ``sis_circular``, SIS of the same network with every border circular, the map's other side in the place
      of zeros: what is left where nothing moves in over a border.
    - ``confidence``, ``margin`` (largest probability less the second) and ``logit_margin`` (log of their
      ratio: largest logit less the second), to take out of SIS what they explain, with
      `correlate_ranks(…, given=…)`.

    Args:
        model: classifier.
        images: as for `spectral.measure`.
        comb: whether to measure the comb contrast, which takes up to 12 passes more than the 5 of SIS.
        circular: whether to measure SIS with circular borders, which takes 5 passes more.
        batch_size: images per forward pass; changes no value beyond rounding, except of a network that works
            over whole batches, of which a warning tells.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.
        name: of the model in the table; by default as it was loaded, else its class.

    Returns:
        A row per image: model, image, cluster, total_stride (T along each axis, as 4x4), sis, sis_circular,
        logit_jitter, comb_contrast, sis_total_stride (SIS(T)), prediction, confidence, margin, logit_margin,
        n_shifts and n_changed (how many one-pixel shifts change the prediction), label and correct (NaN where
        no label is known, or the labels are of other classes than the model's), sis_circular_reason,
        logit_jitter_reason and comb_contrast_reason: why there is none, where there is none.
        `summarize_stability` makes a table of means, medians and the top tenth's share.

    Units:
        Shifts in pixels of the network's input; probabilities; logit_jitter none.

    Raises:
        SpectralError: for a number out of range, no images, or a model that is no classifier.

    Source:
        METRICS: SIS, logit jitter, comb contrast.

    Example:
        >>> mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_stability(mean, torch.rand(4, 3, 8, 8).double(), progress=False)
        >>> bool(table["sis"].max() < 1e-12), bool(table["logit_jitter"].max() < 1e-12)
        (True, True)
        >>> table["comb_contrast_reason"][0]
        "its maps have the image's own lattice"
    """
    (batch_size,) = check_counts(CALLER, batch_size=batch_size)
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits, name=name)
    feed.require_scores()
    if not feed.extents:
        raise SpectralError(f"{CALLER}: none of the axes of the inputs of {feed.name} is known to be spatial")
    source = feed.images
    stride, steps, why = _find_comb(feed) if comb else ({}, {}, "comb=False")
    borders = CircularBorders(feed) if circular else None
    share = Sharing(feed, batch_size)

    def look(indices: Sequence[int], inputs: Inputs) -> tuple[pd.DataFrame, Tensor, Tensor]:
        shifted = ShiftedPredictions(feed, inputs)
        frame = _tabulate(shifted, [source.ids[i] for i in indices], steps)
        closed = borders.find_sis(inputs) if borders else None
        frame["sis_circular"] = np.nan if closed is None else closed.cpu().numpy()
        jumps = compute_logit_jitter(shifted.still.logits, [v.logits for v in shifted.nearest()], 1.0)
        return frame, jumps.cpu(), shifted.still.logits.cpu()

    found = share.run(feed.batches, look, f"shifting {feed.name}", progress)
    frames, jumps, own = zip(*found, strict=True)
    table = pd.concat(frames, ignore_index=True)
    where = feed.describe_logits() or "output"
    table["logit_jitter"], lacking = _normalise(torch.cat(jumps), torch.cat(own), where)
    labels = [np.nan if label is None else label for label in feed.number_labels(source.labels)]
    table["label"] = pd.Series(labels, dtype=float)
    table["correct"] = (table["prediction"] == table["label"]).astype(float).where(table["label"].notna())
    table["total_stride"] = "x".join(map(str, stride.values()))
    reason = borders.reason if borders else "circular=False"
    if reason:
        table["sis_circular"] = np.nan
    table = table.assign(sis_circular_reason=reason, logit_jitter_reason=lacking, comb_contrast_reason=why)
    table.insert(0, "model", feed.name)
    return insert_clusters(table, source)[COLUMNS]


def _find_comb(feed: Feed) -> tuple[dict[str, int], dict[str, int], str]:
    """Return the total stride, the same of axes with room for a shift by it, and why there are none."""
    try:
        sites = find_sites(feed.model, feed.example)
    except SpectralError as error:
        return {}, {}, f"its sites can't be found: {error}"
    stride, reason = find_total_stride(sites, feed.extents)
    steps = {axis: step for axis, step in stride.items() if 1 < step < feed.extents[axis] - 1}
    if not reason and not steps:
        sizes = "×".join(str(n) for n in feed.extents.values())
        reason = f"a shift by the total stride and one pixel more needs images larger than {sizes}"
    return stride, {} if reason else steps, reason


def _tabulate(shifted: ShiftedPredictions, ids: Sequence[str], stride: Mapping[str, int]) -> pd.DataFrame:
    best = shifted.still.probabilities.topk(2, -1)
    prediction = shifted.still.probabilities.argmax(-1)  # of equal ones topk may take another than argmax
    nearest = [one.probabilities for one in shifted.nearest()]
    classes = torch.stack([probabilities.argmax(-1) for probabilities in nearest])
    columns = {
        "sis": shifted.find_sis(),
        "prediction": prediction, "confidence": best.values[:, 0],
        "margin": best.values[:, 0] - best.values[:, 1],
        "logit_margin": (best.values[:, 0] / best.values[:, 1].clamp_min(TINY)).log(),
        "n_changed": (classes != prediction).sum(0),
    }  # fmt: skip
    contrast = torch.full_like(best.values[:, 0], torch.nan)
    at = contrast
    if stride:
        before, at, after = (
            shifted.find_sis({axis: t + d for axis, t in stride.items()}) for d in (-1, 0, 1)
        )
        contrast = (before + after) / 2 - at
    columns |= {"comb_contrast": contrast, "sis_total_stride": at}
    found = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
    return found.assign(image=list(ids), n_shifts=len(nearest))


def _normalise(jumps: Tensor, logits: Tensor, where: str) -> tuple[Any, str]:
    """Return the logit jitter of every image, or why there is none."""
    if Scores(logits, where).are_probabilities:
        return (
            np.nan,
            f"its {where} holds probabilities, whose logits aren't known; tell where with logits=",
        )
    spread = compute_logit_spread(logits)
    if spread == 0:
        alone = "a single image has" if len(logits) == 1 else "all images have the same logits, with"
        return np.nan, f"{alone} no spread"
    return (jumps / spread).numpy(), ""
