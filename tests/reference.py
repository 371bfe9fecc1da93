"""Independent references: numpy in float64 and exact fractions, written from the definitions alone.

Nothing here imports the package, and nothing is fast: transforms are products with DFT matrices, cutoffs are
compared as fractions. ``METRICS.md`` and equations 1–7 of "Aliasing coincides with CNNs vulnerability towards
adversarial attacks" are the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Pair = tuple[int, int]


def dft(x: Array) -> npt.NDArray[np.complex128]:
    """Σ x(m, n) exp(−2πi(km/M + ln/N)) over the last two axes."""
    return _dft_matrix(x.shape[-2]) @ x @ _dft_matrix(x.shape[-1]).T


def _dft_matrix(n: int) -> npt.NDArray[np.complex128]:
    turns = np.outer(np.arange(n), np.arange(n)) % n  # exact: the angle stays below one turn
    return np.exp(-2j * np.pi * turns / n)


def idft(X: npt.NDArray[np.complex128]) -> Array:
    return (np.conj(dft(np.conj(X))) / (X.shape[-2] * X.shape[-1])).real


def power_spectrum(x: Array) -> Array:
    """Mean over channels of |DFT|², DC moved to the centre (index ⌊n/2⌋)."""
    x = np.asarray(x, dtype=np.float64)
    power = np.abs(dft(x)) ** 2
    if x.ndim > 2:
        power = power.mean(axis=-3)
    height, width = x.shape[-2:]
    return np.roll(power, (height // 2, width // 2), axis=(-2, -1))


def frequency(index: int, n: int) -> Fraction:
    """Cycles per pixel of a bin of a DC-centred spectrum."""
    return Fraction(index - n // 2, n)


def is_violation(u: int, v: int, size: Pair, stride: Pair, cutoff: str = "radial") -> bool:
    """Strictly above the limit, in exact arithmetic."""
    a = 2 * stride[0] * frequency(u, size[0])
    b = 2 * stride[1] * frequency(v, size[1])
    return a * a + b * b > 1 if cutoff == "radial" else max(abs(a), abs(b)) > 1


@cache
def violations(size: Pair, stride: Pair, cutoff: str) -> Array:
    """`is_violation` of every bin, as 0 and 1."""
    rows, columns = range(size[0]), range(size[1])
    return np.array([[float(is_violation(u, v, size, stride, cutoff)) for v in columns] for u in rows])


def avr(P: Array, stride: Pair, cutoff: str = "radial", exclude_dc: bool = False) -> float:
    height, width = P.shape
    mask = violations((height, width), stride, cutoff)
    above = whole = 0.0
    for u in range(height):
        for v in range(width):
            is_dc = (u, v) == (height // 2, width // 2)
            if not (exclude_dc and is_dc):
                whole += P[u, v]
            above += mask[u, v] * P[u, v]
    return above / whole if whole > 0 else 0.0


def avr_study(P: Array, stride: int) -> float:
    """The study's own formula, in floats: right at even sizes only."""
    height, width = P.shape
    u, v = np.arange(height)[:, None], np.arange(width)[None]
    radius = np.sqrt(((u - height / 2) / (height / 2)) ** 2 + ((v - width / 2) / (width / 2)) ** 2)
    return float(P[radius > 1 / stride].sum() / P.sum())


def radial_profile(P: Array) -> Array:
    """Mean of P over the bins with r − ½ < radius ≤ r + ½, the radius in bins of the shorter axis."""
    height, width = P.shape
    shorter = min(height, width)
    rings: dict[int, list[float]] = {}
    for u in range(height):
        for v in range(width):
            squared = (frequency(u, height) ** 2 + frequency(v, width) ** 2) * shorter**2
            ring = 0
            while 4 * squared > (2 * ring + 1) ** 2:
                ring += 1
            rings.setdefault(ring, []).append(P[u, v])
    return np.array([np.mean(rings[ring]) for ring in range(max(rings) + 1)])


def low_pass(d: Array, stride: Pair) -> Array:
    """Zero every bin with |f| ≥ 1/(2s) on either axis that is decimated; one of stride 1 is left alone."""
    kept = [
        [s == 1 or abs(_signed(k, n)) * 2 * s < n for k in range(n)]
        for n, s in zip(d.shape[-2:], stride, strict=True)
    ]
    return idft(dft(d) * np.outer(kept[0], kept[1]))


def _signed(k: int, n: int) -> int:
    return k if 2 * k < n else k - n


