"""The images whose predictions a shift by one pixel changes most, to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.classes import find_classes
from spectral.data.subset import Subset
from spectral.intake import Feed
from spectral.network import Take, list_moves, roll_inputs, undisturbed

CALLER = "find_unstable_images"
COLUMNS = ["image", "cluster", "sis", "shift", "prediction", "class", "confidence", "changed"]
STILL = "as it is"
Pixels = npt.NDArray[np.uint8]
_NAMES = {("h", 1): "down", ("h", -1): "up", ("w", 1): "right", ("w", -1): "left", ("t", 1): "later",
          ("t", -1): "earlier"}  # fmt: skip


@dataclass
class UnstableImages:
    """Images and what the network says of them when they are shifted.

    Attributes:
        table: a row per image and shift, the unshifted one first: image, cluster, sis, shift, prediction,
            class (its name, where known), confidence, changed (whether it is another prediction).
        pictures: (H, W, 3) of each image, where it is one that can be shown.
        scaled: whether values were stretched to be shown, since images came normalised already.
    """

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    pictures: dict[str, Pixels] = field(default_factory=dict)
    scaled: bool = False


def find_unstable_images(
    model: nn.Module,
    images: Any,
    stability: pd.DataFrame,
    count: int = 6,
    *,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> UnstableImages:
    """Find the images with the largest SIS, at most one of each photograph, and predict them shifted.

    Args:
        model: classifier.
        images: as for `spectral.measure`.
        stability: of the same images, from `spectral.measure_stability`.
        count: how many.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Raises:
        SpectralError: for no images, or a model that is no classifier.

    Example:
        >>> from spectral.stability import measure_stability
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.rand(3, 3, 16, 16)
        >>> found = find_unstable_images(net, images, measure_stability(net, images, progress=False), 1)
        >>> found.table["shift"].tolist()
        ['as it is', 'up', 'down', 'left', 'right']
    """
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    feed.require_scores()
    worst = (
        stability.sort_values("sis", ascending=False, kind="stable").drop_duplicates("cluster").head(count)
    )
    places = {image: i for i, image in enumerate(feed.images.ids)}
    chosen = Subset(feed.images, [places[image] for image in worst["image"]])
    names = find_classes(model)
    rows, found = [], UnstableImages(scaled=not feed.normalises)
    with undisturbed(model), torch.no_grad():
        for position, (_, raw) in enumerate(chosen.batches(1)):
            facts = worst.iloc[position][["image", "cluster", "sis"]].to_dict()
            inputs = feed.read(raw)
            picture = _draw(inputs.image[0], scaled=not feed.normalises)
            if picture is not None:
                found.pictures[facts["image"]] = picture
            ready, layout = feed.prepare(inputs), feed.layout_of(inputs)
            views = [(STILL, ready)] + [
                (_NAMES[move.kind, int(np.sign(move.step))], roll_inputs(ready, move, layout))
                for move in list_moves(ready, layout)
            ]
            first = None
            for shift, view in views:
                confidence, prediction = feed.predict(view.map(lambda x, _: x.clone()))[0].max(-1)
                first = int(prediction) if first is None else first
                rows.append({**facts, "shift": shift, "prediction": int(prediction),
                             "class": _name(names, int(prediction)), "confidence": float(confidence),
                             "changed": int(prediction) != first})  # fmt: skip
    found.table = pd.DataFrame(rows, columns=COLUMNS)
    return found


def _name(names: tuple[str, ...] | None, index: int) -> str:
    return names[index] if names is not None and index < len(names) else f"class {index}"


def _draw(image: Tensor, scaled: bool) -> Pixels | None:
    """Turn an image (C, H, W) into pixels; None where it is none that can be shown."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 2:
        return None
    values = image.detach().double().cpu()
    if scaled:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low if high > low else 1)
    pixels: Pixels = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels.repeat(3, -1) if pixels.shape[-1] == 1 else pixels
