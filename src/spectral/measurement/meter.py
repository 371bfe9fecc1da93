"""The values of one batch: measured inside the model's forward, fetched from the device behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.hooks.capture import OF_DENSE_MAPS, Capture, Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.intake import Feed, pick_inputs
from spectral.measurement.captures import choose_taps, compare_identity, judge_identity, measure_capture
from spectral.measurement.description import by
from spectral.measurement.pieces import OPEN, Scheme
from spectral.metrics.instability import compute_instability
from spectral.network import list_moves, roll_inputs
from spectral.network.inputs import Inputs
from spectral.numerics.transfer import Transfer
from spectral.table.rows import Key

MOSTLY = 0.25  # the share of doubtful images from which on a site is measured exactly at once
Block = npt.NDArray[np.float64]


@dataclass
class Batch:
    """What was measured of some images, on its way from the device.

    Attributes:
        chosen: which images.
        inputs: as the model got them.
        keys: what the columns are.
        columns: those on one device each, (which of the keys, values (B, …)).
    """

    chosen: list[int]
    inputs: Inputs
    keys: list[Key]
    columns: list[tuple[list[int], Transfer]]

    def wait(self) -> Block:
        """Return the values (B, keys)."""
        block = np.full((len(self.chosen), len(self.keys)), np.nan)
        for places, values in self.columns:
            block[:, places] = values.wait().numpy()
        return block


class Meter:
    """Measures batch after batch.

    Where the host would have to wait for a device, nothing is read back inside a forward pass. What is
    doubtful there (`OPEN`) is measured again, on its own, once the values of the batch have arrived.

    Args:
        feed: runs the model.
        metrics: what is measured.
        taps: where.
        predicts: whether the output holds class scores.
        list_labels: returns the labels of some images.
        deferred: whether nothing is read back inside a forward; by default wherever that would wait.

    Attributes:
        failed: by site, why it can't be measured.
        verified: sites whose dense map has been checked, or that have values.
    """

    def __init__(
        self,
        feed: Feed,
        metrics: Sequence[str],
        taps: Sequence[Tap],
        *,
        predicts: bool,
        list_labels: Callable[[Sequence[int]], list[float]] | None,
        deferred: bool | None = None,
    ) -> None:
        self.feed, self.metrics, self.taps, self.predicts = feed, tuple(metrics), tuple(taps), predicts
        self.deferred = feed.device.type != "cpu" if deferred is None else deferred
        self.needs_dense = not set(choose_taps(metrics, taps)).isdisjoint(OF_DENSE_MAPS)
        self.failed: dict[str, str] = {}
        self.verified: set[str] = set()
        self._list_labels = list_labels
        self._values: dict[Key, Tensor] = {}
        self._checks: dict[str, Tensor] = {}
        self._exact: set[str] = set()  # sites that were doubtful in many images
        self._one_by_one = False
        self._alone = False  # whether the pass is of one image
        self._begun = False  # whether a batch has been through
        self._settles = not self.deferred

    def measure(self, inputs: Inputs, chosen: list[int], extractor: FeatureExtractor) -> Batch:
        """Measure a batch at once; image by image where the model runs its sites so, as some detectors do."""
        failure = None
        if not self._one_by_one:
            self._values, first, self._begun = {}, not self._begun, True
            try:
                self._measure_model(inputs, chosen, extractor)
                self._judge()
            except SpectralError as error:
                if not first or inputs.count == 1:
                    raise
                failure = error
            # Where a site ran on some of the images, nothing tells on which.
            if failure is None and all(len(values) == inputs.count for values in self._values.values()):
                return self._fetch(inputs, chosen)
        self._measure_each(inputs, chosen, extractor, failure)
        return self._fetch(inputs, chosen)

    def settle(self, batch: Batch, extractor: FeatureExtractor) -> tuple[list[Key], Block]:
        """Wait for the values of a batch, and measure again what rounding left open.

        Raises:
            SpectralError: for what isn't finite, naming the site.
        """
        block = batch.wait()
        marks = [i for i, key in enumerate(batch.keys) if key.metric == OPEN]
        for i in marks:
            if block[:, i].mean() >= MOSTLY:
                self._exact.add(batch.keys[i].site)
        scores = [i for i, key in enumerate(batch.keys) if key.metric in ("confidence", "sis")]
        marked = (block[:, marks] > 0).any(1) | np.isnan(block[:, scores]).any(1)
        if marks and marked.any():
            places = np.flatnonzero(marked).tolist()
            with self._settling():
                again = self.measure(
                    pick_inputs(batch.inputs, places), [batch.chosen[i] for i in places], extractor
                )
            found = dict(zip(again.keys, again.wait().T, strict=True))
            absent = np.full(len(places), np.nan)
            for i, key in enumerate(batch.keys):
                block[places, i] = found.get(key, absent)
        left = [i for i in range(len(batch.keys)) if i not in marks]
        return [batch.keys[i] for i in left], block[:, left]

    def reduce(self, capture: Capture) -> None:
        """Measure what one site does: the callback of a `FeatureExtractor`."""
        site, capture.alone = capture.site, self._alone
        if site.name in self.failed:
            return
        if self.needs_dense and site.name not in self.verified:
            reason = self._check(capture)
            if reason:
                self.failed[site.name] = reason
                return
        self.verified.add(site.name)
        scheme: Scheme = "settled" if self._settles else "exact" if site.name in self._exact else "fast"
        try:
            found = measure_capture(capture, self.metrics, self.taps, scheme)
        except SpectralError as error:
            raise SpectralError(f"site {site.name!r}: {error}") from error
        for (tap, metric), values in found.items():
            self._values[Key(metric, site.name, site.call, site.op, by(site.stride), tap)] = values

    @contextmanager
    def _settling(self, alone: bool = False) -> Iterator[None]:
        """Settle at once what rounding leaves open, perhaps in passes of one image each."""
        before = self._settles, self._alone
        self._settles, self._alone = True, alone
        try:
            yield
        finally:
            self._settles, self._alone = before

    def _check(self, capture: Capture) -> str | None:
        """Check a site's dense map, or put that off until the pass is through."""
        try:
            found = compare_identity(capture)
        except SpectralError as error:  # a layer whose dense map doesn't exist as it is set
            return str(error)
        if isinstance(found, str):
            return found
        if self._settles:
            return judge_identity(found)
        self._checks[capture.site.name] = found
        return None

    def _judge(self) -> None:
        """Take back what was measured at sites whose dense map has turned out wrong."""
        if not self._checks:
            return
        names, self._checks = self._checks, {}
        for name, found in zip(names, Transfer(torch.stack(list(names.values()))).wait(), strict=True):
            reason = judge_identity(found)
            if reason:
                self.failed[name] = reason
                self.verified.discard(name)
                self._values = {key: value for key, value in self._values.items() if key.site != name}

    def _fetch(self, inputs: Inputs, chosen: list[int]) -> Batch:
        keys = list(self._values)
        devices: dict[torch.device, list[int]] = {}
        for i, key in enumerate(keys):
            devices.setdefault(self._values[key].device, []).append(i)
        columns = [
            (places, Transfer(torch.stack([self._values[keys[i]].double() for i in places], dim=1)))
            for places in devices.values()
        ]
        return Batch(chosen, inputs, keys, columns)

    def _measure_each(
        self, inputs: Inputs, chosen: list[int], extractor: FeatureExtractor, failure: SpectralError | None
    ) -> None:
        parts: list[dict[Key, Tensor]] = []
        absent = torch.full((1,), torch.nan, dtype=torch.float64)
        with self._settling(alone=True):
            for position, index in enumerate(chosen):
                self._values = {}
                try:
                    self._measure_model(pick_inputs(inputs, [position]), [index], extractor)
                except SpectralError as error:
                    raise (error if self._one_by_one else failure or error) from error
                parts.append({key: x if len(x) else absent for key, x in self._values.items()})
        self._one_by_one = True
        keys = dict.fromkeys(key for part in parts for key in part)
        self._values = {
            key: torch.cat([part.get(key, absent).double().cpu() for part in parts]) for key in keys
        }

    def _measure_model(self, inputs: Inputs, chosen: list[int], extractor: FeatureExtractor) -> None:
        moving = "sis" in self.metrics
        # A copy, since a model that works in place would hand altered images to the shifts.
        output = self.feed.run(inputs.map(lambda x, _: x.clone()) if moving else inputs)
        if not self.predicts:
            return  # a detector or an embedding: its sites can be measured, its prediction can't
        probabilities = self._read(output, inputs)
        confidence, prediction = probabilities.max(-1)
        self._values[Key("prediction")] = prediction
        self._values[Key("confidence")] = confidence
        if self._list_labels is not None:
            self._values[Key("label")] = torch.tensor(self._list_labels(chosen), dtype=torch.float64)
        if moving:
            layout = self.feed.layout_of(inputs)
            with extractor.paused():
                shifted = []
                for move in list_moves(inputs, layout):
                    moved = roll_inputs(inputs, move, layout)
                    shifted.append(self._read(self.feed.run(moved), moved))
            self._values[Key("sis")] = compute_instability(probabilities, shifted)

    def _read(self, output: object, inputs: Inputs) -> Tensor:
        """Return the probabilities; NaN where scores aren't finite, unless that is to be told at once."""
        scores = self.feed.scores(output, inputs.count)
        return scores.probabilities() if self._settles else scores.find_probabilities()
