"""Which site is to blame: each made alias-free in turn, and what that does to predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectral.causes import Idealized, Plans
from spectral.errors import SpectralError, SpectralWarning, warn
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take, undisturbed
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.sites import Site
from spectral.stability.reading import check_counts, choose_sites
from spectral.stability.shifted import ShiftedPredictions
from spectral.surgery import convert
from spectral.surgery.report import conversion_report
from spectral.table.attributes import share_facts

CALLER = "attribute_instability"
ALL_SITES = "all sites"  # no module path has a blank
IDEAL = "ideal"
FACTOR = 2  # of nonlinearities, which stay as they are
COLUMNS = [
    "model", "site", "op", "method", "image", "cluster", "sis_original", "sis", "delta_sis", "block",
    "delta_sis_block", "delta_sis_last_out", "prediction_original", "prediction", "agree", "agree_block",
    "agree_last_out", "label", "correct_original", "correct",
]  # fmt: skip
EFFECTS = ("delta_sis", "delta_sis_block", "delta_sis_last_out")


@dataclass(frozen=True)
class Unit:
    """What is altered together: a site, or those that are one operator of a module that reruns."""

    sites: tuple[str, ...]
    op: str
    lattice: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The sites' names."""
        return ", ".join(self.sites)


class Alteration(Protocol):
    """How sites are made alias-free.

    Attributes:
        units: what can be altered.
        reasons: why other sites can't be, by name.
    """

    units: list[Unit]
    reasons: dict[str, str]

    def apply(self, units: Sequence[Unit]) -> tuple[nn.Module, AbstractContextManager[Any]]:
        """Return the network with some units altered, and the context in which it runs so."""


