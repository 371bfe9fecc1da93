"""What was found about a network: one record, and how it lies in a folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral.analysis.details import CHANNEL_COLUMNS, PROFILE_COLUMNS, SiteDetail
from spectral.analysis.examples import UnstableImages
from spectral.analysis.folder import RUN_FILE, Folder
from spectral.analysis.levels import LEVEL_COLUMNS, LEVEL_MEANS, LEVELS, NINETIETH, NOISE, add_levels
from spectral.analysis.words import describe_diagnosis
from spectral.arguments.values import as_path
from spectral.errors import SpectralError
from spectral.files.atomic import require_place
from spectral.measurement.captures import SITE_METRICS
from spectral.processes.ranks import alone
from spectral.runs.folder import holds_run, read
from spectral.runs.summary import summarize_measurements
from spectral.stability.summary import COLUMNS as STABILITY_COLUMNS
from spectral.stats.columns import read_means
from spectral.table.csv_files import PROVENANCE, check_tables, refuse_other_tables, write_csvs
from spectral.table.schema import with_bounds

MEASUREMENTS, TABLES = "measurements", "tables"
SITE_COLUMNS = [
    "name", "call", "op", "kernel", "stride", "input_size", "output_size", "channels", "measurable",
    *LEVEL_COLUMNS, *with_bounds(*LEVEL_MEANS, "channel_p90"), "white_noise", "avr_input",
    "avr_dense", "n", "n_clusters", "n_silent", "dense_map", "reason",
]  # fmt: skip
_MEANS = {
    "white_noise": ("signal", NOISE), "channel_p90": ("signal", NINETIETH), "avr_input": ("input", "avr"),
    "avr_dense": ("dense", "avr"), **LEVEL_MEANS,
}  # fmt: skip
_PARTS = ("profile", "channels")  # of a detail that are tables
_FIX_LEVELS = ("level_db_original", "level_db")  # earlier versions compared the pooled ratio
_MAPS = ("before", "after", "aliases")


@dataclass(repr=False)
class Diagnosis:
    """What was found about one network; `spectral.write_page` makes a page of it.

    Attributes:
        facts: model, weights, images, how long each step took, versions, and what was assumed (``notes``).
        sites: a row per downsampling site in the order in which they run: its place, how much it aliases as
            it is told (``level_ratio``, ``level_db``: the median channel's alias power ratio at the tap
            signal, unless that wasn't measured), the ratios and AVR with their 95 % intervals, and the
            reason where it couldn't be measured.
        summary: all that was measured, as `spectral.summarize_measurements` gives it.
        stability: as `spectral.summarize_stability` gives it; no rows for a network without class scores.
        per_image: as `spectral.measure_stability` gives it.
        budget: as `spectral.summarize_instability_budget` gives it; no rows where it wasn't asked for.
        fixes: as `measure_fixes` gives it.
        unstable: the images whose predictions a shift changes most.
        details: what to look at of each site, by name.
        missing: what couldn't be measured: what, reason.
        unasked: what nobody asked for, and so isn't missing: of sites, aliases, stability, fixes.
    """

    facts: dict[str, Any]
    sites: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SITE_COLUMNS))
    summary: pd.DataFrame = field(default_factory=pd.DataFrame)
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)
    per_image: pd.DataFrame = field(default_factory=pd.DataFrame)
    budget: pd.DataFrame = field(default_factory=pd.DataFrame)
    fixes: pd.DataFrame = field(default_factory=pd.DataFrame)
    unstable: UnstableImages = field(default_factory=UnstableImages)
    details: dict[str, SiteDetail] = field(default_factory=dict)
    missing: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["what", "reason"]))
    unasked: tuple[str, ...] = ()

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name, for files and downloads."""
        named = {
            "sites": self.sites, "summary": self.summary, "stability": self.stability,
            "stability_per_image": self.per_image, "budget": self.budget, "fixes": self.fixes,
            "unstable": self.unstable.table, "not_measured": self.missing,
        }  # fmt: skip
        return {name: table for name, table in named.items() if len(table)}

    def __repr__(self) -> str:
        return describe_diagnosis(self).text()

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return describe_diagnosis(self).html()


def is_diagnosis(path: str | Path) -> bool:
    """Say whether a folder holds what `diagnose` writes, finished or not.

    Example:
        >>> is_diagnosis("no/such/folder")
        False
    """
    return os.path.lexists(as_path(path, "is_diagnosis: path") / RUN_FILE)


def from_measurements(table: pd.DataFrame, facts: Mapping[str, Any]) -> Diagnosis:
    """See a table of `spectral.measure` as a diagnosis that has nothing else.

    Args:
        table: with its ``attrs``, as `spectral.read` gives it.
        facts: what the run was.
    """
    found = Diagnosis(dict(facts), sites=pd.DataFrame(table.attrs["sites"]))
    found.summary = summarize_measurements(table)
    found.sites = join_sites(found)
    found.stability = _read_stability(found.summary)
    found.unasked = _find_unasked({*facts.get("metrics", ()), *found.summary["metric"]})
    reasons = found.summary[found.summary["reason"] != ""]
    missing = {
        f"site {row['site']}" if row["site"] else row["metric"]: row["reason"]
        for row in reasons.to_dict("records")
    } | list_reasons(found.sites)
    found.missing = pd.DataFrame(list(missing.items()), columns=["what", "reason"])
    return found


def _find_unasked(asked: set[str]) -> tuple[str, ...]:
    """Name the parts of a diagnosis of which a run that was asked for these metrics says nothing."""
    needed = {"sites": {*SITE_METRICS}, "aliases": {level.metric for level in LEVELS}, "stability": {"sis"}}
    return (*(part for part, metrics in needed.items() if not asked & metrics), "fixes")


def _read_stability(summary: pd.DataFrame) -> pd.DataFrame:
    """Take SIS out of a summary, as `spectral.summarize_stability` gives it."""
    own = summary[(summary["metric"] == "sis") & (summary["reason"] == "")]
    return own.reindex(columns=STABILITY_COLUMNS).reset_index(drop=True)


@alone()  # reading is no work that ranks share: whoever does waits for no other
def read_diagnosis(path: str | Path) -> Diagnosis:
    """Read what `diagnose` wrote into a folder.

    Raises:
        SpectralError: if it is no such folder, or one that isn't finished.

    Example:
        >>> read_diagnosis("no/such/folder")
        Traceback (most recent call last):
        spectral.errors.SpectralError: no/such/folder holds no diagnosis; ...
    """
    folder = Folder(as_path(path, "read_diagnosis: path"))
    if not is_diagnosis(path):
        raise SpectralError(f"{path} holds no diagnosis; pass the folder that diagnose(…, out=…) wrote")
    unfinished = f"{path} holds a diagnosis that isn't finished; run the same command again to continue it"

    def absent() -> Any:
        raise SpectralError(unfinished)

    found = Diagnosis(folder.record("facts", absent))
    sites, found.missing = folder.table("sites", absent), folder.table("missing", absent)
    sites = sites if "level_of" in sites else add_levels(sites)  # earlier versions wrote none
    found.sites = sites.reindex(columns=SITE_COLUMNS)
    for name in ("summary", "stability", "per_image", "budget", "fixes"):
        setattr(found, name, folder.table(name, pd.DataFrame))
    if len(found.fixes):
        found.fixes = found.fixes.assign(**{name: found.fixes.get(name, np.nan) for name in _FIX_LEVELS})
    found.unstable = read_unstable(folder, UnstableImages)
    found.details = read_details(folder, dict)
    if holds_run(measured := as_path(path, "") / MEASUREMENTS):
        read(measured)  # nothing here needs it; what of it is damaged or gone is told all the same
    check_tables(as_path(path, "") / TABLES)
    return found


def refuse_other_diagnosis(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose tables would be lost: where no diagnosis says that they are its own.

    Args:
        path: of the folder.
        config: of the diagnosis that is to be written there.

    Raises:
        SpectralError: if there are some, of another one or of something else.

    Example:
        >>> refuse_other_diagnosis(Path("no/such/folder"), {})
    """
    require_place(path / TABLES / PROVENANCE)
    if not is_diagnosis(path):
        refuse_other_tables(sorted((path / TABLES).glob("*.csv")), config, path / TABLES / PROVENANCE)


def write_tables(found: Diagnosis, folder: Folder) -> None:
    """Write the tables as CSV files too, for whoever reads them elsewhere, and beside them their digests."""
    assert folder.path is not None
    place = folder.path / TABLES
    tables = {place / f"{title}.csv": table for title, table in found.tables.items()}
    write_csvs(tables, found.facts, place / PROVENANCE)


def join_sites(found: Diagnosis) -> pd.DataFrame:
    """Join what is known of each site with what was measured there."""
    if found.sites.empty:
        return pd.DataFrame(columns=SITE_COLUMNS)
    rows = []
    for record in found.sites.to_dict("records"):
        words = {key: record[key] if isinstance(record[key], str) else "" for key in ("reason", "dense_map")}
        row: dict[Any, Any] = {**record, **words}
        row |= read_means(found.summary, str(record["name"]), _MEANS) if len(found.summary) else {}
        row["reason"] = row["reason"] or _explain_absence(row)
        rows.append(row)
    return add_levels(pd.DataFrame(rows)).reindex(columns=SITE_COLUMNS)


def _explain_absence(row: Mapping[Any, Any]) -> str:
    """Say why a site that was measured has no value."""
    if row.get("n", 1) != 0:
        return ""
    silent = int(row["n_silent"])
    images = f"{silent} image{'' if silent == 1 else 's'}"
    return f"its maps are silent or constant on all {images}" if silent else "it runs on none of the images"


def list_reasons(sites: pd.DataFrame) -> dict[str, str]:
    """Say of each site that has no value what it is and why.

    Args:
        sites: from `join_sites`.
    """
    return {f"site {row['name']}": str(row["reason"]) for row in sites.to_dict("records") if row["reason"]}


def read_unstable(folder: Folder, compute: Callable[[], UnstableImages]) -> UnstableImages:
    """Take the least stable images apart into a table, arrays and a record, and put them together."""
    once = functools.cache(compute)
    table = folder.table("unstable", lambda: once().table)
    pictures = folder.arrays("pictures", lambda: once().pictures)
    scaled = folder.record("pictures_scaled", lambda: {"scaled": once().scaled})["scaled"]
    return UnstableImages(table, pictures, scaled)


def read_details(folder: Folder, compute: Callable[[], dict[str, SiteDetail]]) -> dict[str, SiteDetail]:
    """Take details apart into tables, numbers and arrays, which files can hold, and put them together."""
    once = functools.cache(compute)

    def join(part: str, columns: Sequence[str]) -> pd.DataFrame:
        parts = [getattr(detail, part).assign(site=name) for name, detail in once().items()]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*columns, "site"])

    tables = {
        part: folder.table(f"site_{part}", lambda p=part, c=columns: join(p, c))  # type: ignore[misc]
        for part, columns in zip(_PARTS, (PROFILE_COLUMNS, CHANNEL_COLUMNS), strict=True)
    }
    numbers = folder.record(
        "site_numbers",
        lambda: {"sites": [{"site": name, "n": detail.n} for name, detail in once().items()]},
    )["sites"]
    arrays = folder.arrays("site_maps", lambda: _list_arrays(list(once().values())))
    found = {}
    for number, facts in enumerate(numbers):
        site = facts["site"]
        detail = SiteDetail(site, facts["n"], **{name: arrays[f"{number}/{name}"] for name in _MAPS})
        maps = {
            key.rpartition("/")[2]: value
            for key, value in arrays.items()
            if key.startswith(f"{number}/maps/")
        }
        own = {part: t[t["site"] == site].drop(columns="site").reset_index(drop=True)
               for part, t in tables.items()}  # fmt: skip
        found[site] = dataclasses.replace(detail, maps=maps, **own)
    return found


def _list_arrays(details: Sequence[SiteDetail]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for number, detail in enumerate(details):
        arrays |= {f"{number}/{name}": getattr(detail, name) for name in _MAPS}
        arrays |= {f"{number}/maps/{name}": value for name, value in detail.maps.items()}
    return arrays
