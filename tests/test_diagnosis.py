"""Analyses of one network: what a site does, what fixes it, and all of it in one call."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import signal
import time
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import spectral
from spectral.analysis import (
    ALL_SITES,
    Diagnosis,
    compare_perturbed,
    find_unstable_images,
    from_measurements,
    inspect_sites,
    measure_fixes,
    read_diagnosis,
    write_headline,
)
from spectral.analysis.diagnosing import METRICS, TAPS
from spectral.analysis.fixes import COLUMNS as FIX_COLUMNS
from spectral.analysis.folder import Folder
from spectral.analysis.levels import MEDIAN
from spectral.cli import main
from spectral.data import load_images
from spectral.data.subset import Subset, spread_over_clusters
from spectral.errors import SpectralError
from spectral.files.writers import claim
from spectral.intake import Feed
from spectral.page.cells import SITES as SITE_CELLS
from spectral.page.cells import view
from spectral.page.render import render_page
from spectral.stability import measure_stability
from spectral.table.csv_files import read_csv
from spectral.table.schema import BOUNDS

SIZE = 16


def diagnose(model: nn.Module, images: Tensor, **options: Any) -> Diagnosis:
    """Diagnose with time enough on any machine: how much there is decides on how many images all is done."""
    return spectral.diagnose(model, images, **{"minutes": 1000.0, **options})


def tone(bins: int, size: int = SIZE) -> torch.Tensor:
    """A cosine along the columns, of so many periods in the image, whose borders meet: (1, 1, size, size)."""
    places = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    return torch.cos(2 * torch.pi * bins * places).expand(1, 1, size, size).clone()


def keep_every_second() -> nn.Sequential:
    """A network whose only site passes its map on as it is, every second sample of it."""
    site = nn.Conv2d(1, 1, 1, 2, bias=False)
    nn.init.ones_(site.weight)
    return nn.Sequential(site, nn.Flatten(), nn.Linear((SIZE // 2) ** 2, 3))


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 4)
    ).eval()  # fmt: skip


def random_images() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(6, 3, SIZE, SIZE)


@pytest.fixture
def images():
    return random_images()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Diagnosis, Path]:
    """A diagnosis with all its parts, and its folder: to look at, or to copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return diagnose(classifier(), random_images(), methods=("flc",), out=folder, progress=False), folder


def _flip(content: bytes) -> bytes:
    """Flip a bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class TestInspect:
    @pytest.mark.parametrize(("bins", "aliased"), [(2, 0.0), (6, 1.0)])
    def test_a_tone_is_where_it_belongs_or_all_alias(self, bins, aliased):
        found = inspect_sites(keep_every_second(), tone(bins))["0"]
        assert found.channels["alias_power_ratio"].tolist() == pytest.approx([aliased], abs=1e-5)
        rows, columns = np.nonzero(found.before > found.before.max() / 2)
        assert (set(rows), set(columns)) == ({SIZE // 2}, {SIZE // 2 - bins, SIZE // 2 + bins})
        folded = min(bins, SIZE // 2 - bins)  # k and n − k are one frequency of the decimated map
        rows, columns = np.nonzero(found.after > found.after.max() / 2)
        assert (set(rows), set(columns)) == ({SIZE // 4}, {SIZE // 4 - folded, SIZE // 4 + folded})
        assert found.aliases.sum() == pytest.approx(aliased * found.after.sum(), rel=1e-4, abs=1e-6)

    def test_a_channel_has_the_median_of_its_images(self):
        """Of two, their mean: torch's own median is the lower one."""
        found = inspect_sites(keep_every_second(), torch.cat([tone(2), tone(6)]))["0"]
        assert found.channels["alias_power_ratio"].tolist() == pytest.approx([0.5], abs=1e-5)

    def test_spectra_hold_the_power_of_the_maps(self):
        x = torch.randn(4, 1, SIZE, SIZE)
        found = inspect_sites(keep_every_second(), x, batch_size=3)["0"]
        assert found.before.sum() == pytest.approx(float(x.square().sum((1, 2, 3)).mean()), rel=1e-5)
        kept = x[..., ::2, ::2]
        assert found.after.sum() == pytest.approx(float(kept.square().sum((1, 2, 3)).mean()), rel=1e-5)

    def test_channels_are_ranked_by_their_own_aliases(self):
        site = nn.Conv2d(1, 2, 1, 2, bias=False)
        site.weight.data = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)
        smooth = nn.Conv2d(1, 2, (1, 8), 2, (0, 4), bias=False, padding_mode="circular")
        smooth.weight.data = torch.stack([torch.ones(1, 1, 8) / 8, torch.eye(8)[4].view(1, 1, 8)])
        found = inspect_sites(nn.Sequential(smooth, nn.Flatten()), torch.randn(5, 1, SIZE, SIZE))["0"]
        assert found.channels["channel"].tolist() == [1, 0]
        assert found.channels["power_share"].sum() == pytest.approx(1)

    @pytest.mark.parametrize("outputs", [1, 2, 6])
    def test_channels_are_those_of_the_map_that_is_shown(self, outputs):
        """A 1×1 convolution behind the site makes other channels of them, of which the tap signal is."""
        mix = nn.Conv2d(2, outputs, 1, bias=False)
        mix.weight.data = torch.arange(2.0).flip(0).repeat(outputs, 1)[..., None, None]  # of the quiet one
        loud, quiet = tone(6), tone(2)
        x = torch.cat([quiet, 2 * loud], 1)  # at the tap signal no channel aliases
        found = inspect_sites(nn.Sequential(nn.MaxPool2d(1, 2), mix, nn.Flatten()), x)["0"]
        assert found.channels["channel"].tolist() == [1, 0]
        assert found.channels["alias_power_ratio"].tolist() == pytest.approx([1, 0], abs=1e-5)
        assert found.channels["power_share"].tolist() == pytest.approx([0.8, 0.2])
        assert found.maps["aliases"] == pytest.approx(2 * loud[0, 0, ::2, ::2].numpy(), abs=1e-5)

    def test_heads_on_the_batch_axis_are_of_one_image(self):
        class Heads(nn.Module):
            def forward(self, x):
                y = nn.functional.avg_pool2d(x.reshape(-1, 2, SIZE, SIZE), 3, 2, 1)
                return y.reshape(len(x), -1)

        (found,) = inspect_sites(Heads(), torch.randn(3, 6, SIZE, SIZE)).values()
        assert found.n == 3

    def test_large_spectra_are_averaged_down_and_a_videos_sites_have_none(self):
        net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.Flatten())
        assert max(inspect_sites(net, torch.rand(1, 3, 300, 200))["0"].before.shape) <= 128
        assert inspect_sites(nn.Sequential(nn.Conv3d(3, 2, 3, 2, 1)), torch.rand(1, 3, 8, 8, 8)) == {}


