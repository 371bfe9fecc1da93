"""Capture the tensors at sites (or any module) during an ordinary forward pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from spectral.errors import SpectralError, suggest
from spectral.operators import ALL, Decimation, Size, find_plain_operator
from spectral.recorder import Frame, Operation, Recorder, Substitute, paused
from spectral.sites import Site, check_hookable

Tap = Literal["input", "dense", "output"]
TAPS: tuple[Tap, ...] = ("input", "dense", "output")


class Capture:
    """The tensors of one site in one forward pass, alive while a ``reduce`` callback runs.

    All are maps (B, C, H, W), videos' (B, C, T, H, W). Where one image has several maps on the batch axis
    (attention heads, windows) B is larger than the number of images; `per_image` brings values back to it.

    Attributes:
        site: where it is.
        input: what enters the site.
        decimation: what ran, with all that it takes to compute its dense map.
    """

    def __init__(
        self, site: Site, entering: Tensor, decimation: Decimation, run: Callable[[], Tensor], size: Size
    ) -> None:
        self.site = site
        self.input = entering
        self.decimation = decimation
        self.size = size
        self._run = run
        self._output: Tensor | None = None
        self._kept: Tensor | None = None
        self._known: Tensor | None = None  # which images and channels of it have been computed

    @property
    def output(self) -> Tensor:
        """What leaves the site: kept from the dense map once all of that has been computed, else run."""
        if self._output is None:
            whole = self._known is not None and bool(self._known.all())
            self._output = self._kept if whole else self._run()
        assert self._output is not None
        return self._output

    def run(self) -> Tensor:
        """Return what the operator itself gives, whatever was computed before."""
        if self._output is None or self._output is self._kept:
            return self._run()
        return self._output

    def dense(self, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Return the dense map, or that of some images and channels: dense[φ::s][:n] is the output."""
        dense = self.decimation.dense(self.size, images, channels)
        if self._output is None:
            self._keep(dense, images, channels)
        return dense

    def decimate(self, dense: Tensor) -> Tensor:
        """Return the samples of a dense map that the site keeps."""
        geometry = self.site.geometry
        axes = zip(geometry.phase, geometry.stride, self.size, strict=True)
        for axis, (p, s, n) in enumerate(axes, start=2):
            dense = dense[(slice(None),) * axis + (slice(p, p + (n - 1) * s + 1, s),)]
        return dense

    def per_image(self, values: Tensor) -> Tensor:
        """Add up what was computed per map of the batch axis, (B',) → (B,)."""
        before, after = self.site.spread
        return values if before == after == 1 else values.reshape(before, -1, after).sum((0, 2))

    def _keep(self, dense: Tensor, images: slice, channels: slice) -> None:
        """Collect the output piece by piece, so that a site isn't computed twice."""
        decimation = self.decimation
        if decimation.weight is None:
            return  # a pool costs less than a copy
        if self._kept is None or self._known is None:
            count = len(decimation.input), decimation.channels
            self._kept = torch.empty(
                *count,
                *self.size,
                dtype=dense.dtype,
                device=dense.device,
                memory_format=_memory_format(dense),
            )
            self._known = torch.zeros(count, dtype=torch.bool)
        self._kept[images, channels] = self.decimate(dense)
        self._known[images, channels] = True


def _memory_format(x: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.ndim)
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format


