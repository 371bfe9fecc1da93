"""The host doesn't wait for a device inside a forward: seen on the CPU, by the operators that would wait."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from networks import image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectral
from spectral.errors import SpectralError
from spectral.hooks.capture import TAPS, Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.identity import begin_weights_id
from spectral.intake import Feed
from spectral.measurement import DEFAULT_METRICS, METRICS, SITE_METRICS, measure_capture
from spectral.measurement.pieces import OPEN
from spectral.measurement.run import Run
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import find_sites
from spectral.table.rows import to_frame

aten = torch.ops.aten
# Each gives a number, or a shape that depends on numbers, to the host.
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select, aten._unique2,
    aten.item, aten.bincount, aten.allclose, aten.repeat_interleave,
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts operators for which a host would wait for its device, copies between devices included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        moves = packet is aten._to_copy and kwargs.get("device") is not None
        if packet in WAITING or by_mask or moves:
            self.counts[str(packet)] += 1
        return func(*args, **kwargs)


def make(blocks: int = 2, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers += [nn.Conv2d(3 if block == 0 else 6, 6, 3, 1 + (block < 2), 1), nn.BatchNorm2d(6), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2 if block < 2 else 1, 1), nn.AvgPool2d(1, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).to(dtype).eval()


class Mixed(nn.Module):
    """As many sites as asked for, each on the image itself."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 5, 3, 2, 1) for _ in range(sites))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Add up what the sites give."""
        return self.head(torch.stack([conv(x) for conv in self.convs]).sum(0).mean((2, 3)))


def band_limited(count: int, size: int = 32) -> Tensor:
    places = 2 * torch.pi * torch.arange(size, dtype=torch.float64) / size
    tone = torch.cos(3 * places)[:, None] * torch.cos(2 * places)
    return (tone * torch.linspace(1, 2, 3 * count, dtype=torch.float64).view(count, 3, 1, 1)).float()


@pytest.mark.parametrize("scheme", ["fast", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (33, 41), (16, 1030)])
def test_nothing_is_read_back_inside_a_forward(scheme, dtype, size):
    net = make(dtype=dtype)
    x = image(3, 3, *size).to(dtype)
    sites = find_sites(net, size)
    seen: list[Waits] = []

    def reduce(capture: Capture) -> None:
        with Waits() as waits:
            measure_capture(capture, SITE_METRICS, TAPS, scheme)
        seen.append(waits)

    for _ in range(2):  # the first makes the matrices, which are kept
        seen.clear()
        with torch.no_grad(), FeatureExtractor(net, sites, tap="dense", reduce=reduce):
            net(x)
    assert len(seen) == len(sites) == 4
    assert not sum((waits.counts for waits in seen), Counter())


def test_the_counter_counts():
    """What it finds where everything is settled at once, so that finding nothing means something."""
    net, x = make(), band_limited(2)
    with Waits() as waits, torch.no_grad():
        reduce = lambda capture: measure_capture(capture, SITE_METRICS, TAPS)  # noqa: E731
        with FeatureExtractor(net, find_sites(net, 32), tap="dense", reduce=reduce):
            net(x)
    assert waits.counts["aten._local_scalar_dense"] > 4
    assert waits.counts["aten.nonzero"] >= 4


def run_deferred(model: nn.Module, x: Tensor, metrics=METRICS, batch_size: int = 4) -> Any:
    """`spectral.measure` as it is where the host would have to wait."""
    feed = Feed(model, x, caller="measure")
    weights = begin_weights_id(model)
    run = Run(feed, metrics, ("input", "dense", "signal"), weights, demanded=True, deferred=True)
    run.sites = run.find_sites(None)
    with torch.no_grad():
        return to_frame([t for _, t in run.measure_batches(list(range(len(x))), batch_size)])


def count_waits(sites: int, batches: int) -> int:
    net, x = Mixed(sites).eval(), image(4 * batches, 3, 32, 32)
    run_deferred(net, x)
    with Waits() as waits:
        run_deferred(net, x)
    return sum(waits.counts.values())


def test_waits_of_a_batch_dont_grow_with_the_sites():
    few, many = (count_waits(sites, 5) - count_waits(sites, 3) for sites in (1, 5))
    assert few == many


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_measured_again_is_what_is_settled_at_once(dtype):
    """Noise, band-limited, faint, silent and constant images, in batches of all kinds."""
    noise = image(5, 3, 32, 32)
    x = torch.cat([
        noise[:3], band_limited(3), noise[3:4] * 1e-20, torch.zeros(1, 3, 32, 32), noise[4:],
        torch.ones(2, 3, 32, 32), band_limited(4) * 1e-3,
    ]).to(dtype)  # fmt: skip
    net = nn.Sequential(
        nn.MaxPool2d(1, 2), nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).to(dtype)
    here = spectral.measure(net, x, METRICS, taps=("input", "dense", "signal"), batch_size=4, progress=False)
    there = run_deferred(net, x)
    assert OPEN not in set(there["metric"])
    keys = ["image", "site", "tap", "metric"]
    here, there = (t[t["image"] != ""].set_index(keys)["value"].sort_index() for t in (here, there))
    assert list(here.index) == list(there.index)
    # 1e-5 is what a map that isn't doubtful is known to in float32
    np.testing.assert_allclose(there, here, rtol=1e-5 if dtype == torch.float32 else 1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("metric", "x"),
    [
        # of what is left without the mean the squares vanish
        ("avr_hann", 1e-14 * (1 + 1e-6 * image(1, 3, 32, 32))),
        # meets itself at the borders, and has no aliases
        (
            "alias_power_ratio_channel_median",
            torch.cos((torch.arange(32) + 0.5) * torch.pi / 8).expand(1, 3, 32, 32),
        ),
    ],
)
def test_a_metric_alone_marks_what_rounding_leaves_open(metric, x):
    net = nn.MaxPool2d(1, 2)
    here = spectral.measure(net, x, (metric,), taps=("input", "dense", "signal"), progress=False)
    there = run_deferred(net, x, (metric,))
    values = (t.loc[t["metric"] == metric, "value"] for t in (there, here))
    np.testing.assert_allclose(*values, rtol=1e-9)


