"""A diagnosis, or several, as one HTML file that opens from disk and asks nobody for anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

import spectral
from spectral.analysis import Diagnosis
from spectral.analysis.levels import LEVELS, find_level
from spectral.analysis.words import format_db, format_interval, format_number, format_share, write_headline
from spectral.arguments.values import as_path
from spectral.errors import SpectralError
from spectral.figures import (
    find_colour,
    plot_fixes,
    plot_site_detail,
    plot_site_levels,
    plot_table,
    to_picture,
    to_svg,
)
from spectral.files.atomic import GENERATOR, ensure_writable, write_whole
from spectral.operators import LOSSLESS
from spectral.page.cells import (
    BUDGET,
    CHANNELS,
    FIXES,
    LEFT,
    MISSING,
    SITES,
    STABILITY,
    Download,
    View,
    make_downloads,
    view,
)

MOST_DETAILS = 24  # sites with pictures, the worst ones: each is some 60 kB
QUIET_DB = -40.0  # where the strip's colours begin
NOT_ASKED = "comb=False"  # a quantity that a diagnosis doesn't measure
NO_VALUE = ("#8a8a8a", "#000000")


@dataclass(frozen=True)
class Box:
    """A site in the strip of the network."""

    name: str
    op: str
    size: str
    level: str
    ground: str
    ink: str
    height: int
    href: str
    title: str


@dataclass(frozen=True)
class Detail:
    """A site, opened."""

    anchor: str
    name: str
    summary: str
    facts: Sequence[tuple[str, str]]
    images: str
    figure: Markup | None
    channels: View | None
    maps: Sequence[tuple[str, str]]
    reason: str


@dataclass(frozen=True)
class Picture:
    """An unstable image with its predictions."""

    name: str
    address: str
    sis: str
    rows: Sequence[Mapping[Any, Any]]


@dataclass(frozen=True)
class Part:
    """One network's part of the page."""

    prefix: str
    name: str
    headline: Sequence[str]
    facts: Mapping[str, Any]
    provenance: Sequence[tuple[str, str]]
    strip: Sequence[Box]
    input_size: str
    sites: View
    levels: Markup | None
    details: Sequence[Detail]
    stability: View | None
    pictures: Sequence[Picture]
    scaled: bool
    budget: View | None
    shares: Markup | None
    left: View | None
    fixes: View | None
    front: Markup | None
    missing: View | None
    notes: Sequence[str]
    level: str
    unasked: Sequence[str]
    downloads: Sequence[Download]


def write_page(found: Diagnosis | Sequence[Diagnosis], path: str | Path) -> Path:
    """Write what was found of one network or several as one HTML file.

    Args:
        found: from `spectral.diagnose`, or several such.
        path: where to; missing folders are made.

    Returns:
        The path.

    Raises:
        SpectralError: if it can't be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> nothing = Diagnosis({"model": "net", "images": "none@0", "image_count": 0})
        >>> page = write_page(nothing, f"{folder.name}/page.html")
        >>> "no place where resolution drops" in page.read_text(encoding="utf-8")
        True
    """
    target = as_path(path, "write_page: path")
    return write_text(render_page([found] if isinstance(found, Diagnosis) else found), target)


def write_text(text: str, path: Path) -> Path:
    """Write a page, all of it or nothing.

    Raises:
        SpectralError: if it can't be written.
    """
    ensure_writable(path.parent)
    write_whole(path, text.encode("utf-8", "backslashreplace"))
    return path


