"""The table on disk and its summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from spectral.errors import SpectralError
from spectral.table import (
    COLUMNS,
    SUMMARY_COLUMNS,
    Key,
    ShardStore,
    describe_environment,
    make_rows,
    read_json,
    summarize_measurements,
    to_frame,
    write_csv,
    write_json,
)

AVR: Key = ("conv1", 0, "conv", "input", "avr")
POWER: Key = ("conv1", 0, "conv", "input", "power")
SIS: Key = ("", 0, "", "", "sis")


def table(values: Mapping[Key, list[float]], images: list[str] | None = None) -> pd.DataFrame:
    columns = np.array(list(values.values()), dtype=np.float64).T
    return to_frame(
        [make_rows("net", images or [f"{i}" for i in range(len(columns))], list(values), columns)]
    )


def rows(*images: str) -> Any:
    return make_rows("net", list(images), [SIS], np.arange(len(images), dtype=np.float64)[:, None])


class TestRows:
    def test_every_value_stands_beside_its_image_and_key(self):
        frame = table({AVR: [0.1, 0.2], SIS: [0.3, 0.4]}, ["a", "b"])
        assert list(frame.columns) == COLUMNS
        assert frame.values.tolist() == [
            ["net", "a", "conv1", 0, "conv", "input", "avr", 0.1],
            ["net", "a", "", 0, "", "", "sis", 0.3],
            ["net", "b", "conv1", 0, "conv", "input", "avr", 0.2],
            ["net", "b", "", 0, "", "", "sis", 0.4],
        ]

    def test_values_keep_all_their_digits(self):
        assert table({SIS: [1 / 3, 1e-300]})["value"].tolist() == [1 / 3, 1e-300]

    def test_an_empty_table_has_the_columns(self):
        assert list(to_frame([]).columns) == COLUMNS


class TestShardStore:
    def test_what_was_appended_is_read_in_order(self, tmp_path):
        store = ShardStore(tmp_path / "a" / "b", {"model": "net"})
        store.append(rows("x", "y"))
        store.append(rows("z"))
        again = ShardStore(tmp_path / "a" / "b", {"model": "net"})
        assert again.finished_images() == {"x", "y", "z"}
        assert again.read()["image"].tolist() == ["x", "y", "z"]
        assert again.unmeasured == {}

    def test_provenance_may_differ_and_the_configuration_may_not(self, tmp_path):
        ShardStore(tmp_path, {"model": "net", "sites": ("a", "b")}, {"cores": 2})
        ShardStore(tmp_path, {"model": "net", "sites": ["a", "b"]}, {"cores": 64})
        for other in ({"model": "net"}, {"model": "net", "sites": ["a"]}):
            with pytest.raises(SpectralError, match=r'holds measurements with sites = \["a", "b"\], not '):
                ShardStore(tmp_path, other)
        with pytest.raises(SpectralError, match="holds measurements with extra = null, not 1"):
            ShardStore(tmp_path, {"model": "net", "sites": ["a", "b"], "extra": 1})

    def test_a_long_difference_is_cut(self, tmp_path):
        ShardStore(tmp_path, {"sites": ["site"] * 100})
        with pytest.raises(SpectralError) as caught:
            ShardStore(tmp_path, {"sites": ["other"] * 100})
        assert len(str(caught.value)) < len(str(tmp_path)) + 300

    def test_a_deleted_shard_is_not_followed_by_overwriting_one(self, tmp_path):
        store = ShardStore(tmp_path, {})
        for name in "abc":
            store.append(rows(name))
        store.shards[0].unlink()
        store.append(rows("d"))
        assert store.finished_images() == {"b", "c", "d"}

    def test_a_write_that_fails_leaves_no_shard(self, tmp_path, monkeypatch):
        def fail(*args: Any, **kwargs: Any) -> None:
            open(args[1], "wb").close()
            raise OSError(28, "No space left on device")

        store = ShardStore(tmp_path, {})
        store.append(rows("a"))
        monkeypatch.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="No space left"):
            store.append(rows("b"))
        assert ShardStore(tmp_path, {}).finished_images() == {"a"}
        assert not list(tmp_path.glob("*.partial"))

    def test_the_reasons_are_those_of_the_first_shard(self, tmp_path):
        store = ShardStore(tmp_path, {})
        store.append(rows("a"), {"conv1": "why"})
        store.append(rows("b"), {"conv2": "not this"})
        assert ShardStore(tmp_path, {}).unmeasured == {"conv1": "why"}

    def test_shards_of_unknown_origin_are_refused(self, tmp_path):
        ShardStore(tmp_path, {}).append(rows("a"))
        (tmp_path / "run.json").unlink()
        with pytest.raises(SpectralError, match=r"has shards but no run\.json; choose another folder"):
            ShardStore(tmp_path, {})

    def test_damaged_files_are_named(self, tmp_path):
        store = ShardStore(tmp_path, {})
        store.append(rows("a"))
        store.shards[0].write_bytes(b"PAR1")
        with pytest.raises(SpectralError, match=r"shard-000000\.parquet is damaged"):
            store.finished_images()
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(SpectralError, match=r"run\.json can't be read .*measure again"):
            ShardStore(tmp_path, {})

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(SpectralError, match=r"can't write to .*choose another output folder"):
                ShardStore(path, {})


class TestSummary:
    def test_mean_spread_and_interval_against_a_calculation_by_hand(self):
        summary = summarize_measurements(table({SIS: [1.0, 2.0, 3.0, 4.0]}))
        (row,) = summary.to_dict("records")
        std = math.sqrt(5 / 3)
        half = 3.182446305284263 * std / 2  # Student's t at 97.5 %, 3 degrees of freedom
        assert (row["n"], row["n_silent"], row["mean"]) == (4, 0, 2.5)
        assert row["std"] == pytest.approx(std, rel=1e-12)
        assert row["ci_low"] == pytest.approx(2.5 - half, rel=1e-9)
        assert row["ci_high"] == pytest.approx(2.5 + half, rel=1e-9)

    def test_pooled_avr_weighs_by_power_and_leaves_silent_maps_out_of_the_mean(self):
        summary = summarize_measurements(table({AVR: [0.5, 0.1, 0.0], POWER: [1.0, 3.0, 0.0]}))
        (row,) = summary.to_dict("records")
        assert row["metric"] == "avr"
        assert (row["n"], row["n_silent"]) == (2, 1)
        assert row["mean"] == pytest.approx(0.3)
        assert row["avr_pooled"] == pytest.approx((0.5 * 1 + 0.1 * 3) / 4)

    def test_maps_that_are_all_silent_have_no_mean(self):
        (row,) = summarize_measurements(table({AVR: [0.0, 0.0], POWER: [0.0, 0.0]})).to_dict("records")
        assert (row["n"], row["n_silent"], row["avr_pooled"]) == (0, 2, 0.0)
        assert math.isnan(row["mean"])

    def test_one_image_has_a_mean_without_an_interval(self):
        (row,) = summarize_measurements(table({SIS: [0.25]})).to_dict("records")
        assert (row["n"], row["mean"]) == (1, 0.25)
        assert math.isnan(row["ci_low"])
        assert math.isnan(row["ci_high"])

    def test_rows_are_grouped_by_model_site_call_and_tap(self):
        dense: Key = ("conv1", 0, "conv", "dense", "avr")
        again: Key = ("conv1@1", 1, "conv", "input", "avr")
        summary = summarize_measurements(
            table({AVR: [0.1, 0.3], dense: [0.2, 0.4], again: [0.5, 0.7], SIS: [0, 1]})
        )
        assert list(summary.columns) == SUMMARY_COLUMNS
        assert summary[["site", "call", "tap", "mean"]].values.tolist() == [
            ["conv1", 0, "input", pytest.approx(0.2)],
            ["conv1", 0, "dense", pytest.approx(0.3)],
            ["conv1@1", 1, "input", pytest.approx(0.6)],
            ["", 0, "", pytest.approx(0.5)],
        ]

    def test_sites_give_strides_and_reasons(self):
        site = {"call": 0, "op": "conv", "stride": "2x1", "measurable": True, "reason": None}
        sites = [
            {**site, "name": "conv1"},
            {**site, "name": "pool", "op": "max_pool", "measurable": False, "reason": "unequal windows"},
        ]
        frame = table({AVR: [0.1, 0.3], SIS: [0.0, 1.0]})
        frame.attrs["sites"] = sites
        for summary in (summarize_measurements(frame), summarize_measurements(frame.copy(), sites)):
            assert summary[["model", "site", "op", "stride", "n", "reason"]].values.tolist() == [
                ["net", "conv1", "conv", "2x1", 2, ""],
                ["net", "", "", "", 2, ""],
                ["net", "pool", "max_pool", "2x1", 0, "unequal windows"],
            ]

    def test_crops_of_one_photograph_count_as_one(self):
        crops = [0.0, 0.1, 1.0, 1.1, 2.0, 2.1, 3.0, 3.1]
        photographs = {f"{i}": f"photo{i // 2}" for i in range(8)}
        frame = table({SIS: crops})
        (alone,) = summarize_measurements(frame).to_dict("records")
        (grouped,) = summarize_measurements(frame, groups=photographs).to_dict("records")
        assert grouped["mean"] == alone["mean"] == pytest.approx(1.55)
        assert grouped["ci_high"] - grouped["ci_low"] > 1.2 * (alone["ci_high"] - alone["ci_low"])
        own = {f"{i}": f"{i}" for i in range(8)}
        (each,) = summarize_measurements(frame, groups=own).to_dict("records")
        assert each["ci_high"] - each["ci_low"] == pytest.approx(alone["ci_high"] - alone["ci_low"], rel=0.15)

    def test_an_empty_table_has_an_empty_summary(self):
        assert list(summarize_measurements(to_frame([])).columns) == SUMMARY_COLUMNS


class TestFiles:
    def test_csv_and_its_provenance_are_whole(self, tmp_path):
        frame = pd.DataFrame({"site": ["conv1"], "mean": [1 / 3]})
        path = write_csv(frame, tmp_path / "new" / "summary.csv", {"model": "net", "note": "ρ ≤ ½"})
        assert path.read_text(encoding="utf-8") == "site,mean\nconv1,0.333333333\n"
        assert read_json(path.with_suffix(".json")) == {"model": "net", "note": "ρ ≤ ½"}
        assert sorted(file.name for file in path.parent.iterdir()) == ["summary.csv", "summary.json"]

    def test_a_write_that_fails_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "a.csv"
        write_csv(pd.DataFrame({"x": [1]}), path)
        monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            write_csv(pd.DataFrame({"x": [2]}), path)
        assert path.read_text() == "x\n1\n"

    def test_json_is_sorted_and_readable(self, tmp_path):
        write_json({"b": 1, "a": [1, 2]}, tmp_path / "x.json")
        assert list(json.loads((tmp_path / "x.json").read_text())) == ["a", "b"]

    def test_the_environment_names_versions_and_no_host(self):
        environment = describe_environment()
        assert environment["versions"]["numpy"] == np.__version__
        assert environment["versions"]["spectral-aliasing"] != "not installed"
        assert set(environment) == {"versions", "machine", "system", "cores"}
