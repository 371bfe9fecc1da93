"""NULA from the Hugging Face hub and RobustBench's models from their files: all made here, none fetched."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_models_load import Payload, assert_same_state, info_of, put_on_hf_hub, seeded
from torch import Tensor, nn

from spectral.classes import CIFAR10_CLASSES
from spectral.errors import SpectralError, SpectralWarning
from spectral.models import robustbench
from spectral.models.architectures import build
from spectral.models.checkpoint import strip_wrappers
from spectral.models.info import Preprocessing
from spectral.models.load import load_model
from spectral.models.nula import NULA
from spectral.models.weights_id import hash_state

REPOSITORY = "MamaPearl/nula-cifar10-robust-v0"
SMALL = "wrn-10-1-w4"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.fixture
def hf_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, offline."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of RobustBench's files under an empty data root."""
    monkeypatch.setenv("SPECTRAL_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "models" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def small_carmon(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Let Carmon2019Unlabeled be a small network of the same kind; returns weights for it."""
    published = replace(robustbench.MODELS["Carmon2019Unlabeled"], architecture=SMALL)
    monkeypatch.setitem(robustbench.MODELS, "Carmon2019Unlabeled", published)
    return wide_state()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[str]]:
    """Let every download give these bytes; the list collects the addresses."""

    def give(data: bytes) -> list[str]:
        asked: list[str] = []

        def download(url: str, target: str, progress: bool = True) -> None:
            asked.append(url)
            Path(target).write_bytes(data)

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        return asked

    return give


def wide_state(seed: int = 3) -> dict[str, Tensor]:
    return dict(seeded(lambda: build(SMALL), seed).state_dict())


def file_bytes(content: object, path: Path) -> bytes:
    torch.save(content, path)
    data = path.read_bytes()
    path.unlink()
    return data


def put_nula(hub: Path, state: dict[str, Tensor]) -> None:
    put_on_hf_hub(hub, REPOSITORY, "model.safetensors", safetensors.torch.save(state))


# --- NULA -----------------------------------------------------------------------------------------------


def test_nula_is_read_from_the_cache_into_our_own_module(hf_hub: Path, no_network: list[object]) -> None:
    expected = dict(seeded(NULA).state_dict())
    put_nula(hf_hub, expected)
    model = load_model("nula/robust")
    assert type(model) is NULA
    assert_same_state(model, expected)
    assert sum(tensor.numel() for tensor in expected.values()) == 5_218_763  # 5.22 M
    info = info_of(model)
    assert (info.name, info.family, info.weights_id) == ("nula/robust", "nula", hash_state(expected))
    assert info.preprocessing == Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    assert info.classes == tuple(CIFAR10_CLASSES)
    assert info.metadata["hf_hub_id"] == REPOSITORY
    assert no_network == []


def test_nula_in_a_wrapper(hf_hub: Path) -> None:
    expected = dict(seeded(NULA).state_dict())
    put_nula(hf_hub, {f"model.{name}": tensor for name, tensor in expected.items()})
    assert_same_state(load_model("nula/robust"), expected)


def rename_nula(name: str) -> str:
    """As another author might have called the same modules."""
    others = {"head": "classifier", "bn": "norm", "stage1": "first", "stage2": "second", "stage3": "third",
              "se.": "squeeze.", "reduce": "down", "expand": "up"}  # fmt: skip
    for old, new in others.items():
        name = name.replace(old, new)
    return name


def test_nula_under_other_names_is_matched_by_shape_and_order(hf_hub: Path) -> None:
    """safetensors keep names in the order of the alphabet, not of the network."""
    expected = dict(seeded(NULA).state_dict())
    renamed = {rename_nula(name): tensor for name, tensor in expected.items()}
    assert len(set(renamed) - set(expected)) > 50
    put_nula(hf_hub, renamed)
    with pytest.warns(SpectralWarning, match="matched by shape and order, which is possible in one way only"):
        model = load_model("nula/robust")
    assert_same_state(model, expected)


