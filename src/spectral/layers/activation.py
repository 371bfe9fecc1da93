"""Activations that don't alias: evaluated on a finer lattice, and low-passed back."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError
from spectral.layers.pool import AXES
from spectral.numerics.finer import evaluate_finely
from spectral.numerics.tracing import fixed_shape

KINDS = {1: ("w",), 2: ("h", "w"), 3: ("t", "h", "w")}


class AliasFreeActivation(nn.Module):
    """Interpolate → activate → low-pass → decimate: frequencies that the lattice can't hold don't fold.

    A pointwise nonlinearity makes harmonics. Those above the Nyquist frequency fold back, and the map no
    longer moves with the image by parts of a sample, as it has to behind a stride. Between an r times finer
    lattice and back most of them are removed: all of a polynomial up to degree 2r − 1, next to all of a
    smooth one.

    Args:
        activation: what acts on each place alone; its parameters are trained with it.
        factor: r, how much finer the lattice is.
        taps: None for the ideal interpolation and low-pass of the periodic map, as matrix products; or
            windowed sinc filters with so many taps (even, as 6), which are cheaper on large maps and leave
            more.

    Shape:
        (B, C, H, W) or (C, H, W) → the same; T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has another rank or dtype.

    Source:
        T. Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021; H. Michaeli et al.,
        Alias-Free Convnets, CVPR 2023.

    Example:
        >>> import torch
        >>> layer = AliasFreeActivation2d(nn.GELU())
        >>> x = torch.randn(1, 2, 8, 8)
        >>> layer(x).shape, bool(torch.allclose(layer(x.roll(1, -1)), layer(x).roll(1, -1), atol=1e-6))
        (torch.Size([1, 2, 8, 8]), True)
    """

    axes: ClassVar[int]

    def __init__(self, activation: nn.Module, factor: int = 2, taps: int | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(activation, nn.Module):
            raise SpectralError(
                f"{name}: expected an activation such as nn.GELU(), got {type(activation).__name__}"
            )
        self.factor = as_integer(factor, f"{name}: factor", least=2)
        self.taps = None if taps is None else as_integer(taps, f"{name}: taps", least=2)
        if self.taps is not None and self.taps % 2:
            raise SpectralError(f"{name}: taps must be even, got {taps!r}")
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Activate maps (B, C, …) or (C, …)."""
        if x.ndim - self.axes not in (1, 2) or not x.is_floating_point():
            raise SpectralError(
                f"{type(self).__name__}: expected floating-point maps (B, C, {AXES[self.axes]}), got "
                f"{x.dtype} of shape {fixed_shape(x)}"
            )
        places = dict(zip(KINDS[self.axes], range(x.ndim - self.axes, x.ndim), strict=True))
        (y,) = evaluate_finely(self.activation, (x,), {}, [places], [places], self.factor, self.taps)
        return y

    def extra_repr(self) -> str:
        """Show the arguments that aren't modules."""
        return f"factor={self.factor}" + (f", taps={self.taps}" if self.taps else "")


class AliasFreeActivation1d(AliasFreeActivation):
    """`AliasFreeActivation` for signals (B, C, T)."""

    axes = 1


class AliasFreeActivation2d(AliasFreeActivation):
    """`AliasFreeActivation` for images (B, C, H, W)."""

    axes = 2


class AliasFreeActivation3d(AliasFreeActivation):
    """`AliasFreeActivation` for videos (B, C, T, H, W)."""

    axes = 3
