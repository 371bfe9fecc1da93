"""Networks of the user's own: a function in a file or a module, tuned weights, transformers' folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import spectral
from spectral.cli import main
from spectral.errors import SpectralError, SpectralWarning
from spectral.models.checkpoint import save_checkpoint

NET = """
import torch
from torch import nn
import shapes

def build(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, shapes.WIDTH, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(shapes.WIDTH, num_classes),
    )

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2)
    def forward(self, x):
        return self.conv(x).mean((2, 3))

made = build(3)
known = build()
known.pretrained_cfg = {"mean": (0.25,) * 3, "std": (0.5,) * 3, "input_size": (3, 48, 40)}
answer = 42

class Masked(nn.Module):  # with a mask and a bound that are infinite by design, among what is saved
    def __init__(self):
        super().__init__()
        self.net = build()
        self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
        self.register_buffer("least", torch.tensor(-torch.inf))
    def forward(self, x):
        return self.net(x.clamp(self.least, 1e9))

def masked(): return Masked()

def raising(): raise RuntimeError("no such luck")
def leaving(): raise SystemExit(3)
def returning(): return {"model": 1}
def needing(width, depth): return build()
def needing_classes(num_classes): return build(num_classes)
def fixed(): return build()
def lazy(): return nn.Sequential(nn.LazyConv2d(3, 3, 2))
def smuggled():
    import spectral
    return spectral.load_model("bundled/resnet20@random")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder as a user has it: a network, a module beside it, a package."""
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "shapes.py").write_text("WIDTH = 8\n")
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").write_text("")
    (tmp_path / "ownpackage" / "nets.py").write_text(NET.replace("import shapes", "class shapes: WIDTH = 6"))
    (tmp_path / "broken.py").write_text("raise ImportError('half written')\n")
    (tmp_path / "loud.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "ownpackage", "ownpackage.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def load(name, **options):
    return spectral.load_model(name, input_size=32, **options)


@pytest.mark.parametrize(
    "name", ["my_net.py:build", "ownpackage.nets:build", "my_net.py:made", "my_net.py:Net"]
)
def test_what_is_named_is_loaded(own, name):
    path = list(sys.path)
    net = load(name)
    assert isinstance(net, nn.Module)
    assert not net.training
    info = spectral.model_info(net)
    assert info.name == name
    assert info.weights_id.startswith("sha256:")
    assert sys.path == path


def test_a_file_elsewhere_sees_the_modules_beside_it(own, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load(f"{own}/my_net.py:build")[0].out_channels == 8


def test_untrained_weights_come_from_a_seed_and_leave_the_callers_stream_alone(own):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = load("my_net.py:build"), load("my_net.py:build")
    assert torch.equal(torch.rand(3), expected)
    assert spectral.model_info(one).weights_id == spectral.model_info(two).weights_id


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_net.py:raising", "the factory raised RuntimeError: no such luck (line"),
        ("my_net.py:leaving", "the factory raised SystemExit: 3"),
        ("my_net.py:returning", "returned a dict; expected a torch.nn.Module"),
        ("my_net.py:needing", r"needs arguments \(width, depth\)"),
        ("my_net.py:needing_classes", r"pass classes \(--classes N\)"),
        ("my_net.py:answer", "is a int; expected a function"),
        ("my_net.py:biuld", "nearest: 'build'"),
        ("my_net.py:lazy", "shape from their first input"),
        ("other.py:build", "there is no file other.py"),
        ("broken.py:build", "importing broken.py raised ImportError: half written"),
        ("no.such.package:build", "ModuleNotFoundError: No module named 'no'"),
        ("my_net.py:build@random", "leave @random out"),
    ],
)
def test_bad_factories_are_one_sentence(own, name, said):
    with pytest.raises(SpectralError, match=said.replace("(line", r"\(line")) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loud.py", "./loud.py", "loud.py:", "loud.py@x.pt", "loud.py:1", "loud"])
def test_a_path_alone_runs_nothing(own, name):
    with pytest.raises(SpectralError):
        load(name)
    assert not (own / "ran").exists()


def test_a_python_file_that_is_no_weights_file_says_how_to_name_it(own):
    with pytest.raises(SpectralError, match="run only where one of its names is given"):
        load("loud.py")


def test_a_weights_files_json_runs_no_code(own):
    save_checkpoint(nn.Conv2d(3, 4, 3), own / "net.safetensors", {"architecture": "loud.py:build"})
    with pytest.raises(SpectralError, match="isn't run unless you name it"):
        load("net.safetensors")
    assert not (own / "ran").exists()


def test_unknown_sizes_are_assumed_aloud_and_known_ones_are_taken(own):
    with pytest.warns(SpectralWarning, match="224 × 224 is assumed"):
        assert spectral.model_info(spectral.load_model("my_net.py:build")).preprocessing.size == (224, 224)
    assert spectral.model_info(spectral.load_model("my_net.py:known")).preprocessing.size == (48, 40)


def test_normalisation_is_the_networks_own_unless_told(own, rng_images):
    seen = []
    net = load("my_net.py:known")
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    spectral.measure(net, rng_images, ("avr",), progress=False)
    assert any(x.min() < -0.4 for x in seen)  # (0 − 0.25) / 0.5
    with pytest.warns(SpectralWarning, match="normalisation isn't known"):
        spectral.measure(load("my_net.py:build"), rng_images, ("avr",), progress=False)
    told = load("my_net.py:build", mean=0.5, std=(0.25, 0.25, 0.25))
    table = spectral.measure(told, rng_images, ("avr",), progress=False)
    assert table.attrs["provenance"]["preprocessing"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def rng_images():
    return spectral.load_images("synthetic", size=32, limit=4)


def test_mean_and_std_are_checked(own):
    for given, said in [
        ({"mean": 0.5}, "go together"), ({"mean": (0.5, 0.5), "std": 0.0}, "above 0"),
        ({"mean": "a", "std": 1.0}, "expected numbers"),
    ]:  # fmt: skip
        with pytest.raises(SpectralError, match=said):
            load("my_net.py:build", **given)
    with pytest.raises(SpectralError, match="takes 3 channels, got 2"):
        spectral.load_model("bundled/resnet20@random", mean=(0.5, 0.5), std=(1, 1))
    info = spectral.model_info(spectral.load_model("bundled/resnet20@random", mean=0.25, std=0.5))
    assert info.preprocessing.mean == (0.25,) * 3


def test_a_network_that_load_model_gave_keeps_what_is_known_of_it(own):
    info = spectral.model_info(spectral.load_model("my_net.py:smuggled"))
    assert info.name == "my_net.py:smuggled"
    assert info.preprocessing.mean == (0.5, 0.5, 0.5)


def tuned(own, classes=7):
    """Weights as fine-tuning leaves them: of a head with other classes."""
    model = load("my_net.py:build", classes=classes)
    with torch.no_grad():
        model[-1].bias.fill_(3.0)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, "tuned.pt"
    )
    return model


@pytest.mark.parametrize("spelled", ["my_net.py:build@tuned.pt", "my_net.py:build"])
def test_tuned_weights_go_into_the_named_network(own, spelled):
    expected = tuned(own)
    weights = None if "@" in spelled else "tuned.pt"
    net = load(spelled, weights=weights, classes=7)
    assert torch.equal(net[-1].weight, expected[-1].weight)
    info = spectral.model_info(net)
    assert (info.name, info.num_classes) == ("my_net.py:build@tuned.pt", 7)
    with pytest.raises(SpectralError, match="another shape"):
        load("my_net.py:build@tuned.pt")
    with pytest.raises(SpectralError, match="doesn't have"):
        load("my_net.py:fixed@tuned.pt", classes=7)
    with pytest.raises(SpectralError, match="two weights files"):
        load("my_net.py:build@tuned.pt", weights="tuned.pt")
    Path("table.csv").write_text("a,b\n")
    with pytest.raises(SpectralError, match=r"'table\.csv' behind 'bundled/resnet20' is no weights file"):
        load("bundled/resnet20@table.csv")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_masks_and_bounds_may_be_infinite_and_weights_may_not(own, suffix):
    net = spectral.load_model("my_net.py:masked")
    file = f"kept{suffix}"
    if suffix == ".pt":
        torch.save(net.state_dict(), file)
    else:
        save_checkpoint(net, file, {})
    again = spectral.load_model(f"my_net.py:masked@{file}")
    mean = spectral.average_weights([net, again])
    assert again.least == mean.least == -torch.inf
    assert len(spectral.measure(mean, torch.rand(2, 3, 48, 40), progress=False))
    for name in ("net.0.weight", "mask"):
        state = {k: v.clone() for k, v in net.state_dict().items()}
        state[name].view(-1)[0] = torch.nan if name == "mask" else torch.inf
        torch.save(state, "broken.pt")
        with pytest.raises(SpectralError, match=f"the weights must be finite, but {name} has 1 NaN"):
            spectral.load_model("my_net.py:masked@broken.pt")


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18", "bundled/resnet20"])
def test_a_head_for_other_classes_needs_weights(own, name, monkeypatch):
    model = spectral.load_model(f"{name}@random", classes=5)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert head.out_features == 5
    assert spectral.model_info(model).num_classes == 5
    assert spectral.model_info(model).classes is None
    torch.save(model.state_dict(), "five.pth")
    again = spectral.load_model(name, weights="five.pth", classes=5)
    assert spectral.model_info(again).weights_id.endswith(spectral.model_info(model).weights_id[-16:])
    assert spectral.model_info(again).preprocessing == spectral.model_info(model).preprocessing
    with pytest.raises(SpectralError, match="another shape"):
        spectral.load_model(name, weights="five.pth")


def test_a_trained_head_is_never_exchanged_for_a_random_one():
    with pytest.raises(SpectralError, match="a head for 5 would be untrained"):
        spectral.load_model("bundled/resnet20", classes=5)
    assert spectral.model_info(spectral.load_model("bundled/resnet20", classes=10)).num_classes == 10


def test_weights_and_random_exclude_each_other(own):
    with pytest.raises(SpectralError, match="leave one of them out"):
        spectral.load_model("bundled/resnet20@random", weights="x.pt")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_every_command_takes_the_users_network(own):
    tuned(own)
    given = ["my_net.py:build", "--weights", "tuned.pt", "--classes", 7, "--input-size", 32]
    scale = ["--mean", "0.5", "--std", "0.25,0.25,0.25"]
    images = ["--images", "synthetic", "--limit", 4, "--quiet"]
    code, said = run("sites", *given)
    assert code == 0, said
    assert "2 downsampling sites" in said
    code, said = run("measure", *given, *scale, *images, "--out", "run")
    assert code == 0, said
    assert spectral.read("run").attrs["provenance"]["preprocessing"]["mean"] == [0.5] * 3
    assert set(spectral.read("run")["model"]) == {"my_net.py:build@tuned.pt"}
    code, said = run("attribute", *given, *scale, *images)
    assert code == 0, said
    code, said = run(
        "compare", "my_net.py:build@tuned.pt", "my_net.py:build@tuned.pt+flc", *given[3:], *scale, *images
    )
    assert code == 0, said
    code, said = run("convert", *given, *scale, "--method", "flc", "--out", "smooth.safetensors")
    assert code == 0, said
    described = json.loads((own / "smooth.json").read_text())
    assert (described["architecture"], described["num_classes"]) == ("my_net.py:build", 7)
    code, said = run("sites", "smooth.safetensors")
    assert (code, "isn't run unless" in said) == (2, True)
    code, said = run("sites", "smooth.safetensors", "--architecture", "./my_net.py:build")
    assert code == 0, said
    assert "low_pass" in said


def test_several_models_name_their_weights_each(own):
    code, said = run("compare", "my_net.py:build", "my_net.py:Net", "--weights", "tuned.pt")
    assert (code, "MODEL@FILE" in said) == (2, True)


@pytest.mark.parametrize("value", ["a,b", "", "0.5,,0.5"])
def test_numbers_on_the_command_line_are_checked(own, value):
    code, said = run("sites", "my_net.py:build", "--mean", value, "--std", "1")
    assert (code, "no list of numbers" in said) == (2, True)


@pytest.fixture
def folder(tmp_path):
    """A tiny network of transformers, saved as its users save theirs."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` isn't installed")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    net = transformers.ResNetForImageClassification(config)
    net.save_pretrained(tmp_path / "pets")
    described = {
        "do_normalize": True,
        "image_mean": [0.1] * 3,
        "image_std": [0.2] * 3,
        "size": {"height": 48, "width": 48},
    }
    (tmp_path / "pets" / "preprocessor_config.json").write_text(json.dumps(described))
    return tmp_path / "pets", net


