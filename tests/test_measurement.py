"""The measuring loop: its values, what interrupts it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
import torch
import torch.nn.functional as F
from faults import full_disk
from networks import NoDownsampling, count_hooks, image, unchanged
from torch import Tensor, nn

from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.measurement import METRICS, TensorImages, captures, describe_sites, measure
from spectral.metrics.aliasing import compute_alias_categories, compute_avr
from spectral.metrics.channels import find_white_noise_ratio
from spectral.metrics.spectrum import compute_power_spectrum
from spectral.models import load_model, model_info
from spectral.runs.summary import summarize_measurements
from spectral.sites import find_sites
from spectral.table.rows import COLUMNS

ALL = METRICS
TAPS = ("input", "dense", "signal", "output")


def tiny(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Two sites, "0" (conv) and "2" (max pool), and five logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 5, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).to(dtype)  # fmt: skip


class Fragile(nn.Module):
    """A functional site inside a child that raises at its k-th real forward, from 1."""

    class Leaf(nn.Module):
        def __init__(self, error: BaseException, at: int) -> None:
            super().__init__()
            # an array is no setting of the network, so that a run can go on with another
            self.error, self.at, self.calls = error, np.array(at), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += x.device.type != "meta"
            if self.calls == self.at:
                raise self.error
            return F.max_pool2d(x, 2)

    def __init__(self, error: BaseException, at: int) -> None:
        super().__init__()
        self.body, self.leaf = tiny(), Fragile.Leaf(error, at)
        self.body[1].train(False)  # a mode of its own, to be restored

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.leaf(x))


class Pictures:
    """Images that count how many of their batches are alive."""

    source, size = "pictures", (16, 16)

    def __init__(self, count: int) -> None:
        self.ids = [f"{i}" for i in range(count)]
        self.labels: list[int | None] = [None] * count
        self.fingerprint = "pictures"
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most_alive = 0

    def resized(self, size: tuple[int, int]) -> Pictures:
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        chosen = list(range(len(self)) if indices is None else indices)
        for start in range(0, len(chosen), batch_size):
            batch = torch.stack([image(3, 16, 16, seed=i) for i in chosen[start : start + batch_size]])
            self.alive.add(batch)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield chosen[start : start + batch_size], batch

    def __len__(self) -> int:
        return len(self.ids)


def values(table: pd.DataFrame) -> pd.Series:
    """Values by image, site, tap and metric, in one order."""
    return table.set_index(["image", "site", "tap", "metric"])["value"].sort_index()


def assert_same(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 1e-5) -> None:
    """The same rows, in any order, with the same values relative to each metric's scale."""
    left, right = values(a), values(b)
    assert left.index.equals(right.index)
    scale = left.abs().groupby(level=["site", "tap", "metric"]).transform("max").clip(lower=1e-6)
    assert ((left - right).abs() / scale).max() <= tolerance


