"""Aliasing while a model trains: numbers of the last batch for a logger, and a penalty for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from spectral.errors import NotFiniteError, SpectralError, check_choice, warn
from spectral.hooks.capture import Capture, Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import ALIAS_METRICS, AVR_METRICS, OPEN, SITE_METRICS, measure_capture
from spectral.measurement.captures import choose_taps
from spectral.numerics.precision import require_double
from spectral.sites import Site
from spectral.tracing.graph import is_reentrant


class _Attached:
    """What hangs on a model in training until it is taken off.

    Where the host would have to wait for a device, nothing is read back inside a forward pass: what rounding
    leaves open is looked at once, when the pass has ended, and measured again from what entered the site.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        metrics: Sequence[str],
        taps: Sequence[Tap],
        allowed: Sequence[str],
        detach: bool,
        deferred: bool | None,
    ) -> None:
        self._metrics, self._taps, self._deferred = tuple(metrics), tuple(taps), deferred
        self._open: list[tuple[Capture, int, Tensor]] = []  # with the version of what entered, and the marks
        self._at_once: set[str] = set()
        caller = type(self).__name__
        for metric in metrics:
            check_choice(metric, allowed, "metric", caller)
        for device in {weight.device for weight in model.parameters()}:
            require_double(device, caller)
        measurable = [site for site in sites if site.measurable]
        if not measurable:
            raise SpectralError(f"{caller}: there is no site that can be measured; pass those of find_sites")
        self._extractor: FeatureExtractor | None = FeatureExtractor(
            model,
            measurable,
            tap="dense",
            detach=detach,
            reduce=self._reduce,
            share_dense=False,
            wants_pass=self._start,
            after_pass=self._settle,
        )

    def remove_hooks(self) -> None:
        """Detach from the model; what was measured last stays readable."""
        if self._extractor is not None:
            self._extractor.remove_hooks()

    @property
    def enabled(self) -> bool:
        """Whether forward passes are measured; may be set."""
        return self._extractor is not None and self._extractor.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if self._extractor is not None:
            self._extractor.enabled = value

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has, which hangs on no model: networks that hold a monitor are copied too."""
        return {**self.__dict__, "_extractor": None, "_open": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Detach from the model."""
        self.remove_hooks()

    def _start(self) -> bool:
        self._open = []  # of a pass that failed
        return self._begin()

    def _begin(self) -> bool:
        """Begin a pass; tell whether to measure it."""
        raise NotImplementedError

    def _keep(self, site: str, found: Mapping[tuple[str, str], Tensor]) -> None:
        """Keep what was measured at a site, in place of what was before; nothing if it can't be known."""
        raise NotImplementedError

    def _measure(self, capture: Capture) -> None:
        """Measure a site now, whatever rounding leaves open."""
        try:
            found = measure_capture(capture, self._metrics, self._taps)
        except NotFiniteError as error:
            found = self._meet_infinite(capture.site.name, error)
        self._keep(capture.site.name, found)

    def _meet_infinite(self, site: str, error: NotFiniteError) -> dict[tuple[str, str], Tensor]:
        """Say what is kept of a map that isn't finite."""
        raise SpectralError(f"{type(self).__name__}: site {site!r}: {error}") from error

    def _reduce(self, capture: Capture) -> None:
        name = capture.site.name
        deferred = capture.input.device.type != "cpu" if self._deferred is None else self._deferred
        # What is made in inference mode doesn't tell whether it was altered since.
        if not deferred or name in self._at_once or capture.input.is_inference():
            self._measure(capture)
            return
        found = measure_capture(capture, self._metrics, self._taps, "fast")
        marks = [values for (_, metric), values in found.items() if metric == OPEN]
        self._open.append((capture, capture.input._version, torch.stack(marks).detach().max()))
        self._keep(name, {key: values for key, values in found.items() if key[1] != OPEN})

    def _settle(self) -> None:
        """Measure again, at once, what a pass has left open."""
        if not self._open:
            return
        captures, self._open = self._open, []
        marks = torch.stack([mark.to(captures[0][2].device) for *_, mark in captures]).tolist()
        for (capture, version, _), mark in zip(captures, marks, strict=True):
            if mark == 0:
                continue
            if capture.input._version != version:  # by an operator that works in place: next time at once
                self._at_once.add(capture.site.name)
                self._keep(capture.site.name, {})
            else:
                self._measure(capture)


