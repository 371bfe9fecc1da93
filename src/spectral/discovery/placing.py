"""Where an operator that ran stands among the axes of the image: what makes an event of it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from spectral.axes import (
    BATCH,
    CHANNEL,
    IMAGE_AXES,
    LOST,
    MIXED,
    AxisTracker,
    Factor,
    Labels,
    all_factors,
    find_layout,
    find_origin,
    find_spacing,
    loses_places,
    unfold_windows,
)
from spectral.discovery.events import (
    Event,
    count_channels,
    find_image_axes,
    find_size,
    find_spread,
    find_steps,
)
from spectral.operators import Geometry
from spectral.tracing.recorder import Operation

SCATTERED = "its rows and columns are not two axes of one tensor"
IMAGES_APART = "its images don't lie along one axis"
UNEVEN = (
    "the samples of its windows were weighted, mixed or normalised by their places in them before, so that "
    "no other window has them; write it as a convolution with a stride"
)
COMPLEX = "its map is complex, and the metrics are those of real maps"


def place_map(operation: Operation, axes: AxisTracker) -> Event | None:
    """Place an operator that slides over the last axes; None if these are no places of the image."""
    decimation, source = operation.decimation, operation.source
    geometry, rank = decimation.geometry, len(decimation.geometry.stride)
    labels = axes.labels(source)
    known = axes.comes_from_image(source)
    strided = [labels[a] for a in range(-rank, 0) if -a <= source.ndim and geometry.stride[a] != 1]
    signal = rank == 2 and decimation.input.shape[2] == 1
    if known and signal and all(f.kind == CHANNEL for axis in strided for f in axis):
        return None  # a pool over channels
    if not known and (geometry.kind == "resize" or axes.comes_from_weights(source)):
        return None  # a table of positions or of weights, not the image
    output = decimation.arrange(operation.result)
    spread: tuple[int, int] | None = (1, 1)
    if source.ndim == decimation.input.ndim or (
        rank == 2 and source.ndim == 3 and decimation.input.ndim == 4
    ):
        spread = find_spread(labels)
    event = _make(operation, geometry, decimation.input, output)
    event.spread = spread or (1, 1)
    if spread is None and geometry.reason is None:
        event.geometry = replace(event.geometry, reason=IMAGES_APART)
    if len(source) != len(decimation.input) and any(f.kind == BATCH for f in labels[0]):
        _split_images(event, labels, axes.labels(operation.result))
    return event


def _split_images(event: Event, before: Labels, after: Labels) -> None:
    """See images that were given as channels of a single one, without a batch axis, as images again."""
    layouts = find_layout(before), find_layout(after)
    if layouts[0] is None or layouts[1] is None:
        event.geometry = replace(event.geometry, reason=IMAGES_APART)
        return
    event.layouts, event.spread = (layouts[0], layouts[1]), (1, 1)
    entering = layouts[0].arrange(event.source)
    rank = len(event.geometry.stride)
    event.channels, event.input_size = entering.shape[1], tuple(entering.shape[-rank:])
    event.output_size = tuple(layouts[1].arrange(event.output).shape[-rank:])


def place_slice(operation: Operation, axes: AxisTracker) -> Event | None:
    """Place a slice of rows or columns: where it is among the axes is read from their labels."""
    geometry, source = operation.decimation.geometry, operation.source
    labels = axes.labels(source)
    if not any(f.spatial for axis in geometry.axes for f in labels[axis]):
        return _place_phase(operation, axes)
    image_axes = find_image_axes(labels)
    cut = [labels[axis].only for axis in geometry.axes]
    alone = all(f is not None and f.kind in IMAGE_AXES for f in cut)
    numbers = zip([f for f in cut if f is not None], geometry.stride, geometry.phase, strict=False)
    steps = {f.kind: (s, p) for f, s, p in numbers} if alone else dict.fromkeys(image_axes, (0, 0))
    return _place_lattice(operation, axes, steps, None if alone else SCATTERED)


def _place_phase(operation: Operation, axes: AxisTracker) -> Event | None:
    """Place a slice of windows that are channels, if all of one phase is what it takes."""
    before, after = axes.labels(operation.source), axes.labels(operation.result)
    if not takes_lattice(before, after):
        return None
    phase = replace(operation.decimation.geometry, kind="phase")
    operation = replace(operation, decimation=replace(operation.decimation, geometry=phase))
    return _place_lattice(operation, axes, find_pick(before, after), None, unfold_windows(before))


def takes_lattice(before: Labels, after: Labels) -> bool:
    """Whether of windows that are channels a lattice of the map is left, both of which are maps."""
    if not any(f.folded for f in all_factors(before)):
        return False
    before, after = unfold_windows(before), unfold_windows(after)
    whole = all(step > 0 for step, _ in find_pick(before, after).values())
    apart = None not in (find_layout(before), find_layout(after))
    return whole and apart and loses_places(before, after)


def find_pick(before: Labels, after: Labels) -> dict[str, tuple[int, int]]:
    """Return step and phase of what is left of each axis, in samples of what was there; 0 if no lattice.

    Windows that count as channels are windows.
    """
    before, after = unfold_windows(before), unfold_windows(after)
    old, new = find_spacing(before), find_spacing(after)
    start, end = find_origin(before), find_origin(after)
    steps = {}
    for kind in old:
        step = new.get(kind, 0) / old[kind]
        whole = step > 0 and step == int(step)
        steps[kind] = (int(step), int((end[kind] - start[kind]) / old[kind])) if whole else (0, 0)
    return steps


def place_pick(operation: Operation, axes: AxisTracker) -> Event | None:
    """Place samples that were picked: at equal distances they are a coarser lattice, else they are none."""
    before, after = axes.labels(operation.source), axes.labels(operation.result)
    if any(f.folded for axis in operation.decimation.geometry.axes for f in before[axis]):
        before, after = unfold_windows(before), unfold_windows(after)
    if not loses_places(before, after) or axes.is_joined(operation.result):
        return None
    steps = find_pick(before, after)
    whole = all(s > 0 for s, _ in steps.values()) and not any(f.kind == MIXED for f in all_factors(after))
    # An axis of which nothing is known any more holds samples from places that only the data tell.
    whole = whole and _count_unknown(after) <= _count_unknown(before)
    if not whole:
        steps = dict.fromkeys(find_image_axes(before), (0, 0))
        if operation.decimation.operator.reason is None:
            return None  # of an entry of an axis `Entries` tells
    reason = None if whole else operation.decimation.operator.reason
    return _place_lattice(operation, axes, steps, reason, before)


def place_reduction(operation: Operation, axes: AxisTracker) -> Event | None:
    """Place a reduction over windows that a view has made, or over a whole axis: a global pool."""
    geometry, source = operation.decimation.geometry, operation.source
    labels, left_over = axes.labels(source), axes.labels(operation.result)
    if _are_folded(labels, geometry.axes):  # then the rest of its window is no channel either
        labels, left_over = unfold_windows(labels), unfold_windows(left_over)
    reduced = [f for axis in geometry.axes for f in labels[axis] if f.spatial and f.extent > 1]
    kept = [f for a, axis in enumerate(labels) if a not in geometry.axes for f in axis if f.spatial]
    if not reduced:
        return None
    gone = {f.kind for f in reduced}
    left = [f for f in kept if f.kind in gone and f.extent > 1]
    if not left:
        whole = find_size(reduced, find_image_axes(labels))
        placed = replace(geometry, kind="global_pool", stride=whole, kernel=whole, axes=())
        return make_unplaced(operation, axes, placed)
    if MIXED in gone or any(f.step >= g.step for f in reduced for g in left if f.kind == g.kind):
        return None  # windows are kept apart from their samples, or nothing is known
    image_axes = find_image_axes(labels)
    window = find_size(reduced, image_axes)
    stride = find_steps(reduced, left, image_axes)
    zeros = (0,) * len(image_axes)
    placed = replace(geometry, stride=stride, kernel=window, padding=zeros, phase=zeros, axes=())
    layouts = find_layout(labels), find_layout(left_over)
    if layouts[0] is None or layouts[1] is None:
        reason = "the windows it pools are cut by a view that can't be followed back to rows and columns"
        event = make_unplaced(operation, axes, replace(placed, reason=reason))
        cuts = zip(event.output_size, stride, window, strict=True)
        event.input_size = tuple((n - 1) * s + k for n, s, k in cuts)
        return event
    if any(f.uneven for f in reduced):
        placed = replace(placed, reason=UNEVEN)
    event = _make(operation, placed, layouts[0].arrange(source), layouts[1].arrange(operation.result))
    event.layouts = (layouts[0], layouts[1])
    return event


def make_unplaced(operation: Operation, axes: AxisTracker, geometry: Geometry) -> Event:
    """Describe an operation on what is no batch of maps: sizes are those of its image axes."""
    event = _make(operation, geometry, operation.source, operation.result)
    sizes = measure_places(axes.labels(operation.source), axes.labels(operation.result))
    event.input_size, event.output_size = sizes
    event.channels = count_channels(axes.labels(operation.source))
    return event


def measure_places(before: Labels, after: Labels) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of the maps in a tensor, and in what an operator made of it."""
    image_axes = find_image_axes(before)
    return find_size(all_factors(before), image_axes), find_size(all_factors(after), image_axes)


