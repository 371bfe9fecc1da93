"""What a classifier says about one image, in the form of the `transformers` image-classification pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from spectral.arguments.values import is_integer
from spectral.classes import find_classes
from spectral.errors import SpectralError
from spectral.models.info import model_info
from spectral.models.preprocessing import find_preparation
from spectral.network import read_scores, undisturbed

ImageLike = str | os.PathLike[str] | Image.Image | Tensor


class Prediction(TypedDict):
    """A class and its probability."""

    label: str
    score: float


def classify(
    model: nn.Module, image: ImageLike, top_k: int = 5, resize: bool = False, preprocessing: Any = None
) -> list[Prediction]:
    """Return the most probable classes of one image, the best first.

    Files and PIL images are turned upright and converted to RGB; transparency is dropped, as by ``convert``.

    Args:
        model: a classifier that tells its preprocessing, as those of `spectral.load_model` and timm do.
        image: a path, a PIL image, or a tensor.
        top_k: how many classes, at most.
        resize: bring an image of another size to the model's: the shorter side is resized (bilinear,
            antialiased), then the centre is cropped. Without it such an image is refused.
        preprocessing: as for `spectral.measure`, where the model doesn't tell.

    Shape:
        A tensor is (3, H, W).

    Units:
        A tensor's values are in [0, 1]; scores are probabilities (softmax).

    Returns:
        Labels and scores. Where the network names no classes, labels are ``LABEL_0``, ``LABEL_1``, …

    Raises:
        SpectralError: if the model is none of ours, the image can't be read or has no RGB form, a tensor has
            another shape, dtype or range, or the size isn't the model's and ``resize`` isn't asked for.

    Example:
        >>> import spectral
        >>> model = spectral.load_model("bundled/resnet20@random")
        >>> best = classify(model, Image.new("RGB", (32, 32), "navy"), top_k=1)
        >>> [sorted(one) for one in best]
        [['label', 'score']]
    """
    if not is_integer(top_k) or top_k < 1:
        raise SpectralError(f"classify: top_k must be ≥ 1, got {top_k}")
    preparation = find_preparation(model, preprocessing)
    if preparation.assumed:
        other = "" if model_info(model) else ", or load the model with spectral.load_model"
        raise SpectralError(
            f"classify: this {type(model).__name__} says nothing about its preprocessing; pass "
            f"preprocessing=(mean, std) (--mean and --std){other}"
        )
    pixels = _read(image)
    if preparation.size is not None:
        pixels = _fit(pixels, preparation.size, resize, _name(image))
    like = next(model.parameters(), pixels)
    batch = preparation(pixels[None].to(like.device)).to(like.dtype)
    with undisturbed(model), torch.inference_mode():
        probabilities = read_scores(model(batch), batch=1).probabilities()[0]
    scores, order = (x[:top_k] for x in probabilities.sort(descending=True, stable=True))
    names = find_classes(model) or ()
    if len(names) != len(probabilities):
        names = tuple(f"LABEL_{i}" for i in range(len(probabilities)))
    return [{"label": names[i], "score": s} for i, s in zip(order.tolist(), scores.tolist(), strict=True)]


def _read(image: ImageLike) -> Tensor:
    """Return an image as (3, H, W) in [0, 1]."""
    if isinstance(image, Tensor):
        return _check_tensor(image)
    if isinstance(image, Image.Image):
        return _to_rgb(image, _name(image))
    if not isinstance(image, (str, os.PathLike)):
        raise SpectralError(
            f"classify: expected an image as a path, a PIL image or a (3, H, W) tensor, got "
            f"{type(image).__name__}"
        )
    path = Path(image).expanduser()
    if path.is_dir():
        raise SpectralError(f"{path} is a folder; name image files in it")
    if not path.is_file():
        raise SpectralError(f"{path}: there is no such image file; check the path")
    try:
        opened = Image.open(path)
    except Exception as error:  # Pillow raises almost anything on a broken file
        raise SpectralError(
            f"{path}: expected an image that Pillow can read, got {_reason(error)}; save it as PNG or JPEG"
        ) from error
    with opened:
        return _to_rgb(opened, str(path))


def _to_rgb(image: Image.Image, name: str) -> Tensor:
    if image.mode == "F" or image.mode.startswith("I"):
        raise SpectralError(
            f"{name}: expected an image with 8 bits per channel, got mode {image.mode!r}, whose values RGB "
            f"would cut off; scale it to 8 bits, or pass a (3, H, W) tensor in [0, 1]"
        )
    try:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # as on opening: the pixels are only decoded now
        raise SpectralError(
            f"{name}: the image can't be converted to RGB ({_reason(error)}); save it as PNG or JPEG"
        ) from error
    return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "a file of no known format"
    return " ".join(str(error).split()) or type(error).__name__


def _check_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise SpectralError(
            f"classify: expected a floating-point tensor of shape (3, H, W) with values in [0, 1], got "
            f"{image.dtype} of shape {tuple(image.shape)}"
        )
    if not (image.numel() and image.min() >= 0 and image.max() <= 1):  # a NaN fails too
        raise SpectralError(
            "classify: expected values in [0, 1], got some outside; divide 8-bit values by 255, and leave "
            "the normalisation to the model's preprocessing"
        )
    return image.detach().float()


def _fit(pixels: Tensor, size: tuple[int, int], resize: bool, name: str) -> Tensor:
    """Bring an image to a size: the shorter side by interpolation, the longer by cropping its centre."""
    found = (pixels.shape[1], pixels.shape[2])
    if found == size:
        return pixels
    if not resize:
        raise SpectralError(
            f"{name}: expected an image of the model's size, {size[0]}×{size[1]} (height × width), got "
            f"{found[0]}×{found[1]}; resize it, or ask for that with resize=True (--resize)"
        )
    scale = max(size[0] / found[0], size[1] / found[1])
    large = [max(want, round(have * scale)) for want, have in zip(size, found, strict=True)]
    pixels = nn.functional.interpolate(pixels[None], large, mode="bilinear", antialias=True)[0]
    top, left = ((have - want) // 2 for want, have in zip(size, large, strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]].clamp(0, 1)


def _name(image: ImageLike) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else "classify"
