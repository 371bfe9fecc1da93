"""The repair study: rows for every state, scored on images that tuned nothing, and its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.experiments.repair import COLUMNS, Effort, compare_repairs, main
from spectral.models import load_model
from spectral.repair.recalibration import recalibrate
from spectral.stability import measure_stability
from spectral.surgery import conversion_report, convert

pytestmark = pytest.mark.filterwarnings("ignore::spectral.SpectralWarning")


def test_every_state_is_scored_on_images_that_repaired_another() -> None:
    model, images = load_model("bundled/resnet8@random"), load_images("samples", size=32, limit=12, seed=3)
    # Each two in a row are crops of one photograph: a network that was repaired with one knows the other.
    paired = [replace(item, photograph=f"photograph {i // 2}") for i, item in enumerate(images.items)]
    images = replace(images, items=paired)
    rows = list(
        compare_repairs(model, images, ["blurpool"], Effort(steps=2, batch_size=4, pairs=1), progress=False)
    )
    table = pd.DataFrame(rows)[COLUMNS]
    states = ["unaltered", "as converted", "recalibrated", "reconstructed", "distilled"]
    assert list(table["repair"]) == states
    assert set(table["n"]) == {12}
    base, converted = table.iloc[0], table.iloc[1]
    assert base["agreement"] == base["sis_ratio"] == base["latency_ratio"] == 1
    smooth = convert(model, "blurpool", example=32)
    halves = [
        replace(images, items=[x for i, x in enumerate(paired) if i // 2 % 2 == half]) for half in (1, 0)
    ]
    assert set(table["n_tuned"]) == {len(halves[0])}
    own = measure_stability(model, images, comb=False, progress=False)
    new = measure_stability(smooth, images, comb=False, progress=False)
    crossed = pd.concat(
        measure_stability(recalibrate(smooth, tuning), scored, comb=False, progress=False)
        for tuning, scored in (halves, halves[::-1])
    )
    assert (table[["sis", "consistency"]].notna()).all(axis=None)
    assert base["n_clusters"] == own["cluster"].nunique()
    assert base["sis"] == pytest.approx(own.groupby("cluster")["sis"].mean().mean())
    means = [found.groupby("cluster")["sis"].mean().mean() for found in (own, new, crossed)]
    assert converted["sis_ratio"] == pytest.approx(means[1] / means[0])
    assert table["sis_ratio"][2] == pytest.approx(means[2] / means[0])
    assert converted["agreement"] <= 1
    assert (table["replaced"][1:] == base["replaced"] + len(conversion_report(smooth).replaced)).all()
    assert len(table[table["sis"].duplicated()]) == 0


@pytest.mark.parametrize("method", ["flk", ""])
def test_unknown_layers_and_too_few_images(method: str) -> None:
    model, images = load_model("bundled/resnet8@random"), load_images("samples", size=32, limit=3)
    with pytest.raises(SpectralError, match="no layer is called"):
        next(compare_repairs(model, images, [method]))
    with pytest.raises(SpectralError, match="at least 4 images, got 3"):
        next(compare_repairs(model, images, ["flc@layer2.0.conv1"]))


def test_states_can_be_chosen_and_are_the_same_alone() -> None:
    model, images = load_model("bundled/resnet8@random"), load_images("samples", size=32, limit=8, seed=3)
    effort = Effort(steps=2, batch_size=4, pairs=1)
    every = list(compare_repairs(model, images, ["flc"], effort, progress=False))
    alone = list(compare_repairs(model, images, ["flc"], effort, states=["distilled"], progress=False))
    assert [row["repair"] for row in alone] == ["unaltered", "distilled"]
    for name in ("sis", "logit_jitter", "agreement", "consistency"):
        assert alone[1][name] == every[-1][name], name
    with pytest.raises(SpectralError, match="'distiled'; nearest: 'distilled'; there are as converted"):
        next(compare_repairs(model, images, ["flc"], states=["distiled"]))


def test_the_command_writes_table_and_figure(tmp_path) -> None:
    arguments = ["--model", "bundled/resnet8@random", "--images", "samples", "--limit", "8", "--methods",
                 "aps@layer2.0.conv1", "--steps", "0", "--out", str(tmp_path), "--quiet"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "tables" / "repair.csv", comment="#")
    assert list(table["repair"]) == ["unaltered", "as converted", "recalibrated", "reconstructed"]
    assert list(table["replaced"]) == [0, 1, 1, 1]
    assert np.isfinite(table["latency_ratio"]).all()
    assert (tmp_path / "figures" / "repair.png").stat().st_size > 10_000
    other = CliRunner().invoke(main, [*arguments, "--seed", "1"])
    assert (other.exit_code, pd.read_csv(tmp_path / "tables" / "repair.csv").equals(table)) == (2, True)
    assert "repair.csv is of effort = {'seed': 0}, not {'seed': 1}; choose another" in other.output
