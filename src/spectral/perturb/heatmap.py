"""Fourier heatmaps: how a network answers to each frequency, one basis image at a time (Yin et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take, undisturbed
from spectral.perturb.evaluation import Classifier
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.stats.columns import bound_flags

NORMS = {"CIFAR-10": 4.0, "ImageNet": 15.7}  # the publication's, at 32 and 224 px
Bin = tuple[int, int]
Classes = npt.NDArray[np.int64]  # (images, frequencies)


@dataclass(frozen=True)
class FourierBasis:
    """Add ±v · U, with U the real Fourier basis image of one frequency; the sign is drawn for each channel.

    U[y, x] ∝ cos(2π (i · y / H + j · x / W)), with ‖U‖₂ = 1: its DFT is nonzero in the bins ±(i, j) alone.
    The norm of what is added is v per channel. Pixels may leave [0, 1], as in the publication's equation. The
    signs of an image depend on the seed, its number and the frequency alone, not on the batch.

    Args:
        i: cycles over the height; negative ones are those of N − |i|.
        j: cycles over the width.
        norm: v.
        seed: of the signs.

    Units:
        norm: L2 norm per channel of pixels in [0, 1].

    Raises:
        SpectralError: if the norm isn't above 0 or the seed below it; when called, for others than images
            (B, C, H, W).

    Source:
        D. Yin et al., A Fourier Perspective on Model Robustness in Computer Vision, NeurIPS 2019, section 3.

    Example:
        >>> FourierBasis(0, 2).image((1, 4))
        tensor([[ 0.5000, -0.5000,  0.5000, -0.5000]])
    """

    i: int
    j: int
    norm: float = NORMS["CIFAR-10"]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.norm > 0 or self.seed < 0:
            raise SpectralError(
                f"FourierBasis: norm must be > 0 and seed ≥ 0, got norm = {self.norm} and seed = {self.seed}"
            )

    @property
    def name(self) -> str:
        """``fourier-(3,-5)-4``."""
        return f"fourier-({self.i},{self.j})-{self.norm:g}"

    def image(self, size: Bin) -> Tensor:
        """Return U for a height and width, (H, W), float32."""
        height, width = size
        # in integers, whole cycles taken out: −(i, j) gives the same image to the last bit
        count = height * width
        phase = (
            self.i * width * torch.arange(height)[:, None] + self.j * height * torch.arange(width)
        ) % count
        wave = torch.cos(2 * math.pi / count * torch.minimum(phase, count - phase).double())
        unit: Tensor = wave / wave.norm()
        return unit.float()

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return x ± v · U; ``indices`` say which of a set the images are, by default 0, 1, …"""
        if images.ndim != 4 or not images.is_floating_point():
            raise SpectralError(
                f"{self.name}: expected floating-point images (B, C, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}"
            )
        size = (images.shape[-2], images.shape[-1])
        numbers = range(len(images)) if indices is None else indices
        signs = torch.stack([self._draw_signs(number, images.shape[1], size) for number in numbers])
        return images + (self.norm * signs[..., None, None] * self.image(size)).to(images)

    def _draw_signs(self, number: int, channels: int, size: Bin) -> Tensor:
        stream = np.random.default_rng([self.seed, number, self.i % size[0], self.j % size[1]])
        return torch.from_numpy(2.0 * stream.integers(2, size=channels) - 1.0).float()


