"""Networks that keep things: caches, counters, hooks of their own; and a photograph of all that they keep."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import networks as nets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

RAMPS: dict[int, Tensor] = {}
SEEN: list[Any] = []
STATE = {"passes": 0}
ready = False
passes = 0
LOCAL = threading.local()
SCALE = torch.ones(3)


def forget() -> None:
    """Empty all that this file keeps."""
    global ready, passes
    ready, passes = False, 0
    globals().pop("created", None)
    STATE["passes"] = 0
    for table in (RAMPS, SEEN, vars(LOCAL), remembering_ramp.ramps, Helper.shared, ClassCache.ramps):
        table.clear()
    DefaultCache.between.__defaults__[0].clear()
    ClassAttribute.latest = None
    cached_ramp.cache_clear()
    MethodCache.ramp.cache_clear()
    SCALE.fill_(1)


def make_ramp(n: int, x: Tensor) -> Tensor:
    """Return what the caches below keep."""
    return torch.linspace(0, 1, n, device=x.device)


@functools.lru_cache(maxsize=8)
def cached_ramp(n: int, device: Any) -> Tensor:
    """Keep one ramp per size; the device isn't part of what decides."""
    return torch.linspace(0, 1, n, device=device.value)


class Device:
    """Any device is as good as another to a cache."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0


def remembering_ramp(n: int, x: Tensor) -> Tensor:
    """Keep ramps in an attribute of this function."""
    return remembering_ramp.ramps.setdefault(n, make_ramp(n, x))


remembering_ramp.ramps = {}


class Net(nn.Module):
    """A strided convolution, a norm, and classes; what comes between is a subclass's business."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return self.head(self.between(self.norm(self.conv(x))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        """Change a map, keep what you like."""
        return x


