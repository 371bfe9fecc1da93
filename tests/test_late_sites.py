"""Sites that only some images reach: rows follow what ran, on the images on which it ran."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from spectral.data import load_images
from spectral.errors import SpectralError, SpectralWarning
from spectral.measurement import measure
from spectral.metrics.aliasing import compute_avr
from spectral.metrics.spectrum import compute_power_spectrum
from spectral.runs.folder import read
from spectral.runs.summary import summarize_measurements
from spectral.sites import find_sites
from spectral.sweeping import sweep
from spectral.sweeping.models import name_folders

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


class Stopping(nn.Module):
    """Takes dark images another way, over a site with or without a dense map; ends before its n-th pass."""

    left: float = float("inf")

    def __init__(self, late: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common, self.late, self.head = nn.Conv2d(3, 8, 3, 2, 1), late(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if x.abs().sum() > 0:  # not the pass that finds sites
            Stopping.left -= 1
        if Stopping.left < 0:
            raise RuntimeError("stopped")
        x, dark = self.common(x), x.mean() < 0.1
        return self.head((self.late(x) if dark else x).mean((2, 3)))


LATE = {
    "measurable": lambda: nn.Conv2d(8, 8, 3, 2, 1),
    "not measurable": lambda: nn.AdaptiveAvgPool2d(5),
}


def tell(table: pd.DataFrame) -> tuple[object, ...]:
    """All that a table says, whatever the order of its rows."""
    keys = ["image", "site", "tap", "metric", "reason"]
    rows = pd.DataFrame(table).sort_values(keys)[[*keys, "value"]].fillna(-1.0)
    return rows.round(6).to_numpy().tolist(), table.attrs["sites"]


@pytest.mark.parametrize("kind", LATE)
def test_the_sites_are_the_same_when_the_same_call_comes_again(kind, tmp_path):
    options = {"batch_size": 1, "progress": False}
    whole = measure(Stopping(LATE[kind]), images(), ("avr",), **options)
    assert [site["name"] for site in whole.attrs["sites"]] == ["common", "late"]
    for _ in range(2):
        again = measure(Stopping(LATE[kind]), images(), ("avr",), **options, out=tmp_path)
        assert tell(again) == tell(whole)
        assert read(tmp_path).attrs["sites"] == whole.attrs["sites"]


@pytest.mark.parametrize("kind", LATE)
def test_the_sites_are_the_same_wherever_it_was_stopped(kind, tmp_path, monkeypatch):
    """Before any table of sites was written, while images that reach the late one are left or not."""
    options = {"batch_size": 1, "progress": False}
    whole, resumed = measure(Stopping(LATE[kind]), images(), ("avr",), **options), set()
    for passes in range(1, 8):
        out = tmp_path / str(passes)
        monkeypatch.setattr(Stopping, "left", passes)
        with suppress(SpectralError):
            measure(Stopping(LATE[kind]), images(), ("avr",), **options, out=out)
        monkeypatch.setattr(Stopping, "left", float("inf"))
        again = measure(Stopping(LATE[kind]), images(), ("avr",), **options, out=out)
        assert tell(again) == tell(whole), passes
        resumed.add(again.attrs["resumed"])
    assert resumed >= {1, 2, 3, 4, 5, 6}


def test_what_has_nothing_but_reasons_says_them_once(tmp_path):
    options = {"progress": False, "out": tmp_path}
    with pytest.warns(SpectralWarning):
        whole, again = (measure(nn.Sequential(nn.AdaptiveAvgPool2d(7)), images(), **options) for _ in "ab")
    assert len(whole)
    pd.testing.assert_frame_equal(again, whole)


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.filterwarnings("ignore::spectral.errors.SpectralWarning")
def test_a_sweep_knows_what_each_job_found(kind, tmp_path):
    """A unit that another job has is left to it; whoever ends the run knows the sites of all, and why."""

    def load(name: str) -> nn.Module:
        return Stopping(LATE[name])

    def run() -> pd.DataFrame:
        options = {"unit": 1, "batch_size": 1, "workers": 0, "out": tmp_path / "out", "load": load}
        return sweep([kind], str(tmp_path), ("avr",), **options)  # type: ignore[arg-type]

    for i, light in enumerate(BRIGHT):
        Image.new("RGB", (32, 32), (200, 210, 220) if light else (5, 6, 7)).save(tmp_path / f"{i}.png")
    whole = measure(load(kind), load_images(tmp_path, size=224), ("avr",), batch_size=1, progress=False)
    (folder,) = name_folders([kind]).values()
    claimed = tmp_path / "out" / folder / "_queue" / "000005.json"
    claimed.parent.mkdir(parents=True)
    claimed.write_text('{"host": "elsewhere", "process": 1}')
    assert run()["state"].tolist() == ["measured by process 1 on elsewhere"]
    claimed.unlink()
    table = run()
    assert table[["state", "sites", "measurable"]].values.tolist() == [
        ["finished", 2, 1 + (kind == "measurable")]
    ]
    rows = tmp_path / "out" / folder / "measurements"
    assert tell(read(rows)) == tell(whole)
    # Two jobs may meet a site at the same time: what can't be measured is told by the one that ends the run.
    units = pd.concat([pd.read_parquet(path) for path in rows.glob("shard-u*")])
    assert len(units)
    assert set(units["reason"]) == {""}


def test_a_site_that_a_batch_does_not_reach_is_no_end(tmp_path):
    class Skipping(Batchwise):
        def forward(self, x: Tensor) -> Tensor:  # features of the map, no scores
            return self.bright(x) if x.mean() > 0 else x

    table = measure(Skipping(), images(), ("avr",), batch_size=1, progress=False, out=tmp_path)
    own = table[(table["metric"] == "avr") & (table["tap"] == "input")]
    assert own["image"].tolist() == ["0000", "0001", "0005"]


class Pasted(nn.Module):
    """Brings as many maps as the image tells to a size of their own, as a detector does its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [self.pool(y) for _ in range(2 if 2 * x.mean() > x.max() + x.min() else 3)]


def test_what_runs_as_often_as_the_image_tells_is_not_measured():
    """`measure` ended at the first image of which there was another number, as of masks of a Mask R-CNN."""
    dark = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) ** 2
    sites = find_sites(Pasted().eval(), dark)
    assert [site.name for site in sites] == ["conv", "pool@0", "pool@1", "pool@2"]
    assert [site.measurable for site in sites] == [True, False, False, False]
    both = torch.cat([dark, 1 - dark])
    table = measure(Pasted().eval(), both, metrics=("avr",), batch_size=1, progress=False)
    assert set(table.loc[table["metric"] == "avr", "site"]) == {"conv"}
    assert table["reason"].str.contains("up to the values in the image").sum() == 3


class Views(nn.Module):
    """Each image and its mirror image, beside it in the batch or behind all images."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.conv, self.behind = nn.Conv2d(3, 4, 3, 2, 1), behind

    def forward(self, x: Tensor) -> Tensor:
        views = [x, 3 * x.flip(-1)]
        scores = self.conv(torch.cat(views) if self.behind else torch.stack(views, 1).flatten(0, 1)).mean(
            (2, 3)
        )
        return scores.unflatten(0, (2, -1)).mean(0) if self.behind else scores.unflatten(0, (-1, 2)).mean(1)


def test_maps_of_one_image_are_those_of_one_image_wherever_they_lie_in_a_batch():
    tables = []
    for behind in (False, True):
        torch.manual_seed(0)
        table = measure(Views(behind), images(), ("avr", "am_relative"), batch_size=2, progress=False)
        tables.append(table[table["site"] != ""][["image", "tap", "metric", "value"]].reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)