def split(d: Array, stride: Pair, phase: Pair = (0, 0), size: Pair | None = None) -> tuple[Array, Array]:
    """decimate(d) and decimate(d − L d)."""

    def decimate(x: Array) -> Array:
        y = x[..., phase[0] :: stride[0], phase[1] :: stride[1]]
        return y if size is None else y[..., : size[0], : size[1]]

    return decimate(d), decimate(d - low_pass(d, stride))


def am(
    d: Array, stride: Pair, phase: Pair = (0, 0), size: Pair | None = None, difference: str = "complex"
) -> float:
    """The linear residual form, for one image (C, H, W)."""
    kept, residual = split(d, stride, phase, size)
    if difference == "complex":
        distance = np.abs(dft(residual))
    else:
        distance = np.abs(np.abs(dft(kept - residual)) - np.abs(dft(kept)))
    n_h, n_w = kept.shape[-2:]
    return float(np.mean(distance.sum(axis=(-2, -1)) / (n_h * n_w)))


def am_paper(d: Array, stride: int = 2) -> float:
    """Equations 3–7 bin by bin for one image (C, H, W) whose sides are multiples of ``stride``.

    Equation 5 is read as "on either axis"; the paper writes everything for stride 2, where H − n = n = N.
    """
    distances = []
    for f_s1 in d:
        f_s2 = f_s1[::stride, ::stride]
        (height, width), (n_h, n_w) = f_s1.shape, f_s2.shape
        F_s2 = dft(f_s2) / (n_h * n_w)  # equation 3
        F_up = dft(f_s1) / (height * width)  # equation 4
        for k in range(height):  # equation 5, k ∈ [N/2, 3N/2] or l ∈ [N/2, 3N/2]
            for l in range(width):  # noqa: E741
                if n_h <= 2 * k <= 2 * height - n_h or n_w <= 2 * l <= 2 * width - n_w:
                    F_up[k, l] = 0
        F_s1 = np.zeros_like(F_s2)
        for k in range(n_h):  # equation 6: four corners
            for l in range(n_w):  # noqa: E741
                row = k if 2 * k <= n_h else k + height - n_h
                column = l if 2 * l <= n_w else l + width - n_w
                F_s1[k, l] = F_up[row, column]
        distances.append(np.abs(F_s1 - F_s2).sum())  # equation 7
    return float(np.mean(distances))


def am_relative(d: Array, stride: Pair, phase: Pair = (0, 0)) -> float:
    kept, residual = split(d, stride, phase)
    return float(np.abs(dft(residual)).sum() / np.abs(dft(kept)).sum())


def alias_power_ratio(d: Array, stride: Pair, phase: Pair = (0, 0)) -> float:
    kept, residual = split(d, stride, phase)
    return float((residual**2).sum() / (kept**2).sum())


def violations_nd(size: tuple[int, ...], stride: tuple[int, ...], cutoff: str = "radial") -> Array:
    """Bins of a DC-centred spectrum over any number of axes that lie strictly above the limit, as 0 and 1."""
    mask = np.zeros(size)
    for index in np.ndindex(*size):
        f = [2 * s * frequency(i, n) for i, n, s in zip(index, size, stride, strict=True)]
        mask[index] = sum(x * x for x in f) > 1 if cutoff == "radial" else max(map(abs, f)) > 1
    return mask


def avr_nd(d: Array, stride: tuple[int, ...], cutoff: str = "radial") -> float:
    """One image (C, …): Σ above / Σ, from numpy's own transform."""
    axes = tuple(range(1, d.ndim))
    power = np.fft.fftshift((np.abs(np.fft.fftn(d, axes=axes)) ** 2).mean(0))
    return float((violations_nd(power.shape, stride, cutoff) * power).sum() / power.sum())


def split_nd(d: Array, stride: tuple[int, ...], phase: tuple[int, ...]) -> tuple[Array, Array]:
    """decimate(d) and decimate(d − L d) of one image (C, …) over any number of axes."""
    axes = tuple(range(1, d.ndim))
    spectrum = np.fft.fftn(d, axes=axes)
    for axis, s in zip(axes, stride, strict=True):
        n = d.shape[axis]
        kept = [s == 1 or abs(_signed(k, n)) * 2 * s < n for k in range(n)]
        spectrum *= np.reshape(kept, [n if a == axis else 1 for a in range(d.ndim)])
    lattice = (slice(None), *(slice(p, None, s) for p, s in zip(phase, stride, strict=True)))
    return d[lattice], (d - np.fft.ifftn(spectrum, axes=axes).real)[lattice]


