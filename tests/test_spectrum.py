"""Power spectra and radial profiles against closed forms and the direct transform."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.errors import SpectralError
from spectral.metrics.spectrum import (
    compute_power_spectrum,
    compute_radial_profile,
    frequency_grid,
    log_power_spectrum,
    normalized_radius,
    radial_frequencies,
)

QUICK = settings(max_examples=30)
SIZES = [(1, 1), (2, 2), (1, 7), (16, 1), (2, 3), (7, 9), (8, 8), (14, 14), (33, 47), (56, 56)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tone(size: tuple[int, int], k: int, l: int, angle: float = 0.3) -> torch.Tensor:  # noqa: E741
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    turns = (k * y % size[0]).double() / size[0] + (l * x % size[1]).double() / size[1]
    return torch.cos(2 * torch.pi * turns + angle)


class TestPowerSpectrum:
    @pytest.mark.parametrize("size", SIZES)
    def test_equals_the_direct_transform(self, size):
        x = noise(2, 3, *size)
        expected = reference.power_spectrum(x)
        np.testing.assert_allclose(
            compute_power_spectrum(x).numpy(), expected, rtol=1e-12, atol=1e-12 * expected.mean()
        )
        np.testing.assert_allclose(
            compute_power_spectrum(x.astype(np.float32)).numpy(),
            expected,
            rtol=1e-5,
            atol=1e-6 * expected.mean(),
        )

    @pytest.mark.parametrize("size", SIZES)
    def test_parseval(self, size):
        x = noise(*size)
        total = compute_power_spectrum(x).sum().item()
        assert total == pytest.approx(size[0] * size[1] * (x**2).sum(), rel=1e-12)

    @pytest.mark.parametrize("size", SIZES)
    def test_impulse_is_flat(self, size):
        x = torch.zeros(size, dtype=torch.float64)
        x[size[0] // 3, size[1] // 2] = -3
        torch.testing.assert_close(
            compute_power_spectrum(x), torch.full(size, 9.0, dtype=torch.float64), rtol=1e-12, atol=0
        )

    @pytest.mark.parametrize("size", SIZES)
    def test_constant_is_all_dc(self, size):
        P = compute_power_spectrum(torch.full(size, 0.5, dtype=torch.float64))
        expected = torch.zeros(size, dtype=torch.float64)
        expected[size[0] // 2, size[1] // 2] = (size[0] * size[1] / 2) ** 2
        torch.testing.assert_close(P, expected, rtol=1e-12, atol=1e-20 * expected.max().item())

    @pytest.mark.parametrize("size", [(8, 8), (7, 9), (9, 14)])
    @pytest.mark.parametrize(("k", "l"), [(2, 0), (0, 3), (2, 2), (-3, 1), (3, -3)])
    def test_tone_has_two_bins(self, size, k, l):  # noqa: E741
        P = compute_power_spectrum(tone(size, k, l))
        expected = torch.zeros(size, dtype=torch.float64)
        for sign in (1, -1):
            expected[size[0] // 2 + sign * k, size[1] // 2 + sign * l] = (size[0] * size[1] / 2) ** 2
        torch.testing.assert_close(P, expected, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize(
        ("size", "k", "l", "corner"), [((8, 6), 4, 0, (0, 3)), ((8, 6), 0, 3, (4, 0)), ((8, 6), 4, 3, (0, 0))]
    )
    def test_nyquist_tone_has_one_bin_at_minus_one_half(self, size, k, l, corner):  # noqa: E741
        P = compute_power_spectrum(tone(size, k, l, angle=0))
        assert P[corner].item() == pytest.approx(48**2, rel=1e-12)
        assert P.sum().item() == pytest.approx(48**2, rel=1e-12)

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((5, 6), (5, 6)), ((3, 5, 6), (5, 6)), ((4, 3, 5, 6), (4, 5, 6)), ((1, 1, 5, 6), (1, 5, 6))],
    )
    def test_shapes(self, shape, expected):
        assert compute_power_spectrum(torch.zeros(shape)).shape == expected
        assert compute_power_spectrum(np.zeros(shape)).shape == expected

    def test_mean_over_channels_and_per_image(self):
        x = torch.from_numpy(noise(3, 4, 6, 5))
        P = compute_power_spectrum(x)
        for image in range(3):
            single = torch.stack([compute_power_spectrum(x[image, c]) for c in range(4)]).mean(0)
            torch.testing.assert_close(P[image], single, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(P[image], compute_power_spectrum(x[image]), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_raised(self, dtype):
        x = torch.from_numpy(noise(2, 12, 10)).to(dtype)
        P = compute_power_spectrum(x)
        assert P.dtype == torch.float32
        assert torch.equal(P, compute_power_spectrum(x.float()))

    def test_half_beyond_its_own_range(self):
        # 60000² · 64² is far beyond float16
        assert compute_power_spectrum(
            torch.full((8, 8), 60000.0, dtype=torch.float16)
        ).max().item() == pytest.approx(
            float(torch.tensor(60000.0, dtype=torch.float16)) ** 2 * 64**2, rel=1e-6
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype_is_kept(self, dtype):
        assert compute_power_spectrum(torch.ones(4, 4, dtype=dtype)).dtype == dtype

    @pytest.mark.parametrize("dtype", [">f8", "<f8"])
    def test_strided_and_byte_swapped_arrays(self, dtype):
        x = noise(8, 9)
        P = compute_power_spectrum(x.astype(dtype)[::2, ::-1])
        np.testing.assert_allclose(P.numpy(), reference.power_spectrum(x[::2, ::-1]), rtol=1e-11, atol=1e-11)

    def test_read_only_arrays_come_without_a_warning(self):
        x = noise(4, 4)
        x.setflags(write=False)
        once = not torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                compute_power_spectrum(x)
        finally:
            torch.set_warn_always(not once)

    def test_input_is_left_alone(self):
        x = noise(3, 6, 6)
        before = x.copy()
        compute_power_spectrum(x, window="hann")
        np.testing.assert_array_equal(x, before)

    def test_memory_format_does_not_matter(self):
        x = torch.from_numpy(noise(2, 3, 8, 8))
        last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            compute_power_spectrum(last), compute_power_spectrum(x), rtol=1e-12, atol=1e-12
        )

    @QUICK
    @given(
        st.integers(1, 12), st.integers(1, 12), st.integers(-15, 15), st.integers(-15, 15), st.integers(0, 99)
    )
    def test_roll_invariant_and_point_symmetric(self, height, width, dy, dx, seed):
        x = torch.from_numpy(noise(2, height, width, seed=seed))
        P = compute_power_spectrum(x)
        torch.testing.assert_close(
            compute_power_spectrum(x.roll((dy, dx), (1, 2))), P, rtol=1e-11, atol=1e-11 * P.mean().item()
        )
        natural = torch.fft.ifftshift(P)
        mirrored = natural.flip((0, 1)).roll((1, 1), (0, 1))
        torch.testing.assert_close(natural, mirrored, rtol=1e-11, atol=1e-11 * P.mean().item())

    @QUICK
    @given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-3, 1e3))
    def test_quadratic_in_amplitude_and_transposes(self, height, width, gain):
        x = torch.from_numpy(noise(height, width))
        P = compute_power_spectrum(x)
        torch.testing.assert_close(
            compute_power_spectrum(-gain * x), gain**2 * P, rtol=1e-11, atol=1e-14 * gain**2
        )
        torch.testing.assert_close(compute_power_spectrum(x.T), P.T, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 9), (16, 12)])
    def test_hann_window(self, size):
        axes = [0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in size]
        taper = np.outer(*axes)
        taper /= np.sqrt((taper**2).mean())
        x = noise(2, *size)
        expected = reference.power_spectrum(x * taper)
        np.testing.assert_allclose(
            compute_power_spectrum(x, window="hann").numpy(), expected, rtol=1e-10, atol=1e-10
        )

    def test_gradients_on_both_paths(self):
        x = torch.from_numpy(noise(2, 3, 5)).requires_grad_()
        assert torch.autograd.gradcheck(compute_power_spectrum, (x,))
        assert torch.autograd.gradcheck(lambda t: compute_power_spectrum(t, window="hann"), (x,))
        torch.testing.assert_close(
            compute_power_spectrum(x).detach(), compute_power_spectrum(x.detach()), rtol=1e-13, atol=1e-13
        )

    def test_grids_cached_under_inference_mode_serve_gradients(self):
        x = torch.from_numpy(noise(10, 19))  # a size no other test uses: the grids are made here
        with torch.inference_mode():
            compute_radial_profile(compute_power_spectrum(x, window="hann"))
        x.requires_grad_()
        compute_radial_profile(compute_power_spectrum(x, window="hann")).sum().backward()
        assert torch.isfinite(x.grad).all()


class TestMoreAxes:
    @pytest.mark.parametrize("size", [(1, 1, 1), (1, 6, 5), (4, 3, 6), (5, 7, 8), (3, 2, 4, 5)])
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
    def test_equals_numpys_transform(self, size, leading):
        x = noise(*leading, *size)
        axes = tuple(range(-len(size), 0))
        expected = np.abs(np.fft.fftshift(np.fft.fftn(x, axes=axes), axes=axes)) ** 2
        expected = expected.mean(-len(size) - 1) if leading else expected
        P = compute_power_spectrum(x, axes=len(size))
        np.testing.assert_allclose(P.numpy(), expected, rtol=1e-11, atol=1e-11)

    def test_one_frame_is_an_image(self):
        x = torch.from_numpy(noise(2, 3, 6, 5))
        for window in (None, "hann"):
            video = compute_power_spectrum(x[:, :, None], window, axes=3)
            torch.testing.assert_close(video[:, 0], compute_power_spectrum(x, window), rtol=1e-12, atol=1e-12)

    def test_hann_window_has_unit_mean_square_on_every_axis(self):
        size = (5, 6, 7)
        axes = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in size]
        taper = axes[0][:, None, None] * axes[1][:, None] * axes[2]
        taper /= np.sqrt((taper**2).mean())
        x = noise(*size)
        expected = compute_power_spectrum(x * taper, axes=3)
        torch.testing.assert_close(
            compute_power_spectrum(x, "hann", axes=3), expected, rtol=1e-11, atol=1e-11
        )

    @pytest.mark.parametrize(
        ("shape", "axes", "wanted"),
        [
            ((4, 4), 3, r"\(T, H, W\), \(C, T, H, W\) or \(B, C, T, H, W\), got \(4, 4\)"),
            ((1, 1, 1, 4, 4, 4), 3, r".* or \(B, C, T, H, W\), got \(1, 1, 1, 4, 4, 4\)"),
            ((4, 4), 4, r"\(N1, N2, N3, N4\), \(C, N1, N2, N3, N4\) or"),
        ],
    )
    def test_wrong_rank(self, shape, axes, wanted):
        with pytest.raises(SpectralError, match=f"compute_power_spectrum: expected shape {wanted}"):
            compute_power_spectrum(torch.ones(shape), axes=axes)


class TestBadMaps:
    @pytest.mark.parametrize(
        ("x", "sentence"),
        [
            (torch.ones(4), r"expected shape \(H, W\), \(C, H, W\) or \(B, C, H, W\), got \(4,\)"),
            (torch.ones(1, 1, 1, 4, 4), r"got \(1, 1, 1, 4, 4\)"),
            (torch.ones(4, 4, dtype=torch.int64), r"expected a real floating-point map, got torch.int64"),
            (
                torch.ones(4, 4, dtype=torch.complex64),
                r"expected a real floating-point map, got torch.complex64",
            ),
            (np.ones((4, 4), np.uint8), r"expected a real floating-point map, got uint8"),
            (np.ones((4, 4), np.uint16), r"expected a real floating-point map, got uint16"),
            (np.ones((4, 4), np.longdouble), r"expected a real floating-point map, got float128|longdouble"),
            (np.array([["a"]]), r"expected a real floating-point map, got <U1"),
            ([[1.0, 2.0]], r"expected a torch tensor or a numpy array, got list"),
            (torch.ones(3, 0, 4), r"the map is empty, got shape \(3, 0, 4\)"),
            (torch.full((4, 4), math.nan), r"the map has NaN or infinite values"),
            (torch.full((4, 4), math.inf), r"the map has NaN or infinite values"),
            (torch.full((4, 4), 1e30), r"overflows float32 when squared"),
        ],
    )
    def test_power_spectrum_refuses(self, x, sentence):
        with pytest.raises(SpectralError, match="compute_power_spectrum: .*" + f"(?:{sentence})"):
            compute_power_spectrum(x)

    def test_one_bad_image_in_a_batch(self):
        x = torch.ones(3, 2, 4, 4)
        x[1, 1, 2, 3] = math.nan
        with pytest.raises(SpectralError, match="NaN"):
            compute_power_spectrum(x)

    def test_unknown_window(self):
        with pytest.raises(SpectralError, match="window must be None or 'hann', got 'hamming'"):
            compute_power_spectrum(torch.ones(4, 4), window="hamming")

    @pytest.mark.parametrize("function", [compute_radial_profile, log_power_spectrum])
    def test_others_refuse(self, function):
        with pytest.raises(
            SpectralError, match=rf"{function.__name__}: expected shape \(…, H, W\), got \(4,\)"
        ):
            function(torch.ones(4))
        with pytest.raises(SpectralError, match=rf"{function.__name__}: expected a real floating-point map"):
            function(torch.ones(4, 4, dtype=torch.int32))


class TestRadialProfile:
    @pytest.mark.parametrize("size", SIZES)
    def test_equals_exact_rings(self, size):
        P = noise(*size) ** 2
        np.testing.assert_allclose(compute_radial_profile(P).numpy(), reference.radial_profile(P), rtol=1e-12)
        np.testing.assert_allclose(
            compute_radial_profile(P.astype(np.float32)).numpy(), reference.radial_profile(P), rtol=1e-5
        )

    def test_by_hand_at_4x4(self):
        # Bins −2 … 1 on each axis. Ring 1 holds DC's eight neighbours, ring 2 the six of radius 2 and √5.
        P = torch.tensor([[8.0, 3, 2, 3], [3, 1, 1, 1], [2, 1, 9, 1], [3, 1, 1, 1]])
        assert compute_radial_profile(P).tolist() == pytest.approx([9, 1, (2 * 2 + 4 * 3) / 6, 8])

    @pytest.mark.parametrize("size", [(9, 9), (16, 16), (12, 20)])
    def test_power_on_one_ring_stays_there(self, size):
        radius = normalized_radius(size)
        for r, rho in enumerate(radial_frequencies(size).tolist()):
            on_ring = (radius - rho).abs() < 1 / min(size) - 1e-6
            profile = compute_radial_profile(on_ring.double())
            assert profile[r].item() > 0
            assert profile.sum().item() == pytest.approx(profile[r].item())

    def test_flat_power_gives_flat_profile_and_no_ring_is_empty(self):
        for height in range(1, 41):
            for width in range(1, 41):
                profile = compute_radial_profile(torch.ones(height, width))
                assert torch.equal(profile, torch.ones_like(profile)), (height, width)
                assert len(profile) == len(radial_frequencies((height, width)))

    def test_leading_axes(self):
        P = torch.from_numpy(noise(2, 3, 6, 8) ** 2)
        profile = compute_radial_profile(P)
        assert profile.shape[:2] == (2, 3)
        torch.testing.assert_close(profile[1, 2], compute_radial_profile(P[1, 2]))

    def test_gradient(self):
        P = torch.from_numpy(noise(4, 5) ** 2).requires_grad_()
        assert torch.autograd.gradcheck(compute_radial_profile, (P,))

    def test_centres(self):
        # One bin of the shorter axis is ρ = 2/5 wide; the corner (2/5, 4/9) has ρ = 1.2: ring 3.
        assert radial_frequencies((5, 9)).tolist() == pytest.approx([0, 0.4, 0.8, 1.2])


class TestGrids:
    @pytest.mark.parametrize("size", SIZES)
    def test_frequencies_are_true_ones(self, size):
        f_u, f_v = frequency_grid(size)
        np.testing.assert_allclose(f_u[:, 0].numpy(), np.fft.fftshift(np.fft.fftfreq(size[0])), atol=1e-16)
        np.testing.assert_allclose(f_v[0].numpy(), np.fft.fftshift(np.fft.fftfreq(size[1])), atol=1e-16)
        assert min(f_u.min(), f_v.min()) >= -0.5
        assert max(f_u.max(), f_v.max()) < 0.5

    def test_radius_at_nyquist_and_corner(self):
        radius = normalized_radius((6, 10))
        assert radius[3, 5].item() == 0
        assert radius[0, 5].item() == radius[3, 0].item() == 1
        assert radius[0, 0].item() == pytest.approx(math.sqrt(2), rel=1e-15)

    def test_log_spectrum(self):
        P = torch.tensor([[0.0, math.e - 1], [1e-9, 1e9]], dtype=torch.float64)
        expected = [[0.0, 1.0], [1e-9 - 5e-19, math.log(1e9 + 1)]]
        np.testing.assert_allclose(log_power_spectrum(P).numpy(), expected, rtol=1e-12)
