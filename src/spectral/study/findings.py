"""What a study has found, in words and numbers, beside the figure that was published where there is one.

Reads the tables alone, so that what is said is what is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from spectral.errors import SpectralError, StorageError
from spectral.files.json_files import read_json
from spectral.runs.folder import LostImagesError
from spectral.runs.lineage import find_older
from spectral.table.csv_files import read_csv, write_csv

STUDY, CARD, ZHANG = "the spectral-aliasing study", "NULA's model card", "Zhang 2019"
TABLE = "published"
COLUMNS = ["phase", "quantity", "ours", "ours_ci_low", "ours_ci_high", "unit", "published", "study", "source"]
_SHARES = "card, table of the perturbations: NULA at full width on CIFAR-10"
_CARD = {  # perturbation → accuracy of the base network and of the robust one, as published
    "clean": (0.9195, 0.8942), "resize-0.5": (0.5983, 0.8537), "resize-0.25": (0.2482, 0.7180),
    "decimate-2": (0.3003, 0.8502), "checkerboard-0.03": (0.7547, 0.8943),
    "checkerboard-0.05": (0.4499, 0.8939),
}  # fmt: skip
_NULA = {"bundled/nula-w32": 0, "bundled/nula-w32-robust": 1}


@dataclass(frozen=True)
class Finding:
    """One number of this run, and the published one.

    Attributes:
        phase: of the study.
        quantity: what it is, in words.
        ours: the number.
        ours_ci_low: lower bound of its 95 % interval, NaN where it has none.
        ours_ci_high: upper bound.
        unit: share (of all), number (no unit), % or dB.
        published: the published figure, NaN where there is none.
        study: whose it is.
        source: where it stands, and on which networks and images.
    """

    phase: int
    quantity: str
    ours: float
    ours_ci_low: float = math.nan
    ours_ci_high: float = math.nan
    unit: str = "share"
    published: float = math.nan
    study: str = ""
    source: str = ""

    def __str__(self) -> str:
        text = f"phase {self.phase}: {self.quantity}: {_write(self.ours, self.unit)}"
        if not math.isnan(self.ours_ci_low):
            low, high = (_write(bound, self.unit) for bound in (self.ours_ci_low, self.ours_ci_high))
            text += f" ({low} to {high})"
        if not math.isnan(self.published):
            text += f"; {self.study}: {_write(self.published, self.unit)}"
        return text


def find_findings(tables: str | Path) -> list[Finding]:
    """Read from a study's tables what it has found; nothing of phases that haven't run on what is there now.

    Args:
        tables: the folder of the CSV files.

    Raises:
        SpectralError: if one isn't what a phase writes, or was altered.
    """
    folder = Path(tables)
    found: list[Finding] = []
    known: dict[Path, str] = {}
    for name, read in _READERS.items():
        path = folder / f"{name}.csv"
        if path.exists() and _is_current(path, known):
            found += _read_whole(path, read)
    return [finding for finding in found if not math.isnan(finding.ours)]


def _read_whole(path: Path, read: Callable[[pd.DataFrame], Iterator[Finding]]) -> list[Finding]:
    """Read what a table has found, which may have been altered and taken as it is."""
    try:
        found = list(read(read_csv(path)))
        sum((one.ours + one.ours_ci_low + one.ours_ci_high for one in found), start=0.0)  # all are numbers
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, SpectralError):
            raise
        raise StorageError(
            f"{path} isn't what its phase writes ({type(error).__name__}: {error}); delete it, or run its "
            f"phase again"
        ) from error
    return found


def _is_current(path: Path, known: dict[Path, str]) -> bool:
    """Whether a table was made of the measurements that are there, see `find_older`."""
    beside = path.with_suffix(".json")
    try:
        return not (os.path.lexists(beside) and find_older(read_json(beside), path.parent, known))
    except LostImagesError:  # they are measured again
        return False


def report_findings(tables: str | Path, phases: Sequence[int]) -> list[str]:
    """Write ``published.csv`` beside a study's tables, and return what these phases have found, as lines.

    Args:
        tables: the folder of the CSV files.
        phases: whose findings are told.
    """
    found = find_findings(tables)
    compared = tabulate_findings(found)
    if len(compared):
        write_csv(compared, Path(tables) / f"{TABLE}.csv")
    told = [finding for finding in found if finding.phase in phases]
    if not told:
        return []
    lines = ["", "findings", *(f"  {finding}" for finding in told)]
    if any(not math.isnan(finding.published) for finding in told):
        lines.append(f"  published figures are of the networks and images named in {TABLE}.csv, not of these")
    return lines


def tabulate_findings(findings: list[Finding]) -> pd.DataFrame:
    """Return a row per finding that has a published figure beside it."""
    return pd.DataFrame([asdict(f) for f in findings if not math.isnan(f.published)], columns=COLUMNS)


def _read_sweep(table: pd.DataFrame) -> Iterator[Finding]:
    """The tones of the study's own frequencies next to the limit, as the image itself."""
    own = table[(table["site"] == "image") & (table["grid"] == "study")].drop_duplicates("frequency")
    source = "table of AVR against input frequency, ResNet-50 at 224 px"
    for side, published, rows in (
        ("below", 0.0135, own[own["frequency"] < 0.5].nlargest(1, "frequency")),
        ("above", 0.9931, own[own["frequency"] > 0.5].nsmallest(1, "frequency")),
    ):
        for row in rows.to_dict("records"):
            quantity = f"AVR of a tone at {row['frequency']:.2f} of Nyquist, just {side} the limit"
            yield Finding(2, quantity, row["avr"], unit="number", published=published, study=STUDY,
                          source=source)  # fmt: skip


