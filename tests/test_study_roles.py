"""Findings and tables of a study name each network by what it is, wherever it stands among --models."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from spectral.errors import SpectralError
from spectral.figures import plot_site_levels
from spectral.models import load_model
from spectral.models.checkpoint import save_checkpoint
from spectral.models.load import open_untrained
from spectral.study.families import Study
from spectral.study.findings import Finding
from spectral.study.options import StudyOptions
from spectral.study.phase10 import Budgets
from spectral.study.roles import assign_roles, find_role

ROLES = ("strided", "blurpool", "nula")
NETWORKS = ("bundled/resnet20@random", "bundled/resnet20-blurpool@random")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("bundled/resnet20@random", "strided"), ("bundled/resnet20-blurpool@random", "blurpool"),
        ("bundled/resnet20@random+flc", "flc"), ("bundled/resnet20@random+circular", "strided"),
        ("timm/resnet18@random", None), ("timm/resnet18@random+blurpool", "blurpool"),
    ],
)  # fmt: skip
def test_a_role_is_what_a_network_was_built_or_converted_as(name, role):
    assert find_role(load_model(name)) == role


def test_roles_are_kept_in_any_order_and_what_is_unknown_takes_the_rest():
    known = {"a": "strided", "b": "blurpool", "c": None}
    expected = {"strided": "a", "blurpool": "b", "nula": "c"}
    for order in ("abc", "cba", "bca"):
        found = assign_roles({name: known[name] for name in order}, ROLES)
        assert (found, list(found)) == (expected, list(expected))
    assert assign_roles({"x": None, "y": None}, ROLES) == {"strided": "x", "blurpool": "y"}


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"a": "strided", "b": "aps"}, "^b is aps, and the networks of this study are strided, blurpool"),
        ({"a": "strided", "b": "strided"}, "^a and b are both strided, and this study has one"),
        (
            {"a": "nula", "b": "blurpool"},
            "^a study compares with a network that is strided, and none of a, b",
        ),
    ],
)
def test_a_network_is_not_called_what_it_is_not(known, message):
    with pytest.raises(SpectralError, match=message):
        assign_roles(known, ROLES)


def test_a_study_is_the_same_in_any_order(tmp_path):
    studies = [
        Study(StudyOptions(models=models, images="synthetic", limit=2, out=tmp_path, progress=False))
        for models in (NETWORKS, NETWORKS[::-1])  # in one folder: it isn't refused as another's
    ]
    assert [list(study.names.items()) for study in studies] == [list(zip(ROLES, NETWORKS, strict=False))] * 2
    assert studies[0].config() == studies[1].config()


def test_what_was_measured_with_another_normalisation_is_not_taken(tmp_path):
    """The weights are the same, and all that is beside them is in a file that anybody may edit."""
    path, beside = tmp_path / "net.safetensors", tmp_path / "net.json"
    save_checkpoint(open_untrained("resnet8-w4")[0], path, {"architecture": "resnet8-w4"})
    given = {"images": "synthetic", "limit": 2, "out": tmp_path / "out", "progress": False}
    before = []
    for _ in range(2):
        budgets = Budgets(StudyOptions(models=(str(path),), **given))
        budgets.load(str(path))
        before.append((budgets.config(), budgets.identities))
    assert before[0] == before[1]
    Study(StudyOptions(models=(str(path), NETWORKS[1]), **given))
    beside.write_text(
        json.dumps({**json.loads(beside.read_text()), "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    )
    budgets = Budgets(StudyOptions(models=(str(path),), **given))
    budgets.load(str(path))
    assert budgets.config() != before[0][0]
    assert budgets.identities != before[0][1]
    with pytest.raises(SpectralError, match="holds measurements of a study with other preprocessing"):
        Study(StudyOptions(models=(str(path), NETWORKS[1]), **given))


def test_nothing_is_written_as_less_than_nothing():
    assert str(Finding(4, "share", -1e-9)) == "phase 4: share: 0.0 %"


def test_the_axis_of_levels_names_the_ratio_that_it_shows():
    table = pd.DataFrame({"name": ["a"], "level_db": [-6.0]})
    for words in ("alias power ratio", "alias power ratio of the median channel"):
        assert plot_site_levels(table, words).axes[0].get_xlabel().startswith(f"{words} (dB)")
