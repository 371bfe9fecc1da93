"""Aliasing while a model trains: numbers of the last batch for a logger, and a penalty for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from spectral.capture import Capture, Tap
from spectral.errors import SpectralError, suggest
from spectral.graph import is_reentrant
from spectral.hooks import FeatureExtractor
from spectral.measurement import ALIAS_METRICS, AVR_METRICS, SITE_METRICS, measure_capture
from spectral.sites import Site


class _Attached:
    """What hangs on a model in training until it is taken off."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        metrics: Sequence[str],
        allowed: Sequence[str],
        detach: bool,
    ) -> None:
        caller = type(self).__name__
        for metric in metrics:
            if metric not in allowed:
                raise SpectralError(
                    f"{caller}: unknown metric {metric!r}{suggest(metric, allowed)}; allowed values are "
                    f"{', '.join(allowed)}"
                )
        measurable = [site for site in sites if site.measurable]
        if not measurable:
            raise SpectralError(f"{caller}: there is no site that can be measured; pass those of find_sites")
        self._extractor = FeatureExtractor(
            model,
            measurable,
            tap="dense",
            detach=detach,
            reduce=self._reduce,
            share_dense=False,
            wants_pass=self._begin,
        )

    def remove_hooks(self) -> None:
        """Detach from the model; what was measured last stays readable."""
        self._extractor.remove_hooks()

    @property
    def enabled(self) -> bool:
        """Whether forward passes are measured; may be set."""
        return self._extractor.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._extractor.enabled = value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Detach from the model."""
        self.remove_hooks()

    def _begin(self) -> bool:
        """Begin a pass; tell whether to measure it."""
        raise NotImplementedError

    def _reduce(self, capture: Capture) -> None:
        raise NotImplementedError


class AliasingMonitor(_Attached):
    """Measures the batches that pass through a model anyway, and hands out the latest numbers as a flat dict.

    Attach it before training; it costs nothing in the forward passes between measured ones.

    Args:
        model: the network that is trained; its modes, outputs and gradients stay as they are.
        sites: from `find_sites`; those that can't be measured are left out.
        metrics: site metrics as in `measure`: avr, am, am_relative, alias_power_ratio, …
        taps: where AVR is taken.
        every: measure the first of so many forward passes.

    Raises:
        SpectralError: for unknown metrics, no measurable site, or a model in which hooks never fire.

    Example:
        >>> from spectral.sites import find_sites
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        >>> with AliasingMonitor(net, find_sites(net, 16), metrics=("avr",)) as monitor:
        ...     _ = net(torch.zeros(2, 3, 16, 16))
        ...     sorted(monitor.values())
        ['0/dense/avr', 'mean/dense/avr']
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        metrics: Sequence[str] = ("avr", "am_relative"),
        taps: Sequence[Tap] = ("dense",),
        every: int = 1,
    ) -> None:
        if every < 1:
            raise SpectralError(f"AliasingMonitor: every must be ≥ 1, got {every}")
        self._metrics, self._taps = tuple(metrics), tuple(taps)
        self._every, self._passes = every, 0
        self._latest: dict[str, float] = {}
        super().__init__(model, sites, metrics, SITE_METRICS, detach=True)

    def values(self) -> dict[str, float]:
        """Return ``site/tap/metric`` → mean over the images of the latest measured batch, and over sites.

        Images whose map is silent are left out; a map that is silent in all of them gives NaN.
        """
        kinds: dict[str, list[float]] = {}
        for name, value in self._latest.items():
            kinds.setdefault("/".join(name.rsplit("/", 2)[1:]), []).append(value)
        means = {f"mean/{kind}": float(torch.tensor(values).nanmean()) for kind, values in kinds.items()}
        return {**self._latest, **means}

    def _begin(self) -> bool:
        wanted = self._passes % self._every == 0
        self._passes += 1
        if wanted:
            self._latest = {}
        return wanted

    def _reduce(self, capture: Capture) -> None:
        found = measure_capture(capture, self._metrics, self._taps)
        for (tap, metric), values in found.items():
            if metric != "power":
                loud = values[found[tap, "power"] > 0]
                self._latest[f"{capture.site.name}/{tap}/{metric}"] = float(loud.double().mean())


class AliasingPenalty(_Attached):
    """A differentiable AVR or AM of the latest batch, to be added to a loss.

    Args:
        model: the network that is trained.
        sites: from `find_sites`; those that can't be measured are left out.
        metric: am_relative (free of scale, so the network can't escape by shrinking its maps), am,
            alias_power_ratio, avr or avr_separable, at the dense map.

    Raises:
        SpectralError: for another metric, no measurable site, or a model in which hooks never fire.

    Example:
        >>> from spectral.sites import find_sites
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.LazyLinear(2))
        >>> _ = net(torch.zeros(1, 3, 9, 9))
        >>> with AliasingPenalty(net, find_sites(net, 9)) as penalty:
        ...     loss = net(torch.rand(2, 3, 9, 9)).square().mean() + 0.1 * penalty.value()
        >>> loss.backward()
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], metric: str = "am_relative") -> None:
        self._metric = metric
        self._terms: dict[str, Tensor] | None = None  # None until the model has run
        self._cut_off: str | None = None
        super().__init__(model, sites, (metric,), (*ALIAS_METRICS, *AVR_METRICS), detach=False)

    def value(self) -> Tensor:
        """Return the mean over images and sites of the latest forward pass, with its graph.

        Raises:
            SpectralError: if nothing has run yet, or ran without gradients.
        """
        if self._terms is None:
            raise SpectralError(
                "AliasingPenalty: the model hasn't run since the hooks were set; run it first"
            )
        if not self._terms:
            raise SpectralError("AliasingPenalty: none of the sites ran in the latest forward pass")
        if self._cut_off is not None:
            raise SpectralError(
                f"AliasingPenalty: site {self._cut_off!r} ran under reentrant checkpointing, which keeps no "
                f"gradients of what is inside; pass use_reentrant=False to torch.utils.checkpoint"
            )
        total = torch.stack(list(self._terms.values())).mean()
        if not total.requires_grad:
            raise SpectralError(
                "AliasingPenalty: the latest forward pass kept no gradients; run it outside torch.no_grad()"
            )
        return total

    def _begin(self) -> bool:
        self._terms, self._cut_off = {}, None
        return True

    def _reduce(self, capture: Capture) -> None:
        assert self._terms is not None
        if not torch.is_grad_enabled() and is_reentrant():
            self._cut_off = capture.site.name
        values = measure_capture(capture, (self._metric,), ("dense",))["dense", self._metric]
        self._terms[capture.site.name] = values.mean()