def _read_layers(table: pd.DataFrame) -> Iterator[Finding]:
    """At how many sites BlurPool has the larger AVR, at each tap."""
    pairs = table[(table["family_a"] == "strided") & (table["family_b"] == "blurpool")]
    for tap, rows in pairs.dropna(subset=["mean_a", "mean_b"]).groupby("tap"):
        larger = float((rows["mean_b"] > rows["mean_a"]).mean())
        networks = f"{rows['model_b'].iloc[0]} than with {rows['model_a'].iloc[0]}"
        quantity = f"sites at which AVR is larger with {networks}, tap {tap}, of {len(rows)}"
        if tap == "input":
            yield Finding(3, quantity, larger, published=5 / 7, study=STUDY,
                          source="note on AVR's direction: 5 of 7 layers of ResNet-50, STL-10")  # fmt: skip
        else:
            yield Finding(3, quantity, larger)


def _read_signal(table: pd.DataFrame) -> Iterator[Finding]:
    rows = table[table["metric"] == "alias_power_ratio_channel_median"]
    for family, own in rows[rows["reason"].isna()].groupby("family", sort=False):
        quantity = f"alias power at the tap signal, {own['model'].iloc[0]} ({family}), mean over sites"
        yield Finding(3, quantity, float(own["mean"].mean()), unit="dB")


def _read_confidence(table: pd.DataFrame) -> Iterator[Finding]:
    """What the margin says of SIS and of jitter, and what aliasing does."""
    for (family, response), rows in table[table["reason"].isna()].groupby(["family", "response"], sort=False):
        for row in rows[rows["predictors"] != "both"].to_dict("records"):
            quantity = (
                f"R² of {response} from {row['predictors']}, {row['model']} ({family}), photographs unseen"
            )
            yield Finding(4, quantity, *_read_interval(row, "r2"), unit="number")


def _read_partial(table: pd.DataFrame) -> Iterator[Finding]:
    """The largest correlation that is left when the margin is held fixed."""
    for response, rows in table[table["reason"].isna()].groupby("response", sort=False):
        best = rows.sort_values("spearman_given_margin", key=abs).iloc[-1]
        certain = int((rows["p_holm"] < 0.05).sum())
        quantity = (
            f"largest rank correlation of aliasing and {response} given the logit margin "
            f"({best['predictor']} at {best['layer']}, tap {best['tap']}, {best['family']}; "
            f"{certain} of {len(rows)} certain)"
        )
        yield Finding(4, quantity, *_read_interval(best.to_dict(), "spearman_given_margin"), unit="number")


