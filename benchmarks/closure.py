"""What stays unexplained of shift instability with all three causes ideal, per network and size.

    python benchmarks/closure.py --out results

Two images of `samples` for each network and size, random weights where there are no others; a lattice 2 times
finer, and 4 or 8 where that leaves more than 2 %. What can't be made ideal is
counted (``positions``) and named (``left``), as in a vision transformer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import Tensor, nn

import spectral
from spectral.causes import Cause
from spectral.table.csv_files import describe_environment, write_csv

NETWORKS = (
    "bundled/resnet20", "bundled/resnet20-blurpool", "bundled/resnet20+flc", "bundled/nula-w32",
    "torchvision/resnet18@random", "torchvision/resnet50@random", "packaged/efficientnet-lite0",
    "torchvision/convnext_tiny@random",
)  # fmt: skip
TRANSFORMERS = {"timm/vit_tiny_patch16_224@random": (224,)}  # take images of these sizes alone
SIZES = (32, 33, 96, 97, 224, 225)
FACTORS = (2, 4, 8)
CLOSED = 0.02
COLUMNS = [
    "model", "height", "n", "factor", "sis", "sis_unexplained", "logit_jitter", "logit_jitter_unexplained",
    "positions", "left", "seconds", "reason",
]  # fmt: skip


@click.command(help=__doc__)
@click.option("--models", help="Some of the networks only, separated by commas.")
@click.option("--sizes", help="Some of the sizes only.")
@click.option("--limit", type=click.IntRange(min=2), default=2, show_default=True, help="Images of each.")
@click.option("--out", type=Path, default=Path("results"), show_default=True)
def main(models: str | None, sizes: str | None, limit: int, out: Path) -> None:
    """Measure each network at each size; the table is written after every row."""
    path = out / "tables" / "closure.csv"
    rows: list[Any] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["model"], row["height"]) for row in rows}
    for size in [int(size) for size in sizes.split(",")] if sizes else SIZES:
        pictures = spectral.load_images("samples", size=size, limit=limit)
        fitting = [name for name, sizes in TRANSFORMERS.items() if size in sizes]
        for name in models.split(",") if models else (*NETWORKS, *fitting):
            if (name, size) in done:
                continue
            row: dict[Any, Any] = {"model": name, "height": size, "n": limit, "reason": ""}
            try:
                row |= _close(name, pictures)
            except spectral.SpectralError as error:
                row["reason"] = str(error)
            rows.append(row)
            write_csv(pd.DataFrame(rows, columns=COLUMNS), path, describe_environment())
            click.echo(f"{name} at {size} px: {row}")


def _close(name: str, pictures: spectral.ImageSet) -> dict[str, Any]:
    """Measure the network as it is, and with all causes ideal."""
    start = time.process_time()
    net = spectral.load_model(name).eval()
    x = torch.stack(list(pictures))
    info = spectral.model_info(net)
    assert info is not None
    x = info.preprocessing(x)
    total = _score(net, x)
    found: dict[str, Any] = {}
    for factor in FACTORS:
        ideal = spectral.idealize(net, factor=factor)
        with ideal:
            rest = _score(net, x)
        shares = [float(r / t) for r, t in zip(rest, total, strict=True)]
        if math.isnan(sum(shares)):
            raise spectral.SpectralError(
                f"no share: instability {total[0]:.3g}, jitter {total[1]:.3g}, made ideal {rest[0]:.3g} and "
                f"{rest[1]:.3g}: the logits of these images don't differ on so small a map"
            )
        if not found or max(shares) < max(found["sis_unexplained"], found["logit_jitter_unexplained"]):
            found = {
                "factor": factor, "sis": total[0], "sis_unexplained": shares[0], "logit_jitter": total[1],
                "logit_jitter_unexplained": shares[1], "positions": len(ideal.left),
                "left": _name(ideal.left),
            }  # fmt: skip
        if max(shares) <= CLOSED:
            break
    return found | {"seconds": time.process_time() - start}


def _name(left: Iterable[Cause]) -> str:
    """Name what can't be made ideal: each operator with the reason, and how often."""
    return "; ".join(
        f"{count} {op}: {why}" for (op, why), count in Counter((c.op, c.reason) for c in left).items()
    )


def _score(net: nn.Module, x: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        z, *moved = (net(v) for v in (x, *(x.roll(s, a) for a in (-2, -1) for s in (-1, 1))))
    p = z.double().softmax(-1)
    sis = spectral.compute_instability(p, [v.double().softmax(-1) for v in moved]).mean()
    return float(sis), float(spectral.compute_logit_jitter(z, moved).mean())


if __name__ == "__main__":
    main()
