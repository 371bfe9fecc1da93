"""Our layers where timm asks for an anti-aliasing layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectral.errors import SpectralError
from spectral.layers import make_pool


def make_aa_layer(method: str = "blurpool", **options: Any) -> type[nn.Module]:
    """Return what timm takes as ``aa_layer=``: a class whose calls build one of our layers.

    timm asks whether it is a class of its own kinds, and passes a device and a dtype to it.

    Args:
        method: a name in `spectral.layers.LAYERS`.
        options: of that layer.

    Raises:
        SpectralError: if the name or an option is unknown.

    Example:
        >>> make_aa_layer("blurpool", kernel_size=5)(channels=8, stride=2)
        BlurPool2d(8, kernel_size=5, stride=(2, 2), padding_mode='reflect')
    """
    make_pool(method, 8, **options)  # refuses what is unknown before timm builds anything

    class AALayer(nn.Module):
        """Builds the layer."""

        def __new__(
            cls, channels: int | None = None, stride: int = 2, device: Any = None, dtype: Any = None
        ) -> Any:
            if channels is None:
                raise SpectralError(f"make_aa_layer: {method} was asked for without its channels")
            return make_pool(method, channels, stride, **options).to(device=device, dtype=dtype)

    return AALayer
