"""What torch's operators do to axes, where they don't slide a window over them: which rule is whose."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from spectral.axes.calls import Call, Rule, align
from spectral.axes.labels import (
    LOST,
    Labels,
    mixed,
    resample,
    single,
)
from spectral.axes.picks import (
    SPLITS,
    label_forget,
    label_gather,
    label_halve,
    label_index,
    label_index_select,
    label_pick,
    label_select,
    label_slice,
    label_sort,
    label_split,
)
from spectral.axes.shapes import (
    label_as_strided,
    label_cat,
    label_diagonal,
    label_expand,
    label_fold,
    label_im2col,
    label_overlay,
    label_pad,
    label_permute,
    label_pixel_shuffle,
    label_pixel_unshuffle,
    label_squeeze,
    label_stack,
    label_transpose,
    label_unfold,
    label_unpool,
    label_unsqueeze,
    label_view,
    label_view_as_complex,
    label_view_as_real,
)
from spectral.axes.sums import (
    label_attend,
    label_embed,
    label_product,
    label_reduce,
    label_short_time_transform,
    label_transform,
)


def apply_rule(call: Call) -> list[Labels]:
    """Derive the labels of an operator's outputs.

    Those of an operator without a rule are matched by their extents.
    """
    rule = _RULES.get(call.name) if call.facts.whole_name.startswith("aten::") else None
    if rule is None and "keepdim" in call.a:
        rule = label_reduce
    return rule(call) if rule is not None else [_match(call, result) for result in call.outputs]


def _match(call: Call, result: Tensor) -> Labels:
    """Label the output of any operator: axes of the same extent correspond, the nearest first.

    What is left over on both sides is a resampled axis, or samples that are mixed.
    """
    aligned = align(call, result)
    source = max(call.sources, key=lambda x: x.ndim)
    old = call.labels(source)
    if old is aligned:
        return aligned
    labels, left = list(aligned), list(range(source.ndim))
    open_axes = []
    for position, axis in enumerate(aligned):
        offset = source.ndim - result.ndim + position
        if offset in left and old[offset] == axis:
            left.remove(offset)
        elif axis == single(LOST, result.shape[position]):
            open_axes.append(position)
    for position in list(open_axes):
        alike = [a for a in left if source.shape[a] == result.shape[position]]
        if alike and result.shape[position] > 1:
            nearest = min(alike, key=lambda a: abs(a - position))
            labels[position] = old[nearest]
            left.remove(nearest)
            open_axes.remove(position)
    for position in open_axes:
        if result.ndim == source.ndim and position in left:
            before, after = source.shape[position], result.shape[position]
            labels[position] = resample(old[position], after, Fraction(before, max(min(before, after), 1)))
        elif left and result.shape[position] > 1:
            labels[position] = mixed([old[a] for a in left], result.shape[position])
    return tuple(labels)


JOINS = ("cat", "concat", "concatenate", "stack")
ATTENTION = (
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
PRODUCTS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "linear")
OVERLAYS = ("col2im", "unfold_backward")
CUTS = {*SPLITS, "slice", "narrow"}
CROPS = {
    *CUTS, "constant_pad_nd", "glu", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d",
}  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten",
                     "view_copy"), label_view),
    **dict.fromkeys(("permute", "permute_copy"), label_permute),
    **dict.fromkeys(("transpose", "t", "transpose_", "t_", "swapaxes", "transpose_copy", "numpy_T"),
                    label_transpose),
    **dict.fromkeys(("select", "unbind", "select_copy"), label_select),
    **dict.fromkeys(("slice", "narrow"), label_slice),
    **dict.fromkeys(SPLITS, label_split),
    "glu": label_halve,
    **dict.fromkeys(("unsqueeze", "unsqueeze_"), label_unsqueeze),
    **dict.fromkeys(("squeeze", "squeeze_"), label_squeeze),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), label_expand),
    **dict.fromkeys(JOINS[:-1], label_cat),
    "stack": label_stack,
    "unfold": label_unfold,
    "im2col": label_im2col,
    "col2im": label_fold,
    "pixel_unshuffle": label_pixel_unshuffle,
    "pixel_shuffle": label_pixel_shuffle,
    "max_unpool2d": label_unpool,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
                     "replication_pad1d", "replication_pad2d", "replication_pad3d"), label_pad),
    "as_strided": label_as_strided,
    "view_as_real": label_view_as_real,
    "view_as_complex": label_view_as_complex,
    "diagonal": label_diagonal,
    "count_nonzero": label_reduce,
    "gather": label_gather,
    "topk": label_pick,
    **dict.fromkeys(("take", "masked_select", "nonzero", "histc", "bincount"), label_forget),
    **dict.fromkeys(("sort", "argsort"), label_sort),
    "index_select": label_index_select,
    "index": label_index,
    **dict.fromkeys(PRODUCTS, label_product),
    "embedding": label_embed,
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), label_transform),
    "stft": label_short_time_transform,
    "unfold_backward": label_overlay,
    **dict.fromkeys(ATTENTION, label_attend),
}  # fmt: skip
