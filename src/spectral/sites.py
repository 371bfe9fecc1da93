"""What a downsampling site is, and how to find every one in a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from spectral.axes import AxisTracker, Labels, operator_name
from spectral.decimation import Decimation, Geometry, Pair
from spectral.errors import SpectralError, suggest
from spectral.metrics import evaluation_mode
from spectral.recorder import Frame, Recorder

Access = Literal["direct", "wrapped", "inner"]

# Modules that are nothing but their operator: a plain hook then sees the operator's own tensors.
PLAIN = {nn.Conv2d: "conv", nn.MaxPool2d: "max_pool", nn.AvgPool2d: "avg_pool"}

# What a module may do to its input before its operator and still be one site: pad, crop, copy or cast it.
_PREPARING = {
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "slice", "index_select", "new_empty",
    "empty_like", "copy_", "clone", "_to_copy", "alias", "detach", "view", "unsqueeze", "squeeze",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One place in one forward pass where spatial resolution drops.

    Attributes:
        name: module path; plus ``:kind#`` where a module holds several such operators (or is the model
            itself), plus ``@call`` where it runs more than once.
        module: path of the owner, the innermost module whose forward runs the operator.
        call: which call of the owner, from 0.
        index: which candidate operator inside that call, from 0.
        op: conv, blur_pool, max_pool, avg_pool, slice, resize or space_to_depth.
        geometry: stride, kernel, padding, … of the operator.
        input_size: (H, W) of what enters the site (of the padded tensor where padding isn't the site's own).
        output_size: (H, W) of what leaves it.
        channels: channels of what enters.
        measurable: whether there is a dense map.
        reason: why not, else None.
        access: how a hook reaches it; ``direct`` where the module is the operator, ``wrapped`` where the
            module prepares the operator's input and returns its output, ``inner`` otherwise.
        scale: how much smaller than the image its input is, (rows, columns).
    """

    name: str
    module: str
    call: int
    index: int
    op: str
    geometry: Geometry
    input_size: Pair
    output_size: Pair
    channels: int
    measurable: bool
    reason: str | None
    access: Access
    scale: tuple[float, float]

    @property
    def stride(self) -> Pair:
        """Decimation factor (s_h, s_w)."""
        return self.geometry.stride

    @property
    def kernel(self) -> Pair:
        """Window of the operator (k_h, k_w)."""
        return self.geometry.kernel

    @property
    def operator(self) -> str:
        """Kind of the operator that runs; a blur pool is a convolution."""
        return "conv" if self.geometry.kind == "blur_pool" else self.geometry.kind

    @property
    def key(self) -> tuple[str, int, int]:
        """Where it is: (module, call, index)."""
        return self.module, self.call, self.index


@dataclass
class _Event:
    """What discovery notes of one operator."""

    frame: Frame
    index: int
    decimation: Decimation
    output: Tensor
    maps: tuple[Tensor, Tensor]  # what enters and what leaves, rows and columns last where they are known
    spatial: bool
    prepared: bool
    returned: bool = False


def find_sites(model: nn.Module, example: Tensor | int | Pair | Sequence[int]) -> list[Site]:
    """Find every downsampling site of a model, in the order in which they run.

    One forward pass on the meta device, so neither memory nor time is spent on arithmetic; where a model
    can't run there (control flow on values, real tensors made inside), one image passes on its own device.
    The model is left as it was. Global pools are no lattice and aren't listed.

    Args:
        model: any module that takes one image batch; not scripted, compiled or wrapped for parallelism.
        example: a batch (B, C, H, W), or the size of an RGB image: N or (H, W), or (C, H, W).

    Raises:
        SpectralError: if the model can't be traced, or its forward fails on the example.

    Example:
        >>> [site.name for site in find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)), 32)]
        ['0', '1']
    """
    check_hookable(model)
    image = _as_example(example)
    events = [event for event in _run_discovery(model, image) if event.spatial]
    return _name_sites(_merge_space_to_depth([_describe(event, image) for event in events], events))


