"""Ctrl-C at any moment: no hook, no mode and no moved weight is left."""

from __future__ import annotations

import random
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from networks import count_hooks, image, unchanged
from test_measurement import tiny
from torch import nn

import spectral
from spectral.__main__ import main as run_program
from spectral.measurement import measure
from spectral.processes.interrupts import raise_kept, shielded, undivided
from spectral.terminal.console import SpectralGroup

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect what Python would print of an interrupt that comes while an object is destroyed.

    pytest's own collector reads source files for that, in which another interrupt would be lost.
    """
    found: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Send this process what Ctrl-C sends, once, so many seconds from now."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure_length(job: Callable[[], Any]) -> float:
    """Seconds that a job takes when nothing else keeps the machine busy, or the least of five."""
    lengths = []
    for _ in range(5):
        started = time.perf_counter()
        job()
        lengths.append(time.perf_counter() - started)
    return min(lengths)


@pytest.mark.usefixtures("unraisable")
@pytest.mark.parametrize("what", ["measure", "find_sites", "convert", "compute_sis"])
def test_nothing_is_left_behind(what, tmp_path):
    net, x = tiny(), image(6, 3, 16, 16)
    jobs: dict[str, Callable[[], Any]] = {
        "measure": lambda: measure(net, x, ("avr", "am"), batch_size=2, progress=False),
        "find_sites": lambda: spectral.find_sites(net, 16),
        "convert": lambda: spectral.convert(net, "blurpool", example=(3, 16, 16)),
        "compute_sis": lambda: spectral.compute_sis(net, x),
    }
    jobs[what]()  # whatever came before: the first pass of a process imports
    length = measure_length(jobs[what])
    moments, tries, ended = random.Random(what), 0, 0
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    while tries < 25 or ended <= 5:
        tries += 1
        assert tries < 1000
        with unchanged(net):
            try:
                with interrupted_after(moments.uniform(1e-4, length)):
                    jobs[what]()
            except KeyboardInterrupt:
                ended += 1
        assert count_hooks(net) == 0
        assert torch._C._len_torch_function_stack() == 0
        assert torch._C._len_torch_dispatch_stack() == 0
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == threads
        assert signal.getsignal(signal.SIGINT) is handler
        net(x)
    jobs[what]()


def test_a_command_whose_code_is_still_read_ends_as_interrupted(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "spectral.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "spectral.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        run_program()
    assert (end.value.code, capsys.readouterr().err) == (130, "\nInterrupted before it began.\n")


def test_a_command_whose_arguments_are_still_read_ends_as_interrupted():
    @click.group(cls=SpectralGroup)
    def group() -> None:
        """Nothing."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    @group.command()
    @click.option("--images", callback=interrupt)
    def measure(images: str) -> None:
        """Nothing."""

    done = CliRunner().invoke(group, ["measure"])
    assert (done.exit_code, "Interrupted" in done.stderr) == (130, True)


def test_what_is_kept_is_raised_at_the_next_safe_point():
    @undivided
    def set_up() -> str:
        signal.raise_signal(signal.SIGINT)
        return "whole"

    done = []

    def set_up_and_raise() -> None:
        done.append(set_up())
        raise_kept()

    with shielded():
        with pytest.raises(KeyboardInterrupt):
            set_up_and_raise()
        assert done == ["whole"]
        raise_kept()
    with pytest.raises(KeyboardInterrupt), shielded():
        set_up()
    with pytest.raises(KeyboardInterrupt), shielded():
        signal.raise_signal(signal.SIGINT)


class Dying:
    """Is interrupted while it is being destroyed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def die_with_a_callback() -> None:
    class Thing:
        pass

    thing = Thing()
    weakref.finalize(thing, signal.raise_signal, signal.SIGINT)


def close_a_generator() -> None:
    def generate() -> Iterator[int]:
        try:
            yield 1
        finally:
            signal.raise_signal(signal.SIGINT)

    next(generate())


def catch_everything() -> None:
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def make_it_another_error() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise ValueError("something went wrong") from error


LOSING: list[Callable[[], object]] = [
    Dying, die_with_a_callback, close_a_generator, catch_everything, make_it_another_error,
]  # fmt: skip


@pytest.mark.usefixtures("unraisable")
@pytest.mark.parametrize("lose", LOSING)
def test_none_is_lost(lose, tmp_path):
    """Python prints and forgets what is raised while an object is destroyed; a model may catch it."""
    with shielded(), pytest.raises(KeyboardInterrupt):  # noqa: PT012 - whichever of the two is first
        with suppress(ValueError):
            lose()
        raise_kept()
    with pytest.raises(KeyboardInterrupt), shielded():
        lose()
    with shielded():
        raise_kept()  # nothing is raised twice

    class Losing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = tiny(), [0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not x.is_meta:
                self.calls[0] += 1
                if self.calls[0] == 5:
                    lose()
            return self.inner(x)

    net, x = Losing(), image(6, 3, 16, 16)
    with unchanged(net), pytest.raises(KeyboardInterrupt):
        measure(net, x, ("avr",), batch_size=1, progress=False, out=tmp_path)
    whole = measure(net, x, ("avr",), batch_size=1, progress=False, out=tmp_path)
    assert 0 < whole.attrs["resumed"] < 6


@contextmanager
def entered_interrupted() -> Iterator[None]:
    signal.raise_signal(signal.SIGINT)
    yield


def enter() -> None:
    with entered_interrupted():
        pass


@pytest.mark.usefixtures("unraisable")
@pytest.mark.parametrize("lose", [*LOSING, enter])
def test_a_long_pass_is_not_waited_for(lose):
    """No safe point lies within a pass: the interrupt comes a moment later, and once."""
    ended: list[str] = []
    with pytest.raises(KeyboardInterrupt), shielded():  # noqa: PT012 - where in it doesn't matter
        with suppress(ValueError):
            lose()
        time.sleep(60)
        ended.append("the pass")
    with shielded():
        time.sleep(0.6)  # three times as long as it takes to send another
        raise_kept()
    time.sleep(0.3)
    assert not ended


def test_one_that_is_on_its_way_is_not_sent_again():
    with pytest.raises(KeyboardInterrupt) as found, shielded():  # noqa: PT012 - the handling is what counts
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            time.sleep(0.6)
            with suppress(ValueError):
                raise ValueError("while something is put away")
            time.sleep(0.3)
    assert found.value.__context__ is None


@pytest.mark.parametrize("lose", LOSING[:2])
def test_nothing_is_printed_of_one_that_can_be_kept(lose, unraisable):
    with pytest.raises(KeyboardInterrupt), shielded():
        lose()
    assert not unraisable


@pytest.mark.parametrize("seed", range(3))
def test_the_handler_is_put_back_wherever_an_interrupt_comes(seed):
    handler, moments = signal.getsignal(signal.SIGINT), random.Random(seed)

    def shield() -> None:
        for _ in range(100):
            with shielded():
                pass

    length, tries, ended = measure_length(shield), 0, 0
    while tries < 100 or ended <= 20:
        tries += 1
        assert tries < 4000
        try:
            with interrupted_after(moments.uniform(1e-6, length)):
                shield()
        except KeyboardInterrupt:
            ended += 1
        assert signal.getsignal(signal.SIGINT) is handler
    with shielded():
        raise_kept()  # nothing was kept
