"""Looking never harms: a model is what it was, down to every value, after each call that looks at it."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from typing import ClassVar

import keepers
import pytest
import torch
from torch import Tensor, nn

import spectral
from spectral import SpectralError, find_sites
from spectral.hooks.capture import TAPS
from spectral.latency import count_macs, measure_latency
from spectral.measurement import METRICS
from spectral.processes.surroundings import kept_surroundings
from spectral.sites import watch_reductions

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*its normalisation isn't known"),
    pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature"),
]

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SET = spectral.load_images("synthetic", 32, 2)


class Scaled(nn.Module):
    """Multiplies its map with what a function makes of it, and keeps."""

    def __init__(self, make_scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.make_scale = make_scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.make_scale(y)


def _ramp(y: Tensor) -> Tensor:
    return torch.linspace(0, 1, y.shape[-1], device=y.device)


def _in_a_context_variable() -> nn.Module:
    variable: ContextVar[Tensor | None] = ContextVar("ramp", default=None)

    def make_scale(y: Tensor) -> Tensor:
        if variable.get() is None:
            variable.set(_ramp(y))
        return variable.get()

    return Scaled(make_scale)


def _in_a_module_of_torch() -> nn.Module:
    table = nn.Identity()
    table.ramps = {}
    return Scaled(lambda y: table.ramps.setdefault(y.shape[-1], _ramp(y)))


_HELPER = """
import torch
ramps = {}
latest = None
def ramp(y):
    global latest
    if latest is None:
        latest = torch.linspace(0, 1, y.shape[-1], device=y.device)
    return ramps.setdefault(y.shape[-1], latest)
"""


def _make_helper(code: str = _HELPER) -> types.ModuleType:
    helper = types.ModuleType("helper_of_a_network")
    exec(code, vars(helper))
    sys.modules[helper.__name__] = helper
    return helper


def _in_a_python_module() -> nn.Module:
    helper = _make_helper()
    return Scaled(lambda y: helper.ramp(y))


def _in_a_module_of_a_module() -> nn.Module:
    package = types.ModuleType("package_of_a_network")
    package.helper = _make_helper()
    return Scaled(lambda y: package.helper.ramp(y))


def _in_a_module_imported_late() -> nn.Module:
    _make_helper()

    def make_scale(y: Tensor) -> Tensor:
        import helper_of_a_network

        return helper_of_a_network.ramp(y)

    return Scaled(make_scale)


class Library:
    """Answers for every name, as wrappers of shared libraries do: nobody may ask it."""

    __slots__ = ()
    asked: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        Library.asked.append(name)
        return lambda: None


def _near_a_library() -> nn.Module:
    ramps: dict[int, Tensor] = {}
    library = Library()
    return Scaled(lambda y: ramps.setdefault(y.shape[-1], _ramp(y)) if library else y)


def _in_a_read_only_view() -> nn.Module:
    table: dict[int, Tensor] = {}
    view = types.MappingProxyType({"table": table})
    return Scaled(lambda y: view["table"].setdefault(y.shape[-1], _ramp(y)))


_DRAWING = """
import random, numpy as np, torch
numbers = random.Random(0), np.random.default_rng(0), np.random.RandomState(0)
count, generator, system = np.zeros(1), torch.Generator().manual_seed(0), random.SystemRandom()
def ramp(y):
    count[0] += system.random() < 1
    return float(count[0]) + sum(number.random() for number in numbers) * torch.rand((), generator=generator)
