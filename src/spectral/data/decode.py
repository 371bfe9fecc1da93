"""Image files to pixels: every mode, depth and orientation becomes upright RGB, without surprises."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from spectral.errors import SpectralError

COMMON = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
# Read where the installed Pillow can.
_FURTHER = frozenset({
    ".apng", ".avif", ".dib", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf",
    ".jpx", ".mpo", ".pbm", ".pgm", ".pnm", ".qoi", ".tga",
})  # fmt: skip

_ORIENTATION_TAG = 0x0112
_DEEPEST, _BYTE = 65535, 255
_DEEP = ("PNG", "PPM")  # formats whose gray of 16 bits may come in 32
MOST_BYTES = 2**29  # of an image file

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=1)
def list_extensions() -> tuple[str, ...]:
    """Return the endings of the image files that can be read here, the common ones first.

    Example:
        >>> ".jfif" in list_extensions()
        True
    """
    known = Image.registered_extensions()
    further = {ending for ending in _FURTHER if known.get(ending) in Image.OPEN}
    return (*sorted(COMMON), *sorted(further))


class CheckedFile(NamedTuple):
    """What is known of an image file once it has been decoded: its digest and (height, width)."""

    digest: str
    size: tuple[int, int]


def read_image(path: Path, digest: str | None = None) -> Image.Image:
    """Read an image file as RGB, upright.

    Args:
        path: the file. Of an animation the first frame is read.
        digest: what `check_image` said of it; a file that has changed since is refused.

    Returns:
        A PIL image of mode "RGB", or of mode "F" with values in [0, 1] if the file is 16-bit grayscale,
        which 8 bits would truncate. Transparent pixels are laid over white; colour profiles are not applied;
        16-bit colour is read with 8 bits.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow makes of a file that it cannot decode.
        SpectralError: if it is too large, or has changed.
    """
    return decode_image(read_bytes(path), digest)


def decode_image(content: bytes, digest: str | None = None) -> Image.Image:
    """Decode the bytes of an image file; as `read_image`."""
    if digest is not None and digest_bytes(content) != digest:
        raise SpectralError("it has changed since it was loaded")
    with Image.open(io.BytesIO(content)) as image:
        return to_rgb(image)


def check_image(path: Path) -> CheckedFile:
    """Read the whole file and decode it, to find out now, not in the middle of a run, that it is broken.

    A JPEG is decoded at an eighth of its size, which still reads it to its end but takes less time.

    Args:
        path: the file.

    Raises:
        SpectralError: if the file can't be decoded; the message is the reason alone, without the path.

    Units: the size is in pixels, after orientation.
    """
    return inspect_image(partial(read_bytes, path))


def inspect_image(read: Callable[[], bytes]) -> CheckedFile:
    """Decode what is read; as `check_image`."""
    try:
        content = read()
        with Image.open(io.BytesIO(content)) as image:
            _refuse_huge(image)
            width, height = image.size
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                turned = image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
                image.draft(image.mode, (1, 1))
                image.load()
                size = (width, height) if turned else (height, width)
            else:
                upright = to_rgb(image)
                size = (upright.height, upright.width)
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise SpectralError(describe_failure(error)) from error
    return CheckedFile(digest_bytes(content), size)


def describe_failure(error: Exception) -> str:
    """Say why a file could not be read, without the path that Pillow and Python put into their messages.

    Args:
        error: what reading raised.

    Example:
        >>> describe_failure(FileNotFoundError(2, "No such file or directory", "photos/cat.png"))
        'No such file or directory'
    """
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def fit_image(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize the shorter side (antialiased) and crop the centre, so that the image has exactly ``size``.

    Args:
        image: of mode "RGB" or "F".
        size: (height, width).
        resample: the filter. An image that has the size already keeps its pixels.

    Units: pixels.

    Example:
        >>> fit_image(Image.new("RGB", (40, 20)), (10, 10), Image.Resampling.BICUBIC).size
        (10, 10)
    """
    return ImageOps.fit(image, (size[1], size[0]), method=resample)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Turn an image as `read_image` returns it into a tensor.

    Args:
        image: of mode "RGB" (0 … 255) or "F" (0 … 1, gray; what a filter overshoots is cut off).

    Shape: (3, H, W), float32, in [0, 1].

    Example:
        >>> to_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0].tolist()
        [1.0, 0.0, 0.20000000298023224]
    """
    # In numpy: torch would split this little work over threads, at more cost than gain when others want them.
    pixels = np.asarray(image)
    if image.mode == "F":
        return torch.from_numpy(np.clip(pixels, 0, 1)[None].repeat(3, axis=0))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(255))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright and into mode "RGB", or "F" with values in [0, 1] where it is of 16-bit gray.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow makes of one that it cannot decode.

    Example:
        >>> to_rgb(Image.new("L", (2, 1), 51)).mode
        'RGB'
    """
    _refuse_huge(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_unit_gray(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def read_slice(path: Path, start: int, length: int) -> bytes:
    """Read an image's bytes out of a file that holds several.

    Raises:
        OSError, SpectralError: if there is no such file, or there are too many of them.
    """
    _refuse_long(length)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def read_bytes(path: Path) -> bytes:
    """Read an image file.

    Raises:
        OSError, SpectralError: if there is no such file, or it is too long.
    """
    _refuse_long(path.stat().st_size)
    return path.read_bytes()


def _refuse_long(size: int) -> None:
    if size > MOST_BYTES:
        raise SpectralError(f"its {size / 2**20:.0f} MiB are more than {MOST_BYTES / 2**20:.0f}; convert it")


def _refuse_huge(image: Image.Image) -> None:
    """Refuse an image whose pixels don't fit: a few bytes of a file may unfold to gigabytes.

    Raises:
        SpectralError: saying how large it is.
    """
    limit = Image.MAX_IMAGE_PIXELS
    count = image.width * image.height
    if limit is not None and count * max(3, len(image.getbands())) > 3 * limit:
        raise SpectralError(
            f"its {image.width}×{image.height} pixels are more than {limit / 1e6:.0f} million; make it "
            f"smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def digest_bytes(content: bytes) -> str:
    """Return what is compared of an image's bytes."""
    return hashlib.sha256(content).hexdigest()[:32]


def _to_unit_gray(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray by 65535; wider integers and floats beyond [0, 1] have no known white."""
    values = np.asarray(image)
    white = 1 if image.mode == "F" else _DEEPEST
    if image.mode == "I" and image.format not in _DEEP and 0 < values.max() <= _BYTE:
        raise ValueError(f"32-bit values up to {values.max()}, so which of them is white is unknown")
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"values outside 0 to {white}, so which of them is white is unknown")
    return Image.fromarray(np.divide(values, white, dtype=np.float32, casting="unsafe"))


def map_in_threads(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    """Call a function on many arguments, in as many threads as helps with decoding; results come in order."""
    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, arguments)
