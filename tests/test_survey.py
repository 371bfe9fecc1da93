"""The survey of third-party libraries: its account of positions, its comparison of models, its rows."""

from __future__ import annotations

import os
import time
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from spectral.errors import SpectralError
from spectral.experiments.survey.checks import Built, check_model
from spectral.experiments.survey.libraries import LIBRARIES, Entry, list_entries
from spectral.experiments.survey.positions import PositionMode
from spectral.experiments.survey.run import check_apart, select, summarize_survey, survey
from spectral.experiments.survey.state import compare_snapshots, snapshot


class Call(nn.Module):
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


def account(function, *shape, columns=False, **children):
    model = Call(function, **children).eval()
    mode, x = PositionMode(model, columns), torch.rand(*(shape or (1, 4, 12, 16)))
    mode.mark(x)
    with torch.no_grad(), mode.following(), mode:
        model(x)
    assert not mode.unknown
    return mode.losses


def losses(function, *shape, columns=False, **children):
    found = account(function, *shape, columns=columns, **children)
    return [(loss.module, loss.after) for loss in found if loss.certain]


def phases(x: Tensor) -> list[Tensor]:
    return [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


THINNING = {
    "convolution": (lambda m, x: m.c(x), {"c": nn.Conv2d(4, 4, 3, 2, 1)}, [("c", (6, 8))]),
    "one axis": (lambda m, x: m.c(x), {"c": nn.Conv2d(4, 4, 3, (1, 2), 1)}, [("c", (12, 8))]),
    "max pool": (lambda m, x: F.max_pool2d(x, 3, 2, 1), {}, [("", (6, 8))]),
    "resize": (lambda m, x: F.interpolate(x, scale_factor=0.5), {}, [("", (6, 8))]),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, (5, 5)), {}, [("", (5, 5))]),
    "slice": (lambda m, x: x[:, :, ::2], {}, [("", (6, 16))]),
    "one column": (lambda m, x: x[..., 3], {}, [("", (12, 1))]),
    "gather": (lambda m, x: x.gather(3, torch.arange(0, 16, 4).expand(1, 4, 12, 4)), {}, [("", (12, 4))]),
    "mask": (lambda m, x: x[..., torch.arange(16) % 2 == 0], {}, [("", (12, 8))]),
    "view and select": (lambda m, x: x.view(1, 4, 12, 8, 2)[..., 0], {}, [("", (12, 8))]),
    "window sum": (lambda m, x: x.view(1, 4, 6, 2, 8, 2).sum((3, 5)), {}, [("", (6, 8))]),
    "window median": (lambda m, x: x.view(1, 4, 12, 8, 2).median(-1).values, {}, [("", (12, 8))]),
    "linear over width": (lambda m, x: m.c(x), {"c": nn.Linear(16, 8)}, [("c", (12, 1))]),
    "tokens at random": (
        lambda m, x: x.flatten(2)[..., torch.randperm(192)[:48]], {}, None,
    ),
    "Haar by hand": (lambda m, x: sum(phases(x)) / 4, {}, [("", (6, 16)), ("", (6, 8))] * 4),
    "written in place": (lambda m, x: torch.zeros(1, 4, 6, 8).copy_(x[..., ::2, ::2]), {},
                         [("", (6, 16)), ("", (6, 8))]),
    "after tokens": (
        lambda m, x: F.avg_pool2d(x.flatten(2).transpose(1, 2).transpose(1, 2).view(1, 4, 12, 16), 2), {},
        [("", (6, 8))],
    ),
    "one row": (lambda m, x: x[:, :, 3], {}, [("", (1, 16))]),
    "adaptive by less than a half": (lambda m, x: F.adaptive_avg_pool2d(x, (9, 12)), {}, [("", (9, 12))]),
    "strided over joined rows": (
        lambda m, x: F.conv2d(torch.cat([x[:, :, :1], x[:, :, 1:]], 2), m.c, stride=(2, 1)),
        {"c": nn.Parameter(torch.ones(4, 4, 3, 1))}, [("", (5, 16))],
    ),
    "patches contracted": (
        lambda m, x: m.c(F.unfold(x, 2, stride=2).transpose(1, 2)), {"c": nn.Linear(16, 5)}, [("c", (6, 8))],
    ),
}  # fmt: skip

