"""What names there are, and the picture of any table."""

from __future__ import annotations

import itertools
import json
import os
import re

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import spectral
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.figures import list_plots, plot_table


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", ("bundled/resnet20", "timm/resnet50", "torchvision/resnet18", "nula/robust")),
        ("layers", ("blurpool", "flc", "aps", "strided")),
        ("metrics", ("avr", "alias_power_ratio", "sis")),
        ("perturbations", ("clean", "resize-0.5", "gaussian-0.05", "checkerboard-0.05-normalised", "fgsm")),
    ],
)
def test_every_name_that_is_listed_first_in_its_line_exists(what, names, tmp_path):
    code, said = run("list", what, "--json", tmp_path / "names.json")
    assert code == 0, said
    listed = {line.split()[0] for line in said.splitlines()[1:]}
    assert set(names) <= listed
    assert {row["name"] for row in json.loads((tmp_path / "names.json").read_text())["rows"]} == listed


def test_a_list_says_what_a_layer_does_and_at_which_taps_a_metric_is_taken():
    assert "blur" in run("list", "layers", "blurpool-5")[1]
    assert "signal" in (medians := run("list", "metrics", "channel_median")[1])
    assert "every" not in medians


def test_words_choose_among_them():
    code, said = run("list", "models", "bundled", "RESNET20")
    assert code == 0
    assert all("bundled/resnet20" in line for line in said.splitlines()[1:])
    code, said = run("list", "layers", "nosuchlayer")
    assert (code, "none of the" in said) == (2, True)


def test_layers_that_are_listed_can_be_put_in():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    for line in run("list", "layers")[1].splitlines()[1:]:
        assert spectral.convert(net, line.split()[0], example=(4, 16, 16)) is not None


@pytest.fixture(scope="module")
def summary():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    table = spectral.measure(net, torch.rand(4, 3, 16, 16), ("avr", "alias_power_ratio"), progress=False)
    return spectral.summarize_measurements(table)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_measurement_has_a_picture(summary, tmp_path, kind):
    summary.to_csv(tmp_path / "summary.csv", index=False)
    words = ("plot", tmp_path / "summary.csv", "--out", tmp_path / f"levels.{kind}")
    code, said = run(*words)
    assert code == 0, said
    assert (tmp_path / f"levels.{kind}").stat().st_size > 2000
    assert run(*words)[0] == 0  # it says itself what wrote it
    (tmp_path / f"levels.{kind}").write_bytes(b"%PDF of somebody else")
    code, said = run(*words)
    assert (code, "wasn't written by this command and would be lost" in said) == (2, True)
    assert (tmp_path / f"levels.{kind}").read_bytes() == b"%PDF of somebody else"


def test_no_file_of_another_origin_is_replaced_by_default_either(summary, tmp_path):
    summary.to_csv(tmp_path / "summary.csv", index=False)
    for command, made in (("report", "page.html"), ("plot", "summary.png")):
        named = tmp_path if command == "report" else tmp_path / "summary.csv"
        (tmp_path / made).write_text("mine")
        code, said = run(command, named)
        assert (code, f"{made} wasn't written by this command" in said) == (2, True)
        (tmp_path / made).write_text("")  # as mktemp leaves it
        assert [run(command, named)[0] for _ in range(2)] == [0, 0]


def test_what_is_listed_takes_the_place_of_json_of_ones_own_alone(tmp_path):
    path = tmp_path / "found.json"
    for what in ("layers", "metrics"):
        assert run("list", what, "--json", path)[0] == 0
    path.write_text('{"mine": true}')
    code, said = run("list", "layers", "--json", path)
    assert (code, "found.json wasn't written by this command" in said) == (2, True)
    assert path.read_text() == '{"mine": true}'


def test_a_link_stays_one_and_a_device_too(tmp_path):
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to("found.json")
    assert [run("list", "layers", "--json", link)[0] for _ in range(2)] == [0, 0]  # at first it leads nowhere
    assert link.is_symlink()
    assert json.loads((tmp_path / "found.json").read_text())["rows"]
    os.mkfifo(pipe)
    code, said = run("list", "layers", "--json", pipe)
    assert (code, "is a device or a pipe; name a file" in said) == (2, True)
    code, said = run("list", "layers", "--json", tmp_path / ("n" * 256))
    assert (code, "can't be written (File name too long)" in said) == (2, True)


