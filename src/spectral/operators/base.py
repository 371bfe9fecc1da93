"""What an operator kind is, one call of it, and its dense map: what it would output with stride 1.

Operators are read at the level below autograd, where a convolution is one operator however it was written:
as a module, as a functional, with "same" padding computed at run time, or with weights made on the fly.
Signals are seen as maps of one row; videos have three axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError, suggest

Size = tuple[int, ...]
ALL = slice(None)
LOSSLESS = "lossless: every sample is kept, as a channel"
ActsOn = Literal["maps", "slices", "picks", "entries", "windows", "places"]


@dataclass(frozen=True)
class Band:
    """A run of frequencies that an axis keeps: ``count`` of them from ``first`` on, moved by ``shift``.

    All of them where ``count`` is 0. ``sided`` is the number of samples that are left, if what was kept is
    one half of a real map's spectrum.
    """

    first: int = 0
    count: int = 0
    shift: int = 0
    sided: int = 0


@dataclass(frozen=True, eq=False)
class Mask:
    """By what the frequencies that are kept are multiplied: (1, C or 1, …), of extent 1 where all alike."""

    factors: Tensor

    def __eq__(self, other: object) -> bool:
        """Whether two are the same numbers."""
        return isinstance(other, Mask) and torch.equal(self.factors, other.factors)

    def __hash__(self) -> int:
        """Equal ones have equal sizes."""
        return hash(self.factors.shape)


@dataclass(frozen=True)
class Spectrum:
    """What is kept of a spectrum, its gain, whether the magnitude of the result is taken, and its weights."""

    bands: tuple[Band, ...]
    gain: float
    magnitude: bool = False
    mask: Mask | None = None


@dataclass(frozen=True)
class Geometry:
    """The numbers of a resolution-reducing operator; all that a site needs to know of it without any data.

    ``kind`` is the name of its `Operator`; a site may refine it. Where ``reason`` is set there is no dense
    map. Tuples have one entry per spatial axis, two or three (of a slice: one per sliced axis, and ``axes``
    tells which). Where several operators make one site together ``joined`` is the kind of the first of them;
    ``weights`` are those of a window's samples, where they differ; ``spectrum`` is what a crop keeps of it.
    """

    kind: str
    stride: Size
    kernel: Size = (1, 1)
    padding: Size = (0, 0)
    dilation: Size = (1, 1)
    phase: Size = (0, 0)
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    adaptive: bool = False
    axes: tuple[int, ...] = ()
    joined: str = ""
    weights: tuple[float, ...] = ()
    spectrum: Spectrum | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Decimation:
    """A call that keeps fewer samples than its dense map has, and what it takes to recompute that map."""

    geometry: Geometry
    input: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    layer: Callable[[Tensor], Tensor] | None = None  # dense map of a layer that knows its own
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the dense map depends on

    @property
    def operator(self) -> Operator:
        """The kind of the operator that was called."""
        return operator_of(self.geometry.kind)

    @property
    def channels(self) -> int:
        """Channels of the output (and of the dense map)."""
        return self.operator.count_channels(self)

    @property
    def output_size(self) -> Size:
        """Samples of the output per axis, as the operator's arguments make them."""
        g = self.geometry
        sizes = []
        axes = zip(self.input.shape[2:], g.kernel, g.stride, g.padding, g.dilation, strict=True)
        for extent, kernel, stride, padding, dilation in axes:
            room = extent + 2 * padding - dilation * (kernel - 1) - 1
            n = (-(-room // stride) if g.ceil_mode else room // stride) + 1
            if g.ceil_mode and (n - 1) * stride >= extent + padding:
                n -= 1  # a window that starts in the padding on the right is left out
            sizes.append(n)
        return tuple(sizes)

    def split_channels(self, most: int) -> Iterator[slice]:
        """Yield runs of at most ``most`` output channels (or the smallest that can be computed alone)."""
        channels, unit = self.channels, self.operator.find_unit(self)
        step = max(1, most // unit) * unit
        for start in range(0, channels, step):
            yield slice(start, min(start + step, channels))

    def dense(self, output_size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Compute the dense map, or a part of it, such that dense[φ::s][:n] is the output.

        Args:
            output_size: samples of the output per axis; tells how far ``ceil_mode`` reached.
            images: which part of the batch.
            channels: which output channels, as `split_channels` gives them.
        """
        return self.operator.dense(self, output_size, images, channels)

    def arrange(self, output: Tensor) -> Tensor:
        """Return the operator's output as a batch of maps."""
        return self.operator.arrange(self, output)

    def decimate(self, dense: Tensor, size: Size) -> Tensor:
        """Return the samples of a dense map that the operator keeps."""
        for axis, (p, s, n) in enumerate(
            zip(self.geometry.phase, self.geometry.stride, size, strict=True), 2
        ):
            dense = dense[(ALL,) * axis + (slice(p, p + (n - 1) * s + 1, s),)]
        return dense


@dataclass(frozen=True)
class Arguments:
    """What an operator was called with, by the names of its schema, defaults included."""

    name: str  # namespace::name
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default where the schema has none of that name."""
        return self.values.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @property
    def rank(self) -> int:
        """The number of axes that the name tells: 2 of max_pool2d."""
        return next((rank for rank in (1, 2, 3) if f"{rank}d" in self.name), 2)


class Operator:
    """One kind of resolution-reducing operator: all that this package knows of it, in one place.

    A subclass sets what differs and is registered once; everything else asks it.

    Attributes:
        kind: its name in tables and in `Geometry`.
        names: the torch operators it reads, as ``namespace::name`` or ``namespace::name.overload``.
        family: what a site's ``index`` counts it with. What is a candidate only where a view made windows is
            counted apart, so that the others keep their numbers.
        rule: what its dense map is, in words; empty where there is none.
        acts_on: ``maps`` where it slides over the last axes of a batch (B, C, …). Of the others the labels of
            their axes tell whether they reduce the resolution: ``slices`` of an axis, ``picks`` of some of
            its samples, all ``entries`` of one, reductions over ``windows``, and what takes ``places``
            together in another way.
        picks: whether it takes samples as they are, so that even one of them is no pool of the others.
        reason: why there is no dense map, where there never is one.
        runs_as: the kind of the operator that runs, where this one refines another.
        waits: whether Python writes one call as several operators, which are joined.
        makes_channels: whether it slides over all channels at once and gives others.
        scatters: whether its samples lie at computed places, where they are fewer: they are no map any more.
        obstacle: why no layer can take its place, None where one can.
        modules: modules that are nothing but this operator: a plain hook sees the operator's own tensors.
        functions: torch functions that call it on a batch of maps, and the operator that each calls.
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str] = "operator"
    rule: ClassVar[str] = ""
    acts_on: ClassVar[ActsOn] = "maps"
    picks: ClassVar[bool] = False
    reason: ClassVar[str | None] = None
    runs_as: ClassVar[str | None] = None
    waits: ClassVar[bool] = False
    makes_channels: ClassVar[bool] = False
    scatters: ClassVar[bool] = False
    obstacle: ClassVar[str | None] = "no layer can stand behind an operator of the kind {kind}"
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[tuple[tuple[Callable[..., Any], Any], ...]] = ()

    def read(self, a: Arguments) -> Decimation | None:
        """Read one call; None if it doesn't reduce the resolution, or only the labels of its axes tell."""
        return None

    def slides_over(self, a: Arguments) -> int | None:
        """Return over how many of the last axes it slides whatever its stride; None if over none."""
        return None

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Compute the dense map of some images and channels; ``size`` is the output's."""
        start, stop, _ = channels.indices(self.count_channels(d))
        unit = self.find_unit(d)
        return self.make_dense(d, d.input[images, start // unit : -(-stop // unit)], size)

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Compute the dense map of an input, of some of the images and channels of the call."""
        raise NotImplementedError

    def describe(self, geometry: Geometry) -> str:
        """Say in words what the dense map is."""
        return self.rule

    def find_obstacle(self, geometry: Geometry) -> str | None:
        """Say why no layer can take its place; None if one can."""
        if geometry.joined:
            return "several operators make it, of which none could be replaced: write it as one"
        return self.obstacle and self.obstacle.format(kind=self.kind)

    def count_channels(self, d: Decimation) -> int:
        """Count the channels of the output."""
        return d.input.shape[1]

    def find_unit(self, d: Decimation) -> int:
        """Return how many output channels belong to one input channel, or else can't be computed alone."""
        return 1

    def arrange(self, d: Decimation, output: Tensor) -> Tensor:
        """Return an output as a batch of maps."""
        if output.ndim == d.input.ndim:
            return output
        if d.input.ndim == 5:
            return output[None]
        # Either one image without a batch axis or signals, which have no rows.
        return output.reshape(len(d.input), self.count_channels(d), -1, output.shape[-1])

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Whether what ran is what discovery found there."""
        return (ran.stride, ran.phase) == (found.stride, found.phase)

    def joins(self, first: Geometry, second: Geometry) -> bool:
        """Whether a call on what another of the kind gave belongs to it."""
        return first.kind == second.kind

    def place(self, d: Decimation, found: Geometry) -> Decimation:
        """See a call that ran as the site that was found there."""
        return d


KINDS: dict[str, Operator] = {}  # filled by `register_operator`


def operator_of(kind: str) -> Operator:
    """Return the operator of a kind.

    Raises:
        SpectralError: if none is registered under that name.

    Example:
        >>> operator_of("max_pool").rule
        'the maximum over the window at every sample'
    """
    if kind not in KINDS:
        raise SpectralError(f"there is no operator of the kind {kind!r}{suggest(kind, KINDS)}")
    return KINDS[kind]


def lift(decimation: Decimation) -> Decimation:
    """See a signal as a map of one row."""
    g, weight = decimation.geometry, decimation.weight
    if len(g.stride) > 1:
        return decimation
    ones, zeros = (1,), (0,)
    stride = (ones if g.stride != (0,) else zeros) + g.stride
    geometry = replace(g, stride=stride, kernel=ones + g.kernel, padding=zeros + g.padding[-1:],
                       dilation=ones + g.dilation[-1:], phase=zeros + g.phase)  # fmt: skip
    return replace(
        decimation, geometry=geometry, input=decimation.input.unsqueeze(-2),
        weight=weight.unsqueeze(-2) if weight is not None else None,
    )  # fmt: skip


def as_tuple(value: Any, rank: int) -> Size:
    """Return what torch accepts as one number or several as one per axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return tuple(int(v) for v in (values if len(values) == rank else values[:1] * rank))


def batched(x: Tensor, rank: int) -> Tensor:
    """Return a batch of maps with ``rank`` axes, of one where there is no batch axis."""
    return x if x.ndim == rank + 2 else x[None]


def by(size: Sequence[int]) -> str:
    """Write a size as 2×3."""
    return "×".join(map(str, size))
