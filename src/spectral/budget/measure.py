"""The instability budget: how much of it each source causes, and which sites and activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectral.arguments.values import as_integer
from spectral.budget.game import CALLER, FACTORS, VIEWS, Game
from spectral.budget.schema import COLUMNS, CONTENT, METRICS, TOTAL, UNEXPLAINED
from spectral.budget.shapley import Part, Values, coalitions, count_sets, share_out, split_player
from spectral.budget.summary import describe_budget
from spectral.budget.views import choose_shifts
from spectral.causes import (
    SOURCES,
    Cause,
    Plans,
    Source,
    check_factor,
    check_sources,
    find_causes,
)
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take, undisturbed
from spectral.processes.ranks import shared
from spectral.stability.lattice import find_total_stride
from spectral.table.attributes import share_facts
from spectral.table.schema import fill_words
from spectral.table.shown import Shown


@shared
def measure_instability_budget(
    model: nn.Module,
    images: Any,
    *,
    sources: Iterable[str] = SOURCES,
    split: Iterable[str] = (),
    orders: int = 2,
    shifts: str = "pixel",
    factor: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
    name: str | None = None,
) -> pd.DataFrame:
    """Measure how much of a network's shift instability decimation, nonlinearities and borders cause.

    Each set of sources is made ideal (`idealize`) and the instability of what is left is measured. A source's
    value is its Shapley value: what it takes off on the average over the orders in which the sources can be
    made ideal. What stays with all of them ideal is unexplained: position embeddings, windows, flattened
    maps, attention, and what a lattice ``factor`` times finer can't hold. The values and the unexplained rest
    add up to the network's instability, image by image.

    Instability is SIS, and logit jitter, which unlike SIS knows no confidence and no scale; both are of the
    altered network. Idealising alters what a network computes: ``attrs["coalitions"]`` says of each set of
    sources how often the prediction stays the same.

    Args:
        model: classifier; of a model without class scores the jitter of its features is measured.
        images: as for `spectral.measure`.
        sources: which are made ideal.
        split: sources whose values are shared among their sites, activations or borders, as ``"decimation"``:
            some hundred forward passes more (`count_budget_passes`).
        orders: how many orders of these are sampled for each set of the other sources.
        shifts: ``"pixel"``, as SIS; ``"half"`` a pixel, of the images without their Nyquist bins, which
            that would remove; ``"random"``, four shifts by whole pixels up to the total stride; or
            ``"crop"``: windows of the images, one pixel smaller on each side, so that what enters over the
            border is the world's. What that alone does, to a network without other causes, is the source
            ``content``; five passes more.
        factor: how much finer the lattice of nonlinearities is; by default 2, or 4 or 8 where less leaves
            more than 2 % unexplained and a finer one halves that.
        seed: of the orders and random shifts.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.
        name: of the model in the table; by default as it was loaded, else its class.

    Returns:
        For each image and metric (sis, logit_jitter) rows with the source ``total``, each source (``content``
        of crops too), what is ``unexplained`` and, with a ``site``, what of a source is split: model, image,
        cluster, metric, source, site, value, share (of the image's total; NaN where that is no more than
        what rounding gives, whatever the scale of the logits), error (standard error of sampling), first_in
        and last_out (what making it ideal takes off alone, and after all else), reason.
        Rows without an image say what can't be made ideal, and why. ``attrs``: coalitions (a record for each
        set of sources: its means and the agreement with the unaltered predictions), factor, passes, shifts
        and output: of what logit_jitter is, ``logits``, ``probabilities`` where the network gives no logits
        or ``features`` where it gives no class scores.

    Raises:
        SpectralError: for an argument out of range, no images, images smaller than the total stride, or a
            model of which nothing can be made ideal.

    Source:
        METRICS: instability budget; L. S. Shapley, A Value for n-Person Games, 1953.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_instability_budget(net, torch.rand(4, 3, 16, 16), progress=False)
        >>> parts = table[(table["metric"] == "sis") & ~table["source"].isin(["total"])]
        >>> bool((parts.groupby("image")["share"].sum() - 1).abs().max() < 1e-9)
        True
    """
    chosen, splitting = check_sources(sources, CALLER), check_sources(split, CALLER)
    if not chosen:
        raise SpectralError(f"{CALLER}: sources names none; allowed values are {', '.join(SOURCES)}")
    for source in splitting:
        if source not in chosen:
            raise SpectralError(f"{CALLER}: {source!r} is to be split and isn't among the sources")
    orders, batch_size = (
        as_integer(n, f"{CALLER}: {what}", least=1)
        for what, n in (("orders", orders), ("batch_size", batch_size))
    )
    seed = as_integer(seed, f"{CALLER}: seed", least=0)
    factors = FACTORS if factor is None else (check_factor(factor, CALLER),)
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits, name=name)
    plans = Plans(feed.model)
    moves = choose_shifts(shifts, _find_stride(feed, plans), seed, CALLER)
    game = Game(feed, plans, moves, batch_size, progress)
    with undisturbed(model), torch.no_grad(), game.bar:
        causes = game.find_causes(chosen)
        members = {source: [c for c in causes if c.source == source] for source in chosen}
        game.choose_factor(factors, frozenset(causes))
        game.look_at(_join(members, s) for s in coalitions(chosen))
        parts = share_out(lambda s: game.worth(_join(members, s)), chosen)
        rng = np.random.default_rng(seed)
        places = {source: _split(game, members, source, orders, rng) for source in splitting}
        table = _tabulate(game, parts, places, frozenset(causes))
    table.insert(0, "model", feed.name)
    table = insert_clusters(table, feed.images)
    left = [
        {"model": feed.name, "image": "", "cluster": "", "metric": "", "source": cause.source,
         "site": cause.name, "reason": cause.reason}
        for cause in game.left
    ]  # fmt: skip
    table = pd.concat([table, pd.DataFrame(left)], ignore_index=True) if left else table
    table["reason"] = fill_words(table["reason"])
    table.attrs |= {
        "coalitions": share_facts([game.describe(s, _join(members, s)) for s in coalitions(chosen)]),
        "factor": game.factor, "passes": game.passes, "shifts": shifts, "output": game.output,
    }  # fmt: skip
    return Shown(table[COLUMNS], describe_budget)


def count_budget_passes(
    model: nn.Module,
    example: Any,
    *,
    sources: Iterable[str] = SOURCES,
    split: Iterable[str] = (),
    orders: int = 2,
    factor: int | None = None,
) -> int:
    """Tell how often at most `measure_instability_budget` passes each image through the network.

    One pass of a copy, without data where it can, says what can be made ideal.

    Args:
        model: as for `find_causes`.
        example: as for `find_sites`.
        sources: as for `measure_instability_budget`.
        split: likewise.
        orders: likewise.
        factor: likewise.

    Raises:
        SpectralError: as for `find_causes`, or for unknown sources.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> count_budget_passes(net, 16, factor=2), count_budget_passes(net, 16, factor=2, split="border")
        (40, 50)
    """
    chosen, splitting = check_sources(sources, CALLER), check_sources(split, CALLER)
    able = [cause.source for cause in find_causes(model, example) if cause.reason is None]
    sets = count_sets({source: able.count(source) for source in chosen}, splitting, orders)
    tried = len(FACTORS) if factor is None and "nonlinearity" in chosen else 0
    return VIEWS * (sets + tried)


def _find_stride(feed: Feed, plans: Plans) -> dict[str, int]:
    """Return the total stride along each axis, where it is known.

    Raises:
        SpectralError: if the images are smaller.
    """
    if "w" not in feed.extents:
        raise SpectralError(f"{CALLER}: none of the axes of the inputs of {feed.name} is known to be spatial")
    sites = plans.find(feed.example).sites
    stride, _ = find_total_stride(sites, feed.extents)
    for site in sites:
        if any(n < step for n, step in zip(site.input_size, site.stride, strict=True)):
            sizes = "×".join(map(str, feed.extents.values()))
            raise SpectralError(
                f"{CALLER}: images of {sizes} are smaller than the total stride of {feed.name}: of them "
                f"{'×'.join(map(str, site.input_size))} samples enter {site.name!r}; pass larger images"
            )
    return stride


def _join(members: Mapping[Source, Sequence[Cause]], sources: Iterable[Source]) -> frozenset[Cause]:
    return frozenset(cause for source in sources for cause in members[source])


def _split(
    game: Game,
    members: Mapping[Source, Sequence[Cause]],
    source: Source,
    orders: int,
    rng: np.random.Generator,
) -> dict[Cause, Part]:
    """Share a source's value among its places."""
    every = _join(members, members)
    found: dict[Any, tuple[Values, Values]] = split_player(
        lambda s: game.worth(frozenset(s)), dict(members), source, orders, rng
    )  # fmt: skip
    none, whole = game.worth(frozenset()), game.worth(every)
    return {
        cause: Part(value, none - game.worth(frozenset([cause])), game.worth(every - {cause}) - whole, error)
        for cause, (value, error) in found.items()
    }


