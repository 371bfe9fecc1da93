"""The command: what it prints and writes, and how it ends when something is wrong."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import command
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

import spectral
from spectral import cli
from spectral.errors import SpectralError
from spectral.files.json_files import read_json
from spectral.models import load_model, model_info
from spectral.models.checkpoint import save_checkpoint
from spectral.study.runner import Outcome
from spectral.table.display import format_columns, format_mean, format_rows
from spectral.terminal.console import SpectralCommand, explain_error
from spectral.training import RECIPES, Recipe

RANDOM = "bundled/resnet8@random"
COMMANDS = ("sites", "measure", "compare", "attribute", "budget", "classify", "convert", "train", "study")


def run(*arguments: str | Path, catch: bool = True) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=catch)


def measure(*arguments: str | Path, model: str = RANDOM) -> Result:
    return run("measure", model, "--images", "synthetic", "--limit", "6", "--batch-size", "2", *arguments)


def fails(result: Result, code: int = 2) -> str:
    """The one sentence that a failed command ends with."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.rstrip().endswith(error)
    return error


def write_images(folder: Path, count: int, size: int = 32, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


class Misbehaving(nn.Module):
    """Does something at its third real forward."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act, self.calls = act, 0
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            self.calls += 1
            if self.calls == 3:
                self.act()
        return self.body(x)


@pytest.fixture
def use_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], nn.Module]:
    """Let every name load one model of the test's own."""

    def use(model: nn.Module) -> nn.Module:
        info = model_info(load_model(RANDOM))
        model.spectral_info = dataclasses.replace(info, name="own")
        monkeypatch.setattr(spectral, "load_model", lambda *args, **kwargs: model.eval())
        return model

    return use


def raiser(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_a_description_and_an_example(self, name):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"Example:\n    spectral {name} " in result.output
        description = result.output.split("\n\n")[2]
        assert len(description.split()) > 20

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name != "study"])
    def test_examples_use_options_that_exist(self, name):
        help_text = run(name, "--help").output
        example = next(line for line in help_text.splitlines() if line.startswith(f"    spectral {name}"))
        for option in (word for word in example.split() if word.startswith("--")):
            assert option in help_text.split("Options:")[1]

    def test_the_group_lists_them(self):
        result = run("--help")
        assert all(f"\n  {name} " in result.output for name in COMMANDS)
        assert "Example:" in result.output

    def test_version(self):
        assert run("--version").output == f"spectral, version {spectral.__version__}\n"

    def test_help_needs_no_heavy_import(self):
        code = (
            "import sys, spectral.cli; heavy = {'torch', 'pandas', 'timm', 'matplotlib', 'scipy', 'numpy'}; "
            "print(sorted(heavy & set(sys.modules)))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=command.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout == "[]\n"

    def test_training_help_names_the_recipes_own_values(self):
        recipe = Recipe()
        options = {option.name: option for option in cli.main.commands["train"].params}
        for name in ("epochs", "batch_size", "max_lr", "attack_steps", "seed"):
            assert f"{getattr(recipe, name)} by default" in options[name].help, name
        assert recipe.epsilon == 8 / 255
        assert "8/255 by default" in options["epsilon"].help
        assert all(name in options["recipe_name"].help for name in RECIPES)


class TestSites:
    def test_prints_one_line_per_site(self):
        lines = run("sites", RANDOM).stdout.splitlines()
        assert lines[0] == (
            f"{RANDOM} at 32×32: 4 downsampling sites, 4 with a dense map; 1 global pool apart"
        )
        header = ["name", "op", "kernel", "stride", "input", "output", "channels", "dense", "map"]
        assert lines[1].split() == header
        cells = ["layer2.0.conv1", "conv", "3x3", "2x2", "32x32", "16x16", "16"]
        assert lines[2].split()[:7] == cells
        assert lines[2].endswith("the convolution with stride 1")
        assert len(lines) == 6

    @pytest.mark.parametrize(("size", "entering"), [("40", "40x40"), ("64x48", "64x48"), ("64×48", "64x48")])
    def test_size(self, size, entering):
        assert run("sites", RANDOM, "--size", size).stdout.splitlines()[2].split()[4] == entering

    def test_writes_csv_and_json(self, tmp_path):
        result = run("sites", RANDOM, "--csv", tmp_path / "new" / "s.csv", "--json", tmp_path / "s.json")
        assert result.exit_code == 0
        table = pd.read_csv(tmp_path / "new" / "s.csv")
        content = read_json(tmp_path / "s.json")
        assert table["name"].tolist() == [site["name"] for site in content["sites"]]
        assert (content["model"], content["size"]) == (RANDOM, [32, 32])
        assert content["weights"] == model_info(load_model(RANDOM)).weights_id
        assert run("sites", "bundled/resnet8@random", "--csv", tmp_path / "new" / "s.csv").exit_code == 0
        assert len(pd.read_csv(tmp_path / "new" / "s.csv")) == len(table)
        (tmp_path / "s.csv").write_text("name,grade\nbob,1\n")
        assert "wasn't written by this command" in fails(run("sites", RANDOM, "--csv", tmp_path / "s.csv"))

    def test_gives_the_reason_where_there_is_no_dense_map(self, use_model):
        use_model(nn.Sequential(nn.AdaptiveAvgPool2d(5), nn.Flatten()))
        lines = run("sites", "any").stdout.splitlines()
        assert lines[0].endswith("1 downsampling site, 0 with a dense map; 0 global pools apart")
        assert lines[2].endswith("none: adaptive pool from 32×32 to 5×5: its windows are unequal")

    def test_a_model_without_sites_is_an_answer(self, use_model):
        use_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()))
        result = run("sites", "any")
        assert (result.exit_code, result.stdout) == (
            0,
            "any at 32×32: 0 downsampling sites, 0 with a dense map; 0 global pools apart\n",
        )

    def test_a_weights_file_needs_its_architecture_or_a_json(self, tmp_path):
        path = save_checkpoint(load_model(RANDOM), tmp_path / "own.safetensors", {"architecture": "resnet8"})
        assert run("sites", path).exit_code == 0
        path.with_suffix(".json").unlink()
        assert "weights alone don't say which network" in fails(run("sites", path))
        assert "4 downsampling sites" in run("sites", path, "--architecture", "resnet8").stdout


