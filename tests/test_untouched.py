"""Looking never harms: a model is what it was, down to every value, after each call that looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import keepers
import pytest
import torch
from torch import Tensor, nn

from spectral import SpectralError, find_sites
from spectral.sites import watch_reductions

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature"),
]

STATES = ["training", "evaluation", "used"]


def make(name: str, state: str) -> nn.Module:
    torch.manual_seed(0)
    model = keepers.KEEPERS[name]()
    if state == "evaluation":
        model.eval()
    elif state == "used":
        model.eval()
        with torch.no_grad():
            model(torch.rand(2, 3, 32, 32))
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        model.train()
    return model


def output_of(model: nn.Module, size: int = 32) -> Tensor:
    """Return the output on a probe, random numbers and all."""
    model.eval()
    torch.manual_seed(5)
    with torch.no_grad():
        out = model(torch.rand(2, 3, size, size))
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    return out["head"] if isinstance(out, dict) else out


class TestFindSites:
    @pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
    @pytest.mark.parametrize("state", STATES)
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
