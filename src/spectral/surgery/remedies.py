"""What `convert` does beside decimations: nonlinearities, borders, and images behind finer lattices.

Activations are evaluated on a finer lattice where the model calls them, as modules or as functions, and
windows meet a periodic, repeated or mirrored map instead of zeros. Nothing gets another name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_map

from spectral.causes import Upsampling
from spectral.causes.planning import Plan, Planned, make_plan
from spectral.causes.upsampling import plan_upsampling
from spectral.causes.watching import KEEPS_LATTICE, FunctionCall, Key, tensors_of
from spectral.errors import SpectralError, suggest
from spectral.layers.filterpool import FilterPool
from spectral.layers.polynomial import evaluate_polynomial, fit_polynomial
from spectral.network.inputs import Example
from spectral.numerics.finer import Axes, evaluate_finely
from spectral.surgery.borders import weigh_border
from spectral.surgery.functionals import Keys, Shapes, run_instead
from spectral.surgery.hooks import WrapInput, add_hook
from spectral.surgery.images import LOW_PASSES, filter_images
from spectral.tracing.tracker import paused


@dataclass(frozen=True)
class Lattice:
    """On which finer lattice activations are evaluated, and how it is reached.

    Attributes:
        factor: how much finer it is.
        taps: of the filters there and back; None for ideal ones.
        degree: of the polynomial that stands in each activation's place; None for the activation itself.
    """

    factor: int = 2
    taps: int | None = None
    degree: int | None = None


# Name for `convert` → lattice. What moves by whole pixels moves by parts of a sample behind strides of s in
# total: a lattice s times finer holds these moves, and nothing is left of them. A polynomial of degree d
# needs one (d + 1) / 2 times finer, whatever the strides and shifts are.
ACTIVATIONS = {
    "alias-free": Lattice(), "alias-free-4": Lattice(factor=4), "alias-free-filtered": Lattice(taps=6),
    "alias-free-polynomial": Lattice(degree=3),
}  # fmt: skip
PARTIAL = "partial"
BORDERS = ("circular", "replicate", "reflect", PARTIAL)

# Functions of one number, and those that are polynomials already.
_ACTIVATIONS = (
    "relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "softplus", "hardswish",
    "hardsigmoid", "hardtanh", "sigmoid", "tanh",
)  # fmt: skip
_PRODUCTS = ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "square")

_PADDING = "zeros_padding"  # attribute of a module whose border was altered: what it had
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Smooth:
    """How one call of an activation is evaluated on a finer lattice.

    Attributes:
        entering: of every tensor that it is given, which axes are image axes.
        leaving: the same of every tensor that it returns.
        writes: whether it writes into what it is given.
        written: which of these tensors it returns then.
        lattice: as in `ACTIVATIONS`.
        polynomial: coefficients of what is evaluated in the function's place, if anything is.
        apart: ranks of the tensors of calls at the same place that stay as they are: tokens, vectors.
    """

    entering: tuple[Axes, ...]
    leaving: tuple[Axes, ...]
    writes: bool
    written: int | None
    lattice: Lattice
    polynomial: tuple[float, ...] = ()
    apart: frozenset[tuple[int, ...]] = frozenset()

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the function."""
        return evaluate_alias_free(self, func, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the function; what it consists of is nobody's business: no site, no cause."""
        if self.apart and _ranks([x.shape for x in tensors_of((args, kwargs))]) in self.apart:
            return func(*args, **kwargs)
        with paused():
            return self._evaluate(func, args, kwargs)

    def _evaluate(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.polynomial:
            func, args, kwargs = self._evaluate_polynomial, [x for x in args if isinstance(x, Tensor)][:1], {}
        made = evaluate_finely(
            func,
            args,
            kwargs,
            self.entering,
            self.leaving,
            self.lattice.factor,
            self.lattice.taps,
        )
        if self.written is not None:
            target = tensors_of((args, kwargs))[self.written]
            return target.copy_(made[0])
        return made[0] if len(made) == 1 else tuple(made)

    def _evaluate_polynomial(self, x: Tensor) -> Tensor:
        return evaluate_polynomial(x, self.polynomial)


def evaluate_alias_free(smooth: Smooth, func: Any, args: Any, kwargs: Any) -> Any:
    """Evaluate an activation on a finer lattice: one function for all that watch or replace functions."""
    tensors = tensors_of((args, kwargs))
    if has_torch_function(tensors):
        return handle_torch_function(evaluate_alias_free, tensors, smooth, func, args, kwargs)
    return smooth.run(func, args, kwargs)


setattr(evaluate_alias_free, KEEPS_LATTICE, True)


@dataclass(frozen=True)
class Remedies:
    """What was asked for beside decimations, and what became of it.

    Attributes:
        activations: a name in `ACTIVATIONS`, None to leave them.
        padding: one of `BORDERS`, None to leave them.
        upsampling: one of `LOW_PASSES`, None to leave what makes lattices finer.
        altered: names of what was altered.
        left: names of what wasn't, with the reason.
    """

    activations: str | None = None
    padding: str | None = None
    upsampling: str | None = None
    altered: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Remedies:
        """Read what `dataclasses.asdict` gave, also after a way through JSON."""
        altered = tuple(content.get("altered", ()))
        left = tuple((str(name), str(reason)) for name, reason in content.get("left", ()))
        asked = {name: content.get(name) for name in ("activations", "padding", "upsampling")}
        return cls(**asked, altered=altered, left=left)

    @property
    def options(self) -> dict[str, str]:
        """Arguments of `convert` that ask for it again."""
        asked = {"activations": self.activations, "padding": self.padding, "upsampling": self.upsampling}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Outlook:
    """What there is to alter in a network: of nonlinearities and borders, and where lattices get finer."""

    plan: Plan | None
    places: tuple[Upsampling, ...]
    keys: Keys


def check_remedies(
    activations: str | None = None, padding: str | None = None, upsampling: str | None = None
) -> None:
    """Refuse names that aren't known.

    Raises:
        SpectralError: offering the nearest.
    """
    choices: tuple[tuple[str, str | None, Collection[str]], ...] = (
        ("activations", activations, ACTIVATIONS), ("padding", padding, BORDERS),
        ("upsampling", upsampling, LOW_PASSES),
    )  # fmt: skip
    for what, value, known in choices:
        if value is not None and value not in known:
            near = suggest(str(value), known) or f"; choose one of {', '.join(known)}"
            raise SpectralError(f"convert: {what} can't be {value!r}{near}")


def look_out(model: nn.Module, remedies: Remedies, example: Example) -> Outlook | None:
    """Look at the network before anything is attached to it; None if nothing is asked for."""
    if not remedies.options:
        return None
    both = remedies.activations or remedies.padding
    places, keys = plan_upsampling(model, example) if remedies.upsampling else ([], {})
    return Outlook(make_plan(model, example) if both else None, tuple(places), keys)


def remedy(model: nn.Module, outlook: Outlook, remedies: Remedies) -> Remedies:
    """Alter activations, borders and what makes lattices finer, and say which."""
    altered: list[str] = []
    left: list[tuple[str, str]] = []
    if outlook.plan is not None:
        altered, left = _remedy_causes(model, outlook.plan, remedies)
    if remedies.upsampling is not None:
        border = "replicate" if remedies.padding in (None, PARTIAL) else remedies.padding
        found = filter_images(model, outlook.places, outlook.keys, remedies.upsampling, border)
        altered += [name for name, reason in found.items() if reason is None]
        left += [(name, reason) for name, reason in found.items() if reason is not None]
    names, reasons = tuple(dict.fromkeys(altered)), tuple(dict.fromkeys(left))
    return replace(remedies, altered=names, left=reasons)


def _remedy_causes(
    model: nn.Module, plan: Plan, remedies: Remedies
) -> tuple[list[str], list[tuple[str, str]]]:
    """Alter activations and borders."""
    modules = dict(model.named_modules())
    altered: list[str] = []
    left: list[tuple[str, str]] = []
    done: set[tuple[str, str]] = set()
    smoothed = _smooth(modules, plan, ACTIVATIONS[remedies.activations]) if remedies.activations else {}
    for planned in plan.calls.values():
        for cause in planned.causes:
            if cause.source == "nonlinearity" and remedies.activations is not None:
                reason = smoothed[planned.call.key]
            elif cause.source == "border" and remedies.padding is not None:
                reason = _wrap(modules, planned, remedies.padding)
            else:
                continue
            done.add((cause.source, cause.name))
            if reason is None:
                altered.append(cause.name)
            else:
                left.append((cause.name, reason))
    asked = {"nonlinearity": remedies.activations, "border": remedies.padding}
    left += [
        (cause.name, cause.reason or "it is part of a layer of its own")
        for cause in plan.causes
        if asked.get(cause.source) and (cause.source, cause.name) not in done
    ]
    if remedies.padding not in (None, PARTIAL):
        for module in model.modules():
            own: Any = module
            if isinstance(module, FilterPool) and own.padding_mode != remedies.padding:
                vars(module).setdefault(_PADDING, module.padding_mode)
                own.padding_mode = remedies.padding
    return altered, left


def put_back_border(module: nn.Module) -> None:
    """Give a module the border back that it had."""
    before = vars(module).pop(_PADDING, None)
    if before is not None:
        setattr(module, "padding" if isinstance(module, _POOLS) else "padding_mode", before)


def _smooth(modules: dict[str, nn.Module], plan: Plan, lattice: Lattice) -> dict[Key, str | None]:
    """Evaluate nonlinearities on a finer lattice from now on; say of each why not, None if it is."""
    found = {
        key: _read_smooth(modules, planned, lattice)
        for key, planned in plan.calls.items()
        if any(cause.source == "nonlinearity" for cause in planned.causes)
    }
    reasons = {key: smooth if isinstance(smooth, str) else None for key, smooth in found.items()}
    chosen = {key: smooth for key, smooth in found.items() if isinstance(smooth, Smooth)}
    return reasons | run_instead(modules, plan.keys, chosen, _join)


def _join(calls: Sequence[tuple[Shapes, Smooth | None]]) -> Smooth | None:
    """Return what does right by calls for maps and by those for tokens and vectors, of other ranks."""
    alike = [(shapes, smooth) for shapes, smooth in calls if smooth is not None]
    if not alike:
        return None
    first, ranks = alike[0][1], {_ranks(shapes) for shapes, _ in alike}
    others = [shapes for shapes, smooth in calls if smooth is None]
    # A vector that is held as a map of one place is the same on a finer lattice.
    unlike = [own for own in others if _ranks(own) in ranks and not _is_one_place(own, first)]
    if unlike or any(smooth != first for _, smooth in alike):
        return None
    return replace(first, apart=frozenset(map(_ranks, others)) - ranks)


def _ranks(shapes: Shapes) -> tuple[int, ...]:
    return tuple(map(len, shapes))


def _is_one_place(shapes: Shapes, smooth: Smooth) -> bool:
    """Whether tensors have one sample only along what would be their image axes."""
    pairs = zip(shapes, smooth.entering, strict=True)
    return all(shape[axis] == 1 for shape, own in pairs for axis in own.values())


def _read_smooth(modules: dict[str, nn.Module], planned: Planned, lattice: Lattice) -> Smooth | str:
    """Read how a call is evaluated on a finer lattice, or why it can't be."""
    if planned.handler != "pointwise":
        return "the maximum of a pool is left: MaxBlurPool is its layer"
    call = planned.call
    if isinstance(modules[call.key[0]], fx.GraphModule):
        return "it is a function of a traced graph, which has no code to run it in"
    coefficients: tuple[float, ...] = ()  # none: the activation itself
    if lattice.degree is not None and call.name not in _PRODUCTS:
        coefficients = _fit_call(call, lattice.degree)
        if not coefficients:
            return (
                f"{call.name} isn't known as a function of one number, so that no polynomial stands in its "
                f"place"
            )
    return Smooth(
        tuple(axes or {} for axes in call.entering), tuple(axes or {} for axes in call.leaving),
        call.writes, call.written, lattice, coefficients,
    )  # fmt: skip


def _fit_call(call: FunctionCall, degree: int) -> tuple[float, ...]:
    """Fit a polynomial to an activation, with the options that it was called with; none if it is no such."""
    if call.name.removesuffix("_") not in _ACTIVATIONS:
        return ()

    def act(x: Tensor) -> Tensor:
        own = x.clone()  # it may be written into
        args, kwargs = tree_map(
            lambda leaf: own if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
        )
        return torch.as_tensor(call.func(*args, **kwargs))

    with torch.no_grad():
        return fit_polynomial(act, degree)


def _wrap(modules: dict[str, nn.Module], planned: Planned, mode: str) -> str | None:
    """Let a module's windows meet another border from now on, or say why not."""
    module: Any = modules[planned.call.key[0]]
    if planned.handler == "transposed":
        return "it is a transposed convolution, which knows no border but zeros"
    if mode == PARTIAL:
        if planned.handler != "window":
            return "it is padded by a function"
        return weigh_border(module, planned.call.name, planned.call.key[3])
    if type(module) in _CONVOLUTIONS and planned.handler == "window":
        if module.padding_mode == "zeros" and _is_padded(module.padding):
            setattr(module, _PADDING, module.padding_mode)
            module.padding_mode = mode
        return None if module.padding_mode == mode else "it has no padding"
    if isinstance(module, _POOLS):
        if _is_padded(module.padding):
            pads = _each(module.padding, int(type(module).__name__[-2]))
            setattr(module, _PADDING, module.padding)
            module.padding = 0
            add_hook(module, WrapInput(pads, mode))
        return None if _PADDING in vars(module) else "it has no padding"
    return "it is padded by a function"


def _is_padded(padding: Any) -> bool:
    return padding != "valid" and padding != 0 and (isinstance(padding, str) or any(_each(padding, 1)))


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)
