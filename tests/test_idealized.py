"""Whatever a network does to a map, once idealised it is equivariant to shifts, or what isn't is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spectral.causes import idealize

EACH = torch.randn(6, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ALL = torch.randn(6, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def conv(x: Tensor, **options: object) -> Tensor:
    """Convolve each channel, without a border of its own unless it is told one."""
    return F.conv2d(x, EACH, groups=6, **options)  # type: ignore[arg-type]


def pad(x: Tensor, *ends: int, **options: object) -> Tensor:
    return F.pad(x, ends or (1, 1, 1, 1), **options)  # type: ignore[arg-type]


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.full((6,), 0.3).double(), torch.ones(6).double())


def write(x: Tensor, index: tuple[slice, ...], value: Tensor | float) -> Tensor:
    x[index] = value
    return x


def sample(x: Tensor, matrix: list[list[float]]) -> Tensor:
    grid = F.affine_grid(
        torch.tensor(matrix).to(x)[None].expand(len(x), -1, -1), x.shape, align_corners=False
    )
    return F.grid_sample(x, grid, align_corners=False)


def as_signals(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


MIDDLE = (slice(None), slice(None), slice(1, -1), slice(1, -1))
CLOSED = {
    "no padding": conv,
    "padding": lambda x: conv(x, padding=1),
    "same": lambda x: conv(x, padding="same"),
    "dilated": lambda x: conv(x, padding=2, dilation=2),
    "reflected": lambda x: conv(pad(x, mode="reflect")),
    "replicated": lambda x: conv(pad(x, mode="replicate")),
    "a constant": lambda x: conv(pad(x, value=3.0)),
    "on one side": lambda x: conv(pad(x, 0, 2, 2, 0)),
    "padded, then an activation": lambda x: conv(F.relu(pad(x))),
    "padded, then in place": lambda x: conv(F.relu_(norm(pad(x)))),
    "padded, then a norm": lambda x: conv(norm(pad(x))),
    "padded, then scaled": lambda x: conv(pad(x) * 2 + 1),
    "circular, then an activation": lambda x: conv(F.silu(pad(x, mode="circular"))),
    "padded, then joined": lambda x: conv(torch.cat([pad(x), pad(x.relu())], 1)[:, ::2]),
    "padded, then added": lambda x: conv(pad(x) + pad(x).relu()),
    "padded, then all of it": lambda x: conv(pad(x)[:, :]),
    "padded, then a maximum": lambda x: F.max_pool2d(F.relu(pad(x)), 3, 1),
    "padded and cropped": lambda x: pad(x, 2, 2, 2, 2)[:, :, 2:-2, 2:-2],
    "padded and cropped a little": lambda x: conv(pad(x, 2, 2, 2, 2)[:, :, 1:-1, 1:-1]),
    "padded and cropped too far": lambda x: pad(x)[:, :, 2:-2, 2:-2],
    "cropped": lambda x: x[MIDDLE],
    "a negative pad": lambda x: pad(x, -1, -1, -1, -1),
    "a maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "an average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "an average of what is there": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "every second": lambda x: x[:, :, ::2, ::2],
    "padded, every second": lambda x: pad(x)[:, :, 1::2, ::2],
    "a gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "by its largest": lambda x: x / x.amax((2, 3), keepdim=True),
    "by its deviation": lambda x: x / x.std((2, 3), keepdim=True),
    "rows and columns": lambda x: x.mean(3, keepdim=True) * x.amax(2, keepdim=True),
    "to its own size": lambda x: F.interpolate(x, scale_factor=1.0, mode="bilinear"),
    "a channel of zeros": lambda x: write(x.clone(), (slice(None), slice(1)), 0.0),
    "channels exchanged": lambda x: write(x.clone(), (slice(None), slice(1)), x[:, 1:2]),
    "rolled": lambda x: x.roll(1, 2) + x,
    "transposed": lambda x: F.conv_transpose2d(x, ALL, padding=1),
    "transposed, to more": lambda x: F.conv_transpose2d(x, ALL, x.new_ones(6)),
    "transposed, in groups": lambda x: F.conv_transpose2d(
        x, EACH, stride=1, padding=(2, 1), groups=6, dilation=(2, 1)
    ),
    "transposed, a row": lambda x: F.conv_transpose2d(x, ALL[:, :, :1], padding=(0, 1)),
    "transposed, of one": lambda x: F.conv_transpose2d(x, ALL[:, :, :1, :1]),
}  # fmt: skip
NAMED = {
    "padded beside another": lambda x: conv(torch.cat([pad(x, 0, 1, 0, 1), pad(x, 1, 0, 1, 0)], 1)[:, ::2]),
    "padded, then a mean": lambda x: x * pad(x).mean((2, 3), keepdim=True),
    "padded, moved and added": lambda x: pad(x)[:, :, :-2, 2:] + x,
    "padded, then a channel of zeros": lambda x: conv(write(pad(x), (slice(None), slice(1)), 0.0)),
    "put into zeros": lambda x: conv(write(torch.zeros_like(pad(x.detach())), MIDDLE, x)),
    "joined to zeros": lambda x: conv(torch.cat([torch.zeros_like(x[:, :, :2]), x], 2)),
    "a column of zeros": lambda x: write(x.clone(), (slice(None), slice(None), slice(None), slice(1)), 0.0),
    "a border of zeros": lambda x: x * write(torch.zeros_like(x), MIDDLE, 1.0),
    "transposed, with more at its end": lambda x: F.conv_transpose2d(
        x, ALL, padding=2, output_padding=1, dilation=2
    ),
    "transposed, cropped": lambda x: F.conv_transpose2d(x, ALL, padding=3),
    "transposed, behind a pad": lambda x: F.conv_transpose2d(pad(x), ALL, padding=1),
    "rows in one line": lambda x: F.avg_pool1d(x.flatten(1, 2), 3, 1, 1).view_as(x),
    "each row as a signal": lambda x: as_signals(x, nn.Conv1d(6, 6, 3, padding=1).to(x)),
    "windows within one function": lambda x: F.lp_pool2d(x.abs(), 2, 3, 1),
    "unfolded": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
    "turned": lambda x: sample(x, [[0.8, 0.3, 0.1], [-0.2, 0.9, 0.0]]),
    "at offsets": lambda x: torchvision.ops.deform_conv2d(
        x, x[:, :1].expand(-1, 18, -1, -1) * 0.3, EACH.expand(-1, 6, -1, -1), padding=1
    ),
    "boxes": lambda x: torchvision.ops.roi_align(x, [torch.tensor([[0.0, 0.0, 8.0, 8.0]]).to(x)] * len(x), 7),
    "flipped": lambda x: x.flip(3) + x,
    "sums along rows": lambda x: x.cumsum(-1),
    "places": lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype),
    "a triangle": lambda x: x.tril(),
    "sorted": lambda x: x.sort(-1)[0],
    "smaller and larger": lambda x: F.interpolate(F.interpolate(x, size=(7, 7)), size=x.shape[-2:]),
    "unequal windows": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 5), x.shape[-2:]),
}  # fmt: skip


class Net(nn.Module):
    """What is looked at, between two convolutions."""

    def __init__(self, inner: object) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = inner
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))  # type: ignore[operator]


def find_change(net: nn.Module, size: tuple[int, int]) -> tuple[float, list[str]]:
    """How much a shift by one pixel changes the means of an idealised network's map, and what is left."""
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    changes = []
    with torch.no_grad(), idealize(net) as ideal:
        still = ideal(x)
        for axis, step in ((2, 1), (3, -1)):
            moved = ideal(x.roll(step, axis))
            if still.shape[2:] == x.shape[2:]:
                moved, here = moved.roll(-step, axis), still
            else:
                moved, here = moved.mean((2, 3)), still.mean((2, 3))
            changes.append(float((moved - here).abs().max() / still.abs().max()))
    return max(changes), [f"{cause.op}: {cause.reason}" for cause in ideal.left]


