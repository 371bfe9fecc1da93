"""What each operator of torch does to places: moves them, averages them, keeps them where values change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map_only

from spectral.experiments.survey.places import Places, count_places


@dataclass
class Call:
    """One call of an operator: what went in and came out, and the places of what went in."""

    func: Any
    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    outs: list[Tensor]
    known: list[Tensor]
    places: dict[int, Places]
    columns: bool = False

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(next(iter(self.places.values())))

    def of(self, x: Any) -> Places | None:
        """The places of an argument, if it has any."""
        return self.places.get(id(x)) if isinstance(x, Tensor) else None

    def filled(self, x: Tensor) -> Places:
        """The places of a tensor, NaN where it has none."""
        nothing = torch.full(x.shape, math.nan, dtype=torch.float64)
        return self.of(x) or [nothing] * self.rank


Rule = Callable[[Call], tuple[list[Places | None], list[Tensor]]]


def follow_pointwise(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """What has the shape of the output keeps its places; of several the one with most of them leads."""
    shape = call.outs[0].shape
    fitting = [x for x in call.known if _broadcasts(x.shape, shape)]
    if not fitting:
        raise ValueError("no rule")
    same = [x for x in fitting if x.shape == shape] or fitting
    best = same[0] if len(same) == 1 else max(same, key=lambda x: count_places(call.places[id(x)]).places)
    found: list[Places | None] = [[c.expand(shape) for c in call.places[id(best)]]]
    if len(call.outs) > 1:  # norms and the like: statistics come second
        found += [found[0] if x.shape == shape else None for x in call.outs[1:]]
    return found, [best]


def _moved(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Do to the places what was done to the values."""
    source = [x for x in tree_flatten(call.args[:1])[0] if isinstance(x, Tensor)]
    if not any(id(x) in call.places for x in source):
        return [None], []
    results = []
    for axis in range(call.rank):

        def place(x: Tensor, axis: int = axis) -> Tensor:
            return call.filled(x)[axis] if x.is_floating_point() or id(x) in call.places else x

        args = [tree_map_only(Tensor, place, call.args[0]), *call.args[1:]]
        kwargs = {
            k: v for k, v in call.kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")
        }
        if call.name == "constant_pad_nd":
            args, kwargs = [args[0], args[1], math.nan], {}
        results.append(call.func(*args, **kwargs))
    flat = [tree_flatten(r)[0] for r in results]
    return [[f[i] for f in flat] for i in range(len(flat[0]))], source


