"""The instability budget: how much of it each source causes, and which sites and activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral.arguments import as_integer
from spectral.budget.rounding import bound_rounding
from spectral.budget.schema import COLUMNS, CONTENT, METRICS, TOTAL, UNEXPLAINED
from spectral.budget.shapley import Part, Values, coalitions, count_sets, share_out, split_player
from spectral.budget.summary import average, describe_budget
from spectral.budget.views import Shifts, choose_shifts, find_features, relate
from spectral.causes import (
    SOURCES,
    Cause,
    Idealized,
    Memo,
    Move,
    Plans,
    Source,
    Turn,
    check_factor,
    check_sources,
    find_causes,
)
from spectral.errors import SpectralError
from spectral.inputs import Inputs
from spectral.instability import compute_instability, compute_logit_jitter
from spectral.intake import Feed
from spectral.measurement import find_clusters, insert_clusters
from spectral.network import Scores, Take, undisturbed
from spectral.ranks import shared
from spectral.sharing import Sharing
from spectral.shown import Shown
from spectral.stability.lattice import find_total_stride

CALLER = "measure_instability_budget"
CLOSED = 0.02  # what may stay unexplained before a finer lattice is tried
FACTORS = (2, 4, 8)
VIEWS = 5  # an image and its four shifts
KEPT_BYTES = 2**28  # of images that are read once for all coalitions


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
        as_integer(n, f"{CALLER}: {name}", least=1)
        for name, n in (("orders", orders), ("batch_size", batch_size))
    )
    seed = as_integer(seed, f"{CALLER}: seed", least=0)
    factors = FACTORS if factor is None else (check_factor(factor, CALLER),)
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    plans = Plans(feed.model)
    moves = choose_shifts(shifts, _find_stride(feed, plans), seed, CALLER)
    game = _Game(feed, plans, moves, batch_size, progress)
    with undisturbed(model), torch.no_grad(), game.bar:
        causes = game.find_causes(chosen)
        members = {source: [c for c in causes if c.source == source] for source in chosen}
        game.choose_factor(factors, frozenset(causes), frozenset(members.get("decimation", ())))
        game.look_at(_pair(_join(members, s) for s in coalitions(chosen)))
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
    table["reason"] = table["reason"].fillna("")
    table.attrs |= {
        "coalitions": [game.describe(s, _join(members, s)) for s in coalitions(chosen)],
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


@dataclass(frozen=True)
class _Seen:
    """What a network with some causes made ideal says: one row for each metric, one column for each image."""

    worth: Values
    predictions: Tensor | None


_Key = tuple[frozenset[Cause], int, bool]  # what is ideal, on which lattice, and whether nothing enters


class _Game:
    """Instability of a network with any set of causes made ideal, each measured once."""

    def __init__(self, feed: Feed, plans: Plans, shifts: Shifts, batch_size: int, progress: bool) -> None:
        self.feed, self.shifts, self.batch_size = feed, shifts, batch_size
        self.factor, self.passes = FACTORS[0], 0
        self.left: list[Cause] = []
        self._plans = plans
        self._seen: dict[_Key, _Seen] = {}
        self._output, self._rounding = "", np.empty((len(METRICS), 0))
        self._batches: list[Inputs] | None = None
        self._clusters = find_clusters(feed.images)
        given = (x for x, _ in feed.example.every_tensor())
        self._dtypes = [x.dtype for x in (*given, *feed.model.parameters()) if x.is_floating_point()]
        self._share = Sharing(feed, batch_size)
        self.bar = tqdm(desc=f"budget of {feed.name}", unit="pass", disable=not self._share.shows(progress))

    @property
    def has_scores(self) -> bool:
        """Whether the model gives class scores, so that there is an SIS."""
        return not (self.feed.find_obstacle()[1])

    def find_causes(self, sources: Sequence[Source]) -> list[Cause]:
        """List what can be made ideal.

        Raises:
            SpectralError: if nothing can.
        """
        one = self.shifts.views(self.feed.example, self.feed)[0].inputs
        found = self._plans.find(one).causes
        self.left = [cause for cause in found if cause.reason is not None]
        able = [cause for cause in found if cause.reason is None and cause.source in sources]
        if not able and self.left:
            first = f"{self.left[0].name!r}: {self.left[0].reason}"
            raise SpectralError(
                f"{CALLER}: {self.feed.name} has nothing that could be made ideal of {', '.join(sources)} "
                f"({first}); pass a network of convolutions and pools"
            )
        return able

    def choose_factor(self, factors: Sequence[int], causes: frozenset[Cause], late: frozenset[Cause]) -> None:
        """Choose the first factor that leaves next to nothing unexplained, or that which leaves least.

        Args:
            factors: to choose from.
            causes: all that can be made ideal.
            late: those whose operators tend to come last, so that much is the same without them.
        """
        if not any(cause.source == "nonlinearity" for cause in causes):
            self.factor = factors[0]
            return
        self.factor = factors[0]  # at a finer one, the first question is whether it helps
        self.look_at([frozenset(), late, causes - late, causes])
        total = np.fmax(self._average(self.worth(frozenset())), self._average(self.rounding()))
        rests = []
        for factor in factors:
            self.factor = factor
            ratios = np.array(self._average(self.rest(causes))) / total
            rests.append(max(ratios[ratios == ratios], default=0.0))
            if rests[-1] <= CLOSED:
                return
            if len(rests) > 1 and rests[-1] > rests[-2] / 2:
                break  # what is left isn't the lattice's: positions, flattened maps
        self.factor = factors[int(np.argmin(rests))]

    def worth(self, causes: frozenset[Cause]) -> Values:
        """Return the instability of every image with these causes made ideal: (metrics, images)."""
        return self.look(causes).worth

    def rest(self, causes: frozenset[Cause]) -> Values:
        """Return the same where nothing enters over a border."""
        closed = self.shifts.closed is not None
        self.look_at([causes], closed)
        return self._seen[self._key(causes, closed)].worth

    @property
    def output(self) -> str:
        """What the network as it is gives, of which logit_jitter is."""
        self.look_at([frozenset()])
        return self._output

    def rounding(self) -> Values:
        """Return what rounding alone gives of every image's instability: (metrics, images)."""
        self.look_at([frozenset()])
        return self._rounding

    def look(self, causes: frozenset[Cause]) -> _Seen:
        """Run the network with these causes made ideal."""
        self.look_at([causes])
        return self._seen[self._key(causes)]

    def look_at(self, sets: Iterable[frozenset[Cause]], closed: bool = False) -> None:
        """Run the network with each of these sets made ideal, which take turns at every view of a batch.

        What one pass and the next have in common is computed once; sets that differ late stand together.
        """
        wanted = [causes for causes in dict.fromkeys(sets) if self._key(causes, closed) not in self._seen]
        if not wanted:
            return
        answers = zip(*self._share.gather(self._look(wanted, closed)), strict=True)
        for causes, own in zip(wanted, answers, strict=True):
            still, likely, moved, sis = zip(*own, strict=True)
            self.passes += sum(1 + len(views) for views in moved)
            z = torch.cat(still)
            jitter = compute_logit_jitter(z, list(torch.cat(moved, 1)))
            worth = torch.stack([torch.cat(sis), jitter]).numpy()
            predictions = z.argmax(-1) if self.has_scores else None
            self._seen[self._key(causes, closed)] = _Seen(worth, predictions)
            if not causes and not closed:
                self._read_output(z, torch.cat(likely))
            self.bar.update()

    def _read_output(self, z: Tensor, likely: Tensor) -> None:
        """Note what the network as it is gives, and what of its instability rounding alone may be."""
        self._output = "features"
        if self.has_scores:
            self._output = "probabilities" if Scores(z, "").are_probabilities else "logits"
        self._rounding = bound_rounding(z, likely, self._dtypes, self._output == "probabilities")

    def _key(self, causes: frozenset[Cause], closed: bool = False) -> _Key:
        finer = any(cause.source == "nonlinearity" for cause in causes)
        return causes, self.factor if finer else 0, closed

    def describe(self, sources: Iterable[Source], causes: frozenset[Cause]) -> dict[str, Any]:
        """Return a coalition's means over photographs, and the share of these whose prediction stays."""
        seen, plain = self.look(causes), self.look(frozenset()).predictions
        means = dict(zip(METRICS, self._average(seen.worth), strict=True))
        agree = None
        if plain is not None and seen.predictions is not None:
            (agree,) = self._average(torch.eq(seen.predictions, plain)[None].double().numpy())
        return {"ideal": "+".join(s for s in SOURCES if s in sources), **means, "agreement": agree}

    def _average(self, worth: Values) -> list[float]:
        """Return the mean over photographs of each row; NaN where nothing is known."""
        return [average(row, self._clusters) if not np.isnan(row).all() else np.nan for row in worth]

    def _look(self, wanted: Sequence[frozenset[Cause]], closed: bool) -> Iterator[list[tuple[Tensor, ...]]]:
        """Yield of each batch what each network says of it and of its views, and SIS."""
        mover = (self.shifts.closed if closed else None) or self.shifts.views
        memo = Memo(self.feed.extents)
        networks = [
            Idealized(self.feed.model, SOURCES, causes.__contains__, self.factor, self._plans, memo)
            for causes in wanted
        ]  # fmt: skip
        groups = [list(own) for _, own in groupby(range(len(wanted)), lambda i: _leave_late(wanted[i]))]
        for inputs in self._read():
            said: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in wanted]
            views = mover(inputs, self.feed)
            related = relate(views)
            for alike in groups:  # of one group after the other the views, so that little is kept at once
                for v, view in enumerate(views):
                    for i in alike:
                        memo.expect(_find_turn(i, v, related, shared=i != alike[-1]))
                        with networks[i]:
                            said[i].append(self._say(view.inputs))
                    memo.forget()
            yield [self._compare(own) for own in said]

    def _compare(self, views: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, ...]:
        """Return logits and probabilities of images, logits of these moved, and SIS; NaN where unknown."""
        z = views[0][0]
        likely = [torch.full(z.shape, torch.nan, dtype=torch.float64)]
        sis = torch.full((len(z),), torch.nan, dtype=torch.float64)
        if self.has_scores:
            likely = [probabilities for _, probabilities in views if probabilities is not None]
            sis = compute_instability(likely[0], likely[1:]).cpu()
        return z, likely[0], torch.stack([moved for moved, _ in views[1:]]), sis

    def _say(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Return scores, or features where there are none, and probabilities."""
        # A copy, since a model that works in place would hand altered images to the shifts.
        output = self.feed.run(inputs.map(lambda x, _: x.clone()))
        scores = self.feed.scores(output, inputs.count)
        if self.has_scores and scores.values is not None:
            return scores.values.cpu(), scores.probabilities().cpu()
        features = find_features(output, inputs.count)
        if features is None:
            raise SpectralError(
                f"{CALLER}: {self.feed.name} returns neither class scores nor a tensor of features; pass "
                f"logits=, a function from the output to scores or features (B, K)"
            )
        return features.cpu(), None

    def _read(self) -> Iterable[Inputs]:
        """Read images ready for the network, once for all coalitions unless they are very many."""
        if self._batches is not None:
            return self._batches
        example = self.feed.example
        own = self._share.indices
        size = len(own) * sum(x.numel() * x.element_size() for x, _ in example.every_tensor())
        batches = (inputs for _, inputs in self.feed.batches(self.batch_size, indices=own))
        if size > KEPT_BYTES:
            return batches
        self._batches = list(batches)
        return self._batches


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


def _pair(sets: Iterable[frozenset[Cause]]) -> list[frozenset[Cause]]:
    """Order sets: those that differ in decimations alone, which come late in a network, stand together."""

    def rank(causes: frozenset[Cause]) -> tuple[bool, ...]:
        return tuple(any(c.source == source for c in causes) for source in reversed(SOURCES))

    return sorted(sets, key=rank)


def _leave_late(causes: frozenset[Cause]) -> frozenset[Cause]:
    """Leave out the causes that come late in a network: sets of the same others begin alike."""
    return frozenset(cause for cause in causes if cause.source != "decimation")


def _find_turn(network: int, view: int, related: Sequence[tuple[int, Move] | None], *, shared: bool) -> Turn:
    """Say of which earlier view a network's pass on one is a moved one, and which later ones are of it."""
    later = [found[1] for found in related if found is not None and found[0] == view]
    other, move = related[view] or (None, {})
    return Turn((network, view), None if other is None else (network, other), move, later, shared)


def _join(members: Mapping[Source, Sequence[Cause]], sources: Iterable[Source]) -> frozenset[Cause]:
    return frozenset(cause for source in sources for cause in members[source])


def _split(
    game: _Game,
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
    game: _Game,
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


def _rows(game: _Game, source: str, site: str, part: Part, total: Values) -> pd.DataFrame:
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
