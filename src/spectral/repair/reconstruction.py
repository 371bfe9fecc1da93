"""Weights behind new layers fitted again in closed form: to what the unconverted network computes there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from spectral.arguments.values import as_integer
from spectral.data.structures import list_leaves
from spectral.errors import SpectralError, warn
from spectral.intake import Feed
from spectral.layers.polyphase import PhasePool
from spectral.network import run_forward, undisturbed
from spectral.network.inputs import Inputs
from spectral.repair.heldout import as_share
from spectral.repair.least_squares import Sums, choose_ridge
from spectral.repair.recalibration import (
    LIMIT,
    Moments,
    find_input,
    kept_on_failure,
    load_pair,
    measure_moments,
    move_statistics,
)
from spectral.repair.views import Views, augment_images, seeded_generator
from spectral.surgery import conversion_report
from spectral.tracing.copying import copy_model

CALLER = "reconstruct"
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
VIEWS = Views(zoom=0.75, mix=0)
FOLDS = 4  # parts of the images that a ridge is judged on, each by a fit to the others
LEAST_PLACES = 64  # of each map that enter a fit, where it has as many
_PER_UNKNOWN = 16  # places of all images together, for each unknown of an output channel
_SAME = 1e-5  # a map that differs by less, relative to its spread, is the reference's
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FITTED = (*_CONVOLUTIONS, nn.Linear)


def reconstruct(
    model: nn.Module,
    images: Any,
    *,
    reference: nn.Module | None = None,
    ridge: float | None = None,
    limit: int = LIMIT,
    views: int = 1,
    held_out: float = 0,
    seed: int = 0,
    inplace: bool = False,
    preprocessing: Any = None,
) -> nn.Module:
    """Fit a converted network's weights, layer by layer in closed form, to the maps of the unconverted one.

    A layer behind a stride takes away what the weights after it were trained to use. Each convolution and
    each linear layer that runs after one gets the weights W with which it comes nearest to what it gives in
    the reference, on the same images: the least of mean ‖W x + b − y‖² + ridge · mean(x²) · ‖W − W₀‖², where
    x is what enters it, from weights already fitted, y its output in the reference, W₀ its weights. The
    ridge holds weights where they are that the images don't determine: for each layer that of ``RIDGES`` with
    which fits to three quarters of the images tell the last one best; if none does better there than the
    weights as they are, they stay. Batch norms are moved as `recalibrate` moves them, each before what
    follows it is fitted. Nothing is learnt by steps, no label and no class is used, and where nothing has
    changed nothing changes. Weights are fitted whether they require a gradient or not.

    Of each map a part of the places is used, as many as the unknowns need. Weights stay whose map is what a
    new layer decimates, that are used more than once or by several layers, that something is made of before
    their use (such as standardised ones), or whose maps have other extents than in the reference; and all
    where a layer chooses which phase it keeps (``aps``, ``lps``): its maps are of other places.

    Args:
        model: what `convert` returned, or another network that has changed.
        images: whatever holds some, as for `recalibrate`.
        reference: the network before the change; by default the model with plain decimation instead.
        ridge: how strongly weights are held, relative to the mean variance of what enters them; None for what
            proves best on images left out, layer by layer.
        limit: how many images are used at most, spread evenly over all, in one batch.
        views: in how many forms each image enters the fit, for few images: 1 as it is, each more as a part of
            it, three quarters of its sides or more, enlarged, and mirrored or not. Time and memory rise as
            the number. All views of an image are fitted to, or left out, together.
        held_out: the share of the images that isn't used at all, so that `distill`, which leaves out the same
            by default 0.2, judges on images that nothing was fitted to.
        seed: of the choice of places and of the views.
        inplace: change the model itself instead of a copy.
        preprocessing: as for `measure`.

    Returns:
        The network with its new weights and statistics, its modes as they were.

    Raises:
        SpectralError: if the model isn't a converted one and no reference is given, ``ridge`` isn't positive,
            there are fewer than two images, a map isn't finite, or no layer has a counterpart.

    Source:
        Y. He, X. Zhang, J. Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, for
        the reconstruction of a layer's output by least squares from a network already changed; Y. Li et al.,
        BRECQ, ICLR 2021, for doing so in order on few images without labels.

    Example:
        >>> from spectral.surgery import convert
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 5, 1))
        >>> smooth = convert(net.eval(), "blurpool", example=16)
        >>> x = torch.rand(8, 3, 16, 16)
        >>> fitted = reconstruct(smooth, x)
        >>> bool((fitted(x) - net(x)).square().mean() < (smooth(x) - net(x)).square().mean())
        True
    """
    if ridge is not None and not 0 < ridge < math.inf:
        raise SpectralError(f"{CALLER}: ridge must be > 0, got {ridge}")
    limit = as_integer(limit, f"{CALLER}: limit", least=2)
    views = as_integer(views, f"{CALLER}: views", least=1)
    seed = as_integer(seed, f"{CALLER}: seed")
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing)
    batch, before = load_pair(feed, reference, limit, as_share(held_out, CALLER))
    owners = torch.arange(batch.count).repeat(views)
    batch = _add_views(feed, batch, views, seed)
    work = model if inplace else copy_model(model)
    with torch.no_grad(), undisturbed(before), undisturbed(work), kept_on_failure(work):
        known = _observe(before, batch, seed)
        _fit(work, batch, known, RIDGES if ridge is None else (ridge,), owners)
    return work


def _add_views(feed: Feed, batch: Inputs, views: int, seed: int) -> Inputs:
    """Return a batch with more views of its images behind them, in their order."""
    layout, chance = feed.layout_of(batch), seeded_generator(seed, views)
    others = [augment_images(batch, layout, feed.extents, VIEWS, chance) for _ in range(views - 1)]
    more = iter(list(zip(*(other.every_tensor() for other in others), strict=True)))

    def extend(x: Tensor, batched: bool) -> Tensor:
        found = next(more, ())
        return torch.cat([x, *(y for y, _ in found)]) if batched else x

    return batch.map(extend)


@dataclass
class _Target:
    """What a layer of the reference gave at some places of its maps.

    Attributes:
        shape: of its output, channels left out.
        places: (B, P), on the flattened lattice.
        values: (B, P, C).
        normed: whether a batch norm takes this output, so that its mean is the norm's matter.
    """

    shape: tuple[int, ...]
    places: Tensor
    values: Tensor
    normed: bool = False


@dataclass(frozen=True)
class _Known:
    output: Any
    targets: dict[str, _Target]
    moments: dict[str, Moments]


def _observe(reference: nn.Module, batch: Inputs, seed: int) -> _Known:
    """Run the reference; keep what leaves its layers and enters its norms, of those that run once."""
    targets: dict[str, _Target] = {}
    moments: dict[str, Moments] = {}
    runs: Counter[str] = Counter()
    last: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        runs[path] += 1
        if runs[path] == 1 and isinstance(output, Tensor):
            _require_finite(output, f"what {path!r} gives in the reference")
            maps = _flatten(module, output)
            places = _draw_places(maps, _count_unknowns(module), generator)
            targets[path] = _Target(_extents(module, output), places, _take(maps, places))
            last.update(path=path, output=output)

    def meet(path: str, module: Any, args: Any, kwargs: Any) -> None:
        runs[path] += 1
        x = find_input(args, kwargs)
        moments[path] = measure_moments(x, path, CALLER)
        if last.get("output") is x:
            targets[last["path"]].normed = True

    with ExitStack() as stack:
        for path, module in reference.named_modules():
            if isinstance(module, _FITTED):
                # Before the layer that a conversion hangs there: what it gets is compared.
                handle = module.register_forward_hook(partial(keep, path), prepend=True)
                stack.callback(handle.remove)
            elif isinstance(module, _BatchNorm) and module.running_mean is not None:
                before = module.register_forward_pre_hook(partial(meet, path), with_kwargs=True)
                stack.callback(before.remove)
        output = run_forward(reference, batch, type(reference).__name__)
    return _Known(
        output,
        {path: target for path, target in targets.items() if runs[path] == 1},
        {path: found for path, found in moments.items() if runs[path] == 1},
    )


def _fit(model: nn.Module, batch: Inputs, known: _Known, ridges: Sequence[float], owners: Tensor) -> None:
    """Run the model once; fit each layer and move each norm just before it runs."""
    phased = any(isinstance(module, PhasePool) for module in model.modules())
    if phased:
        warn(
            f"{CALLER}: weights stay and norms alone are moved: a layer that chooses the phase it keeps "
            f"gives maps of other places than the reference's"
        )
    fitted = set() if phased else _find_fitted(model)
    targets = {path: target for path, target in known.targets.items() if path in fitted}
    moments = dict(known.moments)
    found: Counter[_Outcome] = Counter()

    def fit(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        target = targets.pop(path, None)  # a layer that comes again stays
        if target is not None and len(args) + len(kwargs) == 1:
            x = find_input(args, kwargs)
            _require_finite(x, f"what enters {path!r}")
            found[_fit_layer(module, x, target, ridges, owners)] += 1

    def move(path: str, module: Any, args: Any, kwargs: Any) -> None:
        before = moments.pop(path, None)
        if before is not None:
            move_statistics(module, before, measure_moments(find_input(args, kwargs), path, CALLER))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            act = fit if path in targets else move if path in moments else None
            if act is not None and isinstance(module, (*_FITTED, _BatchNorm)):
                handle = module.register_forward_pre_hook(partial(act, path), with_kwargs=True)
                stack.callback(handle.remove)
        output = run_forward(model, batch, type(model).__name__)
    if fitted and not found.total() - found[_Outcome.APART]:
        raise SpectralError(
            f"{CALLER}: none of the {len(fitted)} convolutions and linear layers, such as {min(fitted)!r}, "
            f"runs once and gives maps of the reference's extents; pass the network before the change, and "
            f"give places that share a layer layers of their own"
        )
    if not (phased or found[_Outcome.FITTED] or _are_same(known.output, output)):
        _warn_of_nothing(found[_Outcome.LEFT], len(owners.unique()))


def _warn_of_nothing(left: int, count: int) -> None:
    """Say why no weight has changed, though the network gives other than the reference."""
    if left:
        warn(
            f"{CALLER}: weights stay: no layer whose maps differ from the reference's ({left} were tried) "
            f"comes nearer on images left out by a fit to the others of {count}; give more, or views=4"
        )
    else:
        warn(
            f"{CALLER}: weights stay: no convolution or linear layer that multiplies by weights of its own "
            f"runs behind what has changed; spectral.distill tunes those before it"
        )


def _require_finite(x: Tensor, what: str) -> None:
    if not bool(x.isfinite().all()):
        raise SpectralError(f"{CALLER}: {what} isn't finite on these images")


def _find_fitted(model: nn.Module) -> set[str]:
    """Return the paths of the layers whose weights are theirs alone and make what they give."""
    try:
        converted = {unit.path for unit in conversion_report(model).units}  # a new layer runs in these
    except SpectralError:  # it differs from its reference in another way
        converted = set()
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, _FITTED)
        and path not in converted
        and module._parameters.get("weight") is not None  # it is made of others before each pass
        and uses[id(module.weight)] == 1  # no tied weights
        and not is_parametrized(module)
    }


class _Outcome(Enum):
    """What became of a layer."""

    APART = auto()  # its maps have other extents than in the reference
    SAME = auto()  # its maps are the reference's
    OTHER = auto()  # its maps differ, and it doesn't multiply by its weights alone
    LEFT = auto()  # its maps differ, and no fit brings them nearer
    FITTED = auto()


def _are_same(output: Any, other: Any) -> bool:
    """Whether two outputs hold the same values, but for rounding."""
    pairs = zip(list_leaves(output), list_leaves(other), strict=False)
    return all(
        torch.allclose(a.double(), b.double(), _SAME, _SAME * float(a.double().abs().amax()))
        for a, b in pairs
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel() and a.shape == b.shape
    )


def _fit_layer(module: Any, x: Tensor, target: _Target, ridges: Sequence[float], owners: Tensor) -> _Outcome:
    """Give a layer the weights with which it comes nearest to its target, if it is their plain product.

    Args:
        module: the layer.
        x: what enters it.
        target: what it gave in the reference.
        ridges: to choose from.
        owners: which image each of the batch shows; what shows the same one is never left out in part.

    Returns:
        What became of it.
    """
    own = type(module).forward(module, x)  # without hooks, which are for real passes
    if _extents(module, own) != target.shape:
        return _Outcome.APART
    now = _take(_flatten(module, own), target.places)
    missing = target.values - now
    spread = target.values.double().var((0, 1), unbiased=False).mean()
    if missing.double().square().mean() <= _SAME**2 * spread:
        return _Outcome.SAME
    free = module.bias is not None or target.normed
    rows = owners.repeat_interleave(max(1, len(x) // len(owners)))[: len(x)]  # a batch may be of windows
    folds = [(rows % FOLDS == k).nonzero().flatten() for k in range(min(FOLDS, len(owners.unique())))]
    taps = _find_taps(module, x, math.prod(own.shape[2:]))
    sums: list[Sums] = []
    for fold in folds:
        design = _make_design(module, x[fold], target.places[fold], taps)
        if design is None or (not sums and not _is_product(module, design, now[fold])):
            return _Outcome.OTHER
        sums.append(Sums.of(design, missing[fold].flatten(0, 1), free))
    whole = sum(sums[1:], sums[0])
    ridge = ridges[0] if len(ridges) == 1 else choose_ridge(sums, whole, ridges)
    if ridge is None:
        return _Outcome.LEFT
    change = whole.solve(ridge).transpose(1, 2)  # (G, outputs, unknowns)
    if free:
        change, offset = change[..., :-1], change[..., -1].flatten()
        if module.bias is not None:
            module.bias.add_(offset.to(module.bias))
    module.weight.add_(change.reshape(module.weight.shape).to(module.weight))
    return _Outcome.FITTED


def _is_product(module: Any, design: Tensor, now: Tensor) -> bool:
    """Whether a layer gives its weights times the design, plus its bias."""
    wide = torch.promote_types(now.dtype, torch.float32)
    weight = module.weight.detach().to(wide).reshape(design.shape[1], -1, design.shape[2])
    given = torch.einsum("ngi,goi->ngo", design.to(wide), weight).flatten(1)
    given = given if module.bias is None else given + module.bias
    rounding = torch.finfo(now.dtype).eps ** 2  # of what the layer gave, in a half type
    now = now.flatten(0, 1).to(wide)
    return bool((given - now).square().mean() <= max(1e-6, rounding) * now.square().mean())


def _count_unknowns(module: Any) -> int:
    return int(module.weight[0].numel())


def _extents(module: nn.Module, output: Tensor) -> tuple[int, ...]:
    """The shape of what a layer gave, without its channels."""
    axis = -1 if isinstance(module, nn.Linear) else 1
    return tuple(n for i, n in enumerate(output.shape) if i != axis % output.ndim)


def _flatten(module: nn.Module, maps: Tensor) -> Tensor:
    """Return maps as (B, C, places)."""
    if isinstance(module, nn.Linear):
        return maps.flatten(1, -2).transpose(1, 2) if maps.ndim > 2 else maps.unsqueeze(2)
    return maps.flatten(2)


def _draw_places(maps: Tensor, unknowns: int, generator: torch.Generator) -> Tensor:
    """Choose places of each image's map, as many as the unknowns need, (B, P)."""
    count, _, there = maps.shape
    wanted = max(LEAST_PLACES, -(-_PER_UNKNOWN * unknowns // count))
    if wanted >= there:
        return torch.arange(there, device=maps.device).expand(count, -1)
    drawn = torch.rand(count, there, generator=generator).argsort(1)[:, :wanted]
    return drawn.to(maps.device)


def _take(maps: Tensor, places: Tensor) -> Tensor:
    """Return (B, P, C) of maps (B, C, …) at places (B, P)."""
    return torch.take_along_dim(maps, places[:, None], 2).transpose(1, 2)


def _make_design(module: Any, x: Tensor, places: Tensor, taps: Sequence[Tensor] | None) -> Tensor | None:
    """Return what the weights are multiplied by at each place, (places of all images, groups, unknowns).

    Args:
        module: the layer.
        x: what enters it.
        places: (B, P), of its output.
        taps: as `_find_taps` finds them; None if they aren't known.
    """
    if isinstance(module, nn.Linear):
        return _take(_flatten(module, x), places).flatten(0, 1).unsqueeze(1)
    if taps is None:
        return None
    flat = nn.functional.pad(x.flatten(2), (1, 0))
    design = torch.stack([_take(flat, tap[places]) for tap in taps], -1)  # (B, P, C, taps)
    return design.reshape(places.numel(), module.groups, -1)


def _find_taps(module: Any, x: Tensor, count: int) -> list[Tensor] | None:
    """Return which place of the input each tap of a kernel reads for each place of the output.

    A convolution is asked itself, with kernels that have one tap, on a map of the numbers of its places:
    whichever way it pads is then in it.

    Args:
        module: the layer.
        x: what enters it.
        count: of the places of its output.

    Returns:
        For each tap a vector, counted from 1, and 0 where it reads zeros outside. None for a layer that is no
        convolution, or whose own forward takes no such kernels.
    """
    if isinstance(module, nn.Linear):
        return None
    extents = x.shape[2:]
    numbers = torch.arange(1.0, math.prod(extents) + 1, dtype=torch.float64, device=x.device)
    found: list[Tensor] = []
    with _single_channel(module) as kernel:
        for i in range(kernel.numel()):
            kernel.zero_().flatten()[i] = 1
            try:
                read = type(module).forward(module, numbers.view(1, 1, *extents))
            except (RuntimeError, TypeError, ValueError):  # a class may do with its weights what it likes
                return None
            tap = read.flatten().round().long()
            if len(tap) != count or int(tap.min()) < 0 or int(tap.max()) > len(numbers):
                return None
            found.append(tap)
    return found


@contextmanager
def _single_channel(module: Any) -> Iterator[Tensor]:
    """Make a convolution one of a single channel for a while, and yield its kernel (1, 1, …), in float64."""
    names = ("weight", "bias", "groups", "in_channels", "out_channels")
    kept = {name: getattr(module, name) for name in names}
    kernel = torch.zeros(1, 1, *module.kernel_size, dtype=torch.float64, device=module.weight.device)
    try:
        module.weight = nn.Parameter(kernel, requires_grad=False)
        module.bias, module.groups, module.in_channels, module.out_channels = None, 1, 1, 1
        yield module.weight
    finally:
        for name, value in kept.items():
            setattr(module, name, value)
