"""Images to measure on, read one at a time: samples, dead leaves, data sets, files, and what people hold."""

from spectral.data.adapt import adapt_images, is_image_set, open_images
from spectral.data.imageset import ImageItem, ImageSet, warn_about_skipped
from spectral.data.labels import digest_labels
from spectral.data.listed import LISTED, ListedImages, Seen
from spectral.data.loading import Loading, check_workers
from spectral.data.protocol import Images
from spectral.data.readings import FEW
from spectral.data.sources import load_images, load_labelled_arrays
from spectral.data.subset import Subset
from spectral.data.values import Values, find_example, names_values

__all__ = [
    "FEW",
    "LISTED",
    "ImageItem",
    "ImageSet",
    "Images",
    "ListedImages",
    "Loading",
    "Seen",
    "Subset",
    "Values",
    "adapt_images",
    "check_workers",
    "digest_labels",
    "find_example",
    "is_image_set",
    "load_images",
    "load_labelled_arrays",
    "names_values",
    "open_images",
    "warn_about_skipped",
]
