"""The game that a budget shares out: a network's instability with any set of its causes made ideal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from spectral.budget.rounding import bound_rounding
from spectral.budget.schema import METRICS
from spectral.budget.shapley import Values
from spectral.budget.summary import average
from spectral.budget.views import Shifts, find_features, relate
from spectral.causes import SOURCES, Cause, Idealized, Memo, Offset, Plans, Source, Turn
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import find_clusters
from spectral.metrics.instability import compute_instability, compute_logit_jitter
from spectral.network import Scores
from spectral.network.inputs import Inputs
from spectral.sharing import Sharing

CALLER = "measure_instability_budget"
CLOSED = 0.02  # what may stay unexplained before a finer lattice is tried
FACTORS = (2, 4, 8)
VIEWS = 5  # an image and its four shifts
KEPT_BYTES = 2**28  # of images that are read once for all coalitions


@dataclass(frozen=True)
class _Seen:
    """What a network with some causes made ideal says: one row for each metric, one column for each image."""

    worth: Values
    predictions: Tensor | None


_Key = tuple[frozenset[Cause], int, bool]  # what is ideal, on which lattice, and whether nothing enters


class Game:
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
        return not (self.feed.probe.find_obstacle()[1])

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

    def choose_factor(self, factors: Sequence[int], causes: frozenset[Cause]) -> None:
        """Choose the first factor that leaves next to nothing unexplained, or that which leaves least.

        Args:
            factors: to choose from.
            causes: all that can be made ideal.
        """
        if not any(cause.source == "nonlinearity" for cause in causes):
            self.factor = factors[0]
            return
        self.factor = factors[0]  # at a finer one, the first question is whether it helps
        early = _leave_late(causes)
        self.look_at([frozenset(), causes - early, early, causes])
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

        What one pass and the next have in common is computed once.
        """
        wanted = _pair(
            causes for causes in dict.fromkeys(sets) if self._key(causes, closed) not in self._seen
        )
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


def _pair(sets: Iterable[frozenset[Cause]]) -> list[frozenset[Cause]]:
    """Order sets: those that differ in decimations alone, which come late in a network, stand together."""

    def rank(causes: frozenset[Cause]) -> tuple[bool, ...]:
        return tuple(any(c.source == source for c in causes) for source in reversed(SOURCES))

    return sorted(sets, key=rank)


def _leave_late(causes: frozenset[Cause]) -> frozenset[Cause]:
    """Leave out the causes that come late in a network: sets of the same others begin alike."""
    return frozenset(cause for cause in causes if cause.source != "decimation")


def _find_turn(
    network: int, view: int, related: Sequence[tuple[int, Offset] | None], *, shared: bool
) -> Turn:
    """Say of which earlier view a network's pass on one is a moved one, and which later ones are of it."""
    later = [found[1] for found in related if found is not None and found[0] == view]
    other, move = related[view] or (None, {})
    return Turn((network, view), None if other is None else (network, other), move, later, shared)
