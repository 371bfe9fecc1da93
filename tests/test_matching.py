"""Sites stay what they are: in training as in evaluation, behind branches, in loops, in generated code."""

from __future__ import annotations

import copy
from collections.abc import Callable

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from networks import active_modes, image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import measure
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import Site, find_sites
from spectral.surgery import convert
from spectral.tracing.places import find_steps


def pool(x: Tensor) -> Tensor:
    """Pool, from whatever it is called."""
    return F.max_pool2d(x, 2)


class Base(nn.Module):
    """Its main map is what the site named `main` gets, whatever else runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(2)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
        self.seen: list[Tensor] = []

    def aux(self, h: Tensor) -> Tensor:
        """A map on which nothing aliases."""
        return torch.ones_like(h)

    def main(self, h: Tensor) -> Tensor:
        """Note the main map."""
        self.seen = [h.detach().clone()]
        return h


class Functional(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            F.max_pool2d(self.aux(h), 2)
        return F.max_pool2d(self.main(h), 2).mean((2, 3))


class OneLine(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        aux, y = F.max_pool2d(self.aux(h), 2) if self.training else 0, F.max_pool2d(self.main(h), 2)
        return (y + aux).mean((2, 3))


class ThroughAFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            pool(self.aux(h))
        return pool(self.main(h)).mean((2, 3))


class SameModule(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            self.pool(self.aux(h))
        return self.pool(self.main(h)).mean((2, 3))


class SameBlock(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            self.block(self.aux(h))
        return self.block(self.main(h)).mean((2, 3))


class SlicesAux(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.training:
            self.aux(h)[:, :, ::2, ::2].sum()
        return self.main(h)[:, :, ::2, ::2].mean((2, 3))


class InLoop(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        for k in range(3):
            if self.training and k == 1:
                pool(self.aux(h))
            if k == 2:
                h = pool(self.main(h))
        return h.mean((2, 3))


class AuxInEvaluation(Base):
    """The other way round: what was found first doesn't run."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if not self.training:
            F.max_pool2d(self.aux(h), 2)
        return F.max_pool2d(self.main(h), 2).mean((2, 3))


class AuxOfTheModuleInEvaluation(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if not self.training:
            self.pool(self.aux(h))
        return self.pool(self.main(h)).mean((2, 3))


class CheckpointedMethod(Base):
    """Called from elsewhere in training."""

    def body(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.main(self.conv(x)), 2)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.body, x, use_reentrant=False) if self.training else self.body(x)
        return y.mean((2, 3))


class CheckpointedModule(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.main(self.conv(x))
        y = checkpoint(self.block, h, use_reentrant=False) if self.training else self.block(h)
        return y.mean((2, 3))


NETS: dict[str, Callable[[], Base]] = {
    kind.__name__: kind
    for kind in (
        Functional, OneLine, ThroughAFunction, SameModule, SameBlock, SlicesAux, InLoop, AuxInEvaluation,
        AuxOfTheModuleInEvaluation, CheckpointedMethod, CheckpointedModule,
    )
}  # fmt: skip


def make(name: str) -> tuple[Base, list[Site], Site]:
    """A network, its sites, and the one that the main map enters, which comes last."""
    torch.manual_seed(0)
    model = NETS[name]().eval()
    sites = find_sites(model, 32)
    return model, sites, sites[-1]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_training_and_evaluation_name_the_same_map(name, grad):
    model, sites, main = make(name)
    x = image(2, 3, 32, 32)
    with torch.set_grad_enabled(grad):
        for detach in (True, False):
            with FeatureExtractor(model, sites, detach=detach) as fx:
                for training in (False, True, False):
                    model.train(training)
                    model(x)
                    assert torch.equal(fx[main.name], model.seen[0]), training
        numbers = []
        with AliasingMonitor(model, sites, ("avr",)) as monitor:
            for training in (False, True):
                model.train(training)
                model(x)
                numbers.append(monitor.values()[f"{main.name}/dense/avr"])
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert numbers[0] > 0.01
    assert active_modes() == 0


@pytest.mark.parametrize("name", NETS)
def test_the_penalty_is_that_of_the_main_map(name):
    model, _, main = make(name)
    x, values = image(2, 3, 32, 32), []
    with AliasingPenalty(model, [main]) as penalty:
        for training in (False, True):
            model.train(training)
            model(x)
            value = penalty.value()
            value.backward()
            values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("name", ["AuxInEvaluation", "AuxOfTheModuleInEvaluation"])
def test_what_does_not_run_is_said_not_to(name):
    model, sites, main = make(name)
    aux = next(site for site in sites if site.name != main.name)
    with FeatureExtractor(model, sites) as fx, AliasingMonitor(model, sites, ("avr",)) as monitor:
        model(image(2, 3, 32, 32))
        assert fx[aux.name].min() == 1
        model.train()
        model(image(2, 3, 32, 32))
        with pytest.raises(SpectralError, match="didn't run in the latest forward pass"):
            fx[aux.name]
        assert set(monitor.values()) == {f"{main.name}/dense/avr", "mean/dense/avr"}


def test_the_other_branch_is_another_site():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        if float(x.detach().mean()) > 0:
            return F.max_pool2d(m.a(x), 2)
        return F.max_pool2d(m.b(x), 2)

    model = nets.Call(run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1))
    x = image(2, 3, 32, 32).abs()
    (site,) = find_sites(model, x)
    with FeatureExtractor(model, [site]) as fx:
        model(x)
        assert torch.equal(fx[site.name], model.a(x))
        model(-x)
        with pytest.raises(SpectralError, match="didn't run in the latest forward pass"):
            fx[site.name]


