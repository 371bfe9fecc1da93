"""The repair study: rows for every state, scored on images that tuned nothing, and its figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.models import load_model
from spectral.stability import measure_stability
from spectral.study.repair import COLUMNS, Effort, compare_repairs, main
from spectral.surgery import convert

pytestmark = pytest.mark.filterwarnings("ignore::spectral.SpectralWarning")


def test_every_state_is_scored_on_the_even_images() -> None:
    model, images = load_model("bundled/resnet20"), load_images("samples", size=32, limit=12, seed=3)
    rows = list(
        compare_repairs(model, images, ["blurpool"], Effort(steps=2, batch_size=4, pairs=1), progress=False)
    )
    table = pd.DataFrame(rows)[COLUMNS]
    assert list(table["repair"]) == ["unaltered", "as converted", "recalibrated", "distilled"]
    assert set(table["n"]) == {6}
    assert set(table["n_tuned"]) == {6}
    base, converted = table.iloc[0], table.iloc[1]
    assert base["agreement"] == base["sis_ratio"] == base["latency_ratio"] == 1
    own = measure_stability(model, images[::2], comb=False, progress=False)
    new = measure_stability(convert(model, "blurpool", example=32), images[::2], comb=False, progress=False)
    assert (table[["sis", "consistency"]].notna()).all(axis=None)
    assert base["n_clusters"] == own["cluster"].nunique()
    assert base["sis"] == pytest.approx(own.groupby("cluster")["sis"].mean().mean())
    assert converted["sis_ratio"] == pytest.approx(new["sis"].mean() / own["sis"].mean())
    assert converted["agreement"] <= 1
    assert len(table[table["sis"].duplicated()]) == 0


@pytest.mark.parametrize("method", ["flk", ""])
def test_unknown_layers_and_too_few_images(method: str) -> None:
    model, images = load_model("bundled/resnet20@random"), load_images("samples", size=32, limit=3)
    with pytest.raises(SpectralError, match="no layer is called"):
        next(compare_repairs(model, images, [method]))
    with pytest.raises(SpectralError, match="at least 4 images, got 3"):
        next(compare_repairs(model, images, ["flc"]))


def test_the_command_writes_table_and_figure(tmp_path) -> None:
    arguments = ["--model", "bundled/resnet20", "--images", "samples", "--limit", "8", "--methods", "aps",
                 "--steps", "0", "--out", str(tmp_path), "--quiet"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "tables" / "repair.csv", comment="#")
    assert list(table["repair"]) == ["unaltered", "as converted", "recalibrated"]
    assert np.isfinite(table["latency_ratio"]).all()
    assert (tmp_path / "figures" / "repair.png").stat().st_size > 10_000