class TestValues:
    def test_equal_the_references_on_maps_made_by_hand(self):
        net, x = tiny(torch.float64), image(2, 3, 12, 9, dtype=torch.float64)
        measured = measure(net, x, ALL, taps=TAPS, batch_size=2, progress=False)
        assert measured.attrs["provenance"]["dtype"] == "float64"
        table = values(measured)
        conv = net[0]
        with torch.no_grad():
            dense0 = F.conv2d(x, conv.weight, conv.bias, stride=1, padding=1)
            entering = F.relu(conv(x))
            padded = F.pad(entering, (1, 1, 1, 1), value=-torch.inf)
            dense2 = F.max_pool2d(padded, 3, 1)
            maps = {
                ("0", "input"): x, ("0", "dense"): dense0, ("0", "output"): conv(x),
                ("0", "signal"): F.relu(dense0), ("2", "input"): entering, ("2", "dense"): dense2,
                ("2", "signal"): dense2, ("2", "output"): net[2](entering),
            }  # fmt: skip
            logits = net(x)
        expected: dict[tuple[str, str, str, str], float] = {}
        behind = [(site, tap) for site in ("0", "2") for tap in ("dense", "signal")]
        shares = {place: compute_alias_categories(maps[place], 2) for place in behind}
        for i in range(2):
            key = f"{i:04d}"
            for (site, tap), tensor in maps.items():
                array = tensor[i].numpy()
                P = reference.power_spectrum(array)
                centred = tensor[i] - tensor[i].mean((1, 2), keepdim=True)
                hann = compute_avr(compute_power_spectrum(centred, window="hann"), 2)
                expected |= {
                    (key, site, tap, "avr"): reference.avr(P, (2, 2)),
                    (key, site, tap, "avr_separable"): reference.avr(P, (2, 2), "separable"),
                    (key, site, tap, "avr_exclude_dc"): reference.avr(P, (2, 2), exclude_dc=True),
                    (key, site, tap, "avr_separable_exclude_dc"): reference.avr(P, (2, 2), "separable", True),
                    (key, site, tap, "avr_hann"): float(hann),
                    (key, site, tap, "power"): float((array**2).mean()),
                }
                if tap == "signal":
                    ratios = [reference.channel_alias_ratio(channel, (2, 2)) for channel in array]
                    noise = find_white_noise_ratio(array.shape[1:], 2)
                    expected |= {
                        (key, site, tap, "alias_power_ratio_channel_median"): float(np.median(ratios)),
                        (key, site, tap, "alias_power_ratio_channel_p90"): float(np.quantile(ratios, 0.9)),
                        (key, site, tap, "alias_power_ratio_white_noise"): noise,
                        (key, site, tap, "live_channels"): len(ratios),
                    }
                if (site, tap) in shares:
                    expected |= {
                        (key, site, tap, "am"): reference.am(array, (2, 2)),
                        (key, site, tap, "am_relative"): reference.am_relative(array, (2, 2)),
                        (key, site, tap, "alias_power_ratio"): reference.alias_power_ratio(array, (2, 2)),
                        **{
                            (key, site, tap, name): float(share[i])
                            for name, share in shares[site, tap].items()
                        },
                    }

            def classify(one: Any) -> Any:
                with torch.no_grad():
                    return net(torch.from_numpy(np.array(one))[None])[0].numpy()

            p = reference.softmax(logits[i].numpy())
            expected |= {
                (key, "", "", "sis"): reference.sis(classify, x[i].numpy()),
                (key, "", "", "confidence"): float(p.max()),
                (key, "", "", "prediction"): float(p.argmax()),
            }
        assert set(table.index) == set(expected)
        for key, value in expected.items():
            assert table[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key

    def test_columns_and_the_order_of_rows(self):
        table = measure(tiny(), image(3, 3, 16, 16), ("avr", "am"), batch_size=2, progress=False, name="net")
        assert list(table.columns) == COLUMNS
        assert table["image"].drop_duplicates().tolist() == ["0000", "0001", "0002"]
        assert table["image"].is_monotonic_increasing
        assert set(table["model"]) == {"net"}
        assert set(table["call"]) == {0}
        assert table.groupby("site")["op"].unique().str[0].to_dict() == {"": "", "0": "conv", "2": "max_pool"}
        assert set(table.loc[table["metric"] == "am", "tap"]) == {"dense"}
        assert set(table.loc[table["site"] == "", "tap"]) == {""}

    def test_one_site_of_a_module_that_runs_several_times(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pool = nn.AvgPool2d(2)

            def forward(self, x: Tensor) -> Tensor:
                return self.pool(self.pool(x) * 3)

        x = image(2, 3, 16, 16)
        table = values(measure(Twice(), x, ("avr",), taps=("input",), progress=False))
        between = 3 * F.avg_pool2d(x, 2)
        assert table["0001", "pool@0", "input", "avr"] == pytest.approx(
            float(compute_avr(compute_power_spectrum(x[1]))), rel=1e-6
        )
        assert table["0001", "pool@1", "input", "avr"] == pytest.approx(
            float(compute_avr(compute_power_spectrum(between[1]))), rel=1e-6
        )

    @pytest.mark.parametrize("batch_size", [1, 3, 7])
    def test_batch_size_changes_nothing(self, batch_size):
        net, x = tiny(), image(10, 3, 19, 16)
        whole = measure(net, x, ALL, taps=TAPS, batch_size=10, progress=False)
        assert_same(whole, measure(net, x, ALL, taps=TAPS, batch_size=batch_size, progress=False))

    def test_chunks_change_nothing(self, monkeypatch):
        net, x = tiny(), image(5, 3, 16, 16)
        whole = measure(net, x, ALL, progress=False)
        monkeypatch.setattr(captures, "CHUNK_ELEMENTS", 1)
        assert_same(whole, measure(net, x, ALL, progress=False))

    def test_two_runs_agree_to_the_last_bit(self):
        net, x = tiny(), image(5, 3, 16, 16)
        first, second = (measure(net, x, ALL, batch_size=2, progress=False) for _ in range(2))
        pd.testing.assert_frame_equal(first, second, check_exact=True)

    def test_sites_may_be_chosen_as_sites_or_by_name(self):
        net, x = tiny(), image()
        by_name = measure(net, x, ("avr",), sites=["2"], progress=False)
        as_sites = measure(net, x, ("avr",), sites=find_sites(net, x)[1:], progress=False)
        assert set(by_name["site"]) == {"2", ""}
        pd.testing.assert_frame_equal(by_name, as_sites, check_exact=True)

    def test_a_loaded_model_is_fed_as_it_was_trained(self):
        net = load_model("bundled/resnet8@random")
        images = load_images("synthetic", size=32, limit=3)
        scaled = model_info(net).preprocessing(torch.stack(list(images)))
        table = measure(net, images, ("avr",), progress=False)
        by_hand = measure(net, scaled, ("avr",), progress=False)
        np.testing.assert_array_equal(table["value"], by_hand["value"])
        assert set(table["model"]) == {"bundled/resnet8@random"}

    def test_images_of_different_sizes_are_brought_to_the_models(self):
        net = load_model("bundled/resnet8@random")
        items = [load_images("synthetic", size=side, limit=1).items[0] for side in (40, 48)]
        items[1] = dataclasses.replace(items[1], id="synthetic/other")
        images = ImageSet("mixed", items)
        table = measure(net, images, ("avr",), progress=False)
        expected = measure(net, images.resized((32, 32)), ("avr",), progress=False)
        pd.testing.assert_series_equal(table["value"], expected["value"], check_exact=True)

    def test_labels_have_rows_where_they_are_known(self):
        images = load_images("synthetic", size=32, limit=3)
        items = [
            dataclasses.replace(item, label=y) for item, y in zip(images.items, (7, None, 2), strict=True)
        ]
        labelled = dataclasses.replace(images, items=items)
        net = load_model("bundled/resnet8@random")
        table = measure(net, labelled, ("avr",), progress=False)
        np.testing.assert_array_equal(table.loc[table["metric"] == "label", "value"], [7, np.nan, 2])
        assert "label" not in set(measure(net, images, ("avr",), progress=False)["metric"])
        assert "label" not in set(summarize_measurements(table)["metric"])

    def test_outputs_that_are_no_logits_leave_the_sites_measured(self):
        class Detector(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = tiny()

            def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
                return [{"boxes": row} for row in self.body(x)]

        x = image()
        table = measure(Detector(), x, ("avr", "am"), progress=False)
        assert set(table["metric"]) == {"avr", "am", "power"}
        with pytest.raises(SpectralError, match="expected a classifier with logits"):
            measure(Detector(), x, ("sis",), progress=False)


class TestSmallAndSilentMaps:
    def test_a_two_pixel_map_has_one_bin_below_the_limit(self):
        net, x = nn.Conv2d(3, 2, 1, 2), image(4, 3, 2, 2)
        table = values(measure(net, x, ("avr", "am"), taps=("input",), progress=False))
        dc, total = x.sum((2, 3)).square().sum(1), 4 * x.square().sum((1, 2, 3))
        for i in range(4):
            share = float(1 - dc[i] / total[i])
            assert table[f"{i:04d}", ":conv0", "input", "avr"] == pytest.approx(share, rel=1e-5)

    def test_a_one_pixel_map_has_nothing_to_alias(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten())
        table = measure(net, image(2, 3, 2, 2), ALL, taps=TAPS, progress=False)
        second = table[table["site"] == "1"].set_index(["tap", "metric"])["value"]
        assert table.loc[table["site"] == "1", "image"].nunique() == 2
        np.testing.assert_allclose(second.loc[[("dense", "avr"), ("input", "avr"), ("output", "avr")]], 0)
        np.testing.assert_allclose(second.loc[[("dense", "am")]], 0, atol=1e-7)

    @pytest.mark.parametrize("metrics", [("avr", "am"), ("am",)])
    def test_silent_maps_are_counted_and_left_out_of_means(self, metrics):
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.Flatten()), image(3, 3, 8, 8)
        x[1] = 0
        table = measure(net, x, metrics, progress=False)
        summary = summarize_measurements(table).set_index(["tap", "metric"])
        for tap, metric in ([("input", "avr"), ("dense", "avr")] if "avr" in metrics else []) + [
            ("dense", "am")
        ]:
            at_tap = table[(table["tap"] == tap) & (table["metric"] == metric)]["value"].to_numpy()
            assert at_tap[1] == 0
            row = summary.loc[(tap, metric)]
            assert (row["n"], row["n_silent"]) == (2, 1)
            assert row["mean"] == pytest.approx(at_tap[[0, 2]].mean(), rel=1e-12)


class TestWhatCannotBeMeasured:
    @staticmethod
    def altered() -> dict[str, Any]:
        """A pool whose output is altered after its site was found as a plain one."""
        net = tiny()
        sites = find_sites(net, 16)
        pool = net[2].forward
        net[2].forward = lambda x: pool(x) * 1.5
        return {"model": net, "sites": sites, "progress": False}

    def test_a_site_whose_dense_map_misses_its_output_is_reported(self):
        table = measure(**self.altered(), images=image(), metrics=("avr", "am"))
        assert set(table.loc[table["metric"] != "", "site"]) == {"0", ""}
        (row,) = table[table["metric"] == ""].to_dict("records")
        assert (row["site"], row["op"], row["stride"], row["image"]) == ("2", "max_pool", "2x2", "")
        assert "its dense map misses its output" in row["reason"]
        sites = {site["name"]: site for site in table.attrs["sites"]}
        assert not sites["2"]["measurable"]
        assert "its dense map misses its output" in sites["2"]["reason"]
        assert sites["0"]["measurable"]
        reported = summarize_measurements(table).query("reason != ''")
        assert reported["site"].tolist() == ["2"]
        assert reported[["op", "stride", "n"]].values.tolist() == [["max_pool", "2x2", 0]]

    def test_its_input_is_measured_where_no_dense_map_is_needed(self):
        table = measure(**self.altered(), images=image(), metrics=("avr",), taps=("input",))
        assert set(table["site"]) == {"0", "2", ""}
        assert all(site["measurable"] for site in table.attrs["sites"])

    def test_the_reason_survives_an_interruption(self, tmp_path):
        run = {"images": image(4, 3, 16, 16), "metrics": ("avr",), "batch_size": 2, "out": tmp_path}
        whole = measure(**self.altered(), **run)
        assert not whole.attrs["sites"][1]["measurable"]
        (tmp_path / "shard-000001.parquet").unlink()
        for _ in range(2):  # with a batch left to measure, then with none
            resumed = measure(**self.altered(), **run)
            pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
            assert resumed.attrs["sites"] == whole.attrs["sites"]

    def test_sites_without_a_dense_map_are_listed_with_the_reason(self):
        net = nn.Sequential(nn.AdaptiveMaxPool2d(7), nn.Conv2d(3, 2, 3, 2), nn.Flatten())
        table = measure(net, image(), ("avr",), progress=False)
        reasons = table[table["metric"] == ""].set_index("site")["reason"]
        assert reasons.index.tolist() == ["0"]
        assert "windows are unequal" in reasons["0"]
        assert "0" not in set(table.loc[table["metric"] != "", "site"])

    def test_a_model_of_which_nothing_is_left_says_why(self):
        net = nn.Sequential(nn.MaxPool2d(2))
        sites = find_sites(net, 16)
        pool = net[0].forward
        net[0].forward = lambda x: pool(x) + 1
        with pytest.raises(SpectralError, match="nothing to measure: '0': its dense map misses its output"):
            measure(net, image(), ("avr",), sites=sites, progress=False)

    class Sometimes(nn.Module):
        """One pool where the image is bright, another where it isn't."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bright, self.dark = nn.Conv2d(3, 2, 3, 2), nn.MaxPool2d(2), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if x.device.type == "meta":
                return self.bright(y).mean((2, 3)) + self.dark(y).mean((2, 3))
            return (self.bright if float(x.detach().mean()) > 0 else self.dark)(y).mean((2, 3))

    def test_a_site_that_runs_on_some_images_only_says_on_how_many(self, tmp_path):
        x = image(5, 3, 9, 9) + torch.tensor([9.0, -9.0, 9.0, 9.0, -9.0]).view(-1, 1, 1, 1)
        net = self.Sometimes()
        sites = find_sites(net, 9)
        run = {"metrics": ("avr",), "sites": sites, "progress": False, "batch_size": 1}
        summary = summarize_measurements(measure(net, x, **run)).query("tap == 'dense'").set_index("site")
        assert summary[["n", "n_absent"]].T.to_dict("list") == {
            "conv": [5, 0],
            "bright": [3, 2],
            "dark": [2, 3],
        }
        bright = measure(net, x[[0, 2]], **run, out=tmp_path)
        (row,) = bright[bright["metric"] == ""].to_dict("records")
        assert (row["site"], row["reason"]) == ("dark", "it didn't run on any of the images")
        pd.testing.assert_frame_equal(measure(net, x[[0, 2]], **run, out=tmp_path), bright)

    class Boxes(Sometimes):
        """Its second pool sees the bright images of a batch, which may be none."""

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.bright(y if x.device.type == "meta" else y[x.mean((1, 2, 3)) > 0])
            return y.mean((2, 3))

    def test_a_site_that_runs_on_no_rows_has_no_values_of_them(self):
        """It ended the measurement."""
        x = image(3, 3, 9, 9) + torch.tensor([9.0, -9.0, -9.0]).view(-1, 1, 1, 1)
        table = measure(self.Boxes(), x, ("avr",), taps=("dense",), batch_size=1, progress=False)
        summary = summarize_measurements(table).query("tap == 'dense'").set_index("site")
        assert summary[["n", "n_absent"]].T.to_dict("list") == {"conv": [3, 0], "bright": [1, 2]}


class TestRestoring:
    def test_the_model_is_left_as_it_was(self):
        net = Fragile(RuntimeError(), at=0)
        with unchanged(net.body):
            measure(net, image(3, 3, 32, 32), ALL, batch_size=2, progress=False)

    @pytest.mark.parametrize(
        ("error", "raised", "message"),
        [
            (
                RuntimeError("no room\nat all"),
                SpectralError,
                "forward of Fragile failed .* RuntimeError: no room$",
            ),
            (SpectralError("a sentence"), SpectralError, "^a sentence$"),
            (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "^no memory$"),
            (KeyboardInterrupt("now"), KeyboardInterrupt, "^now$"),
        ],
    )
    def test_a_forward_that_raises_keeps_finished_shards_and_no_hooks(self, tmp_path, error, raised, message):
        x = image(10, 3, 32, 32)
        net = Fragile(error, at=3)
        modes = [module.training for module in net.modules()]
        assert len(set(modes)) == 2
        with pytest.raises(raised, match=message):
            measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        assert count_hooks(net) == 0
        assert [module.training for module in net.modules()] == modes
        assert len(list(tmp_path.glob("shard-*.parquet"))) == 2
        net.leaf.at = np.array(0)
        resumed = measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        assert resumed.attrs["resumed"] == 4
        whole = measure(net, x, ("avr",), batch_size=2, progress=False)
        pd.testing.assert_frame_equal(resumed, whole, check_exact=True)

    def test_a_shard_that_cannot_be_written_leaves_no_hooks(self, tmp_path):
        class Filling(Pictures):
            def batches(
                self, batch_size: int, *, indices: Sequence[int] | None = None
            ) -> Iterator[tuple[list[int], Tensor]]:
                for chosen, batch in super().batches(batch_size, indices=indices):
                    with full_disk() if chosen == [2, 3] else nullcontext():
                        yield chosen, batch

        net = tiny()
        with pytest.raises(
            SpectralError, match=r"shard-000001\.parquet can't be written .File too l"
        ) as caught:
            measure(
                net, Filling(6), ("avr",), batch_size=2, out=tmp_path, progress=False, preprocessing="none"
            )
        # the traceback is alive and holds the loop's frames
        assert caught.traceback
        assert count_hooks(net) == 0
        assert net.training
        assert {path.name for path in tmp_path.iterdir()} == {"_run.json", "shard-000000.parquet"}


class TestResuming:
    def test_a_folder_gives_the_table_that_memory_gives(self, tmp_path):
        net, x = tiny(), image(7, 3, 16, 16)
        stored = measure(net, x, ALL, batch_size=3, out=tmp_path / "new" / "folder", progress=False)
        kept = measure(net, x, ALL, batch_size=3, progress=False)
        pd.testing.assert_frame_equal(stored, kept, check_exact=True)
        assert len(list((tmp_path / "new" / "folder").glob("shard-*.parquet"))) == 3
        assert stored.attrs["resumed"] == 0

    @pytest.mark.parametrize("finished", range(6))
    def test_after_a_stop_at_any_shard(self, tmp_path, finished):
        net, x = tiny(), image(10, 3, 16, 16)
        whole = measure(net, x, ("avr", "am"), batch_size=2, out=tmp_path / "whole", progress=False)
        stopped = tmp_path / "stopped"
        stopped.mkdir()
        for name in ("_run.json", *(f"shard-{i:06d}.parquet" for i in range(finished))):
            shutil.copy(tmp_path / "whole" / name, stopped)
        half_written = stopped / f"_shard-{finished:06d}.partial"
        half_written.write_bytes(b"PAR1 and then nothing")
        resumed = measure(net, x, ("avr", "am"), batch_size=2, out=stopped, progress=False)
        pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
        assert resumed.attrs["resumed"] == 2 * finished
        assert not half_written.exists()

    def test_with_another_batch_size(self, tmp_path):
        net, x = tiny(), image(10, 3, 16, 16)
        measure(net, x, ("avr", "am"), batch_size=4, out=tmp_path, progress=False)
        (tmp_path / "shard-000001.parquet").unlink()
        resumed = measure(net, x, ("avr", "am"), batch_size=3, out=tmp_path, progress=False)
        assert_same(resumed, measure(net, x, ("avr", "am"), progress=False))

    def test_after_a_damaged_shard_in_the_middle_was_deleted(self, tmp_path):
        net, x = tiny(), image(10, 3, 16, 16)
        whole = measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        damaged = tmp_path / "shard-000001.parquet"
        damaged.write_bytes(damaged.read_bytes()[:100])
        with pytest.raises(
            SpectralError, match=r"shard-000001\.parquet is damaged .*delete it and measure again"
        ):
            measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        damaged.unlink()
        resumed = measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        assert resumed.attrs["resumed"] == 8
        assert_same(resumed, whole, tolerance=0)

    def test_the_bar_starts_where_the_last_run_stopped(self, tmp_path, capsys):
        net, x = tiny(), image(4, 3, 16, 16)
        measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        assert capsys.readouterr() == ("", "")
        (tmp_path / "shard-000001.parquet").unlink()
        measure(net, x, ("avr",), batch_size=2, out=tmp_path)
        out, err = capsys.readouterr()
        assert out == ""
        assert "measuring Sequential:  50%" in err.split("\r")[1 if err.startswith("\r") else 0]
        assert "4/4" in err


class TestRefusing:
    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"metrics": ("avr",)}, "metrics"),
            ({"taps": ("dense",)}, "taps"),
            ({"images": image(3, 3, 16, 16, seed=5)}, "images_fingerprint"),
            ({"images": image(4, 3, 16, 16)}, "image_count"),
            ({"images": image(3, 3, 16, 16).double()}, "images_fingerprint"),
            ({"model": tiny(seed=1)}, "weights"),
            ({"name": "other"}, "model"),
            ({"sites": ["0"]}, "sites"),
        ],
    )
    def test_a_folder_of_another_configuration(self, tmp_path, change, key):
        options = {
            "model": tiny(),
            "images": image(3, 3, 16, 16),
            "metrics": ("avr", "am"),
            "progress": False,
        }
        before = measure(**options, out=tmp_path)
        with pytest.raises(SpectralError, match=rf"holds measurements with {key} = .*choose another folder"):
            measure(**{**options, **change}, out=tmp_path)
        pd.testing.assert_frame_equal(measure(**options, out=tmp_path), before, check_exact=True)

    def test_the_fingerprint_of_a_tensor_depends_on_every_bit_and_not_on_strides(self):
        x = image(2, 3, 8, 8, dtype=torch.float64)
        same = TensorImages(x.to(memory_format=torch.channels_last)).fingerprint
        assert TensorImages(x).fingerprint == same
        assert TensorImages(x * (1 + 1e-15)).fingerprint != same
        assert TensorImages(x.reshape(2, 3, 4, 16)).fingerprint != same
        assert len(TensorImages(x.bfloat16()).fingerprint) == 16

    def test_weights_that_changed_since_they_were_loaded(self, tmp_path):
        net, images = load_model("bundled/resnet8@random"), load_images("synthetic", size=32, limit=2)
        table = measure(net, images, ("avr",), out=tmp_path, progress=False)
        assert table.attrs["provenance"]["weights"] == model_info(net).weights_id
        with torch.no_grad():
            next(net.parameters()).mul_(2)
        with pytest.raises(SpectralError, match="holds measurements with weights = "):
            measure(net, images, ("avr",), out=tmp_path, progress=False)

    def test_the_same_weights_behind_another_preprocessing(self, tmp_path):
        net, images = load_model("bundled/resnet8@random"), load_images("synthetic", size=32, limit=2)
        measure(net, images, ("avr",), out=tmp_path, progress=False)
        scale = dataclasses.replace(model_info(net).preprocessing, mean=(0.4, 0.4, 0.4))
        net.spectral_info = dataclasses.replace(model_info(net), preprocessing=scale)
        with pytest.raises(SpectralError, match="holds measurements with preprocessing = "):
            measure(net, images, ("avr",), out=tmp_path, progress=False)

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(SpectralError, match=r"can't write to .*file/out \(Not a directory\)"):
            measure(tiny(), image(), ("avr",), out=tmp_path / "file" / "out", progress=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"metrics": ("avr", "amm")}, "unknown metric 'amm'; nearest: 'am'; allowed values are avr, "),
            ({"metrics": ()}, "metrics is empty; allowed values are avr"),
            ({"metrics": "avr"}, r"metrics must be a list such as \('avr',\), got the string 'avr'"),
            ({"taps": ("inputs",)}, "unknown tap 'inputs'; nearest: 'input', .* allowed values are input, "),
            ({"taps": ()}, "taps is empty"),
            ({"batch_size": 0}, "batch_size must be a whole number ≥ 1, got 0"),
            ({"images": torch.rand(0, 3, 8, 8)}, "there are no images"),
            ({"images": torch.ones(2, 3, 8, 8).long()}, "there is no image among the inputs"),
            ({"images": torch.rand(8, 8)}, "forward of Sequential failed .*1, 1, 8, 8"),
            ({"images": 2.5}, "expected images from load_images, a tensor or an array .* got float"),
            ({"images": "no-such-images"}, "unknown images 'no-such-images'"),
            ({"images": torch.rand(2, 1, 8, 8)}, "forward of Sequential failed .*1, 1, 8, 8"),
            ({"model": "bundled/resnet20"}, "expected a torch.nn.Module, got str"),
            ({"sites": ["0", "3"]}, "Sequential has no site '3'"),
            ({"sites": ["layer1.conv"], "model": nn.ModuleDict()}, "forward of ModuleDict failed"),
            ({"model": NoDownsampling()}, r"no downsampling site .* metrics=\('sis',\) needs none"),
            ({"model": nn.Sequential(nn.AdaptiveAvgPool2d(7))}, "'0': .*windows are unequal"),
        ],
    )  # fmt: skip
    def test_bad_input(self, options, message):
        given = {"model": tiny(), "images": image(), "metrics": ("avr",), "progress": False}
        with pytest.raises(SpectralError, match=message):
            measure(**{**given, **options})

    def test_sis_needs_no_site(self):
        table = measure(NoDownsampling(), image(), ("sis",), progress=False)
        assert set(table["metric"]) == {"sis", "confidence", "prediction"}
        assert table.attrs["sites"] == []


class TestNonFiniteValues:
    def test_a_weight_that_is_nan_names_its_site(self):
        net = tiny()
        with torch.no_grad():
            net[0].weight[1, 0, 0, 0] = torch.nan
        with pytest.raises(SpectralError, match=r"^site '0': .* NaN or infinite values"):
            measure(net, image(), ("avr",), progress=False)
        with pytest.raises(SpectralError, match=r"^site '0': measure_bands: .* NaN or infinite"):
            measure(net, image(), ("am",), progress=False)
        with pytest.raises(SpectralError, match="logits have NaN or infinite values"):
            measure(net, image(), ("sis",), progress=False)

    def test_an_activation_that_is_nan_in_one_image_names_the_first_site_behind_it(self, tmp_path):
        class Log(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + x.mean((1, 2, 3), keepdim=True).log()

        net = nn.Sequential(nn.AvgPool2d(2), Log(), nn.MaxPool2d(2), nn.Flatten())
        x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        x[4] *= -1
        with pytest.raises(SpectralError, match=r"^site '2': .* NaN or infinite values"):
            measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        assert count_hooks(net) == 0
        assert len(list(tmp_path.glob("shard-*.parquet"))) == 2

    def test_a_pad_before_a_max_pool_is_named(self):
        net = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2), nn.Flatten())
        with pytest.raises(SpectralError, match=r"^site .1.: its input has −∞, as .*; let the pool pad"):
            measure(net, image(), ("avr",), progress=False)
        dense = measure(net, image(), ("avr",), taps=("dense",), progress=False)
        assert dense.loc[dense["metric"] == "avr", "value"].between(0, 1).all()


class TestMemory:
    def test_images_are_not_kept(self, tmp_path):
        pictures = Pictures(20)
        measure(tiny(), pictures, ALL, batch_size=2, out=tmp_path, progress=False)
        # the batch at work and the one before it, which the loop's names hold until they are set again
        assert pictures.most_alive <= 2

    def test_dense_maps_are_computed_in_bounded_pieces(self, monkeypatch):
        sizes = []
        real = F.max_pool2d

        def watch(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not x.is_meta:
                sizes.append(len(x))
            return real(x, *args, **kwargs)

        net = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
        monkeypatch.setattr(captures, "CHUNK_ELEMENTS", 2 * 3 * 8 * 8)
        monkeypatch.setattr("spectral.operators.pools.F.max_pool2d", watch)
        measure(net, image(7, 3, 8, 8), ("am",), batch_size=7, progress=False)
        assert [n for n in sizes if n not in (1, 7)] == [2, 2, 2]


class TestProvenance:
    def test_says_what_is_needed_to_repeat_the_run(self, tmp_path):
        net, images = load_model("bundled/resnet8@random"), load_images("synthetic", size=32, limit=2)
        table = measure(net, images, ("avr", "sis"), batch_size=2, out=tmp_path, progress=False)
        provenance = table.attrs["provenance"]
        assert provenance["model"] == "bundled/resnet8@random"
        assert provenance["weights"].startswith("random-0:")
        assert (provenance["images"], provenance["image_count"]) == ("synthetic", 2)
        assert provenance["images_fingerprint"] == images.fingerprint
        assert provenance["image_size"] == [32, 32]
        assert (provenance["metrics"], provenance["taps"]) == (["avr", "sis"], ["dense", "input"])
        assert (provenance["dtype"], provenance["device"], provenance["batch_size"]) == ("float32", "cpu", 2)
        assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert json.loads(json.dumps(table.attrs))["provenance"]["model"] == provenance["model"]
        stored = json.loads((tmp_path / "_run.json").read_text(encoding="utf-8"))
        assert stored["config"]["weights"] == provenance["weights"]

    def test_tables_can_be_joined_and_stored(self, tmp_path):
        first, second = (
            measure(tiny(seed=s), image(), ("avr",), progress=False, name=f"{s}") for s in (0, 1)
        )
        joined = pd.concat([first, second], ignore_index=True)
        assert joined["model"].unique().tolist() == ["0", "1"]
        assert summarize_measurements(joined)["model"].unique().tolist() == ["0", "1"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first.to_parquet(tmp_path / "table.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), first)

    def test_sites_are_described_as_they_were_found(self):
        net = nn.Sequential(nn.Conv2d(3, 4, (3, 1), (2, 1)), nn.AdaptiveMaxPool2d(4))
        first, second = describe_sites(find_sites(net, (9, 6)))
        assert first == {
            "name": "0", "call": 0, "op": "conv", "kernel": "3x1", "stride": "2x1", "input_size": "9x6",
            "output_size": "4x6", "channels": 3, "measurable": True, "reason": None,
            "dense_map": "the convolution with stride 1",
            "signal": "dense: no pointwise operator follows, but adaptive_max_pool2d",
        }  # fmt: skip
        assert (second["measurable"], second["name"]) == (False, "1")
        assert describe_sites(find_sites(net, (9, 6)), {"0": "broken"})[0]["reason"] == "broken"


class Frames(nn.Module):
    """Two frames go through one encoder as a batch twice as large, and are then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.joined = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        maps = self.encoder(torch.cat([first, second]))
        return self.joined(torch.cat(maps.chunk(2), 1))


def test_two_frames_that_share_an_encoder_count_as_one_image():
    torch.manual_seed(0)
    net = Frames().eval()
    first, second = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    table = measure(net, (first, second), metrics=("am",), progress=False)
    found = table[table.site == "encoder"].value.to_numpy()
    alone = [
        measure(nn.Sequential(net.encoder), x, metrics=("am",), progress=False)
        .value.to_numpy()
        for x in (first, second)
    ]  # fmt: skip
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, rtol=1e-5)
    assert len(table[table.site == "joined"]) == len(found)


def test_heads_on_the_batch_axis_are_channels_of_one_image():
    class Heads(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, x: Tensor) -> Tensor:
            y = F.avg_pool2d(x.reshape(-1, x.shape[1] // self.heads, *x.shape[2:]), 3, 2, 1)
            return y.reshape(len(x), -1, *y.shape[2:]).mean((2, 3))

    x = image(3, 4, 12, 8)
    whole, apart = (measure(Heads(n), x, ALL, taps=TAPS, batch_size=2, progress=False) for n in (1, 2))
    assert_same(whole, apart)


@pytest.mark.parametrize(("precision", "share"), [("highest", 1e-4), ("high", 2e-2), ("medium", 5e-2)])
def test_how_far_a_dense_map_may_miss_depends_on_what_products_are_made_of(precision, share):
    """Else a GPU's default, TF32, would leave sites out whose dense map is right."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert captures.find_tolerance(torch.float32, torch.device("cpu")) == share
        assert captures.find_tolerance(torch.float64, torch.device("cpu")) == 1e-9
    finally:
        torch.set_float32_matmul_precision(before)
