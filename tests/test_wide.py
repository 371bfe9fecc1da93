"""Large tables: rows that wait to be looked at, and summaries that need a few columns of them at a time."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.runs.summary import summarize_measurements
from spectral.table.lazy import EAGER_ROWS, LazyTable, gather
from spectral.table.rows import COLUMNS, Key, Origin, make_reasons, make_rows, to_frame
from spectral.table.wide import split_tables

NET = Origin("net", "sha256:0", "folder@0")
AVR, POWER = Key("avr", "conv", 0, "conv", "2x2", "input"), Key("power", "conv", 0, "conv", "2x2", "input")
DENSE = Key("am", "conv", 0, "conv", "2x2", "dense")
SIS = Key("sis")
REASONS = {Key("", "pool", 0, "max_pool", "2x2"): "unequal windows", Key("label"): "no classes"}


def make_tables(counts: list[int], seed: int, photographs: int | None) -> list[pa.Table]:
    """One table per count of images; the last site runs on every other table only, some maps are silent."""
    rng = np.random.default_rng(seed)
    tables = [make_reasons(NET, REASONS)]
    for number, count in enumerate(counts):
        # In no order of names, as images of several ranks or folders come.
        ids = [f"{number:02d}-{i}" for i in rng.permutation(count)]
        clusters = ids if photographs is None else [f"p{i}" for i in rng.integers(photographs, size=count)]
        keys = [SIS, AVR, POWER, DENSE] if number % 2 == 0 else [POWER, SIS, AVR]
        values = rng.random((count, len(keys)))
        values[rng.random(count) < 0.2, keys.index(POWER)] = 0
        values[rng.random(count) < 0.2, keys.index(SIS)] = np.nan
        values[0, keys.index(SIS)] = 0.5
        tables.append(pa.concat_tables([make_reasons(NET, {}), make_rows(NET, ids, clusters, keys, values)]))
    return tables


class TestSummaries:
    @settings(max_examples=25)
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=5),
        st.integers(0, 2**31),
        st.one_of(st.none(), st.integers(1, 4)),
    )
    def test_without_the_rows_as_with_them(self, counts, seed, photographs):
        tables = make_tables(counts, seed, photographs)
        waiting = LazyTable(lambda: iter(tables), sum(counts))
        found = summarize_measurements(waiting)
        assert waiting.waits
        pd.testing.assert_frame_equal(found, summarize_measurements(to_frame(tables)), rtol=1e-12)

    def test_columns_in_a_file_are_the_same(self):
        tables = make_tables([9, 7, 8], 3, 5)
        kept, filed = ([*split_tables(tables, 24, limit).places] for limit in (2**20, 64))
        assert [place.facts for place in kept] == [place.facts for place in filed]
        for a, b in zip(kept, filed, strict=True):
            for metric in a.metrics:
                np.testing.assert_array_equal(a.column(metric), b.column(metric))

    def test_no_more_than_a_table_at_a_time(self):
        levels: list[int] = []

        def tables() -> Iterator[pa.Table]:
            for number in range(8):
                ids = [f"{number}-{i}" for i in range(2000)]
                yield make_rows(NET, ids, ids, [AVR, POWER], np.ones((2000, 2)))
                levels.append(pa.total_allocated_bytes())

        assert summarize_measurements(LazyTable(tables, 16_000))["n"].tolist() == [16_000]
        size = make_rows(NET, ["0"] * 2000, ["0"] * 2000, [AVR, POWER], np.ones((2000, 2))).nbytes
        assert max(levels) - levels[0] < 2 * size

    def test_a_table_that_was_altered_is_summarised_as_it_is(self):
        waiting = LazyTable(lambda: make_tables([4], 0, None), 4)
        waiting.loc[waiting["metric"] == "sis", "value"] = 0.25
        summary = summarize_measurements(waiting).set_index("metric")
        assert summary.loc["sis", "mean"] == 0.25

    def test_nothing_at_all(self):
        assert summarize_measurements(LazyTable(lambda: [], 0)).empty


class TestRowsThatWait:
    def make(self) -> tuple[LazyTable, pd.DataFrame]:
        tables = make_tables([3, 2], 1, None)
        waiting = LazyTable(lambda: tables, 5)
        waiting.attrs["sites"] = [{"name": "conv"}]
        return waiting, to_frame(tables)

    @pytest.mark.parametrize(
        "look",
        [
            lambda t: t.copy(), lambda t: t[t["reason"] == ""], lambda t: t.groupby("metric")["value"].mean(),
            lambda t: t["value"].sum(), len, lambda t: t.shape, lambda t: t.columns.tolist(), repr,
            lambda t: pd.concat([t, t]), lambda t: t.assign(x=1), lambda t: t.to_csv(),
            lambda t: t.pivot(index="image", columns=["site", "tap", "metric"], values="value"),
            lambda t: pickle.loads(pickle.dumps(t)), lambda t: t.value.max(), lambda t: t.empty,
            lambda t: t.iloc[2:5], lambda t: t.merge(t, on="image"),
            lambda t: [row.image for row in t.itertuples()],
        ],
    )  # fmt: skip
    def test_it_is_the_pandas_table(self, look):
        waiting, frame = self.make()
        found, expected = look(waiting), look(frame)
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(found, expected)
        elif isinstance(expected, pd.Series):
            pd.testing.assert_series_equal(found, expected)
        else:
            assert found == expected
        assert not waiting.waits

    def test_what_comes_with_it_needs_no_rows(self):
        waiting, frame = self.make()
        assert waiting.attrs["sites"] == [{"name": "conv"}]
        assert isinstance(waiting, pd.DataFrame)
        assert waiting.waits
        assert waiting.equals(frame)
        assert waiting.copy().attrs == waiting.attrs

    def test_altered_in_place_it_stays_so(self):
        waiting, _ = self.make()
        waiting["extra"] = 1
        del waiting["reason"]
        waiting.loc[0, "extra"] = 2
        assert list(waiting.columns) == [*COLUMNS[:-1], "extra"]
        assert waiting["extra"].tolist()[:2] == [2, 1]

    def test_few_rows_are_there_at_once(self, tmp_path):
        tables = make_tables([3], 0, None)
        assert not isinstance(gather(lambda: tables, EAGER_ROWS, 3), LazyTable)
        waiting = gather(lambda: tables, EAGER_ROWS + 1, 3)
        waiting.to_parquet(tmp_path / "t.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), to_frame(tables))
