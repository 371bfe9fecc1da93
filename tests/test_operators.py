"""The registry: an operator of another library, and what can go wrong when it is made known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from networks import image
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.operators import (
    KINDS,
    Arguments,
    Decimation,
    Geometry,
    Operator,
    Size,
    find_reader,
    operator_of,
    register_operator,
)
from spectral.sites import find_sites


@torch.library.custom_op("mylib::minimum_pool", mutates_args=())
def minimum_pool(x: Tensor, window: int) -> Tensor:
    """The minimum over windows side by side."""
    return -F.max_pool2d(-x, window)


@minimum_pool.register_fake
def _(x: Tensor, window: int) -> Tensor:
    return x.new_empty(*x.shape[:2], x.shape[2] // window, x.shape[3] // window)


class MinimumPool(Operator):
    """What `mylib::minimum_pool` does."""

    kind = "minimum_pool"
    names = ("mylib::minimum_pool",)
    rule = "the minimum over the window at every sample"

    def read(self, a: Arguments) -> Decimation | None:
        """Read one call."""
        window = (a["window"],) * 2
        return Decimation(Geometry(self.kind, window, window), a["x"]) if a["window"] > 1 else None

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Take the minimum at every sample."""
        return -F.max_pool2d(-x, d.geometry.kernel, 1)


@pytest.fixture
def registered() -> Iterator[None]:
    """The operator, known while a test runs."""
    register_operator(MinimumPool)
    yield
    forget(MinimumPool)


def forget(operator: type[Operator]) -> None:
    from spectral.operators import registry

    KINDS.pop(operator.kind)
    for name in operator.names:
        registry._NAMES.pop(name)
    find_reader.cache_clear()


def make_net(window: int = 2) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.second(minimum_pool(m.first(x), window))

    torch.manual_seed(0)
    return nets.Call(forward, first=nn.Conv2d(3, 4, 3, 2, 1), second=nn.Conv2d(4, 4, 3, 2, 1)).eval()


def test_an_operator_that_nobody_knows_is_reported():
    first, unknown, second = find_sites(make_net(), 32)
    assert (first.name, second.name) == ("first", "second")
    assert (unknown.op, unknown.stride, unknown.measurable) == ("unrecognised", (2, 2), False)
    assert unknown.reason == "unrecognised operator mylib::minimum_pool"
    assert (unknown.input_size, unknown.output_size) == ((16, 16), (8, 8))
    assert [s.op for s in find_sites(make_net(1), 32)] == ["conv", "conv"]
    (odd,) = [s for s in find_sites(make_net(3), 32) if s.op != "conv"]
    assert (odd.input_size, odd.output_size) == ((16, 16), (5, 5))


@pytest.mark.usefixtures("registered")
def test_an_operator_that_was_registered_is_a_site_like_any_other():
    net, x = make_net(), image(2, 3, 32, 32)
    for example in (32, x):
        _, site, _ = find_sites(net, example)
        assert (site.name, site.op, site.stride, site.measurable) == (
            ":minimum_pool0", "minimum_pool", (2, 2), True
        )  # fmt: skip
        assert site.rule == "the minimum over the window at every sample"
    with (
        FeatureExtractor(net, [site], tap="dense") as dense,
        FeatureExtractor(net, [site], tap="output") as out,
    ):
        net(x)
    assert torch.equal(dense[site.name][..., ::2, ::2], out[site.name])
    table = spectral.measure(net, x, ("am",), progress=False)
    assert site.name in set(table["site"])
    report = spectral.conversion_report(spectral.convert(net, "blurpool", example=x))
    (row,) = [row for row in report.rows if row.op == "minimum_pool"]
    assert not row.replaced
    assert row.reason == "no layer can stand behind an operator of the kind minimum_pool"


@pytest.mark.usefixtures("registered")
def test_a_kind_or_name_is_registered_once():
    class Again(MinimumPool):
        kind = "another"

    class Same(Operator):
        kind = "max_pool"

    with pytest.raises(SpectralError, match=r"mylib::minimum_pool is that of MinimumPool already"):
        register_operator(Again)
    with pytest.raises(SpectralError, match=r"the kind 'max_pool' is that of MaxPool already"):
        register_operator(Same)
    with pytest.raises(SpectralError, match=r"has no kind; set kind"):
        register_operator(Operator)
    assert "another" not in KINDS


def test_a_kind_that_is_not_there():
    with pytest.raises(SpectralError, match=r"no operator of the kind 'max_pol'; nearest: 'max_pool'"):
        operator_of("max_pol")


def test_every_kind_says_what_its_dense_map_is_or_has_none():
    for kind, operator in KINDS.items():
        assert operator.kind == kind
        described = bool(operator.rule)
        assert described == (type(operator).make_dense is not Operator.make_dense
                             or type(operator).dense is not Operator.dense), kind  # fmt: skip
