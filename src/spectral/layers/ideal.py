"""The ideal low-pass filter, then decimation: nothing is left that could alias."""

from __future__ import annotations

from torch import Tensor

from spectral.layers.pool import Pool, Stride
from spectral.numerics.matrices import as_matrix, low_pass_rows
from spectral.numerics.products import apply_axes
from spectral.numerics.resampling import is_long, low_pass


class IdealLowPass(Pool):
    """Zero every frequency |f| ≥ 1/(2s) of the DFT on each axis, then keep samples 0, s, 2s, …

    What is left fits under the new Nyquist frequency, whose own bin is zeroed too: the aliasing metric AM is
    0 at any size and stride. An axis of stride 1 is left alone. The map counts as periodic and the cut is
    hard, so edges ring; `ASAPPool2d` tapers it.

    A decimated low-pass is a small real linear map, so the layer is a thin matrix product for each axis
    (A_h x A_wᵀ) and no transform: exact at every size, in at least float32, and exportable as it is. Only
    axes of 1024 samples and more, as signals have, take an FFT outside of graphs. Matrices
    of sizes that are known while a graph is exported are constants in it; where a size is dynamic
    (`torch.export`, `torch.onnx`, always in `torch.jit.trace`) the graph computes them from it.

    Args:
        stride: decimation factor, one for all axes or one for each.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has another rank or dtype.

    Source:
        The definition of L in the aliasing metric AM, equation 5 of "Aliasing coincides with CNNs
        vulnerability towards adversarial attacks", without its restriction to stride 2.

    Example:
        >>> import torch
        >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 4, 4)
        >>> bool(IdealLowPass2d()(1 + board).sub(1).abs().max() < 1e-6)
        True
    """

    kind = "low_pass"
    hamming = False

    def __init__(self, stride: Stride = 2) -> None:
        super().__init__(None, stride)

    def pool(self, x: Tensor) -> Tensor:
        """Low-pass and decimate."""
        return self._low_pass(x, self.stride)

    def dense(self, x: Tensor) -> Tensor:
        """Low-pass only: ``layer.dense(x)[..., ::s_h, ::s_w]`` is the layer's output."""
        self.check(x)
        return self._low_pass(x, (1,) * self.axes)

    def _low_pass(self, x: Tensor, spacing: tuple[int, ...]) -> Tensor:
        matrices: list[Tensor | None] = []
        for axis, (step, every) in enumerate(zip(self.stride, spacing, strict=True), x.ndim - self.axes):
            size = x.shape[axis]
            rows = step, 0, every, (size + every - 1) // every, self.hamming
            if step == 1:
                matrices.append(None)
            elif is_long(x, size):
                x = low_pass(x, axis, *rows)
                matrices.append(None)
            else:
                matrices.append(as_matrix(low_pass_rows, x, size, *rows))
        return apply_axes(x, matrices)


class IdealLowPass1d(IdealLowPass):
    """`IdealLowPass` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class IdealLowPass2d(IdealLowPass):
    """`IdealLowPass` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class IdealLowPass3d(IdealLowPass):
    """`IdealLowPass` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
