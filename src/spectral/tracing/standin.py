"""Runs a copy of a model once, on tensors without data where it can: the model itself isn't touched."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from spectral.errors import ForwardError, SpectralError, explain_failure
from spectral.network import Writes, find_first_convolution, list_inputs, put_into_evaluation
from spectral.network.inputs import Example, Inputs
from spectral.processes.interrupts import shielded
from spectral.processes.locks import alone
from spectral.processes.surroundings import kept_surroundings
from spectral.tracing.copying import Copied, TensorMap, clone, copy_structure, make_lazy
from spectral.tracing.reach import kept_reach
from spectral.tracing.tensors import TensorTable

T = TypeVar("T")

# (the modules that run, what they are called with, their weights, the forward pass) → what was seen
Watch = Callable[[nn.Module, Inputs, Sequence[Tensor], Callable[[], Any]], T]

# What code keeps outside its model is put back after a pass: two passes at once would put back each other's.
_ALONE = threading.RLock()
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_NEED_DATA: WeakSet[nn.Module] = WeakSet()
_ORIGINALS: TensorTable[Tensor] = TensorTable()  # tensor of a copy → of the model


def run_on_standins(
    model: nn.Module, inputs: Inputs, watch: Watch[T], batch: int | None = 2, or_real: bool = True
) -> T:
    """Run a copy of the model once, on the meta device if it can, and return what ``watch`` saw.

    The copy's tensors have no data; where a model can't run so (control flow on values, real tensors made
    inside), another copy runs on the model's own device: it shares the weights, which are guarded against
    being written to, and has buffers and all else of its own.

    Args:
        model: any module.
        inputs: what to call it with.
        watch: sets its hooks on the module it is given and calls the forward pass it is given.
        batch: to how many images one image is repeated: two tell a batch axis from one that has disappeared.
        or_real: False where the model is known to run without data: if it fails now, that is why.

    Raises:
        SpectralError: if its forward fails on the inputs, or what it does to an object that can't be copied
            changes what it returns.
    """
    # Inference mode would show other operators than the forward passes that are measured later.
    with shielded(), alone(model), _ALONE, torch.inference_mode(False), torch.no_grad():
        try:
            with _uncollected():
                return _look(model, inputs, _make_stand_in, inputs.to("meta", batch=batch), watch)
        except SpectralError:
            raise
        except Exception as error:  # whatever a meta tensor can't do; the real forward decides
            if not or_real:
                raise SpectralError(_explain(model, inputs, error)) from error
        seen = _look_for_real(model, inputs, watch, batch)
        _NEED_DATA.add(model)
        return seen


def needs_data(model: nn.Module) -> bool:
    """Whether a model couldn't be run without data: which way a pass takes may depend on the values in it."""
    return model in _NEED_DATA


def run_on_copy(model: nn.Module, inputs: Inputs, watch: Watch[T]) -> T:
    """Run a copy of the model on real data, with the weights themselves, and return what ``watch`` saw.

    Args:
        model: any module.
        inputs: what to call it with.
        watch: is given the copy, what it is called with, its weights and the forward pass.

    Raises:
        SpectralError: if ``watch`` fails, or what the forward does to an object that can't be copied changes
            what it returns.
    """
    with shielded(), alone(model), _ALONE, torch.inference_mode(False), torch.no_grad():
        return _look_for_real(model, inputs, watch, None)


def choose_inputs(model: nn.Module, example: Example) -> Inputs:
    """Read an example as the arguments that the model takes; if there is a choice, those that it runs on.

    Raises:
        SpectralError: if it can't be an example.
    """
    likely, *others = list_inputs(model, example)
    for inputs in (likely, *others) if others else ():
        with suppress(SpectralError):
            run_on_standins(model, inputs, lambda *seen: seen[-1]())
            return inputs
    return likely


def _look_for_real(model: nn.Module, inputs: Inputs, watch: Watch[T], several: int | None) -> T:
    failure = Exception()
    for batch in dict.fromkeys((several, None)):  # some models take one image at a time
        for map_tensor in (_share_weights, clone):
            try:
                return _look(model, inputs, map_tensor, _move(inputs, model, batch), watch)
            except _WritesWeights:  # then it needs its own
                continue
            except SpectralError:
                raise
            except Exception as error:
                failure = error
                break
    raise ForwardError(_explain(model, inputs, failure)) from failure


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leave cyclic garbage for later: without data a look makes very many small objects, which all stay.

    To search them for garbage time and again is a sixth of its time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _look(model: nn.Module, inputs: Inputs, map_tensor: TensorMap, moved: Inputs, watch: Watch[T]) -> T:
    def map_and_note(x: Tensor) -> Tensor:
        copy = map_tensor(x)
        if copy is not x:
            _ORIGINALS[copy] = x
        return copy

    copied = copy_structure(model, map_and_note)
    shared = _Shared(model, inputs, copied.shared)
    try:
        seen = _run(copied, moved, watch, guarded=map_tensor is _share_weights)
    except Exception:
        shared.check()
        raise
    shared.check()
    return seen