@shared
def measure_fourier_heatmap(
    model: nn.Module,
    images: Any,
    norm: float = NORMS["CIFAR-10"],
    radius: int | None = None,
    *,
    stride: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Classify all images under the basis image of every frequency of the DC-centred grid.

    A real basis image is its own conjugate's: one half of the plane is measured and mirrored, which costs
    about H · W / 2 forward passes per image (514 at 32 px), a quarter of that with ``stride=2``.

    Args:
        model: classifier.
        images: as for `spectral.measure`, in [0, 1], tensors too, all of one size; they are normalised after
            they were perturbed.
        norm: of the basis images; the publication has 4.0 for CIFAR-10 and 15.7 for ImageNet.
        radius: frequencies up to so many cycles per image on each axis; by default all.
        stride: keep every so-many-th frequency of each axis, counted from DC.
        seed: of the signs.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per frequency, rows of the grid from the lowest f_u to the highest: height, width, i, j (cycles
        per image), f_u, f_v, norm, n, n_clusters, disagreement (share of images whose class isn't the clean
        one) with its 95 % interval, n_labelled, error (share of labelled images with a wrong class) with its
        interval, and clean_error; both NaN without labels. Shares are means over photographs, each counting
        once however many images it has.

    Units:
        f_u, f_v: cycles per pixel, in [−0.5, 0.5).

    Raises:
        SpectralError: for a number out of range, no images, images of several sizes, or a model that is no
            classifier.

    Source:
        D. Yin et al., A Fourier Perspective on Model Robustness in Computer Vision, NeurIPS 2019.

    Example:
        >>> from spectral import load_images, load_model
        >>> net, pictures = load_model("bundled/resnet20@random"), load_images("synthetic", 32, 4)
        >>> table = measure_fourier_heatmap(net, pictures, radius=1, progress=False)
        >>> table[["i", "j"]].values.tolist()
        [[-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 0], [0, 1], [1, -1], [1, 0], [1, 1]]
    """
    caller = "measure_fourier_heatmap"
    stride = as_integer(stride, f"{caller}: stride", least=1)
    batch_size = as_integer(batch_size, f"{caller}: batch_size", least=1)
    radius = None if radius is None else as_integer(radius, f"{caller}: radius", least=0)
    seed = as_integer(seed, f"{caller}: seed", least=0)
    feed = Feed(model, images, caller=caller, preprocessing=preprocessing, logits=logits, pixels=True)
    classify = Classifier(model, feed)
    images = classify.images
    known = feed.number_labels(images.labels)
    size = (feed.extents.get("h", 1), feed.extents["w"]) if "w" in feed.extents else images.size
    if size is None:
        raise SpectralError(f"{caller}: the images have no axes that are known to be rows and columns")
    bins = list_bins(size, radius, stride)
    bases = [FourierBasis(*pair, norm, seed) for pair in bins if _mirror(pair, size) <= pair]
    share = Sharing(feed, batch_size)
    bar = tqdm(total=len(bases) * len(share.indices), desc="frequencies", unit="image",
               disable=not share.shows(progress), leave=False)  # fmt: skip

    def look() -> Iterator[tuple[pd.DataFrame, Tensor]]:
        """Yield of each batch what is known of its images, and their classes with each basis (B, bases)."""
        for indices, batch in share.read(classify.batches):
            found = [classify(batch).argmax(-1).cpu()]
            for basis in bases:
                found.append(classify(basis(batch, indices)).argmax(-1).cpu())
                bar.update(len(indices))
            labels = pd.array([known[i] for i in indices], dtype="Int64")
            own = {"image": [images.ids[i] for i in indices], "label": labels, "clean": found[0].numpy()}
            yield pd.DataFrame(own), torch.stack(found[1:], 1)

    with undisturbed(model), torch.no_grad(), bar:
        frames, parts = zip(*share.gather(look()), strict=True)
    table = insert_clusters(pd.concat(frames, ignore_index=True), images)
    return _tabulate(bins, [(basis.i, basis.j) for basis in bases], size, norm, table,
                     torch.cat(parts).numpy())  # fmt: skip


def list_bins(size: Bin, radius: int | None = None, stride: int = 1) -> list[Bin]:
    """Return the frequencies of the DC-centred grid in cycles per image, row by row from the lowest.

    Example:
        >>> list_bins((1, 4)), list_bins((1, 9), radius=3, stride=2)
        ([(0, -2), (0, -1), (0, 0), (0, 1)], [(0, -2), (0, 0), (0, 2)])
    """
    rows, columns = (
        [
            k
            for k in range(-(n // 2), (n + 1) // 2)
            if k % stride == 0 and (radius is None or abs(k) <= radius)
        ]
        for n in size
    )
    return [(i, j) for i in rows for j in columns]


def _mirror(pair: Bin, size: Bin) -> Bin:
    """Return the frequency of the same real image: −(i, j) on the grid, where −N/2 is its own."""
    i, j = ((-k + n // 2) % n - n // 2 for k, n in zip(pair, size, strict=True))
    return i, j


def _tabulate(
    bins: Sequence[Bin],
    measured: Sequence[Bin],
    size: Bin,
    norm: float,
    table: pd.DataFrame,
    classes: Classes,
) -> pd.DataFrame:
    """A row per frequency, from the classes that each image has with those that were measured."""
    place = {pair: column for column, pair in enumerate(measured)}
    order = [place[pair if pair in place else _mirror(pair, size)] for pair in bins]
    labelled = table["label"].notna().to_numpy()
    own, labels = table[labelled], table["label"][labelled].to_numpy(dtype=np.int64)[:, None]
    i, j = np.array(bins).T
    facts = pd.DataFrame({
        "height": size[0], "width": size[1], "i": i, "j": j, "f_u": i / size[0], "f_v": j / size[1],
        "norm": norm, "n": len(table), "n_clusters": table["cluster"].nunique(),
    })  # fmt: skip
    moved = _share("disagreement", classes != table[["clean"]].to_numpy(), table["cluster"])
    wrong = _share("error", classes[labelled] != labels, own["cluster"])
    clean = _share("clean_error", own[["clean"]].to_numpy() != labels, own["cluster"])["clean_error"][0]
    shares = [part.iloc[order].reset_index(drop=True) for part in (moved, wrong)]
    return facts.assign(**shares[0], n_labelled=len(own), **shares[1], clean_error=clean)


def _share(name: str, flags: npt.NDArray[np.bool_], clusters: pd.Series) -> pd.DataFrame:
    """Shares of each column with their intervals, each photograph counting once; NaN of no images."""
    columns = (pd.Series(column, index=clusters.index, dtype=bool) for column in flags.T)
    return pd.DataFrame([bound_flags(name, column, clusters) for column in columns])