def make_environment() -> jinja2.Environment:
    """Return what finds and fills templates; everything is escaped, and a name that is absent is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectral.page"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.globals["generator"] = GENERATOR
    return environment


def render_page(found: Sequence[Diagnosis]) -> str:
    """Return the page as text.

    Raises:
        SpectralError: for no diagnosis.
    """
    if not found:
        raise SpectralError("write_page: expected at least one diagnosis, got none")
    several = len(found) > 1
    parts = [_make_part(one, f"m{number}-" if several else "") for number, one in enumerate(found)]
    comparison = _compare(found, parts) if several else None
    page = make_environment().get_template("diagnosis.html")
    return page.render(parts=parts, comparison=comparison, version=spectral.__version__)


def _make_part(found: Diagnosis, prefix: str) -> Part:
    name = str(found.facts.get("model", "network"))
    anchors = {str(site): f"{prefix}site-{i}" for i, site in enumerate(found.sites["name"])}
    links = {site: f"#{anchor}" for site, anchor in anchors.items()}
    level = find_level(found.sites)
    rows = found.sites.to_dict("records")
    shown = _choose_details(found)
    return Part(
        prefix=prefix, name=name, headline=write_headline(found), facts=found.facts,
        provenance=_list_provenance(found.facts),
        strip=[_make_box(row, links[str(row["name"])], found) for row in rows],
        input_size=_by(found.facts.get("image_size")),
        sites=view(found.sites, f"The downsampling sites of {name}, in the order in which they run", SITES,
                   links),
        levels=_draw(lambda t: plot_site_levels(t, level.name), found.sites, f"{prefix}levels",
                     f"{_begin(level.name)} per site of {name}"),
        details=[
            _make_detail(row, anchors[str(row["name"])], found, str(row["name"]) in shown)
            for row in rows
        ],
        stability=view(_drop_unasked(found.stability), f"How {name} answers to shifts by one pixel",
                       STABILITY)
        if len(found.stability) else None,
        pictures=_list_pictures(found), scaled=found.unstable.scaled,
        **_show_budget(found, name, prefix),
        fixes=view(found.fixes, f"Layers put into {name} without training", FIXES)
        if len(found.fixes) else None,
        front=_draw(plot_fixes, found.fixes, f"{prefix}front", f"SIS and predictions kept, {name}"),
        missing=view(found.missing, "What couldn't be measured, and why", MISSING)
        if len(found.missing) else None,
        notes=[str(note) for note in found.facts.get("notes", ())], level=level.name, unasked=found.unasked,
        downloads=make_downloads(found.tables, f"{prefix}" if prefix else ""),
    )  # fmt: skip


def _show_budget(found: Diagnosis, name: str, prefix: str) -> dict[str, Any]:
    """Show which causes make a network unstable, and what can't be made ideal."""
    table = found.budget
    if table.empty:
        return {"budget": None, "shares": None, "left": None}
    measured, left = table[table["metric"] != ""], table[table["metric"] == ""]
    return {
        "budget": view(measured[measured["source"] != "total"], f"What makes {name} unstable", BUDGET),
        "shares": _draw(lambda t: plot_table(t, "budget")[1], measured, f"{prefix}shares",
                        f"Causes of the instability of {name}"),
        "left": view(left, f"What can't be made ideal in {name}", LEFT) if len(left) else None,
    }  # fmt: skip


def _drop_unasked(stability: pd.DataFrame) -> pd.DataFrame:
    return stability[stability["reason"] != NOT_ASKED]


def _draw(plot: Any, table: pd.DataFrame, name: str, title: str) -> Markup | None:
    """Draw a figure of a table; None where it has nothing to draw."""
    try:
        drawn = plot(table)
    except SpectralError:
        return None
    return Markup(to_svg(drawn, name, title))


def _choose_details(found: Diagnosis) -> set[str]:
    """Return the sites that get pictures: the worst, if there are many."""
    ranked = found.sites.sort_values("level_ratio", ascending=False, kind="stable")
    return set([str(name) for name in ranked["name"] if str(name) in found.details][:MOST_DETAILS])


def _make_box(row: Mapping[Any, Any], href: str, found: Diagnosis) -> Box:
    level = row["level_db"]
    known = isinstance(level, float) and not math.isnan(level)
    ground, ink = find_colour(1 - max(level, QUIET_DB) / QUIET_DB) if known else NO_VALUE
    sides = [int(n) for n in str(row["output_size"]).split("x")]
    whole = [n for n in found.facts.get("image_size") or sides if n]
    # Halvings that are left, so that each step of the network is a step of the strip.
    height = round(7 * max(0.0, math.log2(max(sides)))) + 28
    said = _say_level(row, found)
    title = f"{row['name']}: {row['op']}, {row['input_size']} → {row['output_size']}, {said}"
    return Box(
        str(row["name"]), str(row["op"]), str(row["output_size"]).replace("x", "×"), said, ground, ink,
        min(height, round(7 * math.log2(max(whole) + 1)) + 40), href, title,
    )  # fmt: skip


def _say_level(row: Mapping[Any, Any], found: Diagnosis) -> str:
    """Write how much a site aliases, or why that isn't known."""
    if not pd.isna(row["level_db"]):
        return format_db(row["level_db"])
    if row["reason"] == LOSSLESS:
        return "keeps all"
    return "not asked for" if "aliases" in found.unasked and not row["reason"] else "not measured"


