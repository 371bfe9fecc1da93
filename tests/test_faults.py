"""The benchmark of faults finds none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "faults.py"
# Jobs of a second or two each; what stops longer ones is in `test_study_runner` and `test_diagnosis`.
FEW = (
    "--job", "measure", "--job", "compare", "--job", "train", "--kills", "3", "--writers", "2", "--bits", "8",
    "--interrupts", "10", "--threads", "2",
)  # fmt: skip


@pytest.mark.slow
def test_some_of_each_kind_leave_nothing_wrong(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), *FEW, "--seed", "7", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    table = pd.read_csv(tmp_path / "tables" / "faults.csv")
    assert table.groupby("fault")["trials"].sum().to_dict() == {
        "bits": 8, "interrupts": 10, "kills": 3, "threads": 2, "writers": 2,
    }  # fmt: skip
    assert (tmp_path / "tables" / "faults.json").exists()