def _run(copied: Copied, inputs: Inputs, watch: Watch[T], guarded: bool = False) -> T:
    copy: nn.Module = copied.root
    weights = list(copy.parameters())
    recurrent = any(isinstance(module, nn.RNNBase) for module in copy.modules())
    with (
        kept_surroundings(),
        kept_reach(copied.code),
        Writes(weights, _refuse) if guarded else nullcontext(),
        _OneStep() if recurrent else nullcontext(),
    ):
        put_into_evaluation(copy)
        # In a context of its own, so that what a forward keeps in context variables is forgotten.
        alone = contextvars.copy_context()
        return alone.run(watch, copy, inputs, weights, partial(copy, *inputs.args, **inputs.kwargs))


class _OneStep(TorchFunctionMode):
    """Lets a recurrent layer take one step for all of a sequence without data, whose steps give the same.

    torch takes each of them apart in Python there.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function."""
        # A packed sequence has two axes.
        if getattr(func, "__name__", "") in _RECURRENT and args[0].is_meta and args[0].ndim == 3:
            x, *others, batch_first = args
            time = 1 if batch_first else 0
            if x.shape[time] > 1:
                y, *states = func(x.narrow(time, 0, 1), *others, batch_first)
                size = [n if axis == time else -1 for axis, n in enumerate(x.shape)]
                return y.expand(size).clone(), *states
        return func(*args, **(kwargs or {}))


def _move(inputs: Inputs, model: nn.Module, batch: int | None = None) -> Inputs:
    """Bring inputs to where the model is."""
    tensor = next(iter((*model.parameters(), *model.buffers())), inputs.image)
    return inputs.to(tensor.device, tensor.dtype if tensor.is_floating_point() else None, batch)


class _Shared:
    """Objects that a model and its copies share, since they can't be copied: does running a copy change them?

    A copy runs on real data before and after: if it returns the same, bit for bit, so will the model.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, shared: dict[str, Any]) -> None:
        self._model, self._inputs, self._shared = model, inputs, shared
        self._before = self._probe()

    def check(self) -> None:
        """Compare.

        Raises:
            SpectralError: if something was changed.
        """
        if self._before is None:
            return
        after = self._probe()
        if after is not None and _are_equal(self._before, after):
            return
        named = ", ".join(f"{path!r} (a {type(x).__name__})" for path, x in self._shared.items())
        raise SpectralError(
            f"the forward of {type(self._model).__name__} changes {named}, which can't be copied: the model "
            f"no longer returns what it did; pass a model that makes this anew in each forward pass"
        )

    def _probe(self) -> list[Tensor] | None:
        if not self._shared:
            return None
        try:
            copied = copy_structure(self._model, clone)
            output = _run(copied, _move(self._inputs, self._model), lambda *seen: seen[-1]())
        except Exception:  # then it can't be used in this way anyway
            return None
        return [x for x in tree_leaves(output) if isinstance(x, Tensor)]


def _are_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    def equal(x: Tensor, y: Tensor) -> bool:
        if x.is_floating_point() and x.shape == y.shape:
            return torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        return torch.equal(x, y)

    return len(a) == len(b) and all(map(equal, a, b))


def find_original(x: Tensor) -> Tensor | None:
    """Return the tensor of the user's model that one of a copy stands for; None of any other tensor."""
    original: Tensor | None = _ORIGINALS.get(x)
    return original


def _make_stand_in(x: Tensor) -> Tensor:
    """Make a tensor like another, without data."""
    if is_lazy(x):
        return make_lazy(x, "meta")
    strided = x.layout == torch.strided
    empty = (
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if strided else x.to("meta")
    )
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def _share_weights(x: Tensor) -> Tensor:
    return x if isinstance(x, nn.Parameter) and not is_lazy(x) else clone(x)


class _WritesWeights(Exception):  # noqa: N818 - it is caught and never seen
    """A forward is about to write into weights that it shares with the user's model."""


def _refuse(written: list[Tensor]) -> None:
    raise _WritesWeights


def _explain(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    what = f"the forward of {type(model).__name__} failed on an input of shape {tuple(inputs.image.shape)}: "
    made_for = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    hint = ""
    axes = inputs.image.ndim - 2
    if axes != 2 and axes != find_first_convolution(model)[0] and not inputs.kwargs:
        hint = "; images come as a batch (B, C, H, W)"
    elif isinstance(error, TypeError) and ("argument" in str(error) or "forward()" in str(error)):
        hint = "; for several inputs pass a tuple of tensors, for named ones a dictionary"
    elif made_for and tuple(made_for) != tuple(inputs.image.shape[1:]):
        hint = f"; it was made for {'×'.join(map(str, made_for[1:]))}"
    return f"{what}{explain_failure(error)}{hint}"
