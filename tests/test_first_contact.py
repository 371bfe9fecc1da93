"""First contact: `measure` with its defaults on little models of every sort."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError, SpectralWarning
from spectral.measurement import measure


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Body(nn.Module):
    """Two sites, then whatever ``end`` makes of the features and the input."""

    def __init__(self, end: Any = None, channels: int = 3, rank: int = 2, features: int = 8) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[rank]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.pool = conv(channels, features, 3, 2, 1), pool(2)
            self.fc = nn.Linear(features, 5)
        self.end, self.rank = end, rank

    def maps(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x).relu())

    def scores(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x).flatten(2).mean(2))

    def forward(self, x: Tensor) -> Any:
        return self.scores(x) if self.end is None else self.end(self, x)


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As of transformers: a dictionary with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class TwoInputs(Body):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.scores(image.float() / 255 * mask if image.dtype == torch.uint8 else image * mask)


class OneDictionary(Body):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.scores(batch["image"])


class Named(Body):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ModelOutput:  # type: ignore[override]
        return ModelOutput(loss=None, logits=self.scores(pixel_values))


class Detector(Body):
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:  # type: ignore[override]
        return [{"boxes": self.maps(x[None]).flatten(2).mean(2)} for x in images]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.up(z.view(-1, 16, 1, 1).expand(-1, -1, 4, 4)).tanh()


class Autoencoder(Body):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.maps(x)[:, :3], size=x.shape[-2:])


class LastChannels(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x.permute(0, 3, 1, 2))


class Spectrogram(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x[:, None])


class Waves(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x[:, None])


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1).to(torch.complex64)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.to(torch.complex64)).abs().mean((2, 3)))


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2).mean((2, 3))


class Frozen(Body):
    """Normalises by running statistics also in training, as frozen layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.bn.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.bn(x))


class TokenClassifier(Body):
    def forward(self, x: Tensor) -> ModelOutput:
        return ModelOutput(logits=self.fc(self.maps(x).flatten(2).transpose(1, 2)))


class Scalar(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)[:, :1]


class Unit(Body):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.scores(x))


def identity_head(**options: Any) -> Body:
    net = Body(**options)
    net.fc = nn.Identity()  # type: ignore[assignment]
    return net


X = noise(3, 3, 32, 32)
MAP = "is a map"
EMBEDDING = "isn't known to be class scores"

# name → (model, images, why there is no SIS, or None)
CASES: dict[str, tuple[nn.Module, Any, str | None]] = {
    "classifier": (Body(), X, None),
    "logits attribute": (Body(lambda s, x: Output(s.scores(x), x)), X, None),
    "logits key": (Body(lambda s, x: {"logits": s.scores(x), "aux": x}), X, None),
    "model output": (Named(), {"pixel_values": X}, None),
    "model output, tensor": (Named(), X, None),
    "out key": (Body(lambda s, x: {"out": s.scores(x)}), X, None),
    "tuple": (Body(lambda s, x: (s.scores(x), s.maps(x))), X, None),
    "list": (Body(lambda s, x: [s.scores(x), s.maps(x)]), X, None),
    "softmax inside": (Body(lambda s, x: s.scores(x).softmax(-1)), X, None),
    "log softmax inside": (Body(lambda s, x: s.scores(x).log_softmax(-1)), X, None),
    "segmenter": (Body(lambda s, x: {"out": s.maps(x), "aux": s.maps(x)}), X, MAP),
    "segmenter, logits": (Body(lambda s, x: ModelOutput(logits=s.maps(x))), X, MAP),
    "backbone": (Body(lambda s, x: s.maps(x)), X, MAP),
    "pyramid": (Body(lambda s, x: [s.conv(x), s.maps(x)]), X, MAP),
    "hidden state": (Body(lambda s, x: ModelOutput(last_hidden_state=s.maps(x))), X, "has no logits"),
    "token classifier": (TokenClassifier(), X, MAP),
    "detector": (Detector(), list(noise(3, 3, 32, 32)), "has no logits"),
    "detector, several sizes": (Detector(), [noise(3, 32, 32), noise(3, 24, 40)], "has no logits"),
    "autoencoder": (Autoencoder(), X, MAP),
    "generator": (Generator(), noise(3, 16), MAP),
    "embedding, unit": (Unit(), X, EMBEDDING),
    "embedding, no head": (identity_head(), X, EMBEDDING),
    "embedding, features": (Body(lambda s, x: s.maps(x).mean((2, 3))), X, EMBEDDING),
    "one number": (Scalar(), X, "one number per image"),
    "nothing": (Body(lambda s, x: (s.maps(x), None)[1]), X, "has no logits"),
    "signals": (Body(channels=2, rank=1), noise(3, 2, 64), None),
    "waveforms": (Waves(channels=1, rank=1), noise(3, 64), None),
    "spectrograms": (Spectrogram(channels=1), noise(3, 40, 64), None),
    "videos": (Body(rank=3), noise(2, 3, 8, 16, 16), None),
    "two inputs": (TwoInputs(), (X, noise(3, 1, 32, 32)), None),
    "two named inputs": (TwoInputs(), {"image": X, "mask": noise(3, 1, 32, 32)}, None),
    "8-bit image and mask": (TwoInputs(), ((255 * X).to(torch.uint8), noise(3, 1, 32, 32)), None),
    "one dictionary": (OneDictionary(), {"image": X}, None),
    "one dictionary in a tuple": (OneDictionary(), ({"image": X},), None),
    "channels last": (LastChannels(), noise(3, 32, 32, 3), None),
    "one channel": (Body(channels=1), noise(3, 1, 32, 32), None),
    "one channel without axis": (Body(channels=1), noise(5, 32, 32), None),
    "one image": (Body(), noise(3, 32, 32), None),
    "array": (Body(), noise(3, 3, 32, 32).numpy(), None),
    "array of pixels": (Body(), (255 * noise(3, 32, 32, 3).numpy()).astype(np.uint8), None),
    "float64": (Body().double(), X, None),
    "float16": (Body().half(), X, None),
    "bfloat16": (Body().bfloat16(), X, None),
    "complex": (Complex(), X, None),
    "no parameters": (NoParameters(), X, EMBEDDING),
    "frozen, in training": (Frozen().train(), X, None),
    "no site": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), X, None),
}


