"""Capture the tensors at sites (or any module) during an ordinary forward pass."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spectral.errors import SpectralError, suggest
from spectral.hooks.agreement import call_dense, check_site, check_standing, place_operator
from spectral.hooks.capture import OF_DENSE_MAPS, TAPS, Capture, Tap
from spectral.hooks.endings import Endings, Ready
from spectral.hooks.matching import Roll
from spectral.operators import Decimation, operator_name
from spectral.processes.interrupts import undivided
from spectral.sites import Site, check_hookable
from spectral.tracing.graph import GraphRecorder, is_reentrant, saving_plainly
from spectral.tracing.recorder import Operation, Recorder, Run
from spectral.tracing.tracker import Frame, Tracker, is_recomputing, paused


class FeatureExtractor(AbstractContextManager["FeatureExtractor"]):
    """Hooks that keep, for each site, the tensor at one tap of the latest forward pass.

    Use it in a ``with`` statement, or call `remove_hooks` when done. Tensors are copies, safe against
    in-place operators that follow, and detached unless ``detach=False``. The model's modes and outputs stay
    as they are.

    Args:
        model: the module whose forward will be called; not scripted, compiled or wrapped for parallelism.
        sites: sites from `find_sites`, or names of modules (then the module's own input or output is kept).
        capture_input: keep what enters (the pre-stride tensor); False keeps what leaves.
        tap: ``"input"``, ``"dense"``, ``"signal"`` (the dense map behind the pointwise operators that follow)
            or ``"output"``; overrides ``capture_input``. Dense and signal need sites.
        detach: False keeps the graph, so that a metric of the capture can be a training penalty.
        reduce: called with a `Capture` inside the hook instead of keeping tensors; sites only.
        share_dense: where ``reduce`` computes a convolution's dense map and no gradient is needed, take its
            output from that instead of computing it twice; the model's outputs then change by rounding.
        wants_pass: called when a forward pass begins; tells whether to capture it.
        after_pass: called when one that is captured has ended, before its output is handed out.

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

    @undivided
    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site | str],
        capture_input: bool = True,
        *,
        tap: Tap | None = None,
        detach: bool = True,
        reduce: Callable[[Capture], None] | None = None,
        share_dense: bool = True,
        wants_pass: Callable[[], bool] = lambda: True,
        after_pass: Callable[[], None] | None = None,
    ) -> None:
        check_hookable(model)
        self.tap: Tap = tap or ("input" if capture_input else "output")
        if self.tap not in TAPS:
            raise SpectralError(f"FeatureExtractor: tap must be one of {', '.join(TAPS)}, got {tap!r}")
        self._detach = detach
        self._reduce = reduce
        self._keeps = reduce is None
        self._modules = dict(model.named_modules())
        self._names: list[str] = []
        self._watched: dict[str, list[Site]] = defaultdict(list)
        self._plain: list[str] = []
        if isinstance(sites, str):
            raise SpectralError(f"FeatureExtractor: sites must be a list, got the string {sites!r}")
        for site in sites:
            self._add(site)
        self._wants_pass, self._after_pass = wants_pass, after_pass
        self._latest: _Pass | None = None  # None until the model has run
        self._delivering = False
        self._handles: list[RemovableHandle] = []
        self._substitutes = share_dense and reduce is not None and self.tap in OF_DENSE_MAPS and detach
        self._direct = {p for p, own in self._watched.items() if all(self._is_direct(s) for s in own)}
        self._owners = set(self._watched) - self._direct
        self._active = _Active()
        self._endings = Endings(site for own in self._watched.values() for site in own)
        self._tracker = Tracker(
            self._find_tracked(),
            expected={path: own[0].place.calls[1] for path, own in self._watched.items()},
            start=self._start,
            begin=self._begin,
            end=self._end,
            close=self._close,
            reset=self._reset,
        )
        try:
            self._register()
        except BaseException:
            self.remove_hooks()
            raise

    @undivided
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
        """Return one tensor per call of the module in the latest forward pass.

        Raises:
            SpectralError: as for a single one; and where a gradient is asked for that checkpointing cuts off.
        """
        if name not in self._names:
            raise SpectralError(f"{name!r} isn't captured{suggest(name, self._names)}")
        if self._latest is not None and name in self._latest.captured:
            if name in self._latest.cut_off:
                raise SpectralError(
                    f"{name!r} ran under reentrant checkpointing, which keeps no gradients of what is "
                    f"inside; pass use_reentrant=False to torch.utils.checkpoint, or detach=True here"
                )
            return self._latest.captured[name]
        why = "it didn't run in the latest forward pass"
        if self._latest is None:
            why = "the model hasn't run since the hooks were set"
        elif not self._keeps:
            why = "the reduce callback took it"
        raise SpectralError(f"nothing was captured at {name!r}: {why}")

    @undivided
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
        self._tracker.remove()
        self._reset()

    @property
    def enabled(self) -> bool:
        """Whether forward passes are captured; may be set."""
        return self._tracker.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._tracker.enabled = value

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
            check_site(site, self._modules[site.module])
            self._watched[path].append(site)
        self._names.append(name)

    def _check_plain(self, path: str) -> None:
        if self.tap in OF_DENSE_MAPS or not self._keeps:
            what = "reduce" if not self._keeps else f"tap {self.tap!r}"
            raise SpectralError(f"{what} needs a site from find_sites, got the module name {path!r}")

    def _register(self) -> None:
        for path in dict.fromkeys(self._plain if self.tap == "output" else ()):
            hook = _OutputHook(self._modules[path], partial(self._on_plain_output, path))
            self._handles.append(self._modules[path].register_forward_hook(hook))
        self._tracker.attach()

    def _find_tracked(self) -> dict[str, nn.Module]:
        """Modules to follow: the model, what is watched, what runs it, and all inside owners of operators.

        An operator counts for the innermost module, so none inside an owner may be missed.
        """
        watched = {"", *self._watched, *self._plain}
        parts = [path.split(".") for path in watched]
        watched |= {".".join(names[:n]) for names in parts for n in range(1, len(names))}
        # By identity: a module that two owners share has the name that it has in the first.
        inside = {id(module) for owner in self._owners for module in self._modules[owner].modules()}
        return {p: module for p, module in self._modules.items() if p in watched or id(module) in inside}

    def _start(self) -> _Pass | None:
        """Begin a pass: what earlier passes left is out of date."""
        if not self._wants_pass():
            return None
        check_standing(self._modules, (*self._watched, *self._plain))
        self._latest = _Pass(Roll(self._watched, self._tracker))
        return self._latest

    def _begin(self, frame: Frame) -> None:
        if frame.record is None:
            return
        frame.record.roll.enter(frame)
        if self.tap == "input" and frame.path in self._plain:
            self._keep_plain(frame.path, frame.input, frame.record)
        if self._active.recorder is not None:
            self._active.recorder.flush()
        elif frame.path in self._owners:
            self._listen(frame)

    def _listen(self, frame: Frame) -> None:
        """Hear of operators for the time of a call."""
        active, frames = self._active, self._tracker.frames
        observe = self._observe if self._endings else None
        if self._detach:
            substitute = self._compute if self._substitutes else None
            active.recorder = Recorder(frames, self._on_operation, observe, substitute)
        else:
            active.recorder = GraphRecorder(frames, self._on_operation, observe)
        active.frame = frame
        active.recorder.start()

    def _end(self, frame: Frame, output: Any) -> None:
        if frame.record is None:
            return
        if self._active.recorder is not None:
            self._active.recorder.flush()
        self._endings.leave(frame)
        if frame.path in self._direct:
            self._on_direct(frame, output)
        if frame.parent is None:
            frame.record.roll.check(whole=not frame.path)
            if self._after_pass is not None:
                with self._reading():
                    self._after_pass()

    def _close(self, frame: Frame) -> None:
        if self._active.frame is frame:
            self._reset()

    def _reset(self) -> None:
        """Hear of nothing more."""
        self._delivering = False
        if self._active.recorder is not None:
            self._active.recorder.stop()
        self._active.recorder = self._active.frame = None

    def _on_plain_output(self, path: str, output: Any) -> None:
        latest = self._tracker.record
        if self.enabled and latest is not None and not is_recomputing():
            self._keep_plain(path, output if isinstance(output, Tensor) else None, latest)

    def _keep_plain(self, path: str, tensor: Tensor | None, latest: _Pass) -> None:
        if tensor is None:
            raise SpectralError(f"module {path!r} passes no plain tensor; capture a module inside it")
        latest.captured.setdefault(path, []).append(self._copy(tensor))
        self._note_cut(path, latest)

    def _is_direct(self, site: Site) -> bool:
        """Whether its module's call shows all of it; a convolution that is substituted must be met before."""
        return site.access == "direct" and not (self._substitutes and site.operator == "conv")

    def _on_direct(self, frame: Frame, output: Tensor) -> None:
        module: Any = frame.module
        roll = frame.record.roll
        layer = roll.find(frame, "layer")
        if layer is not None:
            check_site(layer, module)
            entering, dense = frame.input, partial(call_dense, frame)
            assert entering is not None
            if module.axes == 1:  # a signal is a map of one row
                entering, output = entering.unsqueeze(-2), output.unsqueeze(-2)
            decimation = Decimation(replace(layer.geometry, kind=layer.op), entering, layer=dense)
            with paused():
                self._deliver(layer, frame, entering, output, decimation)
        site = roll.find(frame, "operator")
        if site is not None:
            check_site(site, module)  # a stride may have been set since
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            x = frame.input
            assert x is not None
            x = x if x.ndim == len(site.stride) + 2 else x[None]
            decimation = Decimation(site.geometry, x, weight, bias)
            with paused():
                self._deliver(site, frame, x, decimation.arrange(output), decimation)

    def _find(self, operation: Operation) -> Site | None:
        """Return the site that an operator is, if it isn't met otherwise."""
        frame = operation.frame
        if not self.enabled or frame.record is None or frame.path in self._direct:
            return None
        site: Site | None = frame.record.roll.find(
            frame, operation.family, operation.index, operation.own, operation.turn
        )
        return site

    def _on_operation(self, operation: Operation) -> None:
        frame, site = operation.frame, self._find(operation)
        if site is None:
            return
        decimation = place_operator(operation.decimation, site, operation.source)
        if site.ending is not None:
            # Whatever comes before its output may be written over what enters.
            begun = replace(decimation, input=self._copy(decimation.input))
            self._deliver_joined(frame, self._endings.begin(frame, site, begun))
            return
        layout = site.layouts[1] if site.layouts is not None else decimation
        entering = frame.argument if site.access == "wrapped" else decimation.input
        assert entering is not None
        self._deliver(site, frame, entering, layout.arrange(operation.result), decimation)

    def _observe(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Meet the output of a site that several operators make."""
        frame = self._tracker.frames[-1]
        if self.enabled and frame.record is not None:
            with paused():
                self._deliver_joined(frame, self._endings.follow(frame, operator_name(func), out, self._copy))

    def _deliver_joined(self, frame: Frame, ready: Iterable[Ready]) -> None:
        for site, decimation, output in ready:
            assert site.layouts is not None
            self._deliver(site, frame, decimation.input, site.layouts[1].arrange(output), decimation)

    def _compute(self, operation: Operation, run: Run) -> Tensor | None:
        """Let the callback compute a convolution's dense map, and take the output from there."""
        decimation, frame = operation.decimation, operation.frame
        argument = frame.argument
        if torch.is_grad_enabled() or argument is None:
            return None
        site = self._find(operation)
        if site is None or decimation.input.ndim != len(site.stride) + 2:
            return None
        if decimation.input.shape[1] != site.channels:
            return None
        decimation = place_operator(decimation, site, decimation.input)
        entering = argument if site.access != "inner" else decimation.input
        capture = Capture(site, entering, decimation, run, decimation.output_size, self._find_weight)
        self._call(capture, frame)
        return capture.output

    def _deliver(
        self, site: Site, frame: Frame, entering: Tensor, output: Tensor, decimation: Decimation
    ) -> None:
        if self._detach:
            entering, output = entering.detach(), output.detach()
            decimation = replace(decimation, input=decimation.input.detach())
        size = tuple(output.shape[-len(site.stride) :])
        capture = Capture(site, entering, decimation, output.__getitem__, size, self._find_weight)
        _ = capture.output  # it is there
        self._call(capture, frame)

    def _call(self, capture: Capture, frame: Frame) -> None:
        with self._reading():
            if self._reduce is not None:
                if capture.input.numel() > 0:  # boxes, of which none were found, have no numbers
                    self._reduce(capture)
            else:
                tensor = getattr(capture, self.tap)
                tensor = tensor() if self.tap in OF_DENSE_MAPS else tensor
                frame.record.captured[capture.site.name] = [self._copy(tensor)]
                self._note_cut(capture.site.name, frame.record)

    def _note_cut(self, name: str, record: _Pass) -> None:
        """Note that what was captured has no gradient, where one is asked for."""
        if not self._detach and not torch.is_grad_enabled() and is_reentrant():
            record.cut_off.add(name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Hear of nothing that is computed within, and keep no gradients but those that are wanted."""
        self._delivering = True
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._detach), saving_plainly():
                yield
        finally:
            self._delivering = False

    def _find_weight(self, name: str) -> Tensor:
        """Return a parameter or buffer of the model as it is now."""
        path, _, own = name.rpartition(".")
        weight: Tensor = getattr(self._modules[path], own)
        return weight.detach() if self._detach else weight

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self._detach else tensor.clone()


@dataclass
class _Pass:
    """What one forward pass has left."""

    roll: Roll
    captured: dict[str, list[Tensor]] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)  # of these, what checkpointing runs without its graph


class _OutputHook:
    """Sees what a module returns when all other hooks have run; means nothing to copies of the module."""

    def __init__(self, module: nn.Module, keep: Callable[[Any], None]) -> None:
        self._module, self._keep = module, keep

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep it."""
        if module is self._module:
            self._keep(output)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        """Hang nothing on a copy."""
        return _do_nothing

    def __reduce__(self) -> Any:
        """Hang nothing on a pickled module, which needs nothing of this package then."""
        return _do_nothing.__reduce__()


_do_nothing = nullcontext().__exit__


class _Active(threading.local):
    """What listens in one thread, and since which call."""

    def __init__(self) -> None:
        self.recorder: Recorder | GraphRecorder | None = None
        self.frame: Frame | None = None
