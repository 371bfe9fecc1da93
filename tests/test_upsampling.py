"""Where a lattice gets finer: every way of writing it is found, and its images are told by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spectral
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.numerics.matrices import interpolation_rows


def insert_zeros(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    wide = x.new_zeros(*x.shape[:2], *(n * r for n, r in zip(x.shape[2:], factors, strict=True)))
    wide[(..., *(slice(None, None, r) for r in factors))] = x
    return wide


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_zeros_between_the_samples_image_the_whole_spectrum(sizes, seed, data):
    factors = tuple(data.draw(st.integers(1, 4)) for _ in sizes)
    torch.manual_seed(seed)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    ratio = spectral.compute_imaging_ratio(insert_zeros(x, factors), factors)
    np.testing.assert_allclose(ratio, 1 - 1 / math.prod(factors), atol=1e-12)


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (7, 2), (6, 3), (9, 4)])
def test_nearest_has_what_the_sinc_lets_through(size, factor):
    impulse = torch.zeros(1, 1, size, size, dtype=torch.float64)
    impulse[..., 2, 3] = 1  # its spectrum is flat, as white noise's is in the mean
    fine = F.interpolate(impulse, scale_factor=factor)
    n = size * factor
    bins = np.fft.fftfreq(n, 1 / n)
    gain = np.array(
        [1.0 if k == 0 else np.sin(np.pi * k / size) / (factor * np.sin(np.pi * k / n)) for k in bins]
    )
    kept = (np.abs(bins) < size / 2) + (np.abs(bins) == size / 2) / 2
    expected = 1 - ((gain**2 * kept).sum() / (gain**2).sum()) ** 2
    assert float(spectral.compute_imaging_ratio(fine, (factor, factor))) == pytest.approx(expected, abs=1e-12)


def test_the_power_of_all_channels_counts_together():
    board = torch.ones(4, 6, dtype=torch.float64)
    board[::2, ::2] = board[1::2, 1::2] = -1
    maps = torch.stack([torch.full_like(board, 2), board])[None]  # of power 4 below the limit and 1 above
    assert float(spectral.compute_imaging_ratio(maps, (2, 2))) == pytest.approx(0.2, abs=1e-12)


def test_ideal_interpolation_has_none_and_silence_no_ratio():
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    rows = [torch.as_tensor(interpolation_rows(n, 2)) for n in (7, 9)]
    fine = torch.einsum("ah,bw,nchw->ncab", *rows, x)
    assert spectral.compute_imaging_ratio(fine, (2, 2)).max() < 1e-12
    assert spectral.compute_imaging_ratio(torch.zeros(1, 1, 4), (2,)).isnan().all()
    with pytest.raises(SpectralError, match="a factor of at least 1 for each axis"):
        spectral.compute_imaging_ratio(x, (2,))
    with pytest.raises(SpectralError, match="a factor of at least 1"):
        spectral.compute_imaging_ratio(x, (2, 0.5))


class Between(nn.Module):
    """A convolution with stride 2, a way to a finer lattice, and a convolution."""

    def __init__(self, way, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.way = way if isinstance(way, nn.Module) else None
        self.function = None if isinstance(way, nn.Module) else way
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        return self.last(self.way(y) if self.way is not None else self.function(y))


def write_zeros(y: Tensor) -> Tensor:
    wide = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
    wide[..., ::2, ::2] = y
    return wide


def write_phases(y: Tensor) -> Tensor:
    wide = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
    for i in range(2):
        for j in range(2):
            wide[..., i::2, j::2] = y
    return wide


def expand_and_reshape(y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


def shuffle_by_view(y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


WAYS = {
    "transposed": (nn.ConvTranspose2d(8, 8, 4, 2, 1), "transposed_conv", 8),
    "transposed, more": (nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1), "transposed_conv", 8),
    "nearest": (nn.Upsample(scale_factor=2), "resize", 8),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "resize", 8),
    "bicubic": (lambda y: F.interpolate(y, scale_factor=2, mode="bicubic"), "resize", 8),
    "shuffle": (nn.PixelShuffle(2), "pixel_shuffle", 2),
    "shuffle by a view": (shuffle_by_view, "reshape", 2),
    "expand": (expand_and_reshape, "reshape", 8),
    "kron": (lambda y: torch.kron(y, torch.ones(2, 2)), "kron", 8),
    "zeros": (write_zeros, "write", 8),
    "phases": (write_phases, "write", 8),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_writing_it_is_one_place(name):
    way, op, channels = WAYS[name]
    net = Between(way, channels)
    (place,) = spectral.find_upsampling(net, 32)
    assert (place.op, [int(r) for r in place.factor], place.measurable) == (op, [2, 2], True)
    assert (place.input_size, place.output_size) == ((16, 16), (32, 32))
    assert [site.name for site in spectral.find_sites(net, 32)] == ["down"]  # as without it
    table = spectral.measure_imaging(net, torch.rand(3, 3, 32, 32), progress=False)
    assert len(table) == 3
    assert table["value"].between(0, 0.75 + 1e-6).all()
    if name == "zeros":
        np.testing.assert_allclose(table["value"], 0.75, atol=1e-6)
    if op in ("transposed_conv", "pixel_shuffle") or name == "nearest":
        assert table["identity"].max() < 1e-5
    else:
        assert table["identity"].isna().all()


@pytest.mark.parametrize(
    ("way", "factors"),
    [
        (lambda y: y.repeat_interleave(2, -1).repeat_interleave(3, -2), [["1", "2"], ["3", "1"]]),
        (lambda y: F.interpolate(y, size=(24, 16), mode="bilinear"), [["3/2", "1"]]),
    ],
)
def test_axes_and_parts_of_a_factor(way, factors):
    places = spectral.find_upsampling(Between(way), 32)
    assert [[str(ratio) for ratio in place.factor] for place in places] == factors


@pytest.mark.parametrize(
    "way",
    [
        lambda y: F.pad(y, (1, 1, 1, 1)), lambda y: y.repeat(1, 1, 2, 2), lambda y: torch.cat([y, y], -1),
        nn.ConvTranspose2d(8, 8, 3, 1, 1), lambda y: y.flatten(2).unflatten(2, (16, 16)),
        lambda y: F.conv2d(y, y.new_ones(8, 8, 1, 1), padding=2), lambda y: y.roll(1, -1),
    ],
)  # fmt: skip
def test_more_samples_of_the_same_lattice_are_no_place(way):
    assert spectral.find_upsampling(Between(way), 32) == []


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.join = nn.ModuleList([nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            kept.append(F.relu(layer(x)))
            x = F.max_pool2d(kept[-1], 2)
        x = F.relu(self.middle(x))
        for up, join in zip(self.up, self.join, strict=True):
            x = F.relu(join(torch.cat([up(x), kept.pop()], 1)))
        return F.interpolate(self.head(x), scale_factor=1.5, mode="bilinear")


def test_a_u_net_has_its_decoder_listed_beside_its_sites():
    net = UNet().eval()
    assert [place.name for place in spectral.find_upsampling(net, 32)] == ["up.0", "up.1", ":interpolate0"]
    assert [site.op for site in spectral.find_sites(net, 32)] == ["max_pool", "max_pool"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    table = spectral.measure_imaging(net, torch.rand(4, 3, 32, 32), batch_size=3, progress=False)
    assert table.groupby("site", sort=False)["value"].count().to_dict() == {
        "up.0": 4, "up.1": 4, ":interpolate0": 4,
    }  # fmt: skip
    assert table.loc[table["site"] != ":interpolate0", "identity"].max() < 1e-5
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_a_generator_starts_from_numbers_that_are_no_image():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(16, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
    )  # fmt: skip
    z = torch.randn(3, 16, 1, 1)
    assert [place.name for place in spectral.find_upsampling(net, z)] == ["2", "4"]
    table = spectral.measure_imaging(net, z, progress=False)
    assert table["value"].notna().all()
    # by hand: what leaves the last layer
    with torch.no_grad():
        made = net(z)
    np.testing.assert_allclose(
        table.loc[table["site"] == "4", "value"], spectral.compute_imaging_ratio(made, (2, 2)), atol=1e-6
    )


class Decoder(nn.Module):
    """A generator from a vector: a linear layer, and maps from it by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 8 * 16)
        self.second = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z).view(-1, 8, 4, 4))


