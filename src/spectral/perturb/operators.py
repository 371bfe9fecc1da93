"""Perturbations that change how an image is sampled: linear maps with a matrix, a rank and a null space.

Every resampling here is separable, T = A_h ⊗ A_w on an image's rows and columns, and every axis is down, then
up: A = U·D. What D annihilates the network never sees: f∘T is blind to ker D.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from spectral.arguments.values import is_integer
from spectral.errors import SpectralError, suggest
from spectral.numerics.cache import remember
from spectral.numerics.products import apply_axes

Matrix = npt.NDArray[np.float64]
Size = tuple[int, int]


class Perturbation(Protocol):
    """What changes images (B, C, H, W) in [0, 1] and keeps their shape."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return the perturbed images; ``indices`` say which of a set they are, for those that draw."""


@dataclass(frozen=True)
class Identity:
    """No perturbation: what the others are compared with."""

    name: str = "clean"

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return the images."""
        return images


class Resampling(ABC):
    """An image operator T = U∘D: brought to fewer samples by D, and back to the image's own size by U.

    The matrices of one axis define it; images are multiplied with them in their own dtype, at least float32.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def down_axis(self, n: int) -> Matrix:
        """Return D for one axis of ``n`` samples, (m, n)."""

    @abstractmethod
    def up_axis(self, n: int) -> Matrix:
        """Return U for one axis, (n, m)."""

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return U(D(x)) for images (…, H, W)."""
        return _apply_axes(images, self, "whole")

    def down(self, images: Tensor) -> Tensor:
        """Return D(x): what is left of images (…, H, W), (…, m_h, m_w)."""
        return _apply_axes(images, self, "down")

    def matrix(self, size: Size, part: Literal["whole", "down"] = "whole") -> Tensor:
        """Return the operator on one channel of flattened images of a size, float64.

        Args:
            size: height and width.
            part: the whole operator T, or D alone.

        Shape:
            (H·W, H·W), or (m_h·m_w, H·W) for D.

        Example:
            >>> Decimate(2).matrix((1, 4), "down")
            tensor([[1., 0., 0., 0.],
                    [0., 0., 1., 0.]], dtype=torch.float64)
        """
        rows, columns = (torch.from_numpy(_build(part, self, n)) for n in size)
        return torch.kron(rows, columns)

    def rank(self, size: Size) -> int:
        """Rank of D on one channel: the product of the axes' ranks."""
        return math.prod(int(np.linalg.matrix_rank(_build("down", self, n))) for n in size)

    def null_dimension(self, size: Size) -> int:
        """Dimension of ker D on one channel: n − rank(D).

        Example:
            >>> Decimate(2).null_dimension((32, 32)), Resize(0.25).null_dimension((32, 32))
            (768, 960)
        """
        return math.prod(size) - self.rank(size)

    def project_null(self, images: Tensor) -> Tensor:
        """Return the orthogonal projection of images (…, H, W) onto ker D: what the operator annihilates.

        Example:
            >>> hidden = Decimate(2).project_null(torch.ones(1, 4, 4))
            >>> hidden[0, 0], Decimate(2).down(hidden).abs().max()
            (tensor([0., 1., 0., 1.]), tensor(0.))
        """
        return images - _apply_axes(images, self, "range")


@dataclass(frozen=True)
class Resize(Resampling):
    """Bilinear resize by a scale, then back to the image's size.

    Args:
        scale: below 1; the small image has ⌊n · scale⌋ samples per axis, at least 1.
        antialias: widen the filter with the scale, as PIL does; by default each small pixel is a mean of the
            2×2 neighbours of its centre, as in torch and OpenCV.

    Raises:
        SpectralError: if the scale isn't between 0 and 1.

    Example:
        >>> Resize(0.5)(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])).unique()
        tensor([3.])
    """

    scale: float
    antialias: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise SpectralError(f"Resize: scale must be between 0 and 1, got {self.scale}")

    @property
    def name(self) -> str:
        """``resize-0.5``, and ``resize-0.5-antialias``."""
        return f"resize-{self.scale:g}{'-antialias' if self.antialias else ''}"

    def down_axis(self, n: int) -> Matrix:
        """Bilinear, n → ⌊n · scale⌋."""
        return _interpolate(n, max(1, int(n * self.scale)), self.antialias)

    def up_axis(self, n: int) -> Matrix:
        """Bilinear, back to n."""
        return _interpolate(max(1, int(n * self.scale)), n, False)


