"""A watched model in all that people do with models: right values, or one sentence that says why not."""

from __future__ import annotations

import copy
import gc
import random
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from networks import active_modes, count_hooks, image
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.hooks import capture, extractor, matching
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import measure
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import find_sites
from spectral.surgery import convert
from spectral.tracing import graph, recorder, tracker


class Net(nn.Module):
    """A convolution that is a module, a pool and a slice that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = F.max_pool2d(self.norm(self.conv(x)), 2)[:, :, ::2, ::2]
        return self.head(y.mean((2, 3)))


def make() -> Net:
    torch.manual_seed(0)
    return Net().eval()


WATCHERS: dict[str, Callable[[nn.Module], Any]] = {
    "extractor": lambda net: FeatureExtractor(net, find_sites(net, 32)),
    "monitor": lambda net: AliasingMonitor(net, find_sites(net, 32), ("avr", "am")),
    "penalty": lambda net: AliasingPenalty(net, find_sites(net, 32)),
}


def read(watcher: Any) -> dict[str, Tensor]:
    if isinstance(watcher, FeatureExtractor):
        return {name: watcher[name] for name in watcher}
    if isinstance(watcher, AliasingPenalty):
        return {"": watcher.value()}
    return {name: torch.tensor(value) for name, value in watcher.values().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-6, atol=1e-7)


# Several at once


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kinds", [("monitor", "monitor"), ("monitor", "extractor", "penalty", "monitor")])
def test_several_watchers_see_what_each_sees_alone(kinds, grad):
    net, x = make(), image(2, 3, 32, 32)
    kinds = [kind for kind in kinds if grad or kind != "penalty"]
    alone = []
    with torch.set_grad_enabled(grad):
        expected = net(x)
        for kind in kinds:
            with WATCHERS[kind](net) as watcher:
                net(x)
                alone.append(read(watcher))
        watchers = [WATCHERS[kind](net) for kind in kinds]
        assert torch.equal(net(x), expected)
        for watcher, values in zip(watchers, alone, strict=True):
            assert_equal(read(watcher), values)
    for watcher in watchers:
        watcher.remove_hooks()
    assert (count_hooks(net), active_modes()) == (0, 0)


def test_a_monitor_hides_nothing_from_anybody():
    net, x = make(), image(4, 3, 32, 32)
    sites = find_sites(net, 32)
    table = measure(net, x, progress=False)
    smooth = convert(net, "blurpool", example=32)
    with WATCHERS["monitor"](net) as first, WATCHERS["monitor"](net) as second:
        assert find_sites(net, 32) == sites
        watched = measure(net, x, progress=False)
        assert torch.equal(convert(net, "blurpool", example=32)(x), smooth(x))
        numbers = ["site", "tap", "metric"]
        assert watched[numbers].equals(table[numbers])
        assert watched["value"].to_numpy() == pytest.approx(table["value"].to_numpy(), rel=1e-5, nan_ok=True)
        net(x)
        assert_equal(read(first), read(second))
        assert len(first.values()) == 2 * len(sites) + 2


# Copies


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "EMA": lambda net: torch.optim.swa_utils.AveragedModel(net).module,
    "copy of a copy": lambda net: copy.deepcopy(copy.deepcopy(net)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", WATCHERS)
def test_copies_are_free(kind, how):
    net, x = make(), image(2, 3, 32, 32)
    with WATCHERS[kind](net) as watcher:
        net(x)
        before = read(watcher)
        twin = COPIES[how](net)
        twin(2 * x)
        assert_equal(read(watcher), before)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in twin.modules())
    assert torch.equal(twin(x), net(x))
    with WATCHERS[kind](twin) as again:
        twin(x)
        assert_equal(read(again), before)


def test_a_copy_can_be_converted():
    net, x = make(), image(2, 3, 32, 32)
    expected = convert(net, "blurpool", example=32)(x)
    with WATCHERS["monitor"](net):
        twin = copy.deepcopy(net)
        for inplace in (False, True):
            assert torch.equal(convert(twin, "blurpool", example=32, inplace=inplace)(x), expected)
    assert torch.equal(twin(x), expected)


def test_a_module_by_name_in_a_copy():
    """The one hook that is torch's own does nothing there."""
    net, x = make(), image(2, 3, 32, 32)
    with FeatureExtractor(net, ["conv"], capture_input=False) as fx:
        net(x)
        twin = copy.deepcopy(net)
        twin(2 * x)
        assert torch.equal(fx["conv"], net.conv(x))


# Transforms


REFUSED: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "vmap": lambda net, x: torch.func.vmap(net)(x[:, None]),
    "grad": lambda net, x: torch.func.grad(lambda y: net(y).sum())(x),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (x,)),
    "jit.trace": lambda net, x: torch.jit.trace(net, x),
    "jit.script": lambda net, x: torch.jit.script(net),
    "export": lambda net, x: torch.export.export(net, (x,)),
    "compile": lambda net, x: torch.compile(net, backend="eager")(x),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("kind", WATCHERS)
def test_what_is_no_forward_pass_is_refused(kind, how):
    net, x = make(), image(2, 3, 32, 32)
    with WATCHERS[kind](net) as watcher:
        net(x)
        before = read(watcher)
        with pytest.raises(
            SpectralError, match=r"call remove_hooks\(\) first, or use a copy.deepcopy\(model\)"
        ):
            REFUSED[how](net, x)
        assert active_modes() == 0
        assert_equal(read(watcher), before)
        REFUSED[how](copy.deepcopy(net), x)
        net(x)
        assert_equal(read(watcher), before)
    REFUSED[how](net, x)


