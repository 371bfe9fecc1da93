"""What a downsampling site is, and how to find every one in a model."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from spectral.axes import Layout
from spectral.discovery import Beside, Event, record_events, watch_nothing
from spectral.errors import SpectralError
from spectral.network import as_network, check_whole
from spectral.network.inputs import Example
from spectral.operators import LOSSLESS, Geometry, Size, find_plain_operator, operator_of
from spectral.operators.chain import Chain
from spectral.table.display import align, to_html
from spectral.tracing.places import Ending, Place
from spectral.tracing.standin import choose_inputs

Access = Literal["direct", "wrapped", "inner"]
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_STILL_FLOAT = ("FloatFunctional", "FXFloatFunctional")  # of a network that is yet to be quantised
FIRST_FAMILIES = ("operator", "reduction", "view", "layer")


@dataclass(frozen=True)
class Site:
    """One place in one forward pass where spatial resolution drops.

    Attributes:
        name: module path; plus ``:kind#`` where a module holds several such operators (or is the model
            itself), plus ``@call`` where it runs more than once.
        module: path of the owner, the innermost module whose forward runs the operator.
        call: which call of the owner, from 0.
        index: which candidate operator inside that call, from 0; reductions and views are counted apart.
        op: conv, blur_pool, max_pool, avg_pool, slice, resize, unfold, window_max, window_mean (pools over
            windows that a view has cut), low_pass and polyphase (layers of `spectral.layers` that know their
            dense map), space_to_depth, matmul_pool, roi_pool, grid_sample, or global_pool.
        geometry: stride, kernel, padding, … of the operator.
        input_size: (H, W) of what enters the site (of the padded tensor where padding isn't the site's own);
            (T, H, W) of videos, (1, T) of signals.
        output_size: the same of what leaves it.
        channels: channels of what enters.
        measurable: whether there is a dense map.
        reason: why not, else None.
        access: how a hook reaches it; ``direct`` where the module is the operator, ``wrapped`` where the
            module prepares the operator's input and returns its output, ``inner`` otherwise.
        scale: how much smaller than the image its input is, per axis.
        family: operator, reduction, view or layer: what ``index`` counts.
        spread: how many maps of one image stand before and after each image on the batch axis (heads,
            windows).
        layouts: how the operator's input and output are maps, where they aren't (B, C, H, W) already.
        place: where in the model's code it runs, which tells it from others that run only at times.
        chain: the pointwise operators that follow and commute with its decimation: tap ``signal`` is its
            dense map behind them. None where there are none: ``signal`` is then the dense map itself.
        no_chain: why there are none.
        ending: where its output appears, if several operators make it.
    """

    name: str
    module: str
    call: int
    index: int
    op: str
    geometry: Geometry
    input_size: Size
    output_size: Size
    channels: int
    measurable: bool
    reason: str | None
    access: Access
    scale: tuple[float, ...]
    family: str = "operator"
    spread: tuple[int, int] = (1, 1)
    layouts: tuple[Layout, Layout] | None = None
    place: Place = field(default_factory=Place, repr=False, compare=False)
    chain: Chain | None = field(default=None, repr=False, compare=False)
    no_chain: str = field(default="", repr=False, compare=False)
    ending: Ending | None = field(default=None, repr=False, compare=False)

    @property
    def stride(self) -> Size:
        """Decimation factor (s_h, s_w)."""
        return self.geometry.stride

    @property
    def kernel(self) -> Size:
        """Window of the operator (k_h, k_w)."""
        return self.geometry.kernel

    @property
    def operator(self) -> str:
        """Kind of the operator that runs; a blur pool is a convolution. Of several the kind of the first."""
        return self.geometry.joined or operator_of(self.geometry.kind).runs_as or self.geometry.kind

    @property
    def lossless(self) -> bool:
        """Whether every sample is kept, as a channel: nothing is lost, so there is nothing to measure."""
        return self.reason == LOSSLESS

    @property
    def rule(self) -> str | None:
        """What the dense map is, and which sample of it comes first; None if there is none."""
        if not self.measurable:
            return None
        rule = operator_of(self.op).describe(self.geometry)
        return f"{rule}, from sample {self.geometry.phase}" if any(self.geometry.phase) else rule

    @property
    def signal(self) -> str | None:
        """What its tap ``signal`` is, in words; None if there is no dense map."""
        if not self.measurable:
            return None
        return f"behind {', '.join(self.chain.operators)}" if self.chain else f"dense: {self.no_chain}"

    @property
    def key(self) -> tuple[str, int, str, int]:
        """Where it is: (module, call, family, index)."""
        return self.module, self.call, self.family, self.index


class SiteList(list[Site]):
    """A list of sites that shows itself as a table, in a terminal and in a notebook.

    Example:
        >>> find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 9)
        site  op    stride  input  output  dense map
        0     conv  2×2     9×9    4×4     the convolution with stride 1
    """

    def __repr__(self) -> str:
        return "\n".join(align(self._table())) if self else "no sites"

    def _repr_html_(self) -> str:
        return to_html(self._table()) if self else "no sites"

    def _table(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("site", "op", "stride", "input", "output", "dense map")]
        for site in self:
            sizes = ("×".join(map(str, size)) for size in (site.stride, site.input_size, site.output_size))
            rows.append((site.name, site.op, *sizes, site.rule or f"none: {site.reason}"))
        return rows


def find_sites(model: nn.Module, example: Example) -> list[Site]:
    """Find every downsampling site of a model, in the order in which they run.

    One forward pass on the meta device, so neither memory nor time is spent on arithmetic; where a model
    can't run there (control flow on values, real tensors made inside), one image passes on its own device.
    The model is left as it was. Global pools are no lattice; `find_global_pools` lists them.

    Args:
        model: any module; not scripted, compiled, quantised or wrapped for parallelism.
        example: a batch (B, C, H, W), of signals (B, C, T) or of videos (B, C, T, H, W), as tensor or array,
            of floating-point numbers or 8-bit pixels; or the size of an image: N or (H, W), with the channels
            that the model takes, or (C, H, W), or (C, T, H, W). A tuple of tensors is several arguments, a
            list one argument (detectors take lists of images), a dictionary named ones or, where the forward
            takes it so, one argument. Where axes are in another order (NHWC), what slides over them tells.

    Raises:
        SpectralError: if the model can't be traced, or its forward fails on the example.

    Example:
        >>> [site.name for site in find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)), 32)]
        ['0', '1']
    """
    return watch_sites(model, example, watch_nothing)


def watch_sites(model: nn.Module, example: Example, beside: Beside) -> SiteList:
    """Find the sites as `find_sites`, while somebody else watches the same pass as in `watch_reductions`."""
    return SiteList(site for site in watch_reductions(model, example, beside) if site.op != "global_pool")


def find_global_pools(model: nn.Module, example: Example) -> list[Site]:
    """Find where a model pools over a whole axis or map: what is left is no lattice that could alias.

    Arguments and errors as for `find_sites`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1))
        >>> [site.name for site in find_global_pools(net, 32)]
        ['1']
    """
    return SiteList(site for site in find_reductions(model, example) if site.op == "global_pool")


def find_reductions(model: nn.Module, example: Example) -> list[Site]:
    """Find sites and global pools alike, in one forward pass; arguments and errors as for `find_sites`.

    Example:
        >>> [site.op for site in find_reductions(nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), 32)]
        ['max_pool', 'global_pool']
    """
    return watch_reductions(model, example, watch_nothing)


def watch_reductions(model: nn.Module, example: Example, beside: Beside) -> list[Site]:
    """Find sites and global pools while somebody else watches the same pass.

    Args:
        model: any module.
        example: as for `find_sites`.
        beside: makes a context of the copy of the model that runs, in which it runs.

    Raises:
        SpectralError: as for `find_sites`.
    """
    check_hookable(model)
    inputs = choose_inputs(model, example)
    events = record_events(model, inputs, beside)
    return _name_sites([_describe(event) for event in events])


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


def check_hookable(model: object) -> None:
    """Refuse models in which hooks never fire.

    Raises:
        SpectralError: naming the module to pass instead.
    """
    network = as_network(model)
    check_whole(network)
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind == "OptimizedModule":
            raise SpectralError(f"hooks never fire in a compiled model; {_way_out(name, '_orig_mod')}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise SpectralError(
                "hooks never fire in a compiled model; pass copy.deepcopy(model), which isn't"
            )
        if hasattr(getattr(type(module), "forward", None), "_torchdynamo_orig_callable"):
            raise SpectralError(
                f"hooks never fire in the compiled forward of {kind}; take torch.compile off it"
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise SpectralError(f"hooks don't see the replicas of {kind}; {_way_out(name, 'module')}")
        if type(module).__module__.startswith(_QUANTISED) and kind not in _STILL_FLOAT:
            raise SpectralError(
                "a quantised model computes on integers, which have no spectrum; pass the float model it was "
                "made from"
            )
        if isinstance(module, torch.jit.ScriptModule):
            way = (
                f"put the module that {name!r} was scripted from in its place"
                if name
                else ("pass the module it was scripted from")
            )
            raise SpectralError(f"a scripted model runs without hooks; {way}")
    if inspect.isgeneratorfunction(type(network).forward):
        raise SpectralError(
            f"the forward of {type(network).__name__} is a generator, of which nothing runs before somebody "
            f"asks for its items; pass a module whose forward returns list(model(x))"
        )


def _way_out(name: str, attribute: str) -> str:
    return f"put the .{attribute} of {name!r} in its place" if name else f"pass model.{attribute}"


def _describe(event: Event) -> Site:
    frame, geometry = event.frame, event.geometry
    access: Access = "direct" if event.family == "layer" else "inner"
    size, channels = event.input_size, event.channels
    argument = frame.argument
    alone = frame.counts["operator"] == 1 and event.family == "operator" and event.layouts is None
    alone = alone and not geometry.joined
    if (
        alone
        and event.prepared
        and event.returned
        and argument is not None
        and argument.ndim == len(size) + 2
    ):
        if find_plain_operator(frame.module) is not None and event.source is argument:
            access = "direct"
        elif argument.shape[1] == channels:
            access = "wrapped"
            size = tuple(argument.shape[2:])
    reason = geometry.reason or ("a global pool" if geometry.kind == "global_pool" else None)
    if reason is None and len(event.output_size) > 2 and math.prod(event.output_size) == 1:
        reason = "a single sample is left, which is no lattice"
    return Site(
        name=frame.path,
        module=frame.path,
        call=frame.call,
        index=event.index,
        op=geometry.kind,
        geometry=geometry,
        input_size=size,
        output_size=event.output_size,
        channels=channels,
        measurable=reason is None,
        reason=reason,
        access=access,
        scale=_find_scale(event.image_size, size),
        family=event.family,
        spread=event.spread,
        layouts=event.layouts,
        place=event.place,
        chain=event.chain,
        no_chain=event.no_chain,
        ending=event.ending,
    )


def _find_scale(image: Size, size: Size) -> tuple[float, ...]:
    """How much smaller than the image a map is; rows and columns joined to one axis shrink alike."""
    if len(image) == len(size):
        return tuple(n / max(m, 1) for n, m in zip(image, size, strict=True))
    whole = torch.tensor(image).prod().item() / max(torch.tensor(size).prod().item(), 1)
    return (whole ** (1 / max(len(image), 1)),) * 2


def _name_sites(sites: list[Site]) -> list[Site]:
    operators: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    calls: dict[str, int] = defaultdict(int)
    for site in sites:
        entry = (site.family, site.index, site.op)
        if entry not in operators[site.module]:
            operators[site.module].append(entry)
        calls[site.module] = max(calls[site.module], site.call + 1)
    named = []
    for site in sites:
        own = sorted(operators[site.module])
        # What came to be found later doesn't change the names of what was found before.
        others = (
            [entry for entry in own if entry[0] in FIRST_FAMILIES] if site.family in FIRST_FAMILIES else own
        )
        name = site.module
        if len(others) > 1 or not name:
            alike = [(family, index) for family, index, op in own if op == site.op]
            name += f":{site.op}{alike.index((site.family, site.index))}"
        if calls[site.module] > 1:
            name += f"@{site.call}"
        named.append(replace(site, name=name))
    return named