class TestFixes:
    def test_what_removes_aliases_of_a_tone_is_seen_to(self):
        x = torch.cat([tone(6) + tone(2) / 2, tone(6) - tone(1) / 2])  # aliases have 4 times the power
        table = measure_fixes(keep_every_second(), x, ("flc",), progress=False)
        assert table["level_db_original"].tolist() == pytest.approx([10 * np.log10(0.8)] * 2, abs=0.01)
        assert (table["level_db"] < -80).all()
        assert table["site"].tolist() == [ALL_SITES, "0"]

    def test_all_sites_are_the_same_sites_for_every_layer(self, images):
        class Net(nn.Module):
            """Its first site can be replaced; its second is a pool that views have cut."""

            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

            def forward(self, x):
                x = self.b(self.a(x).relu())
                b, c, h, w = x.shape
                return x.view(b, c, h // 2, 2, w // 2, 2).amax((3, 5)).mean((2, 3))

        table = measure_fixes(Net(), images, ("flc",), progress=False)
        whole, alone = table.to_dict("records")
        assert (whole["site"], alone["site"]) == (ALL_SITES, "a")
        assert (
            alone["level_db"] < -90
        )  # of maps that fold nothing, although taking off their borders leaves some
        measured = []
        for net, low_passed in ((Net(), []), (spectral.convert(Net(), "flc", example=SIZE), ["a.antialias"])):
            found = spectral.measure(net, images, (MEDIAN,), progress=False)
            ratios = found[found["metric"] == MEDIAN].groupby("site")["value"].mean()
            assert len(ratios) == 2
            measured.append(10 * np.log10(ratios.drop(low_passed).sum() / 2))
        assert [whole["level_db_original"], whole["level_db"]] == pytest.approx(measured, abs=1e-3)

    def test_one_layer_may_stand_alone(self):
        x = torch.cat([tone(6) + tone(2) / 2, tone(6) - tone(1) / 2])
        found = measure_fixes(keep_every_second(), x, "flc", singly="flc", progress=False)
        assert found[["site", "method"]].values.tolist() == [[ALL_SITES, "flc"], ["0", "flc"]]

    def test_sis_is_that_of_the_converted_network(self, images):
        net = classifier()
        table = measure_fixes(net, images, ("blurpool", "flc"), progress=False)
        assert table[["site", "method"]].values.tolist() == [
            [ALL_SITES, "blurpool"], [ALL_SITES, "flc"], ["0", "blurpool"], ["2", "blurpool"],
        ]  # fmt: skip
        smooth = spectral.convert(net, "flc", example=SIZE)
        before, after = (measure_stability(m, images, comb=False, progress=False) for m in (net, smooth))
        row = table.iloc[1]
        assert row["sis_original"] == pytest.approx(before["sis"].mean())
        assert row["sis"] == pytest.approx(after["sis"].mean())
        assert row["delta_sis"] == pytest.approx(row["sis"] - row["sis_original"])
        assert row["agreement"] == (before["prediction"] == after["prediction"]).mean()
        assert row["macs"] > row["macs_original"]
        assert row["latency_ms"] > 0

    def test_copies_of_a_photograph_change_nothing_that_is_an_average(self):
        """Nor do they in a budget's coalitions, nor in what is said of perturbed images."""
        quiet = {"progress": False, "preprocessing": "none"}
        alone = load_images("synthetic", size=SIZE, limit=4)
        first, *others = alone.items
        copies = [replace(first, id=f"{first.id}, {i}", photograph=first.id) for i in range(5)]
        copied, net = replace(alone, items=[*copies, *others]), classifier()
        same = [
            name for name in FIX_COLUMNS if name not in ("n", "reason", "latency_ms", "latency_ms_original")
        ]
        once, often = (measure_fixes(net, own, ("flc",), **quiet)[same] for own in (alone, copied))
        shares = [name for name in same if name.startswith("agreement_ci")]  # bounded by the number of images
        pd.testing.assert_frame_equal(once.drop(columns=shares), often.drop(columns=shares), rtol=1e-5)
        budgets = [spectral.measure_instability_budget(net, own, **quiet) for own in (alone, copied)]
        for one, other in zip(*(table.attrs["coalitions"] for table in budgets), strict=True):
            assert (other["sis"], other["agreement"]) == pytest.approx(
                (one["sis"], one["agreement"]), rel=1e-5
            )
        said = [
            compare_perturbed({"net": spectral.measure_predictions(net, own, ["decimate-2"], **quiet)})
            for own in (alone, copied)
        ]
        assert said[1]["confidence"].tolist() == pytest.approx(said[0]["confidence"].tolist(), rel=1e-5)

    def test_the_line_makes_that_network(self, images):
        net = classifier()
        table = measure_fixes(net, images, ("blurpool",), progress=False)
        for row in table.to_dict("records"):
            names = {"spectral": spectral, "model": spectral.convert(net, "blurpool", example=SIZE)}
            line = row["line"].replace(")", f", example={SIZE})")
            names["model"] = net
            exec(line, names)
            made = measure_stability(names["model"], images, comb=False, progress=False)
            assert row["sis"] == pytest.approx(made["sis"].mean())

    def test_the_network_stays_as_it_is(self, images):
        net = classifier()
        state = {key: value.clone() for key, value in net.state_dict().items()}
        measure_fixes(net, images, ("aps",), progress=False)
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
        assert not net.training

    def test_the_front_holds_what_nothing_beats(self, images):
        table = measure_fixes(classifier(), images, ("blurpool", "flc", "aps"), progress=False)
        points = [*table[["sis", "agreement"]].to_numpy().tolist(), [table["sis_original"][0], 1.0]]
        for row in table.to_dict("records"):
            beaten = any(
                s <= row["sis"] and a >= row["agreement"] and (s < row["sis"] or a > row["agreement"])
                for s, a in points
            )
            assert row["front"] == (not beaten)

    def test_without_class_scores_aliases_are_compared_alone(self, images):
        net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        table = measure_fixes(net, images, ("flc",), progress=False)
        assert table["sis"].isna().all()
        assert (table["level_db"] < table["level_db_original"]).all()

    def test_a_network_without_sites_is_refused(self, images):
        with pytest.raises(SpectralError, match="no site where resolution drops"):
            measure_fixes(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), images, progress=False)

    def test_what_is_kept_is_not_computed_again(self, images):
        kept: dict[str, pd.DataFrame] = {}
        computed = []

        def store(name, compute):
            if name not in kept:
                computed.append(name)
                kept[name] = compute()
            return kept[name]

        first = measure_fixes(classifier(), images, ("flc",), progress=False, store=store)
        assert len(first) == 3
        assert computed == ["flc at all sites", "flc at 0", "flc at 2"]
        again = measure_fixes(classifier(), images, ("flc",), progress=False, store=store)
        assert len(computed) == 3
        pd.testing.assert_frame_equal(first, again)