def _read_causes(table: pd.DataFrame) -> Iterator[Finding]:
    """Shares of the logit jitter by cause."""
    own = table[(table["metric"] == "logit_jitter") & table["site"].isna() & (table["source"] != "total")]
    for row in own.dropna(subset=["share"]).to_dict("records"):
        quantity = f"share of {row['source']} in the logit jitter of {row['model']} ({row['family']})"
        yield Finding(4, quantity, *_read_interval(row, "share"))


def _read_correlation(table: pd.DataFrame) -> Iterator[Finding]:
    rows = table[(table["family"] == "strided") & (table["tap"] == "input")].dropna(subset=["r2"])
    if rows.empty:
        return
    source = "table of correlations, ResNet-50 on STL-10"
    quantity = f"largest R² of AVR and SIS at one site, tap input, of {len(rows)}"
    yield Finding(4, quantity, float(rows["r2"].max()), unit="number",
                  published=0.013, study=STUDY, source=source)  # fmt: skip
    tested = float((rows["pearson_p_holm"] < 0.05).mean())
    quantity = "sites whose AVR correlates with SIS (p < .05; here corrected, of photographs)"
    yield Finding(4, quantity, tested, published=4 / 7, study=STUDY,
                  source=f"{source}, uncorrected, images as if independent")  # fmt: skip


def _read_tradeoff(table: pd.DataFrame) -> Iterator[Finding]:
    rows = {row["family"]: row for row in table.to_dict("records")}
    blurred = rows.get("blurpool")
    source = "table of the trade-off, ResNet-50 on STL-10, one laptop GPU"
    for family, published in (("strided", 0.0229), ("blurpool", 0.0138)):
        if family in rows:
            own = _read_interval(rows[family], "sis")
            yield Finding(5, f"SIS of {rows[family]['model']}", *own, unit="number", published=published,
                          study=STUDY, source=source)  # fmt: skip
    if blurred is None:
        return
    other = blurred["model"]
    change = _read_interval(blurred, "sis_change_percent")
    yield Finding(5, f"change of SIS with {other}", *change, unit="%", published=-39.8,
                  study=STUDY, source=source)  # fmt: skip
    slower = 100 * (blurred["latency_ratio"] - 1)
    yield Finding(5, f"more time with {other}", slower, unit="%", published=18.9, study=STUDY,
                  source=source)  # fmt: skip
    yield Finding(5, f"more time with {other}", slower, unit="%", published=3.0, study=ZHANG,
                  source="as the spectral-aliasing study quotes it")  # fmt: skip
    agreement = _read_interval(blurred, "agreement")
    yield Finding(5, f"images of one class with {other} too", *agreement, published=0.654, study=STUDY,
                  source=source)  # fmt: skip


def _read_nula(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table[table["unit"].isna() | (table["unit"] == "pixel")].to_dict("records"):
        if row["model"] in _NULA and row["perturbation"] in _CARD:
            published = _CARD[row["perturbation"]][_NULA[row["model"]]]
            yield Finding(6, f"accuracy of {row['model']}, {row['perturbation']}",
                          *_read_interval(row, "accuracy"), published=published, study=CARD,
                          source=_SHARES)  # fmt: skip


_READERS: Mapping[str, Callable[[pd.DataFrame], Iterator[Finding]]] = {
    "phase2a_frequency_sweep": _read_sweep,
    "phase3_layerwise_avr_stats": _read_layers,
    "phase3_signal": _read_signal,
    "phase4_confidence": _read_confidence,
    "phase4_partial": _read_partial,
    "phase4_budget": _read_causes,
    "phase4_correlation": _read_correlation,
    "phase5_tradeoff": _read_tradeoff,
    "phase6_nula": _read_nula,
}


def _read_interval(row: Mapping[object, float], column: str) -> tuple[float, float, float]:
    return row[column], row[f"{column}_ci_low"], row[f"{column}_ci_high"]


def _write(value: float, unit: str) -> str:
    """Write a number with its unit.

    Example:
        >>> _write(0.654, "share"), _write(-39.8, "%"), _write(-6.14, "dB")
        ('65.4 %', '-39.8 %', '-6.1 dB')
        >>> _write(-1e-9, "share")
        '0.0 %'
    """
    if unit == "number":
        return f"{value:.3g}"
    return f"{100 * value if unit == 'share' else value:z.1f} {'%' if unit == 'share' else unit}"