class TestMeasure:
    def test_says_first_what_is_measured(self):
        first = measure("--metrics", "avr").stdout.splitlines()[0]
        weights = model_info(load_model(RANDOM)).weights_id
        assert first == (
            f"measuring {RANDOM}, weights {weights} (random weights, not trained), on 6 images of synthetic "
            f"at 32×32"
        )

    def test_prints_means_of_sites_and_model_and_a_bar_on_stderr(self):
        result = measure("--metrics", "sis,avr,am")
        lines = result.stdout.splitlines()
        table = spectral.measure(
            load_model(RANDOM), spectral.load_images("synthetic", size=32, limit=6), ("avr", "am", "sis"),
            batch_size=2, progress=False,
        )  # fmt: skip
        summary = spectral.summarize_measurements(table).set_index(["site", "tap", "metric"])

        def written(site: str, tap: str, metric: str) -> str:
            row = summary.loc[(site, tap, metric)]
            return format_mean(row["mean"], row["ci_low"], row["ci_high"])

        header = next(i for i, line in enumerate(lines) if line.startswith("site "))
        assert lines[header].split() == ["site", "op", "stride", "tap", "avr", "am"]
        dense = next(line for line in lines if line.startswith("layer3.0.conv1 ") and " dense " in line)
        expected = [written("layer3.0.conv1", "dense", metric) for metric in ("avr", "am")]
        assert re.split(r"\s{2,}", dense)[4:] == expected
        assert f"whole model: sis {written('', '', 'sis')}" in lines
        assert max(map(len, lines[1:])) <= 100
        assert "6/6" in result.stderr
        assert "6/6" not in result.stdout

    def test_out_has_everything_and_the_same_command_continues(self, tmp_path):
        result = measure("--metrics", "avr", "--out", tmp_path / "run")
        assert result.exit_code == 0
        names = sorted(path.name for path in (tmp_path / "run").iterdir())
        assert names == ["measurements", "provenance.json", "sites.csv", "summary.csv"]
        summary = pd.read_csv(tmp_path / "run" / "summary.csv")
        assert summary.groupby("metric")["n"].unique().str[0].to_dict() == {"avr": 6, "confidence": 6}
        assert len(pd.read_csv(tmp_path / "run" / "sites.csv")) == 4
        provenance = read_json(tmp_path / "run" / "provenance.json")
        assert (provenance["model"], provenance["seed"], provenance["limit"]) == (RANDOM, 0, 6)
        assert result.stdout.rstrip().endswith(f"written to {tmp_path / 'run'}")
        (tmp_path / "run" / "measurements" / "shard-000001.parquet").unlink()
        again = measure("--metrics", "avr", "--out", tmp_path / "run")
        assert again.stdout.rstrip().endswith("4 of 6 images measured earlier")
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "summary.csv"), summary)

    def test_another_configuration_in_the_folder_is_refused(self, tmp_path):
        assert measure("--metrics", "avr", "--out", tmp_path).exit_code == 0
        assert "holds measurements with metrics = " in fails(measure("--metrics", "am", "--out", tmp_path))

    def test_skipped_files_are_named_in_one_line_and_counted(self, tmp_path):
        write_images(tmp_path / "images", 2)
        (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
        result = run("measure", RANDOM, "--images", tmp_path / "images", "--metrics", "avr")
        assert result.exit_code == 0
        assert "on 2 images of folder:images at 32×32; 1 broken file(s) skipped" in result.stdout
        (warning,) = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
        assert "broken.jpg" in warning

    def test_samples_of_one_photograph_count_as_one(self, tmp_path):
        result = run("measure", RANDOM, "--limit", "70", "--metrics", "avr", "--out", tmp_path)
        assert "70 images of samples" in result.stdout
        images = spectral.load_images("samples", size=32, limit=70)
        table = spectral.measure(load_model(RANDOM), images, ("avr",), progress=False)
        rows = table[table["reason"] == ""]
        clusters = rows["image"].map({name: name.split("-", 1)[1] for name in images.ids})
        assert (rows["cluster"] == clusters).all()
        assert f"70 images of {clusters.nunique()} clusters (photographs)" in result.stdout
        expected = spectral.summarize_measurements(table)
        written = pd.read_csv(tmp_path / "summary.csv")
        np.testing.assert_allclose(written["ci_low"], expected["ci_low"], rtol=1e-4)

    def test_unmeasurable_sites_and_silent_maps_are_shown(self, use_model):
        net = nn.Sequential(
            nn.AdaptiveAvgPool2d(5), nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 3, 1, 2), nn.Flatten()
        )  # fmt: skip
        net[1].bias.data.fill_(-100)
        use_model(net)
        lines = measure("--metrics", "avr").stdout.splitlines()
        assert "not measured: 0 (avg_pool): adaptive pool from 32×32 to 5×5: its windows are unequal" in lines
        header = next(line for line in lines if line.startswith("site "))
        assert header.split() == ["site", "op", "stride", "tap", "silent", "avr"]
        silent = next(line for line in lines if line.startswith("3 ") and " input " in line)
        assert silent.split() == ["3", "conv", "2x2", "input", "6", "silent"]

    def test_an_interruption_that_became_another_error_is_one(self, tmp_path, interruptible):
        """As torch drops it while it imports numpy, and fails at what it then lacks."""
        code = """
import signal

def build():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("Numpy is not available")
"""
        (tmp_path / "own.py").write_text(code)
        result = run("sites", f"{tmp_path / 'own.py'}:build")
        assert result.exit_code == 130
        assert result.stderr.splitlines() == [
            "", "Interrupted; what was written is kept, and the same command continues from there.",
        ]  # fmt: skip

    def test_an_interruption_keeps_what_was_written(self, use_model, tmp_path):
        net = use_model(Misbehaving(raiser(KeyboardInterrupt())))
        result = measure("--metrics", "avr", "--out", tmp_path)
        assert result.exit_code == 130
        assert result.stderr.rstrip().endswith(
            "Interrupted; what was written is kept, and the same command continues from there."
        )
        assert len(list((tmp_path / "measurements").glob("shard-*.parquet"))) == 2
        assert net.calls == 3
        again = measure("--metrics", "avr", "--out", tmp_path)
        assert again.exit_code == 0
        assert again.stdout.rstrip().endswith("4 of 6 images measured earlier")

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (ValueError("a dimension\nis wrong"), "Error: the forward of own failed on images of shape"),
            (
                torch.OutOfMemoryError("CUDA out of memory"),
                "Error: out of memory; try a smaller --batch-size",
            ),
            (
                RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                "Error: out of memory; try a smaller",
            ),
            (MemoryError(), "Error: out of memory; try a smaller"),
        ],
    )
    def test_a_forward_that_raises_is_one_sentence(self, use_model, error, sentence):
        use_model(Misbehaving(raiser(error)))
        assert fails(measure("--metrics", "avr")).startswith(sentence)


