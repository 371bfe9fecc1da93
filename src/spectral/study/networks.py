"""Any number of networks on the same pictures: what the phases from 6 on work on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import click
import pandas as pd
from torch import nn

from spectral.data import ImageSet, digest_labels, load_images
from spectral.errors import SpectralError
from spectral.identity import identify_network
from spectral.measurement import describe_sites, measure
from spectral.models import load_model, model_info
from spectral.models.info import ModelInfo
from spectral.runs.summary import summarize_measurements
from spectral.sites import find_sites
from spectral.stability import measure_consistency
from spectral.stats.columns import average_signals, average_sites, read_means
from spectral.study.options import StudyOptions
from spectral.study.results import Results
from spectral.table.schema import SIGNAL_METRICS


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

    def measure_sites(
        self, name: str, model: nn.Module, metrics: Sequence[str]
    ) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Measure a network's sites and SIS, or SIS alone where no site has a dense map.

        Returns:
            The measurement, and the records of all sites.
        """
        images = self.images_for(name)
        sites = find_sites(model, images.size or 32)
        asked = (*metrics, *SIGNAL_METRICS, "sis") if any(site.measurable for site in sites) else ("sis",)
        table = measure(
            model, images, asked, taps=("dense", "signal"), batch_size=self.options.batch_size,
            progress=self.options.progress, out=self.measurement_folder(name, self.folder), sites=sites,
        )  # fmt: skip
        return table, table.attrs["sites"] or describe_sites(sites)

    def measure_agreement(
        self, name: str, model: nn.Module, protocol: str, pairs: int, kept: str
    ) -> pd.Series:
        """Measure which share of a picture's pairs of shifted views gets one class, by picture.

        Args:
            name: of the network.
            model: the network.
            protocol: of the views, as `measure_consistency` takes it.
            pairs: of views of each picture.
            kept: what the file is called in which it is kept.
        """

        def compute() -> pd.DataFrame:
            return measure_consistency(
                model, self.images_for(name), protocol, pairs=pairs, seed=self.options.seed,
                batch_size=4 * self.options.batch_size, progress=False,
            )  # fmt: skip

        table = self.keep(name, kept, {"protocol": protocol, "pairs": pairs}, compute)
        return table.groupby("image", sort=False)["agree"].mean()

    def describe_pictures(self) -> dict[str, Any]:
        """What determines the numbers of any network."""
        return {"images": describe_images(self.images), "seed": self.options.seed}

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        own = {what: {name: identity[what] for name, identity in self.identities.items()}
               for what in ("weights", "preprocessing")}  # fmt: skip
        return {"preset": self.options.preset, **self.describe_pictures(), **own}


def describe_aliases(
    table: pd.DataFrame, records: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Return the columns of a whole network: means over its sites, SIS, and how many sites are measurable.

    Args:
        table: from `measure`.
        records: of the sites.
        metrics: of the dense maps.
    """
    measurable = [record for record in records if record["measurable"]]
    summary = summarize_measurements(table)
    return {
        **average_signals(table), **average_sites(table, metrics),
        **read_means(summary, "", {"sis": ("", "sis")}),
        "sites": len(records), "measurable": len(measurable),
        "aliasing_reason": "" if measurable else "; ".join({str(r["reason"]) for r in records}),
    }  # fmt: skip


def yield_to_data(options: StudyOptions) -> dict[str, str]:
    """Return what labelled images take the place of, as `Results.list_unread` does."""
    both = options.images is not None and options.data is not None
    return {"images": "--images gives way to --data in phases 6 and 9"} if both else {}


def describe_images(images: ImageSet) -> dict[str, Any]:
    """Return what tells a set of pictures from others."""
    labels = digest_labels(images.labels, images.classes)
    found = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images)}
    return found if labels is None else {**found, "labels": labels}
