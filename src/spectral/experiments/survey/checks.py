"""What is asked of every surveyed model: found and complete, measured, converted, unaltered."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from spectral.errors import SpectralError
from spectral.experiments.survey.positions import Loss, PositionMode
from spectral.experiments.survey.state import Snapshot, compare_snapshots, digest, snapshot
from spectral.measurement import measure
from spectral.sites import Site, find_reductions
from spectral.surgery import conversion_report, convert, revert

_LISTED = 12  # names in a cell
COLUMNS = [
    "library", "model", "parameters", "input", "find", "find_error", "sites", "measurable", "lossless",
    "unmeasurable", "reasons", "kinds", "global_pools", "losses", "missed", "false", "unknown", "measure",
    "measure_error", "rows", "convert", "convert_error", "replaced", "left", "altered", "seconds", "error",
]  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Built:
    """A model and what it is called with.

    Attributes:
        model: in evaluation mode.
        inputs: a batch, a tuple of arguments, a dictionary of named ones, or a list (one argument).
        channels: which axis of an image holds the channels.
        images: names or positions of the arguments that are images; all that are floating-point and of the
            rank of the first by default.
    """

    model: nn.Module
    inputs: Any
    channels: int = 1
    images: tuple[Any, ...] = ()

    def call(self, model: nn.Module, inputs: Any = None) -> Any:
        """Run a model on the inputs, in the same way each time."""
        given = self.inputs if inputs is None else inputs
        seed_all(1)
        with torch.no_grad():
            if isinstance(given, dict):
                return model(**given)
            return model(*given) if isinstance(given, tuple) else model(given)

    def mark(self, mode: PositionMode) -> None:
        """Tell a mode which of the inputs are images."""
        given = self.inputs
        if self.images:
            chosen = [given[key] for key in self.images]
        else:
            flat = [x for x in tree_flatten(given)[0] if isinstance(x, Tensor) and x.is_floating_point()]
            chosen = [x for x in flat if x.ndim == max(y.ndim for y in flat)]
        for x in chosen:
            mode.mark(x, 0 if isinstance(given, list) else self.channels)

    def batch(self, size: int = 2) -> Any:
        """Return the inputs for several images that differ."""
        noise = torch.Generator().manual_seed(2)

        def enlarge(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if not x.is_floating_point():
                return x.repeat(size, *[1] * (x.ndim - 1))
            more = ((size - 1) * len(x), *x.shape[1:])  # of a batch of frames as many again
            return torch.cat([x, torch.rand(more, generator=noise)])

        if isinstance(self.inputs, dict):
            return {key: enlarge(x) for key, x in self.inputs.items()}
        if isinstance(self.inputs, list):
            return [*self.inputs, *(torch.rand(x.shape, generator=noise) for x in self.inputs)]
        return tuple(map(enlarge, self.inputs)) if isinstance(self.inputs, tuple) else enlarge(self.inputs)


def check_model(build: Callable[[], Built]) -> Iterator[Row]:
    """Ask everything of one model, and yield what is known after each question.

    Args:
        build: makes the model; called twice, for a twin that this package never sees.
    """
    seed_all(0)
    built = build()
    model = built.model.eval()
    seed_all(0)
    twin = build().model.eval()
    yield {"parameters": sum(p.numel() for p in model.parameters()), "input": _shapes(built.inputs)}
    fresh = snapshot(model)
    expected = built.call(twin)
    warm = snapshot(twin)
    yield from _check_sites(built, model, twin, fresh, warm, expected)
    yield from _check_measure(built, model, twin, expected)
    yield from _check_convert(built, model, expected)


def seed_all(seed: int) -> None:
    """Seed every generator that a library may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _check_sites(
    built: Built, model: nn.Module, twin: nn.Module, fresh: Snapshot, warm: Snapshot, expected: Any
) -> Iterator[Row]:
    mode = _account(built, twin)
    yield {
        "losses": sum(loss.certain for loss in mode.losses),
        "unknown": "; ".join(f"{k}: {v}" for k, v in mode.unknown.items()),
    }
    generator = torch.get_rng_state()
    try:
        found = find_reductions(model, built.inputs)
        compared = _compare(mode.losses, found)
        if compared["false"]:  # of images that meet in a product there are two accounts
            other = _account(built, twin, columns=True)
            compared["false"] = _compare([*mode.losses, *other.losses], found)["false"]
        yield {"find": "found", **_count(found), **compared}
    except Exception as error:
        yield {"find": _name(error), "find_error": _say(error)}
    altered = [f"find_sites: {path}" for path in compare_snapshots(fresh, snapshot(model), warm)]
    if not torch.equal(generator, torch.get_rng_state()):
        altered.append("find_sites: torch's random numbers")
    altered += _compare_output(built, model, expected, "find_sites")
    yield {"altered": _list(altered)}


