"""Published weights: does each network that this project loads reach the accuracy its authors publish?

Loads the networks one after the other, downloading what is missing, classifies a folder of labelled images
with each, and writes the top-1 beside the published figure. Networks that can't be loaded are rows with the
reason; run again when they can. ImageNet's are scored on --imagenet, CIFAR-10's on --cifar10.

Example: python experiments/check_published.py --imagenet val --cifar10 cifar10
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd

from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError, StorageError
from spectral.files.atomic import ensure_writable
from spectral.models import load_model, model_info
from spectral.perturb import measure_predictions
from spectral.stats.columns import bound, bound_flags
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.table.schema import with_bounds
from spectral.terminal.console import FilePath, SpectralCommand, quiet_option, split_names, workers_option

IMAGENET, CIFAR10 = "imagenet", "cifar10"
COLUMNS = [
    "model", "dataset", "published", "source", "weights", "images", "n", "n_clusters",
    *with_bounds("accuracy"), "agrees", "reason",
]  # fmt: skip
_LITE = "github.com/tensorflow/tpu, EfficientNet-Lite"
_ZOO = "robustbench.github.io, CIFAR-10, L∞, clean accuracy"
_CIFAR = "github.com/akamaster/pytorch_resnet_cifar10"
_CARD = "NULA's model card"


@dataclass(frozen=True)
class Claim:
    """What a network's authors publish.

    Attributes:
        model: its name here.
        dataset: what the figure is of.
        accuracy: top-1 on the validation or test images, None where no figure is known for these weights.
        source: where it stands.
    """

    model: str
    dataset: str
    accuracy: float | None = None
    source: str = ""


CLAIMS = (
    Claim("packaged/efficientnet-lite0", IMAGENET, 0.751, _LITE),
    Claim("packaged/efficientnet-lite1", IMAGENET, 0.767, _LITE),
    Claim("packaged/efficientnet-lite2", IMAGENET, 0.776, _LITE),
    Claim("torchvision/resnet50", IMAGENET, 0.80858, "torchvision, IMAGENET1K_V2"),
    Claim("torchvision/resnet18", IMAGENET, 0.69758, "torchvision, IMAGENET1K_V1"),
    Claim("timm/resnet50", IMAGENET),
    Claim("antialiased/resnet50", IMAGENET),
    Claim("cifar-hub/resnet20", CIFAR10, 0.9173, _CIFAR),
    Claim("cifar-hub/resnet32", CIFAR10, 0.9263, _CIFAR),
    Claim("cifar-hub/resnet44", CIFAR10, 0.9310, _CIFAR),
    Claim("cifar-hub/resnet56", CIFAR10, 0.9339, _CIFAR),
    Claim("cifar-hub/resnet110", CIFAR10, 0.9368, _CIFAR),
    Claim("nula/robust", CIFAR10, 0.8942, _CARD),
    Claim("nula/robust-v1", CIFAR10),
    Claim("robustbench/Carmon2019Unlabeled", CIFAR10, 0.8969, _ZOO),
    Claim("robustbench/Wang2020Improving", CIFAR10, 0.8750, _ZOO),
    Claim("robustbench/Hendrycks2019Using", CIFAR10, 0.8711, _ZOO),
    Claim("robustbench/Sehwag2020Hydra", CIFAR10, 0.8898, _ZOO),
    Claim("robustbench/Wong2020Fast", CIFAR10, 0.8334, _ZOO),
    Claim("robustbench/Rice2020Overfitting", CIFAR10, 0.8534, _ZOO),
    Claim("robustbench/Rice2020Overfitting-L2", CIFAR10, 0.8867, _ZOO.replace("L∞", "L2")),
    Claim("robustbench/Sehwag2021Proxy_R18", CIFAR10, 0.8459, _ZOO),
    Claim("robustbench/Standard", CIFAR10, 0.9478, _ZOO),
)


def check_claims(
    claims: Iterable[Claim], images: dict[str, ImageSet], *, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """Score networks on labelled images, a row for each.

    Args:
        claims: which networks, and what is published of them.
        images: by dataset; networks of one that isn't there are left out.
        progress: show bars.

    Yields:
        The columns of ``COLUMNS``; ``agrees`` says whether the published figure lies in the 95 % interval of
        ours, ``reason`` why there is none.
    """
    for claim in claims:
        if claim.dataset not in images:
            continue
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"model": claim.model, "dataset": claim.dataset, "published": claim.accuracy,
                "source": claim.source, "reason": "", **bound("accuracy", *(float("nan"),) * 3)}  # fmt: skip
        try:
            row |= _score(claim, images[claim.dataset], progress)
        except StorageError:
            raise
        except SpectralError as error:
            row["reason"] = str(error)
        yield row


def _score(claim: Claim, images: ImageSet, progress: bool) -> dict[str, Any]:
    model = load_model(claim.model)
    info = model_info(model)
    assert info is not None
    own = images.resized(info.preprocessing.size)
    table = measure_predictions(model, own, ["clean"], batch_size=64, progress=progress)
    known = table[table["correct"].notna()]
    if known.empty:
        raise SpectralError("the images have no labels of the network's classes")
    found = bound_flags("accuracy", known["correct"], known["cluster"])
    low, high = (found[name] for name in with_bounds("accuracy")[1:])
    agrees = None if claim.accuracy is None else low <= claim.accuracy <= high
    return {"weights": info.weights_id, "images": images.source, "n": len(known),
            "n_clusters": known["cluster"].nunique(), **found, "agrees": agrees}  # fmt: skip


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--imagenet", metavar="DIR", help="ImageNet's validation images, in folders by class or named "
              "after it (n01440764_….JPEG).")  # fmt: skip
@click.option("--cifar10", metavar="cifar10|DIR", help="CIFAR-10's test images.")
@click.option("--models", metavar="A,B,…", help="Some of the networks only.")
@click.option("--limit", type=click.IntRange(min=1), help="Use so many images of each set.")
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table.")  # fmt: skip
@workers_option
@quiet_option
def main(
    imagenet: str | None,
    cifar10: str | None,
    models: str | None,
    limit: int | None,
    out: Path,
    workers: int | None,
    quiet: bool,
) -> None:
    """Check each network."""
    given = {IMAGENET: imagenet, CIFAR10: cifar10}
    if not any(given.values()):
        raise click.UsageError("give --imagenet, --cifar10 or both")
    ensure_writable(out)
    chosen = None if models is None else set(split_names(models, "--models"))
    unknown = (chosen or set()) - {claim.model for claim in CLAIMS}
    if unknown:
        raise SpectralError(f"--models: nothing is published here of {', '.join(sorted(unknown))}")
    images = {
        name: load_images(source, limit=limit, workers=workers) for name, source in given.items() if source
    }
    rows = []
    claims = [claim for claim in CLAIMS if chosen is None or claim.model in chosen]
    path = out / "tables" / "published_weights.csv"
    facts = {
        "models": [claim.model for claim in claims],
        "images": {name: each.fingerprint for name, each in images.items()},
    }
    refuse_other_tables([path], facts)
    facts |= describe_environment()
    for row in check_claims(claims, images, progress=not quiet):
        rows.append(row)
        write_csv(pd.DataFrame(rows)[COLUMNS], path, facts)
        shown = row["reason"] or f"{row['accuracy']:.2%} of {row['n']} images"
        known = "" if row["published"] is None else f", published {row['published']:.2%}"
        click.echo(f"{row['model']}: {shown}{known}")
    click.echo(f"  {path}  ({len(rows)} rows)")
