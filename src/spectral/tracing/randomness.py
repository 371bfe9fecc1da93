"""What of a pass draws random numbers, so that the same image gives other values each time.

Followed operator by operator, also without data: where a drawn number meets what is computed from the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral.operators import name_arguments
from spectral.tracing.batchwise import tell_name
from spectral.tracing.tensors import TensorTable

_SWITCHES = ("train", "training")
_RATES = ("p", "dropout", "dropout_p")


class Draws:
    """Follows through a pass what was drawn at random.

    A number that is drawn and thrown away, as by layers that are only dropped in training, changes nothing.

    Attributes:
        met: names of the operators that drew what has met something computed from the image.

    Example:
        >>> aten, draws = torch.ops.aten, Draws()
        >>> x, noise = torch.rand(2, 3), torch.rand(2, 3)
        >>> draws.follow(aten.rand_like.default, (x,), {}, [x], False, [noise])
        >>> draws.met
        []
        >>> draws.follow(aten.add.Tensor, (x, noise), {}, [x, noise], True, [x + noise])
        >>> draws.met
        ['rand_like']
    """

    def __init__(self) -> None:
        self.met: list[str] = []
        self._drawn: TensorTable[tuple[str, ...]] = TensorTable()

    def follow(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        given: Iterable[Tensor],
        of_image: bool,
        made: Iterable[Tensor],
    ) -> None:
        """Note what an operator draws, and what it makes of what was drawn before.

        Args:
            func: the operator.
            args: its arguments.
            kwargs: its named ones.
            given: the tensors among them.
            of_image: whether any of them is computed from the image.
            made: what it gave.
        """
        names = dict.fromkeys(name for x in given for name in self._drawn.get(x, ()))
        if of_image:
            self.met += [name for name in names if name not in self.met]
        if draws_numbers(func, args, kwargs):
            names[tell_name(func).strip("_")] = None
        for x in made if names else ():
            self._drawn[x] = tuple(names)

    def find(self, output: Iterable[Tensor]) -> tuple[str, ...]:
        """Name what drew random numbers that matter, those that nothing but the output has among them."""
        return tuple(dict.fromkeys((*self.met, *(name for x in output for name in self._drawn.get(x, ())))))


def draws_numbers(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers, as it is called.

    Example:
        >>> x, dropout = torch.rand(2, 3), torch.ops.aten.native_dropout.default
        >>> ways = (0.5, True), (0.5, False), (0.0, True)
        >>> [draws_numbers(dropout, (x, p, train), {}) for p, train in ways]
        [True, False, False]
    """
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    told = name_arguments(func, args, kwargs)
    off = any(key in told and not told[key] for key in _SWITCHES)
    return not off and not any(isinstance(told.get(key), (int, float)) and told[key] == 0 for key in _RATES)
