"""Shift consistency: how often a network gives two shifted views of one image the same class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError, check_choice
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take, map_planes
from spectral.network.inputs import Inputs
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.stability.reading import Size, check_counts, find_size, predict_views
from spectral.stability.shifts import fourier_shift, shift_whole

CALLER = "measure_consistency"
CIFAR_SHIFT = 3
SUBPIXEL_SHIFT = 1
Shifts = npt.NDArray[Any]  # whole numbers, or real ones


@dataclass(frozen=True)
class Protocol:
    """How views of an image are made: what fills the border, and which shifts are drawn.

    Attributes:
        fill: circular (what leaves on one side enters on the other), zeros, or none (windows of a larger
            picture).
        limits: (height and width of the images, the largest shift asked for) → the lowest and the highest
            shift of each axis.
        view: (image (C, H, W), ``shift`` of each axis, ``size`` of the view) → the view.
        enlarges: whether pictures are brought to 8/7 of the size first.
        fractional: whether shifts are real numbers instead of whole ones.
    """

    fill: str
    limits: Callable[[Size, int | None], tuple[Size, Size]]
    view: Callable[..., Tensor]
    enlarges: bool = False
    fractional: bool = False


@shared
def measure_consistency(
    model: nn.Module,
    images: Any,
    protocol: str = "circular",
    *,
    max_shift: int | None = None,
    pairs: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Compare the predictions for two random shifts of each image; the mean of ``agree`` is the consistency.

    Protocols; both axes are shifted, each view by itself:

    - ``"circular"``: rolled by any number of pixels, or by up to ±``max_shift``.
    - ``"crop"``: the picture at R = round(8 N / 7) pixels (256 for 224, 37 for 32), of which windows of N are
      cut at offsets from 0 to ``max_shift``, by default R − N − 1 (31 for 224, 4 for 32).
    - ``"cifar-zeros"``: shifted by up to ±``max_shift``, 3 by default, the border filled with zeros. These
      are zeros of the images as given: black for images from `load_images`, which are in [0, 1]. Its edge is
      an effect of its own.
    - ``"cifar-circular"``: the same shifts, rolled.
    - ``"fractional"``: moved circularly by any real number of pixels up to ±``max_shift``, 1 by default, with
      `fourier_shift`. At even sizes a shift by δ scales the image's Nyquist bin by cos(πδ).

    The shifts of image i depend on the seed and i alone, so neither the batch size nor how many images there
    are changes them. A more accurate network is also more consistent: compare on images that both get right,
    too (``prediction_a`` and ``prediction_b`` tell).

    Args:
        model: classifier.
        images: as for `spectral.measure`; from `load_images` read anew at R pixels for ``"crop"``, a
            preprocessed tensor (N, C, H, W) resized bilinearly for it. Signals are one row.
        protocol: which views are compared.
        max_shift: the largest shift.
        pairs: how many pairs of views of each image.
        seed: of the shifts.
        batch_size: views per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image and pair: image, cluster, protocol, fill, pair, the shifts row_a, column_a, row_b,
        column_b (down and right; offsets of the windows for ``"crop"``), prediction_a, prediction_b, agree.

    Raises:
        SpectralError: for an unknown protocol, a shift or a number out of range, no images, or a model that
            is no classifier.

    Source:
        R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (crop); A. Chaman and
        I. Dokmanić, Truly shift-invariant convolutional neural networks, CVPR 2021 (circular, CIFAR).

    Example:
        >>> import torch
        >>> mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_consistency(mean, torch.rand(4, 3, 8, 8).double(), pairs=2, progress=False)
        >>> len(table), float(table["agree"].mean())
        (8, 1.0)
    """
    check_choice(protocol, PROTOCOLS, "protocol", CALLER)
    pairs, batch_size = check_counts(CALLER, pairs=pairs, batch_size=batch_size)
    seed = as_integer(seed, f"{CALLER}: seed", least=0)
    rules = PROTOCOLS[protocol]
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    feed.require_scores()
    size, source = find_size(feed), feed.images
    if rules.enlarges and feed.images.size is not None:
        feed.images = feed.images.resized(find_crop_source(size))
    low, high = rules.limits(
        size, None if max_shift is None else as_integer(max_shift, f"{CALLER}: max_shift")
    )
    at_once = max(1, batch_size // (2 * pairs))
    share = Sharing(feed, at_once)

    def look(indices: Sequence[int], batch: Inputs) -> pd.DataFrame:
        if rules.enlarges:
            batch = _enlarge_images(feed, batch, find_crop_source(size))
        shifts = np.stack([draw_shifts(low, high, pairs, seed, i, rules.fractional) for i in indices])
        views = [(k, partial(rules.view, shift=s, size=size)) for k, own in enumerate(shifts)
                 for s in own.reshape(-1, 2)]  # fmt: skip
        found = predict_views(feed, batch, views, batch_size).argmax(-1)
        classes = found.view(len(indices), pairs, 2)
        return _tabulate([source.ids[i] for i in indices], shifts, classes.numpy())

    frames = share.run(feed.read_batches, look, f"shifting {feed.name}", progress)
    table = insert_clusters(pd.concat(frames, ignore_index=True), source)
    table.insert(2, "protocol", protocol)
    table.insert(3, "fill", rules.fill)
    return table


def draw_shifts(low: Size, high: Size, pairs: int, seed: int, index: int, fractional: bool = False) -> Shifts:
    """Draw the shifts of one image from its own stream: whole ones, bounds included, or real ones.

    Shape:
        → (pairs, 2 views, 2 axes); a further pair doesn't change those before it.

    Example:
        >>> draw_shifts((0, 0), (31, 31), pairs=1, seed=0, index=7).shape
        (1, 2, 2)
    """
    rng = np.random.default_rng([seed, index])
    if fractional:
        return rng.uniform(low, high, size=(pairs, 2, 2))
    return rng.integers(low, high, size=(pairs, 2, 2), endpoint=True)


def find_crop_source(size: Size) -> Size:
    """Return the size of the picture that windows are cut from: 8/7 of theirs, rounded.

    Example:
        >>> find_crop_source((224, 32))
        (256, 37)
    """
    return round(size[0] * 8 / 7), round(size[1] * 8 / 7)


def _roll(image: Tensor, shift: Shifts, size: Size) -> Tensor:
    return shift_whole(image, shift, "circular")


def _move(image: Tensor, shift: Shifts, size: Size) -> Tensor:
    return fourier_shift(image, (float(shift[0]), float(shift[1])))


def _shift_zeros(image: Tensor, shift: Shifts, size: Size) -> Tensor:
    return shift_whole(image, shift, "zeros")


def _cut(image: Tensor, shift: Shifts, size: Size) -> Tensor:
    top, left = int(shift[0]), int(shift[1])
    return image[..., top : top + size[0], left : left + size[1]]


def _whole_circle(size: Size, largest: int | None) -> tuple[Size, Size]:
    if largest is None:
        return (0, 0), (size[0] - 1, size[1] - 1)
    return _small_shifts(size, largest)


def _subpixel_shifts(size: Size, largest: int | None) -> tuple[Size, Size]:
    return _small_shifts(size, SUBPIXEL_SHIFT if largest is None else largest)


def _small_shifts(size: Size, largest: int | None) -> tuple[Size, Size]:
    largest = CIFAR_SHIFT if largest is None else largest
    _check_shift(largest, min(size) - 1)
    return (-largest, -largest), (largest, largest)


def _offsets(size: Size, largest: int | None) -> tuple[Size, Size]:
    room = [r - n for r, n in zip(find_crop_source(size), size, strict=True)]
    if largest is not None:
        _check_shift(largest, min(room))
        return (0, 0), (largest, largest)
    default = [max(r - 1, min(r, 1)) for r in room]  # never no shift at all where there is room for one
    return (0, 0), (default[0], default[1])


def _check_shift(largest: int, most: int) -> None:
    if not 0 <= largest <= most:
        raise SpectralError(
            f"measure_consistency: max_shift must be from 0 to {most} for these images, got {largest}"
        )


PROTOCOLS = {
    "circular": Protocol("circular", _whole_circle, _roll),
    "crop": Protocol("none", _offsets, _cut, enlarges=True),
    "cifar-zeros": Protocol("zeros", _small_shifts, _shift_zeros),
    "cifar-circular": Protocol("circular", _small_shifts, _roll),
    "fractional": Protocol("circular", _subpixel_shifts, _move, fractional=True),
}


def _enlarge_images(feed: Feed, batch: Inputs, size: Size) -> Inputs:
    """Bring images to the size that views are cut from: what is taken as it is has no larger original."""
    return map_planes(batch, lambda x: _enlarge(x, size), feed.layout_of(batch))


def _enlarge(x: Tensor, size: Size) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    real = x if x.is_floating_point() else x.float()
    planes = real.reshape(-1, 1, *x.shape[-2:])
    larger = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return larger.reshape(*x.shape[:-2], *size).to(x.dtype)


def _tabulate(ids: list[str], shifts: Shifts, classes: npt.NDArray[np.int64]) -> pd.DataFrame:
    pairs = shifts.shape[1]
    flat = shifts.reshape(-1, 4).T
    return pd.DataFrame({
        "image": np.repeat(ids, pairs), "pair": np.tile(np.arange(pairs), len(ids)),
        **dict(zip(("row_a", "column_a", "row_b", "column_b"), flat, strict=True)),
        "prediction_a": classes[..., 0].ravel(), "prediction_b": classes[..., 1].ravel(),
        "agree": (classes[..., 0] == classes[..., 1]).ravel(),
    })  # fmt: skip
