"""What a study says at its end: the numbers of its tables, beside the published ones."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import spectral
from spectral import cli
from spectral.codebook import describe_column
from spectral.errors import SpectralError
from spectral.runs.lineage import RUNS, list_runs
from spectral.study.findings import COLUMNS, find_findings, report_findings, tabulate_findings
from spectral.study.progress import Progress, describe_overwriting
from spectral.table.csv_files import write_csv

TABLES = Path(__file__).parents[1] / "results" / "reference" / "tables"


def test_findings_are_the_numbers_of_the_tables():
    found = {finding.quantity: finding for finding in find_findings(TABLES)}
    tradeoff = pd.read_csv(TABLES / "phase5_tradeoff.csv").set_index("family")
    change = found["change of SIS with bundled/resnet20-blurpool"]
    assert change.ours == tradeoff.loc["blurpool", "sis_change_percent"]
    assert (change.published, change.study) == (-39.8, "the spectral-aliasing study")
    both = found["images of one class with bundled/resnet20-blurpool too"]
    assert (both.ours, both.published) == (tradeoff.loc["blurpool", "agreement"], 0.654)
    stats = pd.read_csv(TABLES / "phase3_layerwise_avr_stats.csv")
    own = stats[
        (stats["family_a"] == "strided") & (stats["family_b"] == "blurpool") & (stats["tap"] == "input")
    ]
    pair = "bundled/resnet20-blurpool than with bundled/resnet20"
    name = f"sites at which AVR is larger with {pair}, tap input, of {len(own)}"
    assert found[name].ours == sum(own["mean_b"] > own["mean_a"]) / len(own)
    assert found[name].published == pytest.approx(5 / 7)


def test_published_figures_have_whose_and_where():
    table = tabulate_findings(find_findings(TABLES))
    assert list(table.columns) == COLUMNS
    assert len(table) >= 10
    assert (table["study"] != "").all()
    assert (table["source"] != "").all()
    assert set(table["study"]) == {"the spectral-aliasing study", "NULA's model card", "Zhang 2019"}
    assert not table.duplicated(["quantity", "study"]).any()
    for column in COLUMNS:
        describe_column(column)


def test_a_finding_is_a_sentence_with_both_numbers():
    lines = [str(finding) for finding in find_findings(TABLES) if not math.isnan(finding.published)]
    (change,) = (line for line in lines if "change of SIS" in line)
    assert re.fullmatch(
        r"phase 5: change of SIS with bundled/resnet20-blurpool: -\d+\.\d % \(-\d+\.\d % to -?\d+\.\d %\); "
        r"the spectral-aliasing study: -39\.8 %",
        change,
    )
    assert not any("nan" in line for line in lines)


def test_nothing_is_said_of_what_has_not_run(tmp_path):
    assert report_findings(tmp_path, [1, 2, 3]) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_found_in_tables_of_measurements_that_are_others_now(tmp_path):
    folder, runs = tmp_path / "tables", tmp_path / "measurements"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1))
    table = pd.read_csv(TABLES / "phase5_tradeoff.csv")
    for value in (0.0, 1.0):
        spectral.measure(net, torch.full((2, 3, 8, 8), value), ("avr",), out=runs / "net", progress=False)
        if not value:
            write_csv(table, folder / "phase5_tradeoff.csv", {RUNS: list_runs(runs, folder)})
            assert {finding.phase for finding in find_findings(folder)} == {5}
            shutil.rmtree(runs)
    assert find_findings(folder) == []


def test_a_table_that_was_altered_and_is_taken_as_it_is_ends_in_a_sentence(tmp_path):
    table = pd.read_csv(TABLES / "phase5_tradeoff.csv")
    for altered in (
        table.drop(columns="sis_ci_low"), table.assign(agreement="0,5"), table.assign(latency_ratio="1,2"),
    ):  # fmt: skip
        altered.to_csv(tmp_path / "phase5_tradeoff.csv", index=False)
        with pytest.raises(
            SpectralError, match=r"phase5_tradeoff.csv isn't what its phase writes \(.*delete"
        ):
            report_findings(tmp_path, [5])
    (tmp_path / "phase5_tradeoff.csv").write_bytes(b"family;sis\n" + bytes(range(128, 256)))
    with pytest.raises(SpectralError, match="isn't what its phase writes"):
        report_findings(tmp_path, [5])


def test_time_left_is_guessed_once_there_is_something_to_guess_from():
    now = [0.0]
    progress = Progress([1, 20, 40, 5], clock=lambda: now[0])
    assert progress.begin() == "1 of 4"
    now[0] = 3.0
    progress.advance(1)
    assert progress.begin() == "2 of 4"  # too little was done
    now[0] = 33.0  # half a minute for half of it
    progress.advance(10)
    assert progress.describe_left() == "about 3 min left"
    progress.advance(100)  # a phase weighs no more than was said
    now[0] = 63.0
    assert progress.begin() == "3 of 4, about 2 min left"
    assert progress.begin() == "4 of 4, about 10 s left"


def test_what_is_overwritten_is_said_first(tmp_path):
    assert describe_overwriting(tmp_path) is None
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/phase1_layerwise_avr.csv").touch()
    assert "1 tables and 0 figures" in (describe_overwriting(tmp_path) or "")


@pytest.mark.slow
def test_a_study_ends_with_its_findings(tmp_path):
    models = "bundled/resnet8@random,bundled/resnet8-blurpool@random"
    given = ["--models", models, "--images", "synthetic", "--limit", "4", "--quiet"]
    arguments = ["study", "2", *given, "--out", str(tmp_path)]
    first = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    assert "phase 2: synthetic inputs (1 of 1)" in first.output
    assert "overwritten" not in first.output
    assert "findings\n  phase 2: AVR of a tone at" in first.output
    assert set(pd.read_csv(tmp_path / "tables/published.csv")["phase"]) == {2}
    assert len(pd.read_csv(tmp_path / "tables/codebook.csv")) > 5
    second = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert "overwritten" in second.output
