"""How long forward passes take, and how much arithmetic they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError
from spectral.network import undisturbed
from spectral.processes.ranks import find_ranks, shared

WARM_UP = 3


@shared
def measure_latency(
    models: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], repeats: int = 30
) -> dict[str, list[float]]:
    """Time forward passes in evaluation mode, without gradients.

    The models take turns within each round, so that whatever else the machine does falls on all of them
    alike; report medians and quartiles, and ratios rather than milliseconds. A few unmeasured rounds come
    first; on an accelerator each pass is waited for.

    Args:
        models: what to time, by name.
        inputs: a preprocessed batch for each.
        repeats: rounds.

    Units:
        Seconds per batch.

    Raises:
        SpectralError: if there is no batch for one, its forward fails on it, or there are no rounds.

    Example:
        >>> times = measure_latency({"a": nn.Identity()}, {"a": torch.zeros(1)}, repeats=5)
        >>> len(times["a"])
        5
    """
    repeats = as_integer(repeats, "measure_latency: repeats", least=1)
    absent = [name for name in models if name not in inputs]
    if absent:
        raise SpectralError(f"measure_latency: there is no batch for {absent[0]!r}; inputs has one for each")
    # By one rank while the others wait: they would slow each other.
    return find_ranks().once(lambda: _take_turns(models, inputs, repeats))


def _take_turns(
    models: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], repeats: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(undisturbed(model))
        modes.enter_context(torch.inference_mode())
        for round_number in range(WARM_UP + repeats):
            for name, model in models.items():
                seconds = _time_once(model, inputs[name])
                if round_number >= WARM_UP:
                    times[name].append(seconds)
    return times


def count_macs(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply–accumulate operations of convolutions, and of products of matrices and vectors, in one pass.

    Args:
        model: the network.
        args: what it is called with: a batch, mostly.
        kwargs: the same, by name.

    Raises:
        SpectralError: if its forward fails on that.

    Example:
        >>> count_macs(nn.Linear(4, 2, bias=False), torch.zeros(1, 4))
        8
    """
    counter = FlopCounterMode(display=False, custom_mapping=_list_formulas())
    with undisturbed(model), torch.no_grad(), _without_fused_attention(), counter:
        _run(model, "count_macs", *args, **kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Have attention run as the products that it consists of: the counter knows no operator that is all."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _count_layer(x: Sequence[int], *others: Any, **_: Any) -> int:
    """Operations of a recurrent layer on (time, batch, features): two matrix products at each step."""
    weights: Sequence[Sequence[int]] = others[:2]
    return _count_layers(x, weights)


def _count_layers(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * sum(math.prod(w) for w in weights if len(w) == 2)


def _count_vectors(x: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of a matrix or vector on a vector."""
    return 2 * math.prod(x)


def _count_added(_: Any, x: Sequence[int], y: Sequence[int], *__: Any, **___: Any) -> int:
    """Operations of matrices on matrices, or a matrix on a vector, that something is added to."""
    return 2 * math.prod(x) * (y[-1] if len(y) > 1 else 1)


def _count_bilinear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * math.prod(weight)


def _count_deformed(_: Any, weight: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _count_time_first(_: Any, weight: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[:2])


def _list_formulas() -> dict[Any, Any]:
    """Formulas of operators that torch's counter has none for.

    A recurrent network is one operator, on a CPU for each layer. The deformable convolution is there once
    torchvision is imported.
    """
    aten = torch.ops.aten
    formulas = {
        aten.mkldnn_rnn_layer: _count_layer, aten._cudnn_rnn: _count_layers,
        aten.mv: _count_vectors, aten.dot: _count_vectors, aten.vdot: _count_vectors,
        aten.addmv: _count_added, aten.addbmm: _count_added,
        aten._trilinear: _count_bilinear, aten.conv_tbc: _count_time_first,
    }  # fmt: skip
    deformed = getattr(torch.ops.torchvision, "deform_conv2d", None)
    return formulas if deformed is None else {**formulas, deformed: _count_deformed}


def _time_once(model: nn.Module, batch: Tensor) -> float:
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    start = time.perf_counter()
    _run(model, "measure_latency", batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return time.perf_counter() - start


def _run(model: nn.Module, caller: str, *args: Any, **kwargs: Any) -> None:
    try:
        model(*args, **kwargs)
    except (SpectralError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise anything
        why = next(iter(str(error).splitlines()), "no message")
        raise SpectralError(
            f"{caller}: the forward of {type(model).__name__} fails on what it is called with "
            f"({type(error).__name__}: {why}); pass a batch that it takes"
        ) from error
