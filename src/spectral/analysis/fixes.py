"""What fixes it, measured without training: each site and all of them behind an anti-aliasing layer."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from spectral import stats
from spectral.analysis.levels import LEVEL_MEANS, LEVELS, add_levels
from spectral.arguments.values import as_list
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed
from spectral.latency import measure_latency
from spectral.measurement import find_clusters, measure
from spectral.network import Take
from spectral.network.inputs import Inputs
from spectral.pairing import match_sites
from spectral.processes.ranks import find_ranks, shared
from spectral.runs.summary import summarize_measurements
from spectral.sharing import compare_feeds
from spectral.sites import Site, find_sites
from spectral.stability import measure_stability
from spectral.stats.columns import FEWEST_CLUSTERS, add_holm, bound, bound_flags, read_means
from spectral.surgery import conversion_report, convert
from spectral.surgery.report import find_original_names
from spectral.table.schema import to_decibels, with_bounds

CALLER = "measure_fixes"
ALL_SITES = "all sites"  # no module path has a blank
DEFAULT_METHODS = ("blurpool", "flc", "aps")
LATENCY_REPEATS = 3
LEFT_OUT = "left out"  # what the reason of a variant for which there was no time begins with
COLUMNS = [
    "model", "site", "op", "method", "placement", "n", "n_clusters", "sis_original", "sis",
    *with_bounds("delta_sis"), "p", "p_holm", "significance", "changed_original", "changed",
    *with_bounds("agreement"), "n_labelled", "accuracy_original", "accuracy", "level_db_original",
    "level_db", "latency_ms_original", "latency_ms", "macs_original", "macs", "front", "line", "reason",
]  # fmt: skip
WORDS = ("model", "site", "op", "method", "placement", "significance", "line", "reason")
COUNTS = ("n", "n_clusters", "n_labelled")
Row = dict[str, Any]
Variant = tuple[str, tuple[str, ...]]
"""A layer, and the sites that it is put at; none means all of them."""
Store = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]
"""Keeps tables by name: gives back what it has, else computes and keeps it."""


@shared
def measure_fixes(
    model: nn.Module,
    images: Any,
    methods: str | Sequence[str] = DEFAULT_METHODS,
    *,
    singly: str | Sequence[str] | None = None,
    stability: pd.DataFrame | None = None,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
    store: Store | None = None,
    seconds: float | None = None,
) -> pd.DataFrame:
    """Put anti-aliasing layers into a network, weights kept, and measure what each changes.

    Every layer in the place of all sites together, then of one site at a time. Nothing is trained, so
    predictions change as well: read ``delta_sis`` beside ``agreement`` and ``accuracy``; a network that
    always answers the same is stable too. Training with the layer may give back what it costs.

    Args:
        model: the network; it stays as it is.
        images: as for `spectral.measure`.
        methods: layers, as `spectral.convert` names them, put everywhere.
        singly: those that are also put at one site at a time; the first of ``methods`` by default.
        stability: of these images, from `spectral.measure_stability`, if it is there already.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.
        store: keeps the rows of each variant, so that an interrupted call can be continued.
        seconds: about how long it may take: from the second on, variants for which that isn't enough are
            rows with the reason; all sites come first, then the loudest. None sets no limit.

    Returns:
        A row per layer and site, ``"all sites"`` among them: SIS before and after and its change, with a 95 %
        interval and a paired test (Holm-corrected over the rows), changed (the share of one-pixel shifts
        that change the prediction), agreement (share of images whose prediction stays), accuracy where
        labels are known, ``level_db`` (the alias power ratio of the median channel at these sites; in rows of
        all sites the mean over all that have one in the network as it is, also those that the layer leaves as
        they are), latency,
        multiply–accumulates, front (whether no other row has both less SIS and more agreement), line (the
        call that does it) and the reason where something couldn't be measured.

    Units:
        Alias power in dB; latency in ms per image; the rest none. Photographs (clusters) are the units of
        the test.

    Raises:
        SpectralError: for an unknown layer, no images, or a network without sites.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_fixes(net, torch.rand(3, 3, 16, 16), ("flc",), progress=False)
        >>> table[["site", "method"]].values.tolist()
        [['all sites', 'flc'], ['0', 'flc']]
    """
    keep: Store = store or (lambda name, compute: compute())
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    compare_feeds(feed)
    options = {
        "batch_size": batch_size, "progress": False, "logits": logits,
        "preprocessing": feed.preparation if feed.normalises else None,
    }  # fmt: skip
    base = _Base(model, feed, find_sites(model, feed.example), options, stability)
    if not base.sites:
        raise SpectralError(f"{CALLER}: {feed.name} has no site where resolution drops")
    plan = _plan(base, as_list(methods), None if singly is None else as_list(singly))
    rows: dict[Variant, pd.DataFrame] = {}
    end = math.inf if seconds is None else time.monotonic() + seconds
    order = plan if seconds is None else base.rank(plan)
    longest: dict[bool, float] = {}  # of those at all sites, and at one
    for method, names in tqdm(order, desc=f"fixing {feed.name}", unit="variant", disable=not progress):
        key, start = f"{method} at {', '.join(names) or ALL_SITES}", time.monotonic()
        expected = longest.get(bool(names), max(longest.values(), default=0.0))
        late = find_ranks().once(lambda s=start, n=expected: bool(rows) and s + n > end)  # type: ignore[misc]
        one = base.leave_out if late else base.try_variant
        rows[method, names] = keep(key, lambda f=one, m=method, n=names: pd.DataFrame([f(m, n)]))  # type: ignore[misc]
        longest[bool(names)] = max(longest.get(bool(names), 0.0), time.monotonic() - start)
    return _finish([rows[variant] for variant in plan])


@dataclass
class _Base:
    """The network as it is, and how variants of it are measured."""

    model: nn.Module
    feed: Feed
    sites: list[Site]
    options: dict[str, Any]
    stability: pd.DataFrame | None
    known: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self.has_scores = not self.feed.probe.find_obstacle()[0] and bool(self.feed.extents)
        if self.stability is not None:
            own = self.stability.set_index("image").loc[list(self.feed.images.ids)]
            self.stability = own.reset_index()

    def rank(self, plan: Sequence[Variant]) -> list[Variant]:
        """Return variants in the order in which they are tried: all sites, then the loudest one."""

        def loudness(variant: Variant) -> float:
            level = _average_levels(self.levels(), variant[1]) if variant[1] else math.inf
            return -1.0 if math.isnan(level) else level

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectralWarning)  # of the images, said once by the caller's feed
            try:
                return sorted(plan, key=loudness, reverse=True)
            except SpectralError:  # each variant says why
                return list(plan)

    def levels(self) -> dict[str, float]:
        """Say of each site of the network as it is how much it aliases; NaN where that isn't known."""
        if self.known is None:
            self.known = self._measure_levels(self.model, [site for site in self.sites if site.measurable])
        return self.known

    def units(self, method: str) -> list[tuple[str, ...]]:
        """Return the sites that are replaced together, in the order in which they run."""
        report = conversion_report(convert(self.model, method, example=self.feed.example))
        return [unit.sites for unit in report.units]

    def name(self, method: str, names: tuple[str, ...]) -> Row:
        """Say which variant a row is of."""
        return {
            "model": self.feed.name, "site": ", ".join(names) or ALL_SITES, "method": method,
            "line": _write_line(method, names), "reason": "",
        }  # fmt: skip

    def leave_out(self, method: str, names: tuple[str, ...]) -> Row:
        """Give the row of a variant for which there was no time."""
        return self.name(method, names) | {"n": 0, "reason": f"{LEFT_OUT}, since the time was over"}

    def try_variant(self, method: str, names: tuple[str, ...]) -> Row:
        """Measure one variant; a reason where that fails."""
        row = self.name(method, names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectralWarning)  # of the images, said once by the caller's feed
            try:
                return row | self._measure(method, names)
            except SpectralError as error:
                return row | {"n": 0, "reason": str(error)}

    def _measure(self, method: str, names: tuple[str, ...]) -> Row:
        example = self.feed.example
        where = (lambda site: site.name in names) if names else None
        variant = convert(self.model, method, where, example=example)
        report = conversion_report(variant)
        if not report.replaced:
            first = report.rows[0]
            raise SpectralError(f"nothing can be replaced; {first.site!r}: {first.reason}")
        replaced = [row.site for row in report.replaced]
        before, after = report.cost.macs
        row: Row = {
            "op": "+".join(dict.fromkeys(r.op for r in report.replaced)),
            "placement": "; ".join(dict.fromkeys(str(r.placement) for r in report.replaced)) if names else "",
            "macs_original": before, "macs": after,
            "n": len(self.feed.images), "n_clusters": len(set(find_clusters(self.feed.images))),
        }  # fmt: skip
        row |= self._compare_aliases(variant, replaced if names else None) | self._time(variant, example)
        return row | (self._compare_predictions(variant) if self.has_scores else {})

    def _compare_predictions(self, variant: nn.Module) -> Row:
        if self.stability is None:
            self.stability = measure_stability(
                self.model, self.feed.images, comb=False, circular=False, **self.options
            )
        a, b = (
            measure_stability(variant, self.feed.images, comb=False, circular=False, **self.options),
            self.stability,
        )
        clusters = b["cluster"]
        row: Row = {
            "changed_original": _average(b["n_changed"] / b["n_shifts"], clusters),
            "changed": _average(a["n_changed"] / a["n_shifts"], clusters),
            **bound_flags("agreement", a["prediction"] == b["prediction"], clusters),
            **_compare_accuracy(a["correct"], b["correct"], clusters),
        }  # fmt: skip
        if clusters.nunique() < FEWEST_CLUSTERS:
            means = {"sis_original": _average(b["sis"], clusters), "sis": _average(a["sis"], clusters)}
            return {**row, **means, "delta_sis": means["sis"] - means["sis_original"],
                    "reason": f"a test needs {FEWEST_CLUSTERS} clusters (photographs)"}  # fmt: skip
        test = stats.compare_paired(a["sis"], b["sis"], clusters)
        return {**row, "sis_original": test.mean_b, "sis": test.mean_a, "p": test.p,
                **bound("delta_sis", test.difference, test.ci_low, test.ci_high)}  # fmt: skip

    def _compare_aliases(self, variant: nn.Module, replaced: Sequence[str] | None) -> Row:
        """Alias power ratios at some sites, before and after, in dB; None: at all that have one before.

        Which of all sites a layer can replace differs between layers: those that it leaves as they are count.
        """
        sites = find_sites(variant, self.feed.example)
        pairs = match_sites(self.sites, sites, {}, find_original_names(variant, sites))
        found = {pair.a.name: pair.b for pair in pairs}
        asked = [site.name for site in self.sites if site.measurable]
        asked = asked if replaced is None else [name for name in asked if name in replaced]
        own = [name for name in asked if not math.isnan(self.levels()[name])]
        absent = [name for name in own if name not in found]
        if absent:
            return {"reason": f"with the layer {absent[0]} is no site whose aliases can be measured"}
        if not own:
            return {}
        now = self._measure_levels(variant, [found[name] for name in own])
        after = float(np.mean([now[found[name].name] for name in own]))  # unknown where one has fallen silent
        before = _average_levels(self.levels(), own)
        return {"level_db_original": to_decibels(before), "level_db": to_decibels(after)}

    def _measure_levels(self, model: nn.Module, sites: Sequence[Site]) -> dict[str, float]:
        metrics = [metric for _, metric in LEVEL_MEANS.values()]
        table = measure(model, self.feed.images, metrics, sites=sites, taps=("signal",), **self.options)
        summary = summarize_measurements(table)
        rows = [read_means(summary, site.name, LEVEL_MEANS) for site in sites]
        told = add_levels(pd.DataFrame(rows), LEVELS[0])["level_ratio"]
        return dict(zip((site.name for site in sites), told, strict=True))

    def _time(self, variant: nn.Module, example: Inputs) -> Row:
        if example.kwargs or len(example.args) != 1 or not isinstance(example.args[0], Tensor):
            return {}  # latency is of networks that take one batch
        models, batch = {"before": self.model, "after": variant}, example.args[0]
        times = measure_latency(models, dict.fromkeys(models, batch), LATENCY_REPEATS)
        before, after = (1000 * median(times[name]) for name in models)
        return {"latency_ms_original": before, "latency_ms": after}