def _tabulate(
    game: Game,
    parts: Mapping[Source, Part],
    places: Mapping[Source, Mapping[Cause, Part]],
    every: frozenset[Cause],
) -> pd.DataFrame:
    """A row per image, metric, source and place; what they leave of the total is unexplained."""
    total = game.worth(frozenset())
    whole = Part(total, total, total, np.zeros_like(total))
    rest = game.rest(every)
    rows = [_rows(game, TOTAL, "", whole, total)]
    for source, part in parts.items():
        rows.append(_rows(game, source, "", part, total))
        rows += [_rows(game, source, cause.name, own, total) for cause, own in places.get(source, {}).items()]
    if game.shifts.closed is not None:
        content = game.worth(every) - rest
        rows.append(_rows(game, CONTENT, "", Part(content, content, content, np.zeros_like(rest)), total))
    rows.append(_rows(game, UNEXPLAINED, "", Part(rest, rest, rest, np.zeros_like(rest)), total))
    return pd.concat(rows, ignore_index=True)


def _rows(game: Game, source: str, site: str, part: Part, total: Values) -> pd.DataFrame:
    frames = []
    for row, metric in enumerate(METRICS):
        own = total[row]
        if np.isnan(own).all() and metric == "sis":
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(own > game.rounding()[row], part.value[row] / own, np.nan)
        frames.append(pd.DataFrame({
            "image": list(game.feed.images.ids), "metric": metric, "source": source, "site": site,
            "value": part.value[row], "share": share, "error": part.error[row],
            "first_in": part.first_in[row], "last_out": part.last_out[row], "reason": "",
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)
