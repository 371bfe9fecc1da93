"""Which network it is: weights alone don't tell FLC from ASAP, nor ReLU from Tanh.

What a network computes depends on its weights, on the types and settings of its modules, on its conversion,
on hooks and on the precision that torch is set to. All of that is listed, and what no list can show (a
closure, a tensor kept in an attribute) shows in a probe: the output on one fixed input.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.files.sameness import write_short
from spectral.models import model_info
from spectral.models.info import ModelInfo
from spectral.models.weights_id import hash_state
from spectral.network.inputs import Inputs
from spectral.surgery.report import find_report
from spectral.tracing.standin import run_on_copy

# What nn.Module keeps of its own, and what is looked at elsewhere.
_NO_SETTINGS = frozenset({
    *vars(nn.Module()), "training", "spectral_info", "spectral_conversion", "meta", "_graph", "_code",
})  # fmt: skip
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OURS = f"{__package__}."  # hooks of this package watch, or are what the account of a conversion says
_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.memory_format, enum.Enum, np.generic)
_DEEPEST = 4  # settings within settings: a configuration, and what it holds
_SUMS, _MOST_TENSORS = 32, 16  # of the probe's output
_GOLDEN = 0.6180339887498949
_Settings = dict[str, dict[str, str]]  # module → attribute → value
TOLERANCES = {torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 5e-2}
TOLERANCE = 1e-3  # between devices and versions; a change that matters is larger, or is listed


class Sums(NamedTuple):
    """What is kept of a tensor of the probe's output."""

    shape: list[int]
    norm: float
    sums: list[float]

    @property
    def all(self) -> list[float]:
        """Its numbers, all of which are at most its norm times the root of how many are summed."""
        return [self.norm, *self.sums]


