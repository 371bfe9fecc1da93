"""The zoo of networks: its table, the order of training, and the checkpoints that come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import spectral
from spectral.errors import SpectralError
from spectral.experiments import zoo
from spectral.experiments.zoo import ZOO, Entry, list_zoo, plan_training, train_zoo
from spectral.models import list_bundled, load, load_model, model_info
from spectral.models.architectures import build
from spectral.surgery import METHODS
from spectral.training import Recipe, checkpoints, loop
from spectral.training.checkpoints import load_labelled_sets

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
QUICK = {"epochs": 1, "max_lr": 0.01, "batch_size": 8, "precision": "fp32"}
TINY = {
    "net": Entry("resnet8-w4", Recipe(**QUICK)),
    "net-tuned-flc": Entry("resnet8-w4", Recipe(**QUICK), start="net", method="flc"),
    "net-tuned-flc-fgsm": Entry("resnet8-w4", Recipe(attack="fgsm", **QUICK), start="net-tuned-flc"),
    "other": Entry("nula-w2", Recipe(perturb=("clean", "decimate-2"), **QUICK), scale="full"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tiny"
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "0.png")
    return root


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small zoo in the place of the real one, and no bundled networks."""
    monkeypatch.setattr(load, "CHECKPOINT_FOLDERS", (tmp_path / "none",))
    monkeypatch.setattr(zoo, "ZOO", TINY)
    return tmp_path / "out"


# The table --------------------------------------------------------------------------------------------------


def test_the_small_zoo_has_pairs_that_differ_in_their_training():
    assert list_zoo("small") == [
        "resnet20", "resnet20-blurpool", "nula-w32", "nula-w32-robust", "resnet20-tuned-strided",
        "resnet20-tuned-blurpool", "resnet20-tuned-flc", "resnet20-tuned-asap", "resnet20-tuned-wavelet",
        "resnet20-tuned-aps", "resnet20-fgsm", "resnet20-control", "resnet20-blurpool-fgsm",
        "resnet20-blurpool-control", "nula-w32-fgsm", "nula-w32-control", "resnet20-tuned-flc-fgsm",
        "resnet20-tuned-flc-control", "resnet20-tuned-asap-fgsm", "resnet20-tuned-asap-control",
        "resnet20-tuned-wavelet-fgsm", "resnet20-tuned-wavelet-control", "resnet20-tuned-aps-fgsm",
        "resnet20-tuned-aps-control",
    ]  # fmt: skip
    for name in (name for name in list_zoo("small") if name.endswith(zoo.ATTACKED)):
        entry = ZOO[name]
        assert entry.start == name.removesuffix("-fgsm")
        assert entry.architecture == ZOO[entry.start].architecture
        assert entry.recipe == Recipe(epochs=4, max_lr=0.1, attack="fgsm")
        assert ZOO[f"{entry.start}-control"] == replace(
            entry, recipe=Recipe(epochs=4, max_lr=0.1), note="as long without attacks"
        )


def test_the_full_zoo_crosses_networks_layers_and_training_in_bfloat16():
    full = {name: entry for name, entry in ZOO.items() if entry.scale == "full"}
    crossed = {f"{network}{layer}{attack}" for network in ("preact-resnet18", "wrn-28-10")
               for layer in ("", "-blurpool", "-flc") for attack in ("", "-fgsm")}  # fmt: skip
    assert set(full) == crossed | {"nula", "nula-robust"}
    assert {entry.recipe.precision for entry in full.values()} == {"bf16"}
    for name in crossed:
        attacked = name.endswith("-fgsm")
        assert full[name].recipe.attack == ("fgsm" if attacked else None)
        assert full[name].recipe.epochs == (15 if attacked else 200)
        assert full[name].start is None


@pytest.mark.parametrize("name", ZOO)
def test_every_entry_can_be_built_and_starts_from_what_is_before_it(name):
    entry, names = ZOO[name], list(ZOO)
    with torch.device("meta"):
        build(entry.architecture)
    assert entry.method is None or entry.method in METHODS
    assert entry.start is None or names.index(entry.start) < names.index(name)
    assert entry.note


@pytest.mark.parametrize("name", [name for name in list_zoo("small") if name in list_bundled()])
def test_bundled_checkpoints_were_trained_as_the_zoo_says(name):
    entry, info = ZOO[name], model_info(load_model(f"bundled/{name}"))
    assert info.metadata["architecture"] == entry.architecture
    own = vars(entry.recipe)
    for key, value in info.metadata["recipe"].items():
        assert value == (list(own[key]) if isinstance(own[key], tuple) else own[key]), key
    assert (info.metadata["recipe"].get("attack"), "start" in info.metadata) == (
        entry.recipe.attack,
        entry.start is not None,
    )
    if entry.method:
        assert {step["method"] for step in info.metadata["conversion"]["steps"]} == {entry.method}