class TestExamples:
    def test_the_least_stable_come_first_with_all_their_shifts(self, images):
        net = classifier()
        table = measure_stability(net, images, comb=False, progress=False)
        found = find_unstable_images(net, images, table, 2)
        worst = table.sort_values("sis", ascending=False)["image"].head(2).tolist()
        assert found.table["image"].unique().tolist() == worst
        first = found.table[found.table["image"] == worst[0]]
        assert first["shift"].tolist()[0] == "as it is"
        assert sorted(first["shift"][1:]) == ["down", "left", "right", "up"]
        x = images[int(worst[0])]
        moved = {"down": (1, -2), "up": (-1, -2), "right": (1, -1), "left": (-1, -1)}
        for row in first[1:].to_dict("records"):
            step, axis = moved[row["shift"]]
            p = net(x.roll(step, axis)[None]).softmax(-1)[0].detach()
            assert (row["prediction"], row["confidence"]) == (int(p.argmax()), pytest.approx(float(p.max())))
        assert found.pictures[worst[0]].shape == (SIZE, SIZE, 3)

    def test_one_of_each_photograph(self):
        table = pd.DataFrame(
            {"image": ["0000", "0001", "0002"], "cluster": ["a", "a", "b"], "sis": [3, 2, 1]}
        )
        found = find_unstable_images(classifier(), torch.rand(3, 3, SIZE, SIZE), table)
        assert found.table["image"].unique().tolist() == ["0000", "0002"]


