"""The tidy table of measurements: its schema, shards on disk, atomic writing, provenance and summary."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import spectral
from spectral import stats
from spectral.errors import SpectralError

COLUMNS = ["model", "image", "site", "call", "op", "tap", "metric", "value"]
SUMMARY_COLUMNS = ["model", "site", "call", "op", "stride", "tap", "metric", "n", "n_silent", "mean", "std",
                   "ci_low", "ci_high", "avr_pooled", "reason"]  # fmt: skip
RUN_FILE, UNMEASURED_FILE = "run.json", "unmeasured.json"
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [(c, pa.int32() if c == "call" else pa.float64() if c == "value" else _TEXT) for c in COLUMNS]
)

# site, call, op, tap, metric
Key = tuple[str, int, str, str, str]


def make_rows(
    model: str, images: Sequence[str], keys: Sequence[Key], values: npt.NDArray[np.float64]
) -> pa.Table:
    """Turn a block of values (images × keys) into tidy rows, image by image.

    Example:
        >>> rows = make_rows("net", ["a", "b"], [("", 0, "", "", "sis")], np.array([[0.1], [0.2]]))
        >>> rows.to_pandas()["value"].tolist()
        [0.1, 0.2]
    """
    n, k = values.shape
    columns: dict[str, pa.Array] = {
        "model": _repeat_text([model], np.zeros(n * k)),
        "image": _repeat_text(images, np.repeat(np.arange(n), k)),
        "value": pa.array(values.ravel()),
    }
    for position, name in enumerate(("site", "call", "op", "tap", "metric")):
        entries = [key[position] for key in keys]
        if name == "call":
            columns[name] = pa.array(np.tile(np.array(entries, np.int32), n))
        else:
            words = list(dict.fromkeys(map(str, entries)))
            codes = np.tile(np.array([words.index(str(entry)) for entry in entries]), n)
            columns[name] = _repeat_text(words, codes)
    return pa.table(columns).select(COLUMNS).cast(SCHEMA)


def to_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Join tidy rows into one pandas table."""
    joined = pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries()
    plain = pa.schema([(f.name, pa.string() if f.type == _TEXT else f.type) for f in SCHEMA])
    frame: pd.DataFrame = joined.cast(plain).to_pandas()
    return frame


