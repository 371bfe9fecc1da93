"""Classifying one image: labels and scores, what is refused, and the command."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from spectral import cli
from spectral.classification import classify
from spectral.errors import SpectralError
from spectral.files.json_files import read_json
from spectral.models import load_model, model_info

RANDOM = "bundled/resnet8@random"
ORIENTATION = 0x0112


class Means(nn.Module):
    """Logits are the means of the three channels, times a gain, after the preprocessing that it is given."""

    def __init__(self, classes: tuple[str, ...] | None = ("red", "green", "blue"), size: int = 32) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.seen: list[Tensor] = []
        info = model_info(load_model(RANDOM))
        assert info is not None
        scale = dataclasses.replace(info.preprocessing, size=(size, size + 4))
        self.spectral_info = dataclasses.replace(info, preprocessing=scale, classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(x)
        return self.gain * x.mean((2, 3))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["classify", *map(str, arguments)])


def fails(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return error


class TestScores:
    def test_softmax_of_the_logits_best_first(self) -> None:
        # 255, 0 and 51 are 1, −1 and −0.6 after (x − ½) / ½; times 4 they are the logits.
        found = classify(Means(), Image.new("RGB", (36, 32), (255, 0, 51)))
        exps = {"red": math.exp(4), "green": math.exp(-4), "blue": math.exp(-2.4)}
        assert [one["label"] for one in found] == ["red", "blue", "green"]
        for one in found:
            assert set(one) == {"label", "score"}
            assert isinstance(one["score"], float)
            assert one["score"] == pytest.approx(exps[one["label"]] / sum(exps.values()), rel=1e-5)

    @pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (50, 3)])
    def test_top_k(self, top_k: int, count: int) -> None:
        found = classify(Means(), Image.new("RGB", (36, 32), "lime"), top_k)
        assert len(found) == count
        assert found[0]["label"] == "green"

    def test_a_real_network_as_computed_by_hand(self) -> None:
        model, image = load_model(RANDOM), picture(32, 32)
        found = classify(model, image, top_k=10)
        with torch.no_grad():
            expected = model((as_tensor(image)[None] - 0.5) / 0.5)[0].softmax(0)
        # the random network's checkpoint names no classes
        assert {one["label"] for one in found} == {f"LABEL_{i}" for i in range(10)}
        for one in found:
            assert one["score"] == pytest.approx(float(expected[int(one["label"][6:])]), abs=1e-6)
        assert sum(one["score"] for one in found) == pytest.approx(1)

    @pytest.mark.parametrize("classes", [None, ("one", "two")])
    def test_classes_without_a_name_each_are_numbered(self, classes: tuple[str, ...] | None) -> None:
        found = classify(Means(classes), Image.new("RGB", (36, 32), "red"), top_k=1)
        assert found[0]["label"] == "LABEL_0"

    def test_a_network_names_its_classes_itself(self) -> None:
        model = Means(classes=None)
        model.config = SimpleNamespace(id2label={0: "rot", 1: "gruen", 2: "blau"})
        labels = {one["label"] for one in classify(model, picture(32, 36))}
        assert labels == {"rot", "gruen", "blau"}

    def test_the_model_stays_as_it_was(self) -> None:
        model = Means().train()
        classify(model, picture(32, 36))
        assert model.training
        assert model.gain.grad is None

    def test_double_precision(self) -> None:
        model = Means().double()
        classify(model, picture(32, 36))
        assert model.seen[0].dtype == torch.float64


class TestImages:
    def test_a_file_a_picture_and_a_tensor_are_the_same(self, tmp_path: Path) -> None:
        image, model = picture(32, 36), Means()
        image.save(tmp_path / "a.png")
        results = [
            classify(model, one)
            for one in (tmp_path / "a.png", str(tmp_path / "a.png"), image, as_tensor(image))
        ]
        assert all(result == results[0] for result in results)
        assert all(torch.equal(seen, model.seen[0]) for seen in model.seen)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
    def test_modes_are_converted_to_rgb(self, mode: str, tmp_path: Path) -> None:
        image, model = picture(32, 36).convert(mode), Means()
        classify(model, image)
        expected = as_tensor(image.convert("RGB"))[None] * 2 - 1
        torch.testing.assert_close(model.seen[0], expected, rtol=0, atol=1e-6)

    def test_transparency_is_dropped_as_convert_does(self) -> None:
        clear = Image.new("RGBA", (36, 32), (255, 0, 0, 0))
        assert classify(Means(), clear, 1)[0]["label"] == "red"

    def test_a_photograph_is_turned_upright(self, tmp_path: Path) -> None:
        image, model = picture(36, 32), Means()
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # to be turned by 90° clockwise
        image.save(tmp_path / "turned.png", exif=exif)
        classify(model, tmp_path / "turned.png")
        expected = as_tensor(image).rot90(-1, (1, 2))[None] * 2 - 1
        torch.testing.assert_close(model.seen[0], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("size", [(64, 72), (17, 40), (50, 20), (1, 1), (33, 36), (32, 100)])
    def test_another_size_is_refused_unless_asked_for(self, size: tuple[int, int], tmp_path: Path) -> None:
        image = Image.new("RGB", size[::-1], (0, 0, 255))
        sentence = rf"size, 32×36 \(height × width\), got {size[0]}×{size[1]}; resize it, .* \(--resize\)"
        with pytest.raises(SpectralError, match=sentence):
            classify(Means(), image)
        model = Means()
        classify(model, image, resize=True)
        assert model.seen[0].shape == (1, 3, 32, 36)
        # a constant stays that constant
        torch.testing.assert_close(model.seen[0][0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
        assert model.seen[0].flatten(2).std(-1).max() < 1e-5

    def test_resizing_keeps_the_middle_of_the_longer_side(self) -> None:
        image = torch.zeros(3, 32, 108)
        image[0, :, 36:72] = 1
        model = Means()
        classify(model, image, resize=True)
        assert torch.equal(model.seen[0][0, 0], torch.ones(32, 36))

    def test_resizing_down_is_antialiased(self) -> None:
        # A checkerboard at the Nyquist frequency has no business at half the size: there it is gray.
        rows, columns = torch.arange(64)[:, None], torch.arange(72)[None]
        board = ((rows + columns) % 2).float().expand(3, 64, 72)
        model = Means()
        classify(model, board, resize=True)
        inside = model.seen[0][..., 2:-2, 2:-2]
        assert inside.abs().max() < 1e-5

    def test_an_image_of_the_size_isnt_touched_by_resize(self) -> None:
        image = picture(32, 36)
        model = Means()
        classify(model, image)
        classify(model, image, resize=True)
        assert torch.equal(*model.seen)


class TestRefusals:
    @pytest.mark.parametrize(
        ("image", "sentence"),
        [
            (
                torch.zeros(1, 3, 32, 36),
                r"expected a floating-point tensor .*got torch.float32 of shape \(1, 3, ",
            ),
            (torch.zeros(4, 32, 36), r"of shape \(4, 32, 36\)"),
            (torch.zeros(3, 32, 36, dtype=torch.uint8), "got torch.uint8"),
            (torch.full((3, 32, 36), 1.5), r"expected values in \[0, 1\].*divide 8-bit values by 255"),
            (torch.full((3, 32, 36), -0.1), r"expected values in \[0, 1\]"),
            (torch.full((3, 32, 36), float("nan")), r"expected values in \[0, 1\]"),
            (torch.zeros(3, 0, 36), r"expected values in \[0, 1\]"),
            (np.zeros((32, 36, 3)), "a path, a PIL image or a .* tensor, got ndarray"),
            (Image.new("F", (36, 32)), "8 bits per channel, got mode 'F'"),
            (Image.new("I;16", (36, 32)), "8 bits per channel, got mode 'I;16'"),
            (Image.new("La", (36, 32)), "classify: the image can't be converted to RGB"),
        ],
    )
    def test_what_is_no_image(self, image: object, sentence: str) -> None:
        with pytest.raises(SpectralError, match=sentence) as caught:
            classify(Means(), image)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(SpectralError, match=r"none\.png: there is no such image file"):
            classify(Means(), tmp_path / "none.png")
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(
            SpectralError, match=r"text\.png: expected an image .* got a file of no known format"
        ):
            classify(Means(), tmp_path / "text.png")
        picture(32, 36).save(tmp_path / "cut.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-1500])
        with pytest.raises(
            SpectralError, match=r"cut\.png: the image can't be converted to RGB \(.*truncated"
        ):
            classify(Means(), tmp_path / "cut.png")
        picture(20, 20).save(tmp_path / "small.png")
        with pytest.raises(SpectralError, match=r"small\.png: expected an image of the model's size"):
            classify(Means(), tmp_path / "small.png")

    def test_models(self) -> None:
        with pytest.raises(
            SpectralError, match=r"this Identity says nothing .* load the model with spectral\."
        ):
            classify(nn.Identity(), picture(32, 32))
        mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        told = classify(mean, picture(32, 32), top_k=np.int64(3), preprocessing=((0.5,) * 3, (0.25,) * 3))
        assert sum(one["score"] for one in told) == pytest.approx(1)
        with pytest.raises(SpectralError, match="top_k must be ≥ 1, got 0"):
            classify(Means(), picture(32, 36), top_k=0)
        model = Means()
        with torch.no_grad():
            model.gain.fill_(float("nan"))
        with pytest.raises(SpectralError, match="logits have NaN"):
            classify(model, picture(32, 36))


class TestCommand:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        picture(32, 32).save(tmp_path / "a.png")
        return tmp_path / "a.png"

    def test_help(self) -> None:
        text = run("--help").output
        assert "Example:\n    spectral classify nula/robust " in text
        example = next(line for line in text.splitlines() if line.startswith("    spectral classify"))
        for option in (word for word in example.split() if word.startswith("--")):
            assert option in text.split("Options:")[1]

    def test_a_line_per_class(self, image: Path) -> None:
        result = run("bundled/resnet20", image)
        assert result.exit_code == 0
        expected = classify(load_model("bundled/resnet20"), image)
        assert result.stdout.splitlines() == [f"{one['label']}: {one['score']:.2%}" for one in expected]
        assert all(re.fullmatch(r"[a-z]+: \d+\.\d\d%", line) for line in result.stdout.splitlines())
        assert len(expected) == 5

    def test_several_images_and_json(self, image: Path, tmp_path: Path) -> None:
        picture(50, 40, seed=1).save(tmp_path / "b.jpg")
        where = tmp_path / "new" / "found.json"
        result = run(RANDOM, image, tmp_path / "b.jpg", "--top-k", 2, "--resize", "--json", where)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert [lines[0], lines[3], len(lines)] == [f"{image}:", f"{tmp_path / 'b.jpg'}:", 6]
        content = read_json(where)
        model = load_model(RANDOM)
        assert content["images"] == [
            {"image": str(path), "predictions": classify(model, path, 2, resize=True)}
            for path in (image, tmp_path / "b.jpg")
        ]
        info = model_info(model)
        assert info is not None
        assert (content["model"], content["weights"]) == (RANDOM, info.weights_id)
        assert (content["size"], content["resize"]) == ([32, 32], True)

    def test_a_weights_file(self, image: Path, tmp_path: Path) -> None:
        torch.save(load_model(RANDOM).state_dict(), tmp_path / "w.pt")
        result = run(tmp_path / "w.pt", image, "--architecture", "resnet8")
        assert result.stdout == run(RANDOM, image).stdout

    def test_bad_input_is_one_sentence(self, image: Path, tmp_path: Path) -> None:
        picture(64, 48).save(tmp_path / "large.png")
        assert "32×32 (height × width), got 64×48; resize it, or" in fails(
            run(RANDOM, tmp_path / "large.png")
        )
        assert "there is no such image file" in fails(run(RANDOM, tmp_path / "none.png"))
        assert fails(run(RANDOM, tmp_path)).endswith("is a folder; name image files in it")
        assert "unknown model" in fails(run("quux", image))
        assert "Missing argument 'IMAGE...'" in fails(run(RANDOM))
        assert "0 is not in the range" in fails(run(RANDOM, image, "--top-k", "0"))
        (tmp_path / "file").write_text("")
        assert "file" in fails(run(RANDOM, image, "--json", tmp_path / "file" / "found.json"))