SIZES = pytest.mark.parametrize("size", [(12, 12), (11, 13)], ids=["even", "odd"])


@SIZES
@pytest.mark.parametrize("name", CLOSED)
def test_it_is_equivariant(name, size):
    change, left = find_change(Net(CLOSED[name]), size)
    assert (change < 1e-9, left) == (True, [])


@SIZES
@pytest.mark.parametrize("name", NAMED)
def test_what_stays_is_named(name, size):
    _, left = find_change(Net(NAMED[name]), size)
    assert left


def test_without_borders_a_padded_map_stays_as_it_was():
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    for name in ("padded, then in place", "padded and cropped a little", "circular, then an activation"):
        net = Net(CLOSED[name])
        with torch.no_grad(), idealize(net, ["decimation"]) as ideal:
            torch.testing.assert_close(ideal(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["transposed", "transposed, in groups", "transposed, a row", "transposed, of one"]
)
def test_a_transposed_convolution_of_what_no_border_reaches_stays_as_it_was(name):
    net = Net(CLOSED[name])
    net.first = nn.Identity()
    x = torch.zeros(2, 6, 12, 11, dtype=torch.float64)
    x[:, :, 3:-3, 3:-3] = torch.randn(2, 6, 6, 5, dtype=torch.float64)
    with torch.no_grad(), idealize(net, ["border"]) as ideal:
        torch.testing.assert_close(ideal(x), net(x), rtol=0, atol=1e-12)


# Where a stride doesn't divide a map, its samples lie evenly on the circle ----------------------------------


@pytest.mark.parametrize("sources", [["border"], ["border", "decimation"]])
@pytest.mark.parametrize(("extent", "count"), [(13, 7), (14, 7)])
def test_a_tone_is_read_at_even_places_and_goes_where_it_would_fold(sources, extent, count):
    net, places = nn.Conv1d(1, 1, 1, 2, bias=False).double(), torch.arange(count).double() / count
    nn.init.ones_(net.weight)
    for bin in (2, 5):
        x = torch.cos(2 * torch.pi * bin * torch.arange(extent).double() / extent)
        tone = torch.cos(2 * torch.pi * bin * places)
        expected = tone if bin == 2 or "decimation" not in sources else torch.zeros_like(tone)
        with torch.no_grad(), idealize(net, sources) as ideal:
            torch.testing.assert_close(ideal(x[None, None])[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sources", [["border"], ["border", "decimation"]])
def test_axes_of_which_a_stride_divides_one_are_each_made_ideal(sources):
    """Of a product of rows and columns, a product of kernels makes the product of both signals' answers."""
    draw = torch.Generator().manual_seed(0)
    kernels, signals = (
        [torch.randn(n, dtype=torch.float64, generator=draw) for n in sizes] for sizes in ((3, 3), (12, 13))
    )
    answers = []
    for kernel, x in zip(kernels, signals, strict=True):
        net = nn.Conv1d(1, 1, 3, 2, 1, bias=False).double()
        net.weight.data = kernel[None, None]
        with torch.no_grad(), idealize(net, sources) as ideal:
            answers.append(ideal(x[None, None])[0, 0])
    net = nn.Conv2d(1, 1, 3, 2, 1, bias=False).double()
    net.weight.data = torch.outer(*kernels)[None, None]
    with torch.no_grad(), idealize(net, sources) as ideal:
        y = ideal(torch.outer(*signals)[None, None])[0, 0]
    torch.testing.assert_close(y, torch.outer(*answers), rtol=0, atol=1e-12)


# Without ideal borders, samples stay where they are --------------------------------------------------------

PERIODIC = {
    "one period has them all": (15, 3, 1),
    "an even one": (16, 3, 1),
    "a window of five": (15, 5, 2),
    "more than a period": (15, 1, 1),
    "less than a period": (16, 5, 1),
}


def filter_by_hand(dense: Tensor, step: int) -> Tensor:
    """METRICS: no bin at or above 1/(2s) on either axis, then every s-th sample."""
    spectrum = torch.fft.fft2(dense)
    for axis in (-2, -1):
        n = dense.shape[axis]
        keep = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).abs() < n / (2 * step)
        spectrum = spectrum * (keep[:, None] if axis == -2 else keep)
    return torch.fft.ifft2(spectrum).real[..., ::step, ::step]


@pytest.mark.parametrize("name", PERIODIC)
def test_a_low_pass_alone_leaves_the_lattice_of_a_circular_network_where_it_is(name):
    extent, kernel, width = PERIODIC[name]
    x = torch.randn(2, 3, extent, extent, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = nn.Conv2d(3, 4, kernel, 2, width, padding_mode="circular").double()
    dense = F.conv2d(F.pad(x, (width,) * 4, mode="circular"), net.weight, net.bias)
    with torch.no_grad(), idealize(net, ("decimation",)):
        assert torch.allclose(net(x), filter_by_hand(dense, 2), atol=1e-12)
    with torch.no_grad(), idealize(net, ("nonlinearity",)):
        assert torch.allclose(net(x), dense[..., ::2, ::2], atol=1e-12)


@pytest.mark.parametrize("extent", [15, 16])
def test_a_circular_pool_with_an_ideal_maximum_keeps_its_lattice(extent):
    x = torch.randn(1, 2, extent, extent, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 2)).double()
    dense = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)).double()
    with idealize(net, ("nonlinearity",)), torch.no_grad():
        coarse = net(x)
    with idealize(dense, ("nonlinearity",)), torch.no_grad():
        assert torch.allclose(coarse, dense(x)[..., ::2, ::2], atol=1e-12)
