"""Loading networks and weights; hubs are folders in the caches' own layouts, made here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import pytest
import safetensors.torch
import torch
from faults import full_disk
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from spectral.errors import SpectralError, SpectralWarning
from spectral.models import fetching
from spectral.models import load as load_module
from spectral.models.architectures import build
from spectral.models.checkpoint import load_into, load_state, save_checkpoint
from spectral.models.info import ModelInfo, Preprocessing, model_info
from spectral.models.load import list_bundled, load_model
from spectral.models.sources import libraries
from spectral.models.weights_id import hash_state
from spectral.stability import measure_stability

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DESCRIPTION = {
    "architecture": "resnet20",
    "family": "strided",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.5],
    "size": [32, 32],
    "classes": [f"class{i}" for i in range(10)],
    "epochs": 3,
}


class Payload:
    """A pickle that makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def seeded(make: Callable[[], nn.Module], seed: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def info_of(model: nn.Module) -> ModelInfo:
    info = model_info(model)
    assert info is not None
    return info


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.fixture
def trained() -> nn.Module:
    return seeded(lambda: build("resnet20"))


@pytest.fixture
def torch_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub cache; returns the folder of its checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def hf_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, offline."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf"


def put_on_hf_hub(hub: Path, repository: str, name: str, data: bytes) -> None:
    repo = hub / f"models--{repository.replace('/', '--')}"
    blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(data)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / name).symlink_to(blob)


# --- the id of weights ----------------------------------------------------------------------------------


def test_hash_of_a_tensor_that_others_make_up_is_of_these() -> None:
    """As torchao's quantised weights, which have no bytes of their own."""
    one, other = torch.zeros(2), torch.ones(2)
    assert hash_state({"a": TwoTensor(one, other)}) == hash_state({"a.a": one, "a.b": other})


def test_hash_depends_on_every_part_of_the_state_and_on_nothing_else() -> None:
    state = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "flag": torch.tensor([True, False])}
    reference = hash_state(state)
    assert reference.startswith("sha256:")
    assert len(reference) == len("sha256:") + 16
    assert hash_state(dict(reversed(state.items()))) == reference
    transposed = state["w"].t().contiguous().t()
    assert not transposed.is_contiguous()
    assert hash_state({**state, "w": transposed}) == reference
    changed = state["w"].clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    variants = [
        {**state, "w": changed},
        {**state, "w": state["w"].view(3, 2)},
        {**state, "w": state["w"].double()},
        {**state, "w": state["w"].view(torch.int32)},
        {**state, "n": torch.tensor(4)},
        {**state, "empty": torch.zeros(0)},
        {"v": state["w"], "n": state["n"], "flag": state["flag"]},
    ]
    assert len({reference, *map(hash_state, variants)}) == len(variants) + 1
    hash_state({"half": torch.ones(2, dtype=torch.bfloat16)})


# --- checkpoints on disk --------------------------------------------------------------------------------


def test_saved_checkpoint_loads_back_as_it_was(trained: nn.Module, tmp_path: Path) -> None:
    path = save_checkpoint(trained, tmp_path / "new" / "net.safetensors", DESCRIPTION)
    rng_before = torch.get_rng_state()
    model = load_model(path)
    assert torch.equal(torch.get_rng_state(), rng_before)
    assert_same_state(model, trained.state_dict())
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    info = info_of(model)
    assert info.name == str(path)
    assert info.weights_id == hash_state(trained.state_dict())
    assert info.family == "strided"
    assert info.num_classes == 10
    assert info.classes == tuple(f"class{i}" for i in range(10))
    assert info.preprocessing == Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    assert info.metadata["epochs"] == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["net.json", "net.safetensors"]


def test_saving_saves_tied_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    path = save_checkpoint(model, tmp_path / "tied.safetensors", {})
    assert torch.equal(load_state(path)["1.weight"], model[0].weight)