class Pyramid(Base):
    """Pools what stands in a list, which is longer in training."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        maps = [self.aux(h), h] if self.training else [h]
        return torch.stack([F.max_pool2d(m, 2) for m in maps]).mean((0, 3, 4))


class Repeats(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        for m in [self.aux(h), h] if self.training else [h]:
            y = self.pool(m)
        return y.mean((2, 3))


@pytest.mark.parametrize("tap", ["input", "dense", "output"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("net", [Pyramid, Repeats])
def test_a_loop_that_runs_more_often_is_an_error(net, detach, tap):
    """Which of its rounds is the one that was found can't be told."""
    model, x = net().eval(), image(2, 3, 32, 32)
    (site,) = find_sites(model, 32)
    with FeatureExtractor(model, [site], tap=tap, detach=detach) as fx:
        model(x)
        model.train()
        expected = rf"which operator is site '{site.name}' \(line \d+ of .*\) can't be told: it ran 2 times"
        with pytest.raises(SpectralError, match=expected):
            model(x)
        assert active_modes() == 0
        model.eval()
        model(x)
        assert fx[site.name].shape[0] == 2


def test_a_loop_that_runs_less_often_is_one_too():
    class Shrinking(Base):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1 if self.training else 2):
                x = F.max_pool2d(x, 2)
            return x

    model = Shrinking().eval()
    sites = find_sites(model, 32)
    model.train()
    with (
        FeatureExtractor(model, sites[:1]),
        pytest.raises(SpectralError, match="ran 1 times in this pass, not 2"),
    ):
        model(image(1, 3, 32, 32))


@pytest.mark.parametrize("name", NETS)
def test_copies_of_the_code_have_the_same_places(name):
    model, _, main = make(name)
    twin, x = copy.deepcopy(model), image(2, 3, 32, 32)
    with FeatureExtractor(twin, [main]) as fx:
        twin.train()(x)
    assert torch.equal(fx[main.name], twin.seen[0])


