"""On a GPU everything gives what the CPU gives; the host doesn't wait for the device inside a forward.

``SPECTRAL_TEST_DEVICE=cpu`` runs the same comparisons of the CPU with itself, to debug this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from networks import image
from torch import Tensor, nn

import spectral
from spectral.hooks.capture import TAPS
from spectral.layers import LAYERS
from spectral.measurement import METRICS, SITE_METRICS, measure_capture
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import find_sites

DEVICE = torch.device(os.environ.get("SPECTRAL_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="this machine has no CUDA device"
)
SIZE = 48
EXACT, SINGLE = 1e-8, 2e-4  # relative, of a float64 and of a float32 network


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """Compare float32 with float32: convolutions use TF32 on a GPU unless told not to."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def make(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(12, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return net.to(dtype).eval()


def pair(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    return make(dtype), make(dtype).to(DEVICE)


def pictures(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    noise = image(count, 3, SIZE, SIZE, dtype=torch.float64)
    return (torch.nn.functional.avg_pool2d(noise, 3, 1, 1) + noise / 4).to(dtype)


def assert_alike(here: pd.DataFrame, there: pd.DataFrame, tolerance: float) -> None:
    """Same rows; numbers alike, relative to the larger one, or both as good as 0."""
    assert list(here.columns) == list(there.columns)
    assert len(here) == len(there) > 0
    for column in here:
        a, b = (frame[column] for frame in (here, there))
        if pd.api.types.is_float_dtype(a):
            np.testing.assert_allclose(
                b.to_numpy(float), a.to_numpy(float), rtol=tolerance, atol=tolerance * 1e-2, err_msg=column
            )
        elif column != "weights":
            assert a.astype(str).tolist() == b.astype(str).tolist(), column


def test_sites_are_the_same():
    here, there = pair()
    assert [str(site) for site in find_sites(here, SIZE)] == [str(site) for site in find_sites(there, SIZE)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_metric_at_every_tap(dtype, tolerance, channels_last):
    tables = []
    for model in pair(dtype):
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        tables.append(
            spectral.measure(model, pictures(dtype=dtype), METRICS, taps=TAPS, batch_size=3, progress=False)
        )
    assert_alike(*tables, tolerance)


@pytest.mark.parametrize("size", [(33, 40), (31, 57), (260, 256)])
def test_odd_and_large_maps(size):
    """Lattices that don't fold exactly, and axes for which an FFT takes the place of a product."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 3), nn.Conv2d(8, 4, 5, (1, 2)))
    x = image(3, 3, *size, dtype=torch.float64)
    tables = [
        spectral.measure(net.double().to(device), x, SITE_METRICS, taps=TAPS, progress=False)
        for device in ("cpu", DEVICE)
    ]
    assert_alike(*tables, EXACT)


def test_faint_silent_and_band_limited_maps():
    """What float32 can't tell is settled in float64, wherever the map lies."""
    places = 2 * torch.pi * torch.arange(64) / 64
    tone = torch.cos(5 * places)[:, None] * torch.cos(3 * places)
    x = torch.stack([tone, tone * 1e-22, torch.zeros_like(tone), 1 + 1e-3 * tone, image(64, 64)])[:, None]
    net = nn.Sequential(nn.MaxPool2d(1, 2))
    tables = [
        spectral.measure(net.to(device), x.float(), SITE_METRICS, taps=TAPS, progress=False)
        for device in ("cpu", DEVICE)
    ]
    assert_alike(*tables, SINGLE)


@pytest.mark.parametrize("method", sorted(LAYERS))
def test_converted_networks(method):
    tables, outputs = [], []
    for model in pair():
        torch.manual_seed(1)  # learnt layers start from random weights
        smooth = spectral.convert(model, method, example=SIZE)
        with torch.no_grad():
            outputs.append(smooth(pictures().to(next(model.parameters()).device)).cpu())
        if any(site.measurable for site in find_sites(smooth, SIZE)):  # space-to-depth leaves none
            tables.append(spectral.measure(smooth, pictures(2), ("avr", "am"), progress=False))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=EXACT, atol=EXACT)
    assert method == "space-to-depth" or len(tables) == 2
    if tables:
        assert_alike(*tables, EXACT)


def test_recalibration():
    outputs = []
    for model in pair():
        smooth = spectral.recalibrate(spectral.convert(model, "flc", example=SIZE), pictures())
        with torch.no_grad():
            outputs.append(smooth(pictures().to(next(model.parameters()).device)).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)


def test_monitor_and_penalty():
    values, gradients = [], []
    for model in pair():
        x = pictures().to(next(model.parameters()).device)
        sites = find_sites(model, SIZE)
        with AliasingMonitor(model, sites, ("avr", "am_relative"), taps=("input", "dense")) as monitor:
            model(x)
        values.append(monitor.values())
        with AliasingPenalty(model, sites) as penalty:
            model(x)
            penalty.value().backward()
        gradients.append(model.get_parameter("0.weight").grad.cpu())
    assert values[0] == pytest.approx(values[1], rel=EXACT)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: spectral.measure_stability(model, pictures(), progress=False),
        lambda model: spectral.measure_equivariance(model, pictures(2), progress=False),
        lambda model: spectral.attribute_instability(model, pictures(2), progress=False),
        lambda model: spectral.measure_instability_budget(model, pictures(2), progress=False),
    ],
    ids=["stability", "equivariance", "attribution", "budget"],
)
def test_calls_that_shift_images(call):
    here, there = (call(model) for model in pair())
    assert_alike(here, there, 1e-5)  # differences of nearly equal predictions, PSNR in dB


def test_ideal_networks():
    outputs = []
    for model in pair():
        x = pictures().to(next(model.parameters()).device)
        with torch.no_grad(), spectral.idealize(model):
            outputs.append(model(x).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_measured_in_single_precision(dtype):
    """Of one half-precision map, metrics are as exact as of a float32 one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2)).to(DEVICE, dtype)
    x = pictures(dtype=dtype).to(DEVICE)
    found: dict[tuple[str, str, str], tuple[Tensor, Tensor]] = {}

    def reduce(capture):
        dense = capture.dense()
        for metric, compute in (
            ("avr", lambda d: spectral.compute_avr(spectral.compute_power_spectrum(d), capture.site.stride)),
            ("am", lambda d: spectral.compute_am(d, capture.site.stride)),
        ):
            own = measure_capture(capture, (metric,), ("dense",))["dense", metric]
            found[capture.site.name, "dense", metric] = own.cpu(), compute(dense.double().cpu())

    with torch.no_grad(), spectral.FeatureExtractor(net, find_sites(net, SIZE), tap="dense", reduce=reduce):
        net(x)
    assert len(found) == 4
    for values, exact in found.values():
        torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=0)


def test_sites_are_measured_with_the_convolutions_that_torch_uses_by_default():
    """TF32, whose rounding is no other dense map."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        net = spectral.load_model("bundled/resnet20", device=DEVICE)
        table = spectral.measure(net, spectral.load_images("synthetic", 32, 8), progress=False)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert set(table.loc[table["site"] != "", "reason"]) == {""}


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA tells of waits; test_waiting.py counts them")
@pytest.mark.parametrize("scheme", ["fast", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_host_never_waits_inside_a_forward(scheme, dtype):
    net, x = make(dtype).to(DEVICE), pictures(dtype=dtype).to(DEVICE)

    def reduce(capture):
        measure_capture(capture, SITE_METRICS, TAPS, scheme)

    with torch.no_grad(), spectral.FeatureExtractor(net, find_sites(net, SIZE), tap="dense", reduce=reduce):
        net(x)  # matrices are made and kept
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            net(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