class TestSubset:
    def test_it_is_those_images_of_the_set(self):
        whole = spectral.load_images("synthetic", size=SIZE, limit=7)
        few = Subset(whole, [5, 1, 3])
        got = torch.cat([batch for _, batch in few.batches(2)])
        assert torch.equal(got, torch.stack([whole[i] for i in (5, 1, 3)]))
        assert few.ids == [whole.ids[i] for i in (5, 1, 3)]
        assert [indices for indices, _ in few.batches(2, indices=[2, 0])] == [[2, 0]]
        assert few.fingerprint != Subset(whole, [5, 1, 2]).fingerprint

    @pytest.mark.parametrize("given", ["images", "tensors"])
    def test_it_stays_those_images_in_whatever_measures_it(self, given):
        """A set that says how it is decoded is made anew by who reads it, and stays what it is."""
        whole = spectral.load_images("synthetic", size=SIZE, limit=7)
        if given == "tensors":
            whole = Feed(classifier(), torch.rand(7, 3, SIZE, SIZE), caller="test").images
        few = Subset(whole, [1, 3])
        quiet = {"preprocessing": "none", "progress": False} if given == "images" else {"progress": False}
        assert measure_stability(classifier(), few, **quiet)["image"].tolist() == few.ids
        table = spectral.measure_fixes(classifier(), few, ("flc",), **quiet)
        assert table["n"].tolist() == [2] * len(table)

    def test_photographs_share_the_places(self):
        assert spread_over_clusters(list("aaabbc"), 3) == [0, 3, 5]
        assert spread_over_clusters(list("aaabbc"), 99) == [0, 1, 2, 3, 4, 5]


def tables_of(found: Diagnosis) -> dict[str, pd.DataFrame]:
    """All tables, without what the clock says."""
    clock = ["latency_ms", "latency_ms_original"]
    return {name: table.drop(columns=clock, errors="ignore") for name, table in found.tables.items()}


def assert_same(one: Diagnosis, two: Diagnosis) -> None:
    assert tables_of(one).keys() == tables_of(two).keys()
    for name, table in tables_of(one).items():
        pd.testing.assert_frame_equal(table, tables_of(two)[name], obj=name, check_dtype=False)


SITES = "aliasing at the sites"