class FeatureExtractor(AbstractContextManager["FeatureExtractor"]):
    """Hooks that keep, for each site, the tensor at one tap of the latest forward pass.

    Use it in a ``with`` statement, or call `remove_hooks` when done. Tensors are copies, safe against
    in-place operators that follow, and detached unless ``detach=False``. The model's modes and outputs stay
    as they are.

    Args:
        model: the module whose forward will be called; not scripted, compiled or wrapped for parallelism.
        sites: sites from `find_sites`, or names of modules (then the module's own input or output is kept).
        capture_input: keep what enters (the pre-stride tensor); False keeps what leaves.
        tap: ``"input"``, ``"dense"`` or ``"output"``; overrides ``capture_input``. Dense needs sites.
        detach: False keeps the graph, so that a metric of the capture can be a training penalty.
        reduce: called with a `Capture` inside the hook instead of keeping tensors; sites only.

    Raises:
        SpectralError: for an unknown name (the nearest are offered), a site that isn't measurable at the
            asked tap, a model in which hooks never fire, or a site that doesn't run as it was found.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True))
        >>> with FeatureExtractor(net, ["0"], capture_input=True) as fx:
        ...     _ = net(torch.zeros(1, 3, 8, 8))
        ...     fx["0"].shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site | str],
        capture_input: bool = True,
        *,
        tap: Tap | None = None,
        detach: bool = True,
        reduce: Callable[[Capture], None] | None = None,
    ) -> None:
        check_hookable(model)
        self.tap: Tap = tap or ("input" if capture_input else "output")
        if self.tap not in TAPS:
            raise SpectralError(f"FeatureExtractor: tap must be one of {', '.join(TAPS)}, got {tap!r}")
        self.enabled = True
        self._detach = detach
        self._reduce = reduce or self._keep
        self._keeps = reduce is None
        self._modules = dict(model.named_modules())
        self._names: list[str] = []
        self._sites: dict[tuple[str, int, str, int], Site] = {}
        self._watched: dict[str, list[Site]] = defaultdict(list)
        self._plain: list[str] = []
        if isinstance(sites, str):
            raise SpectralError(f"FeatureExtractor: sites must be a list, got the string {sites!r}")
        for site in sites:
            self._add(site)
        self._captured: dict[str, list[Tensor]] = {}
        self._has_run = False
        self._delivering = False
        self._entered: list[bool] = []  # of the calls that are running, whether each has a frame
        self._calls: Counter[str] = Counter()
        self._frames: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []
        # A reduce callback at the dense tap computes each convolution's output on the way.
        self._substitutes = reduce is not None and self.tap == "dense" and detach
        self._mode = _CaptureMode(
            self._on_operation, self._compute if self._substitutes else None, differentiable=not detach
        )
        try:
            self._register(model)
        except BaseException:
            self.remove_hooks()
            raise

    def __exit__(self, *exception: object) -> None:
        """Remove the hooks; what was captured stays readable."""
        self.remove_hooks()

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor captured at a site in the latest forward pass.

        Raises:
            SpectralError: if the name isn't captured, nothing ran yet, or the module ran several times.
        """
        captured = self.calls(name)
        if len(captured) > 1:
            raise SpectralError(
                f"{name!r} ran {len(captured)} times in one forward pass; read calls({name!r})[k], or "
                f"capture the sites that find_sites gives, which name each call"
            )
        return captured[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def keys(self) -> list[str]:
        """Names that are captured, in the order given."""
        return list(self._names)

    def calls(self, name: str) -> list[Tensor]:
        """Return one tensor per call of the module in the latest forward pass."""
        if name not in self._names:
            raise SpectralError(f"{name!r} isn't captured{suggest(name, self._names)}")
        if not self._captured.get(name):
            why = "it didn't run in the latest forward pass"
            if not self._has_run:
                why = "the model hasn't run since the hooks were set"
            elif not self._keeps:
                why = "the reduce callback took it"
            raise SpectralError(f"nothing was captured at {name!r}: {why}")
        return self._captured[name]

    def remove_hooks(self) -> None:
        """Remove every hook; may be called more than once.

        Raises:
            SpectralError: inside the ``reduce`` callback, where the forward still needs them.
        """
        if self._delivering:
            raise SpectralError(
                "remove_hooks can't run inside the reduce callback; set enabled = False there instead"
            )
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._abandon()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model run without capturing."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _add(self, site: Site | str) -> None:
        if not isinstance(site, (str, Site)):
            raise SpectralError(
                f"FeatureExtractor: expected sites from find_sites or module names, got {type(site).__name__}"
            )
        name, path = (site, site) if isinstance(site, str) else (site.name, site.module)
        if name in self._names:
            return
        if path not in self._modules:
            hint = suggest(path, self._modules)
            if path.partition("@")[0].partition(":")[0] in self._modules:
                hint = "; for one operator or call inside a module, pass the site that find_sites gives"
            raise SpectralError(f"the model has no module {path!r}{hint}")
        if isinstance(site, str):
            self._check_plain(site)
            self._plain.append(path)
        else:
            self._check_site(site)
            self._sites[site.key] = site
            self._watched[path].append(site)
        self._names.append(name)

    def _check_plain(self, path: str) -> None:
        if self.tap == "dense" or not self._keeps:
            what = "reduce" if not self._keeps else "tap 'dense'"
            raise SpectralError(f"{what} needs a site from find_sites, got the module name {path!r}")

    def _check_site(self, site: Site) -> None:
        if not site.measurable:
            raise SpectralError(f"site {site.name!r} can't be measured: {site.reason}")
        module: Any = self._modules[site.module]
        if site.family == "layer":
            if getattr(module, "kind", None) != site.op or module.stride != site.stride:
                raise SpectralError(
                    f"site {site.name!r} isn't what runs there; call find_sites on this model"
                )
            return
        operator = find_plain_operator(module)
        if site.access == "direct" and (
            operator is None
            or operator.kind != site.operator
            or _as_size(module.stride, site) != site.stride
            or _as_size(module.kernel_size, site) != site.kernel
        ):
            raise SpectralError(f"site {site.name!r} isn't what runs there; call find_sites on this model")

    def _register(self, model: nn.Module) -> None:
        for path in dict.fromkeys(self._plain):
            module = self._modules[path]
            if self.tap == "input":
                hook = partial(self._on_plain_input, path)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(partial(self._on_plain_output, path)))
        for path, sites in self._watched.items():
            if all(self._is_direct(site) for site in sites):
                hook = partial(self._on_direct, path)
                self._handles.append(self._modules[path].register_forward_hook(hook, with_kwargs=True))
        for path in self._framed_modules():
            module = self._modules[path]
            self._handles += [
                module.register_forward_pre_hook(partial(self._enter, path), prepend=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        # Last and prepended, hence first to run: the model itself may own a frame.
        self._handles.append(model.register_forward_pre_hook(self._begin, prepend=True))

    def _framed_modules(self) -> list[str]:
        """Owners of functional sites and all modules inside them: an operator counts for its own module."""
        owners = {site.module for site in self._sites.values() if not self._is_direct(site)}
        # By identity: a module that two owners share has the name that it has in the first.
        inside = {id(module) for owner in owners for module in self._modules[owner].modules()}
        return [path for path, module in self._modules.items() if id(module) in inside]

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self.enabled:
            if self._delivering:
                raise SpectralError(
                    "the reduce callback ran the model; wrap that in `with extractor.paused():`"
                )
            self._abandon()
            self._has_run = True
            self._captured = {}
            self._calls.clear()
            self._frames.clear()

    def _abandon(self) -> None:
        """Leave the mode of a forward that raised."""
        self._entered.clear()
        self._mode.reset()

    def _on_plain_input(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        self._keep_plain(path, tensor)

    def _on_plain_output(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        self._keep_plain(path, output if isinstance(output, Tensor) else None)

    def _keep_plain(self, path: str, tensor: Tensor | None) -> None:
        if not self.enabled or _is_recomputing():
            return
        if tensor is None:
            raise SpectralError(f"module {path!r} passes no plain tensor; capture a module inside it")
        self._captured.setdefault(path, []).append(self._copy(tensor))

    def _is_direct(self, site: Site) -> bool:
        """Whether a plain hook does; a convolution that is substituted must be met before it runs."""
        return site.access == "direct" and not (self._substitutes and site.operator == "conv")

    def _on_direct(self, path: str, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        if not self.enabled or _is_recomputing():
            return
        call = self._calls[path]
        self._calls[path] += 1
        layer = self._sites.get((path, call, "layer", 0))
        if layer is not None:
            dense = partial(_call_dense, module, args[1:], kwargs)
            decimation = Decimation(replace(layer.geometry, kind=layer.op), args[0], layer=dense)
            with paused():
                self._deliver(layer, args[0], output, decimation)
        site = self._sites.get((path, call, "operator", 0))
        if site is not None:
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            x = args[0] if args[0].ndim == len(site.stride) + 2 else args[0][None]
            decimation = Decimation(site.geometry, x, weight, bias)
            with paused():
                self._deliver(site, x, decimation.arrange(output), decimation)

    def _enter(self, path: str, module: nn.Module, args: Any) -> None:
        active = self.enabled and not _is_recomputing()
        self._entered.append(active)
        if active:
            self._mode.push(Frame(path, module, self._frames[path], args))
            self._frames[path] += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._entered and self._entered.pop():
            self._mode.pop()

    def _find(self, frame: Frame, family: str, index: int) -> Site | None:
        site = self._sites.get((frame.path, frame.call, family, index))
        return None if site is None or not self.enabled or self._is_direct(site) else site

    def _on_operation(self, operation: Operation) -> None:
        frame = operation.frame
        site = self._find(frame, operation.decimation.operator.family, operation.index)
        if site is None:
            return
        decimation = _place(operation.decimation, site, operation.source)
        layout = site.layouts[1] if site.layouts is not None else decimation
        output = layout.arrange(operation.output)
        entering = frame.args[0] if site.access == "wrapped" else decimation.input
        self._deliver(site, entering, output, decimation)

    def _compute(
        self, frame: Frame, index: int, decimation: Decimation, run: Callable[[], Tensor]
    ) -> Tensor | None:
        """Let the callback compute a convolution's dense map, and take the output from there."""
        site = self._find(frame, "operator", index)
        if site is None or torch.is_grad_enabled() or decimation.input.ndim != len(site.stride) + 2:
            return None
        if len(frame.args) != 1 or decimation.input.shape[1] != site.channels:
            return None
        decimation = _place(decimation, site, decimation.input)
        entering = frame.args[0] if site.access != "inner" else decimation.input
        capture = Capture(site, entering, decimation, run, decimation.output_size)
        self._call(capture)
        return capture.output

    def _deliver(self, site: Site, entering: Tensor, output: Tensor, decimation: Decimation) -> None:
        if self._detach:
            entering, output = entering.detach(), output.detach()
            decimation = replace(decimation, input=decimation.input.detach())
        capture = Capture(
            site, entering, decimation, lambda: output, tuple(output.shape[-len(site.stride) :])
        )
        _ = capture.output  # it is there
        self._call(capture)

    def _call(self, capture: Capture) -> None:
        self._delivering = True
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._detach):
                self._reduce(capture)
        finally:
            self._delivering = False

    def _keep(self, capture: Capture) -> None:
        tensor = capture.dense() if self.tap == "dense" else getattr(capture, self.tap)
        self._captured.setdefault(capture.site.name, []).append(self._copy(tensor))

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self._detach else tensor.clone()


def _call_dense(module: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    """Compute a layer's own dense map, with the choices that were made for it elsewhere."""
    dense: Tensor = module.dense(x, *args, **kwargs)
    return dense


def _place(decimation: Decimation, site: Site, source: Tensor) -> Decimation:
    """See an operator that ran as the site that was found there.

    Raises:
        SpectralError: if something else ran.
    """
    ran, found = decimation.geometry, site.geometry
    alike = ran.kind == site.operator and decimation.operator.agrees(ran, found)
    try:
        if alike and site.layouts is not None:
            return Decimation(found, site.layouts[0].arrange(source))
    except RuntimeError:  # a size that the layout can't be split into
        alike = False
    if not alike:
        raise SpectralError(
            f"site {site.name!r} ran as {ran.kind} with stride {ran.stride}, not as {site.operator} with "
            f"{found.stride}; call find_sites again for this input"
        )
    return decimation.operator.place(decimation, found)


def _as_size(value: Any, site: Site) -> Size:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * len(site.stride)


def _is_recomputing() -> bool:
    """Whether a backward pass runs the forward again (gradient checkpointing): it was captured before."""
    return torch._C._current_graph_task_id() != -1


class _CaptureMode:
    """The recorder, active only while a module is running that holds functional sites.

    Operators are seen below autograd, where nothing that is computed gets a graph. To keep it, each function
    call is run under the recorder on its own, and its operators are reported when it has returned.
    """

    def __init__(
        self, on_operation: Callable[[Operation], None], substitute: Substitute | None, differentiable: bool
    ) -> None:
        self._on_operation = on_operation
        self._active = False
        self._seen: list[Operation] = []
        self.recorder = Recorder(self._seen.append if differentiable else on_operation, substitute=substitute)
        self._mode: AbstractContextManager[Any] = _GraphKeeper(self) if differentiable else self.recorder

    def push(self, frame: Frame) -> None:
        """Enter a call, and the mode with the first."""
        if not self._active:
            self._mode.__enter__()
            self._active = True
        else:
            self.recorder.flush()
        self.recorder.frames.append(frame)

    def pop(self) -> None:
        """Leave a call, and the mode with the last."""
        try:
            self.recorder.flush()
        finally:
            self.recorder.frames.pop()
            if not self.recorder.frames:
                self._deactivate()

    def reset(self) -> None:
        """Leave everything, after a forward that raised."""
        self.recorder.reset()
        self._deactivate()

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one function under the recorder, and report its operators when their outputs have a graph."""
        self._seen.clear()
        with self.recorder:
            out = func(*args, **kwargs)
            self.recorder.flush()
        seen = self._seen.copy()
        self._seen.clear()
        with paused():
            for operation in seen:
                self._on_operation(operation)
        return out

    def _deactivate(self) -> None:
        if self._active:
            self._active = False
            self._mode.__exit__(None, None, None)


class _GraphKeeper(TorchFunctionMode):
    def __init__(self, mode: _CaptureMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, reporting what it decimates."""
        if not self._mode.recorder.is_counting:
            return func(*args, **(kwargs or {}))
        return self._mode.run(func, args, kwargs or {})
