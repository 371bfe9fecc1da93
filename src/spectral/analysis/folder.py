"""The folder of an analysis: its parts, each whole or not there, so that the same call continues."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral.errors import SpectralError
from spectral.files import append_seal, ensure_writable, split_seal, write_whole
from spectral.identity import Identity
from spectral.table import read_json, write_json

RUN_FILE = "diagnosis.json"
PARTS = "parts"


class Folder:
    """Keeps tables, records and arrays by name; without a path it keeps nothing and computes everything.

    Every part carries a digest of itself: one that is damaged or altered is refused. Whoever writes must have
    claimed the folder (`spectral.files.claim`).

    Args:
        path: where to; made if need be.
        config: what determines the parts; a folder with another one is refused. None to read alone.
        network: what tells the network from others.

    Raises:
        SpectralError: if the folder can't be written, or holds an analysis of something else.
    """

    def __init__(
        self, path: Path | None, config: Mapping[str, Any] | None = None, network: Identity | None = None
    ) -> None:
        self.path = path
        if path is not None and config is not None:
            ensure_writable(path / PARTS)
            self._claim(path / RUN_FILE, json.loads(json.dumps(config)), network)

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table: as it is kept, else computed and kept."""
        path = self._place(name, "parquet")
        if path is not None and path.exists():
            return pd.read_parquet(_read(path))
        table = compute()
        if path is not None:
            content = io.BytesIO()
            table.to_parquet(content)
            write_whole(path, append_seal(content.getvalue()))
        return table

    def record(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a record that JSON can hold: as it is kept, else computed and kept."""
        path = self._place(name, "json")
        if path is not None and path.exists():
            return read_json(path, sealed=True)
        found = compute()
        if path is not None:
            write_json(found, path, sealed=True)
        return found

    def arrays(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return arrays by key: as they are kept, else computed and kept."""
        path = self._place(name, "npz")
        if path is not None and path.exists():
            with np.load(_read(path)) as file:
                return {key: file[key] for key in file.files}
        found = dict(compute())
        if path is not None:
            content = io.BytesIO()
            np.savez_compressed(content, **found)
            write_whole(path, append_seal(content.getvalue()))
        return found

    def _place(self, name: str, suffix: str) -> Path | None:
        """Return a part's file; a name that is no file name is hashed."""
        if self.path is None:
            return None
        plain = name.replace("_", "").isascii() and name.replace("_", "").isalnum()
        stem = name if plain else hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        return self.path / PARTS / f"{stem}.{suffix}"

    def _claim(self, path: Path, config: dict[str, Any], network: Identity | None) -> None:
        if not path.exists():
            described = network.describe() if network is not None else {}
            write_json({"config": config, "network": described}, path, sealed=True)
            return
        known = read_json(path, sealed=True)
        before = known.get("config", {})
        for key in {**before, **config}:
            if before.get(key) != config.get(key):
                raise SpectralError(
                    f"{path.parent} holds a diagnosis with {key} = {before.get(key)!r}, not "
                    f"{config.get(key)!r}; choose another folder or delete it"
                )
        other = network.find_difference(known.get("network", {})) if network is not None else None
        if other:
            raise SpectralError(
                f"{path.parent} holds a diagnosis of another network: {other}; choose another folder or "
                f"delete it"
            )


def _read(path: Path) -> io.BytesIO:
    """Read a sealed part.

    Raises:
        SpectralError: if it is damaged.
    """
    try:
        whole = split_seal(path.read_bytes())
    except OSError as error:
        raise SpectralError(f"{path} can't be read ({error.strerror})") from error
    if whole is None:
        raise SpectralError(f"{path} isn't what was written; delete it and run the same command again")
    return io.BytesIO(whole)