def get_stride_layers(model: nn.Module) -> list[str]:
    """Names of all ``nn.Conv2d`` with a stride above 1: the study's finder, which needs no forward pass.

    It sees no pools, functional calls or slices; `find_sites` does.

    Example:
        >>> get_stride_layers(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)))
        ['0']
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1
    ]


def pair_sites(
    models: Mapping[str, Sequence[Site]], reference: str | None = None
) -> dict[tuple[str, str], tuple[int, str]]:
    """Match like sites of several models: those at the same resolution, in the same order of execution.

    Args:
        models: sites per model name.
        reference: whose site names become the labels; the first model by default.

    Returns:
        (model, site name) → (position in depth, label). A site that the reference lacks keeps its own name.

    Raises:
        SpectralError: if the reference isn't one of the models.

    Example:
        >>> a = find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 32)
        >>> pair_sites({"a": a, "b": a})[("b", "0")]
        (0, '0')
    """
    if reference is not None and reference not in models:
        raise SpectralError(f"pair_sites: there is no model {reference!r}{suggest(reference, models)}")
    slots: dict[str, dict[tuple[float, float, int], Site]] = {}
    for model, sites in models.items():
        seen: Counter[tuple[float, float]] = Counter()
        slots[model] = {}
        for site in sites:
            level = (_level(site.scale[0]), _level(site.scale[1]))
            slots[model][(*level, seen[level])] = site
            seen[level] += 1
    keys = sorted({key for sites in slots.values() for key in sites})
    label_order = sorted(models, key=lambda model: model != reference)
    labels = {key: next(slots[m][key].name for m in label_order if key in slots[m]) for key in keys}
    return {
        (model, site.name): (keys.index(key), labels[key])
        for model, sites in slots.items()
        for key, site in sites.items()
    }


def check_hookable(model: object) -> None:
    """Refuse models in which hooks never fire.

    Raises:
        SpectralError: naming the module to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise SpectralError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "OptimizedModule":
            raise SpectralError(f"hooks never fire in a compiled model; {_way_out(name, '_orig_mod')}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise SpectralError(
                "hooks never fire in a compiled model; pass copy.deepcopy(model), which isn't"
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise SpectralError(f"hooks don't see the replicas of {kind}; {_way_out(name, 'module')}")
        if isinstance(module, torch.jit.ScriptModule):
            raise SpectralError("a scripted model runs without hooks; pass the module it was scripted from")


def _way_out(name: str, attribute: str) -> str:
    return f"put the .{attribute} of {name!r} in its place" if name else f"pass model.{attribute}"


def _as_example(example: Tensor | int | Pair | Sequence[int]) -> Tensor:
    if isinstance(example, Tensor):
        if example.ndim != 4 or example.numel() == 0:
            raise SpectralError(
                f"find_sites: expected an image batch (B, C, H, W), got shape {tuple(example.shape)}"
            )
        if not example.is_floating_point():
            raise SpectralError(
                f"find_sites: expected floating-point images, got {example.dtype}; use images.float()"
            )
        return example[:1].detach()
    size = tuple(example) if isinstance(example, Sequence) else (example,)
    shape = (3, size[0], size[0]) if len(size) == 1 else (3, *size) if len(size) == 2 else size
    if len(shape) != 3 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise SpectralError(f"find_sites: expected a batch or a size N, (H, W) or (C, H, W), got {example}")
    return torch.zeros(1, *shape)


def _run_discovery(model: nn.Module, image: Tensor) -> list[_Event]:
    # The hooks and modules are the model's own, only the tensors are replaced.
    meta = {name: t.to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    image_on_meta = image.to("meta")
    weights = {name: meta[name] for name, _ in model.named_parameters()}
    try:
        forward = partial(functional_call, model, meta, (image_on_meta,))
        return _record(model, forward, image_on_meta, set(map(id, weights.values())))
    except Exception:  # whatever a meta tensor can't do; the real forward decides
        pass
    tensor = next(iter((*model.parameters(), *model.buffers())), image)
    image = image.to(tensor.device, tensor.dtype if tensor.is_floating_point() else image.dtype)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # a forward may change them
    forward = partial(functional_call, model, buffers, (image,))
    try:
        return _record(model, forward, image, set(map(id, model.parameters())))
    except SpectralError:
        raise
    except Exception as error:
        raise SpectralError(
            f"the forward of {type(model).__name__} failed on an input of shape {tuple(image.shape)}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error


def _record(
    model: nn.Module, forward: Callable[[], Any], image: Tensor, weight_ids: set[int]
) -> list[_Event]:
    tracker = AxisTracker()
    tracker.mark(image, (None, None, "h", "w"))
    events: list[_Event] = []

    def note(frame: Frame, index: int, decimation: Decimation, output: Tensor) -> None:
        geometry = decimation.geometry
        spatial = geometry.kind not in ("slice", "global_pool")
        maps = (decimation.input, output)
        if geometry.kind == "slice":
            known = tracker.labels(decimation.input)
            spatial = any(known[axis] in ("h", "w") for axis in geometry.axes)
            if known[-2:] != ("h", "w") or len(known) != 4 or min(geometry.axes) < 2:
                geometry, maps = _place_slice(geometry, known, maps)
                decimation = replace(decimation, geometry=geometry)
        weight = decimation.weight
        if weight is not None and id(weight) not in weight_ids:
            depthwise = geometry.groups == decimation.input.shape[1] == weight.shape[0]
            learned = any(True for _ in frame.module.parameters(recurse=False))
            if depthwise and not learned:
                decimation = replace(decimation, geometry=replace(geometry, kind="blur_pool"))
        prepared = frame.steps == (0 if geometry.kind == "slice" else 1)  # one is the operator itself
        events.append(_Event(frame, index, decimation, output, maps, spatial, prepared))

    def observe(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        if tracker.follow(func, args, kwargs, out) and operator_name(func) not in _PREPARING:
            for frame in recorder.frames:
                frame.steps += 1

    recorder = Recorder(note, observe)
    calls: Counter[str] = Counter()
    handles: list[RemovableHandle] = []

    def enter(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        recorder.frames.append(Frame(path, module, calls[path], args))
        calls[path] += 1

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorder.flush()
        frame = recorder.frames.pop()
        for event in reversed(events):
            if event.frame is frame:
                event.returned = event.output is output
                break

    with _restored(model):
        try:
            for path, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(partial(enter, path), prepend=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
            # Inference mode would show other operators than the forward passes that are measured later.
            with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model), recorder:
                forward()
        finally:
            for handle in handles:
                handle.remove()
    return events


def _place_slice(
    geometry: Geometry, labels: Labels, maps: tuple[Tensor, Tensor]
) -> tuple[Geometry, tuple[Tensor, Tensor]]:
    """Describe a slice of a tensor that is no (B, C, H, W): it was read as if its last axes were H and W."""
    geometry = replace(geometry, reason="its rows and columns are not the last two of four axes")
    if labels.count("h") != 1 or labels.count("w") != 1:
        return geometry, maps
    axes = (labels.index("h"), labels.index("w"))
    if axes[1] == len(labels) - 2:
        geometry = replace(geometry, stride=geometry.stride[::-1], phase=geometry.phase[::-1])
    return geometry, (maps[0].movedim(axes, (-2, -1)), maps[1].movedim(axes, (-2, -1)))


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undo what a forward keeps in plain attributes: a table cached on the meta device would break it."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)


def _describe(event: _Event, image: Tensor) -> Site:
    frame, decimation = event.frame, event.decimation
    geometry, (entering, leaving) = decimation.geometry, event.maps
    access: Access = "inner"
    argument = frame.args[0] if len(frame.args) == 1 and isinstance(frame.args[0], Tensor) else None
    if frame.operators == 1 and event.prepared and event.returned and argument is not None:
        if type(frame.module) in PLAIN and entering is argument:
            access = "direct"
        elif argument.ndim == 4 and argument.shape[1] == entering.shape[1]:
            access = "wrapped"
            entering = argument
    size: Pair = (entering.shape[-2], entering.shape[-1])
    return Site(
        name=frame.path,
        module=frame.path,
        call=frame.call,
        index=event.index,
        op=geometry.kind,
        geometry=geometry,
        input_size=size,
        output_size=(leaving.shape[-2], leaving.shape[-1]),
        channels=entering.shape[-3] if entering.ndim > 2 else 1,
        measurable=geometry.reason is None,
        reason=geometry.reason,
        access=access,
        scale=(image.shape[-2] / size[0], image.shape[-1] / size[1]),
    )


def _name_sites(sites: list[Site]) -> list[Site]:
    operators: dict[str, list[tuple[int, str]]] = defaultdict(list)
    calls: dict[str, int] = defaultdict(int)
    for site in sites:
        if (site.index, site.op) not in operators[site.module]:
            operators[site.module].append((site.index, site.op))
        calls[site.module] = max(calls[site.module], site.call + 1)
    named = []
    for site in sites:
        own = sorted(operators[site.module])
        name = site.module
        if len(own) > 1 or not name:
            alike = [index for index, op in own if op == site.op]
            name += f":{site.op}{alike.index(site.index)}"
        if calls[site.module] > 1:
            name += f"@{site.call}"
        named.append(replace(site, name=name))
    return named


def _merge_space_to_depth(sites: list[Site], events: list[_Event]) -> list[Site]:
    """Join slices of one tensor that keep every phase between them: together they lose nothing."""
    sources = {(e.frame.path, e.frame.call, e.index): id(e.decimation.input) for e in events}
    groups: dict[tuple[int, Pair], list[Site]] = defaultdict(list)
    for site in sites:
        if site.op == "slice":
            groups[(sources[site.key], site.stride)].append(site)
    dropped = set()
    merged = {}
    for (_, (s_h, s_w)), group in groups.items():
        if len({site.geometry.phase for site in group}) == s_h * s_w:
            dropped |= {site.key for site in group}
            first = group[0]
            reason = "lossless: every phase is kept as a channel"
            merged[first.key] = replace(first, op="space_to_depth", measurable=False, reason=reason)
    return [merged.get(site.key, site) for site in sites if site.key not in dropped or site.key in merged]


def _level(scale: float) -> float:
    """Halvings so far, to a quarter: odd sizes and valid padding move a scale a little off a power of 2."""
    return round(4 * torch.log2(torch.tensor(scale)).item()) / 4
