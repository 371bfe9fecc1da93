"""Crops of a spectrum in any spelling: the dense map is the same low-pass at full size, as numpy has it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fft, nn

from spectral import FeatureExtractor, find_sites, measure

SIZE = (12, 24)


def publish_flc(x: Tensor) -> Tensor:
    """What the published FLC computes, shifts over all axes included."""
    h, w = x.shape[2:]
    low = fft.fftshift(fft.fft2(x, norm="forward"))
    low = low[:, :, int(h / 4) : int(h / 4 * 3), int(w / 4) : int(w / 4 * 3)]
    return fft.ifft2(fft.ifftshift(low), norm="forward").real


def crop_corners(x: Tensor) -> Tensor:
    y = fft.fft2(x, norm="ortho")
    y = torch.cat([y[:, :, :3], y[:, :, -3:]], 2)
    return fft.ifft2(torch.cat([y[..., :6], y[..., -6:]], 3), norm="ortho").real


def crop_half(x: Tensor) -> Tensor:
    y = fft.rfft2(x)
    return fft.irfft2(y[:, :, [0, 1, 2, -3, -2, -1], :7], s=(6, 12))


def crop_axes_apart(x: Tensor) -> Tensor:
    y = fft.fftshift(fft.fft(fft.rfft(x), dim=2), 2)[:, :, 3:9].roll(-3, 2)
    return fft.irfft(fft.ifft(y, dim=2)[..., :7], n=12)


# Any function, its stride, and the frequencies that it keeps along rows and columns.
CROPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int], tuple[range, range]]] = {
    "flc": (publish_flc, (2, 2), (range(-3, 3), range(-6, 6))),
    "corners": (crop_corners, (2, 2), (range(-3, 3), range(-6, 6))),
    "half a spectrum": (crop_half, (2, 2), (range(-3, 3), range(-6, 7))),
    "axis by axis": (crop_axes_apart, (2, 2), (range(-3, 3), range(-6, 7))),
    "columns": (lambda x: fft.irfft(fft.rfft(x), n=12), (1, 2), (range(12), range(-6, 7))),
    "a third": (lambda x: fft.irfft(fft.rfft(x)[..., :5], n=8), (1, 3), (range(12), range(-4, 5))),
    "fewer than fit": (lambda x: fft.irfft(fft.rfft(x)[..., :4], n=12), (1, 2), (range(12), range(-3, 4))),
    "rows": (
        lambda x: fft.ifft(fft.fft(x, dim=2).narrow(2, 0, 6), dim=2).abs(), (2, 1), (range(6), range(24))
    ),
    "channels last": (
        lambda x: fft.irfft2(fft.rfft2(x.permute(0, 2, 3, 1), dim=(1, 2))[:, :, :7], s=(12, 12), dim=(1, 2))
        .permute(0, 3, 1, 2), (1, 2), (range(12), range(-6, 7)),
    ),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor], rank: int = 2) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.conv, self.call = kind(3, 4, 3, padding=1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.conv(x)).sigmoid()


def photos(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


def low_pass(x: Tensor, kept: tuple[range, range]) -> np.ndarray:
    """Zero what isn't kept; where both ends are the new Nyquist frequency, each counts half."""
    rows, columns = kept
    halved = columns[0] == -columns[-1]  # then it is half a spectrum that is kept
    y = (np.fft.rfft2 if halved else np.fft.fft2)(x.double().numpy())
    y *= np.isin(np.arange(y.shape[2]), np.array(rows) % y.shape[2])[:, None]
    if not halved:
        return np.fft.ifft2(y * np.isin(np.arange(y.shape[3]), np.array(columns) % y.shape[3]))
    y[..., columns[-1]] *= 0.5 if columns[-1] in (4, 6) else 1
    y[..., columns[-1] + 1 :] = 0
    return np.fft.irfft2(y, x.shape[2:])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", CROPS)
def test_the_dense_map_is_the_low_pass_at_full_size(name: str, inference: bool) -> None:
    call, stride, kept = CROPS[name]
    net, x = Net(call), photos(*SIZE)
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.stride, site.measurable) == ("fourier_crop", stride, True)
    with torch.inference_mode(inference):
        with (
            FeatureExtractor(net, [site], tap="dense") as dense,
            FeatureExtractor(net, [site], tap="output") as out,
        ):
            net(x)
        given = net.conv(x)
        torch.testing.assert_close(out[site.name], call(given))
        expected = low_pass(given.detach(), kept)
    whole = np.abs(expected) if name == "rows" else expected.real
    left = dense[site.name][..., :: stride[0], :: stride[1]]
    torch.testing.assert_close(left, out[site.name], rtol=1e-5, atol=1e-5)
    gain = np.vdot(whole, dense[site.name].numpy()) / np.vdot(whole, whole)  # torch divides by what is left
    np.testing.assert_allclose(dense[site.name].numpy() / gain, whole, atol=1e-5)
    smaller = stride[0] * stride[1] if name not in ("flc", "corners") else {"flc": 1, "corners": 2}[name]
    assert gain == pytest.approx(smaller, rel=1e-4)