@dataclass(frozen=True)
class RandomResize:
    """A bilinear resize whose scale is drawn for every image, evenly from ``low`` to ``high`` in hundredths.

    Which scale image number i gets is fixed by i; `choose_randomly` draws with its own source of chance.

    Raises:
        SpectralError: if the scales aren't between 0 and 1, in ascending order.

    Example:
        >>> RandomResize(0.2, 0.6)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 3, 32, 32])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise SpectralError(
                f"RandomResize: scales must be between 0 and 1, the lower first, got {self.low}, {self.high}"
            )

    @property
    def name(self) -> str:
        """``resize-0.2:0.6``."""
        return f"resize-{self.low:g}:{self.high:g}"

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Resize each image by its own scale."""
        numbers = range(len(images)) if indices is None else indices
        draws = [torch.rand(1, generator=_generator(i)) for i in numbers]
        return self.resize(images, torch.cat(draws) if draws else torch.zeros(0))

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Resize each image by a scale from a source of chance."""
        return self.resize(images, torch.rand(len(images), generator=generator))

    def resize(self, images: Tensor, places: Tensor) -> Tensor:
        """Resize images (B, C, H, W) by scales at ``places`` (B,) from 0, the lowest, to 1, the highest."""
        result = images.clone()
        groups: dict[tuple[int, ...], list[int]] = {}
        scales = [round(self.low + (self.high - self.low) * place, 2) for place in places.tolist()]
        for number, scale in enumerate(scales):  # those that come out at one size go together
            groups.setdefault(tuple(max(1, int(n * scale)) for n in images.shape[-2:]), []).append(number)
        for numbers in groups.values():
            chosen = torch.tensor(numbers, device=images.device)
            result[chosen] = Resize(scales[numbers[0]])(images[chosen])
        return result


@dataclass(frozen=True)
class Decimate(Resampling):
    """Keep every k-th pixel, from the first, and repeat it k times: no filter before, none after.

    Raises:
        SpectralError: if the factor isn't a whole number ≥ 2.

    Example:
        >>> Decimate(2)(torch.arange(5.0).expand(1, 5))
        tensor([[0., 0., 2., 2., 4.]])
    """

    factor: int = 2

    def __post_init__(self) -> None:
        if not is_integer(self.factor) or self.factor < 2:
            raise SpectralError(
                f"{type(self).__name__}: the factor must be a whole number ≥ 2, got {self.factor}"
            )

    @property
    def name(self) -> str:
        """``decimate-2``."""
        return f"decimate-{self.factor}"

    def down_axis(self, n: int) -> Matrix:
        """Every k-th row of the identity."""
        return np.eye(n)[:: self.factor]

    def up_axis(self, n: int) -> Matrix:
        """Each sample k times, cut to n."""
        return np.eye(-(-n // self.factor)).repeat(self.factor, axis=0)[:n]


@dataclass(frozen=True)
class BlurDecimate(Decimate):
    """Blur with [1, 2, 1] ⊗ [1, 2, 1] / 16, reflected at the borders, then as `Decimate`.

    The card names an anti-aliased blur-decimation and doesn't define it: this differs from its hard
    decimation by its BlurPool's own filter alone.

    Example:
        >>> BlurDecimate(2)(torch.ones(1, 3, 5)).unique()
        tensor([1.])
    """

    @property
    def name(self) -> str:
        """``blur-decimate-2``."""
        return f"blur-decimate-{self.factor}"

    def down_axis(self, n: int) -> Matrix:
        """Decimation of the blur."""
        blur = np.zeros((n, n))
        for tap, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            for i in range(n):
                j = i + tap
                j = -j if j < 0 else 2 * (n - 1) - j if j >= n else j
                blur[i, min(max(j, 0), n - 1)] += weight
        return super().down_axis(n) @ blur


@dataclass(frozen=True)
class GaussianNoise:
    """White noise with a standard deviation in [0, 1] pixels, each image's own, cut off at black and white.

    The noise of image number i is fixed by i: networks that are compared see the same.

    Raises:
        SpectralError: if the standard deviation isn't above 0.

    Example:
        >>> noise = GaussianNoise(0.1)(torch.full((1, 3, 64, 64), 0.5)) - 0.5
        >>> round(noise.std().item(), 2)
        0.1
    """

    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise SpectralError(f"GaussianNoise: the standard deviation must be > 0, got {self.std}")

    @property
    def name(self) -> str:
        """``gaussian-0.05``."""
        return f"gaussian-{self.std:g}"

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return x + noise, within [0, 1]."""
        numbers = range(len(images)) if indices is None else indices
        if not len(images):
            return images
        noise = [torch.randn(images.shape[1:], generator=_generator(i)) for i in numbers]
        return (images + self.std * torch.stack(noise).to(images)).clamp(0, 1)