def alias_categories(d: Array, stride: tuple[int, ...], threshold_db: float = 20.0) -> dict[str, float]:
    """Bin by bin and component by component, for one map whose sides are multiples of the stride."""
    spectrum = np.fft.fftn(d) / np.prod(stride)
    count = tuple(n // s for n, s in zip(d.shape, stride, strict=True))
    decimated = np.fft.fftn(d[tuple(slice(None, None, s) for s in stride)])
    threshold = np.abs(decimated).max() * 10 ** (-threshold_db / 20)
    shares = dict.fromkeys(("nonaliased", "aliased", "tangled", "nopass"), 0.0)
    for k in np.ndindex(*count):
        passing = []
        for j in np.ndindex(*stride):
            q = tuple(a + b * n for a, b, n in zip(k, j, count, strict=True))
            if np.abs(spectrum[q]) > threshold:
                f = [Fraction(_signed(a, n), n) for a, n in zip(q, d.shape, strict=True)]
                passing.append(
                    all(s == 1 or abs(x) < Fraction(1, 2 * s) for x, s in zip(f, stride, strict=True))
                )
        kind = {0: "nopass", 1: "nonaliased" if passing == [True] else "aliased"}.get(len(passing), "tangled")
        shares[kind] += 1 / np.prod(count)
    return shares


def softmax(logits: Array) -> npt.NDArray[np.longdouble]:
    e = np.exp(np.asarray(logits, dtype=np.longdouble) - np.max(logits))
    return e / e.sum()


def sis(logits_of: Callable[[Array], Array], image: Array) -> float:
    """¼ Σ (1 − cos) over the four neighbours, for one image (C, H, W), in the widest float there is."""
    p = softmax(logits_of(image))
    total = np.longdouble(0)
    for rows, columns in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        q = softmax(logits_of(np.roll(image, (rows, columns), axis=(1, 2))))
        total += 1 - (p @ q) / np.sqrt((p @ p) * (q @ q))
    return float(total / 4)


def blur_pool(
    x: Array, kernel_size: int | tuple[int, ...], stride: tuple[int, ...], padding_mode: str
) -> Array:
    """Pad, add up the weighed shifts of the map axis by axis, keep every s-th sample.

    One size is for the axes that are decimated; several are for one axis each.
    """
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[padding_mode]
    sizes = kernel_size if isinstance(kernel_size, tuple) else [kernel_size if s > 1 else 1 for s in stride]
    for axis, (k, s) in enumerate(zip(sizes, stride, strict=True), -len(stride)):
        taps = np.array([1.0])
        for _ in range(k - 1):
            taps = np.convolve(taps, [0.5, 0.5])
        lines = np.moveaxis(x, axis, -1)
        widths = [(0, 0)] * (x.ndim - 1) + [((k - 1) // 2, k // 2)]
        padded = np.pad(lines, widths, mode=mode)  # type: ignore[call-overload]
        size = lines.shape[-1]
        blurred = sum(tap * padded[..., i : i + size] for i, tap in enumerate(taps))
        x = np.moveaxis(blurred[..., ::s], -1, axis)
    return x


def channel_alias_ratio(x: np.ndarray, stride: Pair, phase: Pair = (0, 0)) -> float:
    """The headline ratio of one channel, by full complex transforms, one step after the other."""
    x = x.astype(np.float64) - x.mean()
    h, w = x.shape
    jump = np.zeros_like(x)
    jump[0] += x[-1] - x[0]
    jump[-1] += x[0] - x[-1]
    jump[:, 0] += x[:, -1] - x[:, 0]
    jump[:, -1] += x[:, 0] - x[:, -1]
    q, r = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    curvature = 2 * np.cos(2 * np.pi * q / h) + 2 * np.cos(2 * np.pi * r / w) - 4
    curvature[0, 0] = 1
    smooth = np.fft.fft2(jump) / curvature
    smooth[0, 0] = 0
    periodic = x - np.fft.ifft2(smooth).real
    spectrum = np.fft.fft2(periodic)
    for axis, (n, s) in enumerate(zip((h, w), stride, strict=True)):
        cut = (np.abs(np.fft.fftfreq(n)) * 2 * s >= 1 - 1e-12) & (s > 1)
        spectrum = np.where(np.expand_dims(cut, 1 - axis), 0, spectrum)
    low = np.fft.ifft2(spectrum).real
    kept, passed = (m[phase[0] :: stride[0], phase[1] :: stride[1]] for m in (periodic, low))
    weights = np.ones(kept.shape)
    for axis, s in enumerate(stride):
        n = kept.shape[axis]
        if s > 1 and n % 2 == 0:
            index = [slice(None)] * 2
            index[axis] = n // 2
            weights[tuple(index)] *= 0.5
    power = [float((weights * np.abs(np.fft.fft2(m)) ** 2).sum()) for m in (kept - passed, kept)]
    return power[0] / power[1]