class InstanceCache(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def between(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        if n not in self.cache:
            self.cache[n] = make_ramp(n, x)
        return x + self.cache[n]


class AttributeCache(Net):
    ramp: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.ramp is None:
            self.ramp = make_ramp(x.shape[-1], x)
        return x + self.ramp


class NestedCache(Net):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Any] = [(OrderedDict(), deque([defaultdict(list)]))]

    def between(self, x: Tensor) -> Tensor:
        sizes, (ramps, *_) = self.tables[0]
        if x.shape[-1] not in sizes:
            sizes[x.shape[-1]] = len(sizes)
            ramps[x.shape[-1]].append(make_ramp(x.shape[-1], x))
        return x + ramps[x.shape[-1]][0]


class Helper:
    """Not a module."""

    shared: ClassVar[dict[int, Tensor]] = {}

    def __init__(self) -> None:
        self.ramps: dict[int, Tensor] = {}
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.ramps.setdefault(x.shape[-1], make_ramp(x.shape[-1], x))


class SlottedHelper:
    __slots__ = ("ramp",)

    def __init__(self) -> None:
        self.ramp: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.ramp is None:
            self.ramp = make_ramp(x.shape[-1], x)
        return x + self.ramp


class HelperCache(Net):
    def __init__(self, helper: Any = None) -> None:
        super().__init__()
        self.helper = helper or Helper()

    def between(self, x: Tensor) -> Tensor:
        return self.helper(x)


class HelperClassCache(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + Helper.shared.setdefault(x.shape[-1], make_ramp(x.shape[-1], x))


class ClassCache(Net):
    ramps: ClassVar[dict[int, Tensor]] = {}

    def between(self, x: Tensor) -> Tensor:
        return x + self.ramps.setdefault(x.shape[-1], make_ramp(x.shape[-1], x))


class ClassAttribute(Net):
    latest: Any = None

    def between(self, x: Tensor) -> Tensor:
        if type(self).latest is None:
            type(self).latest = make_ramp(x.shape[-1], x)
        return x + type(self).latest


class MethodCache(Net):
    @functools.lru_cache(maxsize=4)  # noqa: B019 - it is what is tried
    def ramp(self, n: int) -> Tensor:
        return torch.linspace(0, 1, n, device=self.conv.weight.device)

    def between(self, x: Tensor) -> Tensor:
        return x + self.ramp(x.shape[-1])


class OwnCachedFunction(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ramp = functools.lru_cache(maxsize=None)(lambda n: make_ramp(n, self.conv.weight))

    def between(self, x: Tensor) -> Tensor:
        return x + self.ramp(x.shape[-1])


class FunctionCache(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + cached_ramp(x.shape[-1], Device(x.device))


class FunctionAttributeCache(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + remembering_ramp(x.shape[-1], x)


class DefaultCache(Net):
    def between(self, x: Tensor, ramps: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006 - it is what is tried
        return x + ramps.setdefault(x.shape[-1], make_ramp(x.shape[-1], x))


class TableCache(Net):
    def between(self, x: Tensor) -> Tensor:
        if x.shape[-1] not in RAMPS:
            RAMPS[x.shape[-1]] = make_ramp(x.shape[-1], x)
        return x + RAMPS[x.shape[-1]]


class ThreadCache(Net):
    def between(self, x: Tensor) -> Tensor:
        if not hasattr(LOCAL, "ramp"):
            LOCAL.ramp = make_ramp(x.shape[-1], x)
        return x + LOCAL.ramp


class Property(Net):
    @functools.cached_property
    def ramp(self) -> Tensor:
        return make_ramp(16, self.conv.weight)

    def between(self, x: Tensor) -> Tensor:
        return x + self.ramp


class Log(Net):
    """Keeps numbers in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.shapes = 0, [], set()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(8))

    def between(self, x: Tensor) -> Tensor:
        global ready, passes, created
        self.calls += 1
        self.seen.append(x)
        self.shapes.add(tuple(x.shape))
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        SEEN.append(tuple(x.shape))
        STATE["passes"] += 1
        ready, passes, created = True, passes + 1, True
        return x


class WritesGlobalTensor(Net):
    def between(self, x: Tensor) -> Tensor:
        SCALE.mul_(2)
        return x


class LazyHook(Net):
    """Registers its hook on first use, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared, self.seen = False, []

    def forward(self, x: Tensor) -> Tensor:
        if not self.prepared:
            self.conv.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.prepared = True
        self.seen = []
        x = super().forward(x)
        return x * len(self.seen)


class HookedBefore(Net):
    """Has hooks of all kinds that keep what passes."""

    def __init__(self) -> None:
        super().__init__()
        outputs: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.helper = Helper()
        self.latest: dict[str, Any] = {}
        self.conv.register_forward_hook(lambda module, args, output: outputs.append(output))
        self.conv.register_forward_hook(self.keep)
        self.conv.register_forward_hook(functools.partial(self.keep_by_name, "conv"))
        self.norm.register_forward_pre_hook(keep_outside)
        self.norm.register_forward_hook(lambda module, args, output: self.helper(output))
        self.norm.register_forward_pre_hook(
            types.MethodType(lambda own, module, args: own.clear(), self.latest)
        )

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)

    def keep_by_name(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self.latest[name] = output


def keep_outside(module: nn.Module, args: Any) -> None:
    SEEN.append(args[0])


class Shared(Net):
    """One module by two names, one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.norm
        self.twin = nn.Conv2d(3, 8, 3, 2, 1)
        self.twin.weight = self.conv.weight
        self.parts = {"conv": self.conv}
        object.__setattr__(self, "hidden", self.norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twin(x) + self.parts["conv"](x)
        return self.head(self.hidden(self.again(y)).mean((2, 3)))


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        self.parent().passed += 1
        return x


class Parent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self.child = Child(self)

    def between(self, x: Tensor) -> Tensor:
        return self.child(x)


class Random(Net):
    """Draws from every source of random numbers, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.python = random.Random(1)
        self.table = np.arange(8)

    def between(self, x: Tensor) -> Tensor:
        self.table += 1
        noise = torch.rand(1).item() + torch.rand(1, generator=self.generator).item()
        noise += np.random.rand() + random.random() + self.numpy.random() + self.python.random()
        return F.dropout(x, 0.1, training=True) + noise


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.condition, self.local = threading.RLock(), threading.Condition(), threading.local()
        self.count = itertools.count()

    def between(self, x: Tensor) -> Tensor:
        with self.lock, self.condition:
            return x + next(self.count) * 0


class Iterating(Net):
    """Advances a generator, which nobody can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = (i for i in range(1000))

    def between(self, x: Tensor) -> Tensor:
        return x + next(self.steps)


class Settings(Net):
    """Changes what a process shares."""

    def between(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_default_device("cpu")
        return x


class OwnForward(Net):
    """Has a forward of its own, as accelerate's hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.before = 0
        self.forward = functools.partial(count_before, self, self.forward)
        self.conv.forward = types.MethodType(nn.Conv2d.forward, self.conv)


def count_before(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    module.before += 1
    return forward(x)


class Merging(nn.Conv2d):
    """Merges an update into its weight in evaluation, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3, 2, 1)
        self.update = nn.Parameter(torch.randn(8, 3, 3, 3) / 3)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.update.data if mode else self.update.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + F.conv2d(x, self.update, None, 2, 1)


class Frozen(Net):
    """Keeps its norm in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self


class WritesWeights(Net):
    """Centres its weights in each pass."""

    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.sub_(self.conv.weight.mean())
        return x


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.LazyConv2d(8, 3, 2),
            nn.LazyBatchNorm2d(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LazyLinear(5),
        )


class WritesInput(Net):
    """Normalises in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


def with_merging() -> nn.Module:
    net = Net()
    net.conv = Merging()
    return net


def with_old_weight_norm() -> nn.Module:
    net = Net()
    net.conv = nn.utils.weight_norm(net.conv)
    return net


def with_parametrizations() -> nn.Module:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.conv)
    nn.utils.parametrizations.spectral_norm(net.head)
    return net


def with_optimizer() -> nn.Module:
    net = Net()
    net.optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    net.optimizer.step()
    net.optimizer.zero_grad()
    return net


def graph() -> nn.Module:
    net = fx.symbolic_trace(Net())
    net.conv.register_forward_hook(keep_output)
    return net


def keep_output(module: nn.Module, args: Any, output: Tensor) -> None:
    SEEN.append(output)


class WithDropout(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def feature_graph() -> nn.Module:
    return create_feature_extractor(WithDropout(), ["head"])


# What each keeps of its own accord in an ordinary forward pass: it is the same after `measure` as well.
KEEPERS: dict[str, Callable[[], nn.Module]] = {
    **{
        cls.__name__: cls
        for cls in (
            Net, InstanceCache, AttributeCache, NestedCache, HelperCache, HelperClassCache, ClassCache,
            ClassAttribute, MethodCache, OwnCachedFunction, FunctionCache, FunctionAttributeCache,
            DefaultCache, TableCache, ThreadCache, Property, Log, WritesGlobalTensor, LazyHook, HookedBefore,
            Shared, Parent, Random, Locked, Settings, OwnForward, Frozen, WritesWeights, WritesInput,
            WithDropout,
        )
    },
    "SlottedHelper": lambda: HelperCache(SlottedHelper()),
    "Merging": with_merging,
    "OldWeightNorm": with_old_weight_norm,
    "Parametrizations": with_parametrizations,
    "Optimizer": with_optimizer,
    "Graph": graph,
    "FeatureGraph": feature_graph,
}  # fmt: skip


def on_real_data(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a maker of the same network that can't run on the meta device."""
    return lambda: nets.OnlyRealData(make())


@dataclass
class Photograph:
    """All that a network and its code keep, down to every value."""

    parts: dict[str, Any]

    def differences(self, other: Photograph) -> list[str]:
        """Return where two photographs differ."""
        keys = sorted({*self.parts, *other.parts})
        return [key for key in keys if self.parts.get(key) != other.parts.get(key)]


def photograph(model: nn.Module) -> Photograph:
    """Describe a network's modules, modes, tensors, tables and hooks, and what is outside."""
    outside: dict[str, Any] = {
        "RAMPS": RAMPS, "SEEN": SEEN, "STATE": STATE, "ready": ready, "passes": passes, "LOCAL": vars(LOCAL),
        "created": "created" in globals(), "SCALE": SCALE, "function": vars(remembering_ramp),
        "default": DefaultCache.between.__defaults__, "size of the cache": cached_ramp.cache_info().currsize,
        "of the method's": MethodCache.ramp.cache_info().currsize,
        "python": str(random.getstate()),
        "numpy": b"".join(np.asarray(part).tobytes() for part in np.random.get_state()[1:]),
        "torch": torch.get_rng_state().numpy().tobytes(), "settings": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(), "threads": torch.get_num_threads(),
        "modes": str(nets.active_modes()),
    }  # fmt: skip
    for cls in (HelperCache, ClassCache, ClassAttribute, MethodCache, Helper, DefaultCache):
        plain = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
        outside |= {f"{cls.__name__}.{name}": value for name, value in plain.items()}
    seen: dict[int, Any] = {}
    parts: dict[str, Any] = {}
    for name, value in [("model", model), *outside.items()]:
        parts |= dict(_describe(name, value, seen))
    return Photograph(parts)


def _describe(path: str, x: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(x, type(None) | bool | int | float | str | bytes | torch.dtype | torch.device):
        yield path, x
        return
    made_when_asked = types.MethodType | types.MethodWrapperType | types.BuiltinMethodType
    yield f"{path} is", (type(x).__qualname__, None if isinstance(x, made_when_asked) else id(x))
    if id(x) in seen:
        return
    seen[id(x)] = x
    if isinstance(x, Tensor):
        lazy = nn.parameter.is_lazy(x)
        yield (
            f"{path} values",
            ("lazy",) if lazy else (str(x.device), x.dtype, x.shape, x.detach().cpu().numpy().tobytes()),
        )
        yield f"{path} requires gradients", x.requires_grad
    elif isinstance(x, np.ndarray):
        yield f"{path} values", x.tobytes()
    elif isinstance(x, torch.Generator):
        yield f"{path} values", x.get_state().numpy().tobytes()
    elif isinstance(x, np.random.Generator):
        yield f"{path} values", str(x.bit_generator.state)
    elif isinstance(x, random.Random):
        yield f"{path} values", x.getstate()
    elif isinstance(x, dict | types.MappingProxyType):
        yield f"{path} keys", [key if isinstance(key, str | int) else id(key) for key in x]
        for key, value in list(x.items()):
            yield from _describe(f"{path}.{key if isinstance(key, str | int) else id(key)}", value, seen)
    elif isinstance(x, list | tuple | deque):
        yield f"{path} length", len(x)
        for i, value in enumerate(x):
            yield from _describe(f"{path}[{i}]", value, seen)
    elif isinstance(x, set | frozenset):
        yield f"{path} values", sorted(map(str, x))
    elif isinstance(x, types.FunctionType):
        for i, cell in enumerate(x.__closure__ or ()):
            yield from _describe(f"{path}<{i}>", cell.cell_contents, seen)
        yield from _describe(f"{path}.defaults", x.__defaults__, seen)
    elif isinstance(x, types.MethodType):
        yield from _describe(f"{path}.self", x.__self__, seen)
        yield from _describe(f"{path}.function", x.__func__, seen)
    elif isinstance(x, functools.partial):
        yield from _describe(f"{path}.function", x.func, seen)
        yield from _describe(f"{path}.args", x.args, seen)
    elif isinstance(x, itertools.count):
        yield f"{path} values", repr(x)
    elif hasattr(x, "cache_info"):
        yield f"{path} size", x.cache_info().currsize
    elif not isinstance(x, type):
        yield from _describe(f"{path}", getattr(x, "__dict__", None), seen)
        if isinstance(x, fx.GraphModule):
            yield f"{path}.forward", id(type(x).forward)
        for slot in getattr(type(x), "__slots__", ()):
            yield from _describe(f"{path}.{slot}", getattr(x, slot, None), seen)