def test_an_ideal_crop_has_no_aliasing() -> None:
    table = measure(Net(crop_half), photos(*SIZE), ["avr_separable"], progress=False)
    dense = table[(table["tap"] == "dense") & (table["metric"] == "avr_separable")]
    assert len(dense) == 2
    assert dense["value"].max() < 1e-9


@pytest.mark.parametrize("size", [(14, 18), (16, 20)])
def test_a_crop_that_is_off_by_one_moves_its_frequencies(size: tuple[int, int]) -> None:
    """At N ≡ 2 mod 4 the published layer puts DC in bin 1; the network does what it does, at every size."""
    net, x = Net(publish_flc), photos(*size)
    (site,) = find_sites(net, size)
    with FeatureExtractor(net, [site], tap="dense") as fx:
        net(x)
    torch.testing.assert_close(fx[site.name][..., ::2, ::2], publish_flc(net.conv(x)).detach())


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_videos(rank: int) -> None:
    net, size = Net(lambda x: fft.irfft(fft.rfft(x), n=8), rank), (4, 6, 16)[-rank:]
    x = photos(*size)
    (site,) = find_sites(net, x)
    assert site.measurable
    assert site.stride == ((1,) * (rank - 1) or (1,)) + (2,)
    with FeatureExtractor(net, [site], tap="dense") as fx:
        net(x)
    left = net.call(net.conv(x)).detach()
    torch.testing.assert_close(fx[site.name][..., ::2].reshape(left.shape), left)


def response(h: int, w: int) -> np.ndarray:
    """A round low-pass without sharp edges, on all frequencies."""
    rows, columns = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]
    return 1 / (1 + ((rows**2 + columns**2) / 0.05) ** 2)