@pytest.mark.parametrize("at", [0, 6, 11], ids=["first batch", "second", "last"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_isnt_finite_is_told_with_its_site(at, bad):
    x = image(12, 3, 32, 32)
    x[at, 1, 5, 7] = bad
    with pytest.raises(SpectralError, match=r"^site '(convs\.)?0': .*NaN or infinite"):
        run_deferred(Mixed(2).eval(), x, metrics=DEFAULT_METRICS)


def test_batches_before_a_broken_one_are_kept():
    x = image(12, 3, 32, 32)
    x[9] = torch.nan
    feed = Feed(Mixed(2).eval(), x, caller="measure")
    run = Run(feed, ("avr",), ("input",), begin_weights_id(feed.model), demanded=True, deferred=True)
    run.sites = run.find_sites(None)
    batches = run.measure_batches(list(range(12)), 4)
    with torch.no_grad():
        kept = [next(batches)[1], next(batches)[1]]
        with pytest.raises(SpectralError, match="NaN or infinite"):
            next(batches)
    assert len(set(to_frame(kept)["image"]) - {""}) == 8


def watch(model: nn.Module, x: Tensor, deferred: bool) -> tuple[dict[str, float], Tensor, Tensor]:
    """What a monitor says of a pass, a penalty, and the penalty's slope at the first weights."""
    sites, weight = find_sites(model, x), next(model.parameters())
    weight.grad = None
    with (
        AliasingMonitor(model, sites, ("avr", "am_relative", "am"), deferred=deferred) as monitor,
        torch.no_grad(),
    ):
        model(x)
    with AliasingPenalty(model, sites, deferred=deferred) as penalty:
        model(x)
        value = penalty.value()
    value.backward()
    return monitor.values(), value.detach(), weight.grad


@pytest.mark.parametrize("kind", ["noise", "band limited", "silent", "mixed"])
def test_monitor_and_penalty_settle_behind_the_pass(kind):
    """An image whose maps have next to nothing above the limit is measured again, as it is at once."""
    inputs = {
        "noise": image(4, 3, 32, 32),
        "band limited": band_limited(4),
        "silent": torch.zeros(4, 3, 32, 32),
    }
    inputs["mixed"] = torch.cat([part[:2] for part in inputs.values()])
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1, 2, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.Flatten()
    )
    (here, value, slope), (there, *others) = (
        watch(net, inputs[kind], deferred) for deferred in (False, True)
    )
    assert there == pytest.approx(here, rel=1e-5, abs=1e-9, nan_ok=True)
    for a, b in zip((value, slope), others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)


def test_the_waits_of_a_monitored_pass_dont_grow_with_the_sites():
    counts = []
    for sites in (1, 5):
        net, x = Mixed(sites).eval(), image(4, 3, 32, 32)
        found = find_sites(net, 32)
        with AliasingMonitor(net, found, deferred=True) as monitor, torch.no_grad():
            net(x)
            with Waits() as waits:
                net(x)
                monitor.values()
        with AliasingPenalty(net, found, deferred=True) as penalty, waits:
            net(x)
            penalty.value()
        counts.append(sum(waits.counts.values()))
    assert counts[0] == counts[1] <= 4


def test_a_map_that_is_altered_in_place_is_left_out_once():
    """What is doubtful can't be measured again from what is there no more."""

    class Altering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1, 2, bias=False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            y = self.conv(x)
            x.mul_(2)
            return self.head(y.mean((2, 3)))

    net, x = Altering(), band_limited(2)
    with AliasingMonitor(net, find_sites(net, 32), ("avr",), deferred=True) as monitor, torch.no_grad():
        net(x)
        assert np.isnan(monitor.values()["conv/dense/avr"])
        net(x)
        late = monitor.values()
    assert late["conv/dense/avr"] < 1e-9


def test_a_pass_that_isnt_finite_is_told_with_the_penalty():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten())
    x = image(2, 3, 32, 32)
    x[0, 0, 3, 3] = torch.nan
    with AliasingPenalty(net, find_sites(net, 32), deferred=True), pytest.raises(SpectralError, match="NaN"):
        net(x)
