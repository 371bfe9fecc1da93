"""Measurements laid out with a row per image, network, site and tap, which analyses of several sites read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from spectral.analysis.spectra import TAPS
from spectral.errors import SpectralError
from spectral.hooks.capture import Tap
from spectral.measurement import ALIAS_METRICS
from spectral.table.arguments import read_columns, require_columns
from spectral.table.rows import widen
from spectral.table.schema import fill_words

OF_SITES = "spectral.measure, or a row per image, family, layer and tap"
OF_IMAGES = "spectral.measure_stability"
FACTS = ("image", "cluster", "model", "family", "site", "layer", "layer_index", "op", "stride", "tap")


def lay_out_sites(
    table: pd.DataFrame,
    taps: Sequence[Tap] = TAPS,
    layers: Mapping[tuple[str, str], tuple[int, str]] | None = None,
) -> pd.DataFrame:
    """Spread the metrics of one or several runs of `spectral.measure` over columns.

    Args:
        table: from `spectral.measure`, or several of them put together.
        taps: whose rows to keep; alias metrics, which the dense map has alone, stand at each of them.
        layers: which sites of the networks are alike, as `spectral.pair_sites` gives it for their names in
            the column model; by default those of one name.

    Returns:
        A row per image, network, site and tap: image, cluster, model, family (the network), site, layer (its
        label), layer_index (its depth), op, stride, tap, a column per metric, the image's sis and confidence,
        and silent: no power, so that ratios are conventions.

    Raises:
        SpectralError: for a table of something else, without rows, or where two runs have one name.

    Example:
        >>> same = {"model": "net", "image": "a", "cluster": "a", "op": "conv", "stride": "2x2", "reason": ""}
        >>> rows = [("", "", "sis", 0.1), ("c", "dense", "avr", 0.3), ("c", "dense", "power", 2.0)]
        >>> table = pd.DataFrame([same | dict(zip(("site", "tap", "metric", "value"), r)) for r in rows])
        >>> lay_out_sites(table)[["layer", "layer_index", "tap", "avr", "sis", "silent"]].values.tolist()
        [['c', 0, 'dense', 0.3, 0.1, False]]
    """
    long = ("model", "image", "cluster", "site", "op", "stride", "tap", "metric", "value", "reason")
    table = _read(table, long, "lay_out_sites", "spectral.measure")
    words = ["image", "cluster", "site", "op", "stride", "tap", "metric", "reason"]
    table = table.assign(**{name: fill_words(table[name]) for name in words})  # a file has no empty text
    twice = table[table.duplicated(["model", "image", "site", "tap", "metric"])]
    if len(twice):
        raise SpectralError(
            f"lay_out_sites: two runs are called {twice['model'].iloc[0]!r} (a network and its twin?): "
            "give the column model of one of them another name"
        )
    frames = []
    for model, own in pd.DataFrame(table).groupby("model", sort=False):
        wide = _lay_out_network(own, taps).assign(model=model, family=model)
        if layers is not None:
            places = [layers.get((str(model), site), (len(layers), site)) for site in wide["site"]]
            wide["layer_index"], wide["layer"] = ([place[i] for place in places] for i in (0, 1))
        frames.append(wide)
    wide = pd.concat(frames, ignore_index=True)
    return wide[[*FACTS, *(column for column in wide.columns if column not in FACTS)]]


def _lay_out_network(table: pd.DataFrame, taps: Sequence[Tap]) -> pd.DataFrame:
    """Lay out one network's rows, in the order of its sites, the taps and the images."""
    at_sites = table[(table["site"] != "") & (table["reason"] == "")]
    sites = at_sites.drop_duplicates("site")[["site", "op", "stride"]].reset_index(drop=True)
    wide = at_sites.pivot(index=["image", "cluster", "site", "tap"], columns="metric", values="value")
    if "dense" in wide.index.get_level_values("tap"):
        aliases = pd.DataFrame(wide.xs("dense", level="tap"))[[m for m in ALIAS_METRICS if m in wide]]
        wide = wide.drop(columns=aliases.columns).join(aliases, on=["image", "cluster", "site"])
    wide = wide[wide.index.get_level_values("tap").isin(taps)]
    whole = widen(table).reindex(columns=["sis", "confidence"])
    wide = wide.join(whole, on="image").reset_index()
    wide = wide.merge(sites.assign(layer=sites["site"], layer_index=sites.index), on="site")
    if "power" in wide:
        wide["silent"] = wide["power"] <= 0
    turn = {image: i for i, image in enumerate(table["image"].unique())}
    order = wide.assign(_image=wide["image"].map(turn), _tap=wide["tap"].map(list(taps).index))
    return wide.loc[order.sort_values(["layer_index", "_tap", "_image"], kind="stable").index]


def read_sites(
    table: pd.DataFrame, columns: Iterable[str], caller: str, taps: Sequence[Tap] = TAPS
) -> pd.DataFrame:
    """Return a table with a row per image, family, layer and tap, laid out if `measure` gave it.

    Raises:
        SpectralError: in the name of ``caller``, where a column is absent.
    """
    laid = lay_out_sites(table, taps) if {"metric", "value"} <= set(table.columns) else table
    laid = _read(laid, columns, caller, OF_SITES)
    return laid.assign(silent=laid["silent"].astype(bool)) if "silent" in laid else laid


def read_images(table: pd.DataFrame, columns: Iterable[str], caller: str) -> pd.DataFrame:
    """Return a table with a row per image and family; of `measure_stability` the network is the family.

    Raises:
        SpectralError: in the name of ``caller``, where a column is absent, or an image is there twice.
    """
    named = table if "family" in table or "model" not in table else table.assign(family=table["model"])
    named = _read(named, columns, caller, OF_IMAGES)
    again = named.duplicated(["family", "image"])
    if again.any():
        row = named[again].iloc[0]
        raise SpectralError(f"{caller}: the table has image {row['image']!r} twice for {row['family']!r}")
    return named


def require_same_images(a: Iterable[str], b: Iterable[str], caller: str, names: tuple[str, str]) -> None:
    """Refuse two tables that have no image in common, as where a file made numbers of their names.

    Args:
        a: images of the first table.
        b: images of the second.
        caller: whose name the message begins with.
        names: of both tables.

    Raises:
        SpectralError: naming an image of each.
    """
    first, second = list(a), list(b)
    if set(first).isdisjoint(second):
        raise SpectralError(
            f"{caller}: {names[0]} and {names[1]} have no image in common (such as {first[0]!r} and "
            f"{second[0]!r}); take tables of the same images, read by spectral.read or pandas alike"
        )


def _read(table: pd.DataFrame, columns: Iterable[str], caller: str, source: str) -> pd.DataFrame:
    """Return a table that has these columns, typed, and rows."""
    needed = list(columns)
    require_columns(table, needed, caller, source)
    if table.empty:
        raise SpectralError(f"{caller}: the table has no rows; expected one of {source}")
    return read_columns(table, needed, lambda problem: SpectralError(f"{caller}: the table {problem}"))
