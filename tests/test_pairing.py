"""Which sites are alike: each at most once, and why."""

from __future__ import annotations

import networks as nets
import pytest
from torch import nn

import spectral
from spectral.models import load_model
from spectral.pairing import SAME_NAME, match_sites, pair_sites
from spectral.sites import find_sites
from spectral.surgery.report import find_original_names


def chain(*strides: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv2d(3, 3, 3, stride, 1) for stride in strides])


def names(pairs):
    return [(pair.a.name, pair.b.name) for pair in pairs]


def match(a: str, b: str):
    models = [load_model(name) for name in (a, b)]
    sites = [find_sites(model, 32) for model in models]
    return match_sites(*sites, *map(find_original_names, models, sites))


def test_sites_are_alike_by_resolution_and_order():
    pairs = match_sites(find_sites(nets.Nested(), 32), find_sites(chain(2, 2, 2), 32))
    assert names(pairs) == [("block.body.0", "0"), (":max_pool0", "1"), ("head", "2")]
    assert [pair.why for pair in pairs] == [
        "same resolution (that of the image) and order (1st there)",
        "same resolution (1/2 of the image's) and order (1st there)",
        "same resolution (1/4 of the image's) and order (1st there)",
    ]


def test_a_name_that_two_networks_share_by_chance_pairs_nothing():
    """resnet20's layer2.0.conv1 is at the image's resolution, ResNet-18's at a quarter of it."""
    pairs = match("bundled/resnet20@random", "timm/resnet18@random")
    assert ("layer2.0.conv1", "conv1") in names(pairs)
    assert "layer2.0.conv1" not in [pair.b.name for pair in pairs]
    for side in ("a", "b"):
        own = [getattr(pair, side).name for pair in pairs]
        assert len(own) == len(set(own))


def test_a_resolution_is_told_to_a_quarter_of_a_halving_on_every_axis():
    """33 samples become 17 or, without padding, 16; one stride of columns alone isn't that resolution."""
    padded = find_sites(chain(2, 2), 33)
    valid = find_sites(nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3, 2)), 33)
    assert names(match_sites(padded, valid)) == [("0", "1"), ("1", "2")]
    wide = find_sites(nn.Sequential(nn.Conv2d(3, 3, 3, (1, 2), 1), nn.Conv2d(3, 3, 3, 2, 1)), 33)
    pairs = match_sites(padded, wide)
    assert [(pair.a.name, pair.b.name, pair.why[:15]) for pair in pairs] == [("0", "0", "same resolution")]


def test_sites_that_have_no_map_are_passed_over_on_both_sides():
    """Pixels put into channels, of which nothing is lost, hide no site behind them."""
    lossless = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 1), nn.MaxPool2d(2))
    sites = find_sites(lossless, 32)
    assert [site.measurable for site in sites] == [False, True]
    own = find_sites(chain(2, 2), 32)
    assert names(match_sites(own, sites)) == [("1", "2")]
    assert names(match_sites(sites, own)) == [("2", "1")]


@pytest.mark.parametrize("method", ["flc", "aps", "strided", "blurpool"])
def test_a_converted_twin_is_paired_by_its_sites_names(method):
    base = "bundled/resnet20@random"
    own = [site.name for site in find_sites(load_model(base), 32)]
    for pairs in (match(base, f"{base}+{method}"), match(f"{base}+{method}", base)):
        assert {pair.why for pair in pairs} == {SAME_NAME}
        assert [pair.a.name.removesuffix(".antialias") for pair in pairs] == own
        assert [pair.b.name.removesuffix(".antialias") for pair in pairs] == own


@pytest.mark.parametrize("method", ["flc", "aps"])
def test_a_twin_whose_pools_have_a_smaller_dense_map(method):
    """A pool without padding gives 7 × 7 places of 8 × 8, which the layer decimates."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2))
    twin = spectral.convert(net, method, example=32)
    own, sites = find_sites(net, 32), find_sites(twin, 32)
    pairs = match_sites(own, sites, {}, find_original_names(twin, sites))
    assert names(pairs) == [(site.name, f"{site.name}.antialias") for site in own]
    assert {pair.why for pair in pairs} == {SAME_NAME}


def test_two_conversions_of_one_network_are_twins():
    pairs = match("bundled/resnet20@random+flc", "bundled/resnet20@random+blurpool")
    assert [pair.why for pair in pairs] == [SAME_NAME] * 4


def test_a_twin_of_which_one_site_was_converted_shifts_no_other():
    """Lossless sites can't be measured: by order alone, the next site would take their place."""
    net = load_model("bundled/resnet20@random")
    own = find_sites(net, 32)
    part = spectral.convert(
        net, "space-to-depth", lambda site: site.name == "layer2.0.conv1", example=(3, 32, 32)
    )
    sites = find_sites(part, 32)
    pairs = match_sites(own, sites, {}, find_original_names(part, sites))
    assert names(pairs) == [(site.name, site.name) for site in own[1:]]


def test_labels_are_of_like_sites_alone():
    """The second network's own name for a site that the first lacks is the first's name for another one."""
    first = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 3, 2, 1))
    second = nn.Sequential(
        nn.Identity(), nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)
    )
    pairs = pair_sites({"first": find_sites(first, 32), "second": find_sites(second, 32)})
    assert pairs["first", "1"] == pairs["second", "3"]
    assert pairs["second", "4"] == (2, "4")
    moved = pair_sites({"second": find_sites(second, 32), "first": find_sites(first, 32)}, reference="first")
    assert moved == pairs
    labels = {}
    for (model, site), (_, label) in pairs.items():
        assert labels.setdefault((model, label), site) == site


def test_a_label_that_is_taken_gets_its_model_behind():
    first = nn.Sequential(nn.Identity(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2))
    pairs = pair_sites({"first": find_sites(first, 32), "second": find_sites(second, 32)})
    assert pairs["first", "1"] == pairs["second", "0"] == (0, "1")
    assert pairs["second", "1"] == (1, "1 (second)")