class ShardStore:
    """A folder of Parquet shards that belongs to one configuration and can be continued after a kill.

    Args:
        folder: created if it doesn't exist.
        config: what determines the values; a folder with another one is refused.
        provenance: what is recorded beside it but may differ when a run is continued (versions, device).

    Raises:
        SpectralError: if the folder can't be written, or holds measurements of another configuration.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        ensure_writable(self.folder)
        self._claim(json.loads(json.dumps(config)), dict(provenance or {}))
        for left_over in self.folder.glob("*.partial"):
            left_over.unlink()

    @property
    def shards(self) -> list[Path]:
        """Finished shards in the order written."""
        return sorted(self.folder.glob("shard-*.parquet"))

    def finished_images(self) -> set[str]:
        """Ids of the images whose rows are on disk."""
        done: set[str] = set()
        for shard in self.shards:
            done |= set(_read_shard(shard, ["image"])["image"].to_pylist())
        return done

    @property
    def unmeasured(self) -> dict[str, str]:
        """Sites that the first shard's run could not measure, with the reasons."""
        path = self.folder / UNMEASURED_FILE
        return read_json(path) if path.exists() else {}

    def append(self, rows: pa.Table, unmeasured: Mapping[str, str] | None = None) -> None:
        """Write one shard: all of it or nothing. ``unmeasured`` is written with the first."""
        shards = self.shards
        if unmeasured and not shards:
            write_json(unmeasured, self.folder / UNMEASURED_FILE)
        # Not the number of shards: someone may have deleted a damaged one.
        number = int(shards[-1].stem.removeprefix("shard-")) + 1 if shards else 0
        path = self.folder / f"shard-{number:06d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(rows, partial, compression="zstd")
        os.replace(partial, path)

    def read(self) -> pd.DataFrame:
        """Read everything that is on disk."""
        return to_frame([_read_shard(shard) for shard in self.shards])

    def _claim(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        path = self.folder / RUN_FILE
        if not path.exists():
            if self.shards:
                raise SpectralError(f"{self.folder} has shards but no {RUN_FILE}; choose another folder")
            write_json({"config": config, "provenance": provenance}, path)
            return
        before = read_json(path).get("config", {})
        differing = [key for key in {**before, **config} if before.get(key) != config.get(key)]
        if differing:
            key = differing[0]
            raise SpectralError(
                f"{self.folder} holds measurements with {key} = {_short(before.get(key))}, not "
                f"{_short(config.get(key))}; choose another folder or delete it"
            )


def summarize_measurements(
    table: pd.DataFrame,
    sites: Sequence[Mapping[str, Any]] | None = None,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per model, site, tap and metric: n, n_silent, mean, std and the mean's 95 % interval.

    Silent maps are counted and left out of the means. ``avr_pooled`` is the AVR of pooled power. Sites that
    could not be measured get a row with the reason.

    Args:
        table: rows of `spectral.measure`.
        sites: its ``attrs["sites"]``, for strides and reasons.
        groups: photograph of each image, where several are cut from one: these aren't independent, and the
            interval is then drawn over photographs.
        seed: of that interval's resampling.

    Example:
        >>> rows = make_rows("net", ["a", "b"], [("", 0, "", "", "sis")], np.array([[0.1], [0.3]]))
        >>> summarize_measurements(to_frame([rows]))[["metric", "n", "mean"]].values.tolist()
        [['sis', 2, 0.2]]
    """
    facts = {site["name"]: site for site in (table.attrs.get("sites", ()) if sites is None else sites)}
    keys = ["model", "site", "call", "op", "tap"]
    rows: list[dict[str, Any]] = []
    for group, block in table.groupby(keys, sort=False, dropna=False):
        wide = block.pivot(index="image", columns="metric", values="value")
        power = wide.get("power")
        silent = None if power is None else (power <= 0).to_numpy()
        photographs = [groups[image] for image in wide.index] if groups else None
        for metric in wide.columns:
            if metric in ("power", "label", "prediction"):
                continue
            summary = stats.summarize(wide[metric], silent=silent, groups=photographs, seed=seed)
            row = dict(zip(keys, group, strict=True)) | {"metric": metric, "reason": ""}
            row["stride"] = facts[row["site"]]["stride"] if row["site"] in facts else ""
            row |= {k: getattr(summary, k) for k in ("n", "n_silent", "mean", "std", "ci_low", "ci_high")}
            if metric == "avr" and power is not None:
                total = float(power.sum())
                row["avr_pooled"] = float((wide[metric] * power).sum()) / total if total > 0 else 0.0
            rows.append(row)
    model = table["model"].iloc[0] if len(table) else ""
    for site in facts.values():
        if not site["measurable"]:
            empty = {"model": model, "site": site["name"], "tap": "", "metric": "", "n": 0, "n_silent": 0}
            rows.append(empty | {key: site[key] for key in ("call", "op", "stride", "reason")})
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def write_csv(table: pd.DataFrame, path: Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a CSV under a temporary name and rename it; its provenance goes beside it as JSON."""
    path = Path(path)
    ensure_writable(path.parent)
    partial = path.with_suffix(path.suffix + ".partial")
    table.to_csv(partial, index=False, float_format="%.9g")
    os.replace(partial, path)
    if provenance is not None:
        write_json(provenance, path.with_suffix(".json"))
    return path


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON under a temporary name and rename it."""
    partial = path.with_suffix(".partial")
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    partial.write_text(f"{text}\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read JSON.

    Raises:
        SpectralError: if the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpectralError(f"{path} can't be read ({error}); delete its folder and measure again") from error
    return content


def ensure_writable(folder: Path) -> None:
    """Create a folder and check that files can be made in it.

    Raises:
        SpectralError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or str(error)
        raise SpectralError(f"can't write to {folder} ({why}); choose another output folder") from error


def describe_environment() -> dict[str, Any]:
    """Versions and machine kind, for provenance; no names of hosts or users."""
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn")
    own = {"spectral-aliasing": spectral.__version__, "python": platform.python_version()}
    return {
        "versions": own | {name: _version(name) for name in packages},
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _repeat_text(words: Sequence[str], codes: npt.NDArray[Any]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(words, pa.string()))


def _read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise SpectralError(f"{path} is damaged ({error}); delete it and measure again") from error
    return table if columns else table.cast(SCHEMA)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
