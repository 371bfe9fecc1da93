"""Several threads and one model: right tables, a whole model, and a sentence where that can't be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import count_hooks, image, unchanged
from test_measurement import tiny
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.measurement import measure
from spectral.network import evaluation_mode, undisturbed
from spectral.processes.locks import alone, is_held

X = image(8, 3, 16, 16)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs at once; each gives what it returns, or what it raises."""
    outcomes: list[Any] = [None] * len(jobs)
    gate = threading.Barrier(len(jobs))

    def run(number: int, job: Callable[[], Any]) -> None:
        gate.wait()
        try:
            outcomes[number] = job()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


class Serving:
    """Runs a model again and again in another thread, as long as the block lasts."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.outputs: list[Any] = []
        self._stop, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                with torch.no_grad():
                    self.outputs.append(self.model(self.x))
            except Exception as error:
                self.outputs.append(error)
            self._begun.set()

    def __enter__(self) -> Serving:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("trial", range(3))
def test_two_measurements_and_a_discovery_of_one_model(trial):
    net = tiny()
    expected = measure(net, X, ("avr", "am"), batch_size=2, progress=False)
    with unchanged(net):
        first, second, sites, converted = in_threads(
            lambda: measure(net, X, ("avr", "am"), batch_size=2, progress=False),
            lambda: measure(net, X, ("avr", "am"), batch_size=2, progress=False),
            lambda: spectral.find_sites(net, 16),
            lambda: spectral.convert(net, "blurpool", example=(3, 16, 16)),
        )
    assert isinstance(converted, nn.Module)
    assert [site.name for site in sites] == ["0", "2"]
    for table in (first, second):
        np.testing.assert_array_equal(table["value"], expected["value"])


def test_a_model_that_serves_meanwhile():
    net = tiny().eval()
    expected = measure(net, X, ("avr", "am"), batch_size=2, progress=False)
    with torch.no_grad():
        right = net(X[:3])
    with Serving(net, X[:3]) as serving:
        table = measure(net, X, ("avr", "am"), batch_size=2, progress=False)
        spectral.compute_sis(net, X)
    np.testing.assert_array_equal(table["value"], expected["value"])
    assert serving.outputs
    assert all(isinstance(y, Tensor) and torch.equal(y, right) for y in serving.outputs)
    assert count_hooks(net) == 0


def test_a_model_in_training_refuses_other_threads_while_it_is_in_evaluation_mode():
    net = tiny()
    net.append(nn.Dropout(0.5))
    with evaluation_mode(net):
        (outcome,) = in_threads(lambda: net(X))
        assert isinstance(outcome, SpectralError)
        assert "in evaluation mode for a measurement in another thread" in str(outcome)
        net(X)
    assert isinstance(in_threads(lambda: net(X))[0], Tensor)
    assert count_hooks(net) == 0


def test_weights_that_change_meanwhile():
    net = tiny()

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    class Writing:
        source, size, fingerprint = "here", (16, 16), "0"
        ids = [f"{i}" for i in range(4)]  # noqa: RUF012
        labels = [None] * 4

        def __len__(self) -> int:
            return 4

        def resized(self, size: Any) -> Any:
            return self

        def batches(self, batch_size: int, *, indices: Any = None) -> Any:
            for i in range(4) if indices is None else indices:
                if i == 2:
                    with torch.no_grad():
                        net[0].weight.add_(1)
                yield [i], X[i : i + 1]

    with pytest.raises(SpectralError, match="weights of Training changed while they were measured"):
        measure(Training(), Writing(), ("avr",), progress=False, preprocessing="none")


def test_locks_are_of_modules_and_may_be_taken_again():
    layer = nn.ReLU()
    first, second = nn.Sequential(layer), nn.Sequential(nn.Tanh(), layer)
    with alone(first), alone(first), undisturbed(first):
        assert is_held(layer)
        waiting = threading.Thread(target=lambda: alone(second).__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert in_threads(lambda: is_held(layer)) == [False]
    waiting.join(300)
    assert not waiting.is_alive()