class TestTrain:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        for split in ("train", "test"):
            for seed, name in enumerate(("cat", "dog")):
                write_images(tmp_path / "pets" / split / name, 3, seed=seed)
        return tmp_path / "pets"

    def test_writes_a_checkpoint_that_loads_and_continues_by_the_same_command(self, data, tmp_path):
        arguments = ("train", "resnet8", "--data", data, "--out", tmp_path / "out", "--epochs", "1",
                     "--batch-size", "4", "--seed", "3", "--precision", "fp32")  # fmt: skip
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[0] == "training resnet8 on 6 images of pets, testing on 6"
        path = tmp_path / "out" / "resnet8.safetensors"
        described = read_json(path.with_suffix(".json"))
        assert described["recipe"]["seed"] == 3
        assert (described["data_id"], described["classes"]) == ("pets", ["cat", "dog"])
        assert f"test accuracy {described['test_accuracy']:.2%}; weights in {path}" in result.stdout
        info = model_info(load_model(path))
        assert (info.family, info.preprocessing.size, info.weights_id) == (
            "strided", (32, 32), described["weights_id"],
        )  # fmt: skip
        state = tmp_path / "out" / "training" / "resnet8" / "training-state.pt"
        before = state.stat().st_mtime_ns
        assert run(*arguments).exit_code == 0
        assert state.stat().st_mtime_ns == before
        assert read_json(path.with_suffix(".json")) == described
        assert "holds a run with recipe" in fails(run(*arguments[:-4], "--seed", "4"))
        state.unlink()
        weights = path.read_bytes()
        again = fails(run(*arguments[:-4], "--seed", "4"))
        assert again.endswith("choose another folder, or delete it to train it again")
        assert path.read_bytes() == weights

    @pytest.mark.parametrize(
        ("options", "stem", "kept"),
        [
            (("--recipe", "nula-robust"), "resnet8-robust", {"attack": None}),
            (("--attack", "fgsm", "--epsilon", "0.05"), "resnet8-fgsm", {"epsilon": 0.05}),
            (("--recipe", "pgd", "--attack-steps", "1"), "resnet8-pgd", {"attack_steps": 1}),
            (("--perturb", "clean,decimate-2"), "resnet8-robust", {"perturb": ["clean", "decimate-2"]}),
            (("--schedule", "step", "--ema", "0.9"), "resnet8", {"schedule": "step", "ema": 0.9}),
        ],
    )
    def test_recipes_by_name_and_value(self, options, stem, kept, data, tmp_path):
        result = run("train", "resnet8", "--data", data, "--out", tmp_path, "--epochs", "1", *options)
        assert result.exit_code == 0, result.output
        recipe = read_json(tmp_path / f"{stem}.json")["recipe"]
        assert {key: recipe[key] for key in kept} == kept
        assert recipe["epochs"] == 1

    def test_a_bundled_network_is_tuned_under_attack(self, data, tmp_path):
        result = run("train", "--from", "bundled/resnet20", "--method", "flc", "--attack", "fgsm",
                     "--epochs", "1", "--data", data, "--out", tmp_path)  # fmt: skip
        assert result.exit_code == 0, result.output
        described = read_json(tmp_path / "resnet20-flc-fgsm.json")
        assert (described["tuned_from"], described["recipe"]["max_lr"]) == ("bundled/resnet20", 0.02)

    def test_the_data_id_can_be_given(self, data, tmp_path):
        arguments = ("--epochs", "1", "--data-id", "two-pets", "--precision", "fp32")
        run("train", "resnet8", "--data", data, "--out", tmp_path / "out", *arguments)
        assert read_json(tmp_path / "out" / "resnet8.json")["data_id"] == "two-pets"

    def test_the_original_cifar10_is_asked_for_by_name(self, monkeypatch, tmp_path):
        asked = []

        def load(root: Any, split: str, source: str) -> tuple[Tensor, Tensor, list[str]]:
            asked.append((root, split, source))
            return torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ["cat", "dog"]

        monkeypatch.setattr("spectral.data.load_labelled_arrays", load)
        options = ("--epochs", "1", "--precision", "fp32")
        assert run("train", "resnet8", "--data", "cifar10", "--out", tmp_path, *options).exit_code == 0
        assert asked == [(None, "train", "cifar10"), (None, "test", "cifar10")]
        assert read_json(tmp_path / "resnet8.json")["data_id"] == "cifar10"

    def test_unsuitable_data(self, data, tmp_path):
        def train(folder: Path) -> str:
            return fails(run("train", "resnet8", "--data", folder, "--out", tmp_path / "out"))

        assert "has no train/" in train(data / "train")
        (data / "test" / "dog").rename(data / "test" / "dogs")
        assert "must have the same classes, got cat, dog and cat, dogs" in train(data)
        (data / "test" / "dogs").rename(data / "test" / "dog")
        for split in ("train", "test"):
            for i in range(9):
                write_images(data / split / f"{i}", 1)
        assert "expected 2 to 10 classes" in train(data)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("resnet21",), "unknown architecture 'resnet21'; nearest: 'resnet20'"),
            (("resnet20", "--device", "abacus"), "device 'abacus' can't be used"),
            (("resnet20", "--recipe", "nula"), "unknown recipe 'nula'; nearest: 'nula-robust'"),
            (("resnet20", "--perturb", "resize-2"), "Resize: scale must be between 0 and 1, got 2.0"),
            (("resnet20", "--perturb", "blur"), "unknown perturbation 'blur'"),
            (("resnet20", "--epsilon", "0"), "Invalid value for '--epsilon'"),
        ],
    )
    def test_what_is_wrong_is_said_before_images_are_read(self, arguments, sentence, tmp_path):
        assert sentence in fails(run("train", *arguments, "--data", tmp_path / "no", "--out", tmp_path))