@dataclass(frozen=True)
class Identity:
    """What tells a network from others.

    Attributes:
        weights: id of the weights and buffers.
        modules: each module's type and a digest of its settings, by name.
        conversion: the calls of `convert` that made it, none for a network as it was built.
        hooks: who hooks what, in the order in which they run.
        precision: autocast, and what float32 products are rounded to.
        dtype: of the probe's image.
        probe: gives the probe's output.
    """

    weights: str
    modules: dict[str, str]
    conversion: list[dict[str, Any]]
    hooks: list[str]
    precision: dict[str, str]
    dtype: str
    probe: Callable[[], list[Sums] | str] = field(repr=False, compare=False)

    @functools.cached_property
    def output(self) -> list[Sums] | str:
        """The probe's output: sums of each tensor with fixed signs, or why there is none.

        The network runs when this is first asked for, if it hasn't before: where nothing is kept it needn't.
        """
        return self.probe()

    @property
    def structure(self) -> str:
        """Id of all but the weights and the probe: ``sha256:`` and 16 hexadecimal digits."""
        parts = (list(self.modules.items()), self.conversion, self.hooks, self.precision)
        return f"sha256:{_digest(parts, 16)}"

    def describe(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold."""
        listed = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "probe"}
        content: dict[str, Any] = json.loads(json.dumps({**listed, "output": self.output}))
        return content

    def find_difference(self, before: Mapping[str, Any]) -> str | None:
        """Say what is different from a network that was described before; None where it is the same.

        Weights aren't compared.

        Example:
            >>> from spectral.network import make_inputs
            >>> one, two = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())
            >>> x = make_inputs(torch.zeros(1, 3, 8, 8))
            >>> identify(one, x).find_difference(identify(two, x).describe())
            "module '0' is a ReLU, not a Tanh"
        """
        now = self.describe()
        earlier = before.get("modules", {})
        for name in [*earlier, *self.modules]:
            if earlier.get(name) != self.modules.get(name):
                return _tell_modules(name, self.modules.get(name), earlier.get(name))
        for what in ("conversion", "hooks", "precision"):
            if before.get(what) != now[what]:
                return f"its {what} {write_short(now[what])}, not {write_short(before.get(what))}"
        if not self._matches(before.get("output")):
            return "its output on a fixed input isn't the same, though weights, modules and hooks are"
        return None

    def _matches(self, before: Any) -> bool:
        if isinstance(self.output, str) or not isinstance(before, list):
            return bool(self.output == before)
        tolerance = TOLERANCES.get(getattr(torch, self.dtype), TOLERANCE)
        earlier = [Sums(*one) for one in before]
        return len(earlier) == len(self.output) and all(
            a.shape == b.shape
            and np.allclose(
                [a.norm, *a.sums], [b.norm, *b.sums], rtol=0, atol=tolerance * _bound(b.norm), equal_nan=True
            )
            for a, b in zip(self.output, earlier, strict=True)
        )


def _bound(norm: float) -> float:
    """Return a norm; of an output that is no number 0, beside which nothing else is the same."""
    return norm if math.isfinite(norm) else 0.0


class Stillness:
    """Whether passes leave a network's settings as they are: found out beside whoever watches them.

    Attributes:
        known: whether all that were seen did; False as long as there was none.
    """

    def __init__(self) -> None:
        self._seen: list[bool] = []

    @property
    def known(self) -> bool:  # noqa: D102 - an attribute to whoever reads it
        return bool(self._seen) and all(self._seen)

    @contextmanager
    def watching(self, copy: nn.Module) -> Iterator[None]:
        """Watch a pass of a copy of the network, which may be one without data."""
        before = list_settings(copy), _list_writes(copy)
        yield
        self._seen.append((list_settings(copy), _list_writes(copy)) == before)


def identify(
    model: nn.Module, example: Inputs, *, still: bool = False, weights: Future[str] | None = None
) -> Identity:
    """Find out which network it is; it is run once or twice, as a copy.

    Args:
        model: any module.
        example: what it is called with, of one image; the image is replaced by a fixed pattern.
        still: whether it is known that a pass leaves its settings as they are (`Stillness`): then it runs
            when the probe's output is asked for, or never.
        weights: id of the weights, where it is being worked out already (`begin_weights_id`).

    Example:
        >>> from spectral.network import make_inputs
        >>> net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), make_inputs(torch.zeros(1, 3, 8, 8))
        >>> before = identify(net, x)
        >>> net[1].inplace = True
        >>> identify(net, x).structure == before.structure
        False
    """
    image = example.image
    inputs = example.map(lambda x, _: _draw_pattern(x) if x is image else x)

    def run() -> tuple[_Settings, list[Sums] | str]:
        try:
            return run_on_copy(model, inputs, _watch)
        except SpectralError:  # it may run on images and not on a pattern
            return list_settings(model), "it can't be run on a pattern"

    if still:
        settings = list_settings(model)

        def probe() -> list[Sums] | str:
            return run()[1]
    else:
        settings, output = run()

        def probe() -> list[Sums] | str:
            return output

    report = find_report(model)
    steps = json.loads(json.dumps(report.steps, default=str)) if report else []
    kinds = {name: _name(type(module)) for name, module in model.named_modules()}
    return Identity(
        weights=(weights or begin_weights_id(model)).result(),
        modules={name: f"{kind} {_digest(settings.get(name, {}))}" for name, kind in kinds.items()},
        conversion=steps,
        hooks=list_hooks(model),
        precision=list_precision(image.device),
        dtype=str(image.dtype).removeprefix("torch."),
        probe=probe,
    )


def find_structure(model: nn.Module) -> str:
    """Return the id of a network's modules, settings, conversion and hooks as they are, without a pass.

    Example:
        >>> find_structure(nn.ReLU()) == find_structure(nn.Tanh())
        False
    """
    report = find_report(model)
    kinds = [(name, _name(type(module))) for name, module in model.named_modules()]
    parts = (kinds, list_settings(model), report.steps if report else [], list_hooks(model))
    return f"sha256:{_digest(json.loads(json.dumps(parts, default=str)), 16)}"


def identify_network(model: nn.Module) -> dict[str, str]:
    """Return what tells a network from others: its weights, and all that isn't weights."""
    info = model_info(model)
    return {
        "weights": info.weights_id if info else "", "structure": find_structure(model),
        "preprocessing": describe_preprocessing(info) if info else "",
    }  # fmt: skip