class AliasingMonitor(_Attached):
    """Measures the batches that pass through a model anyway, and hands out the latest numbers as a flat dict.

    Attach it before training; it costs nothing in the forward passes between measured ones.

    Args:
        model: the network that is trained; its modes, outputs and gradients stay as they are. A copy of a
            monitor hangs on no network.
        sites: from `find_sites`; those that can't be measured are left out.
        metrics: site metrics as in `measure`: avr, am, am_relative, alias_power_ratio, …
        taps: where AVR is taken.
        every: measure the first of so many forward passes.
        deferred: look at no values before a pass has ended; by default wherever the host would wait for them.

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
        *,
        deferred: bool | None = None,
    ) -> None:
        if every < 1:
            raise SpectralError(f"AliasingMonitor: every must be ≥ 1, got {every}")
        self._every, self._passes = every, 0
        self._latest: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        super().__init__(model, sites, metrics, taps, SITE_METRICS, detach=True, deferred=deferred)

    def values(self) -> dict[str, float]:
        """Return ``site/tap/metric`` → mean over the images of the latest measured batch, and over sites.

        Images whose map is silent are left out; a map that is silent in all of them gives NaN, and so does
        one that isn't finite in any. A site that is called ``mean`` itself is ``mean@0`` here.
        """
        kinds: dict[str, list[float]] = {}
        latest = _fetch(self._latest)
        for name, value in latest.items():
            kinds.setdefault("/".join(name.rsplit("/", 2)[1:]), []).append(value)
        means = {f"mean/{kind}": float(torch.tensor(values).nanmean()) for kind, values in kinds.items()}
        return {**latest, **means}

    def _begin(self) -> bool:
        wanted = self._passes % self._every == 0
        self._passes += 1
        if wanted:
            self._latest = {}
        return wanted

    def _meet_infinite(self, site: str, error: NotFiniteError) -> dict[tuple[str, str], Tensor]:
        """Leave the training alone, which may get over it: a scaled loss skips such steps."""
        if site not in self._warned:
            self._warned.add(site)
            warn(f"AliasingMonitor: site {site!r} has no numbers in this batch: {error}")
        return {}

    def _keep(self, site: str, found: Mapping[tuple[str, str], Tensor]) -> None:
        own = "mean@0" if site == "mean" else site
        for tap, metrics in choose_taps(self._metrics, self._taps).items():
            for metric in metrics:
                values = (
                    found[tap, metric].double() if found else torch.full((1,), torch.nan, dtype=torch.float64)
                )
                loud = values.where(found[tap, "power"] > 0, torch.nan) if found else values
                self._latest[f"{own}/{tap}/{metric}"] = loud.nanmean()


def _fetch(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return numbers that lie on devices, all of one device at once."""
    found: dict[str, float] = {}
    for device in {value.device for value in values.values()}:
        own = {name: value for name, value in values.items() if value.device == device}
        found |= dict(zip(own, torch.stack(list(own.values())).tolist(), strict=True))
    return {name: found[name] for name in values}


class AliasingPenalty(_Attached):
    """A differentiable AVR or AM of the latest batch, to be added to a loss.

    Args:
        model: the network that is trained.
        sites: from `find_sites`; those that can't be measured are left out.
        metric: am_relative (free of scale, so the network can't escape by shrinking its maps), am,
            alias_power_ratio, avr or avr_separable, at the dense map.
        deferred: as for `AliasingMonitor`.

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

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        metric: str = "am_relative",
        *,
        deferred: bool | None = None,
    ) -> None:
        self._terms: dict[str, Tensor] | None = None  # None until the model has run
        self._cut_off: str | None = None
        allowed = (*ALIAS_METRICS, *AVR_METRICS)
        super().__init__(model, sites, (metric,), ("dense",), allowed, detach=False, deferred=deferred)

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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: no terms, whose graphs are of the network."""
        return {**super().__getstate__(), "_terms": None, "_cut_off": None}

    def _begin(self) -> bool:
        self._terms, self._cut_off = {}, None
        return True

    def _reduce(self, capture: Capture) -> None:
        if not torch.is_grad_enabled() and is_reentrant():
            self._cut_off = capture.site.name
        super()._reduce(capture)

    def _keep(self, site: str, found: Mapping[tuple[str, str], Tensor]) -> None:
        assert self._terms is not None
        self._terms.pop(site, None)
        if found:
            self._terms[site] = found["dense", self._metrics[0]].mean()
