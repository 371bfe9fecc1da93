"""Which calls are running: whatever they are entered through, and whatever ends them."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from collections.abc import Callable

import networks as nets
import pytest
import torch
from networks import active_modes, count_hooks, image, unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import find_sites
from spectral.tracing.tracker import Frame, Tracker, paused


class Task(nn.Module):
    """A wrapper as of a training framework: some steps call the network and not the wrapper."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.net(x)

    def training_step(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.net(x)


class FunctionalOnly(nn.Module):
    """All it does is in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool twice."""
        return nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 2).relu(), 2)


def watch(module: nn.Module, **callbacks: Callable[..., object]) -> tuple[Tracker, list[str]]:
    seen: list[str] = []
    tracker = Tracker(
        dict(module.named_modules()),
        start=lambda: seen.append("pass"),
        begin=lambda frame: seen.append(f"{frame.path}@{frame.call}"),
    )
    return tracker, seen


# The calls themselves


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: m(x), ["pass", "@0", "net@0", "net.0@0", "net.1@0", "net.0@1"]),
        (lambda m, x: m.forward(x), ["pass", "@0", "net@0", "net.0@0", "net.1@0", "net.0@1"]),
        (lambda m, x: m.training_step(x), ["pass", "net@0", "net.0@0", "net.1@0", "net.0@1"]),
        (lambda m, x: m.net.forward(x), ["pass", "net@0", "net.0@0", "net.1@0", "net.0@1"]),
        (lambda m, x: m.net[1](x), ["pass", "net.1@0"]),
    ],
)
def test_calls_however_they_are_entered(run, expected):
    pool = nn.MaxPool2d(2)
    model = Task(nn.Sequential(pool, nn.ReLU(), pool))
    tracker, seen = watch(model)
    with unchanged(model), tracker:
        for _ in range(2):
            run(model, torch.zeros(1, 1, 8, 8))
            assert tracker.frames == []
    assert seen == expected * 2
    run(model, torch.zeros(1, 1, 8, 8))
    assert seen == expected * 2


def test_arguments_and_outputs():
    got: list[tuple[object, ...]] = []

    def end(frame: Frame, output: object) -> None:
        got.append((frame.path, frame.args, frame.kwargs, output, frame.input, frame.argument))

    class Net(nn.Module):
        def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
            return x

    net, x, y = Net(), torch.zeros(1), torch.ones(1)
    with Tracker({"": net}, end=end):
        assert net(x, y=y) is x
        assert net(x=x, y=y) is x
    assert got == [("", (x,), {"y": y}, x, x, None), ("", (), {"x": x, "y": y}, x, x, None)]
    relu = nn.ReLU()
    with Tracker({"": relu}, end=end):
        relu(input=x)
    assert got[-1][4:] == (x, x)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["forward", "begin", "end"])
def test_nothing_is_left_of_a_forward_that_raised(where, error):
    closed: list[str] = []
    failing = {"on": True}

    def fail(*_: object) -> None:
        if failing["on"]:
            raise error

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if where == "forward":
                fail()
            return x

    model = nn.Sequential(nn.Sequential(Inner()))
    callbacks = {
        name: lambda f, *_: fail() if f.path == "0.0" else None for name in ("begin", "end") if name == where
    }
    tracker = Tracker(dict(model.named_modules()), close=lambda frame: closed.append(frame.path), **callbacks)
    with tracker:
        with pytest.raises(error):
            model(torch.zeros(1))
        assert tracker.frames == []
        assert closed == ["0.0", "0", ""]
        failing["on"] = False
        model(torch.zeros(1))
        assert closed == ["0.0", "0", ""] * 2


def test_a_child_that_raised_and_was_caught():
    model = nets.Raising()
    tracker, seen = watch(model)
    with tracker:
        model(image(1, 3, 16, 16))
        assert tracker.frames == []
    assert seen.count("pass") == 1


def test_pauses():
    model = nn.Sequential(nn.ReLU())
    tracker, seen = watch(model)
    with tracker:
        with paused():
            model(torch.zeros(1))
        tracker.enabled = False
        model(torch.zeros(1))
        assert seen == []


def test_threads_know_their_own_calls():
    barrier = threading.Barrier(2)

    class Meeting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            barrier.wait(300)
            assert [frame.path for frame in tracker.frames] == ["", "0"]
            assert tracker.frames[-1].args[0] is x
            return x

    model = nn.Sequential(Meeting())
    tracker, seen = watch(model)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                model(torch.zeros(1))
        except BaseException as error:
            failures.append(error)

    with tracker:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert sorted(seen) == sorted(["pass", "@0", "0@0"] * 10)


# What stands in the forward


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_several_trackers_leave_in_any_order(order):
    model = nn.Sequential(nn.ReLU())
    with unchanged(model):
        watched = [watch(model) for _ in range(3)]
        for tracker, _ in watched:
            tracker.attach()
        for n, i in enumerate(order):
            model(torch.zeros(1))
            watched[i][0].remove()
            watched[i][0].remove()
            assert watched[i][1] == ["pass", "@0", "0@0"] * (n + 1)


def test_a_forward_that_somebody_set():
    """Of the module itself, before and after ours."""
    net = nn.ReLU()
    own = net.forward
    vars(net)["forward"] = lambda x: own(x) + 1
    with unchanged(net):
        tracker, seen = watch(net)
        with tracker:
            assert net(torch.zeros(1)) == 1
            assert copy.deepcopy(net)(torch.zeros(1)) == 1
    assert seen == ["pass", "@0"]
    tracker, seen = watch(net)
    tracker.attach()
    ours = net.forward
    vars(net)["forward"] = lambda x: ours(x) + 1
    assert net(torch.zeros(1)) == 2
    tracker.remove()
    assert net(torch.zeros(1)) == 2
    assert seen == ["pass", "@0"]