UNCERTAIN = ("embedding, features", "no parameters")


def contact(model: nn.Module, images: Any, **options: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        table = measure(model, images, progress=False, **options)
    return table, [str(w.message) for w in caught if issubclass(w.category, SpectralWarning)]


@pytest.mark.parametrize("name", list(CASES))
def test_defaults_measure_what_can_be_measured(name):
    model, images, missing = CASES[name]
    with unchanged(model):
        table, said = contact(model, images)
    measured = table[table["reason"] == ""]
    assert np.isfinite(measured["value"]).all()
    sites = {site["name"] for site in table.attrs["sites"] if site["measurable"]}
    assert set(measured["site"]) - {""} == sites
    assert bool(sites) == (name not in ("generator", "no site", "complex")), table.attrs["sites"]
    reasons = table[table["reason"] != ""]
    account = reasons[reasons["site"] == ""].set_index("metric")["reason"]
    assert ("sis" in set(measured["metric"])) == (missing is None)
    assert ("prediction" in set(measured["metric"])) == (missing is None)
    if missing is None:
        assert "sis" not in account
        assert not any("without sis" in sentence for sentence in said)
    else:
        assert missing in account["sis"]
        assert any("is measured without" in sentence and "sis" in sentence for sentence in said)
        if name in UNCERTAIN:  # asked for by name it is measured, and what was taken for scores is said
            table, said = contact(model, images, metrics=("sis",))
            assert "is taken as class scores, though" in said[0]
            return
        with pytest.raises(SpectralError) as raised:
            measure(model, images, ("sis",), progress=False)
        assert "\n" not in str(raised.value)


def distance(p: Tensor, q: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(p, q, dim=-1)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("classifier", (2, 3)), ("tuple", (2, 3)), ("softmax inside", (2, 3)), ("channels last", (1, 2)),
        ("signals", (2,)), ("waveforms", (1,)), ("spectrograms", (1, 2)), ("videos", (2, 3, 4)),
    ],
)  # fmt: skip
def test_sis_is_that_of_the_definition(name, axes):
    model, x, _ = CASES[name]
    table, _ = contact(model, x)
    found = table[table["metric"] == "sis"]["value"].to_numpy()
    double = model.double()
    try:
        with torch.no_grad():

            def predict(x: Tensor) -> Tensor:
                output = double(x.double())
                scores = output[0] if isinstance(output, tuple) else output
                return scores if name == "softmax inside" else scores.softmax(-1)

            p = predict(x)
            moved = [predict(x.roll(step, axis)) for axis in axes for step in (1, -1)]
        expected = torch.stack([distance(p, q) for q in moved]).mean(0)
    finally:
        model.float()
    assert expected.min() > 1e-9
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-2, atol=1e-10)


def test_the_mask_moves_with_its_image():
    model, (x, mask), _ = CASES["two inputs"]
    table, _ = contact(model, (x, mask))
    with torch.no_grad():
        p = model(x, mask).double().softmax(-1)
        moved = [model(x.roll(s, a), mask.roll(s, a)).double().softmax(-1) for a in (2, 3) for s in (1, -1)]
    expected = torch.stack([distance(p, q) for q in moved]).mean(0)
    found = table[table["metric"] == "sis"]["value"].to_numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-2, atol=1e-9)


def test_what_logits_makes_of_the_output():
    net = Body(lambda s, x: {"boxes": x, "main": s.scores(x)})
    table, said = contact(net, X, logits=lambda output: output["main"])
    plain, _ = contact(Body(), X)
    left, right = (t[t["metric"] == "sis"]["value"].to_numpy() for t in (table, plain))
    np.testing.assert_array_equal(left, right)
    assert said == []
    assert "has no logits" in contact(net, X)[1][0]


def test_lazy_modules_ask_for_a_first_pass():
    net = nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = measure(net, X, progress=False)
        except SpectralError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert "sis" in set(table["metric"])


def image_by_image(body: Body, x: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": body.maps(image[None]).flatten(2)[0, :4].T} for image in x]


LOOPS: dict[str, Any] = {
    "detector": image_by_image,
    "slices of the batch": lambda b, x: torch.cat([b.scores(x[i : i + 1]) for i in range(len(x))]),
    "map": lambda b, x: torch.cat(list(map(lambda image: b.scores(image[None]), x))),  # noqa: C417
}


@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("name", LOOPS)
def test_a_model_that_loops_over_its_images(name, batch_size):
    images = noise(5, 3, 32, 32)
    table = measure(
        Body(LOOPS[name]), images, metrics=("avr",), sites=None, batch_size=batch_size, progress=False
    )
    whole = measure(Body(), images, metrics=("avr",), progress=False)
    keys = ["image", "site", "tap", "metric"]
    found = table[table["site"] != ""].set_index(keys)["value"].sort_index()
    expected = whole[whole["site"] != ""].set_index(keys)["value"].sort_index()
    assert list(found.index) == list(expected.index)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