"""


def _in_an_array_and_generators() -> nn.Module:
    helper = _make_helper(_DRAWING)
    return Scaled(lambda y: helper.ramp(y))


REACHED = {
    "context variable": _in_a_context_variable, "module of torch": _in_a_module_of_torch,
    "Python module": _in_a_python_module, "module of a module": _in_a_module_of_a_module,
    "imported in the forward": _in_a_module_imported_late, "near a library": _near_a_library,
    "read-only view": _in_a_read_only_view, "array and generators": _in_an_array_and_generators,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget() -> None:
    keepers.forget()


def make(name: str, state: str) -> nn.Module:
    torch.manual_seed(0)
    model = keepers.KEEPERS[name]()
    if state == "evaluation":
        model.eval()
    elif state == "used":
        model.eval()
        with kept_surroundings(), torch.no_grad():
            model(torch.rand(2, 3, 32, 32))
        model.train()
    return model


class TestFindSites:
    @pytest.mark.parametrize(("state", "real"), [("training", False), ("training", True), ("used", False)])
    @pytest.mark.parametrize("name", keepers.KEEPERS)
    def test_nothing_is_left_behind(self, name, state, real):
        model = make(name, state)
        model = keepers.on_real_data(lambda: model)() if real else model
        before = keepers.photograph(model)
        sites = find_sites(model, 32)
        assert before.differences(keepers.photograph(model)) == []
        assert len(sites) >= 1
        assert find_sites(model, 32) == sites

    @pytest.mark.parametrize("name", ["Lazy", "Merging"])
    def test_modules_that_become_something_else(self, name):
        torch.manual_seed(0)
        model = getattr(keepers, name)()
        before = keepers.photograph(model)
        assert [site.op for site in find_sites(model, 32)] == ["conv"]
        assert before.differences(keepers.photograph(model)) == []

    @pytest.mark.parametrize("name", REACHED)
    def test_what_code_reaches_elsewhere(self, name):
        model = REACHED[name]()
        expected = model(IMAGES)
        model = REACHED[name]()
        assert [site.op for site in find_sites(model, 32)] == ["conv"]
        torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=0)
        assert Library.asked == []

    def test_a_parametrised_weight_is_not_computed(self):
        model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, 2)))
        before = keepers.photograph(model)
        spectral.measure(model, IMAGES, metrics=("avr",), progress=False)
        find_sites(model, IMAGES)
        assert before.differences(keepers.photograph(model)) == []

    def test_what_cannot_be_copied_and_changes_is_named(self):
        model = keepers.Iterating()
        with pytest.raises(SpectralError, match=r"Iterating changes 'steps' \(a generator\)"):
            find_sites(model, 32)

    def test_what_cannot_be_copied_and_stays_does_no_harm(self):
        model = keepers.Net()
        model.steps = (i for i in range(3))
        assert len(find_sites(model, 32)) == 1
        assert list(model.steps) == [0, 1, 2]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("name", keepers.KEEPERS)
    def test_nothing_is_left_behind_by_a_pass_that_ends_early(self, name, error):
        def fail(module: nn.Module, args: object) -> None:
            raise error

        model = make(name, "training")
        model = nn.Sequential(model, nn.Identity())
        model[1].register_forward_pre_hook(fail)
        before = keepers.photograph(model)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else SpectralError):
            find_sites(model, 32)
        assert before.differences(keepers.photograph(model)) == []

    @pytest.mark.parametrize("name", ["InstanceCache", "NestedCache", "HelperCache", "LazyHook", "Log"])
    def test_while_other_threads_look_and_run(self, name):
        model = make(name, "evaluation")
        (site,) = find_sites(model, 32)
        failures: list[BaseException] = []

        def repeat(action: Callable[[], bool]) -> None:
            try:
                assert all(action() for _ in range(10))
            except BaseException as error:  # to be seen by the test, not by the thread
                failures.append(error)

        def run() -> bool:
            with torch.no_grad():
                return model(torch.rand(2, 3, 32, 32)).device.type == "cpu"

        actions = [lambda: find_sites(model, 32) == [site]] * 2 + [run]
        threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_the_weights_are_not_copied(self):
        model = keepers.Net()
        for net in (model, keepers.on_real_data(lambda: model)()):
            seen: list[nn.Module] = []

            def keep(copy: nn.Module) -> AbstractContextManager[None]:
                seen.append(copy)  # noqa: B023 - called before the loop goes on
                return nullcontext()

            watch_reductions(net, 32, keep)
            for copy in seen:
                for name, weight in copy.named_parameters():
                    assert weight.is_meta or weight is net.get_parameter(name)


def finds_pools(model: nn.Module, images: Tensor) -> None:
    spectral.find_global_pools(model, images)
    spectral.find_reductions(model, images)
    spectral.get_stride_layers(model)


def converts(model: nn.Module, images: Tensor) -> None:
    spectral.conversion_report(spectral.convert(model, "blurpool", example=images))
    spectral.revert(spectral.convert(model, "flc", example=images))


def recalibrates(model: nn.Module, images: Tensor) -> None:
    spectral.recalibrate(spectral.convert(model, "blurpool", example=images), images, reference=model)


def captures(model: nn.Module, images: Tensor) -> None:
    sites = spectral.find_sites(model, images)
    for tap in ("input", "dense", "output"):
        with spectral.FeatureExtractor(model, sites, tap=tap), torch.no_grad():
            pass


def monitors(model: nn.Module, images: Tensor) -> None:
    sites = spectral.find_sites(model, images)
    with spectral.AliasingMonitor(model, sites), spectral.AliasingPenalty(model, sites):
        pass


# Calls of the public surface that take a model: those that look, and those that run its own forward.
LOOKING = {
    "find_sites": find_sites,
    "find_global_pools": finds_pools,
    "convert": converts,
    "FeatureExtractor": captures,
    "AliasingMonitor": monitors,
}
# Those in which more than a cache is at stake: modes, hooks, random numbers, weights that are changed.
MODES_AND_HOOKS = [
    "Net", "InstanceCache", "FunctionCache", "Log", "LazyHook", "HookedBefore", "Shared", "Random",
    "Settings", "OwnForward", "Frozen", "WritesInput", "Merging", "Parametrizations", "Graph", "FeatureGraph",
]  # fmt: skip
quiet = {"progress": False}
RUNNING: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "measure": lambda model, x: spectral.measure(model, x, METRICS, taps=TAPS, **quiet),
    "measure one by one": lambda model, x: spectral.measure(model, x, ("avr",), batch_size=1, **quiet),
    "recalibrate": recalibrates,
    "compute_sis": spectral.compute_sis,
    "attribute_instability": lambda model, x: spectral.attribute_instability(model, x, **quiet),
    "measure_equivariance": lambda model, x: spectral.measure_equivariance(model, x, **quiet),
    "measure_consistency": spectral.measure_consistency,
    "measure_worst_shift": lambda model, x: spectral.measure_worst_shift(model, x, 1),
    "measure_diagonal": lambda model, x: spectral.measure_diagonal(model, x),
    "measure_predictions": lambda model, x: spectral.measure_predictions(model, SET, ["decimate-2"], **quiet),
    "measure_robustness": lambda model, x: spectral.measure_robustness(model, SET, ["fgsm"], **quiet),
    "measure_fourier_heatmap": lambda model, x: spectral.measure_fourier_heatmap(
        model, SET, radius=1, **quiet
    ),
    "measure_latency": lambda model, x: measure_latency({"": model}, {"": x}, repeats=1),
    "count_macs": count_macs,
}


class TestEveryCall:
    def test_every_call_works_on_a_plain_network(self):
        for call in (LOOKING | RUNNING).values():
            call(make("Net", "training"), IMAGES.clone())

    @pytest.mark.parametrize("call", [call for call in LOOKING if call != "find_sites"])  # which is above
    @pytest.mark.parametrize("name", keepers.KEEPERS)
    def test_looking_leaves_nothing_behind(self, name, call):
        model = make(name, "training")
        before = keepers.photograph(model)
        LOOKING[call](model, IMAGES.clone())
        assert before.differences(keepers.photograph(model)) == []

    @pytest.mark.parametrize("call", RUNNING)
    @pytest.mark.parametrize("name", MODES_AND_HOOKS)
    def test_running_changes_nothing_but_what_a_forward_pass_changes(self, name, call):
        model = make(name, "used").eval()
        before = keepers.photograph(model)
        with kept_surroundings(), torch.no_grad():
            model(IMAGES[:1].clone())
        own = {
            part.partition("[")[0].partition(" ")[0] for part in before.differences(keepers.photograph(model))
        }
        model.train()
        before = keepers.photograph(model)
        try:
            RUNNING[call](model, IMAGES.clone())
        except SpectralError:
            assert name != "Net"
        changed = before.differences(keepers.photograph(model))
        assert [part for part in changed if part.partition("[")[0].partition(" ")[0] not in own] == []

    @pytest.mark.parametrize("after", [0, 1, 2])
    @pytest.mark.parametrize("call", LOOKING | RUNNING)
    @pytest.mark.parametrize("name", ["Net", "Merging", "FeatureGraph"])
    def test_an_interrupt_in_the_middle_changes_nothing(self, name, call, after):
        model = nn.Sequential(make(name, "training"), nn.Identity())
        passes: list[int] = []

        def interrupt(module: nn.Module, args: object) -> None:
            passes.append(0)
            if len(passes) > after:
                raise KeyboardInterrupt

        model[1].register_forward_pre_hook(interrupt)
        before = keepers.photograph(model)
        with suppress(KeyboardInterrupt, SpectralError):
            (LOOKING | RUNNING)[call](model, IMAGES.clone())
        changed = before.differences(keepers.photograph(model))
        assert [part for part in changed if "_forward_pre_hooks" not in part] == []
        assert list(model[1]._forward_pre_hooks.values()) == [interrupt]
