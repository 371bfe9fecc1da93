"""Images to measure on, read one at a time: samples, dead leaves, STL-10, CIFAR-10 and folders."""

from spectral.data.imageset import ImageItem, ImageSet
from spectral.data.sources import load_images, load_labelled_arrays

__all__ = ["ImageItem", "ImageSet", "load_images", "load_labelled_arrays"]