class TestDiagnose:
    def test_everything_is_there(self, images, finished, tmp_path):
        found, folder = finished
        shutil.copytree(folder, tmp_path / "run")
        assert found.missing.empty
        assert found.sites["name"].tolist() == ["0", "2"]
        read_csv(table := tmp_path / "run" / "tables" / "sites.csv")
        table.write_bytes(table.read_bytes().replace(b"conv", b"pool", 1))
        with pytest.raises(SpectralError, match="isn't what was written there"):
            read_csv(table)
        measured = spectral.measure(classifier(), images, (MEDIAN, "alias_power_ratio"), progress=False)
        summary = spectral.summarize_measurements(measured)
        means = summary[summary["site"] != ""].pivot(index="site", columns="metric", values="mean")
        assert found.sites["alias_power_ratio"].tolist() == pytest.approx(list(means["alias_power_ratio"]))
        assert found.sites["channel_median"].tolist() == pytest.approx(list(means[MEDIAN]))
        assert found.sites["level_db"].tolist() == pytest.approx(list(10 * np.log10(means[MEDIAN])))
        stable = measure_stability(classifier(), images, comb=False, progress=False)
        assert found.per_image["sis"].tolist() == pytest.approx(stable["sis"].tolist())
        causes = found.budget[found.budget["metric"] == "logit_jitter"].set_index("source")
        parts = ["decimation", "nonlinearity", "border", "unexplained"]
        assert causes.loc[parts, "share"].sum() == pytest.approx(1)
        assert found.budget.loc[found.budget["reason"] != "", "site"].tolist() == [
            "4"
        ]  # behind the flattening
        assert found.per_image["logit_jitter"].mean() == pytest.approx(causes.loc["total", "value"], rel=1e-4)

    def test_it_is_read_back_and_continues_from_what_is_there(self, images, finished, tmp_path):
        first, folder = finished
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        assert_same(read_diagnosis(tmp_path), first)
        for lost in ("fixes", "facts", "missing", "sites", "site_maps"):
            next((tmp_path / "parts").glob(f"{lost}.*")).unlink()
        with pytest.raises(SpectralError, match="isn't finished"):
            read_diagnosis(tmp_path)
        again = diagnose(classifier(), images, methods=("flc",), out=tmp_path, progress=False)
        assert_same(again, first)
        # the variants were kept, clock included: nothing was measured again
        pd.testing.assert_frame_equal(again.fixes, first.fixes)

    def test_parts_made_under_other_circumstances_are_told_apart(self, images, tmp_path):
        options = {
            "methods": ("flc",),
            "fix_images": 2,
            "budget_images": 0,
            "out": tmp_path,
            "progress": False,
        }
        first = diagnose(classifier(), images, batch_size=2, **options)
        assert "parts" not in first.facts
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is made, so nothing is said
            assert diagnose(classifier(), images, batch_size=3, **options).facts == first.facts
        for lost in ("stability.parquet", "facts.json"):
            (tmp_path / "parts" / lost).unlink()
        change = r"continued with batch_size 3 \(before: 2\)"
        with pytest.warns(spectral.SpectralWarning, match=change):
            again = diagnose(classifier(), images, batch_size=3, **options)
        before, after = again.facts["parts"]
        assert (before["batch_size"], after["batch_size"]) == (2, 3) == (again.facts["batch_size"], 3)
        assert before["versions"] == after["versions"] == first.facts["versions"]
        assert set(after["parts"]) == {"stability.parquet"}
        assert {"per_image.parquet", "summary.parquet", "fixes.parquet"} < set(before["parts"])
        assert read_diagnosis(tmp_path).facts == again.facts
        page = spectral.write_report(tmp_path).read_text()
        assert re.search(change, page)

    def test_versions_of_parts_that_are_continued_more_than_once(self, tmp_path):
        for part, torch_version in (("a", "2.6"), ("b", "2.7"), ("c", "2.7"), ("a", "2.8")):
            folder = Folder(tmp_path, {}, None, {"versions": {"torch": torch_version}})
            (tmp_path / "parts" / f"{part}.json").unlink(missing_ok=True)
            folder.record(part, dict)
        made = [(one["versions"]["torch"], one["parts"]) for one in folder.list_circumstances()]
        assert made == [("2.6", []), ("2.7", ["b.json", "c.json"]), ("2.8", ["a.json"])]

    def test_parts_that_are_damaged_or_of_another_run_or_part_are_refused(self, images, finished, tmp_path):
        here, other = tmp_path / "here", tmp_path / "other"
        shutil.copytree(finished[1], here)
        diagnose(classifier(1), images, methods=("flc",), out=other, progress=False)
        name = {path.stem: path.name for path in (here / "parts").iterdir()}
        lost = {
            "diagnosis.json": _flip((here / "diagnosis.json").read_bytes()),
            f"parts/{name['stability']}": (other / "parts" / name["stability"]).read_bytes(),
            f"parts/{name['facts']}": (other / "parts" / name["facts"]).read_bytes(),
            f"parts/{name['summary']}": (here / "parts" / name["per_image"]).read_bytes(),
            f"parts/{name['sites']}": _flip((here / "parts" / name["sites"]).read_bytes()),
        }
        for file, content in lost.items():
            whole = (here / file).read_bytes()
            (here / file).write_bytes(content)
            for read in (read_diagnosis, spectral.write_report):
                with pytest.raises(SpectralError, match=file):
                    read(here)
            (here / file).write_bytes(whole)
        assert read_diagnosis(here).facts["model"] == "Sequential"

    def test_a_bit_that_flips_in_any_file_is_told(self, images, finished, tmp_path):
        options = {"methods": ("flc",), "out": tmp_path, "progress": False}
        shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
        files = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".npz", ".parquet")]
        parts = [path for path in files if path.parent.name == "parts"]
        assert any(re.fullmatch("[0-9a-f]{16}", path.stem) for path in parts)  # of what fixes were made
        for path in files:
            whole = path.read_bytes()
            path.write_bytes(_flip(whole))
            measured = path.parent.name == "measurements"
            read, folder = (spectral.read, path.parent) if measured else (read_diagnosis, tmp_path)
            with pytest.raises(SpectralError, match=path.name):
                read(folder)
            if path in parts:
                with pytest.raises(SpectralError, match=path.name):
                    diagnose(classifier(), images, **options)
            path.write_bytes(whole)
        variant = next(path for path in parts if re.fullmatch("[0-9a-f]{16}", path.stem))
        variant.unlink()  # as the message says
        assert diagnose(classifier(), images, **options).missing.empty

    def test_what_failed_and_works_now_is_no_longer_called_missing(self, images, tmp_path):
        broken = [True]
        moved = [image.roll(by, axis) for image in images for by in (1, -1) for axis in (1, 2)]

        class Torn(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = classifier()

            def forward(self, x):
                if broken and x.device.type == "cpu" and any(torch.equal(x[0], image) for image in moved):
                    raise RuntimeError("no room")
                return self.net(x)

        options = {"methods": ("flc",), "budget_images": 0, "fix_images": 2, "out": tmp_path}
        first = diagnose(Torn(), images, progress=False, **options)
        assert "no room" in first.missing.set_index("what")["reason"]["stability"]
        broken.clear()
        again = diagnose(Torn(), images, progress=False, **options)
        assert (len(again.per_image), list(again.missing["what"])) == (6, [])
        assert_same(read_diagnosis(tmp_path), again)

    def test_a_full_disk_is_no_property_of_the_network(self, images, tmp_path):
        run = {"methods": ("flc",), "fix_images": 2, "budget_images": 0, "out": tmp_path, "progress": False}
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
            with pytest.raises(SpectralError, match="can't be written"):
                diagnose(classifier(), images, **run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert diagnose(classifier(), images, **run).missing.empty

    @pytest.mark.parametrize("methods", [(), ("flk",)])
    def test_layers_that_are_none_leave_no_folder_of_theirs(self, images, tmp_path, methods):
        with pytest.raises(SpectralError, match="no layer"):
            diagnose(classifier(), images, methods=methods, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    def test_a_network_that_hooks_do_not_see_is_refused(self, images, tmp_path):
        """Each part had that as its reason, and the diagnosis was empty."""
        with pytest.raises(SpectralError, match=r"pass model\.module"):
            diagnose(nn.DataParallel(classifier()), images, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_something_else_is_refused(self, images, finished, tmp_path):
        shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
        for other in ({"methods": ("aps",)}, {"fix_images": 3, "methods": ("flc",)}):
            with pytest.raises(SpectralError, match="choose another folder"):
                diagnose(classifier(), images, out=tmp_path, progress=False, **other)
        with pytest.raises(SpectralError, match="weights"):
            diagnose(classifier(1), images, methods=("flc",), out=tmp_path, progress=False)

    def test_fixes_are_tried_on_so_many_images(self, images):
        found = diagnose(classifier(), images, methods=("flc",), fix_images=4, progress=False)
        assert set(found.fixes["n"]) == {4}
        assert set(found.per_image.index) == set(range(6))

    def test_what_there_is_no_time_for_is_listed_and_a_resumed_run_decides_the_same(self, images, tmp_path):
        hasty = {"methods": ("flc", "aps"), "minutes": 1e-6, "progress": False}
        first = diagnose(classifier(), images, out=tmp_path, **hasty)
        assert first.budget.empty
        decided = {"site_images": 2, "stability_images": 2, "budget_images": 0, "fix_images": 0}
        assert first.facts["decided"] == decided
        assert set(first.sites["n"]) == {2}
        assert len(first.per_image) == 2
        reasons = first.missing.set_index("what")["reason"]
        for what, way in (
            ("instability budget", "spectral.measure_instability_budget(model, images)"),
            ("aliasing at the sites of 4 of 6 images", "spectral.measure(model, images)"),
            ("stability of 4 of 6 images", "spectral.measure_stability(model, images)"),
            ("sis_circular", "spectral.measure_stability(model, images)"),
            ("what fixes it", "spectral.analysis.measure_fixes(model, images)"),
        ):
            assert "left out, since" in reasons[what]
            assert way in reasons[what]
            assert "minutes" in reasons[what]
        row = first.stability.set_index("metric").loc["sis_circular"]
        assert row["reason"] == reasons["sis_circular"]
        assert "included, on 2 images)" in write_headline(first)[0]
        for lost in ("per_image", "facts", "missing", "sites"):
            next((tmp_path / "parts").glob(f"{lost}.*")).unlink()
        again = diagnose(classifier(), images, out=tmp_path, **hasty)
        assert_same(again, first)  # how long an image takes included
        assert not list((tmp_path / "parts").glob("decided*"))  # one of these might go alone
        asked = diagnose(classifier(), images, fix_images=2, budget_images=2, **hasty)
        assert not {"instability budget", "what fixes it"} & set(asked.missing["what"])
        assert set(asked.fixes["n"]) == {2}
        assert asked.budget["n"].dropna().eq(2).all()

    def test_every_step_obeys_the_time(self, images):
        class Slow(nn.Module):
            def __init__(self):
                super().__init__()
                self.net, self.seen = classifier(), 0

            def forward(self, x):
                if x.device.type == "cpu":
                    time.sleep(0.05 * len(x))
                    self.seen += len(x)
                return self.net(x)

        net, many = Slow(), images.repeat(8, 1, 1, 1)
        found = diagnose(net, many, methods=("flc",), minutes=0.04, progress=False)
        few = found.facts["decided"]
        assert 2 <= few["site_images"] < len(many)
        assert 2 <= few["stability_images"] == len(found.per_image) < len(many)
        assert set(found.sites["n"]) == {few["site_images"]}
        assert net.seen < 6 * len(many)  # stability of all alone would be 10 of them
        left = found.missing.set_index("what")["reason"]
        assert any(what.startswith("stability of ") and "minutes=" in reason for what, reason in left.items())

    def test_the_loudest_single_sites_are_tried_first(self, images):
        tried = []

        def keep(name, compute):
            tried.append(name)
            return compute()

        torch.manual_seed(0)
        loud = nn.Conv2d(6, 6, 1, 2)
        net = nn.Sequential(nn.Conv2d(3, 6, 7, 2, 3), nn.AvgPool2d(2), loud, nn.AdaptiveAvgPool2d(1),
                            nn.Flatten()).eval()  # fmt: skip
        table = measure_fixes(net, images, ("flc",), seconds=1e4, store=keep, progress=False)
        single = table[table["site"] != ALL_SITES].set_index("site")["level_db_original"]
        assert tried[0] == f"flc at {ALL_SITES}"
        assert tried[1:] == [f"flc at {site}" for site in single.sort_values(ascending=False).index]
        assert list(single.index) == ["0", "1", "2"]  # the table is in the order in which they run

    @pytest.mark.parametrize("minutes", [0, -1, float("inf"), "2", True])
    def test_minutes_that_are_none_are_refused_before_a_folder_is_made(self, minutes, images, tmp_path):
        with pytest.raises(SpectralError, match="minutes must be a finite number above 0"):
            diagnose(classifier(), images, minutes=minutes, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("net", "what"),
        [
            (
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                "aliasing at the sites",
            ),
            (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)), "stability"),
        ],
    )
    def test_what_cannot_be_had_is_named(self, net, what, images):
        found = diagnose(net, images, methods=("flc",), progress=False)
        assert what in set(found.missing["what"])
        said = "".join(write_headline(found))
        assert "movement of the logits" not in said or what != "stability"  # which it hasn't
        assert found.missing["reason"].str.len().min() > 10

    def test_no_aliases_are_100_db_below_in_every_table(self, images):
        """What rounding leaves of them was −140 dB in one table and −100 in the other."""
        smooth = spectral.convert(classifier(), "flc", "0", example=images[:1])
        found = diagnose(smooth, images, methods=("flc",), budget_images=0, progress=False)
        bounds = [f"level_db{end}" for end in BOUNDS]
        assert found.sites.loc[0, bounds].tolist() == [-100.0] * 3
        own = found.summary.query("metric == 'alias_power_ratio' and tap == 'dense'").iloc[0]
        assert own[["db", "db_ci_low", "db_ci_high"]].tolist() == [-100.0] * 3
        assert 0 <= own["mean"] < 1e-10

    def test_sites_with_silent_maps_have_that_as_their_reason(self, images, tmp_path):
        net = classifier()
        nn.init.zeros_(net[0].weight)
        nn.init.constant_(net[0].bias, -1.0)  # its own map is not silent, what its activation leaves is
        found = diagnose(net, images, methods=("flc",), budget_images=0, progress=False, out=tmp_path / "run")
        reasons = found.missing.set_index("what")["reason"]
        assert reasons["site 2"] == "its maps are silent or constant on all 6 images"
        assert found.sites.set_index("name")["reason"].to_dict() == dict.fromkeys("02", reasons["site 2"])
        measured = spectral.write_report(tmp_path / "run" / "measurements").read_text(encoding="utf-8")
        assert "its maps are silent or constant on all 6 images" in measured

    def test_a_network_of_probabilities_is_not_said_to_have_logits(self, images):
        net = nn.Sequential(classifier(), nn.Softmax(-1))
        said = " ".join(
            write_headline(diagnose(net, images, methods=("flc",), budget_images=2, progress=False))
        )
        assert "movement of its probabilities" in said
        assert "logits" not in said

    def test_signals_videos_and_several_inputs(self):
        signal = nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        video = nn.Sequential(nn.Conv3d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = classifier()

            def forward(self, x, scale):
                return self.net(x) * scale[:, None]

        for net, x in (
            (signal, torch.rand(3, 2, 64)), (video, torch.rand(3, 3, 8, 16, 16)),
            (Two(), (torch.rand(3, 3, SIZE, SIZE), torch.ones(3))),
        ):  # fmt: skip
            found = diagnose(net, x, methods=("flc",), progress=False)
            assert found.sites["alias_power_ratio"].notna().any()
            assert len(found.per_image) == 3
            assert len(found.fixes)

    def test_warnings_are_said_once_and_kept(self):
        images = spectral.load_images("synthetic", size=SIZE, limit=3)
        with pytest.warns(spectral.SpectralWarning) as said:
            found = diagnose(classifier(), images, methods=("flc",), progress=False)
        assert sum("normalisation isn't known" in str(one.message) for one in said) == 1
        assert any("normalisation isn't known" in note for note in found.facts["notes"])


class TestMeasurements:
    """A run of measure, seen as a diagnosis: what wasn't asked for isn't what couldn't be measured."""

    def see(self, images, *metrics, net=None, **options) -> Diagnosis:
        asked = (metrics,) if metrics else ()
        table = spectral.measure(net or classifier(), images, *asked, progress=False, **options)
        return from_measurements(table, table.attrs["provenance"])

    def test_the_median_channel_is_told_by_its_name(self, images):
        found = self.see(images)  # the default metrics
        own = found.summary[found.summary["metric"] == "alias_power_ratio_channel_median"].set_index("site")
        assert found.sites["channel_median"].tolist() == pytest.approx(own["mean"].tolist())
        loud = found.summary[found.summary["metric"] == "alias_power_ratio_channel_p90"]
        assert found.sites["channel_p90"].tolist() == pytest.approx(loud["mean"].tolist())
        first, *_ = said = write_headline(found)
        assert "2 of 2 measured sites alias (more than 1 % of the median channel's power" in first
        assert f"{10 * np.log10(own['mean'].max()):.1f} dB".replace("-", "−") in first
        assert "where white noise has −1." in first
        sis = found.summary[found.summary["metric"] == "sis"]["mean"].item()
        assert f"SIS is {sis:.3g} (" in " ".join(said)
        assert "Not asked for: what fixes it; `spectral diagnose` measures it." in said
        text = render_page([found])
        assert "alias power ratio of the median channel" in text
        for wrong in ("not measured", "gives no class scores", "No layer could be tried"):
            assert wrong not in text
        assert f"{10 * np.log10(own['mean'].max()):.1f} dB".replace("-", "−") in repr(found)

    def test_sites_that_nobody_asked_for_are_not_said_to_be_none(self, images):
        found = self.see(images, "sis")
        said = " ".join(write_headline(found))
        assert "sites weren't looked at" in said
        assert "no place where resolution drops" not in said
        assert "SIS is" in said
        assert "no place where resolution drops" not in render_page([found])

    def test_a_ratio_that_nobody_asked_for_is_said_so(self, images):
        found = self.see(images, "avr")
        said = write_headline(found)
        assert said[0] == (
            "Neither the median channel's alias power ratio of its 2 downsampling sites was asked for nor "
            "that of all channels (measured: avr)."
        )
        assert said[1].startswith("Not asked for: what shifts change, what fixes it")
        text = render_page([found])
        assert "not measured" not in text
        assert text.count('class="level">not asked for') == 2
        assert "couldn't be measured:" not in text

    def test_the_ratio_is_that_of_the_tap_dense_or_names_its_tap(self, images):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        table = spectral.measure(
            net, images, ("alias_power_ratio",), taps=("dense", "signal"), progress=False
        )
        found = from_measurements(table, table.attrs["provenance"])
        own = found.summary[found.summary["metric"] == "alias_power_ratio"].set_index("tap")["mean"]
        assert abs(own["dense"] - own["signal"]) > 0.01
        assert found.sites["alias_power_ratio"].tolist() == pytest.approx([own["dense"]])
        signal_alone = table[table["tap"] != "dense"]
        signal_alone.attrs = table.attrs
        other = from_measurements(signal_alone, table.attrs["provenance"])
        assert other.sites["alias_power_ratio"].isna().all()
        said = write_headline(other)[0]
        assert f"{100 * own['signal']:.1f} % of the power that it passes on at the tap signal" in said
        assert "the median channel's ratio wasn't asked for" in said
        assert "all channels" in render_page([other])

    def test_constant_maps_have_no_channel_that_could_alias(self):
        """Their pooled ratio is 0: it was told instead, of a site that is listed as not measured."""
        net = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found = self.see(torch.full((1, 3, 16, 16), 0.4), *METRICS, net=net, taps=TAPS)
        assert found.sites["alias_power_ratio_signal"][0] < 1e-10
        assert write_headline(found)[0] == "None of its 1 downsampling site could be measured."
        assert "the median channel's ratio wasn't asked for" not in render_page([found])

    def test_a_network_and_its_twin_are_told_alike(self, images):
        """The tap dense moves with the decimation, and the pooled ratio with a channel's loudness."""

        def see(net):
            return self.see(images, *METRICS, net=net, taps=TAPS)

        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten()).eval()  # fmt: skip
        one, other = see(net), see(spectral.convert(net, "strided", example=SIZE))
        assert abs(one.sites["alias_power_ratio"][0] - other.sites["alias_power_ratio"][0]) > 0.01
        said = [write_headline(found)[0].partition(" with ")[2] for found in (one, other)]
        assert said[0] == said[1] != ""

    def test_aliases_that_are_made_behind_a_filter_are_said_to_be(self, images):
        """Before an activation a low-pass leaves nothing to fold, and the activation folds all the same."""
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 6, 3, 1, 1, padding_mode="circular")
        net = nn.Sequential(
            conv, spectral.layers.FLCPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        found = self.see(images, *METRICS, net=net, taps=TAPS)
        assert found.sites["alias_power_ratio"][0] < 1e-10
        assert found.sites["level_ratio"][0] > 0.01
        assert "There nothing is left to fold at the tap dense" in write_headline(found)[0]
        del net[2]
        free = self.see(images, *METRICS, net=net, taps=TAPS)
        assert write_headline(free)[0] == "None of the 1 measured site passes on aliases."
        assert free.sites["channel_p90"][0] > 1e-4  # which its borders have
        shown = view(free.sites, "", SITE_CELLS)
        texts = dict(zip([column.heading for column in shown.columns], shown.rows[0], strict=True))
        assert texts["aliases, median channel"].text == texts["90th percentile"].text == "none"

    def test_a_mean_hides_no_aliases(self, images):
        """A pooled ratio has nothing of them where one channel has a mean that is a million times louder."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            net[0].weight[0], net[0].bias[0] = 0, -1e6
        assert "the worst is 0 with −" in self.say_first(images, net)
        net.insert(1, nn.ReLU())  # takes that channel off
        said = self.say_first(images, net)
        assert "the worst is 0 with −" in said
        assert "made behind it" not in said

    def say_first(self, images, net):
        found = self.see(images, *METRICS, net=net, taps=TAPS)
        assert found.sites["alias_power_ratio"][0] < 1e-10
        return write_headline(found)[0]

    def test_what_keeps_every_sample_aliases_nothing(self, images):
        net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.warns(spectral.SpectralWarning, match="lossless"):
            found = self.see(images[:1], net=net)
        said = write_headline(found)
        assert ", on 1 image of " in repr(found)
        assert "Measured on 1 image of " in render_page([found])
        assert said[0] == ("Nothing aliases at its 1 downsampling site: every sample is kept, as a channel.")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_the_command_writes_a_page_and_says_what_it_found(tmp_path):
    model = "bundled/resnet8@random"
    given = ["--images", "synthetic", "--limit", 4, "--methods", "flc", "--quiet"]
    code, said = run("diagnose", model, *given, "--out", tmp_path / "run", "--json", tmp_path / "s.json")
    assert code == 0, said
    assert "4 measured sites" in said
    assert (tmp_path / "run" / "page.html").stat().st_size < 5e6
    assert len(json.loads((tmp_path / "s.json").read_text())["rows"]) == 4
    code, said = run("diagnose", model, *given[:2], "--limit", 5, "--quiet", "--out", tmp_path / "run")
    assert (code, "choose another folder" in said) == (2, True)
    code, said = run("diagnose", model, model)
    assert (code, "named twice" in said) == (2, True)


def test_another_that_begins_while_the_page_is_written_ends_none_that_is_through(tmp_path):
    class Beginning(io.StringIO):
        """Somebody who claims the folder as soon as the page is told of."""

        def write(self, text: str) -> int:
            if "page: " in text:
                other.enter_context(claim(tmp_path))
            return super().write(text)

    given = ["--images", "synthetic", "--limit", "2", "--minutes", "0.001", "--quiet"]
    words = ["diagnose", "bundled/nula-w8@random", *given, "--out", str(tmp_path)]
    with ExitStack() as other, redirect_stdout(Beginning()) as said, redirect_stderr(io.StringIO()) as failed:
        code = main(words, standalone_mode=False)
        assert "page: " in said.getvalue()
    assert (code, failed.getvalue()) == (None, "")
