"""Weights files as libraries leave them: the network and the normalisation that they were made with."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn
from torchvision import models

from spectral.errors import SpectralError, SpectralWarning
from spectral.models import load_model
from spectral.models.preprocessing import find_preparation

FACTS = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125), "input_size": (3, 96, 80)}
NAME = "test_resnet"  # timm's smallest


def leave(folder: Path, name: str = NAME, facts: dict[str, Any] = FACTS, **arguments: Any) -> nn.Module:
    """Have timm write a network and its configuration into a folder, as for the Hub."""
    model = timm.create_model(name, **arguments).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **facts}
    save_for_hf(model, folder, safe_serialization=True)
    return model


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("architecture", [None, f"timm/{NAME}", f"timm/{NAME}.r160_in1k"])
def test_what_timm_writes_beside_weights_holds(architecture, tmp_path):
    theirs = leave(tmp_path, num_classes=3, global_pool="max")
    config = json.loads((tmp_path / "config.json").read_text())
    # Earlier versions of timm leave out with what arguments a network was made.
    config |= {"label_names": ["ant", "bee", "cow"], "model_args": {"global_pool": "max"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path / "model.safetensors", architecture=architecture)
    assert torch.equal(output(model), output(theirs))
    found, info = find_preparation(model), model.spectral_info
    assert (found.mean, found.std, found.size) == (FACTS["mean"], FACTS["std"], (96, 80))
    assert (info.num_classes, info.classes) == (3, ("ant", "bee", "cow"))
    assert tmp_path / "config.json" in info.files


def test_the_users_word_goes_before_timms(tmp_path):
    leave(tmp_path)
    model = load_model(
        tmp_path / "model.safetensors", mean=0.5, std=0.5, input_size=64, architecture=f"timm/{NAME}"
    )
    assert (find_preparation(model).mean, find_preparation(model).size) == ((0.5,) * 3, (64, 64))


def test_a_configuration_of_another_network_is_none_of_these_weights(tmp_path):
    leave(tmp_path)
    with pytest.raises(SpectralError, match=f"says 'timm/{NAME}', but architecture='timm/resnet18'"):
        load_model(tmp_path / "model.safetensors", architecture="timm/resnet18")
    own = timm.create_model(NAME)
    safetensors.torch.save_file(own.state_dict(), tmp_path / "mine.safetensors")
    model = load_model(tmp_path / "mine.safetensors", architecture=f"timm/{NAME}")
    assert model.spectral_info.preprocessing.mean == own.pretrained_cfg["mean"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (
            {"model_args": {"checkpoint_path": "other.pth"}},
            "with checkpoint_path='other.pth', which the name",
        ),
        (
            {"model_args": {"act_layer": "gelu"}},
            "with act_layer='gelu', which the name timm/test_resnet doesn't",
        ),
        (
            {"pretrained_cfg": {"mean": ["a"], "std": [1]}},
            "expected size as .height, width. and mean and std",
        ),
        ({"pretrained_cfg": {"input_size": "large"}}, "expected size as .height, width. and mean and std"),
    ],
)
def test_a_configuration_that_cant_be_followed_is_refused(facts, why, tmp_path):
    leave(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | facts))
    with pytest.raises(SpectralError, match=why):
        load_model(tmp_path / "model.safetensors", architecture=f"timm/{NAME}")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "vit"}', '{"architecture": 3}'])
def test_a_configuration_of_nothing_known(content, tmp_path):
    theirs = leave(tmp_path)
    (tmp_path / "config.json").write_text(content)
    if content == "{":
        with pytest.raises(SpectralError, match=r"config\.json is no JSON"):
            load_model(tmp_path / "model.safetensors", architecture=f"timm/{NAME}")
    else:
        model = load_model(tmp_path / "model.safetensors", architecture=f"timm/{NAME}")
        assert torch.equal(output(model), output(theirs))


def test_weights_of_a_compiled_network(tmp_path):
    theirs = timm.create_model(NAME).eval()
    torch.save(torch.compile(theirs).state_dict(), tmp_path / "x.pt")
    assert torch.equal(output(load_model(tmp_path / "x.pt", architecture=f"timm/{NAME}")), output(theirs))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_normalise_again_where_they_are_published(name, tmp_path, monkeypatch):
    """torchvision's own file is known by its digest, which stands in its name."""
    path = tmp_path / "weights.pth"
    torch.save(models.get_model(name, weights=None, init_weights=False).state_dict(), path)
    with pytest.warns(SpectralWarning, match=r"doesn't tell whether .*\(transform_input\)"):
        assert not load_model(path, architecture=f"torchvision/{name}").transform_input
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    facts = models.get_model_weights(name).DEFAULT.value
    monkeypatch.setattr(facts, "url", f"https://example.org/{name}-{digest}.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectralWarning)
        assert load_model(path, architecture=f"torchvision/{name}").transform_input


def write_parts(folder: Path, state: dict[str, torch.Tensor], kind: str = "safetensors") -> Path:
    """Write weights into two files and the index of both, as transformers does."""
    names = list(state)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    placed: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"{stem}-{number:05d}-of-00002.{kind}"
        own = {name: state[name].clone() for name in part}
        safetensors.torch.save_file(own, file) if kind == "safetensors" else torch.save(own, file)
        placed |= dict.fromkeys(part, file.name)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files_are_read_by_their_index(kind, tmp_path):
    theirs = timm.create_model(NAME).eval()
    index = write_parts(tmp_path, theirs.state_dict(), kind)
    for model in (load_model(f"timm/{NAME}@{index}"), load_model(index, architecture=f"timm/{NAME}")):
        assert torch.equal(output(model), output(theirs))
    part = next(tmp_path.glob(f"*-00002-of-00002.{kind}"))
    assert part in load_model(index, architecture=f"timm/{NAME}").spectral_info.files
    with pytest.raises(SpectralError, match=f"one of several .*; give their index, {index.name}"):
        load_model(part, architecture=f"timm/{NAME}")
    part.unlink()
    with pytest.raises(SpectralError, match=f"there is no {part.name} beside it"):
        load_model(index, architecture=f"timm/{NAME}")
    for file in ("../../etc/passwd", ""):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        with pytest.raises(SpectralError, match="tells no files of weights"):
            load_model(index, architecture=f"timm/{NAME}")


def test_weights_as_their_authors_wrote_them_fit_timms_network(tmp_path):
    theirs = timm.create_model("convnext_atto", num_classes=3).eval()
    published = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in (
            ("stem.", "downsample_layers.0."), (".conv_dw.", ".dwconv."), (".mlp.fc", ".pwconv"),
            ("head.norm.", "norm."), ("head.fc.", "head."), (".blocks.", "."),
        ):  # fmt: skip
            name = name.replace(new, old)
        if ".downsample." in name:
            _, stage, _, rest = name.split(".", 3)
            name = f"downsample_layers.{stage}.{rest}"
        published[name] = tensor
    torch.save({"model": published}, tmp_path / "convnext.pth")
    with pytest.warns(SpectralWarning, match="timm's own function renames them"):
        model = load_model(tmp_path / "convnext.pth", architecture="timm/convnext_atto", classes=3)
    assert torch.equal(output(model), output(theirs))
    with pytest.raises(SpectralError, match="unknown to the model"):
        load_model(tmp_path / "convnext.pth", architecture="timm/test_convnext", classes=3)