def _account(built: Built, model: nn.Module, columns: bool = False) -> PositionMode:
    mode = PositionMode(model, columns)
    built.mark(mode)
    with mode.following(), mode:
        built.call(model)
    return mode


def _check_measure(built: Built, model: nn.Module, twin: nn.Module, expected: Any) -> Iterator[Row]:
    before = snapshot(model)
    try:
        table = measure(model, built.batch(), progress=False)
        yield {"measure": "measured" if len(table) else "nothing", "rows": len(table)}
    except SpectralError as error:
        yield {"measure": "refused", "measure_error": _say(error)}
    except Exception as error:
        yield {"measure": _name(error), "measure_error": _say(error)}
    after, own = snapshot(model), []
    for inputs in (built.batch(), built.inputs):
        with contextlib.suppress(Exception):  # a model of single images
            built.call(twin, inputs)
        own.append(snapshot(twin))
    output = _compare_output(built, model, expected, "measure")
    settled = snapshot(model)
    altered = [f"measure: {path}" for path in compare_snapshots(before, after, *own)
               if not _is_rewritten(path, settled, own)]  # fmt: skip
    yield {"altered": _list(altered + output)}


def _is_rewritten(path: str, settled: Snapshot, own: Sequence[Snapshot]) -> bool:
    """Whether a model keeps something there of its latest images, whoever passes them.

    Passes of a twin on other images differ there as well; and one more pass of the model leaves bit for bit
    what the same pass of the twin has left. So nothing that stays is excused.

    Args:
        path: where something has changed.
        settled: the model after one more pass.
        own: the twin after each of its passes, of which the last is the same.
    """
    changes = len({one.get(path) for one in own}) > 1
    return changes and settled.get(path) == own[-1].get(path)


def _check_convert(built: Built, model: nn.Module, expected: Any) -> Iterator[Row]:
    before = snapshot(model)
    altered: list[str] = []
    try:
        converted = convert(model, "blurpool", example=built.inputs)
        report = conversion_report(converted)
        left = Counter(str(row.reason) for row in report.rows if not row.replaced)
        yield {"replaced": len(report.replaced),
               "left": "; ".join(f"{n} × {reason}" for reason, n in left.most_common())}  # fmt: skip
        ran: Counter[str] = Counter()
        names = {id(m): n for n, m in converted.named_modules()}
        layers = {
            n: m for n, m in converted.named_modules() if type(m).__module__.startswith("spectral.layers")
        }
        handles = [
            m.register_forward_hook(lambda m, i, o: ran.update([names[id(m)]])) for m in layers.values()
        ]
        output = built.call(converted)
        for handle in handles:
            handle.remove()
        idle = sorted(set(layers) - set(ran))
        problems = [f"did not run: {', '.join(idle)}"] if idle else []
        # A module that runs twice is two sites and one layer, which then has to run twice.
        if sum(ran.values()) < len(report.replaced):
            problems.append(f"{len(report.replaced)} replaced, {sum(ran.values())} runs of a layer")
        if not _have_equal_shapes(built, model, output, expected):
            problems.append("outputs of another shape")
        if not problems and report.replaced:
            altered += _compare_output(built, revert(converted), expected, "revert")
        yield {"convert": "wrong" if problems else "converted", "convert_error": _list(problems)}
    except SpectralError as error:
        yield {"convert": "refused", "convert_error": _say(error)}
    except Exception as error:
        yield {"convert": _name(error), "convert_error": _say(error)}
    altered += [f"convert: {path}" for path in compare_snapshots(before, snapshot(model))]
    yield {"altered": _list(altered + _compare_output(built, model, expected, "convert"))}


def _have_equal_shapes(built: Built, model: nn.Module, output: Any, expected: Any) -> bool:
    """Whether outputs have equal shapes, but for those that follow the values: how many lines were found."""
    shapes, own = _list_shapes(output), _list_shapes(expected)
    if shapes == own:
        return True
    varying: set[int] = set()
    for change in (lambda x: 1 - x, lambda x: x.flip(-1), torch.zeros_like):
        other = _list_shapes(built.call(model, _map_images(built.inputs, change)))
        if len(other) == len(own):
            varying |= {i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b}
    alike = [i in varying or a == b for i, (a, b) in enumerate(zip(own, shapes, strict=False))]
    return len(shapes) == len(own) and all(alike)


