"""Places where a map's lattice gets finer: what is put between its samples has images of their spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from spectral.causes.planning import WRITING, name_calls
from spectral.causes.watching import FunctionCall, Key, watch_calls
from spectral.network.inputs import Example

_KINDS = {
    "conv_transpose": "transposed_conv", "interpolate": "resize", "upsample": "resize",
    "pixel_shuffle": "pixel_shuffle", "max_unpool": "unpool", "grid_sample": "grid_sample",
    "fold": "fold", "setitem": "write",
}  # fmt: skip


@dataclass(frozen=True)
class Upsampling:
    """One place where the lattice gets finer, as it ran.

    Attributes:
        name: as causes are named: the module's path, with ``:function#`` where it calls several.
        module: its path.
        op: ``transposed_conv``, ``resize``, ``pixel_shuffle``, ``unpool``, ``fold``, ``grid_sample``,
            ``write`` (to every s-th entry); else the function, as ``repeat_interleave`` or ``reshape``.
        factor: of each spatial axis how many times finer its lattice is.
        input_size: samples of these axes before.
        output_size: and after.
        axes: which axes of the tensor these are.
        reason: why its images can't be measured, None if they can.
        key: where the function is called.
    """

    name: str
    module: str
    op: str
    factor: tuple[Fraction, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    axes: tuple[int, ...]
    reason: str | None
    key: Key

    @property
    def measurable(self) -> bool:
        """Whether there is a spectrum of what it had before."""
        return self.reason is None


def find_upsampling(model: nn.Module, example: Example) -> list[Upsampling]:
    """Find every place where a map's lattice gets finer, in the order in which they run.

    Transposed convolutions, interpolation, pixel shuffles, unpooling, samples that are repeated or written
    between others: the counterpart of `find_sites`, by the same pass. A pad or a tiling adds samples at the
    ends and leaves the lattice.

    Args:
        model: any module that `find_sites` can trace; generators too.
        example: as for `find_sites`.

    Raises:
        SpectralError: as for `find_sites`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3))
        >>> [(place.name, place.op, place.output_size) for place in find_upsampling(net, 16)]
        [('1', 'resize', (16, 16))]
    """
    return plan_upsampling(model, example)[0]


def plan_upsampling(
    model: nn.Module, example: Example
) -> tuple[list[Upsampling], dict[Key, list[tuple[int, ...]]]]:
    """Return what `find_upsampling` finds, and every function that ran, as `Plan` has them."""
    watcher, _ = watch_calls(model, example)
    finer = _drop_unfinished([call for call in watcher.calls if call.finer])
    names = name_calls(finer, watcher.called)
    return [_describe(call, names[call.key]) for call in finer], watcher.keys


def _drop_unfinished(calls: Sequence[FunctionCall]) -> list[FunctionCall]:
    """Leave out writes to a tensor to which others follow: the map is whole behind the last."""
    last = {id(call.args[0]): call for call in calls if call.name == WRITING}
    return [call for call in calls if call.name != WRITING or last[id(call.args[0])] is call]


def _describe(call: FunctionCall, name: str) -> Upsampling:
    size = call.sizes[0]
    axes = _list_axes(call)
    factor = tuple(call.finer.get(axis, Fraction(1)) for axis in axes)
    before = tuple(round(size[axis] / ratio) for axis, ratio in zip(axes, factor, strict=True))
    known = call.before[-1 if call.name == WRITING else 0] if call.before else ()
    if len(known) == len(size):
        before = tuple(known[axis] for axis in axes)
    reason = None
    if all(n == 1 for n, ratio in zip(before, factor, strict=True) if ratio > 1):
        reason = "a single sample enters it, which has no spectrum"
    function = call.name.strip("_")
    op = next((kind for start, kind in _KINDS.items() if function.startswith(start)), function)
    return Upsampling(
        name, call.key[0], op, factor, before, tuple(size[a] for a in axes), axes, reason, call.key
    )


def _list_axes(call: FunctionCall) -> tuple[int, ...]:
    """Return the spatial axes of what leaves a call: those that are known, else all behind the channels."""
    leaving = call.leaving[0]
    if leaving and set(call.finer) <= set(leaving.values()):
        return tuple(sorted(leaving.values()))
    rank = len(call.sizes[0])
    return tuple(range(2, rank)) if min(call.finer) >= 2 else tuple(sorted(call.finer))
