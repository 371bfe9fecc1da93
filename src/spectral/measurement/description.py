"""What is known of a site, as a record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from spectral.sites import Site


def describe_sites(sites: Sequence[Site], failed: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Describe sites as records for a table, with the reason where one can't be measured.

    Args:
        sites: from `find_sites`.
        failed: reasons found while measuring, by site name.

    Example:
        >>> from torch import nn
        >>> from spectral.sites import find_sites
        >>> describe_sites(find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 9))[0]["output_size"]
        '4x4'
    """
    records = [
        {
            "name": site.name, "call": site.call, "op": site.op, "kernel": by(site.kernel),
            "stride": by(site.stride), "input_size": by(site.input_size),
            "output_size": by(site.output_size), "channels": site.channels,
            "measurable": site.reason is None, "dense_map": site.rule, "signal": site.signal,
            "reason": site.reason,
        }
        for site in sites
    ]  # fmt: skip
    return note_failures(records, failed or {})


def note_failures(records: Collection[Mapping[str, Any]], failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return records of sites with the reasons that were found while measuring, where they had none before.

    Example:
        >>> note_failures([{"name": "conv", "measurable": True, "reason": None}], {"conv": "broken"})
        [{'name': 'conv', 'measurable': False, 'reason': 'broken'}]
    """
    reasons = [record["reason"] or failed.get(record["name"]) for record in records]
    return [
        {**record, "measurable": reason is None, "reason": reason}
        for record, reason in zip(records, reasons, strict=True)
    ]


def by(size: Sequence[int | Fraction]) -> str:
    """Write a size or a stride.

    Example:
        >>> by((4, 6))
        '4x6'
    """
    return "x".join(map(str, size))