def _plan(base: _Base, methods: Sequence[str], singly: Sequence[str] | None) -> list[Variant]:
    """Every layer everywhere, then at each site."""
    rounds = methods[:1] if singly is None else singly
    single: Iterator[Variant] = ((method, unit) for method in rounds for unit in base.units(method))
    return [*((method, ()) for method in methods), *single]


def _write_line(method: str, names: tuple[str, ...]) -> str:
    where = f", where={list(names)!r}" if names else ""
    return f"model = spectral.convert(model, {method!r}{where})"


def _average(values: pd.Series, clusters: pd.Series) -> float:
    """Mean of the clusters' means, as everything else in a row."""
    return stats.summarize(values, None, clusters[values.index]).mean


def _compare_accuracy(after: pd.Series, before: pd.Series, clusters: pd.Series) -> Row:
    known = before.notna()
    if not known.any():
        return {"n_labelled": 0}
    shares = (_average(flags[known].astype(float), clusters) for flags in (before, after))
    return dict(
        zip(("n_labelled", "accuracy_original", "accuracy"), (int(known.sum()), *shares), strict=True)
    )


def _average_levels(levels: Mapping[str, float], sites: Sequence[str]) -> float:
    """Mean over those sites that have a level; NaN where none has."""
    known = [site for site in dict.fromkeys(sites) if not math.isnan(levels.get(site, math.nan))]
    return float(np.mean([levels[site] for site in known])) if known else math.nan


def _finish(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    records = [record for row in rows for record in row.to_dict("records")]
    table = pd.DataFrame(records).reindex(columns=[c for c in COLUMNS if c not in ("p_holm", "significance")])
    table["front"] = _find_front(table)
    table = add_holm(table.assign(p=table["p"].astype(float)), "p")[COLUMNS]
    for column in COLUMNS:
        if column in WORDS:
            table[column] = table[column].astype(object).where(table[column].notna(), "").astype(str)
        elif column in COUNTS:
            table[column] = table[column].astype("Int64")
        elif column != "front":
            table[column] = table[column].astype(float)
    return table


def _find_front(table: pd.DataFrame) -> list[bool]:
    """Whether no other row, the network as it is included, has less SIS and at least the agreement."""
    points = table[["sis", "agreement"]].astype(float).to_numpy()
    start = np.array([[table["sis_original"].astype(float).mean(), 1.0]])
    others = np.concatenate([points, start])
    front = []
    for sis, agreement in points:
        better = (others[:, 0] <= sis) & (others[:, 1] >= agreement)
        strictly = (others[:, 0] < sis) | (others[:, 1] > agreement)
        front.append(bool(np.isfinite(sis) and not (better & strictly).any()))
    return front
