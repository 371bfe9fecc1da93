"""Which process of a launch this is, and the device that it takes."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from click.testing import CliRunner

from spectral.cli import main
from spectral.errors import SpectralError
from spectral.processes.launch import Launch, choose_device, find_launch

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_LOCALID",
    "SLURM_GPUS_ON_NODE",
    "CUDA_VISIBLE_DEVICES",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
)
JOB = {"RANK": 5, "WORLD_SIZE": 8, "MASTER_ADDR": "a", "MASTER_PORT": 1}
SEES = {"SLURM_LOCALID": 3, "CUDA_VISIBLE_DEVICES": "0"}


def place(monkeypatch, **variables):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return find_launch()


@pytest.mark.parametrize(
    ("variables", "device"),
    [
        ({}, "cuda"),
        ({"SLURM_LOCALID": 0}, "cuda"),
        ({"SLURM_LOCALID": 3}, "cuda:3"),  # srun without torchrun: four that see the same four GPUs
        (SEES | {"SLURM_GPUS_ON_NODE": 1}, "cuda:3"),  # which isn't there, and is refused as such
        (SEES | {"SLURM_GPUS_ON_NODE": 4}, "cuda:0"),  # each sees its own
        (SEES | {"SLURM_GPUS_ON_NODE": 4, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "cuda:3"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": 2}, "cuda:2"),
        (JOB | {"LOCAL_RANK": 1, "SLURM_LOCALID": 0}, "cuda:1"),  # torchrun, once a node
        (JOB | {"SLURM_LOCALID": 1}, "cuda:1"),
        (JOB | {"LOCAL_RANK": 0}, "cuda:0"),
        (JOB | {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}, "cuda"),
    ],
)
def test_each_process_of_a_machine_takes_a_device_of_its_own(variables, device, monkeypatch):
    launch = place(monkeypatch, **variables)
    assert choose_device("cuda", launch) == device
    assert [choose_device(one, launch) for one in ("cpu", "cuda:2")] == ["cpu", "cuda:2"]


def test_processes_that_would_take_the_same_device_unawares_are_refused(monkeypatch):
    launch = place(monkeypatch, **JOB)
    assert launch == Launch(5, 8, None)
    with pytest.raises(SpectralError, match=r"RANK=5 and WORLD_SIZE=8 .* set LOCAL_RANK"):
        choose_device("cuda", launch)
    assert choose_device("cuda:1", launch) == "cuda:1"


def test_a_place_that_is_no_number_is_refused(monkeypatch):
    with pytest.raises(SpectralError, match="SLURM_LOCALID must be a whole number ≥ 0, got 'x'"):
        place(monkeypatch, SLURM_LOCALID="x")


def test_a_process_whose_first_rank_never_comes_says_so(monkeypatch, capfd):
    """Variables that a job has left in a shell: what rank 1 said went nowhere, after ten minutes."""
    launch = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("spectral.processes.ranks.PATIENCE", timedelta(seconds=2))
    monkeypatch.setattr("spectral.processes.ranks.QUIET", timedelta(seconds=0.5))
    assert CliRunner().invoke(main, ["measure", "bundled/resnet20@random"]).exit_code == 2
    said = capfd.readouterr().err
    assert "rank 1 of 2 has waited 0.5 s" in said
    assert len(re.findall("Error: RANK=1 and WORLD_SIZE=2 are set, .* unset RANK and WORLD_SIZE", said)) == 1
