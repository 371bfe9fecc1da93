"""Which network has which role in a comparison of families: what it is decides, not where it was named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from spectral.errors import SpectralError
from spectral.models import model_info
from spectral.surgery.report import find_report


def find_role(model: nn.Module) -> str | None:
    """Return what a network is known as: the layer that it was converted with, or its family; else None."""
    report = find_report(model)
    info = model_info(model)
    return (report.method if report and report.replaced else None) or (info and info.family) or None


def assign_roles(known: Mapping[str, str | None], roles: Sequence[str]) -> dict[str, str]:
    """Give each network its role; those of which nothing is known take what is left, in their order.

    Args:
        known: what each network is known as, by name, as `find_role` tells it.
        roles: of the study, the one that the others are compared with first.

    Returns:
        The networks' names by role, in the order of the roles.

    Raises:
        SpectralError: if one is known as something that isn't in this study, two as the same, or none has
            the first role.

    Example:
        >>> assign_roles({"smooth": "blurpool", "mine": None}, ("strided", "blurpool", "nula"))
        {'strided': 'mine', 'blurpool': 'smooth'}
    """
    taken: dict[str, str] = {}
    for name, role in known.items():
        if role is None:
            continue
        if role not in roles:
            raise SpectralError(
                f"{name} is {role}, and the networks of this study are {', '.join(roles)}; `spectral "
                f"compare` takes any"
            )
        if role in taken:
            raise SpectralError(
                f"{taken[role]} and {name} are both {role}, and this study has one network of each of "
                f"{', '.join(roles)}; `spectral compare` takes any"
            )
        taken[role] = name
    free = (role for role in roles if role not in taken)
    taken |= {next(free): name for name, role in known.items() if role is None}
    if roles[0] not in taken:
        raise SpectralError(
            f"a study compares with a network that is {roles[0]}, and none of {', '.join(known)} is"
        )
    return {role: taken[role] for role in roles if role in taken}
