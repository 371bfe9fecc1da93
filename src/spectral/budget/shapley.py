"""Shapley values of a game of few players, exact, and of the members of one player, by sampled orders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]  # of a coalition: one per image, or any other shape
Player = TypeVar("Player", bound=Hashable)
Worth = Callable[[frozenset[Player]], Values]


@dataclass(frozen=True)
class Part:
    """What one player takes off a game's value.

    Attributes:
        value: its Shapley value: what it takes off on the average over all orders in which players may join.
        first_in: what it takes off alone.
        last_out: what it takes off when all others have joined.
        error: standard error of ``value`` where orders were sampled; 0 where it is exact.
    """

    value: Values
    first_in: Values
    last_out: Values
    error: Values


def coalitions(players: Sequence[Player]) -> Iterator[frozenset[Player]]:
    """Yield every set of players, the smallest first.

    Example:
        >>> [sorted(players) for players in coalitions("ab")]
        [[], ['a'], ['b'], ['a', 'b']]
    """
    for count in range(len(players) + 1):
        yield from map(frozenset, itertools.combinations(players, count))


def weigh(count: int, players: int) -> float:
    """Share of all orders in which given ``count`` others come before a player.

    Example:
        >>> weigh(0, 3), weigh(1, 3) * 2, weigh(2, 3)
        (0.3333333333333333, 0.3333333333333333, 0.3333333333333333)
    """
    return math.factorial(count) * math.factorial(players - count - 1) / math.factorial(players)


def share_out(worth: Worth[Player], players: Sequence[Player]) -> dict[Player, Part]:
    """Share what all players together take off a value among them: Shapley values, exact.

    Their sum is worth(none) − worth(all).

    Args:
        worth: of every coalition.
        players: all of them.

    Source:
        L. S. Shapley, A Value for n-Person Games, 1953.

    Example:
        >>> both = {"": 1.0, "a": 0.8, "b": 0.5, "ab": 0.0}
        >>> parts = share_out(lambda s: np.array(both["".join(sorted(s))]), "ab")
        >>> [round(float(parts[player].value), 2) for player in "ab"]
        [0.35, 0.65]
    """
    everyone = frozenset(players)
    parts = {}
    for player in players:
        others = [other for other in players if other != player]
        gains = {before: worth(before) - worth(before | {player}) for before in coalitions(others)}
        value = sum(weigh(len(before), len(players)) * gain for before, gain in gains.items())
        first, last = gains[frozenset()], gains[everyone - {player}]
        parts[player] = Part(np.asarray(value), first, last, np.zeros_like(first))
    return parts


def split_player(
    worth: Worth[Player],
    members: Mapping[Player, Sequence[Player]],
    player: Player,
    orders: int,
    rng: np.random.Generator,
) -> dict[Player, tuple[Values, Values]]:
    """Share a player's Shapley value among its members: the Owen value, by sampled orders of the members.

    Whatever the orders, the members' values add up to the player's. Orders come in pairs, one the reverse of
    the other; where there are no more orders than asked for, all are taken and nothing is sampled.

    Args:
        worth: of every set of members, of any player.
        members: of each player.
        player: whose members are wanted.
        orders: how many orders for each set of other players.
        rng: draws the orders.

    Returns:
        Of each member its value and the standard error of that.

    Source:
        J. Castro, D. Gómez, J. Tejada, Polynomial calculation of the Shapley value based on sampling, 2009;
        G. Owen, Values of games with a priori unions, 1977.

    Example:
        >>> alone = {"a": 0.0, "b": 0.3, "c": 0.7}
        >>> parts = split_player(lambda s: np.array(1.0 - sum(alone[m] for m in s)),
        ...                      {"x": ["a"], "y": ["b", "c"]}, "y", 2, np.random.default_rng(0))
        >>> {member: round(float(value), 3) for member, (value, error) in parts.items()}
        {'b': 0.3, 'c': 0.7}
    """
    own = list(members[player])
    others = [other for other in members if other != player]
    value: dict[Player, Values] = {}
    variance: dict[Player, Values] = {}
    for before in coalitions(others):
        base = frozenset(member for other in before for member in members[other])
        weight = weigh(len(before), len(members))
        drawn, exact = draw_orders(len(own), orders, rng)
        gains: dict[Player, list[Values]] = {member: [] for member in own}
        for order in drawn:
            joined, reached = base, worth(base)
            for position in order:
                joined = joined | {own[position]}
                now = worth(joined)
                gains[own[position]].append(reached - now)
                reached = now
        for member, found in gains.items():
            stack = np.stack(found)
            spread = stack.var(0, ddof=1) / len(stack) if len(stack) > 1 and not exact else 0 * stack[0]
            if len(stack) == 1 and not exact:
                spread = np.full_like(stack[0], np.nan)
            value[member] = value.get(member, 0.0) + weight * stack.mean(0)
            variance[member] = variance.get(member, 0.0) + weight**2 * spread
    return {member: (value[member], np.sqrt(variance[member])) for member in own}


def count_sets(members: Mapping[Player, int], split: Iterable[Player], orders: int) -> int:
    """Count the sets of which `share_out` and `split_player` ask the worth, at most: some are asked twice.

    Args:
        members: how many each player has.
        split: players whose values are shared among their members.
        orders: as for `split_player`.

    Example:
        >>> count_sets({"x": 1, "y": 3}, ["y"], orders=2)  # 4 coalitions; 2 orders behind 2 sets; 2 × 3 alone
        18
    """
    total: int = 2 ** len(members)
    for player in split:
        count = members[player]
        drawn = min(orders, math.factorial(min(count, 10)))
        total += 2 ** (len(members) - 1) * drawn * max(count - 1, 0) + 2 * count
    return total


def draw_orders(count: int, orders: int, rng: np.random.Generator) -> tuple[list[tuple[int, ...]], bool]:
    """Draw orders in which members join, in pairs of one and its reverse; and whether they are all there are.

    Example:
        >>> draw_orders(2, 4, np.random.default_rng(0))
        ([(0, 1), (1, 0)], True)
    """
    if math.factorial(min(count, 10)) <= orders:
        return list(itertools.permutations(range(count))), True
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < orders:
        order = tuple(int(i) for i in rng.permutation(count))
        drawn += [order, order[::-1]]
    return drawn[:orders], False
