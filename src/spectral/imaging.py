"""Images of the spectrum above the old Nyquist frequency: what up-sampling leaves of them, place by place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.arguments.values import as_integer
from spectral.causes import Upsampling, find_upsampling
from spectral.causes.watching import FILTERS_IMAGES, FunctionMode, Turns
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take
from spectral.network.inputs import Inputs
from spectral.numerics.scaling import find_scale
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.tracing.tracker import Scope, Tracker, is_paused, paused

CALLER = "measure_imaging"
COLUMNS = [
    "model", "image", "cluster", "site", "op", "factor", "metric", "value", "zero_insertion", "identity",
    "reason",
]  # fmt: skip


def compute_imaging_ratio(x: Tensor, factor: Sequence[float | Fraction]) -> Tensor:
    """Power above the old Nyquist frequency over all power, of maps that were made finer.

    The Nyquist bin of the old lattice belongs half to its spectrum and half to the images. Zeros between the
    samples give 1 − 1/∏r whatever the map is; ideal interpolation gives 0.

    Args:
        x: maps behind the up-sampling.
        factor: how many times finer their lattice is, along each spatial axis; at least 1.

    Shape:
        (B, C, …) with as many axes behind C as factors → (B,); NaN where a map is 0.

    Raises:
        SpectralError: if they don't fit each other, or a factor is below 1.

    Source:
        METRICS: imaging ratio.

    Example:
        >>> zeros_between = torch.zeros(1, 1, 8, 8)
        >>> zeros_between[..., ::2, ::2] = torch.rand(1, 1, 4, 4) + 1
        >>> round(float(compute_imaging_ratio(zeros_between, (2, 2))), 6)
        0.75
    """
    if x.ndim != len(factor) + 2 or not factor or min(factor) < 1:
        raise SpectralError(
            f"compute_imaging_ratio: expected maps (B, C, …) with a factor of at least 1 for each axis, got "
            f"shape {tuple(x.shape)} and factors {', '.join(map(str, factor))}"
        )
    axes = tuple(range(2, x.ndim))
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    precise = precise / find_scale(precise, tuple(range(1, x.ndim)))
    power = torch.stack([torch.fft.fftn(one, dim=axes).abs().square().sum(1)[0] for one in precise.split(1)])
    below = torch.ones((), dtype=torch.float64, device=x.device)
    for axis, ratio in enumerate(factor, start=1):
        n = power.shape[axis]
        bins = torch.fft.fftfreq(n, 1 / n, device=x.device, dtype=torch.float64).round().abs()
        limit = float(n / (2 * ratio)) if ratio > 1 else float(n)
        weight = (bins < limit).double() + (bins == limit).double() / 2
        below = below * weight.view([-1 if a == axis else 1 for a in range(1, power.ndim)])
    total = power.flatten(1).sum(1, dtype=torch.float64)
    above = (power * (1 - below)).flatten(1).sum(1)
    return torch.where(total > 0, above / total, torch.nan).to(power.dtype)


@shared
def measure_imaging(
    model: nn.Module,
    images: Any,
    *,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Measure at every place where the lattice gets finer how much of the power is images of the spectrum.

    A decoder's checkerboards are such images: what lies above the Nyquist frequency of the lattice before.
    What a network makes there on purpose (a transposed convolution learns its filter) counts as well.

    Args:
        model: any network; decoders, segmentation heads, autoencoders, generators.
        images: as for `spectral.measure`; of a generator a tensor of what it is called with.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        For each image and place (``site``) a row: model, image, cluster, site, op, factor (as 2x2), metric
        (``imaging_ratio``), value, zero_insertion (what zeros between the samples have, 1 − 1/∏r), identity
        (largest deviation, relative to the map's largest value, from the same place written as zeros between
        the samples and a filter with stride 1, or as samples that stay; NaN where none is known) and the
        reason where there is no value.

    Raises:
        SpectralError: for no images, a network whose lattice nowhere gets finer, or non-finite activations
            (naming the place).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3))
        >>> table = measure_imaging(net, torch.rand(2, 3, 16, 16), progress=False)
        >>> table[["site", "op", "factor"]].drop_duplicates().values.tolist()
        [['1', 'resize', '2x2']]
    """
    batch_size = as_integer(batch_size, f"{CALLER}: batch_size", least=1)
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    places = find_upsampling(model, feed.example)
    if not places:
        raise SpectralError(
            f"{CALLER}: nowhere in {feed.name} does a map's lattice get finer; pass a decoder"
        )
    share = Sharing(feed, batch_size)

    def look(indices: Sequence[int], inputs: Inputs) -> list[dict[str, Any]]:
        found: dict[str, tuple[list[float], float]] = {}
        with _Reader(model, places, lambda place, *call: found.update({place.name: _look(place, *call)})):
            feed.run(inputs)
        ids = [feed.images.ids[i] for i in indices]
        return [row for place in places for row in _write_rows(place, ids, found.get(place.name))]

    parts = share.run(feed.batches, look, f"imaging of {feed.name}", progress)
    table = pd.DataFrame([row for part in parts for row in part])
    table.insert(0, "model", feed.name)
    return insert_clusters(table, feed.images)[COLUMNS]