KEEPING = {
    "convolution of stride 1": (lambda m, x: m.c(x), {"c": nn.Conv2d(4, 4, 5)}),
    "enlarging": (lambda m, x: m.c(F.interpolate(x, scale_factor=2)), {"c": nn.ConvTranspose2d(4, 4, 2, 2)}),
    "crop": (lambda m, x: x[..., 2:9, 3:], {}),
    "roll and flip": (lambda m, x: x.roll((1, 2), (2, 3)).flip(3), {}),
    "windows": (lambda m, x: x.view(1, 4, 3, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).flatten(0, 2).mul(2), {}),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), {}),
    "global pool": (lambda m, x: x.mean((2, 3), keepdim=True) * x, {}),
    "channels": (lambda m, x: x[:, ::2].sum(1), {}),
    "class token": (lambda m, x: torch.cat([torch.zeros(1, 1, 4), tokens(x)], 1)[:, 1:], {}),
    "attention": (lambda m, x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x)), {}),
    "attention by hand": (lambda m, x: (tokens(x) @ tokens(x).mT).softmax(-1) @ tokens(x), {}),
    "read out by a query": (lambda m, x: (torch.ones(1, 2, 4) @ tokens(x).mT).softmax(-1) @ tokens(x), {}),
    "frames one by one": (lambda m, x: torch.cat([x[:, :, :1], x[:, :, 1:] * 2], 2), {}),
    "rows one by one": (lambda m, x: torch.stack([x[:, :, i] for i in range(12)], 2), {}),
    "windows put down again": (lambda m, x: F.fold(F.unfold(x, 2, stride=2), (12, 16), 2, stride=2), {}),
    "turned in place": (lambda m, x: (x * 1).transpose_(1, 3) + 1, {}),
    "gated": (lambda m, x: F.glu(x, 1), {}),
    "norms": (lambda m, x: m.n(x), {"n": nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU())}),
}  # fmt: skip


class TestPositions:
    @pytest.mark.parametrize("name", THINNING)
    def test_fewer_places_are_a_loss(self, name):
        function, children, expected = THINNING[name]
        found = losses(function, **children)
        assert found == expected if expected is not None else len(found) == 1

    @pytest.mark.parametrize("name", KEEPING)
    def test_the_same_places_are_none(self, name):
        function, children = KEEPING[name]
        assert losses(function, **children) == []

    def test_a_skip_meets_what_was_enlarged(self):
        def forward(m, x):
            deep = F.interpolate(m.up(m.down(x)), scale_factor=2)
            return m.join(torch.cat([m.side(x), deep], 1))

        net = {"down": nn.Conv2d(4, 4, 3, 2, 1), "up": nn.Conv2d(4, 6, 3, padding=1),
               "side": nn.Conv2d(4, 2, 1), "join": nn.Conv2d(8, 4, 3, padding=1)}  # fmt: skip
        assert losses(forward, **net) == [("down", (6, 8))]

    def test_signals_and_videos(self):
        assert losses(lambda m, x: m.c(x), 1, 2, 64, c=nn.Conv1d(2, 3, 4, 4)) == [("c", (16,))]
        assert losses(lambda m, x: m.c(x), 1, 2, 4, 8, 8, c=nn.Conv3d(2, 3, 1, (1, 2, 2))) == [
            ("c", (4, 4, 4))
        ]

    def test_spectra_of_windows_have_frequencies(self):
        """Windows are fewer than samples; what is strided along the frequencies loses some of these."""

        def forward(m, x):
            spectra = torch.stft(x[:, 0], 16, 4, window=torch.ones(16), return_complex=True)
            parts = torch.view_as_real(spectra).movedim(3, 1)
            return torch.istft(spectra * m.c(parts).mean(), 16, 4, window=torch.ones(16))

        found = account(forward, 1, 1, 64, c=nn.Conv2d(2, 2, (2, 1), (2, 1)))
        assert [(one.module, one.before, one.after) for one in found if one.certain] == [
            ("", (64,), (17,)), ("c", (17, 9), (17, 4))
        ]  # fmt: skip

    def test_correlations_are_pooled_over_the_second_image(self):
        def forward(m, x):
            flat = x.flatten(2)
            return F.avg_pool2d((flat.mT @ flat).view(192, 1, 12, 16) * 2, 2)

        assert (losses(forward), losses(forward, columns=True)) == ([], [("", (6, 8))])

    def test_regions_may_be_made_smaller(self):
        boxes = torch.tensor([[0.0, 1, 2, 9, 10]])
        found = account(lambda m, x: roi_align(x, boxes, 3) + 1)
        assert [(one.op, one.before, one.after) for one in found if not one.certain] == [
            ("roi_align", (12, 16), (3, 3))
        ]

    def test_what_has_the_whole_of_each_patch_or_lies_in_the_padding(self):
        patches = torch.tensor([[0, 1, 2], [1, 2, 3], [9, 10, 11]])

        def forward(m, x):
            return m.c(torch.stack([x[0, :, rows, :3] for rows in patches]))

        assert losses(forward, c=nn.Conv2d(4, 4, 3)) == []
        found = account(lambda m, x: m.c(x), c=nn.Conv2d(4, 4, 1, 2, 1))
        assert {one.after for one in found} == {(6, 8), (7, 9)}

    def test_of_an_image_alone(self):
        table = torch.rand(1, 4, 32, 32)
        assert losses(lambda m, x: x + F.interpolate(table, size=(12, 16))) == []


