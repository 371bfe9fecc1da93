"""All remedies at once: how still a network is that was trained with ideal pools, activations and borders.

Scores trained networks on labelled images: accuracy, SIS and logit jitter under one-pixel shifts, as they are
and as parts of the first's, and what they cost. The first is the control, trained by the same recipe without
remedies (`spectral train resnet20`; `… --method flc --activations alias-free-4 --padding circular`).

Example: python experiments/remedies.py control.safetensors remedied.safetensors --data cifar10-jpeg/test
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import pandas as pd
import torch
from torch import nn

from spectral import stats
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.files.atomic import ensure_writable
from spectral.latency import count_macs, measure_latency
from spectral.models import load_model, model_info
from spectral.stability import measure_stability
from spectral.stats.columns import bound_flags, bound_summary
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.table.schema import RANGES, with_bounds
from spectral.terminal.console import FilePath, SpectralCommand, device_option, quiet_option, workers_option

LATENCY_BATCH = 64
ROUNDS = 10
COLUMNS = [
    "model", "weights", "epochs", "n", "n_clusters", "n_labelled",
    *with_bounds("accuracy", "sis", "logit_jitter"), "accuracy_change", "sis_ratio",
    "logit_jitter_ratio", "latency_ratio", "macs_ratio",
]  # fmt: skip


def score_remedies(
    models: Sequence[nn.Module], images: ImageSet, *, batch_size: int = 250, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """Score networks on labelled images, a row for each.

    Args:
        models: classifiers of `load_model`; changes and ratios are to the first.
        images: with labels of their classes.
        batch_size: images per forward pass.
        progress: show bars.

    Yields:
        The columns of ``COLUMNS``.

    Raises:
        SpectralError: for no networks, or images without labels.
    """
    if not models:
        raise SpectralError("remedies: no networks; name the control first, then those with remedies")
    size = _info(models[0]).preprocessing.size
    device = next(models[0].parameters()).device
    batch = torch.zeros(LATENCY_BATCH, 3, *size, device=device)
    named = {str(i): model for i, model in enumerate(models)}
    times = measure_latency(named, dict.fromkeys(named, batch), repeats=ROUNDS)
    base: dict[str, Any] = {}
    for name, model in named.items():
        info = _info(model)
        table = measure_stability(
            model, images.resized(size), comb=False, circular=False, batch_size=batch_size, progress=progress
        )
        right = table["correct"].dropna()
        if right.empty:
            raise SpectralError(f"remedies: {images.source} has no labels of the classes of {info.name}")
        clusters = table["cluster"]
        own = {metric: stats.summarize(table[metric], None, clusters, *RANGES.get(metric, ()))
               for metric in ("sis", "logit_jitter")}  # fmt: skip
        row = {
            "model": info.name if info.name.startswith("bundled/") else Path(info.name).stem,
            "weights": info.weights_id, "epochs": info.metadata.get("epochs"),
            "n": len(table), "n_clusters": clusters.nunique(), "n_labelled": len(right),
            **bound_flags("accuracy", right, clusters),
            **bound_summary("sis", own["sis"]), **bound_summary("logit_jitter", own["logit_jitter"]),
            "latency": median(times[name]), "macs": count_macs(model, batch[:1]),
        }  # fmt: skip
        base = base or row
        row["accuracy_change"] = row["accuracy"] - base["accuracy"]
        for metric in ("sis", "logit_jitter", "latency", "macs"):
            row[f"{metric}_ratio"] = row[metric] / base[metric]
        yield {column: row[column] for column in COLUMNS}


def _info(model: nn.Module) -> Any:
    info = model_info(model)
    assert info is not None
    return info


@click.command(cls=SpectralCommand, help=__doc__)
@click.argument("models", nargs=-1, required=True)
@click.option("--data", required=True, metavar="DIR", help="Test images, a folder per class.")
@click.option("--limit", type=click.IntRange(min=2), help="Use so many images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True)
@device_option
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table.")  # fmt: skip
@workers_option
@quiet_option
def main(
    models: tuple[str, ...],
    data: str,
    limit: int | None,
    batch_size: int,
    device: str,
    out: Path,
    workers: int | None,
    quiet: bool,
) -> None:
    """Score each network; write the table."""
    ensure_writable(out)
    networks = [load_model(name, device=device) for name in models]
    images = load_images(data, limit=limit, workers=workers)
    path = out / "tables" / "remedies.csv"
    facts = {
        "models": models, "images": images.source, "fingerprint": images.fingerprint,
        "n_images": len(images),
    }  # fmt: skip
    refuse_other_tables([path], facts)
    facts |= {**describe_environment(), "device": device}
    rows = []
    for row in score_remedies(networks, images, batch_size=batch_size, progress=not quiet):
        rows.append(row)
        write_csv(pd.DataFrame(rows), path, facts)
        click.echo(
            f"{row['model']}: {row['accuracy']:.2%}, SIS {row['sis']:.3g} ({row['sis_ratio']:.2g} of the "
            f"first's), logit jitter {row['logit_jitter']:.3g} ({row['logit_jitter_ratio']:.2g}), time × "
            f"{row['latency_ratio']:.1f}"
        )
    click.echo(f"  {path}  ({len(rows)} rows)")