class Graphable(nn.Module):
    """Can be traced: two pools in the forward, a slice and a strided convolution in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(3, 4, 3, 1, 1), nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.conv(x), 2)
        h = F.max_pool2d(h.relu(), 2) + h[:, :, ::2, ::2]
        return self.block(h).mean((2, 3))


GRAPHS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda m: m,
    "fx": torch.fx.symbolic_trace,
    "copy of fx": lambda m: copy.deepcopy(torch.fx.symbolic_trace(m)),
    "export": lambda m: torch.export.export(m, (torch.zeros(2, 3, 32, 32),)).module(),
}


@pytest.mark.parametrize("form", GRAPHS)
def test_generated_code(form):
    torch.manual_seed(0)
    source = Graphable().eval()
    model, x = GRAPHS[form](source), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    assert len(sites) == 4
    later = copy.deepcopy(model)
    with torch.no_grad(), FeatureExtractor(model, sites) as fx, FeatureExtractor(later, sites) as again:
        model(x)
        later(x)
    with torch.no_grad():
        h = F.max_pool2d(source.conv(x), 2)
        expected = [source.conv(x), h.relu(), h, F.max_pool2d(h.relu(), 2) + h[:, :, ::2, ::2]]
    for site, tensor in zip(sites, expected, strict=True):
        torch.testing.assert_close(fx[site.name], tensor)
        assert torch.equal(fx[site.name], again[site.name])


# Passes that no call of the model begins


class Staged(nn.Module):
    """Steps of a training framework, which call parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.pool(self.pool(self.stem(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))

    @torch.enable_grad()
    def training_step(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.pool(self.pool(h))
        return self.body(h).mean()

    def fit(self, batches: list[Tensor], note: Callable[[], None]) -> None:
        for batch in batches:
            self.training_step(batch)
            note()

    def fit_in_one(self, batches: list[Tensor], note: Callable[[], None]) -> None:
        for batch in batches:
            self.body(self.pool(self.pool(self.stem(batch))))
            note()


@pytest.mark.parametrize("method", ["features", "training_step"])
def test_modules_that_one_method_calls_are_one_pass(method):
    model, x = Staged(), image(2, 3, 64, 64)
    sites = find_sites(model, 64)
    assert [site.name for site in sites] == ["stem", "pool@0", "pool@1", "body.0"]
    with FeatureExtractor(model, sites) as fx, FeatureExtractor(model, sites) as expected:
        for seed in range(3):
            y = image(2, 3, 64, 64, seed=seed)
            model(y)
            wanted = {site.name: expected[site.name] for site in sites}
            getattr(model, method)(x)
            getattr(model, method)(y)
            assert all(torch.equal(fx[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("method", ["fit", "fit_in_one"])
def test_every_round_of_a_loop_is_a_pass(method):
    model, batches = Staged(), [image(2, 3, 64, 64, seed=seed) for seed in range(3)]
    sites = find_sites(model, 64)
    seen: list[list[Tensor]] = []
    with FeatureExtractor(model, sites) as fx:
        getattr(model, method)(batches, lambda: seen.append([fx[site.name] for site in sites]))
    for batch, tensors in zip(batches, seen, strict=True):
        with FeatureExtractor(model, sites) as expected:
            model(batch)
        assert all(torch.equal(expected[s.name], t) for s, t in zip(sites, tensors, strict=True))


def test_calls_one_by_one_are_passes_of_their_own():
    model, x = Staged(), image(2, 3, 64, 64)
    with FeatureExtractor(model, find_sites(model, 64)) as fx:
        h = model.stem(x)
        assert torch.equal(fx["stem"], x)
        model.body(h)
        assert torch.equal(fx["body.0"], h)
        with pytest.raises(SpectralError, match="didn't run in the latest forward pass"):
            fx["stem"]


def test_what_hooks_of_the_model_run_is_part_of_its_pass():
    """As of a converted network whose only layer is the model itself."""
    model = convert(nn.Conv2d(3, 4, 3, 2, 1), "blurpool", example=32)
    x = image(2, 3, 32, 32)
    (site,) = find_sites(model, 32)
    table = measure(model, x, metrics=("avr",), progress=False)
    assert set(table["site"]) - {""} == {site.name}
    with FeatureExtractor(model, [site], tap="output") as fx:
        for _ in range(2):
            assert torch.equal(model(x), fx[site.name])


class Recursive(nn.Module):
    """A forward that calls itself, on a map of half the size each time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 3, 3, 2, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        return self.forward(self.conv(x), depth - 1) if depth else self.head(x.mean((2, 3)))


@pytest.mark.parametrize("detach", [True, False])
def test_every_round_of_a_forward_that_calls_itself_is_a_site(detach):
    net = Recursive().eval()
    sites = find_sites(net, 32)
    with FeatureExtractor(net, sites, tap="output", detach=detach) as fx:
        net(image(2, 3, 32, 32))
    assert [fx[site.name].shape[-1] for site in sites] == [16, 8, 4]
    table = measure(net, image(2, 3, 32, 32), metrics=("avr",), progress=False)
    found = table[table["metric"] == "avr"].groupby("site")["value"].count()
    assert found.to_dict() == dict.fromkeys(("conv@0", "conv@1", "conv@2"), 4)  # two taps, two images
    assert list(table["reason"].fillna("").unique()) == [""]


def test_steps_name_the_functions_of_the_model():
    seen = []

    def note(module: nn.Module, args: object) -> None:
        seen.append([name for name, *_ in find_steps(None)])

    model = Staged()
    model.body[1].register_forward_pre_hook(note)
    model(image(1, 3, 16, 16))
    assert seen[0][-3:] == [
        "Staged.forward",
        "Staged.features",
        "test_steps_name_the_functions_of_the_model.<locals>.note",
    ]


def test_a_place_is_named_by_the_function_that_runs_and_not_by_an_equal_one_of_another_class():
    """Code is equal to that of another class's method where all but their names is the same."""
    source, found = "class {}:\n    def forward(self, find):\n        return find()\n", []
    for name in ("First", "Second"):
        scope: dict[str, type] = {}
        exec(compile(source.format(name), "network.py", "exec"), scope)
        found += [step for step, *_ in scope[name]().forward(lambda: find_steps(None)) if "forward" in step]
    assert found == ["First.forward", "Second.forward"]
