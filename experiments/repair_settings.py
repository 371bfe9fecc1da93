"""Which settings of repair keep most of what a network computes, by closed form and by steps, on one fold.

A setting is a line of KEY=VALUE pairs: method, where (sites joined by +), kernel, start (raw, recalibrated,
reconstructed), views, ridge, steps, batch_size, max_lr, layer_weight, tune, zoom, mix. The odd photographs
tune, the even ones score; --swap takes them the other way round. Rows are written as they come.

Example: python experiments/repair_settings.py --images photos --out settings.csv "method=flc steps=100"
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import Tensor, nn

import spectral
from spectral.classes import match_labels
from spectral.repair.views import Views

NUMBERS = {"steps": int, "batch_size": int, "max_lr": float, "layer_weight": float}
SHIFTS = [(1, 2), (-1, 2), (1, 3), (-1, 3)]


@torch.no_grad()
def run(model: nn.Module, images: Tensor, size: int = 50) -> Tensor:
    """Return a network's logits."""
    return torch.cat([model(part) for part in images.split(size)]).double()


class Scores:
    """Logits of the scored photographs and of their shifts, and of those that tuned."""

    def __init__(self, model: nn.Module, scored: Tensor, tuned: Tensor) -> None:
        self.still = run(model, scored)
        self.moved = [run(model, scored.roll(step, axis)) for step, axis in SHIFTS]
        self.tuned = run(model, tuned)

    @property
    def sis(self) -> float:
        """Shift instability, the mean over photographs."""
        p = self.still.softmax(1)
        found = [1 - nn.functional.cosine_similarity(p, moved.softmax(1)) for moved in self.moved]
        return float(torch.stack(found).mean())

    @property
    def jitter(self) -> float:
        """Logit jitter, over all photographs."""
        spread = (self.still - self.still.mean(0)).square().sum(1).mean()
        moves = torch.stack([(moved - self.still).square().sum(1) for moved in self.moved])
        return float(moves.mean() / spread)

    def describe(self, base: Scores, labels: Tensor) -> dict[str, float]:
        """Return the scores beside the unaltered network's."""
        said = self.still.argmax(1)
        return {
            "accuracy": float((said == labels).double().mean()),
            "agreement": float((said == base.still.argmax(1)).double().mean()),
            "divergence": diverge(base.still, self.still),
            "divergence_tuned": diverge(base.tuned, self.tuned),
            "agreement_tuned": float((self.tuned.argmax(1) == base.tuned.argmax(1)).double().mean()),
            "sis_ratio": self.sis / base.sis, "logit_jitter_ratio": self.jitter / base.jitter,
        }  # fmt: skip


def diverge(wanted: Tensor, given: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of the given from the wanted predictions."""
    p = wanted.log_softmax(1)
    return float((p.exp() * (p - given.log_softmax(1))).sum(1).mean())


def repair(model: nn.Module, images: Tensor, chosen: dict[str, str]) -> nn.Module:
    """Convert and repair a network as the setting says."""
    where = chosen["where"].split("+") if "where" in chosen else None
    options: dict[str, Any] = {"kernel_size": int(chosen["kernel"])} if "kernel" in chosen else {}
    smooth = spectral.convert(model, chosen["method"], where, **options)
    start = chosen.get("start", "recalibrated")
    if start == "recalibrated":
        smooth = spectral.recalibrate(smooth, images)
    elif start == "reconstructed":
        ridge = float(chosen["ridge"]) if "ridge" in chosen else None
        views = int(chosen.get("views", 1))
        smooth = spectral.reconstruct(smooth, images, ridge=ridge, limit=len(images), views=views)
    if "steps" not in chosen:
        return smooth
    numbers = {key: kind(chosen[key]) for key, kind in NUMBERS.items() if key in chosen}
    seen = Views(zoom=float(chosen.get("zoom", 1)), mix=float(chosen.get("mix", 0)))
    return spectral.distill(
        smooth, images, teacher=model, views=seen, tune=chosen.get("tune", "all"), progress=False, **numbers
    )


@click.command(help=__doc__)
@click.option("--model", default="packaged/efficientnet-lite0", show_default=True)
@click.option("--images", required=True)
@click.option("--limit", type=int)
@click.option("--swap", is_flag=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.argument("settings", nargs=-1)
def main(
    model: str, images: str, limit: int | None, swap: bool, device: str, out: Path, settings: tuple[str, ...]
) -> None:
    """Repair with each setting, score, and add a row."""
    network = spectral.load_model(model, device=device)
    info = spectral.model_info(network)
    assert info is not None
    pictures = spectral.load_images(images, limit=limit).resized(info.preprocessing.size)
    pixels = torch.stack([pictures[i] for i in range(len(pictures))])
    ready = info.preprocessing(pixels).to(next(network.parameters()).device)
    tuned, scored = (ready[::2], ready[1::2]) if swap else (ready[1::2], ready[::2])
    base = Scores(network, scored, tuned)
    known = match_labels(network, pictures).renumber(pictures.labels)
    numbers = torch.tensor([-1 if label is None else label for label in known], device=ready.device)
    labels = numbers[1::2] if swap else numbers[::2]
    rows = [{"setting": "unaltered", "seconds": 0.0, **base.describe(base, labels)}]
    for setting in settings:
        begun = time.perf_counter()
        chosen = dict(pair.split("=") for pair in setting.split())
        try:
            found = Scores(repair(network, tuned, chosen), scored, tuned).describe(base, labels)
        except spectral.SpectralError as error:
            click.echo(f"{setting}: {error}")
            continue
        rows.append({"setting": setting, "seconds": time.perf_counter() - begun, **found})
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.5g")
        row = rows[-1]
        click.echo(f"{setting}: " + " ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "setting"))


if __name__ == "__main__":
    main()
