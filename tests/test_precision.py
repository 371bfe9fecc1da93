"""What numbers keep where a network runs in less than float32: the bounds that docs/definitions.md states."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from networks import image
from torch import nn

import spectral
from spectral.measurement import CHANNEL_METRICS
from spectral.metrics.bands import QUOTIENTS, measure_bands

POOLED = ("avr", "avr_separable", "am", "am_relative", "alias_power_ratio")
METRICS = (*POOLED, *CHANNEL_METRICS[:2])
# largest relative deviations stated for a network that runs in a type: pooled numbers, ratios by channel
STATED = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 5e-3), torch.bfloat16: (1e-2, 3e-2)}


def measure(dtype: torch.dtype, autocast: bool = False) -> pd.Series:
    net = spectral.load_model("bundled/resnet20")
    pictures = spectral.load_images("samples", size=32, limit=6)
    x = torch.stack([pictures[i] for i in range(6)]) * 2 - 1
    with torch.autocast("cpu", dtype, enabled=autocast):
        table = spectral.measure(
            net if autocast else net.to(dtype), x.to(torch.float32 if autocast else dtype), METRICS,
            taps=("input", "dense", "signal"), progress=False,
        )  # fmt: skip
    rows = table[table["metric"].isin(METRICS)]
    return rows.set_index(["image", "site", "tap", "metric"])["value"].sort_index()


@pytest.fixture(scope="module")
def exact() -> pd.Series:
    return measure(torch.float64)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_a_network_in_less_precision_keeps_what_is_stated(exact, dtype, autocast):
    found = measure(dtype, autocast)
    assert list(found.index) == list(exact.index)
    deviation = ((found - exact).abs() / exact.abs()).where(exact.abs() > 1e-4, 0.0)
    by_channel = deviation.index.get_level_values("metric").isin(CHANNEL_METRICS)
    assert deviation[~by_channel].max() < STATED[dtype][0]
    assert deviation[by_channel].max() < STATED[dtype][1]
    if dtype != torch.float32:  # and no more than that: the network did run in this type
        assert deviation.max() > 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_one_map_nothing_is_lost(dtype):
    """Half types are raised to float32 first: what is measured of a map is as exact as of a float32 one."""
    x = image(2, 5, 33, 40).to(dtype)
    found, wide = (measure_bands(maps, (2, 2), metrics=tuple(QUOTIENTS)).values() for maps in (x, x.double()))
    for name, value in found.items():
        torch.testing.assert_close(value, wide[name], rtol=1e-5, atol=0)
    ratios, exact = (spectral.compute_channel_alias_ratios(maps, 2) for maps in (x, x.double()))
    torch.testing.assert_close(ratios.double(), exact, rtol=1e-5, atol=0)


def test_products_of_metrics_know_no_reduced_precision():
    """Neither autocast nor TF32, bfloat16 products allowed globally, reach into the metrics."""
    x = image(2, 8, 32, 32)
    before = torch.get_float32_matmul_precision()
    expected = measure_bands(x, (2, 2), metrics=tuple(QUOTIENTS)).values()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = measure_bands(x, (2, 2), metrics=tuple(QUOTIENTS)).values()
    finally:
        torch.set_float32_matmul_precision(before)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)


def test_a_strided_convolution_in_half_precision_keeps_its_dense_map():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).bfloat16()
    table = spectral.measure(net, image(2, 3, 32, 32).bfloat16(), ("avr", "am"), progress=False)
    assert (table["reason"] == "").all()