NET = """
import torch
from torch import nn
torch.manual_seed(0)
one = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
two = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
images = lambda: torch.rand(2, 3, 8, 8)
"""
IMAGES = ("--images", "net.py:images", "--quiet")
WRITERS = {  # command → its arguments and files
    "sites": (("net.py:one", "--size", "8", "--csv"), ("",)),
    "convert": (("net.py:one", "--size", "8", "--method", "flc", "--out"), ("", ".json")),
    "measure": (("net.py:one", *IMAGES, "--out"), ("summary.csv", "provenance.json")),
    "compare": (
        ("net.py:one", "net.py:two", *IMAGES, "--out"),
        ("compare.csv", "compare.json", "compare.png"),
    ),
    "attribute": (("net.py:one", *IMAGES, "--out"), ("attribute.json", "equivariance.csv")),
    "budget": (
        ("net.py:one", *IMAGES, "--out"),
        ("budget.pdf", "budget_images.csv", "budget_coalitions.json"),
    ),
    "diagnose": (("net.py:one", *IMAGES, "--out"), ("page.html", "tables/provenance.json")),
    "train": (("resnet20", "--data", "data", "--out"), ("resnet20.json", "resnet20.safetensors")),
    "study": (
        ("8", "--models", "net.py:one", "--images", "synthetic", "--limit", "2", "--out"),
        ("tables/codebook.csv", "tables/phase8_models.json", "figures/fig17_architectures_ranking.pdf"),
    ),
    "sweep": (("models.txt", "--images", "synthetic", "--limit", "2", "--out"), ("provenance.json",)),
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "models.txt").write_text("bundled/resnet20@random")
    for folder in itertools.product(("train", "test"), "ab") if command == "train" else ():
        tmp_path.joinpath("data", *folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path.joinpath("data", *folder, "a.png"))
    arguments, files = WRITERS[command]
    for number, file in enumerate(files):
        out = tmp_path / str(number)
        named = out / "net.safetensors" if command in ("sites", "convert") else out
        taken = named.with_suffix(file) if file.startswith(".") else named / file
        taken.mkdir(parents=True)
        code, said = run(command, *arguments, named)
        assert code == 2, said
        assert f"{taken.name} is a folder, and a file is to be written there" in " ".join(said.split())
        assert not any(path.is_file() for path in out.rglob("*"))
        assert not re.search("dense map|flc|means", said)
    code, said = run(command, *arguments, tmp_path / "net.py" / "out.safetensors")
    assert (code, "can't write to" in said) == (2, True)


def test_a_folder_has_its_picture_under_its_whole_name(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    folder = tmp_path / "run-0.5"
    spectral.measure(net, torch.rand(2, 3, 8, 8), ("avr",), taps=("input",), out=folder, progress=False)
    assert run("plot", folder)[0] == 0
    assert (tmp_path / "run-0.5.png").is_file()
    monkeypatch.chdir(folder)
    code, said = run("plot", ".")
    assert (code, said) == (0, "summary: run-0.5.png\n")


def test_the_picture_shows_every_site_and_number(summary):
    name, drawn = plot_table(summary)
    assert name == "summary"
    known = summary[summary["site"].ne("") & summary["mean"].notna()]
    points = [x for ax in drawn.axes for line in ax.lines for x in line.get_xdata()]
    assert sorted(points) == pytest.approx(sorted(known["mean"]))
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["0", "1"]


def test_what_a_table_does_not_allow_is_one_sentence(summary, tmp_path):
    with pytest.raises(SpectralError, match="it allows summary"):
        plot_table(summary, "fixes")
    with pytest.raises(SpectralError, match="no figure is made of"):
        plot_table(pd.DataFrame({"x": [1]}))
    code, said = run("plot", tmp_path / "nothing.csv")
    assert (code, "can't be read as a table" in said) == (2, True)
    summary.to_csv(tmp_path / "s.csv", index=False)
    code, said = run("plot", tmp_path / "s.csv", "--out", tmp_path / "s.gif")
    assert (code, "must end in" in said) == (2, True)


def test_tables_of_a_study_have_theirs():
    from figure_tables import make_tables

    tables = make_tables()
    assert "fig14_tradeoff" in list_plots(tables["phase5_tradeoff"])
