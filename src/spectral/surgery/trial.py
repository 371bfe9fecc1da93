"""Tries layers out on a network: what each does to one forward pass, and which have to be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.network.inputs import Inputs
from spectral.operators import Size
from spectral.sites import Site
from spectral.surgery.attachment import Unit, attach, detach
from spectral.surgery.observation import Call, Observation, observe
from spectral.tracing.standin import needs_data

Layers = dict[Unit, nn.Module]


class Trial:
    """A network, with some layers on it for good, on which others are tried.

    Attributes:
        before: the pass without any layer.
        after: the pass with those that `run` left on it.

    Args:
        model: the network, with nothing attached.
        sites: its sites.
        inputs: what it is run on.
        kept: layers that it has already.
        before: a pass of it.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], inputs: Inputs, kept: Layers, before: Observation
    ) -> None:
        self._model, self._inputs, self._kept = model, inputs, dict(kept)
        self._expected = {site.name: site.output_size for site in sites}
        self.before = self.after = before
        # A model that loops over its images has been run on one.
        self._own: set[tuple[Any, ...]] | None = None
        self._batch = None if before.leading == 1 else 2
        # What fails with a layer only fails because of it: to try that with data too would take the memory of
        # all its maps.
        self._or_real = needs_data(model)

    def run(self, layers: Mapping[Unit, nn.Module]) -> tuple[Layers, dict[Unit, str]]:
        """Attach as many of the layers as can be, each as it was meant or else directly behind its operator.

        Returns:
            All layers on the model now, in the order in which they run, and why others had to be left out.
        """
        refused: dict[Unit, str] = {}
        good = dict(layers)
        if self._find_fault(good) is not None:
            good = {}
            for unit, layer in layers.items():
                directly = replace(unit, placement="behind", point=None)
                for placed in dict.fromkeys((unit, directly)):
                    fault = self._find_fault({**good, placed: layer})
                    if fault is None:
                        good[placed] = layer
                        break
                    refused[unit] = fault
                else:
                    continue
                refused.pop(unit, None)
            fault = self._find_fault(good)
            assert fault is None
        order = [call.path for call in self.after.calls]
        ran = dict(sorted({**self._kept, **good}.items(), key=lambda item: order.index(item[0].layer_path)))
        attach(self._model, ran)
        return ran, refused

    def _find_fault(self, layers: Layers) -> str | None:
        """Run the model with some layers, and say what is wrong with that; afterwards they are off again."""
        every = {**self._kept, **layers}
        attach(self._model, every)
        try:
            self.after = observe(self._model, self._inputs, batch=self._batch, or_real=self._or_real)
        except SpectralError as error:
            return f"with its layer the network doesn't run: {error}"
        finally:
            detach(self._model)
        for unit in every:
            ran = [call.output for call in self.after.calls if call.place == (unit.layer_path, None)]
            sizes = Counter(tuple(output.shape[-unit.axes :]) for output in ran)
            if Counter(self._expected[name][-unit.axes :] for name in unit.sites) - sizes:
                return "its layer doesn't run where the site was"
            if len(ran) != (times := self.count_runs(unit)):
                return f"its layer runs {len(ran)} times in a pass, where its operator ran {times} times"
        return self._compare(every)

    def count_runs(self, unit: Unit) -> int:
        """Count how often a unit's operator ran before: once per site, and where it was a global pool."""
        calls = (call for call in self.before.calls if call.path == unit.path)
        if unit.function is None:
            return sum(call.function is None for call in calls)
        return sum((call.function, call.signature) == (unit.function, unit.signature) for call in calls)

    def _find_own_sizes(self) -> set[tuple[Any, ...]]:
        """List what has another size for another image: how many keypoints there are is up to its values."""
        if self._own is None:
            self._own = set()
            with suppress(SpectralError):
                other = observe(self._model, self._inputs.turn(), batch=self._batch)
                sizes = {_key(call): _shapes(call.output) for call in other.calls}
                self._own = {
                    _key(call) for call in self.before.calls if sizes.get(_key(call)) != _shapes(call.output)
                }
        return self._own

    def _compare(self, layers: Layers) -> str | None:
        """Say which map has another size than before; those on their way to a layer may."""
        owners = {unit.path for unit in layers if unit.function is None}
        replaced = {(u.path, replace(u.function, repeat=0)) for u in layers if u.function is not None}
        before = {_key(call): call for call in self.before.calls}
        for call in self.after.calls:
            other = before.get(_key(call))
            if other is None or call.owing or call.unsized:
                continue
            if call.path in owners or call.place in replaced:
                continue
            if _shapes(call.output) != _shapes(other.output) and _key(call) not in self._find_own_sizes():
                what = call.function.name if call.function is not None else "its module"
                return (
                    f"it would change the size of another map, that of {what} in {call.path or 'the model'}"
                )
        return None


def _key(call: Call) -> tuple[Any, ...]:
    return call.path, call.number, call.function


def _shapes(output: Any) -> list[Size]:
    tensors = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
    return [tuple(one.shape) for x in tensors for one in _list_parts(x)]


def _list_parts(x: Tensor) -> Sequence[Tensor]:
    """Return the tensors that a nested one consists of; of those behind each other all in one."""
    if not x.is_nested:
        return (x,)
    return x.unbind() if x.layout == torch.strided else (x.values(),)
