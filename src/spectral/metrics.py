"""The definitions of AVR, AM and SIS: pure tensor functions, differentiable where the mathematics is."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.spectrum import Array, as_maps, centred_indices

Cutoff = Literal["radial", "separable"]
Stride = int | tuple[int, int]
SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right; (rows, columns)


def compute_avr(P: Array, stride: Stride = 2, cutoff: Cutoff = "radial", exclude_dc: bool = False) -> Tensor:
    """Alias Violation Ratio: the share of power above the Nyquist limit of a decimation by ``stride``.

    AVR = Σ_{ρ > 1/s} P / Σ P. A bin exactly on the limit is not a violation. A silent map gives 0.

    Args:
        P: DC-centred power, as `compute_power_spectrum` gives it.
        stride: decimation factor of the site, one for both axes or (s_h, s_w).
        cutoff: ``"radial"`` (published: the ellipse (2 s_h f_u)² + (2 s_w f_v)² > 1) or ``"separable"``
            (either axis above its own limit: the true support of a decimated lattice).
        exclude_dc: leave the DC bin out of the denominator; a constant map is then a silent one.

    Shape:
        (…, H, W) → (…), 0-dimensional for one map.

    Units:
        None; in [0, 1].

    Raises:
        SpectralError: for a stride < 1, an unknown cutoff, or P that is no floating-point map.

    Source:
        The spectral-aliasing study, with true frequencies at odd sizes.

    Example:
        >>> from spectral.spectrum import compute_power_spectrum
        >>> board = torch.ones(8, 8)
        >>> board[::2, ::2] = board[1::2, 1::2] = -1
        >>> float(compute_avr(compute_power_spectrum(board), stride=2))
        1.0
    """
    power = as_maps(P, "compute_avr")
    steps = as_stride(stride, "compute_avr")
    above = violation_mask(tuple(power.shape[-2:]), steps, cutoff).to(power.device)
    # Float64 sums: the mask and its complement then add up to the whole, whatever the map's size.
    violating = (power * above).sum((-2, -1), dtype=torch.float64)
    total = power.sum((-2, -1), dtype=torch.float64)
    if not torch.isfinite(total).all():
        raise SpectralError("compute_avr: the power has NaN or infinite values; check the map it came from")
    floor = torch.zeros_like(total)
    if exclude_dc:
        # Summed without the DC bin: total − DC would cancel all digits of a faint pattern on a bright ground.
        row, column = power.shape[-2] // 2, power.shape[-1] // 2
        is_dc = torch.zeros_like(above)
        is_dc[row, column] = True
        total = power.masked_fill(is_dc, 0).sum((-2, -1), dtype=torch.float64)
        # The transform of a constant leaves rounding noise at the other bins, no power to take a share of.
        noise = (8 * torch.finfo(power.dtype).eps) ** 2
        floor = noise * power[..., row, column].detach().double()
    return _ratio(violating, total, floor).to(power.dtype)


def compute_am(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, int] | None = None,
    difference: Literal["complex", "magnitude"] = "complex",
) -> Tensor:
    """Aliasing metric AM: L1 distance between a decimated map's spectrum and its alias-free counterpart.

    AM = mean over channels of Σ_{k,l} |F_s1 − F_s2|, with the alias-free map low-passed to |f| < 1/(2s) on
    both axes (the new Nyquist bin is removed too, also on an axis of stride 1).

    Args:
        dense: the dense map, which is what the decimation sees.
        stride: decimation factor, one for both axes or (s_h, s_w).
        phase: first sample kept, one for both axes or (φ_h, φ_w).
        size: samples kept (n_h, n_w); all that fit if None.
        difference: ``"complex"`` (equation 7) or ``"magnitude"``: Σ ||F_s1| − |F_s2||.

    Shape:
        (H, W) or (C, H, W) → (); (B, C, H, W) → (B,).

    Units:
        Units of the map: linear in amplitude. Grows with map size; compare like layers only.

    Raises:
        SpectralError: for a wrong rank or type, or a lattice that doesn't fit the map.

    Source:
        J. Grabinski et al., Aliasing coincides with CNNs vulnerability towards adversarial attacks, eq. 1–7.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) * 0.75).expand(8, 8)  # above the limit of 1/4
        >>> round(float(compute_am(tone, stride=2)), 5)
        1.0
    """
    if difference == "complex":
        return compute_alias_metrics(dense, stride, phase, size, "compute_am")["am"]
    if difference != "magnitude":
        raise SpectralError(f"compute_am: difference must be 'complex' or 'magnitude', got {difference!r}")
    kept, residual = split_aliases(dense, stride, phase, size, "compute_am")
    change: Tensor = torch.fft.fft2(kept - residual).abs() - torch.fft.fft2(kept).abs()
    return change.abs().sum((-2, -1)).mean(-1) / (kept.shape[-2] * kept.shape[-1])


def compute_am_relative(
    dense: Array, stride: Stride = 2, phase: Stride = 0, size: tuple[int, int] | None = None
) -> Tensor:
    """AM relative to the decimated map's own spectrum, Σ|F_s1 − F_s2| / Σ|F_s2|: free of scale.

    Arguments, shapes and errors as for `compute_am`; a silent map gives 0.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) * 0.75).expand(8, 8)
        >>> round(float(compute_am_relative(tone)), 5)
        1.0
    """
    return compute_alias_metrics(dense, stride, phase, size, "compute_am_relative")["am_relative"]


def compute_alias_power_ratio(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, int] | None = None,
    db: bool = False,
) -> Tensor:
    """Power of the aliases over power of the decimated map, ‖decimate(d − L d)‖² / ‖decimate(d)‖².

    Comparable across layers, sizes and models. Arguments, shapes and errors as for `compute_am`; a silent
    map gives 0 (−∞ dB).

    Units:
        None, or decibels with ``db=True``.

    Example:
        >>> float(compute_alias_power_ratio(torch.ones(4, 4)))
        0.0
    """
    metrics = compute_alias_metrics(dense, stride, phase, size, "compute_alias_power_ratio")
    ratio = metrics["alias_power_ratio"]
    return 10 * ratio.log10() if db else ratio


def compute_alias_metrics(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, int] | None = None,
    caller: str = "compute_alias_metrics",
) -> dict[str, Tensor]:
    """AM, relative AM and alias power ratio from one split of the map: where all three are wanted.

    Arguments, shapes and errors as for `compute_am`.

    Example:
        >>> sorted(compute_alias_metrics(torch.ones(4, 4)))
        ['alias_power_ratio', 'am', 'am_relative']
    """
    kept, residual = split_aliases(dense, stride, phase, size, caller)
    distance = spectrum_l1(residual)
    return {
        "am": distance.mean(-1),
        "am_relative": _ratio(distance.sum(-1), spectrum_l1(kept).sum(-1)),
        "alias_power_ratio": _ratio(residual.square().sum((-3, -2, -1)), kept.square().sum((-3, -2, -1))),
    }


def compute_sis(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Shift Instability Score: how far the predicted distribution moves under one-pixel circular shifts.

    SIS(x) = ¼ Σ_d (1 − cos(p(x), p(roll(x, d)))) with p = softmax(logits). The model runs five times, in
    evaluation mode, without gradients; its modules' training flags are restored.

    Args:
        model: maps images to logits (B, K); objects with ``.logits`` are understood.
        images: (B, C, H, W), preprocessed as the model expects.

    Shape:
        (B, C, H, W) → (B,), float64.

    Units:
        None; 0 for a shift-invariant model, at most 1.

    Raises:
        SpectralError: for images of another rank, or a model whose output is no (B, K ≥ 2) logits.

    Source:
        The spectral-aliasing study.

    Example:
        >>> invariant = lambda x: x.mean((2, 3))
        >>> compute_sis(invariant, torch.rand(2, 3, 8, 8)).max().item() < 1e-12
        True
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise SpectralError(f"compute_sis: expected images of shape (B, C, H, W), got {got}")
    with evaluation_mode(model), torch.no_grad():
        # A copy, since a model that works in place would hand altered images to the shifts.
        reference = predict_probabilities(model(images.clone()), len(images))
        shifted = [
            predict_probabilities(model(images.roll(shift, dims=(2, 3))), len(images)) for shift in SHIFTS
        ]
    return compute_instability(reference, shifted)


def compute_instability(reference: Tensor, shifted: list[Tensor]) -> Tensor:
    """Mean cosine distance (B,) between distributions (B, K) and those of the shifted images.

    1 − cos is taken as ½‖p̂ − q̂‖² of unit vectors: equal distributions give 0, not rounding noise.

    Example:
        >>> p = torch.tensor([[1.0, 0.0]])
        >>> compute_instability(p, [p, torch.tensor([[0.0, 1.0]])])
        tensor([0.5000], dtype=torch.float64)
    """
    unit = torch.nn.functional.normalize(reference.double(), dim=-1)
    distances = [
        (unit - torch.nn.functional.normalize(p.double(), dim=-1)).square().sum(-1) / 2 for p in shifted
    ]
    return torch.stack(distances).mean(0)


def predict_probabilities(output: Any, batch: int) -> Tensor:
    """Turn a classifier's output into probabilities (B, K), in float64.

    Raises:
        SpectralError: if the output is no finite (B, K ≥ 2) logits.
    """
    logits = find_logits(output, batch)
    if logits is None:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SpectralError(f"expected a classifier with logits of shape ({batch}, K ≥ 2), got {got}")
    if not torch.isfinite(logits).all():
        raise SpectralError("the model's logits have NaN or infinite values; check its weights and the input")
    return logits.double().softmax(-1)


def find_logits(output: Any, batch: int) -> Tensor | None:
    """Return the logits (B, K ≥ 2) in a model's output: itself, its ``.logits`` or ["logits"]; else None.

    Example:
        >>> find_logits({"logits": torch.zeros(2, 10)}, batch=2).shape
        torch.Size([2, 10])
    """
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch or logits.shape[1] < 2:
        return None
    return logits


class evaluation_mode:  # noqa: N801 - reads as a statement: `with evaluation_mode(model):`
    """Put a model into evaluation mode and restore every module's own training flag afterwards.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with evaluation_mode(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self.flags: list[tuple[torch.nn.Module, bool]] = []

    def __enter__(self) -> None:
        if isinstance(self.model, torch.nn.Module):
            self.flags = [(module, module.training) for module in self.model.modules()]
            self.model.eval()

    def __exit__(self, *exception: object) -> None:
        for module, training in self.flags:
            module.training = training