@dataclass(frozen=True)
class Checkerboard:
    """Add δ[i, j] = ε · (−1)^(i + j), the highest spatial frequency there is. Pixels may leave [0, 1].

    The card doesn't say in which unit its ε is. ``"pixel"``: of images in [0, 1]. ``"normalised"``: of what
    the network gets after (x − mean) / std, here with the card's std of 0.5 unless another is given.

    Raises:
        SpectralError: if ε or the std isn't above 0, or the unit is unknown.

    Example:
        >>> Checkerboard(0.05)(torch.zeros(1, 1, 2, 2))
        tensor([[[[ 0.0500, -0.0500],
                  [-0.0500,  0.0500]]]])
    """

    epsilon: float
    unit: Literal["pixel", "normalised"] = "pixel"
    std: float = 0.5

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and self.std > 0):
            raise SpectralError(
                f"Checkerboard: ε and std must be > 0, got ε = {self.epsilon} and std = {self.std}"
            )
        if self.unit not in ("pixel", "normalised"):
            raise SpectralError(f"Checkerboard: the unit must be pixel or normalised, got {self.unit!r}")

    @property
    def name(self) -> str:
        """``checkerboard-0.05``, or ``checkerboard-0.05-normalised``."""
        return f"checkerboard-{self.epsilon:g}{'' if self.unit == 'pixel' else '-normalised'}"

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return x + δ."""
        return images + self.delta((images.shape[-2], images.shape[-1])).to(images)

    def delta(self, size: Size) -> Tensor:
        """Return δ in pixels, (H, W)."""
        rows, columns = (torch.arange(n) for n in size)
        amplitude = self.epsilon * (1.0 if self.unit == "pixel" else self.std)
        return amplitude * (1.0 - 2.0 * ((rows[:, None] + columns) % 2))


# NULA's cards: what their tables test, in their order, and what its robust networks were trained under (v1
# with the shares .5, .3 and .2). They don't say how many images stay clean: here a third.
NULA_TESTS = (
    "clean", "resize-0.5", "resize-0.25", "decimate-2", "checkerboard-0.03", "checkerboard-0.05",
)  # fmt: skip
NULA_TRAINING = (
    *("clean",) * 3, *("resize-0.2:0.6",) * 2, *("decimate-2",) * 2, *("blur-decimate-2",) * 2,
)  # fmt: skip
NULA_TRAINING_V1 = (
    *("clean",) * 5, *("resize-0.2:0.45",) * 5, *("decimate-2",) * 3, *("blur-decimate-2",) * 2,
)  # fmt: skip

LARGEST = 1024  # number in a name
_MAKERS: Mapping[str, Callable[[float], Perturbation]] = {
    "resize": Resize,
    "decimate": lambda value: Decimate(int(value)),
    "blur-decimate": lambda value: BlurDecimate(int(value)),
    "checkerboard": Checkerboard,
    "gaussian": GaussianNoise,
}


def make_perturbation(name: str) -> Perturbation:
    """Build an operator by the name that tables call it: ``resize-0.5``, ``checkerboard-0.05-normalised``, …

    Raises:
        SpectralError: if the name is unknown or its number out of range.

    Example:
        >>> make_perturbation("blur-decimate-2")
        BlurDecimate(factor=2)
    """
    if name == "clean":
        return Identity()
    if name.startswith("resize-") and name.endswith("-antialias"):
        return Resize(_read_number(name, name.removesuffix("-antialias")), antialias=True)
    if name.startswith("resize-") and ":" in name:
        low, _, high = name.removeprefix("resize-").partition(":")
        return RandomResize(_read_number(name, low), _read_number(name, high))
    if name.startswith("checkerboard-") and name.endswith("-normalised"):
        return Checkerboard(_read_number(name, name.removesuffix("-normalised")), "normalised")
    kind = name.rpartition("-")[0]
    if kind not in _MAKERS:
        raise SpectralError(
            f"unknown perturbation {name!r}{suggest(name, (*NULA_TESTS, *NULA_TRAINING))}; expected clean, "
            f"or a number behind {', '.join(f'{kind}-' for kind in _MAKERS)}"
        )
    value = _read_number(name, name)
    if value > LARGEST:
        raise SpectralError(f"{name!r}: {value:g} is too large, at most {LARGEST}")
    return _MAKERS[kind](value)


def _read_number(name: str, numbered: str) -> float:
    value, whole = numbered.rpartition("-")[2], "decimate" in name
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (whole and number != int(number)):
        kind = "whole number" if whole else "number"
        raise SpectralError(f"perturbation {name!r}: expected a {kind} at its end, got {value!r}")
    return number


def _generator(number: int) -> torch.Generator:
    """Return an image's own source of chance."""
    return torch.Generator().manual_seed(int(number))