# The order --------------------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(list(ZOO)), min_size=1), st.sets(st.sampled_from(list(ZOO))))
def test_starts_come_first_and_only_what_is_needed(names, there):
    plan = plan_training(names, there)
    assert set(names) <= set(plan)
    assert len(set(plan)) == len(plan)
    for place, name in enumerate(plan):
        start = ZOO[name].start
        assert start is None or start in there or name in there or start in plan[:place]
    for extra in set(plan) - set(names):
        assert extra not in there
        assert extra in {ZOO[name].start for name in plan}


def test_a_start_that_is_there_is_not_trained():
    assert plan_training(["resnet20-fgsm"], ["resnet20"]) == ["resnet20-fgsm"]
    assert plan_training(["resnet20-fgsm"]) == ["resnet20", "resnet20-fgsm"]


def test_unknown_names_are_one_sentence():
    with pytest.raises(
        SpectralError, match="no network of the zoo is called 'resnet20-fgsn'; nearest: 'resnet20"
    ):
        plan_training(["resnet20-fgsn"])
    with pytest.raises(SpectralError, match="expected names of networks, got none"):
        plan_training([])


# Training ---------------------------------------------------------------------------------------------------


def test_a_chain_is_trained_each_from_the_one_before(tiny, data, capsys):
    sets = load_labelled_sets(str(data))
    paths = train_zoo(["net-tuned-flc-fgsm"], sets, tiny)
    assert [path.stem for path in paths] == ["net", "net-tuned-flc", "net-tuned-flc-fgsm"]
    described = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert [d["recipe"]["attack"] for d in described] == [None, None, "fgsm"]
    assert [d.get("tuned_from") for d in described] == [None, "bundled/net", "bundled/net-tuned-flc"]
    # what the last was tuned from: its start's weights, by their hash
    assert described[2]["start"] == described[1]["weights_id"]
    attacked = load_model(paths[2])
    assert spectral.conversion_report(attacked).method == "flc"
    assert str(tiny.parent) not in "".join(path.with_suffix(".json").read_text() for path in paths)
    assert not (tiny / "training").exists()
    said = capsys.readouterr().out
    assert f"net-tuned-flc-fgsm: test accuracy {described[2]['test_accuracy']:.2%}" in said

    before = [path.stat().st_mtime_ns for path in paths]
    train_zoo(["net", "net-tuned-flc", "net-tuned-flc-fgsm"], sets, tiny)
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert capsys.readouterr().out.count("there already; delete it") == 3


def test_an_interrupted_training_goes_on(tiny, data, monkeypatch):
    sets = load_labelled_sets(str(data))

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train_zoo(["net"], sets, tiny)
    assert list((tiny / "training" / "net").iterdir())

    def never(*args: object) -> None:
        raise AssertionError("an epoch was trained twice")

    monkeypatch.setattr(loop._Course, "run_epoch", never)
    train_zoo(["net"], sets, tiny)
    assert (tiny / "net.safetensors").exists()
    assert not (tiny / "training").exists()


def test_a_bundled_start_is_taken_where_the_folder_has_none(tiny, data, monkeypatch):
    sets = load_labelled_sets(str(data))
    train_zoo(["net"], sets, tiny)
    monkeypatch.setattr(load, "CHECKPOINT_FOLDERS", (tiny,))
    elsewhere = tiny.parent / "elsewhere"
    (path,) = train_zoo(["net-tuned-flc"], sets, elsewhere)
    assert json.loads(path.with_suffix(".json").read_text())["start"].startswith("sha256:")
    assert sorted(file.name for file in elsewhere.iterdir()) == [
        "net-tuned-flc.json",
        "net-tuned-flc.safetensors",
    ]


# The command ------------------------------------------------------------------------------------------------


def test_the_command_trains_a_scale_or_what_is_named(tiny, data):
    common = ["--data", str(data), "--data-id", "made", "--out", str(tiny)]
    run = CliRunner().invoke(zoo.main, [*common, "--scale", "full"])
    assert run.exit_code == 0, run.output
    assert [path.stem for path in tiny.glob("*.safetensors")] == ["other"]
    other = json.loads((tiny / "other.json").read_text())
    assert (other["data_id"], other["recipe"]["perturb"]) == ("made", ["clean", "decimate-2"])
    run = CliRunner().invoke(zoo.main, [*common, "--only", "net, other"])
    assert run.exit_code == 0, run.output
    assert sorted(path.stem for path in tiny.glob("*.safetensors")) == ["net", "other"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "nett"], "no network of the zoo is called 'nett'; nearest: 'net'"),
        (["--only", " , "], "--only names nothing"),
        (["--only", "net"], "has no train/"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    run = CliRunner().invoke(zoo.main, ["--data", str(tmp_path / "empty"), "--out", str(tiny), *arguments])
    assert run.exit_code == 2
    assert sentence in run.output
    assert len(run.output.strip().splitlines()) == 1
