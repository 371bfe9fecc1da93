"""A resumed run is of the same network, in all that decides what it computes."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from networks import image
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.identity import Stillness, identify, list_settings
from spectral.measurement import measure
from spectral.models import load_model
from spectral.network import make_inputs
from spectral.sites import watch_sites
from spectral.surgery import convert

LATE = """
import time
from torch import nn
from spectral.identity import begin_weights_id

class Weights(dict):
    def items(self):
        time.sleep(0.3)
        print("through")
        return super().items()

class Network(nn.ReLU):
    def state_dict(self):
        return Weights()

begin_weights_id(Network())
"""


class Scaled(nn.Module):
    """Keeps what no list shows: a factor in a closure and one in a plain tensor; a counter and a cache."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, 2)
        self.activation: nn.Module = nn.ReLU()
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.tensor = torch.ones(1)
        self.scale = lambda x: x * factor
        self.slope, self.options, self.calls = 0.5, {"clip": [0.0, 9.0]}, 0
        self.ready = False
        self.cache: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.ready = True
        self.cache.setdefault(tuple(x.shape), torch.zeros(1))
        y = self.activation(self.convolution(x)) * self.tensor + self.shift
        return self.scale(y).clamp(*self.options["clip"]).mean((2, 3))


def network() -> Scaled:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scaled()


def set_shift(net: Scaled) -> None:
    net.shift.fill_(1)


def replace_activation(net: Scaled) -> None:
    net.activation = nn.Tanh()


def set_slope(net: Scaled) -> None:
    net.slope = 0.25


def set_option(net: Scaled) -> None:
    net.options["clip"][1] = 1.0


def set_padding(net: Scaled) -> None:
    net.convolution.padding_mode = "circular"


def set_tensor(net: Scaled) -> None:
    net.tensor = torch.full((1,), 2.0)


def set_closure(net: Scaled) -> None:
    net.scale = lambda x: x * 3


def replace_forward(net: Scaled) -> None:
    net.activation.forward = torch.abs


def hook_output(net: Scaled) -> None:
    net.convolution.register_forward_hook(lambda module, args, output: output)


def hook_input(net: Scaled) -> None:
    net.register_forward_pre_hook(lambda module, args: None)


CHANGES: list[tuple[Callable[[Scaled], Any], str]] = [
    (set_shift, "the network .Scaled. has other settings"),
    (replace_activation, "module 'activation' is a Tanh, not a ReLU"),
    (set_slope, "the network .Scaled. has other settings"),
    (set_option, "the network .Scaled. has other settings"),
    (set_padding, "module 'convolution' .Conv2d. has other settings"),
    (set_tensor, "its output on a fixed input isn't the same"),
    (set_closure, "its output on a fixed input isn't the same|the network .Scaled. has other settings"),
    (replace_forward, "module 'activation' .ReLU. has other settings"),
    (hook_output, "its hooks .*forward hook test_identity.hook_output"),
    (hook_input, "its hooks .*forward pre-hook test_identity.hook_input"),
]


class TestResuming:
    @pytest.mark.parametrize(
        ("change", "sentence"), CHANGES, ids=lambda value: getattr(value, "__name__", "")
    )
    def test_what_changes_a_network_without_its_weights_is_refused(self, change, sentence, tmp_path):
        net, x = network(), image(2, 3, 16, 16)
        before = measure(net, x, ("avr",), out=tmp_path, progress=False)
        change(net)
        with pytest.raises(SpectralError, match=f"holds measurements of another network: ({sentence})"):
            measure(net, x, ("avr",), out=tmp_path, progress=False)
        again = measure(network(), x, ("avr",), out=tmp_path, progress=False)
        assert again.attrs["resumed"] == 2
        assert again.equals(before)

    def test_what_a_pass_leaves_in_a_network_is_none_of_it(self, tmp_path):
        net, x = network(), image(4, 3, 16, 16)
        measure(net, x, ("avr",), batch_size=2, out=tmp_path, progress=False)
        (tmp_path / "shard-000001.parquet").unlink()
        assert net.calls
        net(image(3, 3, 20, 20))
        for one in (net, network(), copy.deepcopy(net)):
            assert measure(one, x, ("avr",), out=tmp_path, progress=False).attrs["resumed"] >= 2

    def test_another_layer_in_the_place_of_a_stride(self, tmp_path):
        net = load_model("bundled/resnet8@random")
        x = image(2, 3, 32, 32)
        flc, asap = (convert(net, method, example=(3, 32, 32)) for method in ("flc", "asap"))
        table = measure(flc, x, ("avr",), out=tmp_path, progress=False, name="net")
        with pytest.raises(SpectralError, match=r"another network: module 'layer2\.0\.conv1.* ASAPPool2d"):
            measure(asap, x, ("avr",), out=tmp_path, progress=False, name="net")
        other = measure(asap, x, ("avr",), progress=False, name="net")
        assert table.attrs["provenance"]["weights"] == other.attrs["provenance"]["weights"]
        assert table.attrs["provenance"]["structure"] != other.attrs["provenance"]["structure"]

    def test_another_precision(self, tmp_path):
        net, x = network(), image(2, 3, 16, 16)
        measure(net, x, ("avr",), out=tmp_path, progress=False)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(SpectralError, match=r'its precision .*"autocast": "bfloat16"'),
        ):
            measure(net, x, ("avr",), out=tmp_path, progress=False)


