"""From a watched pass: the causes of a network's instability, and what runs in place of which call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from spectral.causes.cause import Cause, Source
from spectral.causes.watching import (
    CONVOLUTIONS,
    MAXIMA,
    MEANS,
    FunctionCall,
    Key,
    LayerCall,
    Watcher,
    watch_calls,
)
from spectral.causes.windows import as_convolution, list_entries, name_parameters, read_windows
from spectral.errors import SpectralError
from spectral.network.inputs import Example
from spectral.sites import Site

Handler = Literal["window", "transposed", "pad", "index", "adaptive", "pointwise", "carry"]

INDEXING = "__getitem__"
WRITING = "__setitem__"


@dataclass(frozen=True)
class Planned:
    """One function call that something can run in place of.

    Attributes:
        handler: what kind of function it is.
        causes: what can be made ideal of it.
        call: as it ran.
    """

    handler: Handler
    causes: tuple[Cause, ...]
    call: FunctionCall

    def moves_with_its_map(self, sources: Collection[Source]) -> bool:
        """Whether it is equivariant to shifts by whole samples, once some sources are ideal.

        A border isn't unless it is ideal, nor is a function of each place that is given other numbers at
        each of them.
        """
        if any(cause.source == "border" and "border" not in sources for cause in self.causes):
            return False
        if self.handler != "pointwise":
            return True
        given = list(zip(self.call.before, self.call.entering, strict=True))
        places = {axis - len(size) for size, own in given for axis in (own or {}).values()}
        return all(own or all(size[a] == 1 for a in places if a >= -len(size)) for size, own in given)


@dataclass
class Plan:
    """All that isn't equivariant in a network's pass over images of one size.

    Attributes:
        calls: by their keys.
        layers: what can be made ideal of layers of this package, by their paths.
        causes: all, in the order in which they run, with those that can't be made ideal.
        keys: of every function that ran, with the shapes of the tensors that it was given.
        sites: as `find_sites` gives them.
    """

    calls: dict[Key, Planned] = field(default_factory=dict)
    layers: dict[str, tuple[Cause, ...]] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    keys: dict[Key, list[tuple[int, ...]]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)


def make_plan(model: nn.Module, example: Example) -> Plan:
    """Watch one pass of a copy of the model, on no data where it can, and read what isn't equivariant in it.

    Raises:
        SpectralError: if the model can't be watched, its forward fails, or it has no map.
    """
    watcher, sites = watch_calls(model, example)
    if not watcher.calls:
        raise SpectralError(
            f"{type(model).__name__} computes no map of the image, with rows and columns: nothing in it "
            f"depends on shifts of a lattice; pass a model over images"
        )
    return _Planner(watcher, sites).plan()


class _Planner:
    def __init__(self, watcher: Watcher, sites: list[Site]) -> None:
        self._watcher = watcher
        self._sites = {site.key: site for site in sites}
        self._used: set[str] = set()
        self._names: dict[Key, str] = {}

    def plan(self) -> Plan:
        """Read every call."""
        read = [(call, *self._read(call)) for call in self._watcher.calls]
        read = [(call, handler or ("carry" if call.carries else None), own) for call, handler, own in read]
        kept = [(call, handler, causes) for call, handler, causes in read if handler or causes]
        self._names = name_calls([call for call, _, _ in kept], self._watcher.called)
        sites = [site for site in self._sites.values() if site.op != "global_pool"]
        plan = Plan(keys=self._watcher.keys, sites=sites)
        for call, handler, causes in kept:
            named = [cause if cause.name else replace(cause, name=self._names[call.key]) for cause in causes]
            plan.causes += named
            if handler:
                able = tuple(cause for cause in named if cause.reason is None)
                plan.calls[call.key] = Planned(handler, able, call)
        for path, name, reason in self._watcher.strays:
            plan.causes.append(Cause("nonlinearity", f"{path}:{name}", name, reason))
        for layer in self._watcher.layers:
            causes = self._read_layer(layer)
            plan.causes += causes
            able = tuple(cause for cause in causes if cause.reason is None)
            plan.layers[layer.path] = (*plan.layers.get(layer.path, ()), *able)
        for site in sites:
            if site.name not in self._used:
                plan.causes.append(_give_up(site))
        plan.causes = list(dict.fromkeys(plan.causes))
        return plan

    def _read(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        """Say what kind of function a call is, and its causes, as yet without names."""
        name = call.name
        if call.entering[0] is not None and call.entering[0]:
            if name in (*CONVOLUTIONS, *MAXIMA, *MEANS):
                return self._read_window(call)
            if name == "pad":
                return self._read_pad(call)
            if name == INDEXING and not call.findings:
                return self._read_index(call)
            if name.startswith("adaptive_") and call.leaving[0]:
                return self._read_adaptive(call)
            if name == WRITING and not call.findings and not call.finer and _writes_into_part(call):
                return None, [Cause("position", "", name, "it writes into single rows or columns")]
            if name.startswith("conv_transpose") and not call.finer:
                return self._read_transposed(call)
        if name == WRITING and not call.finer and _is_put_into_larger(call):
            return None, [Cause("border", "", name, "it is put into a larger map")]
        if call.finer:
            reason = "the lattice gets finer here: what it makes above the old Nyquist frequency stays"
            return None, [Cause("position", "", name, reason)]
        return self._read_pointwise(call)

    def _read_window(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        name = call.name
        a = name_parameters(name[:-2].rstrip("_"), call.args, call.kwargs)
        windows = read_windows(name, a)
        rank = len(windows)
        before, after = call.before[0][-rank:], call.sizes[0][-rank:]
        if any(n == 1 < m for n, m in zip(after, before, strict=True)):
            if name in MEANS and all(n == 1 for n in after):
                return None, []
            return None, [Cause("position", "", name, "its window is the whole map")]
        causes = self._list_decimations(call)
        if a.get("return_indices"):
            return None, [Cause("nonlinearity", "", name, "the positions of its maxima are asked for")]
        if name in MAXIMA and any(w.size > 1 for w in windows):
            causes.append(Cause("nonlinearity", "", name))
        around = [
            call.wrapped.get(axis, 0) for axis in range(len(call.before[0]) - rank, len(call.before[0]))
        ]
        axes = zip(windows, before, after, around, strict=True)
        if any(w.reach != p or w.padding or m - p != w.stride * n for w, m, n, p in axes):
            causes.append(Cause("border", "", name))
        return "window", causes

    def _read_transposed(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        """Read a transposed convolution that keeps the lattice."""
        own = as_convolution(call.name, call.args, call.kwargs)
        if own is None:
            return None, [Cause("border", "", call.name, "it crops its map, or adds samples at its end")]
        func, args = own
        key = (*call.key[:2], func.__name__, *call.key[3:])
        handler, causes = self._read_window(replace(call, key=key, func=func, args=args, kwargs={}))
        return handler and "transposed", [replace(cause, op=call.name) for cause in causes]

    def _read_pad(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        a = name_parameters("pad", call.args, call.kwargs)
        ends = list(a["pad"])
        rank = len(call.before[0])
        padded = {rank - 1 - i // 2 for i, n in enumerate(ends) if n}
        if not padded & set((call.entering[0] or {}).values()):
            return None, []
        if call.opened:
            reason = f"{call.opened} follows, which takes what was padded for a part of the map"
            return None, [Cause("border", "", "pad", reason)]
        if a.get("mode") == "circular":
            return "pad", []
        return "pad", [Cause("border", "", "pad")]

    def _read_index(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        axes, leaving = call.entering[0] or {}, call.leaving[0] or {}
        causes = []
        for key in call.sites:
            site = self._sites.get(key)
            if site is not None and site.name not in self._used and site.op == "slice":
                self._used.add(site.name)
                causes.append(Cause("decimation", site.name, site.op))
        changed = [
            kind for kind, axis in axes.items()
            if kind in leaving and call.sizes[0][leaving[kind]] != call.before[0][axis]
        ]  # fmt: skip
        if set(axes) != set(leaving) and not causes:
            return None, [Cause("position", "", "index", "it picks single rows or columns")]
        if not changed:
            return None, []
        if call.padded or not causes or not _is_even(call, changed):
            causes.append(Cause("border", "", "slice"))
        return "index", causes

    def _read_adaptive(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        axes, leaving = call.entering[0] or {}, call.leaving[0] or {}
        pairs = [(call.before[0][axes[k]], call.sizes[0][leaving[k]]) for k in axes if k in leaving]
        if all(n == m for m, n in pairs) and len(pairs) == len(axes):
            return None, []
        reason = None
        if len(pairs) < len(axes) or any(m % n for m, n in pairs):
            reason = "its windows are unequal"
        causes = self._list_decimations(call, reason)
        if reason is None:
            if "max" in call.name:
                causes.append(Cause("nonlinearity", "", call.name))
            causes.append(Cause("border", "", call.name))
        return (None if reason else "adaptive"), causes

    def _list_decimations(self, call: FunctionCall, reason: str | None = None) -> list[Cause]:
        """Return the sites where a call decimates, each at the first call that does."""
        causes = []
        for key in call.sites:
            site = self._sites.get(key)
            if site is not None and site.name not in self._used:
                self._used.add(site.name)
                causes.append(Cause("decimation", site.name, site.op, reason))
        return causes

    def _read_layer(self, layer: LayerCall) -> list[Cause]:
        """Read a layer of this package: a low-pass lets nothing fold, and a lattice may not be periodic."""
        site = self._sites.get(layer.site)
        if site is None:
            return []
        self._used.add(site.name)
        if site.reason is not None:
            return [_give_up(site)]
        if (
            layer.is_closed
        ):  # a phase that follows the map is equivariant, and a low-pass leaves nothing to fold
            return []
        causes = [Cause("decimation", site.name, site.op)] if layer.kind != "low_pass" else []
        return [*causes, Cause("border", site.name, site.op)]

    def _read_pointwise(self, call: FunctionCall) -> tuple[Handler | None, list[Cause]]:
        reasons = [finding for finding in call.findings if finding.reason is not None]
        causes = [
            Cause("nonlinearity" if f.nonlinear else "position", "", call.name, f.reason) for f in reasons
        ]
        if not call.findings and _is_cut(call):
            reason = "it cuts rows or columns off, and is no slice or pad"
            return None, [Cause("border", "", call.name, reason)]
        if reasons or not any(finding.nonlinear for finding in call.findings):
            if not causes and call.slides and not call.sites:
                causes = [Cause("position", "", call.name, "it reads the map at places of its own")]
            return None, list(dict.fromkeys(causes))
        reason = ""
        if any(axes is None for axes in (*call.entering, *call.leaving)):
            reason = "its rows and columns are no axes of their own (tokens, windows)"
        elif call.name.endswith("_with_indices"):
            reason = "the positions of its maxima are asked for"
        elif call.writes and call.written is None:
            reason = "it writes into what it was given and returns another tensor"
        elif any(key in self._sites and self._sites[key].op != "global_pool" for key in call.sites):
            reason = "it decimates within one function"
            self._used |= {self._sites[key].name for key in call.sites if key in self._sites}
        elif call.slides:
            reason = "windows slide over the map within it"
        cause = Cause("nonlinearity", "", call.name, reason or None)
        return (None if reason else "pointwise"), [cause]


def name_calls(calls: Iterable[FunctionCall], called: Mapping[str, int]) -> dict[Key, str]:
    """Name calls by their modules, with the function where a module has several, and its call.

    Args:
        calls: in the order in which they run.
        called: how often each module runs.
    """
    own: dict[tuple[str, int], list[FunctionCall]] = defaultdict(list)
    for call in calls:
        own[call.key[:2]].append(call)
    names = {}
    for (path, number), group in own.items():
        seen: Counter[str] = Counter()
        for call in group:
            name = path
            if len(group) > 1 or not call.alone:
                function = call.name.strip("_")
                name += f":{function}{seen[function]}"
                seen[function] += 1
            names[call.key] = name + (f"@{number}" if called[path] > 1 else "")
    return names


def _writes_into_part(call: FunctionCall) -> bool:
    """Whether a write leaves out some rows or columns of the tensor."""
    size, axes = call.before[0], set((call.entering[0] or {}).values())
    axis = 0
    for entry in list_entries(call.args[1], len(size)):
        if entry is None:
            continue
        count = entry.ndim if isinstance(entry, Tensor) and not entry.is_floating_point() else 1
        whole = isinstance(entry, slice) and len(range(*entry.indices(size[axis]))) == size[axis]
        if not whole and axes & {*range(axis, axis + count)}:
            return True
        axis += count
    return False


def _is_put_into_larger(call: FunctionCall) -> bool:
    """Whether a map is written into a part of a tensor that is none."""
    if len(call.entering) < 2 or not call.leaving:
        return False  # a number is written
    own, target = call.entering[-1], call.leaving[0]
    if call.entering[0] or not own or not target:
        return False
    return any(call.before[-1][axis] < call.sizes[0][target[k]] for k, axis in own.items() if k in target)


def _is_cut(call: FunctionCall) -> bool:
    """Whether a function that is no site returns a map of fewer samples than it was given."""
    before = {k: n for own, sizes in zip(call.entering, call.before, strict=True)
              for k, n in ((kind, sizes[axis]) for kind, axis in (own or {}).items())}  # fmt: skip
    after = ((kind, sizes[axis]) for own, sizes in zip(call.leaving, call.sizes, strict=True)
             for kind, axis in (own or {}).items())  # fmt: skip
    return not call.sites and any(n < before.get(kind, 0) for kind, n in after)


def _is_even(call: FunctionCall, kinds: list[str]) -> bool:
    """Whether what a slice keeps is a lattice of the whole period."""
    axes, leaving = call.entering[0] or {}, call.leaving[0] or {}
    return all(call.before[0][axes[kind]] % call.sizes[0][leaving[kind]] == 0 for kind in kinds)


def _give_up(site: Site) -> Cause:
    """Say why a site can't be made ideal."""
    if site.lossless:
        return Cause("position", site.name, site.op, "every phase becomes a channel of its own")
    reason = site.reason or f"nothing ideal can run in place of an operator of the kind {site.op}"
    return Cause("decimation", site.name, site.op, reason)
