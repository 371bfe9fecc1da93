"""What hangs on the modules of a converted network and runs its layers.

A layer is a child, ``antialias``, of the module whose operator decimated; the `ledger` takes it to the place
where it is due. All hooks are plain objects of this file that hold names and no modules, so that networks can
be copied, pickled, fused and moved between devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spectral.layers.filters import pad_map
from spectral.surgery import ledger

CHILD = "antialias"


@dataclass(frozen=True)
class PoolInput:
    """Runs the layer before its convolution."""

    site: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Replace the input."""
        if kwargs is None:
            # `torch.ao` hangs it, without keywords, also on what it fuses a convolution into.
            inside = [inner for inner in module.modules() if CHILD in inner._modules]
            if not inside or self in list_hooks(inside[0]):
                return None
            return (inside[0]._modules[CHILD](args[0]), *args[1:])  # type: ignore[misc]
        layer = module._modules.get(CHILD)
        if layer is None:
            return None
        if args:
            return (layer(args[0]), *args[1:]), kwargs
        return (), {**kwargs, "input": layer(kwargs["input"])}


@dataclass(frozen=True)
class PoolOutput:
    """Runs the layer directly behind its operator."""

    site: str

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Replace the output."""
        layer = module._modules.get(CHILD)
        return None if layer is None else layer(output)


@dataclass(frozen=True)
class Owe:
    """Says that the dense map still has to pass its layer, at a place that may serve other maps as well."""

    site: str
    point: str
    wait: int

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Leave the output as it is."""
        layer = module._modules.get(CHILD)
        if layer is not None:
            ledger.owe(ledger.Debt(self.site, self.point, self.wait, layer, output.shape))


@dataclass(frozen=True)
class Settle:
    """Runs the layer that is due behind a module."""

    point: str

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Replace the output, if a layer is due."""
        return ledger.settle(self.point, output)


@dataclass(frozen=True)
class SharePhase:
    """Lets the layers of one lattice keep the same phase; the first that runs chooses it."""

    lattice: str
    leads: bool

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the phase to the arguments."""
        if self.leads:
            ledger.publish_phase(self.lattice, module.select(args[0]))
        return args, {"phase": ledger.find_phase(self.lattice)}


class Layers(nn.ModuleDict):
    """The layers of the operators that a block calls as functions, by their names."""

    def forward(self, x: Any) -> Any:
        """Do nothing: a Sequential runs all of its children."""
        return x


@dataclass(frozen=True)
class WrapInput:
    """Extends what a pool is given, which had a padding of its own."""

    pads: tuple[int, ...]
    mode: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace the input."""
        pads = [(pad, pad) for pad in self.pads]
        if args:
            return (pad_map(args[0], pads, self.mode), *args[1:]), kwargs
        return (), {**kwargs, "input": pad_map(kwargs["input"], pads, self.mode)}


Hook = PoolInput | PoolOutput | Owe | Settle | SharePhase | WrapInput
_HOOKS = (PoolInput, PoolOutput, Owe, Settle, SharePhase, WrapInput)  # torch 2.10 compiles no unions


def list_hooks(module: nn.Module) -> Iterator[Hook]:
    """Yield the hooks of ours that a module has."""
    for table in (module._forward_pre_hooks, module._forward_hooks):
        yield from (hook for hook in table.values() if isinstance(hook, _HOOKS))


def add_hook(module: nn.Module, hook: Hook) -> None:
    """Hang a hook on a module, once; others that it has, as an observer, get a map of the size they got."""
    if hook not in list_hooks(module):
        if isinstance(hook, (PoolInput, SharePhase, WrapInput)):
            module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            module.register_forward_hook(hook, prepend=True)


def remove_hooks(module: nn.Module) -> None:
    """Take all hooks of ours off a module."""
    pre = module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs
    post = (
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    tables: list[tuple[dict[int, Any], ...]] = [pre, post]
    for hooks, *flags in tables:
        for number in [n for n, hook in hooks.items() if isinstance(hook, _HOOKS)]:
            for table in (hooks, *flags):
                table.pop(number, None)