class TestState:
    @pytest.mark.parametrize(
        ("change", "path"),
        [
            (lambda net: net[0].weight.data.mul_(1.0000001), "0._parameters[weight]"),
            (lambda net: net.train(), "training"),
            (lambda net: net[1].register_forward_hook(print), "1._forward_hooks"),
            (lambda net: net[1].running_mean.add_(1), "1._buffers[running_mean]"),
            (lambda net: net[0].weight.requires_grad_(False), "0._parameters[weight]"),
            (lambda net: setattr(net[0], "stride", (1, 1)), "0.stride[0]"),
            (lambda net: net.notes["seen"].append(3), "notes[seen]"),
            (lambda net: setattr(net.helper, "cache", torch.zeros(1, device="meta")), "helper.cache"),
            (lambda net: setattr(net, "forward", net.forward), "forward"),
        ],
    )
    def test_every_change_is_seen(self, change, path):
        class Helper:
            cache = None

        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)).eval()
        net.notes, net.helper = {"seen": [1, 2]}, Helper()
        before = snapshot(net)
        assert compare_snapshots(before, snapshot(net)) == []
        change(net)
        assert path in compare_snapshots(before, snapshot(net))

    def test_what_the_models_own_forward_leaves_is_excused(self):
        def grown(n: int) -> nn.Module:
            net = nn.Sequential(nn.ReLU())
            net.cache = dict.fromkeys(range(n), 1.0)
            return net

        before, after, own = (snapshot(grown(n)) for n in (0, 2, 2))
        assert compare_snapshots(before, after)
        assert compare_snapshots(before, after, own) == []


class Keeps(nn.Module):
    """Keeps what it computed of its latest images."""

    def __init__(self):
        super().__init__()
        self.c, self.latest, self.passes = nn.Conv2d(3, 4, 3, 2, 1), [], 0

    def forward(self, x):
        self.latest = [self.c(x)]
        return self.latest[0].mean((2, 3))


class Collects(Keeps):
    """Keeps a moving mean of all that it ever computed, so that every further pass leaves its mark."""

    def forward(self, x):
        y = self.c(x).mean((0, 2, 3))
        self.latest = [(y + self.latest[0]) / 2 if self.latest else y]
        return self.c(x).mean((2, 3))


def small() -> Built:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 3))  # fmt: skip
    return Built(net.eval(), torch.rand(1, 3, 16, 16))


def windows_in_the_batch() -> Built:
    """A convolution of each window by itself, and a pool over rows and columns joined to one axis."""

    def forward(m, x):
        w = m.inner(x.unflatten(3, (4, 8)).unflatten(2, (4, 8)).movedim((2, 4), (1, 2)).flatten(0, 2))
        w = w.unflatten(0, (-1, 4, 4)).movedim((1, 2), (2, 4)).flatten(4, 5).flatten(2, 3)
        return m.flat(w.flatten(2)).mean(2)

    return Built(Call(forward, inner=nn.Conv2d(3, 4, 3, 2, 1), flat=nn.AvgPool1d(8)).eval(),
                 torch.rand(1, 3, 32, 32))  # fmt: skip


