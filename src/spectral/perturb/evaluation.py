"""What a network says of perturbed images, image by image, and perturbed images as a set of their own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from torch import Tensor, nn

from spectral.arguments.values import as_integer, as_list
from spectral.data import Images
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.measurement import find_clusters, insert_clusters
from spectral.models.preprocessing import find_preparation
from spectral.network import Take, arrange_image, make_inputs, read_scores
from spectral.perturb.operators import Identity, Perturbation, make_perturbation
from spectral.processes.ranks import shared
from spectral.sharing import Sharing


@shared
def measure_predictions(
    model: nn.Module,
    images: Any,
    perturbations: Perturbation | str | Sequence[Perturbation | str],
    *,
    batch_size: int = 128,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Classify every image as it is and under each perturbation.

    Args:
        model: classifier.
        images: as for `spectral.measure`, in [0, 1], tensors too; they are normalised after they were
            perturbed.
        perturbations: operators, or their names as `make_perturbation` knows them; one, or several.
        batch_size: images per forward pass.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image and perturbation, ``clean`` first: image, cluster, label (the number of its
        class in the network, missing where it has none),
        perturbation, prediction, confidence (the probability of that class), clean_prediction, agree (both
        are the same) and correct (missing where the label is unknown). Accuracy is the mean of ``correct``,
        and the share of predictions that a perturbation leaves alone the mean of ``agree``.

    Raises:
        SpectralError: for an unknown perturbation, two of one name, no images, or a model that is no
            classifier.

    Example:
        >>> from spectral import load_images, load_model
        >>> net = load_model("bundled/resnet20@random")
        >>> table = measure_predictions(net, load_images("synthetic", 32, 4), ["decimate-2"], progress=False)
        >>> table["perturbation"].value_counts().to_dict()
        {'clean': 4, 'decimate-2': 4}
    """
    chosen = [make_perturbation(p) if isinstance(p, str) else p for p in as_list(perturbations)]
    tests = [Identity(), *(p for p in chosen if not isinstance(p, Identity))]
    names = [p.name for p in tests]
    if len(set(names)) < len(names):
        raise SpectralError(f"measure_predictions: a perturbation is there twice in {', '.join(names)}")
    batch_size = as_integer(batch_size, "measure_predictions: batch_size", least=1)
    feed = Feed(model, images, caller="measure_predictions", preprocessing=preprocessing, logits=logits,
                pixels=True)  # fmt: skip
    classify = Classifier(model, feed)
    images = classify.images
    labels = feed.number_labels(images.labels)
    share = Sharing(feed, batch_size)

    def look(indices: Sequence[int], batch: Tensor) -> pd.DataFrame:
        found = {p.name: classify(p(batch, indices)).max(-1) for p in tests}
        clean = found["clean"].indices.cpu().numpy()
        return pd.concat([
            pd.DataFrame({
                "image": [images.ids[i] for i in indices],
                "label": pd.array([labels[i] for i in indices], dtype="Int64"),
                "perturbation": name,
                "prediction": prediction.cpu().numpy(),
                "confidence": confidence.cpu().numpy(),
                "clean_prediction": clean,
            })
            for name, (confidence, prediction) in found.items()
        ])  # fmt: skip

    frames = share.run(classify.batches, look, "perturbing", progress, leave=False)
    table = insert_clusters(pd.concat(frames, ignore_index=True), images)
    table["agree"] = table["prediction"] == table["clean_prediction"]
    table["correct"] = table["prediction"] == table["label"]  # missing where the label is
    order = {name: i for i, name in enumerate(names)}
    return table.sort_values("perturbation", key=lambda c: c.map(order), kind="stable", ignore_index=True)


class PerturbedImages:
    """Images under a perturbation, seen as a set of images: what `measure` needs to run on them.

    Where the images have no size of their own, they are brought to the network's before they are perturbed.

    Args:
        images: from `load_images`, in [0, 1].
        perturbation: an operator, or its name as `make_perturbation` knows it.

    Raises:
        SpectralError: for an unknown perturbation.

    Example:
        >>> from spectral import load_images
        >>> held = PerturbedImages(load_images("synthetic", 32, 4), "decimate-2")
        >>> held.source, len(held), next(held.batches(3))[1].shape
        ('synthetic under decimate-2', 4, torch.Size([3, 3, 32, 32]))
    """

    def __init__(self, images: Images, perturbation: Perturbation | str) -> None:
        self.images = images
        self.perturbation = make_perturbation(perturbation) if isinstance(perturbation, str) else perturbation
        self.source = f"{images.source} under {self.perturbation.name}"
        self.ids, self.labels, self.size = images.ids, images.labels, images.size
        self.clusters, self.classes = find_clusters(images), getattr(images, "classes", None)

    @property
    def enlarged(self) -> list[str]:
        """Ids of the images that are smaller than their size."""
        return list(getattr(self.images, "enlarged", ()))

    @property
    def fingerprint(self) -> str:
        """Changes whenever a pixel does: hash of the images' own, and of the perturbation."""
        # a name may leave something out, as the std of a checkerboard; another class's repr may be an address
        whole = dataclasses.is_dataclass(self.perturbation)
        facts = (self.images.fingerprint, repr(self.perturbation) if whole else self.perturbation.name)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def resized(self, size: tuple[int, int]) -> PerturbedImages:
        """Return the same images at another size, perturbed there."""
        return PerturbedImages(self.images.resized(size), self.perturbation)

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, perturbed images (B, 3, H, W))."""
        for chosen, batch in self.images.batches(batch_size, indices=indices):
            yield chosen, self.perturbation(batch, chosen)

    def __len__(self) -> int:
        return len(self.images)


class Classifier:
    """A network seen as a function from images in [0, 1] to probabilities (B, K), float64.

    Args:
        model: the network; images go to its device and dtype, normalised as it tells.
        feed: images on their way to it, where these are to be read as well.
    """

    def __init__(self, model: nn.Module, feed: Feed | None = None) -> None:
        self.model, self.feed = model, feed
        self.preparation = find_preparation(model)
        self.like = next(iter(model.parameters()), None)
        # The axes that the network's images have; rows and columns are the last of those that are perturbed.
        self._kinds = feed.layout[0] if feed is not None and len(feed.layout) == 1 else ()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the probabilities of all classes."""
        return read_scores(
            self.output(images), len(images), None if self.feed is None else self.feed.logits
        ).probabilities()

    def logits(self, images: Tensor) -> Tensor:
        """Return the class scores; gradients flow back to the images."""
        found = read_scores(self.output(images), len(images), None if self.feed is None else self.feed.logits)
        found.require()
        assert found.values is not None
        return found.values

    def output(self, images: Tensor) -> Any:
        """Return what the network itself returns."""
        if self.feed is not None:
            own = arrange_image(images, self._kinds, back=True)
            return self.feed.run(self.feed.prepare(make_inputs(own)))
        batch = images if self.like is None else images.to(self.like.device, self.like.dtype)
        return self.model(self.preparation(batch))

    @property
    def images(self) -> Images:
        """The set of images."""
        assert self.feed is not None
        return self.feed.images

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images (B, C, H, W) in [0, 1]); of videos in their own order.

        Raises:
            SpectralError: if the network is no classifier, or takes more than the image.
        """
        assert self.feed is not None
        self.feed.require_scores()
        for chosen, inputs in self.feed.read_batches(batch_size, indices=indices):
            if len(inputs.every_tensor()) > 1:
                raise SpectralError(f"{self.feed.caller}: expected images alone, got several inputs")
            yield chosen, arrange_image(inputs.image, self._kinds)