def _make_detail(row: Mapping[Any, Any], anchor: str, found: Diagnosis, drawn: bool) -> Detail:
    name = str(row["name"])
    detail, level = found.details.get(name), find_level(found.sites)
    facts = [
        (level.name, format_interval(row, "level_db", format_db)),
        (f"share of {level.power}", format_interval(row, "level_ratio", format_share)),
        *((other.name, format_share(row[other.column])) for other in LEVELS if other is not level),
        ("AVR of what enters", format_share(row["avr_input"])),
        ("AVR before decimation", format_share(row["avr_dense"])),
        ("kind, kernel, stride", f"{row['op']}, {_times(row['kernel'])}, {_times(row['stride'])}"),
        (
            "size",
            f"{_times(row['input_size'])} → {_times(row['output_size'])}, {row['channels']} channels in",
        ),
        ("dense map", str(row["dense_map"] or "none")),
    ]
    reason = str(row["reason"] or "")
    figure, channels, maps = None, None, []
    if detail is not None and drawn:
        spectra = {"before": detail.before, "after": detail.after, "aliases": detail.aliases}
        title = f"Power spectra at {name}: before decimation, after it, the aliases, and radial profiles"
        figure = Markup(to_svg(plot_site_detail(spectra, detail.profile), anchor, title))
        if len(detail.channels):
            channels = view(detail.channels, f"The channels of {name} that alias most", CHANNELS)
        maps = [(what, to_picture(values, "gray" if what != "aliases" else "RdBu_r", what == "aliases", 160))
                for what, values in detail.maps.items()]  # fmt: skip
    elif not reason:
        reason = (
            f"pictures are of the {MOST_DETAILS} worst sites alone, to keep the page small"
            if detail is not None
            else "there are no pictures of this site's maps"
        )
    images = "" if detail is None else _count_images(detail.n)
    return Detail(anchor, name, _say_level(row, found), facts, images, figure, channels, maps, reason)


def _count_images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _list_pictures(found: Diagnosis) -> list[Picture]:
    shown = []
    for image, rows in found.unstable.table.groupby("image", sort=False):
        pixels = found.unstable.pictures.get(str(image))
        lines = [{**row, "confidence": format_share(row["confidence"])} for row in rows.to_dict("records")]
        address = "" if pixels is None else to_picture(pixels, largest=224)
        shown.append(Picture(str(image), address, format_number(float(rows["sis"].iloc[0])), lines))
    return shown


def _list_provenance(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write the facts of a diagnosis as lines."""
    lines = []
    for key, value in sorted(facts.items()):
        if key in ("notes", "seconds") or value in (None, "", {}, []):
            continue
        lines.append((key.replace("_", " "), _write_fact(value)))
    seconds = facts.get("seconds") or {}
    if seconds:
        lines.append(("seconds", _write_fact(seconds)))
    return lines


def _write_fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_write_fact(own)}" for key, own in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(map(_write_fact, value))
    return str(value)


def _times(sides: object) -> str:
    return str(sides).replace("x", "×")


def _begin(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _by(size: Any) -> str:
    return "×".join(map(str, size)) if size else ""


def _compare(found: Sequence[Diagnosis], parts: Sequence[Part]) -> dict[str, Any]:
    """One row per network, for a page of several."""
    rows = []
    levels = {find_level(one.sites) for one in found if one.sites["level_db"].notna().any()}
    for one, part in zip(found, parts, strict=True):
        known = one.sites[one.sites["level_db"].notna()]
        worst = known.sort_values("level_ratio", ascending=False).iloc[0] if len(known) else None
        rows_of = one.stability.set_index("metric").to_dict("index") if len(one.stability) else {}
        mean = {metric: {"x": row["mean"], "x_ci_low": row["ci_low"], "x_ci_high": row["ci_high"]}
                for metric, row in rows_of.items()}  # fmt: skip
        rows.append({
            "name": part.name, "href": f"#{part.prefix}top", "sites": f"{len(known)} of {len(one.sites)}",
            "worst": "–" if worst is None else f"{worst['name']}, {format_db(worst['level_db'])}"
                     f"{'' if levels == {LEVELS[0]} else f' ({find_level(one.sites).name})'}",
            "sis": format_interval(mean["sis"], "x") if "sis" in mean else "–",
            "changed": format_interval(mean["changed"], "x", format_share) if "changed" in mean else "–",
        })  # fmt: skip
    same = len({one.facts.get("images") for one in found}) == 1
    return {"rows": rows, "same_images": same, "same_level": len(levels) < 2}
