"""Which sites are replaced, where each layer goes, and why the others stay."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import fx, nn

from spectral.errors import SpectralError, suggest
from spectral.operators import list_replaceable_kinds, operator_of
from spectral.sites import Site
from spectral.surgery.attachment import Point, Unit
from spectral.surgery.graphs import find_node
from spectral.surgery.hooks import CHILD
from spectral.surgery.observation import STRIDED, Activation, Observation

PLACEMENTS = ("auto", "behind")
PATCH_STRIDE = 4
Where = None | str | Sequence[str] | Callable[[Site], bool]


@dataclass(frozen=True)
class Choice:
    """What `choose_units` decided.

    Attributes:
        units: what is to be replaced, each with the numbers of channels that its layer must take.
        reasons: why each other site stays, by its name.
    """

    units: dict[Unit, list[int]]
    reasons: dict[str, str]


def choose_units(
    model: nn.Module,
    seen: Observation,
    sites: Sequence[Site],
    where: Where,
    placement: str,
    taken: Iterable[str],
    training: Observation | None = None,
) -> Choice:
    """Decide for each site of a network whether and how it is replaced.

    Args:
        model: the network, none of whose layers is attached.
        seen: a forward pass of it.
        sites: all of its sites.
        where: as for `convert`.
        placement: as for `convert`.
        taken: names of sites that are replaced already.
        training: a forward pass in training mode, None if there can't be one.

    Raises:
        SpectralError: if ``where`` matches nothing, or a site that is taken.
    """
    taken = set(taken)
    chosen = _match(where, sites, taken)
    by_name = where is not None and not (isinstance(where, str) and where in list_replaceable_kinds())
    reasons = {}
    for site in sites:
        if site.name not in chosen:
            reasons[site.name] = "not chosen"
        elif reason := _find_obstacle(site, by_name):
            reasons[site.name] = reason
    units = {}
    groups = _group_calls(sites)
    crowded = Counter(group[0].module for group in groups)
    for group in groups:
        if all(site.name in taken for site in group):
            continue
        wanted = [site for site in group if site.name not in reasons]
        if 0 < len(wanted) < len(group):
            others = ", ".join(repr(site.name) for site in group if site not in wanted)
            for site in wanted:
                reasons[site.name] = f"its module runs several times: choose {others} as well"
        elif wanted:
            alone = crowded[group[0].module] == 1
            unit = _make_unit(model, group, (seen, training), placement, alone)
            if isinstance(unit, str):
                reasons |= {site.name: unit for site in group}
            else:
                units[unit] = _find_channels(unit, group, seen)
    return Choice(units, reasons)


def _match(where: Where, sites: Sequence[Site], taken: set[str]) -> set[str]:
    if where is None:
        return {site.name for site in sites}
    if callable(where):
        chosen = {site.name for site in sites if _ask(where, site)}
        if not chosen:
            raise SpectralError(f"convert: where chooses none of the {len(sites)} sites; see find_sites")
    elif isinstance(where, str) and where in list_replaceable_kinds():
        chosen = {site.name for site in sites if site.op == where}
        if not chosen:
            there = ", ".join(sorted({site.op for site in sites})) or "none"
            raise SpectralError(f"convert: no site is of the kind {where!r}; the kinds here: {there}")
    else:
        if not where:
            raise SpectralError("convert: where is empty; name sites, or leave it out for all of them")
        chosen = set()
        for pattern in [where] if isinstance(where, str) else where:
            names = {s.name for s in sites if fnmatchcase(s.name, pattern) or fnmatchcase(s.module, pattern)}
            if not names:
                near = suggest(pattern, [site.name for site in sites]) or "; see find_sites"
                raise SpectralError(f"convert: where={pattern!r} matches no site{near}")
            chosen |= names
    if again := sorted(chosen & taken):
        raise SpectralError(
            f"convert: site {again[0]!r} is replaced already; call revert first, or choose others with where"
        )
    return chosen


def _ask(where: Callable[[Site], bool], site: Site) -> bool:
    try:
        return bool(where(site))
    except Exception as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        raise SpectralError(
            f"convert: where fails on site {site.name!r} ({why}); pass a function of a site that says "
            f"whether to replace it"
        ) from error


def _find_obstacle(site: Site, by_name: bool) -> str | None:
    """Say why a site can't be replaced, or shouldn't unless it is named; None if it can."""
    if not site.measurable:
        return site.reason
    if obstacle := operator_of(site.op).find_obstacle(site.geometry):
        return obstacle
    if site.layouts is not None and (site.op != "slice" or not site.layouts[0].whole):
        return "what it decimates are maps only after a view: tokens, windows or heads"
    windows = zip(site.kernel, site.stride, strict=True)
    if site.op == "conv" and not by_name and all(k >= s >= PATCH_STRIDE for k, s in windows):
        times = math.prod(site.stride)
        return f"a patch embedding, its dense map costs {times} times as much; name it in where to replace it"
    return None


def _group_calls(sites: Sequence[Site]) -> list[list[Site]]:
    """Group the sites that one operator of one module makes, in all its calls."""
    groups: dict[tuple[str, str, int], list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.module, site.family, site.index].append(site)
    return list(groups.values())


def _make_unit(
    model: nn.Module,
    group: list[Site],
    passes: tuple[Observation, Observation | None],
    placement: str,
    alone: bool,
) -> Unit | str:
    """Describe how a group of sites, perhaps alone in its module, is replaced, or say why it can't be."""
    site, module, seen = group[0], model.get_submodule(group[0].module), passes[0]
    unit = Unit(tuple(s.name for s in group), site.module, "behind", lattice=(site.input_size, site.stride))
    # Where the module is its operator, the module's stride is replaced; elsewhere, and where code around the
    # module goes by its stride, as padding does that is made for it, the operator as it runs.
    if _is_strided(module) and alone and site.module not in seen.told:
        found: Unit | str = replace(unit, axes=int(type(module).__name__[-2]))
    else:
        found = _find_function(unit, module, group, seen)
    if isinstance(found, str):
        return found
    unit = found
    if hasattr(module, CHILD):
        return f"its module has something called {CHILD!r} of its own"
    if placement == "behind" or site.op != "conv":
        return unit
    activation = _find_activation(site, *passes) if len(group) == 1 else None
    if activation is not None and not _is_function_of_graph(model, activation):
        call = activation.call
        path = _find_nearest_name(model, call.path, site.module)
        return replace(unit, placement="activation", point=Point(path, call.place[1], activation.wait))
    pointwise = set(site.kernel) == {1} and not any(site.geometry.padding)
    return replace(unit, placement="before") if pointwise else unit


