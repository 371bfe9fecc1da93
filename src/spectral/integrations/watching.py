"""What the callbacks share: a monitor that measures some training steps, and one value for all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from spectral.errors import SpectralError
from spectral.hooks.capture import Tap
from spectral.monitor import AliasingMonitor
from spectral.sites import Site, find_sites


class Watch:
    """Measures aliasing in every so-many-th training step of a network that others train.

    Args:
        example: an image size, or what else `find_sites` takes; not needed with ``sites``.
        sites: what to watch; all that can be measured by default.
        module: path of the network in what is trained, such as ``"net"``; empty for all of it.
        metrics: as for `AliasingMonitor`.
        taps: as for `AliasingMonitor`.
        every: measure one step of so many, beginning with the first.
        prefix: put in front of each name.
    """

    def __init__(
        self,
        example: Any = None,
        *,
        sites: Sequence[Site] | None = None,
        module: str = "",
        metrics: Sequence[str] = ("avr", "am_relative"),
        taps: Sequence[Tap] = ("dense",),
        every: int = 10,
        prefix: str = "aliasing/",
    ) -> None:
        if example is None and sites is None:
            raise SpectralError(
                "the callback must know what the network sees: pass example= (an image size such as 224, or "
                "a batch) or sites= from find_sites"
            )
        if every < 1:
            raise SpectralError(f"every must be ≥ 1, got {every}")
        self._example, self._sites, self._module = example, sites, module
        self._metrics, self._taps = tuple(metrics), tuple(taps)
        self._every, self._prefix = every, prefix
        self._monitor: AliasingMonitor | None = None
        self._latest: dict[str, float] = {}

    def attach(self, root: nn.Module) -> None:
        """Watch a network until `detach`; nothing is measured outside `begin` … `end`.

        Raises:
            SpectralError: if there is no such module in it, or no site that can be measured.
        """
        self.detach()
        try:
            network = root.get_submodule(self._module)
        except AttributeError as error:
            raise SpectralError(
                f"{type(root).__name__} has no module {self._module!r}; pass module= as its named_modules() "
                f"gives it"
            ) from error
        sites = find_sites(network, self._example) if self._sites is None else self._sites
        self._monitor = AliasingMonitor(network, sites, self._metrics, self._taps)
        self._monitor.enabled = False
        self._latest = {}

    def begin(self, step: int) -> None:
        """Measure the step that begins now, if it is one of those."""
        if self._monitor is not None:
            self._monitor.enabled = step % self._every == 0

    def end(self) -> None:
        """Take over what the step has given; all processes call this after the same steps."""
        if self._monitor is not None and self._monitor.enabled:
            self._monitor.enabled = False
            self._latest = reduce_values(self._monitor.values())

    @property
    def values(self) -> dict[str, float]:
        """The numbers of the latest measured step, the same in all processes."""
        return {f"{self._prefix}{name}": value for name, value in self._latest.items()}

    def detach(self) -> None:
        """Take the hooks off the network."""
        if self._monitor is not None:
            self._monitor.remove_hooks()
        self._monitor = None


def reduce_values(values: Mapping[str, float]) -> dict[str, float]:
    """Average numbers over the processes that train together, by name; a single one keeps its own.

    Every process has to call this at the same time. A number that is NaN in some of them (a silent map) or
    missing there (a branch that didn't run) is averaged over the others.

    Example:
        >>> reduce_values({"avr": 0.5})
        {'avr': 0.5}
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return dict(values)
    found: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, dict(values))
    names = dict.fromkeys(name for one in found for name in one)
    return {name: _mean([one[name] for one in found if name in one]) for name in names}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
