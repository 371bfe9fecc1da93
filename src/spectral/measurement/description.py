"""What is known of a site, as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectral.operators import Size
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
    reasons = {site.name: site.reason or (failed or {}).get(site.name) for site in sites}
    return [
        {
            "name": site.name, "call": site.call, "op": site.op, "kernel": by(site.kernel),
            "stride": by(site.stride), "input_size": by(site.input_size),
            "output_size": by(site.output_size), "channels": site.channels,
            "measurable": reasons[site.name] is None, "dense_map": site.rule, "signal": site.signal,
            "reason": reasons[site.name],
        }
        for site in sites
    ]  # fmt: skip


def by(size: Size) -> str:
    """Write a size or a stride.

    Example:
        >>> by((4, 6))
        '4x6'
    """
    return "x".join(map(str, size))
