"""What of a pass works over all images of a batch, so that the values of one depend on the others.

Followed operator by operator, also without data: of which tensors the first axis is the batch, one entry for
each image. Only what is certain is followed, so that nothing is taken for the batch that isn't.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spectral.network.inputs import Inputs
from spectral.operators import Arguments, is_pointwise, name_arguments
from spectral.tracing.tensors import TensorTable

_BATCH_NORMS = {
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update",
    "cudnn_batch_norm", "miopen_batch_norm",
}  # fmt: skip
# They give numbers that come from all entries along the axes that they name, of all where they name none.
_WORKING = {
    "mean", "sum", "nansum", "prod", "amax", "amin", "aminmax", "max", "min", "median", "std", "var",
    "std_mean", "var_mean", "norm", "linalg_vector_norm", "logsumexp", "_softmax", "_log_softmax", "cumsum",
    "cumprod", "argmax", "argmin", "sort", "topk",
}  # fmt: skip
_PICKING = {
    "select",
    "slice",
    "cat",
    "stack",
    "unsqueeze",
    "split",
    "split_with_sizes",
    "unbind",
    "flip",
    "roll",
}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "expand", "squeeze"}
_SAME = {
    "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "constant_pad_nd", "grid_sampler_2d",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "native_group_norm", "native_layer_norm",
    "convolution", "mm", "bmm",
}  # fmt: skip
_LATER = {"addmm": 1, "baddbmm": 1, "copy_": 1}  # which of what they are given has the images
_KEEPING = frozenset({*_SAME, *_VIEWS, *_LATER, *_BATCH_NORMS})
_SLIDING = ("conv", "pool", "upsample", "_pad")


class BatchAxis:
    """Follows the batch through a pass.

    Args:
        inputs: of the pass.

    Example:
        >>> import torch
        >>> from spectral.network import make_inputs
        >>> x, aten = torch.rand(2, 3), torch.ops.aten
        >>> batch = BatchAxis(make_inputs(x))
        >>> batch.is_mixed_by(aten.amax.default, (x, [1]), {}), batch.is_mixed_by(aten.amax.default, (x,), {})
        (False, True)
    """

    def __init__(self, inputs: Inputs) -> None:
        self.count = inputs.count
        self._known: TensorTable[bool] = TensorTable()
        for x, batched in inputs.every_tensor():
            if batched and self.has_all(x):
                self._known[x] = True

    def has_all(self, x: Tensor) -> bool:
        """Whether a tensor may have an entry for each image along its first axis."""
        return self.count > 1 and x.ndim > 0 and x.shape[0] == self.count

    def is_mixed_by(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether an operator gives numbers that come from several images at once."""
        name = tell_name(func)
        if self.count < 2 or not args or not isinstance(args[0], Tensor):
            return False
        if name in _BATCH_NORMS:  # of as many rows for each image, as of tokens
            told = name_arguments(func, args, kwargs)
            trains = bool(told.get("training", told.get("train", False)))
            return trains and args[0].ndim > 1 and args[0].shape[0] % self.count == 0
        if name not in _WORKING or args[0] not in self._known:
            return False
        return 0 in _find_axes(name_arguments(func, args, kwargs), args[0].ndim)

    def follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Tensor) -> None:
        """Note whether what an operator has made still has the batch along its first axis."""
        if self.has_all(made) and self._keeps(func, args, kwargs, made):
            self._known[made] = True
        elif made in self._known and tell_name(func).endswith("_"):
            self._known.pop(made)

    def _keeps(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Tensor) -> bool:
        name = tell_name(func)
        if is_pointwise(func):
            return any(isinstance(x, Tensor) and x.ndim == made.ndim and x in self._known for x in args)
        first = args[_LATER.get(name, 0)] if len(args) > _LATER.get(name, 0) else None
        source = first[0] if isinstance(first, (tuple, list)) and first else first  # what is joined
        if not isinstance(source, Tensor) or source not in self._known:
            return False
        if name == "copy_":
            return source.ndim == made.ndim
        if name in _KEEPING or name.startswith("_scaled_dot_product"):
            return True
        told = name_arguments(func, args, kwargs)
        if name == "permute":
            return int(told["dims"][0]) % source.ndim == 0
        if name.startswith("transpose"):
            return 0 not in {int(told[key]) % source.ndim for key in ("dim0", "dim1")}
        if name in _WORKING or name in _PICKING:
            return 0 not in _find_axes(told, source.ndim + (name in ("stack", "unsqueeze")))
        return any(word in name for word in _SLIDING)


def tell_name(func: Any) -> str:
    """Return the name of whatever a dispatch mode is given, also of what has no schema as operators have.

    Example:
        >>> import torch
        >>> tell_name(torch.ops.aten.slice.Tensor)
        'slice'
    """
    return str(getattr(func, "_opname", None) or getattr(func, "__name__", "?"))


def _find_axes(told: Arguments, rank: int) -> set[int]:
    """Return the axes that an operator names; all where it names none."""
    named = next((told[key] for key in ("dim", "dims") if told.get(key) is not None), None)
    axes = named if isinstance(named, (tuple, list)) else [] if named is None else [named]
    return {int(axis) % max(rank, 1) for axis in axes} or {*range(rank)}