def choose_randomly(
    images: Tensor, perturbations: Sequence[Perturbation], generator: torch.Generator
) -> Tensor:
    """Send each image through one of the perturbations, drawn with equal chances.

    Args:
        images: (B, C, H, W) in [0, 1].
        perturbations: what is drawn from.
        generator: the source of chance, on the CPU.

    Raises:
        SpectralError: if there is none to draw.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> choose_randomly(torch.rand(8, 3, 4, 4), [Identity(), Decimate(2)], draw).shape
        torch.Size([8, 3, 4, 4])
    """
    if not perturbations:
        raise SpectralError("choose_randomly: expected at least one perturbation to draw from, got none")
    drawn = torch.randint(len(perturbations), (len(images),), generator=generator)
    result = images.clone()
    for number, perturbation in enumerate(perturbations):
        chosen = (drawn == number).nonzero()[:, 0].to(images.device)
        if len(chosen) and isinstance(perturbation, RandomResize):
            result[chosen] = perturbation.draw(images[chosen], generator)
        elif len(chosen):
            result[chosen] = perturbation(images[chosen])
    return result


def _build(part: str, operator: Resampling, n: int) -> Matrix:
    """One axis of T (whole), of D (down), or of the projection onto the row space of D (range)."""
    down = operator.down_axis(n)
    if part == "down":
        return down
    return (operator.up_axis(n) if part == "whole" else np.linalg.pinv(down)) @ down


def _interpolate(n: int, m: int, antialias: bool) -> Matrix:
    """Bilinear resampling of one axis as a matrix (m, n): the answer to each unit impulse."""
    # torch resizes images, not signals, with antialiasing: two equal rows stand for the axis.
    impulses = torch.eye(n, dtype=torch.float64)[:, None, None, :].expand(n, 1, 2, n)
    small = F.interpolate(impulses, size=(2, m), mode="bilinear", align_corners=False, antialias=antialias)
    matrix: Matrix = small[:, 0, 0].T.contiguous().numpy()
    return matrix


def _apply_axes(images: Tensor, operator: Resampling, part: str) -> Tensor:
    if images.ndim < 2 or not images.is_floating_point():
        raise SpectralError(
            f"a perturbation takes floating-point images (…, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    dtype = torch.promote_types(images.dtype, torch.float32)
    matrices = [remember(_build, part, operator, n, like=images, dtype=dtype) for n in images.shape[-2:]]
    return apply_axes(images, matrices)