def test_interrupted_saving_keeps_the_previous_checkpoint(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(trained, tmp_path / "net.safetensors", DESCRIPTION)
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(build("resnet20"), path, DESCRIPTION)
    monkeypatch.setattr(os, "replace", replace)
    assert_same_state(load_model(path), trained.state_dict())
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_that_is_interrupted_between_its_files_leaves_no_weights_alone(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are weights a training is taken for finished: without their JSON nobody could load them."""
    replace, path = os.replace, tmp_path / "net.safetensors"

    def stop_after(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop_after)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(trained, path, DESCRIPTION)
    assert [file.name for file in tmp_path.iterdir()] == ["net.json"]
    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint(trained, path, DESCRIPTION)
    with full_disk(2**16), pytest.raises(SpectralError, match="can't be written there"):
        save_checkpoint(build("resnet20"), path, {})  # its JSON would have room
    assert_same_state(load_model(path), trained.state_dict())


def test_json_of_other_weights_is_noticed(trained: nn.Module, tmp_path: Path) -> None:
    path = save_checkpoint(trained, tmp_path / "net.safetensors", DESCRIPTION)
    safetensors.torch.save_file(seeded(lambda: build("resnet20"), seed=6).state_dict(), path)
    with pytest.raises(SpectralError, match="describes other weights"):
        load_model(path)


def test_saving_refuses_before_it_writes(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"must end in \.safetensors"):
        save_checkpoint(trained, tmp_path / "net.pt", {})
    with pytest.raises(SpectralError, match="can't be written as JSON"):
        save_checkpoint(trained, tmp_path / "net.safetensors", {"path": tmp_path})
    with pytest.raises(SpectralError, match="can't be written as JSON"):
        save_checkpoint(trained, tmp_path / "net.safetensors", {"test_accuracy": float("nan")})
    with torch.no_grad():
        next(trained.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises(SpectralError, match=r"conv1\.weight has 1 NaN or infinite values of 432"):
        save_checkpoint(trained, tmp_path / "net.safetensors", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(SpectralError, match=r"can't be written there"):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "file" / "net.safetensors", {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_is_unwrapped(wrap: str | None, prefix: str, tmp_path: Path) -> None:
    plain = nn.Linear(2, 3).state_dict()
    content: dict[str, object] = {prefix + name: tensor for name, tensor in plain.items()}
    torch.save({wrap: content, "epoch": 7} if wrap else content, tmp_path / "w.pth")
    state = load_state(tmp_path / "w.pth")
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("taken", "other"),
    [("state_dict", "ema"), ("state_dict", "model"), ("model", "state_dict_ema"), ("model", "teacher")],
)
def test_other_weights_in_the_same_file_are_named(taken: str, other: str, tmp_path: Path) -> None:
    net, average, path = nn.Linear(2, 3), nn.Linear(2, 3), tmp_path / "w.pth"
    wrapped = {f"module.{name}": tensor for name, tensor in average.state_dict().items()}
    steps = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    steps.step()
    content = {other: wrapped, taken: net.state_dict(), "optimizer": steps.state_dict(), "epoch": 3}
    torch.save(content, path)
    with pytest.warns(
        SpectralWarning, match=rf"weights under '{taken}', '{other}'; .*{taken}.* taken"
    ) as said:
        state = load_state(path)
    assert len(said) == 1
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    advice = str(said[0].message).split("For others: ")[1].split(", and load")[0]
    with contextlib.chdir(tmp_path):
        exec(advice, {"torch": torch})
    found = load_state(tmp_path / f"w-{other}.pth")
    assert all(torch.equal(found[name], tensor) for name, tensor in average.state_dict().items())


def test_only_weights_of_the_same_network_are_named(tmp_path: Path) -> None:
    content = {"state_dict": nn.Linear(2, 3).state_dict(), "discriminator": nn.Linear(3, 4).state_dict()}
    torch.save({**content, "ema": None, "rng": {"cpu": torch.zeros(3)}}, tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(tmp_path / "w.pth")


def test_a_prefix_that_not_all_names_share_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "w.pt")
    assert load_state(tmp_path / "w.pt").keys() == {"module.a", "b"}


def test_a_torch_file_that_unfolds_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    torch.save(state := {"a": torch.arange(3.0)}, path := tmp_path / "w.pth")
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for member in plain.infolist():
            file.writestr(member.filename, plain.read(member))
    assert torch.equal(load_state(tmp_path / "z.pth")["a"], state["a"])  # a small one may be compressed
    claimed = path.read_bytes()
    place = claimed.rindex(b"PK\x01\x02")  # of the last member in the directory: how long it is unfolded
    path.write_bytes(claimed[: place + 24] + (2**31).to_bytes(4, "little") + claimed[place + 28 :])
    with pytest.raises(SpectralError, match=r"w\.pth: 0 MiB that unfold to 2048; write the weights again"):
        load_state(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    content, path = {"state_dict": {"w": Payload(tmp_path / "ran")}}, tmp_path / "evil.pt"
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(
        SpectralError, match=r"refused, nothing in it was run.*model\.state_dict\(\)"
    ) as caught:
        load_model(path, architecture="resnet20")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    assert "mkdir" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0, 6, 0.5, -1])
def test_truncated_file_is_one_sentence(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = {"w": torch.randn(500)}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    with pytest.raises(
        SpectralError, match=r"w\.\w+: the file holds no weights, or is damaged or incomplete"
    ) as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a state dict .* got list"),
        ({}, "got an empty one"),
        ({"w": torch.zeros(1), "epoch": 3}, "aren't tensors: epoch"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SpectralError, match=message):
        load_state(tmp_path / "w.pt")


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match="there is no such weights file"):
        load_model(tmp_path / "none.safetensors", architecture="resnet20")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(value: float, tmp_path: Path) -> None:
    state = {"a": torch.zeros(2), "b.running_var": torch.tensor([1.0, value, value]), "n": torch.tensor(1)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SpectralError, match=r"b\.running_var has 2 NaN or infinite values of 3"):
        load_state(tmp_path / "w.safetensors")


def test_mismatch_lists_both_sides_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(3), "other": torch.zeros(1)}
    with pytest.raises(SpectralError) as caught:
        load_into(model, state, "here")
    message = str(caught.value)
    assert message.startswith("here: 3 tensors don't fit Sequential with its 7; ")
    assert "4 missing from the file: 1.weight, 1.bias, 1.running_mean, …" in message
    assert "1 unknown to the model: other" in message
    assert "1 of another shape: 0.weight (4, 2) for (3, 2)" in message
    assert "\n" not in message
    assert_same_state(model, before)


def test_files_from_before_the_batchnorm_counter_load() -> None:
    source, target = seeded(lambda: build("resnet20"), 1), seeded(lambda: build("resnet20"), 2)
    old = {name: t for name, t in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_into(target, old, "old file")
    assert_same_state(target, source.state_dict())


# --- files through load_model ---------------------------------------------------------------------------


def test_state_dict_file_needs_an_architecture(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(trained.state_dict(), path)
    with pytest.raises(SpectralError, match=r"pass architecture=, such as resnet20.*'timm/resnet50'"):
        load_model(path)
    model = load_model(str(path), architecture="resnet20")
    assert_same_state(model, trained.state_dict())
    assert info_of(model).family == "strided"
    with pytest.raises(SpectralError, match=r"missing from the file.*unknown to the model"):
        load_model(path, architecture="resnet20-blurpool")
    with pytest.raises(SpectralError, match=r"unknown architecture 'resnet2'; nearest: 'resnet20'"):
        load_model(path, architecture="resnet2")
    with pytest.raises(SpectralError, match=r"unknown architecture 'tim/resnet50'; .*resnet20.*timm/"):
        load_model(path, architecture="tim/resnet50")


def test_file_with_a_library_architecture(tmp_path: Path) -> None:
    import timm

    expected = seeded(lambda: timm.create_model("test_resnet")).state_dict()
    torch.save({"state_dict": expected}, tmp_path / "w.bin")
    model = load_model(tmp_path / "w.bin", architecture="timm/test_resnet")
    assert_same_state(model, expected)
    info = info_of(model)
    assert info.weights_id == hash_state(expected)
    assert info.preprocessing.size == (160, 160)
    assert "hf_hub_id" not in info.metadata


def test_architecture_that_contradicts_the_json(trained: nn.Module, tmp_path: Path) -> None:
    path = save_checkpoint(trained, tmp_path / "net.safetensors", DESCRIPTION)
    assert_same_state(load_model(path, architecture="resnet20"), trained.state_dict())
    with pytest.raises(SpectralError, match=r"says 'resnet20', but architecture='nula'"):
        load_model(path, architecture="nula")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 32}, "expected size as"),
        ({"std": [0.5, 0.0, 0.5]}, "std above 0"),
        ({"mean": [0.5]}, "one number per channel"),
        ({"mean": ["a", "b", "c"]}, "one number per channel"),
        ({"mean": "123"}, "one number per channel"),
        ({"mean": [True, 0, 0]}, "one number per channel"),
        ({"mean": [10**400, 0, 0]}, "one number per channel"),
        ({"std": [1e-320] * 3}, "std above 0"),
        ({"size": [3.5, 3]}, "expected size as"),
        ({"size": [10**9, 10**9]}, "expected size as"),
        ({"classes": "abc"}, "expected classes as a list"),
        ({"classes": ["a"] * 1001}, "names 1001 classes of a network that has"),
        ({"family": 5}, "expected family as a text"),
    ],
)
def test_wrong_description_is_one_sentence(
    change: dict[str, object], message: str, trained: nn.Module, tmp_path: Path
) -> None:
    path = save_checkpoint(trained, tmp_path / "net.safetensors", {**DESCRIPTION, **change})
    with pytest.raises(SpectralError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"mean": [0], "mean": [9]}', '{"mean": [NaN]}', '{"a":' + "[" * 10**5]
)
def test_broken_json_is_one_sentence(text: str, trained: nn.Module, tmp_path: Path) -> None:
    path = save_checkpoint(trained, tmp_path / "net.safetensors", DESCRIPTION)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(SpectralError, match=r"net\.json: expected"):
        load_model(path)


@pytest.mark.parametrize("name", ["caf\udce9", "a+b", "a\nb", "-a", "a%20@b"])
def test_files_of_any_name(name: str, trained: nn.Module, tmp_path: Path) -> None:
    path = save_checkpoint(trained, tmp_path / f"{name}.safetensors", DESCRIPTION)
    assert_same_state(load_model(str(path)), trained.state_dict())


# --- bundled --------------------------------------------------------------------------------------------


def test_bundled_is_read_from_the_first_folder_that_has_any(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "CHECKPOINT_FOLDERS", (tmp_path / "installed", tmp_path / "checkout"))
    with pytest.raises(SpectralError, match="there are no checkpoints in"):
        load_model("bundled/resnet20")
    assert list_bundled() == []
    save_checkpoint(trained, tmp_path / "checkout" / "resnet20.safetensors", DESCRIPTION)
    assert list_bundled() == ["resnet20"]
    model = load_model("bundled/resnet20")
    assert_same_state(model, trained.state_dict())
    assert info_of(model).name == "bundled/resnet20"
    with pytest.raises(SpectralError, match=r"unknown model 'bundled/resnet21'.*nearest: 'resnet20'"):
        load_model("bundled/resnet21")
    with pytest.raises(SpectralError, match="available: resnet20"):
        load_model("bundled/xyz")
    save_checkpoint(trained, tmp_path / "installed" / "other.safetensors", DESCRIPTION)
    assert list_bundled() == ["other"]


@pytest.mark.parametrize("name", list_bundled())
def test_bundled_checkpoints_are_what_they_were_saved_as(name: str) -> None:
    model = load_model(f"bundled/{name}")
    info = info_of(model)
    assert info.weights_id == info.metadata["weights_id"] == hash_state(model.state_dict())
    assert info.family == info.metadata["family"]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_checkpoint_folders_are_the_packages_and_the_checkouts() -> None:
    package = Path(load_module.__file__).parents[1]
    assert package.name == "spectral"
    assert load_module.CHECKPOINT_FOLDERS[0] == package / "checkpoints"
    assert load_module.CHECKPOINT_FOLDERS[1] == package.parents[1] / "data" / "checkpoints"


# --- random ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bundled/resnet20@random", "timm/test_resnet@random", "torchvision/squeezenet1_1@random"]
)
def test_random_is_reproducible_and_says_so(name: str, no_network: list[object]) -> None:
    torch.manual_seed(1)
    first = load_model(name)
    torch.manual_seed(2)
    second = load_model(name)
    assert_same_state(second, first.state_dict())
    assert not first.training
    info = info_of(first)
    assert info.name == name
    assert info.weights_id == "random-0:" + hash_state(first.state_dict()).removeprefix("sha256:")
    assert info.weights_id != info_of(load_model("bundled/resnet20-blurpool@random")).weights_id
    assert first(torch.zeros(1, 3, 64, 64)).shape == (1, info.num_classes)
    assert no_network == []


def test_random_antialiased() -> None:
    pytest.importorskip("antialiased_cnns")
    info = info_of(load_model("antialiased/mobilenet_v2@random"))
    assert info.family == "blurpool"
    assert info.num_classes == 1000
    assert info.preprocessing == Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --- hubs, from their caches ----------------------------------------------------------------------------


def test_timm_loads_exactly_the_weights_of_the_hub_cache(hf_hub: Path, no_network: list[object]) -> None:
    import timm

    expected = seeded(lambda: timm.create_model("test_resnet")).state_dict()
    data = safetensors.torch.save(dict(expected))
    put_on_hf_hub(hf_hub, "timm/test_resnet.r160_in1k", "model.safetensors", data)
    model = load_model("timm/test_resnet")
    assert_same_state(model, expected)
    assert not model.training
    info = info_of(model)
    assert info.weights_id == hash_state(expected)
    assert info.preprocessing == Preprocessing((160, 160), (0.5,) * 3, (0.5,) * 3)
    assert info.num_classes == 1000
    assert info.metadata["hf_hub_id"] == "timm/test_resnet.r160_in1k"
    assert info_of(load_model("timm/test_resnet.r160_in1k")).weights_id == info.weights_id
    assert no_network == []


def test_timm_with_damaged_or_nan_weights_in_the_cache(hf_hub: Path) -> None:
    import timm

    state = dict(seeded(lambda: timm.create_model("test_resnet")).state_dict())
    state["conv1.0.weight"][0, 0, 0, 0] = float("nan")
    data = safetensors.torch.save(state)
    put_on_hf_hub(hf_hub, "timm/test_resnet.r160_in1k", "model.safetensors", data)
    with pytest.raises(SpectralError, match=r"timm/test_resnet: .*conv1\.0\.weight has 1 NaN"):
        load_model("timm/test_resnet")
    file = next(hf_hub.rglob("snapshots/*/model.safetensors"))
    file.resolve().write_bytes(data[:-10])
    with pytest.raises(SpectralError, match=r"timm/test_resnet: .*damaged or incomplete"):
        load_model("timm/test_resnet")


def test_torchvision_loads_exactly_the_weights_of_the_cache(
    torch_hub: Path, no_network: list[object]
) -> None:
    from torchvision import models

    expected = seeded(models.squeezenet1_1).state_dict()
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(expected, torch_hub / Path(urlparse(url).path).name)
    model = load_model("torchvision/squeezenet1_1")
    assert_same_state(model, expected)
    assert not model.training
    info = info_of(model)
    assert info.weights_id == hash_state(expected)
    assert info.preprocessing.size == (224, 224)
    assert info.preprocessing.mean == (0.485, 0.456, 0.406)
    assert info.classes is not None
    assert (info.classes[0], len(info.classes)) == ("tench", 1000)
    assert info.metadata["url"] == url
    assert info.files is not None
    assert [file.samefile(torch_hub / Path(urlparse(url).path).name) for file in info.files] == [True]
    assert no_network == []


def test_antialiased_loads_exactly_the_weights_of_the_cache(
    torch_hub: Path, no_network: list[object]
) -> None:
    package = pytest.importorskip("antialiased_cnns")
    expected = seeded(package.mobilenet_v2).state_dict()
    torch.save({"state_dict": expected}, torch_hub / "mobilenet_v2_lpf4_finetune-7eed94b1.pth")
    model = load_model("antialiased/mobilenet_v2")
    assert_same_state(model, expected)
    assert info_of(model).weights_id == hash_state(expected)
    assert info_of(model).family == "blurpool"
    assert no_network == []


@pytest.mark.parametrize("variable", ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_hub_cache_is_not_run_and_settings_stay(
    variable: str, torch_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save({"w": Payload(tmp_path / "ran")}, torch_hub / Path(urlparse(url).path).name)
    monkeypatch.setenv(variable, "0" if variable == "TORCH_FORCE_WEIGHTS_ONLY_LOAD" else "1")
    before, patience = dict(os.environ), socket.getdefaulttimeout()
    with pytest.raises(SpectralError, match=r"torchvision/squeezenet1_1: .*refused, nothing in it was run"):
        load_model("torchvision/squeezenet1_1")
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before
    assert socket.getdefaulttimeout() == patience


# --- hubs that don't answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["timm/test_resnet", "torchvision/squeezenet1_1", "antialiased/mobilenet_v2"]
)
def test_unreachable_hub_is_one_sentence_at_once(
    name: str,
    no_network: list[object],
    slept: list[float],
    hf_hub: Path,
    torch_hub: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name.startswith("antialiased"):
        pytest.importorskip("antialiased_cnns")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(SpectralError) as caught:
        load_model(name)
    assert sum(slept) < 1  # no waiting for a second try
    message = str(caught.value)
    assert message.startswith(f"{name}: its published weights could not be fetched (")
    assert f"'bundled/resnet20', '{name}@random' (structure only)" in message
    assert f"architecture='{name}'" in message
    assert "\n" not in message
    assert 1 <= len(no_network) <= 2  # one request, whose client may try again with another address family


def test_offline_mode_is_respected(hf_hub: Path, no_network: list[object]) -> None:
    with pytest.raises(SpectralError, match=r"could not be fetched .*offline mode"):
        load_model("timm/test_resnet")
    assert no_network == []


def test_server_that_never_answers_is_given_up(torch_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/squeezenet-12345678.pth"
        monkeypatch.setattr(models.get_model_weights("squeezenet1_1").DEFAULT.value, "url", url)
        monkeypatch.setattr(fetching, "HUB_TIMEOUT", 0.2)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(SpectralError, match=r"could not be fetched \(.*timed out"):
            load_model("torchvision/squeezenet1_1")
    assert list(torch_hub.iterdir()) == []


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", r"unknown model 'timm/resnet5O'.*nearest: 'resnet50'"),
        ("timm/resnet50.a1_in1", r"nearest: 'resnet50\.a1_in1k'"),
        ("timm/vit_giant_patch14_224", r"no pretrained weights.*'timm/vit_giant_patch14_224@random'"),
        ("torchvision/resnet19", r"nearest: .*'resnet18'"),
        ("bundled/resnet21@random", r"unknown architecture 'resnet21'.*nearest: 'resnet20'"),
        ("resnet50", r"did you mean 'timm/resnet50' or 'torchvision/resnet50'"),
        ("tim/resnet50", r"NAME behind timm/, torchvision/, antialiased/, packaged/.*'timm/resnet50'"),
        ("quux", r"NAME behind timm/.*\.safetensors, \.pt, \.pth, \.bin, \.th file$"),
        ("", r"unknown model ''"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(SpectralError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ask", [model_info, measure_stability])
def test_what_is_asked_of_a_network_is_refused_of_a_name(ask: Callable[..., object]) -> None:
    images = () if ask is model_info else (torch.zeros(1, 3, 8, 8),)
    for other, hint in (("bundled/resnet20", r"str; of a name, pass load_model\(name\)"), (None, "NoneType")):
        with pytest.raises(SpectralError, match=f"^{ask.__name__}: expected a torch.nn.Module, got {hint}$"):
            ask(other, *images)


def test_unknown_antialiased_name() -> None:
    pytest.importorskip("antialiased_cnns")
    with pytest.raises(SpectralError, match=r"unknown model 'antialiased/resnet5'.*nearest: 'resnet50'"):
        load_model("antialiased/resnet5")


def test_antialiased_names_are_those_with_weights_for_the_default_filter() -> None:
    package = pytest.importorskip("antialiased_cnns")
    names = libraries.list_antialiased()
    assert {"alexnet", "densenet161", "mobilenet_v2", "resnet50", "wide_resnet101_2", "vgg19_bn"} <= set(
        names
    )
    assert all(callable(getattr(package, name)) for name in names)


def test_antialiased_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "antialiased_cnns", None)
    with pytest.raises(SpectralError, match=r"CC BY-NC-SA.*pip install 'spectral-aliasing\[antialiased\]'"):
        load_model("antialiased/resnet50")
    with pytest.raises(SpectralError, match="did you mean 'timm/resnet50' or 'torchvision/resnet50'"):
        load_model("resnet50")


def test_architecture_goes_with_a_path_only() -> None:
    with pytest.raises(SpectralError, match="not with 'timm/test_resnet@random'; leave it out"):
        load_model("timm/test_resnet@random", architecture="resnet20")


def test_unusable_device() -> None:
    with pytest.raises(SpectralError, match="device 'nowhere' can't be used"):
        load_model("bundled/resnet20@random", device="nowhere")


def test_device_is_where_the_model_goes() -> None:
    model = load_model("bundled/resnet20@random", device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert info_of(model).weights_id == info_of(load_model("bundled/resnet20@random")).weights_id


# --- preprocessing and imports --------------------------------------------------------------------------


def test_preprocessing_normalises_each_channel() -> None:
    scale = Preprocessing((4, 4), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    images = torch.ones(2, 3, 4, 4, dtype=torch.float64)
    expected = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(scale(images), expected)
    assert scale(images.half()).dtype == torch.float16


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 4)])
def test_preprocessing_names_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpectralError, match=r"expected images of shape \(B, 3, H, W\), got \("):
        Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3)(torch.zeros(shape))


def test_preprocessing_refuses_integers() -> None:
    with pytest.raises(SpectralError, match=r"got torch\.uint8; .*float\(\) / 255"):
        Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_import_brings_no_model_library() -> None:
    code = (
        "import json, sys, spectral.models, spectral.models.load; print(json.dumps(sorted(sys.modules)))\n"
        "import spectral.measurement.entry, spectral.surgery; print(json.dumps(sorted(sys.modules)))"
    )
    source = str(Path(load_module.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    loading, measuring = map(json.loads, found.stdout.splitlines())
    libraries = {"timm", "torchvision", "antialiased_cnns", "huggingface_hub", "torch._dynamo"}
    assert (libraries | {"spectral.metrics", "spectral.sites"}).isdisjoint(loading)
    assert libraries.isdisjoint(measuring)
