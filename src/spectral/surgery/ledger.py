"""What the layers of a network have to know of each other in one pass: which are still owed, and phases.

An operator that runs densely for a layer behind its activation says so here, and the activation settles it. A
block keeps an account for as long as its forward runs, and what is still owed in the end is an error: a map
that was never decimated must not leave it unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError

WAY_OUT = "call spectral.revert, change the network, then convert it again"


@dataclass(eq=False)
class Debt:
    """A layer that has to run in this pass.

    Attributes:
        site: the site that it stands for.
        point: the place that settles it.
        wait: how many calls of that place are for other maps first.
        layer: what has to run.
        shape: of the dense map, which every step up to the point keeps.
    """

    site: str
    point: str
    wait: int
    layer: nn.Module
    shape: torch.Size


@dataclass
class Account:
    """The debts of one running call of a block.

    Attributes:
        sites: what the block answers for.
        debts: what is owed now.
        phases: what layers chose, for others at their resolution.
    """

    sites: Collection[str] = ()
    debts: list[Debt] = field(default_factory=list)
    phases: dict[str, Tensor] = field(default_factory=dict)

    def check_settled(self) -> None:
        """Refuse to end while a layer is owed.

        Raises:
            SpectralError: naming its site.
        """
        if self.debts:
            raise SpectralError(_say_unsettled(self.debts[0]))


class _Ledger(threading.local):
    """The accounts of the blocks that run in this thread, the innermost last."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []
        # Of operators that run outside their block: in a Sequential of a network's children, a traced graph.
        self.loose = Account()


_LEDGER = _Ledger()


def open_account(sites: Collection[str]) -> Account:
    """Open an account for a block's call that begins."""
    account = Account(sites)
    # These run again now: what is owed for them outside is of a module that was called alone, or broke off.
    _LEDGER.loose.debts = [debt for debt in _LEDGER.loose.debts if debt.site not in sites]
    _LEDGER.accounts.append(account)
    return account


def close_account(account: Account) -> None:
    """Close the account of a call that ends, and those of calls inside it that an exception ended."""
    while _LEDGER.accounts and _LEDGER.accounts.pop() is not account:
        pass


def is_owing() -> bool:
    """Whether any layer is owed in this thread."""
    return any(account.debts for account in (*_LEDGER.accounts, _LEDGER.loose))


def owe(debt: Debt) -> None:
    """Enter a debt into the account of its block.

    Raises:
        SpectralError: if the same layer is owed already: its operator ran twice and the layer not once.
    """
    account = _LEDGER.loose
    for running in _LEDGER.accounts:
        if debt.site in running.sites:
            account = running
    owed = [other for other in account.debts if other.site == debt.site]
    if owed and account is not _LEDGER.loose:
        raise SpectralError(_say_unsettled(debt))
    # Outside its block nothing tells when a pass ends: what is left there is of one that broke off.
    account.debts = [other for other in account.debts if other.site != debt.site] + [debt]


def settle(point: str, output: Tensor) -> Tensor | None:
    """Run the layer that is due at a place on what left it; None if none is due.

    Raises:
        SpectralError: if two are, or the map isn't the one that the layer is owed for.
    """
    due: list[Debt] = []
    for account in (*_LEDGER.accounts, _LEDGER.loose):
        if account is _LEDGER.loose and due:
            break  # left over, perhaps of another network
        here = [debt for debt in account.debts if debt.point == point]
        due += [debt for debt in here if debt.wait == 0]
        account.debts = [debt for debt in account.debts if debt not in here or debt.wait > 0]
        for debt in here:
            debt.wait -= 1
    if not due:
        return None
    debt = due[0]
    # Under a tracer sizes are tensors, and a comparison would become part of the trace.
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    known = isinstance(output, Tensor) and not tracing
    if len(due) > 1 or (known and output.shape != debt.shape):
        raise SpectralError(_say_unsettled(debt))
    return debt.layer(output)  # type: ignore[no-any-return]


def publish_phase(lattice: str, phase: Tensor) -> None:
    """Keep the phase that a layer chose until the pass ends, for the others on its lattice."""
    _outermost().phases[lattice] = phase


def find_phase(lattice: str) -> Tensor | None:
    """Return the phase that was chosen on a lattice in this pass."""
    return _outermost().phases.get(lattice)


def _outermost() -> Account:
    return _LEDGER.accounts[0] if _LEDGER.accounts else _LEDGER.loose


def _say_unsettled(debt: Debt) -> str:
    return (
        f"the layer of site {debt.site!r}, {type(debt.layer).__name__}, did not run: what follows its "
        f"operator in this pass isn't what it was put behind; {WAY_OUT}"
    )
