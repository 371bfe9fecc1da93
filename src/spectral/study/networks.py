"""Any number of networks on the same pictures: what the phases from 6 on work on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import click
import pandas as pd
from torch import nn

from spectral.data import ImageSet, digest_labels, load_images
from spectral.errors import SpectralError
from spectral.identity import identify_network
from spectral.models import load_model, model_info
from spectral.models.info import ModelInfo
from spectral.study.options import StudyOptions
from spectral.study.results import Results


class Networks(Results):
    """Networks, loaded one at a time, and the pictures that all of them see.

    A phase says which networks, which pictures, and what else determines its numbers.

    Args:
        options: what to run on.
        names: what `load_model` is asked for.
    """

    folder: ClassVar[str]
    """Of its measurements."""

    def __init__(self, options: StudyOptions, names: Iterable[str]) -> None:
        super().__init__(options)
        self.names = tuple(dict.fromkeys(names))
        self.infos: dict[str, ModelInfo] = {}
        """What `load_model` says of each network that has been loaded."""

    @property
    @abstractmethod
    def images(self) -> ImageSet:
        """The pictures."""

    @cached_property
    def clusters(self) -> dict[str, str]:
        """What each picture was cut from: the unit of intervals and tests."""
        return dict(zip(self.images.ids, self.images.clusters, strict=True))

    def find_clusters(self, images: Iterable[str]) -> list[str]:
        """Return what each of these pictures was cut from."""
        return [self.clusters[image] for image in images]

    def open_pictures(self, source: str, size: Any, limit: int | None) -> ImageSet:
        """Load pictures, with labels where --data names them.

        Raises:
            SpectralError: if those of --data have no labels.
        """
        options = self.options
        images = load_images(source, size=size, limit=limit, seed=options.seed, workers=options.workers)
        if source == options.data and not images.has_labels:
            raise SpectralError(
                f"--data: {source!r} has no labels; expected cifar10, or a subfolder per class (--images "
                f"takes pictures without)"
            )
        return images

    def introduce(self) -> None:
        """Say which pictures are used, and refuse a folder of measurements on others.

        Networks may come and go, but not the pictures.
        """
        images = self.images
        counts = f"{len(images)} of {images.source}, {len(images.skipped)} skipped"
        click.echo(f"  images    {counts}{self.say_more()}")
        self.claim(self.out / "measurements" / self.folder / "pictures.json", self.describe_pictures())

    def say_more(self) -> str:
        """What else is said of the pictures."""
        return ""

    def load(self, name: str) -> nn.Module:
        """Load a network, and note what tells it from others."""
        model = load_model(name, device=self.options.device)
        info = model_info(model)
        assert info is not None
        self.infos[name], self.identities[name] = info, identify_network(model)
        self.files[name] = info.files
        return model

    def images_for(self, name: str) -> ImageSet:
        """Return the pictures at a network's own size."""
        size = self.infos[name].preprocessing.size
        return self.images if self.images.size == size else self.images.resized(size)

    def keep(
        self, name: str, what: str, config: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return what an earlier run computed for these weights and options, or compute and keep it."""
        path = self.measurement_folder(name, self.folder) / f"{what}.csv"
        return self.keep_table(path, {**config, **self.describe_pictures(), **self.identities[name]}, compute)

    def describe_pictures(self) -> dict[str, Any]:
        """What determines the numbers of any network."""
        return {"images": describe_images(self.images), "seed": self.options.seed}

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        own = {what: {name: identity[what] for name, identity in self.identities.items()}
               for what in ("weights", "preprocessing")}  # fmt: skip
        return {"preset": self.options.preset, **self.describe_pictures(), **own}


def yield_to_data(options: StudyOptions) -> dict[str, str]:
    """Return what labelled images take the place of, as `Results.list_unread` does."""
    both = options.images is not None and options.data is not None
    return {"images": "--images gives way to --data in phases 6 and 9"} if both else {}


def describe_images(images: ImageSet) -> dict[str, Any]:
    """Return what tells a set of pictures from others."""
    labels = digest_labels(images.labels, images.classes)
    found = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images)}
    return found if labels is None else {**found, "labels": labels}
