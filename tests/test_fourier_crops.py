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


REASONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no whole factor": (lambda x: fft.irfft(fft.rfft(x), n=10), "24 columns become 10, not every so many"),
    "weighted by a mask": (
        lambda x: fft.irfft((fft.rfft(x) * torch.linspace(1, 0, 13, device=x.device))[..., :7], n=12),
        "can't be told which frequencies",
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
