"""Which sites are replaced, where each layer goes, and why the others stay."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.operators import find_plain_operator, list_replaceable_kinds, operator_of
from spectral.sites import Site
from spectral.surgery.observation import Call, Observer
from spectral.surgery.rewiring import Signature, Unit, signature_of

PLACEMENTS = ("auto", "behind")
PATCH_STRIDE = 4
RUNS_CHILDREN = "its module runs all of its children, and can't have a layer among them"
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
    seen: Observer,
    sites: Sequence[Site],
    where: Where,
    placement: str,
    taken: Iterable[str],
) -> Choice:
    """Decide for each site of a network whether and how it is replaced.

    Args:
        model: the network, none of whose layers is attached.
        seen: the forward pass in which the sites were found.
        sites: all of them.
        where: as for `convert`.
        placement: as for `convert`.
        taken: names of sites that are replaced already.

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
    calls = {(call.path, call.number): call for call in seen.calls}
    modules = dict(model.named_modules())
    ranks = _rank(sites)
    units = {}
    for group in _group_calls(sites):
        if all(site.name in taken for site in group):
            continue
        wanted = [site for site in group if site.name not in reasons]
        if 0 < len(wanted) < len(group):
            others = ", ".join(repr(site.name) for site in group if site not in wanted)
            for site in wanted:
                reasons[site.name] = f"its module runs several times: choose {others} as well"
        elif wanted:
            unit = _make_unit(modules, group, calls, seen, ranks, placement)
            if isinstance(unit, str):
                reasons |= {site.name: unit for site in group}
            else:
                units[unit] = _find_channels(unit, group, seen, calls, ranks)
    return Choice(units, reasons)


def _match(where: Where, sites: Sequence[Site], taken: set[str]) -> set[str]:
    if where is None:
        return {site.name for site in sites}
    if callable(where):
        chosen = {site.name for site in sites if where(site)}
        if not chosen:
            raise SpectralError(f"convert: where chooses none of the {len(sites)} sites; see find_sites")
    elif isinstance(where, str) and where in list_replaceable_kinds():
        chosen = {site.name for site in sites if site.op == where}
        if not chosen:
            there = ", ".join(sorted({site.op for site in sites})) or "none"
            raise SpectralError(f"convert: no site is of the kind {where!r}; the kinds here: {there}")
    else:
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


def _find_obstacle(site: Site, by_name: bool) -> str | None:
    """Say why a site can't be replaced, or shouldn't unless it is named; None if it can."""
    if not site.measurable:
        return site.reason
    if len(site.stride) != 2:
        return "the layers are for images, not for videos"
    if obstacle := operator_of(site.op).find_obstacle(site.geometry):
        return obstacle
    if site.layouts is not None:
        return "what it decimates is no map (B, C, H, W)"
    windows = zip(site.kernel, site.stride, strict=True)
    if site.op == "conv" and not by_name and all(k >= s >= PATCH_STRIDE for k, s in windows):
        times = site.stride[0] * site.stride[1]
        return f"a patch embedding, its dense map costs {times} times as much; name it in where to replace it"
    return None


def _group_calls(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """Yield the sites that one operator of one module makes, in all its calls."""
    groups: dict[tuple[str, str, int], list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.module, site.family, site.index].append(site)
    yield from groups.values()


def _rank(sites: Sequence[Site]) -> dict[str, int]:
    """Number the alike operators inside each call of a module."""
    seen: Counter[tuple[str, int, Signature]] = Counter()
    ranks = {}
    for site in sorted(sites, key=lambda site: site.index):
        kind = site.module, site.call, signature_of(site.geometry)
        ranks[site.name] = seen[kind]
        seen[kind] += 1
    return ranks


def _make_unit(
    modules: Mapping[str, nn.Module],
    group: list[Site],
    calls: Mapping[tuple[str, int], Call],
    seen: Observer,
    ranks: Mapping[str, int],
    placement: str,
) -> Unit | str:
    """Describe how a group of sites is replaced, or say why it can't be."""
    site, module = group[0], modules[group[0].module]
    unit = Unit(tuple(s.name for s in group), site.module, "behind", lattice=(site.input_size, site.stride))
    # Where the module is its operator, the module's stride is replaced; elsewhere the operator as it runs.
    special = any(getattr(module, name, False) for name in ("ceil_mode", "return_indices"))
    plain = find_plain_operator(module) is not None and not special
    if not plain:
        if _runs_children(module):
            return RUNS_CHILDREN
        if len({(signature_of(s.geometry), ranks[s.name]) for s in group}) > 1:
            return "it differs between the calls of its module"
        key, signature = f"{site.op}{site.index}", signature_of(site.geometry)
        unit = replace(unit, key=key, signature=signature, rank=ranks[site.name])
    if placement == "behind" or site.op != "conv":
        return unit
    if len(group) == 1 and (plain or site.access == "wrapped"):
        chain = seen.find_chain(calls[site.module, site.call])
        if chain is not None and not (chain.function is not None and _runs_children(modules[chain.function])):
            return replace(unit, placement="activation", chain=chain.modules, function=chain.function)
    pointwise = set(site.kernel) == {1} and not any(site.geometry.padding)
    return replace(unit, placement="before") if pointwise else unit


def _runs_children(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _find_channels(
    unit: Unit,
    group: Sequence[Site],
    seen: Observer,
    calls: Mapping[tuple[str, int], Call],
    ranks: Mapping[str, int],
) -> list[int]:
    """Find how many channels the maps have that the layer gets, in all calls of its module."""
    if group[0].op == "conv" and unit.placement != "before":
        found = [calls[s.module, s.call].channels[signature_of(s.geometry)][ranks[s.name]] for s in group]
    elif unit.key is None:
        # Also those calls in which a pool is a global one, and no site.
        found = [c.input.shape[-3] for c in seen.calls if c.path == unit.path and c.input is not None]
    else:
        found = []
    return sorted({*(found or (site.channels for site in group))})
