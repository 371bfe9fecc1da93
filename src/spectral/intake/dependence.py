"""On what else than the image the values of an image depend, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from spectral.errors import name_few
from spectral.tracing.probe import Probe


def describe_dependence(found: Probe, name: str, count: int) -> Iterator[str]:
    """Say what of a model's forward makes an image's values depend on other images, on chance or on history.

    Args:
        found: what the model does.
        name: of the model.
        count: images of a batch.
    """
    if found.mixed_by and count > 1:
        what = f"{name} works over all images of a batch ({', '.join(found.mixed_by)})"
        yield (
            f"{what}, so that the values of each depend on the others in it; batch_size=1 gives each "
            f"image's own"
        )
    if found.drawn_by:
        what = f"{name} draws random numbers in its forward ({', '.join(found.drawn_by)})"
        yield (
            f"{what}, so that two passes of one image differ: what compares passes, as SIS does, "
            f"has these differences in it, and no two runs have the same values"
        )
    if found.kept_in:
        what = f"the output of {name} depends on what its forward has kept of earlier passes"
        yield (
            f"{what} ({name_few(found.kept_in)}), so that the values of an image depend on those before "
            f"it, and what compares passes, as SIS does, has these differences in it"
        )