class TestStudy:
    def test_passes_phases_and_options_on(self, monkeypatch, tmp_path):
        calls = []

        def take(phases, options):
            calls.append((tuple(phases), options))
            return Outcome([], {})

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("spectral.study.runner.run_phases", take)
        assert run("study", "3", "4", "--limit", "9", "--out", "somewhere").exit_code == 0
        assert run("study").exit_code == 0
        (chosen, options), (every, defaults) = calls
        assert (chosen, options.limit, options.out) == ((3, 4), 9, Path("somewhere"))
        assert (every, defaults.preset) == ((1, 2, 3, 4, 5), "bundled")


class TestEndings:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("sites", "bundled/resnet2@random"), "unknown architecture 'resnet2'; nearest: 'resnet20'"),
            (("sites", "resnet20"), "unknown model 'resnet20'"),
            (("sites", "missing.safetensors"), "there is no such weights file"),
            (("sites", RANDOM, "--size", "0"), "'0' is no size; expected a side"),
            (("sites", RANDOM, "--size", "3x4x5"), "'3x4x5' is no size"),
            (("sites", RANDOM, "--csv", "/dev/null/x.csv"), "can't write to /dev/null"),
            (("measure", RANDOM, "--images", "sample"), "unknown images 'sample'.*nearest: 'samples'"),
            (("measure", RANDOM, "--images", "no/such/folder"), "no folder 'no/such/folder'"),
            (("measure", RANDOM, "--limit", "0"), "Invalid value for '--limit'"),
            (("measure", RANDOM, "--device", "abacus"), "device 'abacus' can't be used"),
            (("measure", RANDOM, "--out", "/dev/null/x"), "can't write to /dev/null/x"),
            (("measure", RANDOM, "--metrics", "avr,amm", "--images", "synthetic"), "unknown metric 'amm'"),
            (("measure", RANDOM, "--metrics", " , ", "--images", "synthetic"), "metrics is empty"),
            (("measure", RANDOM, "--taps", "inputs", "--images", "synthetic"), "unknown tap 'inputs'"),
            (("diagnose", RANDOM, "--methods", "photos"), "called 'photos'; choose one of strided,"),
            (("sites", "timm/resnet18", "--weights", "."), r"\. is a folder; name a weights file in it"),
            (("report", __file__), r"there is no folder .*test_cli\.py"),
            (("plot", "no.csv"), r"no\.csv can't be read as a table \(No such file .*\); pass a CSV file"),
            (("classify", f"{Path(__file__).parent}/dying.py:build", "a.png"), r"pass .*--mean and --std\)$"),
            (("measure",), "Missing argument 'MODEL'"),
            (("measures",), "No such command 'measures'"),
        ],
    )  # fmt: skip
    def test_bad_input_is_one_sentence_and_code_2(self, arguments, sentence):
        assert re.search(sentence, fails(run(*arguments)))

    def test_empty_and_broken_folders(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "no images in folder" in fails(run("measure", RANDOM, "--images", tmp_path / "empty"))
        (tmp_path / "empty" / "broken.png").write_bytes(b"nothing")
        assert "could be read" in fails(run("measure", RANDOM, "--images", tmp_path / "empty"))

    def test_a_full_disk_is_one_sentence(self, monkeypatch, tmp_path):
        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device", "shard")

        monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
        sentence = fails(measure("--metrics", "avr", "--out", tmp_path))
        assert sentence == "Error: can't read or write shard (No space left on device)"

    def test_a_defect_says_how_to_see_more(self, monkeypatch):
        def broken(*args: Any, **kwargs: Any) -> None:
            raise KeyError("lost")

        monkeypatch.setattr(spectral, "find_reductions", broken)
        assert (
            fails(run("sites", RANDOM), code=1)
            == "Error: unexpected KeyError: 'lost'; SPECTRAL_DEBUG=1 shows where"
        )
        monkeypatch.setenv("SPECTRAL_DEBUG", "1")
        with pytest.raises(KeyError, match="lost"):
            run("sites", RANDOM, catch=False)

    def test_other_scripts_share_the_endings(self):
        @click.command(cls=SpectralCommand)
        @click.option("--stride", type=int)
        def script(stride: int) -> None:
            raise SpectralError(f"stride must be ≥ 1,\n got {stride}")

        result = CliRunner().invoke(script, ["--stride", "0"])
        assert fails(result) == "Error: stride must be ≥ 1, got 0"

    @pytest.mark.slow
    def test_in_a_process_of_its_own(self, tmp_path, monkeypatch):
        """An interruption in the middle: its exit code and no traceback."""
        network, shards = f"{Path(__file__).with_name('dying.py')}:build", "measurements/shard-*.parquet"
        monkeypatch.setenv("SPECTRAL_TEST_WAITS", str(tmp_path / shards))
        images = ("--images", "synthetic", "--limit", "8", "--batch-size", "4", "--size", "16")
        interrupted = command.start("measure", network, *images, "--metrics", "avr", "--out", tmp_path)
        command.wait_until(lambda: any(tmp_path.glob(shards)), interrupted)
        interrupted.send_signal(signal.SIGINT)
        _, err = interrupted.communicate(timeout=600)
        assert interrupted.returncode == 130, err
        assert "Traceback" not in err
        assert err.rstrip().endswith("the same command continues from there.")
        assert spectral.read(tmp_path)["image"].nunique() == 4


class TestFormatting:
    def test_rows_are_aligned(self):
        assert format_rows(["a", "bb"], [["1", "2"], ["333", "4"]]) == "a    bb\n1    2\n333  4"
        assert format_rows(["a", "b"], []) == "a  b"

    def test_columns_that_do_not_fit_start_a_new_table_without_empty_rows(self):
        text = format_columns(
            ["k", "x", "y", "z"], [["1", "aaaa", "bbbb", "-"], ["2", "-", "-", "cccc"]], 1, 13
        )
        assert text == "k  x     y\n1  aaaa  bbbb\n\nk  z\n2  cccc"
        wide = format_columns(["k", "x"], [["1", "a" * 50]], 1, 10)
        assert wide == "k  x\n1  " + "a" * 50

    def test_a_row_without_any_value_is_in_the_first_table(self):
        rows = [["1", "aaaa", "bbbb", "cccc"], ["2", "-", "-", "-"]]
        text = format_columns(["k", "x", "y", "z"], rows, 1, 13)
        assert text == "k  x     y\n1  aaaa  bbbb\n2  -     -\n\nk  z\n1  cccc"

    @pytest.mark.parametrize(
        ("mean", "half", "text"),
        [
            (0.43117, 0.00233, "0.4312 ± 0.0023"),
            (3.2319, 0.2286, "3.23 ± 0.23"),
            (1234.5, 56.7, "1234 ± 57"),
            (0.25, 0.0, "0.25 ± 0"),
            (4.21e-10, 1.8e-10, "4.21e-10 ± 1.8e-10"),
            (float("nan"), float("nan"), "-"),
            (1 / 3, float("nan"), "0.3333"),
        ],
    )
    def test_a_mean_has_the_digits_that_its_interval_allows(self, mean, half, text):
        assert format_mean(mean, mean - half, mean + half) == text

    def test_a_lopsided_interval_has_both_of_its_ends(self):
        assert format_mean(-0.018, -0.031, 0.002) == "-0.018 (-0.031 to 0.0020)"  # which −0.018 ± 0.017 isn't
        assert format_mean(0.018, 0.00459, 0.0437) == "0.018 (0.0046 to 0.044)"
        assert format_mean(4.77e-8, 0.0, 1.58e-7) == "4.8e-08 (0 to 1.6e-07)"  # ± would go below

    def test_errors_are_explained_by_kind(self):
        assert explain_error(OSError("just text")) == ("just text", 2)
        assert explain_error(AssertionError()) == (
            "unexpected AssertionError: AssertionError; SPECTRAL_DEBUG=1 shows where",
            1,
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", RANDOM, "--images", "synthetic", "--limit", "2"),
        ("compare", RANDOM, f"{RANDOM}+flc", "--images", "synthetic", "--limit", "2"),
        ("train", "resnet20", "--data", "cifar10"), ("convert", RANDOM, "--method", "flc"), ("study", "8"),
    ],
)  # fmt: skip
def test_an_empty_output_folder_is_not_the_current_one(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for empty in ("", " "):
        assert "is empty; name a file or folder" in fails(run(*arguments, "--out", empty))
    assert "zero byte" in fails(run(*arguments, "--out", "a\0b"))
    assert list(tmp_path.iterdir()) == []


def test_json_of_ones_own_takes_the_place_of_nothing_that_a_folder_needs(tmp_path):
    out = tmp_path / "run"
    for name in ("provenance.json", "measurements/_run.json"):  # at the first call, none of them is there yet
        error = fails(measure("--metrics", "sis", "--out", out, "--json", out / name))
        assert f"{name} says what the files beside it are, which would be lost; choose another" in error
    again = measure("--metrics", "sis", "--out", out)
    assert again.exit_code == 0
    assert "6 of 6 images measured earlier" in again.stdout


def test_tables_of_somebody_else_are_not_replaced(tmp_path):
    asked = ("--metrics", "sis", "--out", tmp_path)
    (tmp_path / "sites.csv").write_text("place,visitors\n")
    assert "sites.csv stands there without provenance.json" in fails(measure(*asked))
    (tmp_path / "provenance.json").write_text('{"mine": true}')
    assert "provenance.json stands there and tells of no table" in fails(measure(*asked))
    (tmp_path / "sites.csv").unlink()
    assert "provenance.json stands there and tells of no table" in fails(measure(*asked))
    (tmp_path / "provenance.json").unlink()
    assert [path.name for path in tmp_path.iterdir()] == []
    assert measure(*asked).exit_code == 0
    shutil.rmtree(tmp_path / "measurements")  # by hand: the tables still say what they are of
    assert "summary.csv is of seed = 0, not 1" in fails(measure(*asked, "--seed", 1))
    assert "summary.csv is of metrics = " in fails(measure("--metrics", "avr", "--out", tmp_path))
    assert measure(*asked).exit_code == 0
    told = fails(run("sites", RANDOM, "--csv", tmp_path / "sites.csv"))
    assert "sites.csv is a table of which provenance.json tells; choose another file" in told


def test_convert_refuses_names_that_it_could_not_load_again(tmp_path):
    out = tmp_path / "net.pth"
    assert "must end in .safetensors" in fails(run("convert", RANDOM, "--method", "flc", "--out", out))
    assert not out.exists()