def split_aliases(
    dense: Array, stride: Stride, phase: Stride, size: tuple[int, int] | None, caller: str = "split_aliases"
) -> tuple[Tensor, Tensor]:
    """Decimate a dense map and its high band: what the next layer gets, and the aliases in it.

    Shape:
        (H, W), (C, H, W) or (B, C, H, W) → two maps (…, C, n_h, n_w).
    """
    maps = as_maps(dense, caller, ranks=(2, 3, 4))
    maps = maps if maps.ndim > 2 else maps[None]
    s_h, s_w = as_stride(stride, caller)
    p_h, p_w = _as_pair(phase, f"{caller}: phase must be ≥ 0 on both axes")
    height, width = maps.shape[-2:]
    n_h, n_w = (len(range(p_h, height, s_h)), len(range(p_w, width, s_w)))
    if size is not None:
        n_h, n_w = _as_pair(size, f"{caller}: size must be ≥ 1 on both axes")
    for n, p, s, extent in ((n_h, p_h, s_h, height), (n_w, p_w, s_w, width)):
        if p < 0 or n < 1 or p + s * (n - 1) >= extent:
            raise SpectralError(f"{caller}: {n} samples from {p} in steps of {s} don't fit a map of {extent}")
    kept = maps[..., p_h::s_h, p_w::s_w][..., :n_h, :n_w]
    rows = _low_pass_rows(height, s_h, p_h, n_h).to(maps)
    columns = _low_pass_rows(width, s_w, p_w, n_w).to(maps)
    # decimate(L d) as two thin products: only the samples that are kept are ever low-passed. Autocast would
    # round them to half precision.
    with torch.autocast(maps.device.type, enabled=False):
        residual = kept - rows @ (maps @ columns.T)
    if not torch.isfinite(residual).all():
        raise SpectralError(f"{caller}: the map has NaN or infinite values; check the weights and the input")
    return kept, residual