def _map_images(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tree_map(lambda x: change(x) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def _list_shapes(output: Any) -> list[torch.Size]:
    return [x.shape for x in _tensors(output)]


def _compare(losses: Sequence[Loss], found: Sequence[Site]) -> Row:
    """Set the finder's list against the account of positions."""
    losses = _chain(losses)
    missed = []
    for loss in (loss for loss in losses if loss.certain):
        # How many samples there were tells as well: places at a padded border may be those of samples.
        same = [loss, *(x for x in losses if not x.certain and (x.module, x.op) == (loss.module, loss.op))]
        here = [site for site in found if site.module == loss.module]
        near = [site for site in found if _is_near(site.module, loss.module) or site.lossless]
        if any(not site.measurable for site in here):
            continue
        if any(_fits(site, one) for site in (*here, *near) for one in same):
            continue
        missed.append(f"{loss.module or 'root'} {loss.op} {_size(loss.before)} to {_size(loss.after)}")
    false = [
        f"{site.name} {site.op}"
        for site in found
        if site.op != "global_pool"
        and not site.lossless
        and max(site.output_size) > 1  # a single sample is no map
        and not any(
            loss.module == site.module or (_is_near(site.module, loss.module) and _fits(site, loss))
            for loss in losses
        )
    ]
    return {"missed": _list(missed), "false": _list(false)}


def _chain(losses: Sequence[Loss]) -> list[Loss]:
    """Join what one operation does axis by axis: ``x[..., ::2, ::2]`` is two slices."""
    joined: list[Loss] = []
    for loss in losses:
        last = joined[-1] if joined else None
        if last is not None and (last.module, last.op, last.after) == (loss.module, loss.op, loss.before):
            joined[-1] = replace(last, after=loss.after)
        else:
            joined.append(loss)
    return joined


def _fits(site: Site, loss: Loss) -> bool:
    """Whether a site may be a loss; axes that keep their samples, such as frames, needn't be the site's.

    Maps of windows, or rows and columns joined to one axis, have as many places together.
    """
    if site.module == loss.module and loss.places == math.prod((*site.output_size, *site.spread)):
        return True
    given = Counter(n for n in site.output_size if n > 1)
    after = Counter(n for n in loss.after if n > 1)
    changed = Counter(n for m, n in zip(loss.before, loss.after, strict=True) if 1 < n < m)
    return changed <= given <= after or site.op == "global_pool"


def _is_near(a: str, b: str) -> bool:
    """Whether modules are one, parent and child, or siblings: one cuts windows, another sums over them."""
    up_a, up_b = a.rpartition(".")[0], b.rpartition(".")[0]
    return a in (b, up_b) or b == up_a or up_a == up_b


def _count(found: Sequence[Site]) -> Row:
    sites = [site for site in found if site.op != "global_pool"]
    left = [site for site in sites if not site.measurable and not site.lossless]
    reasons = Counter(str(site.reason) for site in left)
    kinds = Counter(site.op for site in sites)
    return {
        "sites": len(sites), "measurable": sum(site.measurable for site in sites),
        "lossless": sum(site.lossless for site in sites), "unmeasurable": len(left),
        "reasons": "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common()),
        "kinds": "; ".join(f"{kind} {n}" for kind, n in kinds.most_common()),
        "global_pools": len(found) - len(sites),
    }  # fmt: skip


def _compare_output(built: Built, model: nn.Module, expected: Any, after: str) -> list[str]:
    try:
        output = built.call(model)
    except Exception as error:
        return [f"{after}: its forward raises {_name(error)}: {_say(error)}"]
    pairs = [list(map(digest, _tensors(x))) for x in (output, expected)]
    return [] if pairs[0] == pairs[1] else [f"{after}: its output differs"]


def _tensors(output: Any) -> list[Tensor]:
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    return [x for x in tree_flatten(output)[0] if isinstance(x, Tensor)]


def _shapes(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key} {_shapes(x)}" for key, x in inputs.items())
    if isinstance(inputs, (list, tuple)):
        return ", ".join(map(_shapes, inputs))
    return _size(inputs.shape) if isinstance(inputs, Tensor) else str(inputs)


def _size(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _list(items: Sequence[str]) -> str:
    more = f"; … ({len(items)})" if len(items) > _LISTED else ""
    return "; ".join(items[:_LISTED]) + more


def _name(error: Exception) -> str:
    return type(error).__name__


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or _name(error)