def box(h: int, w: int) -> np.ndarray:
    columns = abs(np.fft.fftfreq(w, 1 / w))  # both ends are one frequency of what is left
    return np.outer(runs(h, 4), (columns <= w // 4) * np.where(columns == w // 4, 0.5, 1))


def runs(n: int, part: int) -> np.ndarray:
    """The frequencies from −n / part on, below n / part."""
    k = np.fft.fftfreq(n, 1 / n)
    return (k >= -(n // part)) & (k < n // part)


def weight(x: Tensor) -> Tensor:
    """Half of the response, as a network makes it."""
    rows = fft.fftfreq(x.shape[2], device=x.device)[:, None]
    return 1 / (1 + ((rows**2 + fft.rfftfreq(x.shape[3], device=x.device) ** 2) / 0.05) ** 2)


def crop_weighted(x: Tensor) -> Tensor:
    return fft.irfft2((fft.rfft2(x) * weight(x))[:, :, [0, 1, 2, -3, -2, -1], :7], s=(6, 12))


def crop_then_weigh(x: Tensor) -> Tensor:
    y = fft.fftshift(fft.rfft2(x), dim=2)[:, :, 3:9, :7]
    y *= fft.fftshift(weight(x), dim=0)[3:9, :7]
    return fft.irfft2(fft.ifftshift(y, dim=2), s=(6, 12))


def copy_corners(x: Tensor) -> Tensor:
    """As Fourier neural operators do: both bands of rows are written into zeros."""
    y, (h, w) = fft.rfft2(x), x.shape[2:]
    low = torch.zeros(*x.shape[:2], h // 2, w // 4 + 1, dtype=y.dtype, device=x.device)
    low[:, :, : h // 4] = y[:, :, : h // 4, : w // 4 + 1]
    low[:, :, -(h // 4) :] = y[:, :, -(h // 4) :, : w // 4 + 1]
    return fft.irfft2(low, s=(h // 2, w // 2))


def crop_by_ones(x: Tensor) -> Tensor:
    """A mask that ones are written into."""
    y, (h, w) = fft.fftshift(fft.fft2(x), dim=(2, 3)), x.shape[2:]
    mask = torch.zeros(h, w, device=x.device)
    mask[h // 4 : h // 2 + h // 4, w // 4 + 1 : w // 2 + w // 4] = 1
    mask[h // 4 : h // 2 + h // 4, w // 4] = 1
    low = (y * mask)[:, :, h // 4 : h // 2 + h // 4, w // 4 : w // 2 + w // 4]
    return fft.ifft2(fft.ifftshift(low, dim=(2, 3))).real


def zero_the_rest(x: Tensor) -> Tensor:
    y, w = fft.rfft2(x), x.shape[3]
    y[:, :, x.shape[2] // 4 : -(x.shape[2] // 4)] = 0
    y.masked_fill_(torch.arange(w // 2 + 1, device=x.device) > w // 8, 0)
    return fft.irfft(fft.ifft(y, dim=2)[..., : w // 4 + 1], n=w // 2)


def weigh_channels(x: Tensor) -> Tensor:
    factors = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return fft.irfft(fft.rfft(x)[..., :7] * factors, n=12)


def filter_first(x: Tensor) -> Tensor:
    """A map is filtered, and only then transformed and cropped."""
    return fft.irfft(fft.rfft(fft.irfft2(fft.rfft2(x) * weight(x), s=x.shape[2:]))[..., :7], n=12)


# Any function, its stride, and the factor of each frequency of the whole map.
WEIGHTED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int], Callable[[int, int], np.ndarray]]] = {
    "weighted, then cropped": (crop_weighted, (2, 2), lambda h, w: response(h, w) * box(h, w)),
    "cropped, then weighted": (crop_then_weigh, (2, 2), lambda h, w: response(h, w) * box(h, w)),
    "corners into zeros": (copy_corners, (2, 2), box),
    "a mask of ones": (crop_by_ones, (2, 2), lambda h, w: np.outer(runs(h, 4), runs(w, 4))),
    "zeros written": (
        zero_the_rest, (1, 2), lambda h, w: np.outer(runs(h, 4), abs(np.fft.fftfreq(w)) <= 1 / 8)
    ),
    "channels by factors": (
        weigh_channels, (1, 2), lambda h, w: np.arange(4)[:, None, None] * box(4 * h, w)[:1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_frequencies_are_those_of_the_low_pass(name: str) -> None:
    call, stride, factors = WEIGHTED[name]
    net, x = Net(call), photos(*SIZE)
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.stride, site.measurable) == ("fourier_crop", stride, True)
    with FeatureExtractor(net, [site], tap="dense") as fx:
        net(x)
    with torch.no_grad():
        given = net.conv(x)
        left = call(given)
    torch.testing.assert_close(fx[site.name][..., :: stride[0], :: stride[1]], left, rtol=1e-5, atol=1e-5)
    data, wanted = given.double().numpy(), factors(*SIZE) * stride[0] * stride[1]
    if name == "a mask of ones":
        expected = np.fft.ifft2(np.fft.fft2(data) * wanted).real
    else:  # of a real map one half of the spectrum counts
        expected = np.fft.irfft2(np.fft.rfft2(data) * wanted[..., : SIZE[1] // 2 + 1], SIZE)
    np.testing.assert_allclose(fx[site.name].numpy(), expected, atol=2e-6)


def test_a_map_may_be_filtered_before_it_is_cropped() -> None:
    (site,) = find_sites(Net(filter_first), SIZE)
    assert (site.op, site.stride, site.measurable) == ("fourier_crop", (1, 2), True)


REASONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no whole factor": (lambda x: fft.irfft(fft.rfft(x), n=10), "24 columns become 10, not every so many"),
    "weighted by what the image says": (
        lambda x: fft.irfft(fft.rfft(x)[..., :7] * x.mean((2, 3), keepdim=True), n=12), "mul gives its"
    ),
    "weighted differently in each image": (
        lambda x: fft.irfft(fft.rfft(x)[..., :7] * torch.arange(len(x)).view(-1, 1, 1, 1), n=12), "mul does"
    ),
    "an offset": (lambda x: fft.irfft(fft.rfft(x)[..., :7] + 1, n=12), "add does"),
    "a curve": (lambda x: fft.irfft(fft.rfft(x)[..., :7].tanh(), n=12), "tanh does"),
    "imaginary parts overwritten": (
        lambda x: (lambda y: (torch.view_as_real(y)[..., 1].zero_(), fft.irfft(y, n=12))[1])(fft.rfft(x)),
        "written",
    ),
    "frequencies put elsewhere as well": (
        lambda x: (lambda y: (y[..., 3:6].copy_(y[..., 8:11]), fft.irfft(y[..., :7], n=12))[1])(fft.rfft(x)),
        "written",
    ),
    "every second frequency": (lambda x: fft.ifft(fft.fft(x)[..., ::2]).real, "moved apart"),
    "two runs of frequencies": (
        lambda x: (lambda y: fft.ifft(torch.cat([y[..., :4], y[..., 16:24]], 3)).real)(fft.fft(x)), None
    ),
    "still complex": (
        lambda x: torch.view_as_real(fft.ifft(fft.fft(x)[..., :12])).square().sum(-1), "complex"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_subsampled_low_pass_is_said(name: str) -> None:
    call, reason = REASONS[name]
    found = [site for site in find_sites(Net(call), SIZE) if site.op == "fourier_crop"]
    if reason is None:
        assert len(found) == 1
        return
    (site,) = found
    assert not site.measurable
    assert reason in site.reason