@shared
def attribute_instability(
    model: nn.Module,
    images: Any,
    method: str = IDEAL,
    *,
    sites: Sequence[Site | str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
    name: str | None = None,
) -> pd.DataFrame:
    """Make one site at a time alias-free, and see what becomes of each prediction.

    Nothing but the decimation changes: of the site's own dense map what would fold is removed (`idealize`),
    at the site itself, before the norm and the activation that may follow. Three effects on SIS bracket what
    a site is to blame for; each is negative where it made predictions unstable:

    - ``delta_sis``: this site alone is made alias-free.
    - ``delta_sis_block``: all sites that decimate alike at the same resolution are, such as a block's
      convolution and its shortcut. One of them alone leaves the other's aliases in their sum.
    - ``delta_sis_last_out``: this one is made alias-free when all others are already.

    The network isn't trained so and its predictions change too, and one that always answers the same is
    stable: an effect is one of aliases only where predictions stay, which ``agree``, ``agree_block`` and
    ``agree_last_out`` tell.

    Args:
        model: classifier; converted ones too.
        images: as for `spectral.measure`.
        method: ``"ideal"``, or a name in ``METHODS``: that layer behind the site's own operator, by
            `convert`; the calls of one module are then altered together.
        sites: which to alter, as sites or their names; by default all that can be.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.
        name: of the model in the table; by default as it was loaded, else its class.

    Returns:
        A row per image and altered site, and, under ``"all sites"``, with all of them altered: model, site,
        op, method, image, cluster, sis_original, sis (with the site altered), delta_sis, block (its sites;
        empty where the site is alone, which is then its own block), delta_sis_block, delta_sis_last_out,
        prediction_original, prediction, agree (whether the two are the same), agree_block and agree_last_out
        (1 where all networks that the other two effects are between predict the same too, else 0), label,
        correct_original and correct; these three are NaN where no label is known, or the labels are of other
        classes than the model's. ``attrs["sites"]`` lists every site: name, op, stride, replaced and, if it
        wasn't, the reason. There are no rows if none of the model's sites can be altered.

    Raises:
        SpectralError: for an unknown method or site, no images, a model without sites, one that is no
            classifier, or if no site that is asked for can be altered.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = attribute_instability(net, torch.rand(2, 3, 16, 16), progress=False)
        >>> table["site"].unique().tolist(), len(table)
        (['0', 'all sites'], 4)
    """
    (batch_size,) = check_counts(CALLER, batch_size=batch_size)
    feed = Feed(
        model, images, caller=CALLER, preprocessing=preprocessing, logits=logits, name=name, lazily=True
    )
    feed.require_scores()
    every = choose_sites(model, feed.example, sites, CALLER)
    how = _choose_alteration(feed, every, method)
    if not how.units:
        first, reason = next(iter(how.reasons.items()))
        sentence = f"{CALLER}: no site of {feed.name} can be altered; {first!r}: {reason}"
        if sites is not None:
            raise SpectralError(sentence)
        warn(sentence)
    found = _Effects(feed, how, batch_size, progress)
    frames = [frame.assign(method=method) for frame in found.tabulate()]
    feed.conclude()
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    table["model"] = feed.name
    if "cluster" not in table:
        table = insert_clusters(table, feed.images)
    altered = {name for unit in how.units for name in unit.sites}
    table.attrs["sites"] = share_facts([
        {"name": site.name, "op": site.op, "stride": "x".join(map(str, site.stride)),
         "replaced": site.name in altered, "reason": how.reasons.get(site.name)}
        for site in every
    ])  # fmt: skip
    return table[COLUMNS]


def _choose_alteration(feed: Feed, sites: Sequence[Site], method: str) -> Alteration:
    """Choose how sites are altered: ideally where they are, else by a layer where more can be altered so."""
    if method != IDEAL:
        return _Layers(feed, sites, method)
    ideal = _Ideal(feed, sites)
    if ideal.reasons:
        try:
            layers = _Layers(feed, sites, method)
        except SpectralError:
            return ideal
        if len(layers.reasons) < len(ideal.reasons):
            return layers
    return ideal


class _Ideal:
    """What would fold is removed from sites' dense maps, by running their operators otherwise."""

    def __init__(self, feed: Feed, sites: Sequence[Site]) -> None:
        self._model, self._plans = feed.model, Plans(feed.model)
        causes = {
            cause.name: cause.reason
            for cause in self._plans.find(feed.example).causes
            if cause.source == "decimation"
        }
        free = "nothing folds there: it is free of aliases already"
        reasons = {site.name: site.reason or causes.get(site.name, free) for site in sites}
        self.reasons = {name: reason for name, reason in reasons.items() if reason}
        self.units = [
            Unit((site.name,), site.op, _find_lattice(site))
            for site in sites
            if site.name not in self.reasons
        ]

    def apply(self, units: Sequence[Unit]) -> tuple[nn.Module, AbstractContextManager[Any]]:
        """Return the network itself, and the context in which its operators run ideally."""
        chosen = {name for unit in units for name in unit.sites}
        if not chosen:
            return self._model, nullcontext()
        return self._model, Idealized(
            self._model, ("decimation",), lambda cause: cause.name in chosen, FACTOR, self._plans
        )


class _Layers:
    """A layer stands behind sites' operators."""

    def __init__(self, feed: Feed, sites: Sequence[Site], method: str) -> None:
        self._model, self._method, self._example = feed.model, method, feed.example
        names, by_name = {site.name for site in sites}, {site.name: site for site in sites}
        report = conversion_report(self._convert(names))
        self.reasons = {row.site: str(row.reason) for row in report.rows if row.site in names and row.reason}
        self.units = []
        for unit in report.units:
            try:
                self._convert(set(unit.sites))
            except SpectralError as error:
                self.reasons |= dict.fromkeys(unit.sites, f"not by itself: {error}")
                continue
            first = by_name[unit.sites[0]]
            self.units.append(Unit(unit.sites, first.op, _find_lattice(first)))

    def apply(self, units: Sequence[Unit]) -> tuple[nn.Module, AbstractContextManager[Any]]:
        """Return a converted copy."""
        chosen = {name for unit in units for name in unit.sites}
        return self._convert(chosen) if chosen else self._model, nullcontext()

    def _convert(self, names: set[str]) -> nn.Module:
        return convert(
            self._model, self._method, lambda s: s.name in names, placement="behind", example=self._example
        )


class _Effects:
    """Predictions of the network with one set of units altered after the other, each measured once."""

    def __init__(self, feed: Feed, how: Alteration, batch_size: int, progress: bool) -> None:
        self._feed, self._how = feed, how
        self._share = Sharing(feed, batch_size)
        self._known: dict[frozenset[Unit], pd.DataFrame] = {}
        count = len(set(self._list_sets()))
        self._bar = tqdm(total=count, desc=f"attributing {feed.name}", unit="variant",
                         disable=not self._share.shows(progress))  # fmt: skip

    def tabulate(self) -> Iterator[pd.DataFrame]:
        """Yield the rows of each unit, then those of all."""
        units = self._how.units
        if not units:
            return
        with self._bar:
            everything, nothing = frozenset(units), frozenset[Unit]()
            for unit in units:
                block, rest = self._find_block(unit), everything - {unit}
                table = self._describe(frozenset([unit]), unit.name, unit.op)
                alone = len(block) == 1
                table["block"] = "" if alone else ", ".join(other.name for other in units if other in block)
                table["delta_sis_block"] = self._differ(nothing, block)
                table["delta_sis_last_out"] = self._differ(rest, everything)
                table["agree_block"] = self._agree(block)
                table["agree_last_out"] = self._agree(rest, everything)
                yield table
            table = self._describe(everything, ALL_SITES, "+".join(dict.fromkeys(unit.op for unit in units)))
            of_sites = ("delta_sis_block", "delta_sis_last_out", "agree_block", "agree_last_out")
            yield table.assign(block="", **dict.fromkeys(of_sites, np.nan))

    def _list_sets(self) -> Iterator[frozenset[Unit]]:
        everything = frozenset(self._how.units)
        yield from (frozenset(), everything)
        for unit in everything:
            yield from (frozenset([unit]), self._find_block(unit), everything - {unit})

    def _find_block(self, unit: Unit) -> frozenset[Unit]:
        """Find the units that decimate alike at the same resolution."""
        return frozenset(other for other in self._how.units if other.lattice == unit.lattice)

    def _differ(self, before: frozenset[Unit], after: frozenset[Unit]) -> pd.Series:
        return (self._predict(after)["sis"] - self._predict(before)["sis"]).reset_index(drop=True)

    def _agree(self, *altered: frozenset[Unit]) -> pd.Series:
        """Whether altered networks all predict what the unaltered one does, as 1 and 0."""
        own = self._predict(frozenset())["prediction"]
        same = [self._predict(units)["prediction"] == own for units in altered]
        return pd.concat(same, axis=1).all(axis=1).astype(float).reset_index(drop=True)

    def _describe(self, altered: frozenset[Unit], name: str, op: str) -> pd.DataFrame:
        before, after = self._predict(frozenset()), self._predict(altered)
        label = before["label"]
        known = label.notna()
        return pd.DataFrame({
            "site": name, "op": op, "image": before.index, "sis_original": before["sis"], "sis": after["sis"],
            "delta_sis": after["sis"] - before["sis"], "prediction_original": before["prediction"],
            "prediction": after["prediction"], "agree": after["prediction"] == before["prediction"],
            "label": label,
            "correct_original": (before["prediction"] == label).where(known).astype(float),
            "correct": (after["prediction"] == label).where(known).astype(float),
        }).reset_index(drop=True)  # fmt: skip

    def _predict(self, altered: frozenset[Unit]) -> pd.DataFrame:
        """SIS, prediction and, where known, label of every image, in their order."""
        if altered not in self._known:
            model, context = self._how.apply([unit for unit in self._how.units if unit in altered])
            self._known[altered] = self._run(self._feed_to(model), context)
            self._bar.update()
        return self._known[altered]

    def _feed_to(self, model: nn.Module) -> Feed:
        feed = self._feed
        if model is feed.model:
            return feed
        prepared = feed.preparation if feed.normalises else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectralWarning)  # of the images, said once by their own feed
            return Feed(
                model, feed.images, caller=CALLER, preprocessing=prepared, logits=feed.logits, lazily=True
            )

    def _run(self, feed: Feed, context: AbstractContextManager[Any]) -> pd.DataFrame:
        with undisturbed(feed.model), torch.no_grad(), context:
            found = pd.concat(self._share.gather(self._look(feed)))
        labels = dict(zip(feed.images.ids, self._feed.number_labels(feed.images.labels), strict=True))
        own = [labels[image] for image in found.index]  # of a listed set's, those that can be read
        return found.assign(label=[np.nan if label is None else label for label in own])

    def _look(self, feed: Feed) -> Iterator[pd.DataFrame]:
        for indices, inputs in self._share.read(feed.batches):
            shifted = ShiftedPredictions(feed, inputs)
            values = {"sis": shifted.find_sis(), "prediction": shifted.still.probabilities.argmax(-1)}
            ids = [feed.images.ids[i] for i in indices]
            yield pd.DataFrame({n: v.cpu().numpy() for n, v in values.items()}, index=ids)


def _find_lattice(site: Site) -> tuple[Any, ...]:
    """Return what the sites of one block have in common: how coarse the map is, and how coarse it becomes."""
    return tuple(round(scale, 3) for scale in site.scale), site.stride, site.output_size
