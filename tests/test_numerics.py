"""The numerics room: matrices against transforms, both routes at large sizes, one cache bounded in bytes."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import spectral
from spectral.metrics.aliasing import compute_alias_metrics, compute_avr
from spectral.metrics.bands import measure_bands
from spectral.metrics.sampling import violation_mask
from spectral.metrics.spectrum import compute_power_spectrum, compute_radial_profile
from spectral.numerics import lattice as lattice_module
from spectral.numerics.cache import CACHE, BoundedCache, remember
from spectral.numerics.finer import evaluate_finely
from spectral.numerics.lattice import Lattice, analyse_axis, decimate_low_pass, synthesise_axis
from spectral.numerics.matrices import (
    as_matrix,
    interpolation_rows,
    low_pass_rows,
    resampling_rows,
    wave_rows,
)
from spectral.numerics.resampling import interpolate, resample
from spectral.numerics.resampling import low_pass as pass_low

QUICK = settings(max_examples=60)
MIB = 2**20


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def low_pass(x: np.ndarray, step: int, gain: np.ndarray | None = None) -> np.ndarray:
    """Zero |f| ≥ 1/(2s) along the last axis by numpy's transform; nothing at s = 1."""
    spectrum = np.fft.fft(x)
    bins = np.abs(np.fft.fftfreq(x.shape[-1]) * x.shape[-1]).round().astype(int)
    kept = (2 * step * bins < x.shape[-1]) | (step == 1)
    return np.fft.ifft(spectrum * kept * (1 if gain is None else gain)).real