def test_what_has_no_finer_lattice_and_maps_from_vectors():
    assert [place.name for place in spectral.find_upsampling(Decoder(), torch.zeros(2, 10))] == ["second.0"]
    with pytest.raises(SpectralError, match="nowhere in Sequential does a map's lattice get finer"):
        spectral.measure_imaging(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(2, 3, 8, 8), progress=False)
    single = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(scale_factor=4), nn.Conv2d(3, 2, 1))
    table = spectral.measure_imaging(single, torch.rand(2, 3, 8, 8), progress=False)
    assert table["value"].isna().all()
    assert set(table["reason"]) == {"a single sample enters it, which has no spectrum"}


@pytest.mark.parametrize("name", ["nearest", "bilinear", "transposed, more", "shuffle by a view", "expand"])
def test_a_low_pass_behind_it_takes_the_images_away(name):
    way, _, channels = WAYS[name]
    net, x = Between(way, channels).eval(), torch.rand(2, 3, 32, 32)
    ideal = spectral.convert(net, None, example=32, upsampling="ideal")
    blurred = spectral.convert(net, None, example=32, upsampling="binomial")
    tables = [spectral.measure_imaging(m, x, progress=False)["value"].max() for m in (net, blurred, ideal)]
    assert tables[0] > tables[1] > tables[2]
    assert tables[2] < 1e-6
    report = spectral.conversion_report(ideal)
    assert (report.changes, report.remedies.left, len(report.remedies.altered)) == (True, (), 1)
    with torch.no_grad():
        fine = net.way(net.down(x)) if net.way is not None else net.function(net.down(x))
        spectrum = torch.fft.fft2(fine.double())
        bins = torch.fft.fftfreq(32, 1 / 32).abs()
        spectrum *= (bins[:, None] < 8) & (bins < 8)
        torch.testing.assert_close(
            ideal(x), net.last(torch.fft.ifft2(spectrum).real.float()), atol=1e-5, rtol=0
        )
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        wide = F.pad(fine, (1, 1, 1, 1), mode="replicate")
        kernel = torch.outer(taps, taps).expand(fine.shape[1], 1, 3, 3)
        by_hand = net.last(F.conv2d(wide, kernel, groups=fine.shape[1]))
        torch.testing.assert_close(blurred(x), by_hand, atol=1e-5, rtol=1e-4)
        assert torch.equal(spectral.revert(ideal)(x), net(x))
    again = spectral.convert_alike(net, type(report).from_dict(report.to_dict()))
    with torch.no_grad():
        assert torch.equal(again(x), ideal(x))
    assert [place.name for place in spectral.find_upsampling(ideal, 32)] == [
        place.name for place in spectral.find_upsampling(net, 32)
    ]
    assert [site.name for site in spectral.find_sites(ideal, 32)] == ["down"]