def describe_preprocessing(info: ModelInfo) -> str:
    """Return what images go through before a network sees them: the same weights give other numbers without.

    Example:
        >>> from spectral.models import load_model
        >>> describe_preprocessing(model_info(load_model("bundled/resnet20@random")))
        '32x32, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)'
    """
    own = info.preprocessing
    return f"{'x'.join(map(str, own.size))}, mean {tuple(own.mean)}, std {tuple(own.std)}"


def begin_weights_id(model: nn.Module) -> Future[str]:
    """Begin to work out the id of the weights as they are now, which takes as long as finding sites does.

    A model that was trained or altered keeps its old info. Hashing leaves Python's lock alone; nothing may
    write to the weights meanwhile.

    Example:
        >>> begin_weights_id(nn.ReLU()).result()
        'sha256:e3b0c44298fc1c14'
    """
    info, state = model_info(model), model.state_dict()
    recorded = info.weights_id if info else ""

    def find() -> str:
        now = hash_state(state)
        return recorded if recorded.endswith(now.partition(":")[2]) else now

    # Python waits for the thread at its end: a daemon that is in torch's code then aborts the whole process.
    pool = ThreadPoolExecutor(max_workers=1)
    found = pool.submit(find)
    pool.shutdown(wait=False)
    return found


def list_settings(model: nn.Module) -> _Settings:
    """List the settings of every module, by its name: attributes that are plain values, and other buffers.

    Example:
        >>> list_settings(nn.Sequential(nn.ReLU()))["0"]
        {'inplace': 'False'}
    """
    return {name: _list_own(module) for name, module in model.named_modules()}


def list_hooks(model: nn.Module) -> list[str]:
    """List who hooks the passes of which module, global hooks included.

    Example:
        >>> net = nn.ReLU()
        >>> handle = net.register_forward_hook(print)
        >>> list_hooks(net)
        ["'': forward hook builtins.print"]
    """
    tables = [("every module", torch_module, [f"_global{kind}" for kind in _HOOKS])]
    tables += [(repr(name), module, list(_HOOKS)) for name, module in model.named_modules()]
    return [
        f"{where}: {'forward pre-hook' if 'pre' in kind else 'forward hook'} {_describe(hook, set())}"
        for where, owner, kinds in tables
        for kind in kinds
        for hook in getattr(owner, kind).values()
        if not _is_ours(hook)
    ]


def list_precision(device: torch.device) -> dict[str, str]:
    """List what decides how products are rounded on a device."""
    kind = device.type
    known = torch.amp.is_autocast_available(kind)
    autocast = known and torch.is_autocast_enabled(kind)
    found = {
        "autocast": str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if autocast else "off",
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
    if kind == "cuda":
        found["cudnn_tf32"] = str(torch.backends.cudnn.allow_tf32)
        half = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        found["half_reductions"] = str(half)
    return found


def _watch(
    copy: nn.Module, given: Inputs, weights: Sequence[Tensor], forward: Callable[[], Any]
) -> tuple[_Settings, list[Sums] | str]:
    """Return a copy's settings as a pass leaves them, but those that every pass changes; and its output."""
    before = list_settings(copy)
    torch.manual_seed(0)
    output = _sum_up(forward())
    settled = list_settings(copy)
    if settled != before:  # what changes in every pass (a counter) is no setting
        forward()
        settled = _keep_equal(settled, list_settings(copy))
    return settled, output


def _list_writes(model: nn.Module) -> list[tuple[int, int]]:
    """Return which tensors the buffers are that are settings, and how often each was written to."""
    return [
        (id(buffer), 0 if buffer.is_inference() else buffer._version)
        for module in model.modules()
        for key in module._non_persistent_buffers_set
        if isinstance(buffer := module._buffers.get(key), Tensor)
    ]


def _list_own(module: nn.Module) -> dict[str, str]:
    found = {"children": repr(list(module._modules))} if module._modules else {}
    for key, value in vars(module).items():
        if key in _NO_SETTINGS or _is_ours(value):
            continue
        try:
            found[key] = _describe(value, {id(module)})
        except _Varies:
            continue
    for key in module._non_persistent_buffers_set:
        buffer = module._buffers.get(key)
        if isinstance(buffer, Tensor) and buffer.device.type != "meta":
            found[f"buffer {key}"] = hash_state({key: buffer})
    if isinstance(module, fx.GraphModule):
        found["code"] = str(module.code)
    return found


class _Varies(Exception):  # noqa: N818 - it is caught and never seen
    """Met a tensor in an attribute: a cache, or what the probe's output shows."""


def _describe(value: Any, seen: set[int], depth: int = _DEEPEST) -> str:
    """Write a value so that it reads the same in every process.

    Raises:
        _Varies: if there is a tensor in it.
    """
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        raise _Varies
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return _name(value)
    if id(value) in seen or depth == 0:
        return _name(type(value))
    seen = {*seen, id(value)}

    def inner(one: Any) -> str:
        return _describe(one, seen, depth - 1)

    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(k)}: {inner(v)}' for k, v in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, bytes):
        return repr(hashlib.sha256(value).hexdigest())
    return f"{_name(type(value))}({', '.join(f'{k}={v}' for k, v in _list_attributes(value, inner))})"