def hang() -> Built:
    time.sleep(60)
    return small()


def collect(build) -> dict[str, object]:
    row: dict[str, object] = {}
    for part in check_model(build):
        row |= {k: v for k, v in part.items() if k != "altered" or v}
    return row


class TestRows:
    def test_a_sound_model(self):
        row = collect(small)
        assert (row["find"], row["sites"], row["measurable"], row["global_pools"]) == ("found", 1, 1, 1)
        assert (row["losses"], row["missed"], row["false"], row["unknown"]) == (1, "", "", "")
        assert (row["measure"], row["convert"], row["replaced"]) == ("measured", "converted", 1)
        assert "altered" not in row

    def test_what_a_model_keeps_of_its_latest_images_is_its_own(self):
        row = collect(lambda: Built(Keeps().eval(), torch.rand(1, 3, 16, 16)))
        assert (row["find"], row["measure"], row.get("altered", "")) == ("found", "measured", "")

    def test_what_a_pass_of_ours_leaves_for_good_is_reported(self):
        """Its own passes change the same attribute, but would never have left this."""
        row = collect(lambda: Built(Collects().eval(), torch.rand(1, 3, 16, 16)))
        assert "measure: latest" in str(row.get("altered"))

    def test_how_many_lines_are_found_is_no_fault_of_a_conversion(self):
        def count(m, x):
            y = m.c(x)
            return y.mean((2, 3)), y.flatten(2)[0, 0][y.flatten(2)[0, 0] > 0.1]

        net = Call(count, c=nn.Conv2d(3, 4, 3, 2, 1)).eval()
        row = collect(lambda: Built(net, torch.rand(1, 3, 16, 16)))
        assert (row["convert"], row["convert_error"]) == ("converted", "")

    def test_sites_whose_places_lie_elsewhere_are_compared_by_their_number(self):
        row = collect(windows_in_the_batch)
        assert (row["sites"], row["losses"], row["missed"], row["false"]) == (2, 2, "", "")

    def test_a_library_error_a_limit_and_a_crash_are_rows(self):
        def raises() -> Built:
            raise ImportError("needs another\npackage")

        assert check_apart(Entry("x", "a", raises), 60)["error"] == "ImportError: needs another package"
        assert check_apart(Entry("x", "b", hang), 1)["error"] == "took more than 1 s"
        assert (
            check_apart(Entry("x", "c", partial(os._exit, 3)), 60)["error"] == "its process ended with code 3"
        )

    def test_rows_stream_and_a_second_run_adds_what_is_missing(self, tmp_path):
        path, entries = tmp_path / "t.csv", [Entry("x", name, small) for name in "ab"]
        first = survey(entries[:1], path, progress=False)
        assert len(pd.read_csv(path)) == len(first) == 1
        table = survey(entries, path, progress=False)
        assert table["model"].tolist() == ["a", "b"]
        other = [Entry("x", "a", windows_in_the_batch)]
        table = survey(other, path, progress=False, again=True)
        assert table["model"].tolist() == ["a", "b"]
        assert table["sites"].astype(int).tolist() == [2, 1]
        assert summarize_survey(pd.read_csv(path, keep_default_na=False, dtype=object)) == dict.fromkeys(
            ("found", "complete and true", "measured", "converted", "unaltered"), (2, 2)
        )

    def test_entries(self):
        entries = list_entries()
        assert len({(e.library, e.name) for e in entries}) == len(entries) >= 320
        assert {e.library for e in entries} == set(LIBRARIES)
        assert [e.name for e in select(entries, ["ViTModel"])] == ["ViTModel"]
        with pytest.raises(SpectralError, match="unknown library 'mona'; nearest: 'monai'"):
            list_entries(["mona"])
        with pytest.raises(SpectralError, match="unknown model 'ResNetModels'; nearest: 'ResNetModel'"):
            select(entries, ["ResNetModels"])
