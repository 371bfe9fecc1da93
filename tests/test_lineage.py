"""Tables and the measurements that they were made of: what doesn't belong together is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import spectral
from spectral.cli import main
from spectral.codebook import FILE, write_codebook
from spectral.errors import SpectralError
from spectral.figures import read_tables
from spectral.runs.lineage import RUNS, list_runs
from spectral.table.csv_files import write_csv

NET = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_results(folder: Path, images: torch.Tensor, tables: str) -> Path:
    """A folder as studies and comparisons have them: runs below measurements, and a table made of them."""
    spectral.measure(NET, images, ("avr",), batch_size=2, out=folder / "measurements" / "net", progress=False)
    table = spectral.summarize_measurements(spectral.read(folder / "measurements" / "net"))
    beside = folder / tables
    facts = {RUNS: list_runs(folder / "measurements", beside)}
    return write_csv(table, beside / "phase3_layerwise_avr_stats.csv", facts)


def refuse(read, *arguments: object) -> str:
    with pytest.raises(SpectralError) as told:
        read(*arguments)
    return str(told.value)


def plot(path: Path) -> str:
    result = CliRunner().invoke(main, ["plot", str(path), "--out", str(path.with_suffix(".svg"))])
    assert result.exit_code == 2
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("tables", ["", "tables"])
def test_a_table_beside_other_measurements_is_refused(tables, tmp_path):
    own, other = make_results(tmp_path / "own", X, tables), make_results(tmp_path / "other", X[:3], tables)
    spectral.write_report(tmp_path / "own")
    for suffix in (".csv", ".json"):
        shutil.copy(other.with_suffix(suffix), own.with_suffix(suffix))
    for said in (refuse(spectral.write_report, tmp_path / "own"), plot(own),
                 refuse(read_tables, "fig7_layerwise_mean_avr", own.parent)):  # fmt: skip
        assert "wasn't made of what is in" in said
        assert "own/measurements/net now; run the command that made it again" in said


def test_a_table_in_the_place_of_another_is_told(tmp_path):
    own = make_results(tmp_path, X, "tables")
    other = own.with_name("phase3_layers.csv")
    for suffix in (".csv", ".json"):
        shutil.copy(own.with_suffix(suffix), other.with_suffix(suffix))
    for said in (refuse(spectral.write_report, tmp_path), plot(other)):
        assert "phase3_layers.json tells of phase3_layerwise_avr_stats.csv, not of phase3_layers.csv" in said
    other.with_suffix(".json").unlink()
    spectral.write_report(tmp_path)


def test_a_table_older_than_the_measurements_is_refused(tmp_path):
    make_results(tmp_path, X, "tables")
    run = tmp_path / "measurements" / "net"
    next(run.glob("shard-*")).unlink()
    assert "a shard is gone" in refuse(spectral.write_report, tmp_path)
    with pytest.warns(spectral.SpectralWarning, match="measured again"):
        spectral.measure(NET, X, ("avr",), batch_size=1, out=run, progress=False)
    assert "phase3_layerwise_avr_stats.csv wasn't made of what is in" in refuse(
        spectral.write_report, tmp_path
    )


def test_tables_taken_elsewhere_are_read(tmp_path):
    path = make_results(tmp_path / "own", X, "tables")
    shutil.copytree(path.parent, tmp_path / "paper" / "tables")
    assert len(pd.read_csv(spectral.write_report(tmp_path / "paper").parent / "tables" / path.name))


@pytest.mark.parametrize("name", ["_run.json", "_sites.json", "shard-000000.parquet"])
def test_a_bit_that_flips_below_the_tables_is_told(name, tmp_path):
    table = make_results(tmp_path, X, "tables")
    path = tmp_path / "measurements" / "net" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert name in refuse(spectral.write_report, tmp_path)
    assert name in plot(table)


def test_a_table_that_is_gone_is_told(tmp_path):
    path = make_results(tmp_path, X, "tables")
    shutil.copy(path, path.with_name("other.csv"))
    path.unlink()
    assert "phase3_layerwise_avr_stats.csv is gone, of which phase3_layerwise_avr_stats.json tells" in refuse(
        spectral.write_report, tmp_path
    )


def test_a_page_explains_the_columns_whatever_lies_in_the_codebook(tmp_path):
    tables = make_results(tmp_path, X, "tables").parent
    written = write_codebook(tables).read_text(encoding="utf-8")
    page = spectral.write_report(tmp_path).read_text(encoding="utf-8")
    assert "photographs in the estimate" in page
    altered = written.replace("photographs in", "pixels in")
    for damaged in (altered, written[: len(written) // 2], "", "a,b\n1,2\n"):
        (tables / FILE).write_text(damaged, encoding="utf-8")
        assert spectral.write_report(tmp_path).read_text(encoding="utf-8") == page
