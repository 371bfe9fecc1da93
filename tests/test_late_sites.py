"""Sites that only some images reach: rows follow what ran, on the images on which it ran."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from spectral.measurement import measure
from spectral.metrics import compute_avr
from spectral.spectrum import compute_power_spectrum
from spectral.summary import summarize_measurements

BRIGHT = [True, True, False, False, False, True]


def images() -> Tensor:
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.tensor(BRIGHT)[:, None, None, None], x, -x)


class Batchwise(nn.Module):
    """Takes one way for bright batches and another for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bright(x) if x.mean() > 0 else self.dark(x)).mean((2, 3))


class OneByOne(Batchwise):
    """Runs its only site once for each image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bright(one[None]).mean((2, 3)) for one in x])


class Imagewise(Batchwise):
    """Sends each image its own way."""

    def forward(self, x: Tensor) -> Tensor:
        light = x.mean((1, 2, 3)) > 0
        out = x.new_zeros(len(x), 4)
        if light.any():
            out[light] = self.bright(x[light]).mean((2, 3))
        if (~light).any():
            out[~light, :3] = self.dark(x[~light]).mean((2, 3))
        return out


@pytest.mark.parametrize(
    ("kind", "batch_size"), [(Batchwise, 1), (Imagewise, 1), (Imagewise, 3), (Imagewise, 4), (Imagewise, 6)]
)
def test_every_value_is_of_the_image_beside_it(kind, batch_size, tmp_path):
    x = images()
    table = measure(kind(), x, ("avr",), taps=("input",), batch_size=batch_size, progress=False, out=tmp_path)
    own = table[(table["metric"] == "avr")].dropna(subset="value")
    expected = [("bright" if light else "dark", f"{i:04d}") for i, light in enumerate(BRIGHT)]
    assert sorted(zip(own["site"], own["image"], strict=True)) == sorted(expected)
    values = own.set_index("image")["value"]
    for i in range(6):
        entering = compute_avr(compute_power_spectrum(x[i]), 2)
        assert values[f"{i:04d}"] == pytest.approx(float(entering), rel=1e-5)
    summary = summarize_measurements(table).set_index("site")
    assert summary.loc[["bright", "dark"], "n"].tolist() == [3, 3]
    assert summary.loc[["bright", "dark"], "n_absent"].tolist() == [3, 3]
    assert {site["name"]: site["measurable"] for site in table.attrs["sites"]} == {
        "bright": True,
        "dark": True,
    }


def test_it_is_the_same_after_a_stop(tmp_path):
    options = {"metrics": ("avr",), "batch_size": 2, "progress": False}
    net = Batchwise()
    whole = measure(net, images(), **options, out=tmp_path)
    for name in ("shard-000001.parquet", "shard-000002.parquet"):
        (tmp_path / name).unlink()
    again = measure(net, images(), **options, out=tmp_path)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_a_model_that_runs_image_by_image_goes_on_after_a_stop(tmp_path):
    torch.manual_seed(0)
    net = OneByOne()
    whole = measure(net, images(), ("avr",), batch_size=2, progress=False, out=tmp_path)
    sorted(tmp_path.glob("shard-*"))[1].unlink()
    again = measure(net, images(), ("avr",), batch_size=2, progress=False, out=tmp_path)
    keys = ["image", "site", "tap", "metric"]
    one, other = (table.sort_values(keys).reset_index(drop=True) for table in (whole, again))
    pd.testing.assert_frame_equal(one[[*keys, "value"]], other[[*keys, "value"]])


def test_a_site_that_a_batch_does_not_reach_is_no_end(tmp_path):
    class Skipping(Batchwise):
        def forward(self, x: Tensor) -> Tensor:  # features of the map, no scores
            return self.bright(x) if x.mean() > 0 else x

    table = measure(Skipping(), images(), ("avr",), batch_size=1, progress=False, out=tmp_path)
    own = table[(table["metric"] == "avr") & (table["tap"] == "input")]
    assert own["image"].tolist() == ["0000", "0001", "0005"]