class _Reader(Scope):
    """Hands what runs at some places to a function, while a model runs."""

    def __init__(self, model: nn.Module, places: Sequence[Upsampling], see: Callable[..., None]) -> None:
        self._places = {place.key: place for place in places}
        self._names = {(place.key[0], place.key[2]) for place in places}
        self._see, self._turns = see, Turns()
        self._latest: tuple[Upsampling, Any, Any, Any] | None = None
        self._tracker = Tracker(dict(model.named_modules()), start=self._start)

    def _enter(self, stack: ExitStack) -> None:
        stack.enter_context(self._tracker)
        stack.enter_context(FunctionMode(self.run))

    def _start(self) -> None:
        self._turns = Turns()

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, and look at what it gives where that is asked for."""
        frames = self._tracker.frames
        if frames and getattr(func, FILTERS_IMAGES, False):
            return self._filter(func, args, kwargs)
        if not frames or is_paused() or (frames[-1].path, getattr(func, "__name__", "")) not in self._names:
            return func(*args, **kwargs)
        place = self._places.get(self._turns.locate(frames[-1], func))
        out = func(*args, **kwargs)
        if place is not None:
            self._latest = place, args, kwargs, out
            with paused():
                self._see(place, args, kwargs, args[0] if out is None else out)
        return out

    def _filter(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Take what a low-pass behind a place gives for what the place gives."""
        out = func(*args, **kwargs)
        if self._latest is not None and args[0] is self._latest[3]:
            with paused():
                self._see(*self._latest[:3], out)
        return out


def _look(place: Upsampling, args: Any, kwargs: Any, out: Any) -> tuple[list[float], float]:
    """Return the ratio of each map, and how far the place is from its identity."""
    y: Tensor = out if isinstance(out, Tensor) else out[0]
    if not y.is_floating_point():
        return [float("nan")] * len(y), float("nan")
    if not torch.isfinite(y).all():
        raise SpectralError(
            f"{CALLER}: {place.name!r} has NaN or infinite values; check the weights and the input"
        )
    last = torch.movedim(y, place.axes, tuple(range(-len(place.axes), 0)))
    maps = last.reshape(len(last), -1, *last.shape[last.ndim - len(place.axes) :])
    identity = _write_identity(place, args, kwargs, y)
    error = float("nan")
    if identity is not None:
        mine, other = identity
        error = float((mine - other).abs().max() / y.abs().max().clamp(min=torch.finfo(y.dtype).tiny))
    return compute_imaging_ratio(maps, place.factor).tolist(), error


def _write_identity(
    place: Upsampling, args: Any, kwargs: Mapping[str, Any], y: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return two tensors that are equal if the place is what it is taken for; None where nothing is known."""
    x = args[0] if args else kwargs.get("input")
    whole = all(ratio.denominator == 1 for ratio in place.factor)
    if not isinstance(x, Tensor) or not whole:
        return None
    steps = [int(ratio) for ratio in place.factor]
    if place.op == "transposed_conv":
        return y, _convolve_zeros(x, steps, args, kwargs)
    if place.op == "pixel_shuffle" and len(set(steps)) == 1:
        return F.pixel_unshuffle(y, steps[0]), x
    if place.op == "resize" and _read_mode(args, kwargs) == "nearest":
        kept: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
        return y[kept], x
    return None


def _convolve_zeros(x: Tensor, steps: Sequence[int], args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """Write a transposed convolution as zeros between the samples and one with stride 1."""
    names = "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
    a: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
    rank = len(steps)
    extra = a.get("output_padding") or 0
    more = tuple(extra) if isinstance(extra, tuple | list) else (extra,) * rank
    sizes = [(n - 1) * s + 1 + m for n, s, m in zip(x.shape[-rank:], steps, more, strict=True)]
    between = x.new_zeros(*x.shape[: x.ndim - rank], *sizes)
    ends = [(n - 1) * s + 1 for n, s in zip(x.shape[-rank:], steps, strict=True)]
    filled: tuple[Any, ...] = (..., *(slice(0, end, s) for end, s in zip(ends, steps, strict=True)))
    between[filled] = x
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    made: Tensor = run(
        between, a["weight"], a.get("bias"), 1, a.get("padding") or 0, 0, a.get("groups") or 1,
        a.get("dilation") or 1,
    )  # fmt: skip
    return made


def _read_mode(args: Any, kwargs: Mapping[str, Any]) -> str:
    bound = inspect.signature(F.interpolate).bind_partial(*args, **kwargs).arguments
    return str(bound.get("mode", "nearest"))


def _write_rows(
    place: Upsampling, ids: Sequence[str], seen: tuple[list[float], float] | None
) -> list[dict[str, Any]]:
    """Write a row for each image; where an image has several maps there, their mean."""
    share = 1.0
    for ratio in place.factor:
        share /= float(ratio)
    reason = place.reason or ("" if seen is not None else "it didn't run on these images")
    values = [float("nan")] * len(ids) if reason or seen is None else seen[0]
    if len(values) % len(ids):
        reason, values = "its maps can't be told apart by image", [float("nan")] * len(ids)
    each = len(values) // len(ids)
    rows = []
    for i, image in enumerate(ids):
        own = pd.Series(values[i * each : (i + 1) * each])
        rows.append({
            "image": image, "site": place.name, "op": place.op, "factor": "x".join(map(str, place.factor)),
            "metric": "imaging_ratio", "value": own.mean(), "zero_insertion": 1 - share,
            "identity": float("nan") if seen is None or reason else seen[1],
            "reason": reason or ("" if own.notna().any() else "its map is 0, or no real numbers"),
        })  # fmt: skip
    return rows
