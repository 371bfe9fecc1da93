"""Images on their way to a model: adapted, sized, normalised, in the form in which its forward takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spectral.classes import Matching, match_labels
from spectral.data import (
    Images,
    ListedImages,
    Loading,
    Values,
    adapt_images,
    check_workers,
    is_image_set,
    warn_about_skipped,
)
from spectral.data.labels import Joined, join_labels, take_labels
from spectral.data.structures import is_list_of_images
from spectral.errors import SpectralError, warn
from spectral.intake.dependence import describe_dependence
from spectral.intake.given import GivenImages, pick_inputs, split_sizes
from spectral.intake.pixels import (
    AS_IT_IS,
    AS_PIXELS,
    WHITE,
    build_scaled,
    describe_range,
    find_range,
    holds_pixels,
)
from spectral.intake.recipient import Recipient
from spectral.intake.sets import describe_enlarged, describe_repeated, describe_resizing
from spectral.models.preprocessing import explain_assumption
from spectral.network import (
    Call,
    Kinds,
    Scores,
    find_extents,
    read_scores,
    require_clear,
    run_forward,
    spread_layout,
    undisturbed,
)
from spectral.network.inputs import Inputs
from spectral.network.outputs import ADVICE
from spectral.tracing.probe import Probe, probe


class Feed(Recipient):
    """Images on their way to a model.

    Args:
        model: the network.
        images: whatever holds some, see `spectral.data.adapt_images`.
        caller: whose name messages begin with.
        preprocessing: what images in [0, 1] go through, see `find_preparation`; with it, tensors are images
            in [0, 1] too. Without it tensors are passed as they are.
        logits: the user's function from the model's output to class scores.
        pixels: whether the caller works on images in [0, 1], so that tensors must be some.
        name: what tables call the model; by default what `load_model` recorded, or its class.
        workers: processes that decode images; by default as the set says.
        lazily: whether the caller stands images that turn out to be broken when their turn comes, which are
            then left out, and that are told from others only by what is known before.

    Raises:
        SpectralError: for no images, images that can't be brought to the model, or a forward that fails.

    Attributes:
        images: the set.
        preparation: what they go through.
        normalises: whether they are images in [0, 1], which still go through it.
        extents: the image's extent along each of its spatial axes, t, h and w.
        image_type: of the image that the model gets.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> feed = Feed(net, torch.rand(5, 3, 8, 8), caller="example")
        >>> [(indices, inputs.count) for indices, inputs in feed.batches(3)]
        [([0, 1, 2], 3), ([3, 4], 2)]
    """

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        *,
        caller: str,
        preprocessing: Any = None,
        logits: Callable[[Any], Tensor] | None = None,
        pixels: bool = False,
        name: str | None = None,
        workers: int | None = None,
        lazily: bool = False,
    ) -> None:
        super().__init__(model, caller=caller, preprocessing=preprocessing, pixels=pixels, name=name)
        self.logits = logits
        self.notes: list[str] = []
        self.extents: dict[str, int] = {}
        self.image_type = torch.float32
        self._probe: Probe | None = None
        self._call: Call | None = None
        self._first: Inputs | None = None  # image, as the probe saw it
        self._said: set[str] = set()
        self._scales = False
        self._advice = "leave preprocessing out for what is normalised already"
        if pixels:
            self._advice = "give images that aren't normalised, and preprocessing= if the network tells none"
        adapted = adapt_images(images, caller, lazily, choose=self.choose_readings)
        self.images: Images = self._adapt(self._set_loading(adapted, workers))
        if len(self.images) == 0:
            raise SpectralError(f"{caller}: there are no images")
        if self.images.size is None and self.normalises and self.preparation.size is not None:
            self.images = self.images.resized(self.preparation.size)
        if isinstance(self.images, ListedImages) and not (lazily and self.images.size):
            self.images = self.images.checked()
        self.notes += describe_resizing(self.images, self.preparation, self.name)
        if self._probe is None:
            _, raw = next(iter(self.images.batches(1, indices=[0])))
            inputs = self._choose_pixels(raw, "image of each item is")
            if getattr(self.images, "prepared", False) and not isinstance(raw, Inputs):  # which were checked
                self._check_range(inputs.image)
        self._note()
        for note in self.notes:
            warn(f"{caller}: {note}")

    @property
    def example(self) -> Inputs:
        """The first image, ready for the model."""
        return self.load([0])

    @property
    def probe(self) -> Probe:
        """What one forward pass without data says of the model's inputs and outputs."""
        assert self._probe is not None
        return self._probe

    @property
    def layout(self) -> list[Kinds]:
        """The axes of every tensor among the inputs."""
        return self.probe.layout

    def layout_of(self, inputs: Inputs) -> list[Kinds]:
        """Return the axes of every tensor of a batch, as the first image has them."""
        assert self._first is not None
        return spread_layout(self.layout, self._first, inputs)

    @property
    def enlarged(self) -> list[str]:
        """Ids of the images that had to be enlarged."""
        return list(getattr(self.images, "enlarged", ()))

    @cached_property
    def matching(self) -> Matching:
        """Which labels of the images count classes of the network; none beyond the scores that it gives."""
        width = self.probe.width
        if self.logits is not None and any(label is not None for label in self.images.labels):
            with suppress(SpectralError), undisturbed(self.model), torch.no_grad():
                width = self.predict(self.example).shape[-1]  # known to none but the user's own function
        return match_labels(self.model, self.images, width)

    def number_labels(self, labels: Sequence[int | None]) -> list[int | None]:
        """Return labels in the network's numbering; that some aren't among its classes is warned of, once."""
        known = any(label is not None for label in labels)
        if self.matching.reason and known:
            what = "labels are left out" if self.matching.index else "there is no accuracy"
            self._warn_once(f"{what}: {self.matching.reason}")
        return self.matching.renumber(labels)

    def describe_logits(self) -> str | None:
        """Say which part of the output are the class scores; None where there are none."""
        if self.logits is not None:
            return f"logits={getattr(self.logits, '__qualname__', type(self.logits).__name__)}"
        return None if self.probe.head is None else self.probe.scores.where

    def load(self, indices: Sequence[int]) -> Inputs:
        """Return images ready for the model; of a list their sizes may differ, see `pick_alike`."""
        _, raw = next(iter(self.images.batches(len(indices), indices=indices)))
        return self.prepare(self.read(raw))

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Inputs]]:
        """Yield (indices, inputs ready for the model)."""
        for chosen, inputs in self.read_batches(batch_size, indices=indices):
            yield chosen, self.prepare(inputs)

    def read_batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Inputs]]:
        """Yield (indices, inputs before they are normalised and brought to the model)."""
        for chosen, raw in self.images.batches(batch_size, indices=indices):
            for own, inputs in split_sizes(self.read(raw)):
                for sentence in describe_dependence(self.probe, self.name, len(own)):
                    self._warn_once(sentence)
                yield [chosen[i] for i in own], inputs

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            warn(f"{self.caller}: {sentence}")

    def describe_preparation(self) -> dict[str, Any] | None:
        """Return what is done to images before the model gets them, as JSON can hold it; None for nothing.

        That pixels of 8 bits are brought to [0, 1] is a part of it: an earlier version didn't.
        """
        if not self.normalises:
            return None
        scaled = {"divided_by": WHITE} if self._scales else {}
        return {**(self.preparation.describe() or {}), **scaled} or None

    def read(self, raw: Any) -> Inputs:
        """Return a batch of the set in the form in which the model's forward takes it."""
        if isinstance(raw, Inputs):
            return raw
        assert self._call is not None
        inputs = self._build(self._call, raw)
        if (isinstance(raw, Tensor) or is_list_of_images(raw)) and inputs.count != len(raw):
            raise SpectralError(
                f"{self.caller}: {len(raw)} of {self.images.source} are {inputs.count} to {self.name}; give "
                f"all as one tensor, or each with a label"
            )
        if self.normalises and getattr(self.images, "prepared", False):
            self._require_unit(inputs.image)  # nobody but the user knows what it holds
        return inputs

    def _build(self, call: Call, raw: Any) -> Inputs:
        return build_scaled(call, raw) if self.normalises else call.build(raw)

    def run(self, inputs: Inputs) -> Any:
        """Call the model.

        Raises:
            SpectralError: if its forward fails, naming the shape it was given.
        """
        return run_forward(self.model, inputs, self.name)

    def scores(self, output: Any, count: int) -> Scores:
        """Return the class scores in the model's output for so many images."""
        return read_scores(output, count, self.logits)

    def predict(self, inputs: Inputs) -> Tensor:
        """Return the probabilities (B, K), in float64.

        Raises:
            SpectralError: if the model is no classifier, or its forward fails.
        """
        return self.scores(self.run(inputs), inputs.count).probabilities()

    def require_scores(self) -> None:
        """Make sure that the output holds class scores; say so where that isn't known.

        Raises:
            SpectralError: if it doesn't.
        """
        reason, certain = self.probe.find_obstacle()
        if not reason:
            return
        if certain:
            expected = self.probe.scores.expected or f"{self.name} gives no class scores: {reason}"
            raise SpectralError(f"{self.caller}: {expected}; {ADVICE}")
        where = self.probe.scores.where
        warn(
            f"{self.caller}: the {where} of {self.name} is taken as class scores, though "
            f"{self.probe.head.why if self.probe.head else ''}; where they are others, {ADVICE}"
        )

    def _set_loading(self, adapted: Any, workers: int | None) -> Any:
        """Say how a set decodes its images; what holds none that are to be decoded has no say in it."""
        asked = check_workers(workers, self.caller)
        if not hasattr(adapted, "with_loading"):
            return adapted
        own: Loading = adapted.loading
        return adapted.with_loading(
            Loading(own.workers if asked is None else asked, own.pinned or self.device.type == "cuda")
        )

    def _adapt(self, adapted: Any) -> Images:
        """Return a set of images; what a model is called with is seen as one, in the way that it takes."""
        if is_image_set(adapted):
            self.normalises = self.normalises or not getattr(adapted, "prepared", False)
            return adapted  # type: ignore[no-any-return]
        named = adapted if isinstance(adapted, Values) else None
        if named is not None:
            adapted = named.content
        if isinstance(adapted, Tensor) and adapted.numel() == 0:
            raise SpectralError(f"{self.caller}: there are no images")
        if isinstance(adapted, Tensor) and adapted.dtype == torch.uint8:
            return self._adapt_bytes(adapted)
        if isinstance(adapted, Tensor):
            require_clear(adapted, self.model, self.caller)
        inputs = self._choose_pixels(adapted, "image is", first_only=True)
        self._check_range(inputs.image)
        if named is not None:
            return GivenImages(inputs, named.source, named.labels, named.classes)
        source, joined = "tensor" if isinstance(adapted, Tensor) else "inputs", Joined([])
        if self._call is not None and self._call.note:  # a part of it alone is passed
            joined = join_labels([take_labels(adapted)], [inputs.count], self.caller)
        return GivenImages(inputs, source, joined.labels, joined.classes)

    def _adapt_bytes(self, pixels: Tensor) -> Images:
        """Read an 8-bit tensor: as it is where the model takes it so, else as pixels."""
        if not self.normalises:
            try:
                given = GivenImages(self._choose(pixels, first_only=True))
            except SpectralError:
                pass
            else:
                self.notes.append(AS_IT_IS.format(what="tensor is"))
                return given
        self.normalises = True
        if pixels.ndim > 4:  # of a video
            return GivenImages(self._choose_pixels(pixels, "tensor is", first_only=True))
        self.notes.append(AS_PIXELS.format(what="tensor is"))
        return adapt_images(pixels.cpu().numpy(), self.caller)  # type: ignore[no-any-return]

    def _choose_pixels(self, raw: Any, what: str, first_only: bool = False) -> Inputs:
        """Choose how to call the model; with 8-bit pixels as they are where it takes them so, else in [0, 1].

        Args:
            raw: a batch.
            what: it is called in a note.
            first_only: whether one image is tried.
        """
        if not holds_pixels(raw):
            return self._choose(raw, first_only)
        if not self.normalises:
            try:
                inputs = self._choose(raw, first_only)
            except SpectralError:
                self.normalises = True
            else:
                self.notes.append(AS_IT_IS.format(what=what))
                return inputs
        inputs = self._choose(raw, first_only)
        self.notes.append(AS_PIXELS.format(what=what))
        self._scales = True
        return inputs

    def _choose(self, raw: Any, first_only: bool = False) -> Inputs:
        """Choose the first of several ways to call the model that it takes, and keep it.

        Raises:
            SpectralError: if it takes none.
        """
        failure: Exception | None = None
        for call in [Call(lambda inputs: inputs)] if isinstance(raw, Inputs) else self.list_calls(raw):
            try:
                inputs = self._build(call, raw)
                one = self.prepare(pick_inputs(inputs, [0]) if first_only else inputs)
                self._probe = probe(self.model, one, chosen=self.logits is not None)
            except Exception as error:  # a way that isn't meant may fail anywhere
                failure = failure or error
                continue
            self._call, self._first = call, one.map(lambda x, _: x.to("meta"))  # it holds no images
            self.extents = find_extents(one, self._probe.layout)
            self.image_type = one.image.dtype
            if call.note:
                self.notes.append(call.note)
            return inputs
        assert failure is not None
        raise failure

    def _check_range(self, image: Tensor) -> None:
        """Compare the user's own values with what normalisation is known of."""
        if self.normalises:
            self._require_unit(image)
            return
        self.notes += describe_range(image, self.preparation, self.name)

    def _require_unit(self, image: Tensor) -> None:
        """Refuse values that can't be images in [0, 1]."""
        low, high = find_range(image)
        if not (low >= 0 and high <= 1):
            raise SpectralError(
                f"{self.caller}: expected images in [0, 1], which preprocessing then normalises, got values "
                f"from {low:.3g} to {high:.3g}; {self._advice}"
            )

    def _note(self) -> None:
        """Note what was assumed of the images, and how many had to be enlarged."""
        if self.normalises and self.preparation.assumed:
            self.notes.append(explain_assumption(self.model, self.name))
        if not isinstance(self.images, ListedImages):  # of which it isn't known yet
            self.notes += describe_enlarged(self.images, self.enlarged) + describe_repeated(self.images)

    def conclude(self) -> None:
        """Note what shows of the images only when all have been read."""
        if isinstance(self.images, ListedImages):
            found = describe_enlarged(self.images, self.enlarged) + describe_repeated(self.images)
            self.notes += found
            if self.images.book.broken:
                warn_about_skipped(self.images.skipped, self.images.source)
            for note in found:
                warn(f"{self.caller}: {note}")
