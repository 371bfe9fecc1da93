"""Converted networks as users meet them: by name, from a file, fine-tuned, measured through their layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from networks import image
from PIL import Image
from torch import Tensor, nn

from spectral.cli import main
from spectral.errors import SpectralError
from spectral.files.writers import claim_file
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import LAYERS, APSPool2d, FLCPool2d, make_pool
from spectral.measurement import measure
from spectral.models import load_model, model_info
from spectral.models.architectures import build
from spectral.models.checkpoint import save_checkpoint
from spectral.repair.distillation import STATE_NAME, distill
from spectral.repair.reconstruction import reconstruct
from spectral.sites import find_sites
from spectral.surgery import conversion_report, convert, convert_alike
from spectral.training import LabelledImages, Recipe, train


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pooled(layer: nn.Module, channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1), layer, nn.Conv2d(channels, 2, 3, 1, 1)).eval()


@pytest.mark.parametrize("method", [m for m in LAYERS if m != "space-to-depth"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_every_layer_is_one_site_whose_dense_map_gives_its_output(method, size):
    net, x = pooled(make_pool(method, 8, 2)), image(3, 3, *size)
    (site,) = find_sites(net, size)
    assert (site.module, site.stride, site.measurable, site.input_size) == ("1", (2, 2), True, size)
    with torch.no_grad():
        with FeatureExtractor(net, [site], tap="dense") as dense:
            net(x)
        with FeatureExtractor(net, [site], tap="output") as output:
            net(x)
    kept = dense["1"][..., ::2, ::2]
    n_h, n_w = site.output_size
    assert (kept[..., :n_h, :n_w] - output["1"]).abs().max() <= 2e-6 * output["1"].abs().max()


@pytest.mark.parametrize("method", ["flc", "asap", "ideal"])
def test_a_low_pass_leaves_nothing_to_alias(method):
    table = measure(
        pooled(make_pool(method, 8, 2)), image(2, 3, 14, 18), ("am_relative", "avr"), progress=False
    )
    assert table.query("metric == 'am_relative'")["value"].max() < 1e-6
    raw = measure(pooled(make_pool("aps", 8, 2)), image(2, 3, 14, 18), ("am_relative",), progress=False)
    assert raw.query("metric == 'am_relative'")["value"].min() > 0.1


def test_a_polyphase_layer_is_measured_at_the_phase_it_chose():
    layer, x = APSPool2d(2), image(1, 3, 8, 8)
    net = nn.Sequential(layer)
    (site,) = find_sites(net, 8)
    seen = []
    with FeatureExtractor(net, [site], tap="dense") as fx:
        for shift in (0, 1):
            net(x.roll(shift, -1))
            seen.append(fx[site.name].clone())
    same = [seen[0].roll(move, (-2, -1)) for move in ((i, j) for i in range(0, 8, 2) for j in range(0, 8, 2))]
    assert any(torch.equal(seen[1], moved) for moved in same), (
        "the same content, moved by whole output samples"
    )


def test_a_layer_without_a_map_before_decimation_says_so():
    net = nn.Sequential(FLCPool2d(2, compat="paper"), nn.MaxPool2d(2), nn.Flatten())
    table = measure(net, image(2, 3, 16, 16), ("am",), progress=False)
    assert set(table.loc[table["metric"] != "", "site"]) == {"1"}  # its output is no class scores
    reasons = table[table["metric"] == ""].set_index("site")["reason"]
    assert "it has no map before decimation" in reasons["0"]


def test_a_name_with_a_method_is_converted():
    net, plain = load_model("bundled/resnet20+flc"), load_model("bundled/resnet20")
    info, original = model_info(net), model_info(plain)
    assert info.name == "bundled/resnet20+flc"
    assert info.weights_id == original.weights_id  # FLC has no weights of its own: the name tells them apart
    assert info.preprocessing == original.preprocessing
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), convert(plain, "flc")(x))
    with pytest.raises(SpectralError, match=r"unknown method 'flk'.*'flc'|'flk'.*flc"):
        load_model("bundled/resnet20+flk")


def test_convert_writes_a_file_that_loads_as_a_model(tmp_path):
    path = tmp_path / "r.safetensors"
    run = run_command(
        "convert", "bundled/resnet8@random", "--method", "blurpool", "--where", "layer2.*", "--out", path
    )
    assert run.exit_code == 0, run.output
    assert "2 of 4 sites replaced" in run.output
    net, x = load_model(str(path)), image(2, 3, 32, 32)
    expected = convert(load_model("bundled/resnet8@random"), "blurpool", "layer2.*")
    with torch.no_grad():
        assert torch.equal(net(x), expected(x))
    assert json.loads(path.with_suffix(".json").read_text())["converted_from"] == "bundled/resnet8@random"
    listed = run_command("sites", path)
    assert "blur_pool" in listed.output


def write_photos(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_convert_repairs_what_it_did(tmp_path):
    path, folder = tmp_path / "r.safetensors", write_photos(tmp_path / "photos")
    run = run_command(
        "convert", "bundled/resnet20", "--method", "flc", "--calibrate", folder, "--distill", 2, "--out", path
    )
    assert run.exit_code == 0, run.output
    model = load_model("bundled/resnet20")
    calibrated = reconstruct(convert(model, "flc"), str(folder), held_out=0.2)
    expected = distill(
        calibrated, str(folder), teacher=model, steps=2, max_lr=1e-4, tune="norms", progress=False
    )
    assert "divergence from bundled/resnet20 on images left out" in run.output
    net, x = load_model(str(path)), image(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected(x), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(net(x), calibrated(x), rtol=1e-3, atol=1e-3)
    assert not list(tmp_path.rglob("*state.pt"))


def test_convert_waits_for_nobody_and_leaves_an_interrupted_distillation_alone(tmp_path):
    path = tmp_path / "r.safetensors"
    state = tmp_path / "training" / "r" / STATE_NAME
    state.parent.mkdir(parents=True)
    state.write_bytes(b"of another command")
    command = ("convert", "bundled/resnet8@random", "--method", "blurpool", "--out", path)
    with claim_file(path):
        taken = run_command(*command)
    assert (taken.exit_code, path.exists()) == (2, False)
    assert "r.safetensors is being written by process" in taken.output
    assert run_command(*command).exit_code == 0
    assert (path.exists(), state.read_bytes()) == (True, b"of another command")
    assert {one.name for one in tmp_path.iterdir()} == {"r.safetensors", "r.json", "training"}


def test_convert_writes_over_nothing_but_what_it_would_write_again(tmp_path):
    folder, photos = tmp_path / "out", write_photos(tmp_path / "photos")
    path, beside = folder / "r.safetensors", folder / "r.json"
    command = ("convert", "bundled/resnet8@random", "--out", path, "--method")

    def refused(*changed: object) -> str:
        files = {file: file.read_bytes() for file in folder.iterdir()}
        run = run_command(*changed)
        assert run.exit_code == 2, run.output
        assert files == {file: file.read_bytes() for file in folder.iterdir()}
        return run.output

    assert "r.json is what describes the weights" in run_command(*command, "flc", "--json", beside).output
    assert run_command(*command, "flc").exit_code == 0
    written = path.read_bytes()
    assert run_command(*command, "flc").exit_code == 0
    assert path.read_bytes() == written
    assert "r.safetensors is of method = 'flc', not 'aps'; choose" in refused(*command, "aps")
    assert "is of options = [], not ['compat=True']" in refused(*command, "flc", "--option", "compat=True")
    assert "is of images = None, not 'folder:photos@" in refused(*command, "flc", "--calibrate", photos)
    # a trained network's own file, given as what to convert and as where to
    path.write_bytes(b"cut")
    assert "holds no weights, or is damaged" in refused(*command, "flc")
    save_checkpoint(build("resnet8"), path, {"architecture": "resnet8"})
    assert "nothing tells what it was made of" in refused("convert", path, "--method", "flc", "--out", path)
    beside.unlink()
    assert "r.safetensors stands there" in refused(*command, "flc")
    path.rename(folder / "other.safetensors")
    beside.write_text('{"of": "somebody else"}')
    assert "r.json stands there" in refused(*command, "flc")


def test_convert_takes_the_layers_options_and_calibrates(tmp_path):
    path, folder = tmp_path / "r.safetensors", write_photos(tmp_path / "photos")
    run = run_command(
        "convert", "bundled/resnet8@random", "--method", "blurpool", "--option", "kernel_size=5",
        "--calibrate", folder, "--out", path,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    net, x = load_model(str(path)), image(2, 3, 32, 32)
    plain = convert(load_model("bundled/resnet8@random"), "blurpool", kernel_size=5)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reconstruct(plain, str(folder))(x))
        assert not torch.allclose(net(x), plain(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "flk"), "flk"),
        (("--method", "blurpool", "--option", "kernel_size"), "expected NAME=VALUE"),
        (("--method", "blurpool", "--option", "size=5"), "size"),
        (("--method", "flc", "--calibrate", "no/such/folder"), "no/such/folder"),
        (("--method", "flc", "--distill", "5"), "name them with --calibrate"),
        (("--method", "flc", "--where", "layer9*"), "layer9"),
        (("--method", "flc", "--placement", "in front"), "in front"),
    ],
)
def test_convert_refuses_in_one_sentence(tmp_path, arguments, message):
    run = run_command("convert", "bundled/resnet8@random", *arguments, "--out", tmp_path / "r.safetensors")
    assert run.exit_code == 2
    assert message in run.output
    assert "Traceback" not in run.output
    assert not list(tmp_path.iterdir())


def tiny_set(n: int = 8) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(n) % 2, ("a", "b"), "made")


def test_fine_tuning_starts_from_the_given_weights_and_resumes(tmp_path):
    start = convert(load_model("bundled/resnet8@random"), "flc")
    before = {name: value.clone() for name, value in start.state_dict().items()}
    recipe = Recipe(epochs=2, batch_size=4, max_lr=1e-6, precision="fp32")
    result = train("resnet8", tiny_set(), tiny_set(), tmp_path, recipe, progress=False, start=start)
    tuned = result["model"]
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name]), "the network that was given stays as it was"
    weights = dict(tuned.named_parameters())
    assert weights.keys() == dict(start.named_parameters()).keys()
    assert all((w - before[name]).abs().max() < 1e-3 for name, w in weights.items())
    assert any(not torch.equal(w, before[name]) for name, w in weights.items())
    again = train("resnet8", tiny_set(), tiny_set(), tmp_path, recipe, progress=False, start=start)
    assert all(torch.equal(again["model"].state_dict()[n], v) for n, v in tuned.state_dict().items())
    other = convert(build("resnet8"), "flc", example=32)
    with pytest.raises(SpectralError, match="holds a run with start"):
        train("resnet8", tiny_set(), tiny_set(), tmp_path, recipe, progress=False, start=other)


def test_fine_tuning_gives_images_as_the_network_wants_them(tmp_path):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    metadata = {"architecture": "resnet8-a", "family": "resnet", "mean": mean, "std": std, "size": (32, 32)}
    path = save_checkpoint(build("resnet8-a"), tmp_path / "published.safetensors", metadata)
    start = load_model(str(path))
    seen: list[Tensor] = []
    start.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    data = tiny_set()
    recipe = Recipe(epochs=1, batch_size=8, crop_padding=0, flip=False, precision="fp32")
    result = train("resnet8-a", data, data, tmp_path / "run", recipe, progress=False, start=start)
    assert (result["mean"], result["std"]) == (mean, std)
    first, trained, tested = (x.double() for x in seen)
    pixels = data.images.double() / 255
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(first, expected[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tested, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained.sum((0, 2, 3)), expected.sum((0, 2, 3)), rtol=1e-5, atol=1e-3)


def test_fine_tuning_refuses_what_it_can_not_tune(tmp_path):
    foreign = load_model("timm/resnet10t@random")
    with pytest.raises(SpectralError, match="1000 outputs, the data has 2 classes; give it a head for them"):
        train("resnet10t", tiny_set(), tiny_set(), tmp_path, progress=False, start=foreign)
    many = LabelledImages(tiny_set().images, torch.arange(8), tuple("abcdefgh"), "made")
    small = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with pytest.raises(SpectralError, match="2 outputs, the data has 8 classes; give"):
        train("resnet20", many, many, tmp_path, progress=False, start=small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an ARCHITECTURE to train, or a network to tune with --from"),
        (("resnet20", "--from", "bundled/resnet20"), "not both"),
        (("resnet20", "--method", "flcc"), "no method is called 'flcc'; nearest: 'flc'"),
        (("resnet20", "--padding", "circle"), "padding can't be 'circle'; nearest: 'circular'"),
        (("resnet20", "--upsampling", "idael"), "upsampling can't be 'idael'; nearest: 'ideal'"),
    ],
)
def test_train_refuses_in_one_sentence(tmp_path, arguments, message):
    run = run_command("train", *arguments, "--data", tmp_path, "--out", tmp_path / "out")
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())


def test_every_remedy_goes_by_name_by_command_and_through_a_file(tmp_path):
    net, x = load_model("bundled/resnet8@random"), image(2, 3, 32, 32)
    options = {"activations": "alias-free", "padding": "circular"}
    with torch.no_grad():
        expected = convert(net, "flc", **options)(x)
        named = load_model("bundled/resnet8@random+flc+alias-free+circular")
        torch.testing.assert_close(named(x), expected)
        other = load_model("bundled/resnet8@random+circular+alias-free+flc")  # in any order
        torch.testing.assert_close(other(x), expected)
    path = tmp_path / "steady.safetensors"
    run = run_command("convert", "bundled/resnet8@random", "--method", "flc", "--activations", "alias-free",
                      "--padding", "circular", "--out", path)  # fmt: skip
    assert run.exit_code == 0, run.output
    lines = run.output.splitlines()
    assert {"activations: alias-free", "padding: circular"} <= set(lines)
    assert (
        "altered: 14 activations, borders and finer lattices" in lines
    )  # 7 ReLUs and the borders of 7 3×3 convolutions
    loaded = load_model(path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected)
    assert conversion_report(loaded).remedies.options == options


def test_a_network_without_sites_has_borders_all_the_same(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = image(1, 3, 12, 12)
    steady = convert(plain, None, example=12, padding="circular")
    report = conversion_report(steady)
    assert (report.replaced, report.remedies.altered, report.changes) == ([], ("0",), True)
    again = convert_alike(plain, type(report).from_dict(json.loads(json.dumps(report.to_dict()))))
    moved = x.roll((3, 2), (-2, -1))
    with torch.no_grad():
        torch.testing.assert_close(steady(moved), steady(x))
        assert not torch.allclose(plain(moved), plain(x))
        assert torch.equal(again(x), steady(x))
    with pytest.raises(SpectralError, match="nothing is asked for; give a method, activations=, padding="):
        convert(plain, None, example=12)
    with pytest.raises(SpectralError, match="give a method as well"):
        convert(plain, None, "0", example=12, padding="circular")


def test_what_cannot_be_altered_is_said_and_nothing_is_written(tmp_path):
    path = tmp_path / "same.safetensors"
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    run = run_command("convert", f"{tmp_path}/net.py:build", "--padding", "circular", "--out", path,
                      "--size", "16")  # fmt: skip
    assert run.exit_code == 2
    assert "nothing was replaced" in run.output
    assert not path.exists()
    empty = run_command("convert", "bundled/resnet20", "--out", path)
    assert empty.exit_code == 2
    assert "give --method, --activations, --padding" in " ".join(empty.output.split())


def test_whole_pixels_do_no_harm_on_a_lattice_as_fine_as_the_strides():
    net, x = load_model("bundled/resnet20"), image(4, 3, 32, 32)
    steady = convert(net, "flc", activations="alias-free-4", padding="circular")
    coarser = convert(net, "flc", activations="alias-free", padding="circular")

    def find_change(model: nn.Module) -> float:
        with torch.no_grad():
            logits = model(x)
            return float((model(x.roll(1, -1)) - logits).norm() / logits.norm())

    plain, some, none = (find_change(model) for model in (net, coarser, steady))
    assert none < 1e-5
    assert 1e-3 < some < plain / 2  # strides come to 4, and a lattice twice as fine holds but half a sample


def test_every_remedy_trains_from_the_weights_of_its_control(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "pets" / split / kind
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    run = run_command(
        "train", "resnet8", "--method", "flc", "--activations", "alias-free-4", "--padding", "circular",
        "--data", tmp_path / "pets", "--out", tmp_path, "--epochs", "1", "--seed", "5", "--max-lr", "1e-9",
        "--precision", "fp32",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    path = tmp_path / "resnet8-flc-alias-free-4-circular.safetensors"
    described = json.loads(path.with_suffix(".json").read_text())
    assert "tuned_from" not in described
    assert described["recipe"]["epochs"] == 1
    loaded = load_model(path)
    torch.manual_seed(5)
    fresh = build("resnet8")
    for name, weight in fresh.named_parameters():  # the rate is next to nothing: they are where they began
        torch.testing.assert_close(loaded.get_parameter(name), weight, atol=1e-6, rtol=1e-5)
    x = image(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x.roll((1, 2), (-2, -1))), loaded(x), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(fresh.eval()(x.roll((1, 2), (-2, -1))), fresh(x), atol=1e-5, rtol=1e-4)
