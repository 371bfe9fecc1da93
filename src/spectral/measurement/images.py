"""Images as a measurement sees them: a tensor as a set, and what each image was cut from."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from spectral.data import Images
from spectral.intake import GivenImages
from spectral.network import make_inputs


class TensorImages(GivenImages):
    """A tensor of preprocessed images, seen as a set of images.

    Example:
        >>> import torch
        >>> len(TensorImages(torch.zeros(2, 3, 8, 8)))
        2
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__(make_inputs(images.detach()))


def find_clusters(images: Images) -> list[str]:
    """Return what each image was cut from; each image itself where the set doesn't say.

    Example:
        >>> import torch
        >>> find_clusters(TensorImages(torch.zeros(2, 3, 8, 8)))
        ['0000', '0001']
    """
    return list(getattr(images, "clusters", images.ids))


def insert_clusters(table: pd.DataFrame, images: Images) -> pd.DataFrame:
    """Put the column ``cluster`` behind ``image``: what each image was cut from.

    Example:
        >>> import torch
        >>> insert_clusters(pd.DataFrame({"image": ["0001"]}), TensorImages(torch.zeros(2, 3, 8, 8)))
          image cluster
        0  0001    0001
    """
    clusters = dict(zip(images.ids, find_clusters(images), strict=True))
    table.insert(list(table.columns).index("image") + 1, "cluster", table["image"].map(clusters))
    return table
