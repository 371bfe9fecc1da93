"""Evaluation mode, and all as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from spectral.errors import SpectralError
from spectral.network.writes import Writes
from spectral.processes.interrupts import shielded, undivided
from spectral.processes.locks import ThreadGuard, alone
from spectral.processes.surroundings import kept_surroundings


@contextmanager
def undisturbed(model: object) -> Iterator[None]:
    """Run a model in evaluation mode, and put random numbers and settings back as well.

    What the model's own forward keeps (a counter, a cache) is its own business, as in any forward pass.

    Example:
        >>> before = torch.get_rng_state()
        >>> with undisturbed(nn.Dropout()):
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    with kept_surroundings(), evaluation_mode(model):
        yield


class evaluation_mode:  # noqa: N801 - reads as a statement: `with evaluation_mode(model):`
    """Put a model into evaluation mode and bring back afterwards what that changed.

    That is each module's training flag, and whatever classes with a ``train`` of their own do: graphs of
    `torchvision` change their graph, other layers merge weights, bit for bit.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluation_mode(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self._held = ExitStack()
        self._flags: list[tuple[nn.Module, bool]] = []
        self._before: _Contents | None = None

    @undivided
    def __enter__(self) -> None:
        if not isinstance(self.model, nn.Module):
            return
        try:
            self._held.enter_context(shielded())
            self._held.enter_context(alone(self.model))
            self._enter(self.model)
        except BaseException:
            self.__exit__()
            raise

    def _enter(self, model: nn.Module) -> None:
        self._flags = [(module, module.training) for module in model.modules()]
        if not any(training for _, training in self._flags):
            return
        guard = ThreadGuard()
        self._held.callback(guard.end)
        self._held.enter_context(_hook(model, guard))
        if not any(_has_own_train(module) for module, _ in self._flags):
            put_into_evaluation(model)
            return
        self._before = _Contents(model)
        with self._before.watched():
            put_into_evaluation(model)

    @undivided
    def __exit__(self, *exception: object) -> None:
        with self._held:
            if self._before is not None:
                with self._before.watched():
                    for module, training in self._flags:
                        if training and _has_own_train(module):
                            module.train()
                self._before.put_back()
            for module, training in self._flags:
                module.training = training


@contextmanager
def _hook(model: nn.Module, hook: Any) -> Iterator[None]:
    handle = RemovableHandle(model._forward_pre_hooks)  # known before it acts
    try:
        model._forward_pre_hooks[handle.id] = hook
        yield
    finally:
        handle.remove()


# Base class of what has been sharded → what does so.
_SHARDED = {"FSDPModule": "fully_shard", "FullyShardedDataParallel": "FullyShardedDataParallel"}


def as_network(model: object, caller: str = "") -> nn.Module:
    """Return a network, and refuse what is none, such as the name of one.

    Args:
        model: what was passed as one.
        caller: whose name the error begins with.

    Raises:
        SpectralError: saying what to pass.

    Example:
        >>> as_network(None, "measure")
        Traceback (most recent call last):
        spectral.errors.SpectralError: measure: expected a torch.nn.Module, got NoneType
    """
    if not isinstance(model, nn.Module):
        hint = "; of a name, pass load_model(name)" if isinstance(model, str) else ""
        begin = f"{caller}: " if caller else ""
        raise SpectralError(f"{begin}expected a torch.nn.Module, got {type(model).__name__}{hint}")
    return model


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose weights are spread over processes: each of its passes is one of them all together.

    Raises:
        SpectralError: saying what to pass.
    """
    bases = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    for base, maker in _SHARDED.items():
        if base in bases:
            raise SpectralError(
                f"the model is sharded by {maker}, which gathers its weights only while it runs itself; "
                f"look at the model before it is sharded"
            )


def put_into_evaluation(model: nn.Module) -> None:
    """Call a model's own ``eval``; an exported graph has one mode only, and says so.

    Example:
        >>> layer = nn.Dropout()
        >>> put_into_evaluation(layer)
        >>> layer.training
        False
    """
    with suppress(NotImplementedError):
        model.eval()


_NOTHING = object()


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train


class _Contents:
    """What a model is made of, to bring back that of it which changes while it is watched.

    Only what is written to is copied, and what others change in the meantime, such as hooks, stays.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        graphs = [x for m in modules for x in vars(m).values() if isinstance(x, fx.Graph)]
        self._tables: list[dict[str, Any]] = [
            *(table for m in modules for table in (vars(m), m._parameters, m._buffers)), *map(vars, graphs)
        ]  # fmt: skip
        self._before = self._read()
        self._changed: set[tuple[int, str]] = set()
        # The forward of a graph stands in a class of its own, and is compiled anew with each change.
        self._forwards = [(type(m), type(m).forward) for m in modules if isinstance(m, fx.GraphModule)]
        tensors = [*model.parameters(), *model.buffers()]
        self._data = [(x, x.detach()) for x in tensors if not is_lazy(x)]
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what changes inside, and copy weights before they are written to."""
        now = self._read()
        try:
            with Writes([data for _, data in self._data], self._copy):
                yield
        finally:
            after = self._read()
            keys = {(i, key) for i in range(len(now)) for key in {**now[i], **after[i]}}
            self._changed |= {
                (i, k) for i, k in keys if now[i].get(k, _NOTHING) is not after[i].get(k, _NOTHING)
            }

    def put_back(self) -> None:
        """Bring back what has changed: attributes, weights, the weights' memory and what was in it."""
        for i, key in self._changed:
            if key in self._before[i]:
                self._tables[i][key] = self._before[i][key]
            else:
                self._tables[i].pop(key, None)
        for kind, forward in self._forwards:
            kind.forward = forward
        with torch.no_grad():
            for x, data in self._data:
                if x.data_ptr() != data.data_ptr():
                    x.data = data
            for x, copy in self._copies.values():
                x.copy_(copy)

    def _read(self) -> list[dict[str, Any]]:
        return [dict(table) for table in self._tables]

    def _copy(self, written: list[Tensor]) -> None:
        for x in written:
            if id(x) not in self._copies:
                self._copies[id(x)] = x, x.clone()