def test_functional_call_is_an_ordinary_pass():
    net, x = make(), image(2, 3, 32, 32)
    doubled = {name: 2 * value for name, value in net.state_dict().items()}
    with WATCHERS["monitor"](net) as monitor:
        torch.func.functional_call(net, doubled, x)
        found = read(monitor)
    other = make()
    other.load_state_dict(doubled)
    with WATCHERS["monitor"](other) as monitor:
        other(x)
        assert_equal(found, read(monitor))


# Memory


@pytest.mark.parametrize("kind", WATCHERS)
def test_nothing_holds_the_batch_or_its_graph(kind):
    net = make()
    x = image(2, 3, 32, 32).requires_grad_()
    given, out = weakref.ref(x), None
    gc.disable()
    try:
        with WATCHERS[kind](net) as watcher:
            out = net(x)
            left = weakref.ref(out)
            if isinstance(watcher, AliasingPenalty):
                watcher._begin()  # its value holds the graph, as it must
            del x, out
            assert given() is None
            assert left() is None
    finally:
        gc.enable()


# Interrupts


OWN = {module.__file__ for module in (capture, extractor, graph, matching, recorder, tracker)}


class Injection:
    """Raises KeyboardInterrupt before the n-th line of the files that watch."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> Injection | None:
        if frame.f_code.co_filename not in OWN:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def run_interrupted(net: nn.Module, use: Callable[[list[Any]], None], at: int) -> tuple[Injection, list[Any]]:
    made: list[Any] = []
    injection = Injection(at)
    before = sys.gettrace()
    try:
        sys.settrace(injection)
        use(made)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return injection, made


def count_lines(net: nn.Module, use: Callable[[list[Any]], None]) -> int:
    endless = 10**6
    return endless - run_interrupted(net, use, endless)[0].left


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("how", ["keep", "reduce"])
def test_an_interrupt_anywhere_leaves_nothing(how, detach):
    """While hooks are set, in a pass, and while they are removed: one more removal leaves all as it was."""
    net, x = make(), image(1, 3, 16, 16)
    sites = find_sites(net, 16)
    reduce = (lambda c: void(c.dense())) if how == "reduce" else None
    expected = net(x)

    def use(made: list[Any]) -> None:
        fx = FeatureExtractor(net, sites, tap="dense", detach=detach, reduce=reduce)
        made.append(fx)
        net(x)
        fx.remove_hooks()

    total = count_lines(net, use)
    generator = random.Random(0)
    for at in sorted(generator.choices(range(1, total), k=80)):
        injection, made = run_interrupted(net, use, at)
        assert active_modes() == 0, injection.where
        for fx in made:
            fx.remove_hooks()
        assert count_hooks(net) == 0, injection.where
        assert torch.equal(net(x), expected), injection.where


def void(value: object) -> None:
    pass


def test_an_interrupted_pass_is_forgotten():
    net, x = nets.FunctionalBlock().eval(), image(1, 3, 32, 32)
    sites = find_sites(net, 32)
    with FeatureExtractor(net, sites) as expected:
        net(x)
    with FeatureExtractor(net, sites) as fx:
        total = count_lines(net, lambda _: void(net(x)))
        for at in random.Random(1).choices(range(1, total), k=40):
            injection, _ = run_interrupted(net, lambda _: void(net(-x)), at)
            assert active_modes() == 0, injection.where
            net(x)
            assert all(torch.equal(fx[s.name], expected[s.name]) for s in sites), injection.where


class Mapped(nn.Module):
    """Calls a module for one image at a time, and its copies with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.many = nn.ModuleList(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.vmap(lambda one: self.net(one[None])[0])(x)
        weights = {k: torch.stack([getattr(one, k) for one in self.many]) for k in ("weight", "bias")}
        return torch.vmap(lambda own: torch.func.functional_call(self.many[0], own, (y,)))(weights).mean(0)


def test_what_a_model_maps_over_its_images_is_found_and_measured() -> None:
    torch.manual_seed(0)
    net, x = Mapped(), torch.rand(2, 3, 16, 24)
    sites = find_sites(net, (16, 24))
    assert [(site.op, site.stride, site.measurable) for site in sites] == [("conv", (2, 2), True)] * 2
    with FeatureExtractor(net, sites[:1], tap="dense") as fx:
        net(x)
    conv = net.net[0]
    torch.testing.assert_close(
        fx[sites[0].name], F.conv2d(x, conv.weight, conv.bias, padding=1).detach(), rtol=1e-5, atol=1e-5
    )
    assert measure(net, x, ["avr"], progress=False)["site"].nunique() == 2


class Differentiated(nn.Module):
    """Calls a module inside a transform that has no plain operators below it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: self.inner(y).square().sum())(x)


def test_what_a_model_differentiates_is_named() -> None:
    with pytest.raises(SpectralError, match="the model calls 'inner' so: measure that module by itself"):
        find_sites(Differentiated(), (16, 24))


class Ragged(nn.Module):
    """Has tensors without a shape, in between or as its output."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.first, self.last, self.back = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), back

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nested.as_nested_tensor(list(self.first(x)))
        return self.last(torch.nested.to_padded_tensor(y, 0.0)) if self.back else y


@pytest.mark.parametrize("back", [True, False])
def test_nested_tensors(back: bool) -> None:
    torch.manual_seed(0)
    net, x = Ragged(back), torch.rand(2, 3, 16, 24)
    expected = [y.clone() for y in net(x)]
    assert [site.module for site in find_sites(net, (16, 24))] == ["first", "last"][: 1 + back]
    assert measure(net, x, progress=False)["site"].nunique() >= 1 + back
    same = convert(net, "strided", example=x)(x)
    assert all(torch.equal(a, b) for a, b in zip(expected, same, strict=True))
