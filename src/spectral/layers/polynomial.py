"""Activations that are polynomials: on a lattice (degree + 1) / 2 times finer they don't alias at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError

MAX_DEGREE = 8
_REACH, _NODES = 12.0, 4801


def fit_polynomial(function: Callable[[Tensor], Tensor], degree: int) -> tuple[float, ...]:
    """Coefficients of the polynomial nearest to a function of one number, the constant one first.

    Nearest in the mean square under a standard normal distribution, which is what a normalisation makes of a
    map: the function's projection on Hermite's polynomials.

    Args:
        function: acts on each number of a float64 tensor alone.
        degree: of the polynomial.

    Example:
        >>> [round(c, 4) + 0.0 for c in fit_polynomial(torch.square, 2)]
        [0.0, 0.0, 1.0]
        >>> [round(c, 3) for c in fit_polynomial(torch.relu, 2)]  # (1/(2√2π), 1/2, 1/(2√2π))
        [0.199, 0.5, 0.199]
    """
    nodes = np.linspace(-_REACH, _REACH, _NODES)  # even spacing: exact for smooth functions, good for kinks
    weights = np.exp(-(nodes**2) / 2)
    values = function(torch.from_numpy(nodes)).numpy()
    root = np.sqrt(weights / weights.sum())
    basis = np.polynomial.hermite_e.hermevander(nodes, degree)
    found = np.linalg.lstsq(root[:, None] * basis, root * values, rcond=None)[0]
    return tuple(float(c) for c in np.polynomial.hermite_e.herme2poly(found))


def evaluate_polynomial(x: Tensor, coefficients: Sequence[float | Tensor]) -> Tensor:
    """Evaluate a polynomial at each place, by Horner's rule.

    Example:
        >>> evaluate_polynomial(torch.tensor([2.0]), (1.0, 0.0, 3.0))
        tensor([13.])
    """
    y = torch.zeros_like(x) + coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        y = y * x + coefficient
    return y


class PolynomialActivation(nn.Module):
    """A polynomial in the place of an activation, its coefficients trained with the network.

    A polynomial of degree d makes no frequency above d times the largest that enters. Evaluated on a lattice
    r times finer, r > (d + 1) / 2 or equal to it, none of what it makes folds below the old Nyquist
    frequency: `AliasFreeActivation2d(PolynomialActivation(nn.GELU(), degree=3), factor=2)` is equivariant to
    any shift, by parts of a sample too, which no finer lattice gives a ReLU.

    Args:
        activation: the one that it begins as near as it can to; acts on each number alone.
        degree: of the polynomial.

    Shape:
        Any → the same.

    Raises:
        SpectralError: if the degree is out of range, or the activation isn't one of single numbers.

    Source:
        H. Michaeli et al., Alias-Free Convnets, CVPR 2023: polynomial activations.

    Example:
        >>> PolynomialActivation(nn.ReLU(), degree=2)(torch.tensor([0.0, 2.0])).detach().round(decimals=3)
        tensor([0.1990, 1.9970])
    """

    def __init__(self, activation: nn.Module, degree: int = 2) -> None:
        super().__init__()
        self.degree = as_integer(degree, "PolynomialActivation: degree", least=1)
        if self.degree > MAX_DEGREE:
            raise SpectralError(
                f"PolynomialActivation: degree must be from 1 to {MAX_DEGREE}, got {degree}: higher ones "
                f"grow beyond all bounds on large values"
            )
        if not isinstance(activation, nn.Module):
            raise SpectralError(
                f"PolynomialActivation: expected an activation such as nn.GELU(), got "
                f"{type(activation).__name__}"
            )
        self.coefficients = nn.Parameter(torch.tensor(_fit_module(activation, self.degree)))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the polynomial."""
        return evaluate_polynomial(x, self.coefficients.unbind())

    def extra_repr(self) -> str:
        """Show the degree."""
        return f"degree={self.degree}"


def _fit_module(activation: nn.Module, degree: int) -> tuple[float, ...]:
    def act(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = activation(x.clone())
        return torch.as_tensor(y)

    try:
        alone = [act(torch.tensor([v], dtype=torch.float64)) for v in (-1.0, 0.5)]
        if torch.equal(torch.cat(alone), act(torch.tensor([-1.0, 0.5], dtype=torch.float64))):
            return fit_polynomial(act, degree)
    except (RuntimeError, ValueError, TypeError, IndexError):
        pass
    raise SpectralError(
        f"PolynomialActivation: {type(activation).__name__} doesn't act on each number alone, so that no "
        f"polynomial stands in its place; pass one that does, such as nn.GELU()"
    )