def _joined(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """cat, stack: as moved; maps less than a sample apart, such as a skip and what meets it, agree."""
    parts = [x for x in call.args[0] if call.of(x) is not None]
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    if len(parts) > 1 and call.name == "cat":
        means = {id(x): [c.nanmean(dim, keepdim=True) for c in call.places[id(x)]] for x in parts}
        lead = max(parts, key=lambda x: count_places(means[id(x)]).places)
        steps = count_places(means[id(lead)]).steps
        if all(_agree(call.places[id(x)], means[id(lead)], steps) for x in parts):
            for x in parts:
                call.places[id(x)] = [c.expand(x.shape) for c in means[id(lead)]]
    return _moved(call)


def _agree(places: Places, lead: Places, steps: Sequence[float]) -> bool:
    """Whether all places lie near those of the lead; along an axis of which that has one place, on it."""
    pairs = zip(places, lead, steps, strict=True)
    # Frames that are joined in time are apart along an axis of which each has one place.
    return all(
        float((c - d).abs().nan_to_num(0.0).max()) <= (step if step else 1 / 64) for c, d, step in pairs
    )


def _cloned(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    return [call.of(call.args[0])], [call.args[0]]


def _copied(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """In-place copy: the places of what is written."""
    target, written = call.args[0], call.args[1]
    return [[c.expand(target.shape) for c in call.filled(written)]], [written]


def _emptied(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    return [[torch.full(x.shape, math.nan, dtype=torch.float64)] * call.rank for x in call.outs], []


def _written(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """index_put, scatter, …: the same with the places of what is written."""
    target, *rest = call.args
    values = [x for x in rest if isinstance(x, Tensor) and x.is_floating_point()]
    results = []
    for axis in range(call.rank):
        args = [
            call.filled(x)[axis] if any(x is v for v in values) else x for x in rest
        ]  # fmt: skip
        name = call.name.rstrip("_").replace("scatter_add", "scatter").replace("index_add", "index_copy")
        results.append(getattr(torch.ops.aten, name)(call.filled(target)[axis].clone(), *args[:3]))
    return [results], [v for v in values if id(v) in call.places] or [target]


def _picked(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """topk, sort: values come from where the indices say."""
    x, index = call.args[0], call.outs[1]
    named = {a.name: v for a, v in zip(call.func._schema.arguments, call.args, strict=False)} | call.kwargs
    dim = named.get("dim", -1)
    return [[c.gather(dim, index) for c in call.filled(x)], None], [x]


def _reduced(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Sums, means, extremes over axes: the mean place."""
    x, out = call.args[0], call.outs[0]
    named = {a.name: v for a, v in zip(call.func._schema.arguments, call.args, strict=False)} | call.kwargs
    dims = named.get("dim")
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    places = [c.nanmean(dim=dims).reshape(out.shape) for c in call.filled(x)]
    return [places if y.shape == out.shape else None for y in call.outs], [x]


def _convolved(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """The place in the middle of the window, mean over all channels."""
    x, weight, _, stride, padding, dilation, transposed, output_padding, _ = call.args[:9]
    kernel = weight.shape[2:]
    return [[_middle(c, call.outs[0], kernel, stride, padding, dilation, transposed, output_padding)
             for c in call.filled(x)]], [x]  # fmt: skip


def _middle(
    c: Tensor, out: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool = False, output_padding: Sequence[int] = (0,),
) -> Tensor:  # fmt: skip
    rank = len(kernel)
    c = c.nanmean(1, keepdim=True)
    known = (~c.isnan()).double()
    middle = torch.ones(1, 1, *kernel, dtype=torch.float64)
    for axis, n in enumerate(kernel, start=2):  # its one or two innermost samples, which no border cuts off
        inner = torch.tensor([(n - 1) // 2 <= i <= n // 2 for i in range(n)])
        middle *= inner.reshape([n if a == axis else 1 for a in range(middle.ndim)])
    run: Callable[..., Tensor]
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        run = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][rank - 1]
        options["output_padding"] = output_padding
    else:
        run = [F.conv1d, F.conv2d, F.conv3d][rank - 1]
    total = run(c.nan_to_num(0.0), middle, **options) / run(known, middle, **options)
    return total.expand(out.shape)


def _pooled(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """A pool: the middle of the samples it is given, per output sample, by nearest corresponding window."""
    x, out = call.args[0], call.outs[0]
    rank = 3 if "3d" in call.name else 2
    sizes = out.shape[-rank:]
    places = [_resize(c, sizes, rank) for c in call.filled(x)]
    return [places], [x]


def _resize(c: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """Take the mean of each of the equal parts that an axis falls into (adaptively)."""
    flat = c.reshape(-1, 1, *c.shape[-rank:]) if c.ndim > rank else c.reshape(1, 1, *c.shape)
    for axis, size in enumerate(sizes, start=2):
        n = flat.shape[axis]
        if size > n:
            index = (torch.arange(size) * n // size).clamp(max=n - 1)
            flat = flat.index_select(axis, index)
        elif size < n:
            edges = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
            flat = torch.cat(
                [flat.narrow(axis, a, b - a).nanmean(axis, keepdim=True) for a, b in edges], axis
            )
    return flat.reshape(*c.shape[:-rank], *sizes)


def _resized(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    x, out = call.args[0], call.outs[0]
    rank = out.ndim - 2
    return [[_resize(c, out.shape[2:], rank) for c in call.filled(x)]], [x]


def _multiplied(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """A matrix product: rows keep the places of the first factor's rows, columns those of the second's."""
    factors = [x for x in call.args if isinstance(x, Tensor)]
    a, b = factors[-2:]
    out = call.outs[0]
    kept = []
    for x, axis in ((a, -1), (b, -2 if b.ndim > 1 else -1)):
        places = call.of(x)
        if places is not None:
            kept.append((x, [c.nanmean(axis, keepdim=b.ndim > 1).expand(out.shape) for c in places]))
    if not kept:
        return [None], []
    # Of queries times keys the rows count: what is attended to is summed over next. Of a volume of
    # correlations that is pooled over the second image the columns do.
    order = reversed(kept) if call.columns else kept
    x, wide = next((one for one in order if count_places(one[1]).places > 1), kept[0])
    return [wide], ([x] if len(kept) == 1 and (x is b or _is_window(call.places[id(x)])) else [])


def _is_window(places: Places) -> bool:
    """Whether what each row is summed over is the same window, moved: samples at learned places are none."""
    for c in places:
        steps = c.diff(dim=-1).reshape(-1, c.shape[-1] - 1)
        steps = steps.nan_to_num(0.0) - steps.nanmedian(0).values.nan_to_num(0.0)
        if steps.numel() and float(steps.abs().max()) > 1 / 64 and not bool(c.isnan().any()):
            return False
    return True


def _attended(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Attention: each query keeps its place; queries without one read out everything."""
    q, _, v = call.args[:3]
    out = call.outs[0]
    given = call.of(q)
    if given is not None:
        places = [c.nanmean(-1, keepdim=True).expand(out.shape) for c in given]
    else:
        places = [c.nanmean((-2, -1), keepdim=True).expand(out.shape) for c in call.filled(v)]
    return [places] + [None] * (len(call.outs) - 1), []


def _sampled(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Sampling at positions that were computed: those of queries keep the places that the queries have."""
    x, grid = call.args[:2]
    if call.of(x) is None:
        return [None], []
    asked = call.of(grid)
    if asked is not None and count_places(asked).places > 1:
        own = [c.nanmean(-1).unsqueeze(1).expand(call.outs[0].shape) for c in asked]
        return [own], [x]
    places = [F.grid_sample(c, grid.double(), mode="nearest", padding_mode="border", align_corners=False)
              for c in call.filled(x)]  # fmt: skip
    return [places], [x]


def _regions(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Regions of interest: what is sampled of the map is sampled of its places."""
    x = call.args[0]
    boxes = call.args[1].double()
    sampled = [call.func(c.nan_to_num(0.0).contiguous(), boxes, *call.args[2:]) for c in call.filled(x)]
    return [[one[0] if isinstance(one, tuple) else one for one in sampled]], [x]


def _recurrent(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    x, out = call.args[0], call.outs[0]
    places = [c.nanmean(-1, keepdim=True).expand(out.shape) for c in call.filled(x)]
    return [places] + [None] * (len(call.outs) - 1), [x]


def _transformed(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """A Fourier transform: frequencies keep the order of the places, so a crop of them stays a crop.

    Of windows each has a spectrum, which is made of all of it: what is left along time are the windows.
    """
    x, out = call.args[0], call.outs[0]
    places = call.filled(x)
    if len(places) == 2 and len(call.args[1]) == 1 and x.shape[call.args[1][0]] > 1:
        axis = call.args[1][0] % x.ndim
        windows = _transform_windows(places, axis, out.shape[axis])
        if windows is not None:
            return [windows], [x]
    for axis, (n, m) in enumerate(zip(x.shape, out.shape, strict=True)):
        if n > m:
            places = [c.narrow(axis, 0, m) for c in places]
        elif n < m:
            index = torch.arange(m)
            first = [c.select(axis, 0).unsqueeze(axis) for c in places]
            step = [
                c.select(axis, min(1, n - 1)).unsqueeze(axis) - f for c, f in zip(places, first, strict=True)
            ]
            shape = [-1 if a == axis else 1 for a in range(out.ndim)]
            places = [f + s * index.reshape(shape) for f, s in zip(first, step, strict=True)]
    return [places], []


def _transform_windows(places: Places, axis: int, count: int) -> Places | None:
    """Places of the spectra of the windows of a signal, or of the windows of such spectra; else None."""
    time, frequency = places
    indices = torch.arange(count, dtype=torch.float64).reshape(
        [-1 if a == axis else 1 for a in range(time.ndim)]
    )
    shape = [count if a == axis else n for a, n in enumerate(time.shape)]
    if count_places([frequency]).places > 1:  # of each spectrum a window, around its middle
        return [(time.select(axis, 0).unsqueeze(axis) + indices - count // 2).expand(shape),
                torch.zeros(shape, dtype=torch.float64)]  # fmt: skip
    middle = time.nanmean(axis, keepdim=True)
    if count_places([middle]).places < 2:
        return None
    return [middle.expand(shape), indices.expand(shape)]


def _overlaid(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """Windows are laid over each other again: the mean place of what meets."""
    places = call.filled(call.args[0])
    count = call.func((~places[0].isnan()).double(), *call.args[1:])
    return [[call.func(c.nan_to_num(0.0), *call.args[1:]) / count for c in places]], [call.args[0]]


def _framed(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """view_as_real, view_as_complex: the same places."""
    x, out = call.args[0], call.outs[0]
    given = call.filled(x)
    if out.ndim > x.ndim:
        return [[c.unsqueeze(-1).expand(out.shape) for c in given]], []
    return [[c.select(-1, 0) for c in given]], []


def _turned(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """transpose_ and its like: the memory, and with it the places, stays as it is."""
    return [None], []


def _halved(call: Call) -> tuple[list[Places | None], list[Tensor]]:
    """glu: the first half of an axis, times a function of the second."""
    x, out = call.args[0], call.outs[0]
    dim = next(a for a in range(x.ndim) if x.shape[a] != out.shape[a])
    return [[c.narrow(dim, 0, out.shape[dim]) for c in call.filled(x)]], [x]


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


CUTS = {"slice", "select", "as_strided", "diagonal", "narrow", "unfold"}
KEEPING = {
    "cat", "stack", "clone", "_to_copy", "copy", "zero", "fill", "split_with_sizes_copy", "repeat",
    "native_batch_norm", "view_as_real", "view_as_complex", "unfold_backward",
}  # fmt: skip
_MOVERS = (
    "roll", "flip", "index", "index_select", "gather", "repeat", "constant_pad_nd",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
    "im2col", "unfold_copy", "masked_select", "take", "repeat_interleave", "unsafe_split", "unsafe_chunk",
    "split_copy", "_unsafe_index", "rot90", "tril", "triu",
)  # fmt: skip
_REDUCERS = (
    "mean", "sum", "amax", "amin", "max", "min", "median", "nanmedian", "std", "var", "var_mean", "std_mean",
    "logsumexp", "prod", "any", "all", "linalg_vector_norm", "norm", "argmax", "argmin", "nansum", "aminmax",
    "mode", "kthvalue",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVERS, _moved),
    **dict.fromkeys(_REDUCERS, _reduced),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("clone", "_to_copy", "contiguous", "alias_copy", "_reshape_copy"), _cloned),
    **dict.fromkeys(("copy",), _copied),
    **dict.fromkeys(("zero", "fill"), _emptied),
    **dict.fromkeys(
        ("index_put", "_index_put_impl", "scatter", "scatter_add", "index_copy", "index_add", "slice_scatter",
         "select_scatter", "masked_scatter"), _written,
    ),
    **dict.fromkeys(("topk", "sort"), _picked),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), _convolved),
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
         "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
         "fractional_max_pool2d", "fractional_max_pool3d"), _pooled,
    ),
    **dict.fromkeys(
        ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
         "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
         "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        _resized,
    ),
    **dict.fromkeys(
        ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "_addmm_activation"), _multiplied
    ),
    **dict.fromkeys(
        ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
         "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable"), _attended,
    ),
    **dict.fromkeys(("col2im", "unfold_backward"), _overlaid),
    **dict.fromkeys(("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"), _regions),
    "glu": _halved,
    **dict.fromkeys(("transpose", "t", "squeeze", "unsqueeze", "swapaxes", "swapdims"), _turned),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "grid_sampler"), _sampled),
    **dict.fromkeys(("mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh"), _recurrent),
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), _transformed),
    **dict.fromkeys(("view_as_real", "view_as_complex", "_conj", "real", "imag"), _framed),
}  # fmt: skip
REGIONS = {name for name, rule in RULES.items() if rule is _regions}
SLIDING = {name for name, rule in RULES.items() if rule in (_convolved, _pooled, _resized, _regions)}