class TestMatrices:
    @QUICK
    @given(st.integers(1, 40), st.integers(2, 6), st.booleans(), st.data())
    def test_low_pass_rows_are_the_transform_s(self, extent, step, hamming, data):
        first = data.draw(st.integers(0, min(step, extent) - 1))
        spacing = data.draw(st.sampled_from([1, step]))
        count = data.draw(st.integers(1, len(range(first, extent, spacing))))
        gain = 0.54 + 0.46 * np.cos(2 * np.pi * np.arange(extent) / extent) if hamming else None
        expected = low_pass(np.eye(extent), step, gain).T[first::spacing][:count]
        rows = low_pass_rows(extent, step, first, spacing, count, hamming)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-14)

    def test_large_rows_keep_their_digits(self):
        for extent in (1021, 1024):
            rows = low_pass_rows(extent, 2, 0, 2, -(-extent // 2))
            np.testing.assert_allclose(rows, low_pass(np.eye(extent), 2).T[::2], rtol=0, atol=2e-15)

    @pytest.mark.parametrize("build", [low_pass_rows, interpolation_rows, wave_rows])
    def test_numpy_and_torch_agree(self, build):
        for extent in (1, 6, 9):
            arguments = {
                low_pass_rows: (extent, 3, 0, 3, -(-extent // 3), True),
                interpolation_rows: (extent, 3),
            }
            chosen = arguments.get(build, (extent, extent // 2))
            traced = build(*chosen, arange=torch.arange)
            assert traced.dtype == torch.float64
            np.testing.assert_allclose(traced.numpy(), build(*chosen), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("factor", [1, 2, 3])
    @pytest.mark.parametrize("extent", [1, 2, 5, 8])
    def test_interpolation_passes_through_the_samples_and_keeps_tones(self, extent, factor):
        rows = interpolation_rows(extent, factor)
        x = np.random.default_rng(0).standard_normal(extent)
        np.testing.assert_allclose((rows @ x)[::factor], x, rtol=0, atol=1e-14)
        n, m = np.arange(extent), np.arange(factor * extent) / factor
        for k in range((extent + 1) // 2):
            wave = rows @ np.cos(2 * np.pi * k * n / extent + 0.3)
            np.testing.assert_allclose(wave, np.cos(2 * np.pi * k * m / extent + 0.3), rtol=0, atol=1e-13)
        if extent % 2 == 0:  # the Nyquist bin's sine is not among the samples
            wave = rows @ np.cos(np.pi * n)
            np.testing.assert_allclose(wave, np.cos(np.pi * m), rtol=0, atol=1e-13)


class TestRoutes:
    @QUICK
    @given(st.data())
    def test_products_and_transforms_agree(self, data):
        size = data.draw(st.lists(st.integers(1, 16), min_size=1, max_size=3))
        step = [data.draw(st.integers(1, 5)) for _ in size]
        first = [data.draw(st.integers(0, min(s, n) - 1)) for s, n in zip(step, size, strict=True)]
        fits = [len(range(p, n, s)) for p, n, s in zip(first, size, step, strict=True)]
        count = [data.draw(st.integers(max(1, n - 1), n)) for n in fits]
        lattices = [Lattice(*axis) for axis in zip(size, step, first, count, strict=True)]
        x = noise(2, *size)
        band = analyse_axis(x, 1, size[0], size[0] // (2 * step[0]))
        expected = decimate_low_pass(x, 1, lattices), band
        with pytest.MonkeyPatch.context() as patch:  # the thresholds are where both are as fast
            patch.setattr(lattice_module, "ANY_FROM", 1)
            found = decimate_low_pass(x, 1, lattices), analyse_axis(x, 1, size[0], size[0] // (2 * step[0]))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        alone = decimate_low_pass(x, 1, lattices[:1])
        torch.testing.assert_close(synthesise_axis(band, 1, lattices[0]), alone, rtol=0, atol=1e-13)

    @pytest.mark.parametrize(
        ("size", "stride", "phase"),
        [
            ((1024, 1024), (2, 2), (0, 0)), ((1024, 1024), (2, 2), (1, 0)), ((1023, 1021), (2, 2), (0, 0)),
            ((1025, 300), (2, 3), (1, 2)), ((257, 1536), (4, 2), (0, 0)), ((512, 256), (2, 1), (0, 0)),
            ((1022, 254), (2, 2), (0, 0)), ((1031, 256), (1, 4), (0, 3)),
        ],
    )  # fmt: skip
    def test_values_at_large_sizes(self, size, stride, phase):
        x = noise(1, *size).numpy()
        low = x
        for axis, step in zip((1, 2), stride, strict=True):
            low = low_pass(low.swapaxes(axis, -1), step).swapaxes(axis, -1)
        kept, alias_free = (m[:, phase[0] :: stride[0], phase[1] :: stride[1]] for m in (x, low))
        distance, whole = (np.abs(np.fft.fft2(m)).sum() for m in (kept - alias_free, kept))
        frequency = [2 * s * np.abs(np.fft.fftfreq(n)) for s, n in zip(stride, size, strict=True)]
        power = np.abs(np.fft.fft2(x[0])) ** 2
        above = frequency[0][:, None] ** 2 + frequency[1] ** 2 > 1 + 1e-12
        expected = {
            "am": distance / kept.size,
            "am_relative": distance / whole,
            "alias_power_ratio": ((kept - alias_free) ** 2).sum() / (kept**2).sum(),
            "avr": (power * above).sum() / power.sum(),
        }
        for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            maps = torch.from_numpy(x).to(dtype)
            metrics = compute_alias_metrics(maps, stride, phase)
            metrics["avr"] = compute_avr(compute_power_spectrum(maps), stride)
            bands = measure_bands(maps[None], stride, phase, metrics=tuple(expected)).values()
            for name, value in expected.items():
                assert metrics[name].item() == pytest.approx(value, rel=rel), name
                assert bands[name].item() == pytest.approx(value, rel=rel), name

    def test_gradients_of_the_transforms(self, monkeypatch):
        monkeypatch.setattr(lattice_module, "ANY_FROM", 1)
        x = noise(1, 2, 6, 5).requires_grad_()
        for metric in ("am", "alias_power_ratio"):
            assert torch.autograd.gradcheck(lambda t, m=metric: compute_alias_metrics(t, 2)[m], (x,))
            assert torch.autograd.gradcheck(
                lambda t, m=metric: measure_bands(t, (2, 2), metrics=(m,)).values()[m], (x,)
            )

    def test_a_new_large_size_needs_little_memory(self):
        # A fresh process: what is resident at its peak, beyond torch itself and a plain transform.
        program = """
import resource, sys, torch, spectral
x = torch.rand(1024, 1024)
spectral.compute_power_spectrum(x), spectral.compute_am(x[:64, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spectral.compute_am(x), spectral.compute_alias_power_ratio(x[:1021, :1023])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown / (2**20 if sys.platform == "darwin" else 2**10))
"""
        run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert float(run.stdout) < 64  # a cube of N³/8 float64 would be 1 GiB


class TestCache:
    def test_is_bounded_in_bytes_whatever_the_sizes(self):
        layers = [spectral.layers.make_pool(name, 1) for name in ("flc", "asap", "ideal", "blurpool")]
        layers[-1].as_products = True
        for n in range(200, 1000, 70):
            x = torch.zeros(1, 1, n, n + 1)
            spectral.compute_am(x)
            measure_bands(x, (2, 2), metrics=("am_relative", "avr_separable"))
            compute_radial_profile(compute_power_spectrum(x[0, 0], window="hann"))
            for layer in layers:
                layer(x)
            spectral.make_perturbation("resize-0.5")(x)
            assert CACHE.nbytes <= 64 * MIB
        assert len(CACHE) > 10

    def test_nothing_in_the_package_keeps_tensors_elsewhere(self):
        import gc

        def reachable():
            gc.collect()
            tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.device.type == "cpu"]
            tensors = [t for t in tensors if t.layout is torch.strided]  # others have no storage of their own
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            return sum(storages.values())

        CACHE.clear()
        before = reachable()
        for n in range(100, 900, 50):
            x = torch.zeros(1, 1, n, n)
            spectral.compute_am(x)
            measure_bands(x, (2, 2), metrics=("am", "avr"))
            compute_radial_profile(compute_power_spectrum(x[0, 0], window="hann"))
        del x
        assert reachable() - before <= CACHE.nbytes
        CACHE.clear()
        assert reachable() - before < MIB

    def test_least_recently_used_goes_first(self):
        cache = BoundedCache(4096)
        built = []

        def get(key, size=250):
            return cache.get(key, lambda: built.append(key) or torch.zeros(size))

        get("a"), get("b")  # 2024 bytes each
        get("a"), get("c")
        assert built == ["a", "b", "c"]
        get("a"), get("b")
        assert built == ["a", "b", "c", "b"]
        assert get("large", 2000).shape == (2000,)
        assert len(cache) == 2
        assert cache.nbytes <= 4096
        cache.clear()
        assert (len(cache), cache.nbytes) == (0, 0)

    def test_devices_and_types_are_kept_apart(self):
        x = torch.ones(1)
        single, double = as_matrix(wave_rows, x, 7, 2), as_matrix(wave_rows, x.double(), 7, 2)
        assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
        assert as_matrix(wave_rows, x.half(), 7, 2) is single
        assert as_matrix(wave_rows, torch.ones(1, device="meta"), 7, 2).is_meta

    def test_what_a_trace_or_a_mode_builds_does_not_stay(self):
        size = (37, 41)  # of no other test
        with FakeTensorMode():
            as_matrix(wave_rows, torch.zeros(1), 37, 5)
            violation_mask(size, (2, 2), like=torch.zeros(1))
        with torch.inference_mode():
            spectral.compute_am(torch.zeros(*size))
        with torch.device("meta"):
            mask = violation_mask((37, 43), (2, 2))
        assert mask.device.type == "cpu"
        x = noise(*size).requires_grad_()
        spectral.compute_am(x).backward()
        assert torch.isfinite(x.grad).all()
        assert type(as_matrix(wave_rows, x, 37, 5)) is torch.Tensor

    def test_threads_share_it(self):
        cache, errors = BoundedCache(200_000), []

        def work(seed):
            rng = np.random.default_rng(seed)
            try:
                for key in rng.integers(0, 60, 400).tolist():
                    value = cache.get(key, lambda k=key: torch.full((1000,), float(k)))
                    assert value[0] == key
                    assert cache.nbytes <= cache.limit
            except Exception as error:  # pytest sees no exception of another thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert cache.nbytes == sum(size for _, size in cache._entries.values())

    def test_tuples_and_masks(self):
        ring, count = remember(_pair, 3)
        assert remember(_pair, 3)[0] is ring
        assert (ring.dtype, count.dtype) == (torch.int64, torch.float64)


def _pair(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(size), torch.ones(size, dtype=torch.float64)


@pytest.mark.parametrize("extent", [1024, 1025])
def test_long_axes_are_resampled_as_by_their_matrices(extent):
    x = noise(2, extent, 2)
    half, count = (extent - 1) // 2, extent // 3
    found = {
        (low_pass_rows, extent, 3, 1, 3, count): pass_low(x, 1, 3, 1, 3, count),
        (low_pass_rows, extent, 2, 0, 1, extent, True): pass_low(x, 1, 2, 0, 1, extent, hamming=True),
        (interpolation_rows, extent, 2): interpolate(x, 1, 2),
        (resampling_rows, extent, count, 2, 99): resample(x, 1, count, 2, 99),
        (resampling_rows, extent, count, 2, half, True): resample(x, 1, count, 2, half, nyquist=True),
    }
    for (build, *arguments), y in found.items():
        expected = torch.einsum("ij,bjc->bic", as_matrix(build, x, *arguments), x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    (same,) = evaluate_finely(lambda x: 2 * x, (x,), {}, [{"h": 1}], [{"h": 1}], factor=2)
    nyquist = (torch.arange(extent) % 2 * -2 + 1)[:, None] * (1 - extent % 2)
    expected = 2 * (x - (x * nyquist).mean(1, keepdim=True) * nyquist)
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("graph", [False, True])
def test_a_batch_in_blocks_gives_what_each_image_gives_alone(graph):
    """Each image fills most of a block; what is broadcast to them goes with every block."""
    x, gates, bias = noise(3, 3, 256, 256), noise(3, 3, 1, 1), noise(1, 3, 1, 1)
    axes = {"h": 2, "w": 3}

    def gated(x, gates, bias):
        return torch.relu(x * gates + bias), x > 0

    def evaluate(*args):
        return evaluate_finely(gated, args, {}, [axes, {}, {}], [axes, axes], factor=2)

    with torch.set_grad_enabled(graph):
        found = evaluate(x, gates, bias)
        alone = [evaluate(x[i : i + 1], gates[i : i + 1], bias) for i in range(len(x))]
    for y, parts in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(y, torch.cat(parts), rtol=0, atol=1e-12)


def test_seconds_of_audio_need_no_gigabytes():
    net = torch.nn.Sequential(
        torch.nn.Conv1d(1, 2, 5, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten()
    )
    smooth, x = spectral.convert(net, "flc", example=torch.zeros(1, 1, 64)), noise(1, 1, 2**17).float()
    assert smooth(x).shape == (1, 2)
    with spectral.idealize(net):
        assert net(x).shape == (1, 2)
