"""Copies of a network on several ranks, which learn together what one would learn from whole batches."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spectral.errors import BrokenJobError, SpectralError
from spectral.network import evaluation_mode
from spectral.processes.ranks import Ranks, refuse_lost


class Replicas:
    """The copies of a network on the ranks of a job; each learns from its part of every batch.

    Together they learn what one process learns from whole batches, but for rounding and for what a network
    draws at random by itself (dropout), which each rank does for its own images: gradients are of the mean
    loss over the whole batch (DistributedDataParallel), and batch norms take the mean and the variance of the
    whole batch, so that their running statistics are the same everywhere.

    Args:
        ranks: whose they are.
        device: where this one's is.

    Example:
        >>> alone = Replicas(Ranks(), torch.device("cpu"))
        >>> alone.part(torch.arange(4)), float(alone.mean_loss(torch.zeros(2, 2), torch.tensor([0, 1]), 2))
        (tensor([0, 1, 2, 3]), 0.6931471824645996)
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks = ranks
        self._gradients: Any = None
        self._norms: Any = None
        if ranks.count > 1:
            # NCCL wants a GPU for each rank; gloo takes what lies on one that they share.
            places = ranks.exchange((socket.gethostname(), str(device)))
            backend = "nccl" if device.type == "cuda" and len(set(places)) == ranks.count else "gloo"
            # Groups of their own: norms and gradients run at the same time, neither in the other's order.
            self._gradients, self._norms = dist.new_group(backend=backend), dist.new_group(backend=backend)

    def part(self, batch: Tensor) -> Tensor:
        """Return this rank's images of a batch, which may be none."""
        start, end = (len(batch) * i // self.ranks.count for i in (self.ranks.rank, self.ranks.rank + 1))
        return batch[start:end]

    def mean_loss(self, logits: Tensor, labels: Tensor, total: int) -> Tensor:
        """Return this rank's share of the mean cross-entropy over a batch of so many images.

        Their mean over the ranks, which is what DistributedDataParallel takes of gradients, is that mean.
        """
        return F.cross_entropy(logits, labels, reduction="sum") * (self.ranks.count / total)

    def average(self, value: Tensor) -> Tensor:
        """Return the mean over all ranks, without gradients."""
        return value.detach() if self._norms is None else _add_up(value, self._norms) / self.ranks.count

    @contextmanager
    def learning(self, model: nn.Module, example: Tensor) -> Iterator[nn.Module]:
        """Within the block a network learns together with its copies; yields what it is called as.

        Args:
            model: the network.
            example: one image, ready for it.

        Raises:
            BrokenJobError: if something fails here alone, or another rank ended.
        """
        if self._gradients is None:
            yield model
            return
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        try:
            for norm in norms:
                norm.forward = partial(_normalise, norm, self._norms)  # type: ignore[method-assign]
            idle = _has_idle_weights(model, example)
            yield DistributedDataParallel(model, process_group=self._gradients, find_unused_parameters=idle)
        except (SpectralError, BrokenJobError):
            raise  # what all see alike
        except Exception as error:
            refuse_lost(error)
            # The others may be in the middle of a step: no meeting. They notice when this process ends.
            said = next(iter(str(error).splitlines()), "no message")
            raise BrokenJobError(
                f"rank {self.ranks.rank} of {self.ranks.count}: {type(error).__name__}: {said}; the state of "
                f"the last epoch is kept, start the job again",
                rank=self.ranks.rank,
            ) from error
        finally:
            for norm in norms:
                norm.__dict__.pop("forward", None)


def _has_idle_weights(model: nn.Module, example: Tensor) -> bool:
    """Whether a pass leaves weights out, of which there is then no gradient to wait for."""
    with evaluation_mode(model):
        model(example).sum().backward()
    idle = any(weight.requires_grad and weight.grad is None for weight in model.parameters())
    model.zero_grad(set_to_none=True)
    return idle


class _Sum(torch.autograd.Function):
    """Sum over ranks, each of which has a loss that depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _add_up(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _add_up(gradient, ctx.group), None


def _add_up(x: Tensor, group: Any) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _normalise(norm: _BatchNorm, group: Any, x: Tensor) -> Tensor:
    """Normalise by the mean and the variance of the whole batch, of which x is this rank's part."""
    if not norm.training:
        plain: Tensor = type(norm).forward(norm, x)
        return plain
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    wide: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
    count = wide.new_tensor([x.numel() / x.shape[1]])
    sums: Tensor = _Sum.apply(torch.cat([wide.sum(axes), count]), group)
    n = sums[-1].detach()
    mean = sums[:-1] / n
    centred: Tensor = wide - mean.view(shape)
    variance: Tensor = _Sum.apply(centred.square().sum(axes), group) / n
    _remember(norm, mean.detach(), variance.detach() * n / (n - 1))
    out: Tensor = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        out = torch.addcmul(norm.bias.view(shape), out, norm.weight.view(shape))
    return out.to(x.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update running statistics as torch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), rate)
    norm.running_var.lerp_(variance.to(norm.running_var), rate)
