"""Runs a model once on tensors without data, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spectral.errors import SpectralError
from spectral.inputs import Inputs
from spectral.network import evaluation_mode

T = TypeVar("T")

# (the modules that run, what they are called with, their weights, the forward pass) → what was seen
Watch = Callable[[nn.Module, Inputs, Sequence[Tensor], Callable[[], Any]], T]


def run_on_standins(model: nn.Module, inputs: Inputs, watch: Watch[T]) -> T:
    """Run the model once, on the meta device if it can, and return what ``watch`` saw.

    Args:
        model: any module.
        inputs: what to call it with.
        watch: sets its hooks on the module it is given and calls the forward pass it is given.

    Raises:
        SpectralError: if its forward fails on the inputs.
    """
    # Two images, so that a batch axis is told from one that has disappeared.
    # Inference mode would show other operators than the forward passes that are measured later.
    with torch.inference_mode(False):
        return _run_anywhere(model, inputs, watch)


def _run_anywhere(model: nn.Module, inputs: Inputs, watch: Watch[T]) -> T:
    # The hooks and modules are the model's own, only the tensors are replaced.
    meta = {name: t.to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    weights = [meta[name] for name, _ in model.named_parameters()]
    try:
        return _run(model, meta, inputs.to("meta", batch=2), weights, watch)
    except SpectralError:
        raise
    except Exception:  # whatever a meta tensor can't do; the real forward decides
        pass
    tensor = next(iter((*model.parameters(), *model.buffers())), inputs.image)
    dtype = tensor.dtype if tensor.is_floating_point() else None
    failure = Exception()
    for batch in (2, None):  # some models take one image at a time
        # a forward may change them
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            moved = inputs.to(tensor.device, dtype, batch)
            return _run(model, buffers, moved, list(model.parameters()), watch)
        except SpectralError:
            raise
        except Exception as error:
            failure = error
    raise SpectralError(_explain(model, inputs, failure)) from failure


def _explain(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "no message")
    what = f"the forward of {type(model).__name__} failed on an input of shape {tuple(inputs.image.shape)}: "
    made_for = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    hint = ""
    if inputs.image.ndim != 4 and not inputs.kwargs:
        hint = "; images come as a batch (B, C, H, W)"
    elif isinstance(error, TypeError) and ("argument" in str(error) or "forward()" in str(error)):
        hint = "; for several inputs pass a tuple of tensors, for named ones a dictionary"
    elif made_for and tuple(made_for) != tuple(inputs.image.shape[1:]):
        hint = f"; it was made for {'×'.join(map(str, made_for[1:]))}"
    return f"{what}{type(error).__name__}: {first}{hint}"


def _run(
    model: nn.Module, state: dict[str, Tensor], inputs: Inputs, weights: Sequence[Tensor], watch: Watch[T]
) -> T:
    forward = partial(functional_call, model, state, inputs.args, inputs.kwargs)
    with _restored(model), torch.no_grad(), evaluation_mode(model):
        return watch(model, inputs, weights, forward)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undo what a forward keeps in plain attributes: a table cached on the meta device would break it.

    Weights too: of a module that has two names, functional_call would leave meta tensors behind.
    """
    before = [
        (table, dict(table))
        for module in model.modules()
        for table in (vars(module), module._parameters, module._buffers)
    ]
    try:
        yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)
