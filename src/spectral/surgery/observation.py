"""One forward pass of a model, watched: which modules ran on which tensors, and who used these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from spectral.operators import parse
from spectral.surgery.rewiring import Signature, signature_of

# Linear or without arithmetic: a pool may stand on either side of them.
_LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "clone", "_to_copy", "copy", "alias", "detach"}
# Activations that torch doesn't mark as pointwise.
_POINTWISE = {
    "hardswish", "mish", "_prelu_kernel", "prelu", "threshold", "log_sigmoid_forward", "rrelu_with_noise",
}  # fmt: skip
_MOVES = {
    "permute", "transpose", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "alias",
    "detach", "empty", "empty_like", "t", "select",
}  # fmt: skip


@dataclass
class Call:
    """One call of a module: when it began and ended, and whether it treats every sample alike."""

    path: str
    start: int
    input: Tensor | None  # where one tensor is all it was given
    number: int
    end: int = -1
    output: Any = None
    samplewise: bool = True  # nothing in it mixes samples
    nonlinear: bool = False
    channels: dict[Signature, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Use:
    """One operator that read a tensor."""

    time: int
    path: str  # of the innermost module
    activation: Tensor | None  # its output, where it is a nonlinear function of this tensor alone


@dataclass(frozen=True)
class Chain:
    """The modules a map passes until it has been activated; ``function`` where that is no module."""

    modules: tuple[str, ...]
    function: str | None = None


class Observer(AbstractContextManager["Observer"]):
    """Watches the latest forward pass of a model that runs inside the ``with`` statement.

    Attributes:
        calls: of every module, in the order in which they began.
        flops: floating-point operations of convolutions and matrix products.
        batch: images in the pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._mode: AbstractContextManager[Any] = _Watcher(self)
        self._reset()

    def _reset(self) -> None:
        self.calls: list[Call] = []
        self.flops = 0
        self.batch = 1
        self.running: list[Call] = []
        self.uses: dict[int, list[Use]] = defaultdict(list)
        self.clock = 0
        self.alive: list[Any] = []  # so that no two tensors have one id
        self.returned: list[Tensor] = []
        self._counts: dict[str, int] = defaultdict(int)

    def __enter__(self) -> Observer:
        """Set the hooks."""
        for path, module in self._model.named_modules():
            self._handles.append(
                module.register_forward_pre_hook(partial(self._begin, path), with_kwargs=True)
            )
            self._handles.append(module.register_forward_hook(partial(self._end, path)))
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove them."""
        self._mode.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def find_chain(self, call: Call) -> Chain | None:
        """Follow a call's output through modules that alone use it, up to the first activation.

        None if there is none, or a map on the way is used by anything else.
        """
        tensor, time = call.output, call.end
        modules: list[str] = []
        while isinstance(tensor, Tensor) and not any(tensor is t for t in self.returned):
            uses = [use for use in self.uses[id(tensor)] if use.time > time]
            following = self._find_consumer(tensor, time)
            if following is None:
                # What an in-place activation leaves is another map in the same tensor.
                alone = uses and (len(uses) == 1 or uses[0].activation is tensor)
                return (
                    Chain(tuple(modules), uses[0].path) if alone and uses[0].activation is not None else None
                )
            if following.output is tensor:
                uses = [use for use in uses if use.time < following.end]
            if any(not following.start < use.time < following.end for use in uses):
                return None
            modules.append(following.path)
            if following.nonlinear:
                return Chain(tuple(modules))
            tensor, time = following.output, following.end
        return None

    def _find_consumer(self, tensor: Tensor, time: int) -> Call | None:
        for call in self.calls:
            if call.start > time and call.input is tensor:
                out = call.output
                if call.samplewise and isinstance(out, Tensor) and out.shape == tensor.shape:
                    return call
        return None

    def _begin(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not path:
            self._reset()
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not path and tensors:
            self.batch = tensors[0].shape[0] if tensors[0].ndim > 3 else 1
        alone = len(tensors) == 1 and bool(args) and args[0] is tensors[0]
        call = Call(path, self._tick(), tensors[0] if alone else None, self._counts[path])
        self._counts[path] += 1
        self.calls.append(call)
        self.running.append(call)
        self.alive.append(tensors)

    def _end(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        call = self.running.pop()
        call.end, call.output = self._tick(), output
        if not path:
            self.returned = [value for value in tree_leaves(output) if isinstance(value, Tensor)]

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Keep what an operator read, and what its module is made of."""
        time, innermost = self._tick(), self.running[-1]
        packet = func._overloadpacket
        name = packet.__name__.removesuffix("_")  # in place or not
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        pointwise = torch.Tag.pointwise in func.tags or name in _POINTWISE
        nonlinear = pointwise and name not in _LINEAR
        samplewise = pointwise or name in _MOVES or _is_samplewise_norm(name, args)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for call in self.running:
            call.samplewise &= samplewise
            if nonlinear and call.input is not None:
                call.nonlinear |= any(t.shape == call.input.shape for t in tensors)
        whole = isinstance(out, Tensor) and len(tensors) == 1 and out.shape == tensors[0].shape
        for tensor in tensors:
            self.uses[id(tensor)].append(Use(time, innermost.path, out if nonlinear and whole else None))
        self.alive.append((tensors, out))
        decimation = parse(func, args, kwargs)
        if decimation is not None and decimation.weight is not None:
            innermost.channels[signature_of(decimation.geometry)].append(decimation.channels)


def _is_samplewise_norm(name: str, args: Sequence[Any]) -> bool:
    """Tell norms by fixed statistics, or over channels alone, from those that average over the map.

    The latter give another result on a dense map than on its decimation.
    """
    if name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):
        return not args[5]  # training
    if name == "native_layer_norm":
        return len(args[1]) == 1  # axes
    return name == "_native_batch_norm_legit_no_training"


class _Watcher(TorchDispatchMode):
    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and keep it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._observer.running:
            self._observer.note(func, args, kwargs, out)
        return out