def _list_attributes(value: Any, inner: Callable[[Any], str]) -> Iterator[tuple[str, str]]:
    for key, one in getattr(value, "__dict__", {}).items():
        if isinstance(value, nn.Module) and key in _NO_SETTINGS:
            continue
        try:
            yield key, inner(one)
        except _Varies:
            continue


def _is_ours(value: Any) -> bool:
    """Whether it belongs to this package: what watches a pass, or a layer's inner works."""
    named = value if isinstance(value, (type, types.FunctionType)) else type(value)
    return f"{getattr(named, '__module__', '')}.".startswith(_OURS) and not isinstance(value, nn.Module)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _keep_equal(first: _Settings, second: _Settings) -> _Settings:
    return {
        name: {k: v for k, v in own.items() if first.get(name, {}).get(k) == v}
        for name, own in second.items()
    }


def _draw_pattern(x: Tensor) -> Tensor:
    """Draw values in [0, 1] that don't depend on any generator; of integers, keep what is given."""
    if not x.is_floating_point():
        return x
    steps = torch.arange(1, x.numel() + 1, dtype=torch.float64) * _GOLDEN
    return (steps % 1).reshape(x.shape).to(x.device, x.dtype)


def _sum_up(output: Any) -> list[Sums]:
    """Sum up an output: 32 sums of each of its tensors, with fixed signs, so that no change cancels."""
    tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
    return [_sum_tensor(x) for x in tensors[:_MOST_TENSORS]]


def _sum_tensor(x: Tensor) -> Sums:
    flat = torch.view_as_real(x) if x.is_complex() else x
    flat = flat.detach().to("cpu", torch.float64).reshape(-1)
    turn = torch.arange(1, flat.numel() + 1, dtype=torch.float64) * _GOLDEN * _GOLDEN
    signed = torch.where(turn % 1 < 0.5, flat, -flat)
    sums = torch.zeros(_SUMS, dtype=torch.float64)
    sums.index_add_(0, torch.arange(flat.numel()) % _SUMS, signed)
    return Sums(list(x.shape), float(flat.norm()), sums.tolist())


def _tell_modules(name: str, now: str | None, before: str | None) -> str:
    what = f"module {name!r}" if name else "the network"
    if now is None or before is None:
        return f"it has {'no' if now is None else 'a'} module {name!r}"
    kind, earlier = (text.rpartition(" ")[0] for text in (now, before))
    if kind == earlier:
        return f"{what} ({_last(kind)}) has other settings"
    return f"{what} is a {_last(kind)}, not a {_last(earlier)}"


def _last(qualified: str) -> str:
    return qualified.rpartition(".")[2]


def _digest(content: Any, length: int = 12) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]