def _is_strided(module: nn.Module) -> bool:
    """Whether a module runs its operator with its own ``stride``, as it would with another."""
    special = any(getattr(module, name, False) for name in ("ceil_mode", "return_indices"))
    return type(module) in STRIDED and not special


def _find_function(unit: Unit, module: nn.Module, group: list[Site], seen: Observation) -> Unit | str:
    """Add the torch function that runs a group's operator, or say why that can't be replaced."""
    found = set()
    for site in group:
        operator = seen.find_operator(site)
        call = operator.function if operator is not None else None
        if call is None or call.function is None:
            return f"the forward of {type(module).__name__} reaches its operator through no function of torch"
        name = call.function.name
        if "with_indices" in name or getattr(module, "return_indices", False):
            return "it also returns where its maxima are, which a layer can't"
        if name.startswith("adaptive"):
            return "its stride depends on the size of the image"
        if call.signature is None:
            return f"it is {name}, which can't be run without its decimation"
        found.add((call.function, call.signature, call.axes))
    if len(found) > 1:
        return "it differs between the calls of its module"
    ((function, signature, axes),) = found
    if isinstance(module, fx.GraphModule):
        if len(group) > 1 or find_node(module, function) is None:
            return "it is no plain function of its traced graph; convert the network before it is traced"
        if unit.point is not None:  # in a graph there is no account of what is owed
            unit = replace(unit, placement="behind", point=None)
    key, order = f"{group[0].op}{group[0].index}", None
    if group[0].layouts is not None:
        order = group[0].layouts[0].order
        axes = len(order) - 2
    return replace(unit, key=key, function=function, signature=signature, order=order, axes=axes)


def _find_activation(site: Site, seen: Observation, training: Observation | None) -> Activation | None:
    """Find what activates a convolution's map, if nothing else uses the map in evaluation or in training."""
    operator = seen.find_operator(site)
    found = None if operator is None else seen.find_activation(operator.output, operator.time)
    if found is None or training is None:
        return found
    trained = training.find_operator(site)
    # An auxiliary head that runs in training only would get the dense map.
    shared = trained is not None and training.is_branching(trained.output, trained.time, found.call)
    return None if shared else found


def _is_function_of_graph(model: nn.Module, activation: Activation) -> bool:
    call = activation.call
    return call.function is not None and isinstance(model.get_submodule(call.path), fx.GraphModule)


def _find_nearest_name(model: nn.Module, path: str, owner: str) -> str:
    """Of the names that a shared module has, return the one closest to a module."""
    module, near = model.get_submodule(path), owner.split(".")
    names: list[str] = [
        name for name, other in model.named_modules(remove_duplicate=False) if other is module
    ]

    def count_shared(name: str) -> int:
        pairs = zip(name.split("."), near, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(near))

    return max(names, key=count_shared)


def _find_channels(unit: Unit, group: Sequence[Site], seen: Observation) -> list[int]:
    """Find how many channels the maps have that the layer gets, in all calls of its module."""
    found: list[int] = []
    if group[0].op == "conv" and unit.placement != "before":
        operators = [seen.find_operator(site) for site in group]
        found = [operator.channels for operator in operators if operator is not None]
    elif unit.function is None:
        # Also those calls in which a pool is a global one, and no site.
        inputs = [c.input for c in seen.calls if c.path == unit.path and c.function is None]
        found = [x.shape[-1 - unit.axes] for x in inputs if x is not None]
    return sorted({*(found or (site.channels for site in group))})