def test_names_that_leave_a_doubt_are_not_matched(hf_hub: Path) -> None:
    renamed = {rename_nula(name).replace("norm1", "before").replace("norm2", "behind"): tensor
               for name, tensor in seeded(NULA).state_dict().items()}  # fmt: skip
    put_nula(hf_hub, renamed)  # two norms of one block have the same shape: which is the first?
    with pytest.raises(SpectralError, match="missing from the file"):
        load_model("nula/robust")


def test_other_names_and_shapes_are_listed_on_both_sides(hf_hub: Path) -> None:
    state = dict(seeded(NULA).state_dict())
    state["head.fc1.weight"] = state.pop("head.0.weight")
    state["stem.0.weight"] = torch.zeros(64, 3, 3, 3)
    put_nula(hf_hub, state)
    with pytest.raises(SpectralError, match="nula/robust: ") as caught:
        load_model("nula/robust")
    message = str(caught.value)
    assert "1 missing from the file: head.0.weight" in message
    assert "1 unknown to the model: head.fc1.weight" in message
    assert "1 of another shape: stem.0.weight (64, 3, 3, 3) for (128, 3, 3, 3)" in message
    assert "\n" not in message


def test_a_truncated_file_in_the_hub_cache(hf_hub: Path) -> None:
    put_nula(hf_hub, dict(seeded(lambda: build("nula-w32")).state_dict()))
    blob = next(hf_hub.rglob("snapshots/*/model.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-10])
    with pytest.raises(
        SpectralError, match=r"nula-cifar10-robust-v0.*the file holds no weights, or is damaged or incomplete"
    ):
        load_model("nula/robust")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_under_the_name_of_safetensors_runs_nothing(hf_hub: Path, tmp_path: Path) -> None:
    put_on_hf_hub(hf_hub, REPOSITORY, "model.safetensors", pickle.dumps({"w": Payload(tmp_path / "ran")}))
    with pytest.raises(SpectralError, match="the file holds no weights, or is damaged"):
        load_model("nula/robust")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("offline", [True, False])
def test_nula_without_the_hub_is_one_sentence_at_once(
    offline: bool,
    hf_hub: Path,
    no_network: list[object],
    slept: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(SpectralError, match=r"^nula/robust: its published weights could not be ") as caught:
        load_model("nula/robust")
    assert sum(slept) < 1  # no waiting for a second try
    message = str(caught.value)
    assert "'bundled/resnet20', 'nula/robust@random' (structure only)" in message
    assert "\n" not in message
    assert bool(no_network) is not offline


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nula/robus", "nula has no 'robus'; nearest: 'robust'"),
        ("nula/xyz", "nula has no 'xyz'; available: robust"),
        ("robustbench/Carmon2019", "robustbench has no 'Carmon2019'; nearest: 'Carmon2019Unlabeled'"),
        ("robustbench/xyz", "robustbench has no 'xyz'; available: Carmon2019Unlabeled, .*, Standard"),
        ("Standard", "did you mean 'robustbench/Standard'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(SpectralError, match=message):
        load_model(name)


# --- RobustBench: what is known of its models -----------------------------------------------------------


def test_facts_of_the_zoo() -> None:
    none, halves, cifar = ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3), (MEAN, STD)
    expected = {
        "Carmon2019Unlabeled": ("wrn-28-10", none), "Wang2020Improving": ("wrn-28-10", none),
        "Hendrycks2019Using": ("wrn-28-10", halves), "Sehwag2020Hydra": ("wrn-28-10", none),
        "Rice2020Overfitting": ("wrn-34-20", cifar), "Wong2020Fast": ("preact-resnet18", cifar),
        "Rice2020Overfitting-L2": ("preact-resnet18-he", cifar), "Sehwag2021Proxy_R18": ("resnet18", none),
        "Standard": ("wrn-28-10", none),
    }  # fmt: skip
    assert {k: (v.architecture, v.normalisation) for k, v in robustbench.MODELS.items()} == expected
    assert len({published.url for published in robustbench.MODELS.values()}) == len(expected)


def test_the_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tail = Path("models", "cifar10", "Linf", "Standard.pt")
    monkeypatch.setenv("SPECTRAL_DATA", str(tmp_path))
    assert robustbench.find_file("Standard") == tmp_path / tail
    assert robustbench.find_file("Rice2020Overfitting-L2").parts[-2:] == ("L2", "Rice2020Overfitting.pt")
    monkeypatch.delenv("SPECTRAL_DATA")
    assert robustbench.find_file("Standard") == Path("data") / tail


# --- RobustBench: files ---------------------------------------------------------------------------------


def test_a_full_file_as_published(zoo: Path, no_network: list[object]) -> None:
    expected = dict(seeded(lambda: build("preact-resnet18")).state_dict())
    torch.save(expected, zoo / "Wong2020Fast.pt")
    model = load_model("robustbench/Wong2020Fast")
    assert_same_state(model, expected)
    info = info_of(model)
    assert (info.name, info.family) == ("robustbench/Wong2020Fast", "strided")
    assert info.weights_id == hash_state(expected)
    assert info.preprocessing == Preprocessing((32, 32), MEAN, STD)
    assert (info.num_classes, info.classes) == (10, tuple(CIFAR10_CLASSES))
    assert info.metadata["threat"] == "Linf"
    assert no_network == []


def residual_names(first: int, shortcut: tuple[str, ...]) -> list[str]:
    """Names of the blocks' tensors, where the zoo's two ResNets-18 agree: norm, convolution, twice."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = []
    for stage in range(1, 5):
        for block in range(2):
            here = f"layer{stage}.{block}"
            names += [f"{here}.conv{i}.weight" for i in (1, 2)]
            names += [f"{here}.bn{i}.{part}" for i in (1, 2) for part in norm]
            if stage > 1 and block == 0:
                names += [f"{here}.shortcut.0.weight"]
                names += [f"{here}.shortcut.1.{part}" for part in norm if "1" in shortcut]
    return [*names, "conv1.weight", *(f"bn{'1' if first else ''}.{part}" for part in norm), "linear.weight",
            "linear.bias"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "names", "normalisation", "first_bytes"),
    [
        ("Sehwag2021Proxy_R18", residual_names(1, ("0", "1")), ((0.0,) * 3, (1.0,) * 3), b"PK"),
        ("Rice2020Overfitting-L2", residual_names(0, ("0",)), (MEAN, STD), b"\x80"),
    ],
)
def test_files_of_both_resnets_18_have_exactly_these_names(
    name: str, names: list[str], normalisation: object, first_bytes: bytes, zoo: Path
) -> None:
    """The names are written out from the zoo's definitions; one file in torch's format before 1.6."""
    architecture = robustbench.MODELS[name].architecture
    state = dict(seeded(lambda: build(architecture)).state_dict())
    assert sorted(state) == sorted(names)
    path = robustbench.find_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 9}
    torch.save(content, path, _use_new_zipfile_serialization=first_bytes == b"PK")
    assert path.read_bytes().startswith(first_bytes)
    model = load_model(f"robustbench/{name}")
    assert_same_state(model, state)
    info = info_of(model)
    assert info.preprocessing == Preprocessing((32, 32), *normalisation)  # type: ignore[misc]
    assert info.metadata["threat"] == robustbench.MODELS[name].threat


def test_wrapped_with_a_stage_that_never_runs(zoo: Path, small_carmon: dict[str, Tensor]) -> None:
    # Under "state_dict", of a DataParallel, and with a second first stage that no forward pass uses.
    unused = {k.replace("block1", "sub_block1"): v + 1 for k, v in small_carmon.items() if "block1" in k}
    content = {f"module.{name}": tensor for name, tensor in {**small_carmon, **unused}.items()}
    torch.save({"state_dict": content, "num_classes": 10}, zoo / "Carmon2019Unlabeled.pt")
    model = load_model("robustbench/Carmon2019Unlabeled")
    assert_same_state(model, small_carmon)
    assert info_of(model).preprocessing == Preprocessing((32, 32), (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std")])
@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_a_files_own_normalisation_counts(
    prefix: str, names: tuple[str, str], zoo: Path, small_carmon: dict[str, Tensor], tmp_path: Path
) -> None:
    # Binary fractions, which float32 holds exactly.
    buffers = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.125, 0.25, 0.5])
    extra = {name: tensor.view(1, 3, 1, 1) for name, tensor in zip(names, buffers, strict=True)}
    content = {prefix + name: tensor for name, tensor in {**small_carmon, **extra}.items()}
    torch.save(content, zoo / "Carmon2019Unlabeled.pt")
    shutil.copy(zoo / "Carmon2019Unlabeled.pt", tmp_path / "local.pt")
    models = (
        load_model("robustbench/Carmon2019Unlabeled"),
        load_model(tmp_path / "local.pt", architecture=SMALL),
        load_model(tmp_path / "local.pt", architecture="robustbench/Carmon2019Unlabeled"),
    )
    for model in models:
        assert_same_state(model, small_carmon)
        assert info_of(model).preprocessing == Preprocessing((32, 32), (0.5, 0.25, 0.75), (0.125, 0.25, 0.5))


def test_a_wrapper_inside_which_the_network_is(small_carmon: dict[str, Tensor], tmp_path: Path) -> None:
    # Here only the network is wrapped, its normalisation isn't.
    content = {f"model.{name}": tensor for name, tensor in small_carmon.items()}
    content |= {"mu": torch.full((3,), 0.25), "sigma": torch.full((3,), 0.5)}
    torch.save(content, tmp_path / "local.pt")
    model = load_model(tmp_path / "local.pt", architecture=SMALL)
    assert_same_state(model, small_carmon)
    assert info_of(model).preprocessing.mean == (0.25,) * 3


@pytest.mark.parametrize("sigma", [torch.tensor([0.5, 0.0, 0.5]), torch.ones(1)])
def test_an_impossible_normalisation_is_no_normalisation(
    sigma: Tensor, zoo: Path, small_carmon: dict[str, Tensor]
) -> None:
    torch.save({**small_carmon, "mu": torch.zeros(3), "sigma": sigma}, zoo / "Carmon2019Unlabeled.pt")
    with pytest.raises(SpectralError, match="2 unknown to the model: mu, sigma"):
        load_model("robustbench/Carmon2019Unlabeled")


def test_preprocessing_and_network_are_the_published_function(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = replace(robustbench.MODELS["Hendrycks2019Using"], architecture=SMALL)
    monkeypatch.setitem(robustbench.MODELS, "Hendrycks2019Using", published)
    state = wide_state()
    torch.save(state, zoo / "Hendrycks2019Using.pt")
    model = load_model("robustbench/Hendrycks2019Using")
    bare = build(SMALL)
    bare.load_state_dict(state)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # There the network itself scales its input to 2x − 1.
    ours, theirs = model(info_of(model).preprocessing(images)), bare.eval()(2 * images - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_unused_stage_is_unknown_to_other_networks(tmp_path: Path) -> None:
    content = {**build("resnet20").state_dict(), "sub_block1.layer.0.conv1.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "local.pt")
    with pytest.raises(SpectralError, match="1 unknown to the model: sub_block1"):
        load_model(tmp_path / "local.pt", architecture="resnet20")


def test_weights_of_another_architecture_list_both_sides(zoo: Path, small_carmon: dict[str, Tensor]) -> None:
    torch.save(build("preact-resnet18-w4").state_dict(), zoo / "Carmon2019Unlabeled.pt")
    with pytest.raises(SpectralError, match=r"robustbench/Carmon2019Unlabeled: .*Carmon2019U") as caught:
        load_model("robustbench/Carmon2019Unlabeled")
    message = str(caught.value)
    assert "missing from the file: block1.layer.0.bn1.weight, " in message
    assert "unknown to the model: layer1.0.bn1.weight, " in message


def test_code_in_a_file_of_the_zoo_is_not_run(zoo: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": Payload(tmp_path / "ran")}}, zoo / "Standard.pt")
    with pytest.raises(SpectralError, match=r"Standard\.pt: .*refused, nothing in it was run"):
        load_model("robustbench/Standard")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file_of_the_zoo(zoo: Path) -> None:
    path = zoo / "Standard.pt"
    torch.save(wide_state(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        SpectralError, match=r"Standard\.pt: the file holds no weights, or is damaged or incomplete"
    ):
        load_model("robustbench/Standard")


@pytest.mark.parametrize("name", ["nula/robust", "robustbench/Wong2020Fast"])
def test_structure_alone_needs_no_file(name: str, no_network: list[object]) -> None:
    model = load_model(f"{name}@random")
    info = info_of(model)
    assert info.weights_id.startswith("random-0:")
    assert info.preprocessing.mean == ((0.5,) * 3 if name.startswith("nula") else MEAN)
    assert dict(info.metadata) == {}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert no_network == []


# --- RobustBench: downloads -----------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_missing_file_is_downloaded_once(
    zipped: bool,
    zoo: Path,
    small_carmon: dict[str, Tensor],
    downloads: Callable[[bytes], list[str]],
    tmp_path: Path,
) -> None:
    torch.save(small_carmon, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    shutil.rmtree(zoo)  # the folder is made
    asked = downloads((tmp_path / "w").read_bytes())
    assert_same_state(load_model("robustbench/Carmon2019Unlabeled"), small_carmon)
    assert_same_state(load_model("robustbench/Carmon2019Unlabeled"), small_carmon)
    (url,) = asked
    assert url.startswith(
        "https://drive.usercontent.google.com/download?id=15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"
    )
    assert [path.name for path in zoo.iterdir()] == ["Carmon2019Unlabeled.pt"]


@pytest.mark.parametrize("kind", ["page", "truncated", "empty"])
def test_what_is_no_whole_weights_file_is_not_kept(
    kind: str,
    zoo: Path,
    small_carmon: dict[str, Tensor],
    downloads: Callable[[bytes], list[str]],
    tmp_path: Path,
) -> None:
    whole = file_bytes(small_carmon, tmp_path / "w.pt")
    data = {"page": b"<!DOCTYPE html><html>quota", "truncated": whole[:-50], "empty": b""}[kind]
    downloads(data)
    with pytest.raises(SpectralError) as caught:
        load_model("robustbench/Carmon2019Unlabeled")
    message = str(caught.value)
    assert message.startswith("robustbench/Carmon2019Unlabeled: its published weights could not be fetched (")
    assert f"put the file by hand where RobustBench keeps it, at {zoo / 'Carmon2019Unlabeled.pt'}" in message
    assert list(zoo.iterdir()) == []


def test_no_network_is_one_sentence(zoo: Path, no_network: list[object]) -> None:
    with pytest.raises(SpectralError) as caught:
        load_model("robustbench/Standard")
    message = str(caught.value)
    assert message.startswith("robustbench/Standard: its published weights could not be fetched (")
    assert f"at {zoo / 'Standard.pt'}" in message
    assert "'robustbench/Standard@random' (structure only)" in message
    assert "architecture='robustbench/Standard'" in message
    assert "\n" not in message
    assert no_network
    assert set(map(str, no_network)) == {"drive.usercontent.google.com"}
    assert list(zoo.iterdir()) == []


def test_a_data_root_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECTRAL_DATA", str(tmp_path / "file"))
    with pytest.raises(SpectralError, match=r"robustbench/Standard: .* could not be fetched \(.*by hand"):
        load_model("robustbench/Standard")


# --- wrappers -------------------------------------------------------------------------------------------


def test_wrappers_are_stripped_where_every_name_has_them() -> None:
    plain = nn.Linear(2, 3)
    one = torch.zeros(1)
    for prefix in ("module.", "model.", "module.model.", "model.module."):
        assert strip_wrappers({f"{prefix}weight": one, f"{prefix}bias": one}, plain).keys() == {
            "weight",
            "bias",
        }
    assert strip_wrappers({"model.weight": one, "bias": one}, plain).keys() == {"model.weight", "bias"}
    assert strip_wrappers({}, plain) == {}


def test_a_network_that_has_the_prefix_itself_keeps_it() -> None:
    network = nn.ModuleDict({"model": nn.Linear(2, 3)})
    state = dict(network.state_dict())
    assert strip_wrappers(state, network).keys() == state.keys()
    assert strip_wrappers({f"module.{n}": t for n, t in state.items()}, network).keys() == state.keys()
