"""Anti-aliased downsampling layers, one file each."""

from spectral.layers.blurpool import BlurPool2d

__all__ = ["BlurPool2d"]