def test_a_folder_of_transformers_is_a_model(folder):
    path, net = folder
    loaded = spectral.load_model(path)
    info = spectral.model_info(loaded)
    assert (info.classes, info.num_classes, info.preprocessing.size) == (("cat", "dog"), 2, (48, 48))
    x = torch.rand(1, 3, 48, 48)
    assert torch.equal(loaded(x).logits, net.eval()(x).logits)
    images = spectral.load_images("synthetic", size=48, limit=3)
    table = spectral.measure(loaded, images, ("avr", "sis"), progress=False)
    assert table.attrs["provenance"]["preprocessing"]["mean"] == pytest.approx([0.1] * 3)
    assert "sis" in set(table["metric"])
    structure = spectral.load_model(f"{path}@random")
    assert spectral.model_info(structure).weights_id.startswith("random-0:")


def test_weights_that_a_folder_lacks_are_no_random_numbers(folder):
    path, net = folder
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("classifier")}
    import safetensors.torch

    safetensors.torch.save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpectralError, match="lacks 2 of the network's weights"):
        spectral.load_model(path)


def test_a_network_of_other_inputs_is_told_how_it_is_measured(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv1d(1, 4, 5, 2), nn.Flatten())\n"
    )
    name = f"{tmp_path / 'net.py'}:build"
    making = ["convert", name, "--method", "flc", "--out", f"{tmp_path / 'smooth.safetensors'}"]
    for command, option in (["sites", name], "--images"), (making, "--calibrate"):
        result = CliRunner().invoke(main, [*command, "--size", "16"])
        assert result.exit_code == 2
        assert f"give some with {option}: a .npy file" in result.output
        assert len(result.output.strip().splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_factory_may_return_an_exported_network(tmp_path):
    """It has one mode alone, and refuses to be put into another."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ndef build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2)).eval()\n"
        "    return torch.export.export(net, (torch.zeros(2, 3, 16, 16),)).module()\n"
    )
    program = spectral.load_model(f"{tmp_path / 'net.py'}:build")
    assert [site.stride for site in spectral.find_sites(program, torch.rand(2, 3, 16, 16))] == [(2, 2)]