def test_the_signature_is_that_of_the_forward():
    net = FunctionalOnly()
    with Tracker({"": net}):
        assert list(inspect.signature(net.forward).parameters) == ["x"]


def test_copies_are_not_followed():
    model, x = Task(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4))).eval(), image(2, 3, 16, 16)
    tracker, seen = watch(model)
    with tracker:
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        assert b"spectral" not in pickle.dumps(nn.Sequential(model.net[0]))
        copies = [copy.deepcopy(model), torch.load(stored, weights_only=False),
                  torch.optim.swa_utils.AveragedModel(model).module]  # fmt: skip
        shallow = copy.copy(model)
        shallow._modules = {"net": nn.Identity()}
        assert torch.equal(shallow(x), x)
        expected = model(x)
        seen.clear()
        with torch.no_grad():
            model.net[0].weight.mul_(2)
        for twin in copies:
            assert torch.equal(twin(x), expected)
            assert torch.equal(twin.net.forward(x), expected)
    assert seen == []
    for twin in copies:
        assert torch.equal(twin(x), expected)


def test_a_replica_runs_its_own_weights():
    """As nn.DataParallel makes them: shallow copies whose tensors are replaced."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), image(1, 3, 8, 8)
    tracker, seen = watch(model)
    with tracker:
        replica = model[0]._replicate_for_data_parallel()
        replica._parameters = {}
        replica.weight, replica.bias = 2 * model[0].weight, 2 * model[0].bias
        assert torch.allclose(replica(x), 2 * model[0](x))
    assert seen == ["pass", "0@0"]


# Users of it: the pass that runs, and only that

RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "model(x)": lambda m, x: m(x),
    "model.forward(x)": lambda m, x: m.forward(x),
    "model.training_step(x)": lambda m, x: m.training_step(x),
    "model.net(x)": lambda m, x: m.net(x),
    "model.net.forward(x)": lambda m, x: m.net.forward(x),
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), x),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "strided": nets.strided,
    "functional": nets.FunctionalBlock,
    "nested": nets.Nested,
    "only functions": FunctionalOnly,
    "reused": nets.ReusedPool,
    "shared": nets.SharedPool,
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", RUNS)
def test_tensors_and_numbers_are_those_of_the_latest_pass(how, name):
    torch.manual_seed(0)
    model, run = Task(NETS[name]()).eval(), RUNS[how]
    x, y = image(2, 3, 64, 64), image(2, 3, 64, 64, seed=1)
    sites = [site for site in find_sites(model, 64) if site.measurable]
    for tap in ("input", "dense", "output"):
        fx, expected = (FeatureExtractor(model, sites, tap=tap) for _ in range(2))
        with expected:
            model(y)
        with fx:
            model(x)
            run(model, x)
            run(model, y)
        for site in sites:
            assert torch.equal(fx[site.name], expected[site.name]), (site.name, tap)
    with AliasingMonitor(model, sites, ("avr",)) as monitor:
        model(y)
        right = monitor.values()
        model(x)
        run(model, y)
        assert monitor.values() == right
        assert len(right) == len(sites) + 1


@pytest.mark.parametrize("how", RUNS)
def test_the_penalty_has_the_graph_of_the_latest_pass(how):
    model, x = Task(nets.FunctionalBlock()), image(2, 3, 32, 32)
    with AliasingPenalty(model, find_sites(model, 32)) as penalty:
        for _ in range(3):
            RUNS[how](model, x)
            penalty.value().backward()


def test_a_submodule_alone_is_a_pass_of_its_own():
    model, x, y = nets.strided().eval(), image(2, 3, 32, 32), image(2, 4, 16, 16, seed=1)
    sites = find_sites(model, 32)
    with FeatureExtractor(model, sites) as fx, AliasingMonitor(model, sites, ("avr",)) as monitor:
        model(x)
        model[3](y)
        assert torch.equal(fx["3"], y)
        with pytest.raises(SpectralError, match="'0': it didn't run in the latest forward pass"):
            fx["0"]
        assert set(monitor.values()) == {"3/dense/avr", "mean/dense/avr"}


def test_a_site_that_did_not_run_leaves_no_number():
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) if float(x.sum()) < 0 else self.b(self.a(x))

    model, x = Either(), image(2, 3, 32, 32).abs()
    sites = find_sites(model, x)
    with FeatureExtractor(model, sites) as fx, AliasingMonitor(model, sites, ("avr",)) as monitor:
        model(x)
        assert set(monitor.values()) == {"a/dense/avr", "b/dense/avr", "mean/dense/avr"}
        model(-x)
        assert set(monitor.values()) == {"b/dense/avr", "mean/dense/avr"}
        assert torch.equal(fx["b"], -x)
        with pytest.raises(SpectralError, match="didn't run in the latest forward pass"):
            fx["a"]


@pytest.mark.parametrize("name", NETS)
def test_an_interrupt_leaves_no_mode(name):
    """Without a with statement, too: the model is used on."""
    model = Task(NETS[name]())

    sites, x = find_sites(model, 64), image(1, 3, 64, 64)

    def interrupt(capture: object) -> None:
        raise KeyboardInterrupt

    fx = FeatureExtractor(model, sites)
    stop = FeatureExtractor(model, sites, reduce=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    assert active_modes() == 0
    stop.remove_hooks()
    model(x)
    assert all(len(fx.calls(site.name)) == 1 for site in sites)
    fx.remove_hooks()
    assert count_hooks(model) == 0