class TestIdentity:
    def test_the_model_is_left_alone(self):
        net = network()
        identify(net, make_inputs(image(1, 3, 16, 16)))
        assert (net.calls, net.ready, net.cache) == (0, False, {})

    def test_the_same_in_another_copy_and_for_other_pixels(self):
        net = network()
        first = identify(net, make_inputs(image(1, 3, 16, 16)))
        second = identify(copy.deepcopy(net), make_inputs(image(1, 3, 16, 16, seed=3)))
        assert first.describe() == second.describe()

    def test_rounding_is_no_difference_and_a_small_change_is(self):
        net = network()
        first = identify(net, make_inputs(image(1, 3, 16, 16)))
        net.tensor = torch.full((1,), 1 + 1e-6)
        assert identify(net, make_inputs(image(1, 3, 16, 16))).find_difference(first.describe()) is None
        net.tensor = torch.full((1,), 1.01)
        assert identify(net, make_inputs(image(1, 3, 16, 16))).find_difference(first.describe())

    def test_settings_that_hold_themselves_and_what_has_no_text(self):
        net = nn.ReLU()
        net.loop = [1]
        net.loop.append(net.loop)
        net.lock, net.me = threading.Lock(), net
        assert list_settings(net)[""]["loop"] == "[1, builtins.list]"

    def test_a_network_that_takes_no_pattern_has_a_reason(self):
        class Picky(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if float(x.max()) <= 1:
                    raise RuntimeError("too dark")
                return nn.functional.avg_pool2d(x, 2)

        found = identify(Picky(), make_inputs(image(1, 3, 8, 8) + 9))
        assert found.output == "it can't be run on a pattern"


class Alike(nn.Module):
    """A pass leaves it as it was, but for what its ``change`` does."""

    def __init__(self, change: Callable[[nn.Module], Any], log: Path) -> None:
        super().__init__()
        self.log = str(log)  # a file: what code counts in memory is put back
        self.convolution, self.change, self.calls = nn.Conv2d(3, 4, 3, 2, bias=False), change, 0
        self.register_buffer("table", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with open(self.log, "a") as file:
            file.write(".")
        self.change(self)
        return self.convolution(x).mean((2, 3))


def write_table(net: nn.Module) -> None:
    net.table.add_(1)


def replace_table(net: nn.Module) -> None:
    net.table = net.table + 1


def count_calls(net: nn.Module) -> None:
    net.calls += 1


def need_values(net: nn.Module) -> None:
    net.calls += float(net.table.mean())  # which no tensor without data has


def change_nothing(net: nn.Module) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "still"),
    [(change_nothing, True), (count_calls, False), (write_table, False), (replace_table, False),
     (need_values, False)],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_network_that_passes_leave_as_it_is_runs_only_where_its_output_is_kept(change, still, tmp_path):
    log = tmp_path / "passes"
    net, stillness, x = Alike(change, log).eval(), Stillness(), torch.rand(2, 3, 12, 12)
    assert not stillness.known  # before any pass
    sites = watch_sites(net, (12, 12), stillness.watching)
    assert stillness.known is still

    def count(**options: Any) -> tuple[int, pd.DataFrame]:
        log.write_text("")
        table = measure(net, x, ("avr",), progress=False, **options)
        return len(log.read_text()), table

    plain, in_memory = count(sites=sites)  # nobody has watched a pass: one on the pattern, and the images'
    looking, in_folder = count(out=tmp_path / "run")
    assert looking > plain
    assert count()[0] == looking - still  # where nothing is kept
    structures = {table.attrs["provenance"]["structure"] for table in (in_memory, in_folder)}
    assert len(structures) == 1


@pytest.mark.parametrize(
    "name",
    ["bundled/resnet20+flc", "timm/vit_tiny_patch16_224@random", "timm/swin_tiny_patch4_window7_224@random"],
)
def test_a_network_known_to_be_still_is_the_same_one(name):
    net = load_model(name)
    size = 32 if "bundled" in name else 224
    x = make_inputs(torch.rand(1, 3, size, size))
    stillness = Stillness()
    watch_sites(net, x, stillness.watching)
    assert stillness.known
    before, now = identify(net, x), identify(net, x, still=True)
    assert now.structure == before.structure
    assert "output" not in vars(now)  # it hasn't run
    assert now.find_difference(before.describe()) is None
    assert now.describe() == before.describe()


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("error")
def test_a_network_whose_output_is_no_number_is_the_same_one(weight):
    net = Scaled()
    with torch.no_grad():
        net.convolution.weight.fill_(weight)
    x = make_inputs(image())
    assert identify(copy.deepcopy(net), x).find_difference(identify(net, x).describe()) is None


def test_a_process_ends_after_what_it_has_begun():
    """After a refused call nobody asks for the weights' id: a process that ended in its code was aborted."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")