def _place_lattice(
    operation: Operation,
    axes: AxisTracker,
    steps: dict[str, tuple[int, int]],
    reason: str | None,
    before: Labels | None = None,
) -> Event:
    """Place bare decimation, given stride and phase of each image axis."""
    geometry, source = operation.decimation.geometry, operation.source
    labels, left = before or axes.labels(source), axes.labels(operation.result)
    if before is not None:
        left = unfold_windows(left)
    image_axes = find_image_axes(labels)
    placed = replace(
        geometry, stride=tuple(steps.get(kind, (1, 0))[0] for kind in image_axes),
        kernel=(1,) * len(image_axes), phase=tuple(steps.get(kind, (1, 0))[1] for kind in image_axes),
        axes=(),
    )  # fmt: skip
    layouts = find_layout(labels), find_layout(left)
    kept = {(f.kind, f.step) for f in all_factors(left)}
    if any(f.uneven and (f.kind, f.step) not in kept for f in all_factors(labels)):
        reason = reason or UNEVEN
    if reason is not None or layouts[0] is None or layouts[1] is None:
        mixed = any(f.kind == MIXED for f in all_factors(labels))
        reason = reason or (SCATTERED if mixed else IMAGES_APART)
        return make_unplaced(operation, axes, replace(placed, reason=reason))
    event = _make(operation, placed, layouts[0].arrange(source), layouts[1].arrange(operation.result))
    slices = operation.decimation.operator.acts_on == "slices"
    plain = slices and source.ndim == 4 and layouts[0].whole and layouts[0].order == (0, 1, 2, 3)
    event.layouts = None if plain else (layouts[0], layouts[1])
    return event


def _make(operation: Operation, geometry: Geometry, entering: Tensor, leaving: Tensor) -> Event:
    rank = max(len(geometry.stride), 1)
    if operation.source.is_complex() and geometry.reason is None and geometry.kind != "global_pool":
        geometry = replace(geometry, reason=COMPLEX)
    return Event(
        operation.frame, operation.decimation.operator.family, operation.index, geometry,
        tuple(entering.shape[-rank:]), tuple(leaving.shape[-rank:]),
        entering.shape[-rank - 1] if entering.ndim > rank else 1, operation.source, operation.result,
    )  # fmt: skip


def _count_unknown(labels: Labels) -> int:
    return sum(f.kind == LOST for f in all_factors(labels))


def _are_folded(labels: Labels, reduced: tuple[int, ...]) -> bool:
    """Whether all that is reduced are windows that count as channels: the channels themselves aren't."""
    factors: list[Factor] = [f for a in reduced for f in labels[a] if f.extent > 1 and f.kind != BATCH]
    return any(f.folded for f in factors) and all(f.folded for f in factors)