def spectrum_l1(maps: Tensor) -> Tensor:
    """Σ_{k,l} |DFT| / (n_h n_w) of each map, (…, n_h, n_w) → (…)."""
    n_h, n_w = maps.shape[-2:]
    magnitude: Tensor = torch.fft.rfft2(maps).abs()
    # A real transform leaves out the mirrored columns: all but DC and, at even widths, Nyquist count twice.
    twice = magnitude[..., 1 : (n_w + 1) // 2].sum((-2, -1))
    return (magnitude.sum((-2, -1)) + twice) / (n_h * n_w)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached tensor may enter an autograd graph later
def violation_mask(size: tuple[int, int], stride: tuple[int, int], cutoff: str = "radial") -> Tensor:
    """Bins (H, W) of a DC-centred spectrum that a decimation by ``stride`` would alias.

    Decided in integers, so that a bin on the limit is the same on every platform.

    Example:
        >>> violation_mask((4, 4), (2, 2))[2]
        tensor([ True, False, False, False])
    """
    k, l = centred_indices(size)  # noqa: E741
    height, width = size
    # Beyond the limit on one axis is beyond it altogether: clamping there keeps the squares within 64 bits.
    beyond = height * width + 1
    a = (2 * stride[0] * k * width).abs().clamp(max=beyond) ** 2
    b = (2 * stride[1] * l * height).abs().clamp(max=beyond) ** 2
    limit = (height * width) ** 2
    if cutoff == "radial":
        return a + b > limit
    if cutoff == "separable":
        return (a > limit) | (b > limit)
    raise SpectralError(f"compute_avr: cutoff must be 'radial' or 'separable', got {cutoff!r}")


def as_stride(stride: Stride, caller: str) -> tuple[int, int]:
    """Return (s_h, s_w) for an int or a pair.

    Raises:
        SpectralError: if a step is < 1 or no integer.
    """
    expected = f"{caller}: stride must be ≥ 1 on both axes"
    pair = _as_pair(stride, expected)
    if min(pair) < 1:
        raise SpectralError(f"{expected}, got {stride}")
    return pair


def _as_pair(value: Stride, expected: str) -> tuple[int, int]:
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, Integral) for v in pair):
        raise SpectralError(f"{expected}, got {value!r}; give an integer or a pair of integers")
    return int(pair[0]), int(pair[1])


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _low_pass_rows(extent: int, step: int, phase: int, count: int) -> Tensor:
    """Rows φ, φ+s, … of the ideal low-pass |k|/N < 1/(2s) as a (count, extent) matrix, float64."""
    highest = (extent - 1) // (2 * step)  # the largest k with 2·s·k < N
    distance = (phase + step * torch.arange(count))[:, None] - torch.arange(extent)[None]
    k = torch.arange(1, highest + 1)
    # k·distance is reduced modulo N in integers first: the cosine's argument stays small and exact.
    turns = ((k[:, None, None] * distance) % extent).double() / extent
    return (1 + 2 * (2 * torch.pi * turns).cos().sum(0)) / extent


def _ratio(part: Tensor, whole: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    silent = whole <= floor
    ratio = part / torch.where(silent, torch.ones_like(whole), whole)
    return torch.where(silent, torch.zeros_like(ratio), ratio)
