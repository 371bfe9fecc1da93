"""What the columns of tables mean: a unit and a sentence for each, whichever table it stands in.

A column is an entry of its own, or a stem with endings: ``sis_ci_low`` is the lower bound of ``sis``.

The entries are in ``codebook.csv`` beside this module.

Example:
    >>> describe_column("sis_ci_low")[1]
    'lower bound of the 95 % interval of: shift instability score: mean of 1 − cos of the probabilities'
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from spectral.errors import SpectralError, suggest
from spectral.files.atomic import ensure_writable, replacing

FILE, FIELDS = "codebook.csv", ("table", "column", "unit", "meaning")

# Ending → the unit of such a column (None: that of its stem) and what it says of it.
ENDINGS = {
    "_ci_low": (None, "lower bound of the 95 % interval of: "),
    "_ci_high": (None, "upper bound of the 95 % interval of: "),
    "_holm": (None, "corrected by Holm over all tests of the table: "),
    "_p": ("probability", "p-value of a test that this is 0 (or of no change): "),
    "_a": (None, "of the first of the two: "),
    "_b": (None, "of the second of the two: "),
    "_q25": (None, "lower quartile over rounds: "),
    "_q75": (None, "upper quartile over rounds: "),
    "_median": (None, "median instead of mean over photographs: "),
    "_top_tenth": (
        "share",
        "share of the sum that the tenth of the photographs with the largest values has: ",
    ),
    "_original": (None, "of the unaltered network: "),
    "_both_right": (None, "on the images that the reference gets right too: "),
    "_no_mean": (None, "of images without their mean: "),
    "_reason": ("text", "why there is none: "),
    "_error": ("text", "the error, where there was one, of: "),
    "_accuracy": ("share", "share of labelled images that stay right under: "),
    "_agreement": ("share", "share of images whose class stays the clean one under: "),
    "-weak": (None, "with the smaller epsilon: "),
}


def _read_entries() -> dict[str, tuple[str, str]]:
    text = files("spectral").joinpath("codebook.csv").read_text(encoding="utf-8")
    return {row["column"]: (row["unit"], row["meaning"]) for row in csv.DictReader(text.splitlines())}


ENTRIES = _read_entries()


def describe_column(name: str) -> tuple[str, str]:
    """Return the unit and the meaning of a column.

    Raises:
        SpectralError: if neither it nor its stem has an entry.

    Example:
        >>> describe_column("n_clusters")
        ('count', 'photographs in the estimate')
        >>> describe_column("mean_a")
        ('as the metric', 'of the first of the two: mean over photographs')
    """
    if name in ENTRIES:
        return ENTRIES[name]
    for ending, (unit, words) in ENDINGS.items():
        if name.endswith(ending) and len(name) > len(ending):
            own, meaning = describe_column(name.removesuffix(ending))
            return unit or own, words + meaning
    raise SpectralError(
        f"the codebook has no column {name!r}{suggest(name, ENTRIES)}; add it to codebook.csv"
    )


def list_columns(folder: str | Path) -> list[tuple[str, str]]:
    """List the columns of every CSV file in a folder, as (table, column).

    Example:
        >>> list_columns("no/such/folder")
        []
    """
    found = []
    for path in sorted(Path(folder).glob("*.csv")):
        if path.name != FILE:
            with path.open(newline="", encoding="utf-8") as file:
                found += [(path.stem, column) for column in next(csv.reader(file), [])]
    return found


def make_codebook(columns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return a row per column of each table: table, column, unit, meaning.

    A column without an entry is a row that says so.

    Example:
        >>> make_codebook([("summary", "n_clusters")])[0]["meaning"]
        'photographs in the estimate'
    """
    rows = []
    for table, column in columns:
        try:
            unit, meaning = describe_column(column)
        except SpectralError:
            unit, meaning = "", "not in the codebook"
        rows.append({"table": table, "column": column, "unit": unit, "meaning": meaning})
    return rows


def write_codebook(folder: str | Path) -> Path:
    """Write ``codebook.csv`` for the tables of a folder, beside them.

    It needs no digest, as tables have: no command reads it, a page makes its own, and all it says is in this
    module and in the tables' first lines, so that a damaged one is known by writing it again.

    Raises:
        SpectralError: if it can't be written.
    """
    path = Path(folder) / FILE
    ensure_writable(path.parent)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(make_codebook(list_columns(folder)))
    return path


if __name__ == "__main__":  # python -m spectral.codebook results/reference/tables
    write_codebook(sys.argv[1])
