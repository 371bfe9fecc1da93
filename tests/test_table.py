"""The table on disk and its summary."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
from faults import full_disk

import spectral
from spectral.analysis.diagnosis import refuse_other_diagnosis
from spectral.errors import SpectralError
from spectral.files.json_files import read_json, write_json
from spectral.runs.store import ShardStore
from spectral.runs.summary import SUMMARY_COLUMNS, summarize_measurements
from spectral.stats import estimate_mean
from spectral.table.csv_files import (
    check_tables,
    describe_environment,
    read_csv,
    refuse_other_tables,
    write_csv,
    write_csvs,
)
from spectral.table.lazy import LazyTable
from spectral.table.rows import COLUMNS, Key, Origin, make_reasons, make_rows, to_frame

NET = Origin("net", "sha256:0", "tensor@0")
AVR = Key("avr", "conv1", 0, "conv", "2x1", "input")
POWER = AVR._replace(metric="power")
SIS = Key("sis")
POOL = Key("", "pool", 0, "max_pool", "2x2")


def table(
    values: Mapping[Key, list[float]],
    images: list[str] | None = None,
    clusters: list[str] | None = None,
    origin: Origin = NET,
    reasons: Mapping[Key, str] | None = None,
) -> pd.DataFrame:
    columns = np.array(list(values.values()), dtype=np.float64).T
    ids = images or [f"i{i}" for i in range(len(columns))]
    rows = make_rows(origin, ids, clusters or ids, list(values), columns)
    return to_frame([make_reasons(origin, reasons or {}), rows])


def rows(*images: str) -> Any:
    return make_rows(NET, images, images, [SIS], np.arange(len(images), dtype=np.float64)[:, None])


class TestRows:
    def test_every_value_stands_beside_its_image_and_key(self):
        frame = table({AVR: [0.1, 0.2], SIS: [0.3, 0.4]}, ["a", "b"])
        assert list(frame.columns) == COLUMNS
        assert frame.values.tolist() == [
            [*NET, "a", "a", "conv1", 0, "conv", "2x1", "input", "avr", 0.1, ""],
            [*NET, "a", "a", "", 0, "", "", "", "sis", 0.3, ""],
            [*NET, "b", "b", "conv1", 0, "conv", "2x1", "input", "avr", 0.2, ""],
            [*NET, "b", "b", "", 0, "", "", "", "sis", 0.4, ""],
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
        assert again.reasons() == {}
        assert again.measured_sites() == {""}

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

    def test_a_write_that_fails_leaves_no_shard(self, tmp_path):
        store = ShardStore(tmp_path, {})
        store.append(rows("a"))
        before = sorted(tmp_path.iterdir())
        with (
            full_disk(),
            pytest.raises(SpectralError, match=r"shard-000001\.parquet can't be written \(File too large"),
        ):
            store.append(rows("b"))
        assert ShardStore(tmp_path, {}).finished_images() == {"a"}
        assert sorted(tmp_path.iterdir()) == before

    def test_reasons_are_rows_of_the_shards(self, tmp_path):
        store = ShardStore(tmp_path, {})
        store.append(make_reasons(NET, {POOL: "why"}))
        store.append(rows("a"))
        again = ShardStore(tmp_path, {})
        assert again.reasons() == {POOL: "why"}
        assert again.finished_images() == {"a"}

    def test_pandas_reads_the_folder_as_one_table(self, tmp_path):
        store = ShardStore(tmp_path, {"model": "net"}, {"cores": 2})
        store.append(make_reasons(NET, {POOL: "why"}))
        store.append(rows("b", "a"))
        store.append(rows("c"))
        store.finish([{"name": "pool"}])
        (tmp_path / "_shard-000003.partial").write_bytes(b"half")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), store.read())
        assert store.read()["image"].tolist() == ["", "b", "a", "c"]

    def test_read_gives_table_provenance_and_sites(self, tmp_path):
        store = ShardStore(tmp_path / "run" / "measurements", {"model": "net"}, {"cores": 2})
        store.append(rows("a"))
        store.finish([{"name": "pool"}])
        for folder in (tmp_path / "run", str(tmp_path / "run" / "measurements")):
            found = spectral.read(folder)
            pd.testing.assert_frame_equal(found, store.read())
            assert found.attrs == {"provenance": {"cores": 2}, "sites": [{"name": "pool"}]}

    def test_folders_of_an_earlier_version_are_refused_in_a_sentence(self, tmp_path):
        (tmp_path / "run.json").write_text("{}")
        for ask in (lambda: ShardStore(tmp_path, {}), lambda: spectral.read(tmp_path)):
            with pytest.raises(SpectralError, match=r"written by an earlier version.*measure again"):
                ask()

    def test_what_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(SpectralError, match="holds no measurements"):
            spectral.read(tmp_path)

    def test_shards_of_unknown_origin_are_refused(self, tmp_path):
        ShardStore(tmp_path, {}).append(rows("a"))
        (tmp_path / "_run.json").unlink()
        with pytest.raises(SpectralError, match=r"has shards but no _run\.json"):
            ShardStore(tmp_path, {})

    def test_damaged_files_are_named(self, tmp_path):
        store = ShardStore(tmp_path, {})
        store.append(rows("a"))
        store.shards[0].write_bytes(b"PAR1")
        with pytest.raises(SpectralError, match=r"shard-000000\.parquet is damaged"):
            store.finished_images()
        (tmp_path / "_run.json").write_text("{")
        with pytest.raises(SpectralError, match=r"_run\.json can't be read .*measure again"):
            ShardStore(tmp_path, {})

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(SpectralError, match=r"can't write to .*choose another output folder"):
                ShardStore(path, {})


class TestSummary:
    def test_mean_spread_and_interval_against_a_calculation_by_hand(self):
        summary = summarize_measurements(table({AVR._replace(metric="am"): [1.0, 2.0, 3.0, 4.0]}))
        (row,) = summary.to_dict("records")
        std = math.sqrt(5 / 3)
        half = 3.182446305284263 * std / 2  # Student's t at 97.5 %, 3 degrees of freedom: no skewness here
        assert (row["n"], row["n_clusters"], row["n_silent"], row["mean"]) == (4, 4, 0, 2.5)
        assert row["std"] == pytest.approx(std, rel=1e-12)
        assert row["ci_low"] == pytest.approx(max(2.5 - half, 0), rel=1e-9)
        assert row["ci_high"] == pytest.approx(2.5 + half, rel=1e-9)

    def test_its_types_are_the_same_whether_the_rows_are_in_memory_or_wait(self):
        again = AVR._replace(site="conv1@1", call=1)
        rows = make_rows(NET, ["a", "b"], ["a", "b"], [AVR, again], np.array([[0.1, 0.2], [0.3, 0.4]]))
        waiting = LazyTable(lambda: [rows], images=2)
        late = summarize_measurements(waiting)
        assert waiting.waits
        pd.testing.assert_frame_equal(summarize_measurements(to_frame([rows])), late)
        assert late["call"].dtype == np.int64

    def test_pooled_avr_weighs_by_power_and_leaves_silent_maps_out_of_the_mean(self):
        summary = summarize_measurements(table({AVR: [0.5, 0.1, 0.0], POWER: [1.0, 3.0, 0.0]}))
        (row,) = summary.to_dict("records")
        assert row["metric"] == "avr"
        assert (row["n"], row["n_silent"]) == (2, 1)
        assert row["mean"] == pytest.approx(0.3)
        assert row["avr_pooled"] == pytest.approx((0.5 * 1 + 0.1 * 3) / 4)

    def test_a_row_that_somebody_took_out_is_of_no_silent_map(self):
        full = table({AVR: [0.5, 0.1, 0.3], POWER: [1.0, 3.0, 2.0]})
        taken = full[~((full["metric"] == "avr") & (full["image"] == "i2"))]
        (row,) = summarize_measurements(taken).to_dict("records")
        assert (row["n"], row["n_silent"], row["n_absent"]) == (2, 0, 1)
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
        dense = AVR._replace(tap="dense")
        again = AVR._replace(site="conv1@1", call=1)
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

    def test_strides_and_reasons_are_in_the_rows(self):
        frame = table({AVR: [0.1, 0.3], SIS: [0.0, 1.0]}, reasons={POOL: "unequal windows"})
        summary = summarize_measurements(frame)
        assert summary[["model", "site", "op", "stride", "n", "reason"]].values.tolist() == [
            ["net", "conv1", "conv", "2x1", 2, ""],
            ["net", "", "", "", 2, ""],
            ["net", "pool", "max_pool", "2x2", 0, "unequal windows"],
        ]

    def test_a_metric_of_the_whole_model_may_have_a_reason(self):
        frame = table({AVR: [0.1, 0.3]}, reasons={SIS: "its output isn't logits", POOL: "why"})
        found = summarize_measurements(frame)[["site", "metric", "n", "reason"]].values.tolist()
        assert found[1:] == [["", "sis", 0, "its output isn't logits"], ["pool", "", 0, "why"]]

    def test_a_photograph_counts_once_however_many_crops_it_has(self):
        values, photographs = [0.0, 0.2, 0.1, 0.5, 0.9, 0.8], ["a", "a", "a", "b", "c", "c"]
        (row,) = summarize_measurements(table({SIS: values}, clusters=photographs)).to_dict("records")
        means = np.array([0.1, 0.5, 0.85])
        assert (row["n"], row["n_clusters"]) == (6, 3)
        assert row["mean"] == pytest.approx(means.mean())
        assert row["std"] == pytest.approx(means.std(ddof=1))
        found = estimate_mean(means)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((max(found.ci_low, 0), min(found.ci_high, 1)))

    def test_duplicating_each_image_in_its_cluster_changes_nothing_but_n(self):
        rng = np.random.default_rng(0)
        frame = table(
            {AVR: rng.random(9), POWER: rng.random(9), SIS: rng.random(9)}, clusters=list("aabbbcdef")
        )
        copied = pd.concat([frame, frame.assign(image=frame["image"] + " again")])
        once, twice = summarize_measurements(frame), summarize_measurements(copied)
        assert twice["n"].tolist() == (2 * once["n"]).tolist()
        pd.testing.assert_frame_equal(once.drop(columns="n"), twice.drop(columns="n"))

    def test_the_mean_is_of_the_metric_s_own_range(self):
        (row,) = summarize_measurements(table({SIS: [0.0, 0.0, 0.1]})).to_dict("records")
        assert row["ci_low"] == 0.0

    def test_a_site_that_ran_on_some_images_says_on_how_many(self):
        some = table({AVR: [0.1, 0.3], SIS: [0.0, 1.0]}, ["a", "b"])
        rest = table({SIS: [0.5]}, ["c"])
        summary = summarize_measurements(pd.concat([some, rest])).set_index("metric")
        assert summary.loc["avr", ["n", "n_absent"]].tolist() == [2, 1]
        assert summary.loc["sis", ["n", "n_absent"]].tolist() == [3, 0]

    @pytest.mark.parametrize("way", ["csv", "parquet", "concat"])
    def test_tables_that_went_through_pandas_say_the_same(self, tmp_path, way):
        """Site names and image ids that look like numbers are the hard part: 0 of nn.Sequential, tensors."""
        keys = {AVR._replace(site="0"): [0.1, 0.3, 0.2], SIS: [0.5, 0.25, 1 / 3]}
        reasons = {POOL._replace(site="3"): "unequal windows"}
        frame = table(keys, ["0000", "0001", "0002"], reasons=reasons)
        other = table({AVR: [0.5, 0.7]}, origin=Origin("other", "sha256:1", "tensor@1"))
        apart = [summarize_measurements(frame), summarize_measurements(other)]
        both = pd.concat([frame, other], ignore_index=True)
        if way == "csv":
            both.to_csv(tmp_path / "both.csv", index=False)
            both = pd.read_csv(tmp_path / "both.csv")
        elif way == "parquet":
            both.to_parquet(tmp_path / "both.parquet")
            both = pd.read_parquet(tmp_path / "both.parquet")
        found = summarize_measurements(both)
        expected = pd.concat(apart).set_index(["model", "site", "metric"]).sort_index()
        pd.testing.assert_frame_equal(found.set_index(["model", "site", "metric"]).sort_index(), expected)

    def test_a_csv_file_of_one_table_has_numbers_for_sites_and_images(self, tmp_path):
        frame = table({AVR._replace(site="0"): [0.1, 0.3]}, ["0000", "0001"])
        frame.to_csv(tmp_path / "t.csv", index=False)
        found = summarize_measurements(pd.read_csv(tmp_path / "t.csv"))
        pd.testing.assert_frame_equal(found, summarize_measurements(frame))

    def test_other_weights_or_images_of_the_same_name_are_kept_apart(self):
        frames = [table({SIS: [value, value]}, origin=Origin("net", f"sha256:{value}", "tensor@0"))
                  for value in (0.25, 0.75)]  # fmt: skip
        summary = summarize_measurements(pd.concat(frames))
        assert summary[["weights", "mean", "n"]].values.tolist() == [
            ["sha256:0.25", 0.25, 2],
            ["sha256:0.75", 0.75, 2],
        ]

    def test_the_same_values_twice_are_refused(self):
        frame = table({SIS: [0.5, 0.25]})
        with pytest.raises(SpectralError, match=r"sis of image 'i0' twice for model 'net'"):
            summarize_measurements(pd.concat([frame, frame]))

    def test_a_table_without_clusters_is_refused_with_a_way_out(self):
        frame = table({SIS: [0.5, 0.25]}).drop(columns="cluster")
        with pytest.raises(SpectralError, match=r"without the column 'cluster'; table\['cluster'\] = "):
            summarize_measurements(frame)

    def test_an_empty_table_has_an_empty_summary(self):
        assert list(summarize_measurements(to_frame([])).columns) == SUMMARY_COLUMNS


class TestFiles:
    def test_csv_and_its_provenance_are_whole(self, tmp_path):
        frame = pd.DataFrame({"site": ["conv1"], "mean": [1 / 3]})
        path = write_csv(frame, tmp_path / "new" / "summary.csv", {"model": "net", "note": "ρ ≤ ½"})
        assert path.read_text(encoding="utf-8") == "site,mean\nconv1,0.333333333\n"
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        written = {"model": "net", "note": "ρ ≤ ½", "content": {"summary.csv": digest}}
        assert read_json(path.with_suffix(".json")) == written
        assert sorted(file.name for file in path.parent.iterdir()) == ["summary.csv", "summary.json"]

    def test_a_csv_that_was_altered_is_noticed(self, tmp_path):
        frame = pd.DataFrame({"site": ["conv1"], "mean": [0.25]})
        path = write_csv(frame, tmp_path / "summary.csv", {"model": "net"})
        pd.testing.assert_frame_equal(read_csv(path), frame)
        path.write_text(path.read_text().replace("0.25", "0.35"))
        for read, place in ((read_csv, path), (spectral.write_report, tmp_path)):
            with pytest.raises(SpectralError, match=r"summary\.csv isn't what was written there"):
                read(place)
        path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace("net", "nut"))
        with pytest.raises(SpectralError, match=r"summary\.json can't be read \(it isn't what was written"):
            read_csv(path)
        path.with_suffix(".json").unlink()
        assert read_csv(path)["mean"].tolist() == [0.35]
        path.with_suffix(".json").write_text('{"model": "net"}')  # as an earlier version wrote it
        assert read_csv(path)["mean"].tolist() == [0.35]

    def test_none_is_there_unchecked_at_whatever_moment_its_writer_is_killed(self, tmp_path, monkeypatch):
        class Killed(BaseException):
            pass

        def write(folder, value, most=9):
            """Write three tables, and die after some of the files are in their places."""
            left = [most]

            def replace(source, target, own=os.replace):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                own(source, target)

            with monkeypatch.context() as patch, suppress(Killed):
                patch.setattr(os, "replace", replace)
                write_csvs(
                    {folder / f"{n}.csv": pd.DataFrame({"x": [value]}) for n in "abc"}, {"seed": value}
                )
            return {path.name: read_csv(path)["x"].tolist() for path in folder.glob("*.csv")}

        for most in range(1, 6):
            for before in (False, True):
                folder = tmp_path / f"{most}{before}"
                folder.mkdir()
                if before:
                    write(folder, 1)
                    with pytest.raises(SpectralError, match="isn't what was written there"):
                        write(folder, 2, most)
                else:
                    write(folder, 2, most)
                with pytest.raises(SpectralError, match=r"isn't what was written there|is gone, of which"):
                    check_tables(folder)
                assert write(folder, 2) == {f"{name}.csv": [2] for name in "abc"}

    def test_tables_of_an_earlier_run_go_with_what_told_of_them(self, tmp_path):
        one, beside = pd.DataFrame({"a": [1]}), tmp_path / "all.json"
        (tmp_path / "mine.csv").write_text("a\n0\n")
        write_csvs({tmp_path / "t.csv": one, tmp_path / "reasons.csv": one}, {"seed": 0}, beside)
        write_csvs({tmp_path / "t.csv": one}, {"seed": 0}, beside)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "mine.csv", "t.csv"]

    def test_a_table_that_is_written_again_deletes_no_other_whose_digest_was_copied_there(self, tmp_path):
        one, two = tmp_path / "one.csv", tmp_path / "two.csv"
        for path in (one, two):
            write_csv(pd.DataFrame({"a": [1]}), path, {"seed": 0})
        two.with_suffix(".json").write_bytes(one.with_suffix(".json").read_bytes())
        write_csv(pd.DataFrame({"a": [2]}), two, {"seed": 0})
        assert [read_csv(path)["a"].item() for path in (one, two)] == [1, 2]

    def test_a_csv_that_another_replaces_leaves_nothing_that_calls_it_altered(self, tmp_path):
        path, own = tmp_path / "t.csv", tmp_path / "u.json"
        own.write_text('{"mine": 1}')
        write_csv(pd.DataFrame({"a": [1]}), path, {"seed": 0})
        write_csv(pd.DataFrame({"a": [2]}), path)
        write_csv(pd.DataFrame({"a": [2]}), own.with_suffix(".csv"))
        assert read_csv(path)["a"].tolist() == [2]
        assert own.read_text() == '{"mine": 1}'

    def test_a_write_that_fails_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "a.csv"
        write_csv(pd.DataFrame({"x": [1]}), path)
        with full_disk(1), pytest.raises(SpectralError, match=r"a\.csv can't be written \(File too large"):
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


def test_files_of_another_origin_are_told_from_tables_that_may_be_written_again(tmp_path):
    path, facts = tmp_path / "budget.csv", {"seed": 0}
    for name, content in (("budget.json", "[1]"), ("budget.json", '{"mine": 1}'), ("budget.png", "mine")):
        (tmp_path / name).write_text(content)
        with pytest.raises(SpectralError, match=f"{name} (stands there and|wasn't written)"):
            refuse_other_tables([path], facts)
        (tmp_path / name).unlink()
    write_csvs({path: pd.DataFrame({"sis": [0.5]})}, facts)
    refuse_other_tables([path], facts)
    path.unlink()
    path.with_suffix(".json").write_bytes(b"{")  # as that of a table of its own may be damaged
    refuse_other_tables([path], facts)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "sites.csv").write_text("place,visitors\n")
    with pytest.raises(SpectralError, match=r"sites.csv stands there without provenance.json"):
        refuse_other_diagnosis(tmp_path, facts)
