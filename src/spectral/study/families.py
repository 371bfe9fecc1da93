"""The comparison of families, phases 1 to 5: networks, images, paired sites, and the one measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import pandas as pd
from torch import Tensor, nn

from spectral.analysis import TAPS, lay_out_sites, measure_image_avr, measure_profiles
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.files.json_files import write_json
from spectral.hooks.capture import Tap
from spectral.identity import describe_preprocessing, find_structure
from spectral.measurement import measure
from spectral.models import load_model, model_info
from spectral.models.info import ModelInfo
from spectral.models.weights_id import hash_state
from spectral.pairing import pair_sites
from spectral.processes.ranks import find_ranks, take_weights
from spectral.repair.reconstruction import reconstruct
from spectral.sites import Site, find_sites
from spectral.stability import measure_stability
from spectral.study.options import PRESETS, StudyOptions
from spectral.study.results import Results
from spectral.study.roles import assign_roles, find_role
from spectral.surgery.report import find_report
from spectral.synthetic import make_checkerboard_image
from spectral.table.schema import SIGNAL_METRICS

METRICS = ("avr", "am", "am_relative", "alias_power_ratio", "sis")
REPAIRED = " repaired"  # behind a model's name
STABILITY_IMAGES = 256  # on which what stands beside SIS is measured


class Study(Results):
    """The comparison of families: its models and images, which load when first needed, and its folder.

    Args:
        options: what to run on.
    """

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options)
        preset = PRESETS[options.preset]
        given = {name: load_model(name, device=options.device) for name in options.families.values()}
        known = {name: find_role(model) for name, model in given.items()}
        self.files = {name: _find_files(model) for name, model in given.items()}
        self.names = assign_roles(known, preset.families)
        self.families = tuple(self.names)
        self._loaded = {family: given[name] for family, name in self.names.items()}
        self.repaired = {f for f, model in self._loaded.items() if preset.repaired and find_report(model)}
        self.names |= {family: self.names[family] + REPAIRED for family in self.repaired}
        custom = options.models is not None or options.images is not None
        note = "with your own choice of models or images" if custom else preset.note
        click.echo(f"study, preset {options.preset}: {note}")
        for family, name in self.names.items():
            click.echo(f"  {family:9s} {name} ({self.info(family).weights_id})")
        structures = {family: find_structure(model) for family, model in self.models.items()}
        self.claim(self.out / "measurements" / "study.json", {**self.config(), "structures": structures})

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """One model per family; converted ones repaired where the preset says so."""
        return {
            family: self._repair(family) if family in self.repaired else model
            for family, model in self._loaded.items()
        }

    def _repair(self, family: str) -> nn.Module:
        """Fit a converted network again (`reconstruct`), on photographs that nothing else is measured on."""
        count = len(self.spare.items)
        if count < 2:
            raise SpectralError(
                f"{self.names[family].removesuffix(REPAIRED)} can't be repaired: that takes at least "
                f"2 images of photographs that nothing else is measured on, and of "
                f"{self._found.source} there are {count}; give more"
            )
        repaired = reconstruct(self._loaded[family], self.spare)
        take_weights(repaired, find_ranks())
        info = model_info(repaired)
        assert info is not None
        weights = hash_state(repaired.state_dict())
        named = dataclasses.replace(info, name=self.names[family], weights_id=weights)
        repaired.spectral_info = named  # type: ignore[assignment]
        return repaired

    @cached_property
    def _found(self) -> ImageSet:
        """All images, at the size of the first family."""
        options, info = self.options, model_info(self._loaded[self.families[0]])
        assert info is not None
        images = load_images(
            options.image_source, size=info.preprocessing.size, limit=options.image_limit, seed=options.seed,
            workers=options.workers,
        )  # fmt: skip
        return images.keep_decoded()  # for all families of one size

    @cached_property
    def _base_images(self) -> ImageSet:
        spared = set(self.spare.ids)
        kept = [item for item in self._found.items if item.id not in spared]
        images = dataclasses.replace(self._found, items=kept)
        apart = f"; {len(spared)} of other photographs for the repair" if spared else ""
        click.echo(f"  images    {len(images)} of {images.source}, {len(images.skipped)} skipped{apart}")
        return images

    @cached_property
    def spare(self) -> ImageSet:
        """The images that converted networks are repaired on; none where none is."""
        found = self._found
        chosen = choose_spare(found.clusters, found.labels) if self.repaired else set()
        items = [item for item, own in zip(found.items, found.clusters, strict=True) if own in chosen]
        return dataclasses.replace(found, items=items)

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """Measurable sites per family."""
        found = {
            family: [s for s in find_sites(model, self.info(family).preprocessing.size) if s.measurable]
            for family, model in self.models.items()
        }
        for family, sites in found.items():
            if not sites:
                raise SpectralError(f"{self.names[family]} has no downsampling site that can be measured")
        return found

    @cached_property
    def layers(self) -> dict[tuple[str, str], tuple[int, str]]:
        """(family, site name) → (depth, label), like sites of the families sharing a label."""
        return pair_sites(self.sites, reference=self.families[0])

    def info(self, family: str) -> ModelInfo:
        """What `load_model` recorded about a family's model."""
        info = model_info(self.models[family])
        assert info is not None
        return info

    def images(self, family: str) -> ImageSet:
        """Return the study's images at the size a family's model takes: the same pictures for all."""
        size = self.info(family).preprocessing.size
        return self._base_images if self._base_images.size == size else self._base_images.resized(size)

    def natural_image(self, family: str) -> Tensor:
        """Return the first image, preprocessed, as a batch of one."""
        return self.prepare(family, self.images(family)[0][None])

    def checkerboard(self, family: str) -> Tensor:
        """Return a ±1 checkerboard as the network's input: no mean, so all of its power is at Nyquist."""
        size = self.info(family).preprocessing.size
        return make_checkerboard_image(size, amplitude=1, mean=0)[None].to(self.options.device)

    def prepare(self, family: str, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) in [0, 1] for a family's model."""
        return self.info(family).preprocessing(images.to(self.options.device))

    def describe(self, family: str, site: Site) -> dict[str, Any]:
        """Columns that name a site in every table."""
        index, layer = self.layers[(family, site.name)]
        return {
            "model": self.names[family], "family": family, "site": site.name, "layer": layer,
            "layer_index": index, "op": site.op, "stride": f"{site.stride[0]}x{site.stride[1]}",
        }  # fmt: skip

    def place(self, family: str, table: pd.DataFrame) -> pd.DataFrame:
        """Put model and family in front of the column ``site``, and the like layer behind it."""
        found = [
            self.layers.get((family, site), (-1, site)) for site in table["site"]
        ]  # -1: the image itself
        at = table.columns.get_loc("site")
        assert isinstance(at, int)
        table = table.copy()
        table.insert(at + 1, "layer", [layer for _, layer in found])
        table.insert(at + 2, "layer_index", [index for index, _ in found])
        table.insert(at, "model", self.names[family])
        table.insert(at + 1, "family", family)
        return table

    def measure_each(self, measure: Callable[[str, nn.Module, Sequence[Site]], pd.DataFrame]) -> pd.DataFrame:
        """Call a function with each family, its model and its sites, and put its tables below each other."""
        return pd.concat(
            [self.place(f, measure(f, self.models[f], self.sites[f])) for f in self.families],
            ignore_index=True,
        )

    def measure_images(self, images: Mapping[str, Tensor]) -> pd.DataFrame:
        """AVR of one preprocessed image per family, at the image itself and at each site and tap."""
        return self.measure_each(lambda family, model, sites: measure_image_avr(model, images[family], sites))

    def profile_images(self, family: str, count: int, tap: Tap) -> pd.DataFrame:
        """Radial profiles of the first images at every site of a family."""
        parts = []
        for chosen, batch in self.images(family).take(count).batches(self.options.batch_size):
            images = self.prepare(family, batch)
            found = measure_profiles(self.models[family], images, self.sites[family], tap)
            found["image_index"] += chosen[0]
            parts.append(found)
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def measurements(self) -> dict[str, pd.DataFrame]:
        """All per-image metrics of every family, measured once and continued after an interruption."""
        return {family: self._measure(family) for family in self.families}

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per image, model, site and tap with AVR, the dense map's alias metrics, and SIS.

        AVR is the published one, radial, and without the mean per axis (``avr_separable_exclude_dc``).
        """
        joined = self._lay_out(TAPS)
        order = {image: i for i, image in enumerate(self._base_images.ids)}
        joined["_order"] = joined["image"].map(order)
        columns = ["image", "cluster", "model", "family", "site", "layer", "layer_index", "op", "stride",
                   "tap", "avr", "avr_separable_exclude_dc", "am", "am_relative", "alias_power_ratio", "sis",
                   "confidence", "power", "silent"]  # fmt: skip
        return joined.sort_values(["family", "layer_index", "tap", "_order"], kind="stable")[columns]

    @cached_property
    def signal(self) -> pd.DataFrame:
        """One row per image, model and site with what is measured at the tap ``signal``."""
        return self._lay_out(("signal",)).sort_values(["layer_index", "family"], kind="stable")

    def _lay_out(self, taps: Sequence[Tap]) -> pd.DataFrame:
        """Lay out the measurements of every family, with the study's names of networks and layers."""
        frames = []
        for family, table in self.measurements.items():
            facts = pd.DataFrame([self.describe(family, site) for site in self.sites[family]])
            own = lay_out_sites(table, taps)
            frames.append(own.drop(columns=[c for c in facts if c != "site"]).merge(facts, on="site"))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def stability(self) -> dict[str, pd.DataFrame]:
        """SIS and what stands beside it, on the first images of each family."""
        return {
            family: measure_stability(
                self.models[family], self.images(family).take(STABILITY_IMAGES),
                batch_size=self.options.batch_size, progress=self.options.progress,
            )
            for family in self.families
        }  # fmt: skip

    def finish(self) -> None:
        """Write the provenance of the whole results folder."""
        facts = self.provenance()
        find_ranks().once(lambda: write_json(facts, self.out / "provenance.json", sealed=True))

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        images = self._base_images
        return {
            "preset": self.options.preset,
            "models": {f: {"name": n, "weights": self.info(f).weights_id} for f, n in self.names.items()},
            "preprocessing": {f: describe_preprocessing(self.info(f)) for f in self.names},
            "images": {
                "source": images.source, "fingerprint": images.fingerprint, "count": len(images),
                "size": list(images.size or ()), "skipped": len(images.skipped),
                "labelled": sum(label is not None for label in images.labels),
            },
            "seed": self.options.seed,
            **({"repaired": {"families": sorted(self.repaired), "count": len(self.spare),
                             "fingerprint": self.spare.fingerprint}} if self.repaired else {}),
        }  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """The configuration, how the models were trained, and versions and device of this run."""
        facts = {}
        for family in self.families:
            metadata = self.info(family).metadata
            kept = ("architecture", "data_id", "epochs", "seed", "test_accuracy", "precision")
            facts[family] = {key: metadata[key] for key in kept if key in metadata}
        return {**super().provenance(), "training": facts}

    def _measure(self, family: str) -> pd.DataFrame:
        return measure(
            self.models[family],
            self.images(family),
            (*METRICS, *SIGNAL_METRICS),
            taps=(*TAPS, "signal"),
            batch_size=self.options.batch_size,
            out=self.measurement_folder(self.names[family]),
            progress=self.options.progress,
            sites=self.sites[family],
        )


def _find_files(model: nn.Module) -> tuple[Path, ...] | None:
    info = model_info(model)
    return None if info is None else info.files


def choose_spare(clusters: Sequence[str], labels: Sequence[int | None]) -> set[str]:
    """Choose a third of the photographs, spread evenly: of those without a label if they are enough.

    Example:
        >>> sorted(choose_spare(["a", "b", "c", "c", "d", "e", "f"], [1, 1, None, 2, None, None, 1]))
        ['d', 'e']
        >>> sorted(choose_spare(["a", "b", "c", "d", "e", "f"], [1, 1, 2, 2, 3, 3]))
        ['a', 'd']
    """
    labelled = dict.fromkeys(clusters, False)
    for cluster, label in zip(clusters, labels, strict=True):
        labelled[cluster] |= label is not None
    wanted = len(labelled) // 3
    bare = [cluster for cluster, known in labelled.items() if not known]
    pool = bare if len(bare) >= wanted else list(labelled)
    return {pool[i * len(pool) // wanted] for i in range(wanted)}