def test_a_u_net_is_converted_at_once_and_what_is_written_says_why_not():
    net, x = UNet().eval(), torch.rand(2, 3, 32, 32)
    smooth = spectral.convert(net, "flc", example=32, activations="alias-free", upsampling="ideal")
    assert smooth(x).shape == net(x).shape
    table = spectral.measure_imaging(smooth, x, progress=False)
    assert len(table) == 6
    assert table["value"].max() < 1e-6
    with pytest.raises(SpectralError, match="upsampling can't be 'idael'; nearest: 'ideal'"):
        spectral.convert(net, None, example=32, upsampling="idael")
    written = spectral.convert(Between(write_zeros), None, example=32, upsampling="ideal")
    ((_, reason),) = spectral.conversion_report(written).remedies.left
    assert reason.startswith("its samples are written into a tensor")


def test_the_command_lists_what_gets_finer_below_the_sites(tmp_path):
    (tmp_path / "decoder.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1))\n"
    )
    result = CliRunner().invoke(main, ["sites", f"{tmp_path}/decoder.py:build", "--size", "16"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-3] == "the lattice gets finer at 1 place"
    assert lines[-1].split() == ["1", "transposed_conv", "2x2", "8x8", "16x16"]
    plain = CliRunner().invoke(main, ["sites", "bundled/resnet8@random"])
    assert "finer" not in plain.output
