"""A network with the causes of its shift instability made ideal, for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from spectral.arguments.values import as_integer
from spectral.axes import operator_name
from spectral.causes.cause import SOURCES, Cause, Source, Where, check_sources, choose_causes
from spectral.causes.lattices import Sampling, pass_low
from spectral.causes.memo import STEADY, Lattices, Memo
from spectral.causes.planning import Plan, Planned, make_plan
from spectral.causes.rules import may_lose
from spectral.causes.watching import (
    RENORMALISES,
    FunctionMode,
    Key,
    Turns,
    find_padding_mode,
    is_own,
    tensors_of,
)
from spectral.causes.windows import (
    Extensions,
    Task,
    as_convolution,
    index_ideally,
    pad_circularly,
    slide_ideally,
    type_like,
)
from spectral.discovery.record import knows_dense_map
from spectral.errors import SpectralError
from spectral.layers.pool import Pool
from spectral.network import make_inputs
from spectral.network.inputs import Inputs
from spectral.numerics.finer import evaluate_finely
from spectral.sites import check_hookable
from spectral.tracing.tracker import Frame, Scope, Tracker, is_paused, paused

CALLER = "idealize"


class Idealized(Scope):
    """What `idealize` returns: inside its ``with`` block the model computes with ideal operators.

    Attributes:
        model: the network, which itself stays what it is.
        sources: what is made ideal.
        causes: of the latest pass, what has been made ideal.
        left: of the latest pass, what can't be made ideal, each with its ``reason``.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Sequence[Source],
        where: Where,
        factor: int,
        plans: Plans | None = None,
        memo: Memo | None = None,
    ) -> None:
        self.model, self.sources = model, tuple(sources)
        self.causes: list[Cause] = []
        self.left: list[Cause] = []
        self._where, self._factor = where, factor
        self._plans = plans or Plans(model)
        self._memo = memo
        self._modules = dict(model.named_modules())
        self._tracker = Tracker(self._modules, start=self._start, begin=self._begin, close=self._close)
        self._mode = FunctionMode(self.run)
        self._chosen: dict[Key, tuple[Planned, frozenset[Source]]] = {}
        self._names: set[tuple[str, str]] = set()
        self._layers: dict[str, frozenset[Source]] = {}
        self._closed: set[str] = set()  # modules with a border that is periodic
        self._keys: set[Key] = set()
        self._known: set[tuple[str, str]] = set()  # of each key the module and the function
        self._turns, self._extensions = Turns(), Extensions()

    def _enter(self, stack: ExitStack) -> None:
        stack.callback(self._forget)
        stack.enter_context(self._tracker)
        stack.enter_context(self._mode)
        for path, module in self.model.named_modules():
            if knows_dense_map(module):
                for handle in self._hook(path, module):
                    stack.callback(handle.remove)

    def _forget(self) -> None:
        self._extensions = Extensions()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with ideal operators, inside the ``with`` block or not."""
        if any(mode is self._mode for mode in _active_modes()):
            return self.model(*args, **kwargs)
        with self:
            return self.model(*args, **kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function of the model, or what is ideal in its place."""
        frames = self._tracker.frames
        if not frames or is_paused():
            return func(*args, **kwargs)
        frame = frames[-1]
        if getattr(func, RENORMALISES, False) and frame.path in self._closed:
            return args[0]  # no window reaches over a border
        pair = frame.path, str(getattr(func, "__name__", func))
        if pair not in self._names:
            known = pair in self._known or not self._known  # nothing is, while the plan is made
            return self._run(func, args, kwargs) if known else self._meet(frame.path, func, args, kwargs)
        key = self._turns.locate(frame, func)
        chosen = self._chosen.get(key)
        if chosen is None:
            known = key in self._keys
            return self._run(func, args, kwargs) if known else self._meet(frame.path, func, args, kwargs)
        with paused():
            return self._replace(*chosen, func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function as it is."""
        if self._memo is None or getattr(func, "__name__", "") not in STEADY:
            return func(*args, **kwargs)
        return self._memo.recall((func,), args, kwargs, lambda: func(*args, **kwargs))

    def _meet(self, path: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that didn't run when the pass was planned, unless a map's equivariance may be lost.

        Raises:
            SpectralError: if it may: what it does would be taken for ideal.
        """
        if any(is_own(self._modules[prefix]) for prefix in _list_owners(path)):
            return func(*args, **kwargs)
        with _Operators() as seen:
            out = func(*args, **kwargs)
        if seen.lost:
            raise SpectralError(
                f"{CALLER}: {seen.lost} runs in {path or 'the model'} on this input and didn't when the pass "
                f"was planned on one like it, so it can't be made ideal; pass inputs that take one way "
                f"through the network, in one mode"
            )
        return out

    def _replace(
        self, planned: Planned, sources: frozenset[Source], func: Any, args: Any, kwargs: Any
    ) -> Any:
        call = planned.call
        if call.carries and len(self._extensions.known):
            run = partial(self._replace_on_maps, planned, sources, func)
            return self._extensions.carry(call, args, kwargs, run)
        return self._replace_on_maps(planned, sources, func, args, kwargs)

    def _replace_on_maps(
        self, planned: Planned, sources: frozenset[Source], func: Any, args: Any, kwargs: Any
    ) -> Any:
        call = planned.call
        if planned.handler == "carry":
            return self._run(func, args, kwargs)
        if planned.handler == "pointwise":
            if not sources:
                return self._run(func, args, kwargs)
            if self._memo is None or call.writes or call.written is not None:
                return self._evaluate(planned, func, args, kwargs)
            what: tuple[Any, ...] = func, "finely", self._factor, str(call.entering), str(call.leaving)
            alike = _find_lattices(planned, sources)
            return self._memo.recall(
                what, args, kwargs, lambda: self._evaluate(planned, func, args, kwargs), alike
            )
        axes = tuple((call.entering[0] or {}).values())
        rank = len(call.sizes[0]) - 2 if planned.handler == "adaptive" else _rank_of(call.name)
        task = Task(func, sources, axes, call.sizes[0][-rank:] if rank else (), self._factor)
        if planned.handler == "pad":
            ideal = "border" in sources or find_padding_mode(args, kwargs) == "circular"
            return pad_circularly(task, args, kwargs, self._extensions) if ideal else func(*args, **kwargs)
        if planned.handler == "index":
            return index_ideally(task, args, kwargs, self._extensions)
        if planned.handler == "adaptive":
            return _run_adaptive(task, planned, args, kwargs, self._extensions)
        if planned.handler == "transposed":
            written = as_convolution(call.name, args, kwargs)
            if "border" not in sources or written is None:
                return self._run(func, args, kwargs)
            func, args = written
            task, kwargs = replace(task, func=func), {}
        if self._memo is None:
            return slide_ideally(task, args, kwargs, self._extensions)
        pads = self._extensions.find(args[0] if args else kwargs["input"])[1]
        alike = None if pads else _find_lattices(planned, sources)
        return self._memo.recall(
            (func, task, str(pads)), args, kwargs,
            lambda: slide_ideally(task, args, kwargs, self._extensions), alike,
        )  # fmt: skip

    def _evaluate(self, planned: Planned, func: Any, args: Any, kwargs: Any) -> Any:
        """Evaluate a function of each place on a finer lattice."""
        call = planned.call
        entering, leaving = [a or {} for a in call.entering], [a or {} for a in call.leaving]
        made = evaluate_finely(func, args, kwargs, entering, leaving, self._factor)
        if call.written is not None:
            target = tensors_of((args, kwargs))[call.written]
            return target.copy_(made[0])
        return made[0] if len(made) == 1 else type_like(call.returned, made)

    def _hook(self, path: str, layer: Pool) -> Iterator[RemovableHandle]:
        """Let a layer of this package run ideally: it is one operator, whatever functions it consists of."""

        def low_pass(module: Any, args: Any, kwargs: Any) -> Any:
            if "decimation" in self._layers.get(path, ()):
                return (_pass_low_for(layer, args[0]), *args[1:]), kwargs
            return None

        def close(module: Any, args: Any, output: Tensor) -> Tensor | None:
            if "border" not in self._layers.get(path, ()):
                return None
            with paused():
                return _spread(layer, args[0], output)

        yield layer.register_forward_pre_hook(low_pass, with_kwargs=True)
        yield layer.register_forward_hook(close)

    def _start(self) -> None:
        if self._memo is not None:
            self._memo.start()
        self._turns, self._extensions = Turns(), Extensions()

    def _begin(self, frame: Frame) -> None:
        if frame.parent is not None:
            return
        if frame.path:
            raise SpectralError(
                f"{CALLER}: inside it only the whole model may be called, and {frame.path!r} was; pass that "
                f"module to {CALLER}"
            )
        # While the plan is made, its copy runs as it is.
        self._chosen, self._names, self._layers, self._known = {}, set(), {}, set()
        self._follow(self._plans.find(make_inputs(*frame.args, **frame.kwargs)))

    def _close(self, frame: Frame) -> None:
        if frame.parent is None:
            self._extensions = Extensions()

    def _follow(self, plan: Plan) -> None:
        """Choose what of a plan is made ideal."""
        chosen = set(choose_causes(plan.causes, self.sources, self._where, CALLER))
        self.causes = [cause for cause in plan.causes if cause in chosen and cause.reason is None]
        self.left = [cause for cause in plan.causes if cause.reason is not None]
        self._chosen = {
            key: (planned, frozenset(cause.source for cause in planned.causes if cause in chosen))
            for key, planned in plan.calls.items()
        }
        self._names = {(key[0], key[2]) for key in self._chosen}
        self._closed = {key[0] for key, (_, sources) in self._chosen.items() if "border" in sources}
        self._keys, self._known = set(plan.keys), {(key[0], key[2]) for key in plan.keys}
        self._layers = {
            path: frozenset(cause.source for cause in causes if cause in chosen)
            for path, causes in plan.layers.items()
        }


class Plans:
    """Plans of one model's passes, by the shapes of what it is called with."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Any, Plan] = {}

    def find(self, inputs: Inputs) -> Plan:
        """Return the plan for some inputs."""
        key = tuple(
            (tuple(x.shape[1:] if batched else x.shape), x.dtype) for x, batched in inputs.every_tensor()
        )
        if key not in self._known:
            one = inputs.map(lambda x, batched: x[:1].detach() if batched and x.ndim else x.detach())
            self._known[key] = make_plan(self._model, one)
        return self._known[key]


def idealize(
    model: nn.Module,
    sources: Iterable[str] = SOURCES,
    where: Where = None,
    *,
    factor: int = 2,
) -> Idealized:
    """Make the causes of a network's shift instability ideal, one kind of cause or several.

    Three kinds of operators keep a network's answer from staying the same when its image moves:

    - ``"decimation"``: what would fold is removed, by the ideal low-pass L of the aliasing metric, from each
      site's dense map before that is decimated.
    - ``"nonlinearity"``: what acts on each place alone (activations, products of maps, normalisation over
      channels, the maximum of a max pool) makes frequencies that the lattice can't hold. It is evaluated on
      an ideally interpolated lattice, ``factor`` times finer, and ideally low-passed back. Gates that are
      computed from global pools are no maps.
    - ``"border"``: every padding is circular. Where a stride doesn't divide a map's extent, or a window
      without padding makes it smaller, no lattice is periodic as it is: then the samples lie evenly on the
      period.

    Operators are read and replaced as functions while the model runs: as modules, functionals, pads and
    gates alike. The network itself isn't altered, gradients flow, and what can't be made ideal (position
    embeddings, windows, flattened maps, attention) is left as it is and listed.

    The ideal network is another network: it is as unstable as what is left of the causes makes it, and its
    predictions differ.

    Args:
        model: any module that `find_sites` can trace.
        sources: which kinds of causes.
        where: None for everywhere; names or patterns of causes (``"layer1.*"``), one or several; or a
            function of a `Cause`.
        factor: how much finer the lattice of nonlinearities is.

    Returns:
        A context manager, inside which the model computes so; also callable like the model. ``causes`` lists
        what was made ideal in the latest pass, ``left`` what can't be, with the reason.

    Raises:
        SpectralError: for an unknown source or place, a factor below 2, or a model in which functions can't
            be replaced (scripted, compiled, wrapped for parallelism).

    Source:
        H. Michaeli et al., Alias-Free Convnets: Fractional Shift Invariance via Polynomial Activations, CVPR
        2023, for the three conditions; T. Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS
        2021, for the filtered nonlinearity.

    Example:
        >>> import torch, spectral
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> x = torch.rand(2, 3, 16, 16)
        >>> with idealize(net) as ideal:
        ...     stable = spectral.compute_sis(net, x)
        >>> bool((stable < spectral.compute_sis(net, x) / 10).all())
        True
        >>> [(cause.source, cause.name) for cause in ideal.causes]
        [('decimation', '0'), ('border', '0'), ('nonlinearity', '1')]
    """
    check_hookable(model)
    chosen = check_sources(sources, CALLER)
    return Idealized(model, chosen, where, check_factor(factor, CALLER))


def check_factor(factor: int, caller: str) -> int:
    """Return how much finer a lattice is.

    Raises:
        SpectralError: if it is no whole number of 2 or more.
    """
    return as_integer(factor, f"{caller}: factor", least=2)


def find_causes(model: nn.Module, example: Any) -> list[Cause]:
    """List every operator of a network that isn't equivariant to shifts, in the order in which they run.

    One forward pass of a copy, without data where it can.

    Args:
        model: any module that `find_sites` can trace.
        example: as for `find_sites`.

    Raises:
        SpectralError: as for `find_sites`, or if the model computes no map.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> [(cause.source, cause.name) for cause in find_causes(net, 32)]
        [('border', '0'), ('nonlinearity', '1'), ('decimation', '2'), ('nonlinearity', '2'), ('border', '2')]
    """
    return list(make_plan(model, example).causes)


class _Operators(TorchDispatchMode):
    """Notes whether what runs inside may lose shift equivariance."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lost = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        if may_lose(func, args):
            self.lost = self.lost or operator_name(func)
        return func(*args, **(kwargs or {}))


def _list_owners(path: str) -> list[str]:
    """List a module and all that it is in."""
    parts = path.split(".") if path else []
    return ["", *(".".join(parts[:count]) for count in range(1, len(parts) + 1))]


def _active_modes() -> list[TorchFunctionMode]:
    from torch.overrides import _get_current_function_mode_stack

    return list(_get_current_function_mode_stack())


def _rank_of(name: str) -> int:
    return int(name[-2]) if name.endswith("d") and name[-2].isdigit() else 0


def _find_lattices(planned: Planned, sources: frozenset[Source]) -> Lattices | None:
    """Return the image axes of a call that moves with its maps and gives one; None of any other."""
    entering, leaving = planned.call.entering, planned.call.leaving
    if len(leaving) != 1 or not leaving[0] or not planned.moves_with_its_map(sources):
        return None
    return Lattices(entering, leaving[0])


def _run_adaptive(
    task: Task, planned: Planned, args: Sequence[Any], kwargs: Mapping[str, Any], known: Extensions
) -> Any:
    """Run an adaptive pool of equal windows as the pool of these windows."""
    call = planned.call
    rank = _rank_of(call.name)
    sizes = [m // n for m, n in zip(call.before[0][-rank:], call.sizes[0][-rank:], strict=True)]
    func = getattr(F, f"{'max' if 'max' in call.name else 'avg'}_pool{rank}d")
    x = args[0] if args else kwargs["input"]
    own = Task(func, task.sources, task.axes, call.sizes[0][-rank:], task.factor)
    return slide_ideally(own, (x, sizes), {}, known)


def _pass_low_for(layer: Pool, x: Tensor) -> Tensor:
    for axis, step in enumerate(layer.stride, x.ndim - layer.axes):
        x = pass_low(x, axis, step)
    return x


def _spread(layer: Pool, x: Tensor, output: Tensor) -> Tensor:
    """Sample a layer's dense map evenly on its period, where its stride doesn't divide that."""
    dense = layer.dense(x) if layer.kind == "low_pass" else x
    for axis, step in enumerate(layer.stride, x.ndim - layer.axes):
        sampling = Sampling(output.shape[axis], step, 0, spread=True, low_pass=layer.kind == "low_pass")
        dense = sampling.take(dense, axis)
    return dense
