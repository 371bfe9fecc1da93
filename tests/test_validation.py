"""Whose fault an error is: an argument is blamed only where it is unfit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import spectral
from spectral.arguments.validation import guard
from spectral.arguments.values import are_integers
from spectral.errors import BrokenJobError, SpectralError


def trip(values: Tensor, count: int = 1) -> bool:
    """Run into a defect of this package, whatever it is given."""
    return are_integers(None)  # type: ignore[arg-type]


def test_a_defect_of_ours_blames_no_argument():
    with pytest.raises(TypeError, match="not iterable") as caught:
        guard(trip)(torch.zeros(3, 3), 100_000)
    assert caught.value.__notes__ == [
        "spectral: trip was given what it takes, so this is a defect of it; please report it"
    ]


def test_the_end_of_another_rank_is_nobodys_defect_here():
    def meet() -> None:
        raise BrokenJobError("a rank of this job ended; start the job again")

    with pytest.raises(BrokenJobError, match=r"^a rank of this job ended; start the job again$") as caught:
        guard(meet)()
    assert not hasattr(caught.value, "__notes__")


def test_an_unfit_argument_is_named_and_the_error_kept_behind_it():
    with pytest.raises(SpectralError, match="trip: count must be a whole number, got the text") as caught:
        guard(trip)(torch.zeros(3), "x")
    assert isinstance(caught.value.__cause__, TypeError)


class Late(nn.Module):
    """Fails in its own way on the second image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.max()) > 1:
            raise LookupError("no such pixel")
        return self.conv(x).mean((2, 3))


def test_an_error_of_the_callers_code_is_said_to_be():
    x = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 2.0)])
    with pytest.raises(Exception, match="no such pixel") as caught:
        spectral.measure(Late(), x, ("avr",), batch_size=1, progress=False)
    if not isinstance(caught.value, SpectralError):
        assert caught.type is LookupError
        assert "test_validation.py, which measure has called" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: spectral.compute_instability(torch.rand(2, 3), []), "at least one shifted"),
        (lambda: spectral.compute_instability(torch.rand(2, 3), [torch.rand(2, 4)]), "of one shape"),
        (lambda: spectral.compute_sis(int, torch.rand(2, 3, 8, 8)), "compute_sis: int fails on these images"),
        (lambda: spectral.convert(nn.Conv2d(3, 3, 3, 2), "flc", where=[], example=8), "where is empty"),
        (lambda: spectral.convert(nn.Conv2d(3, 3, 3, 2), "flc", where=int, example=8), "where fails on site"),
        (lambda: spectral.find_white_noise_ratio((), 2), "expected 2 extents"),
        (lambda: spectral.split_border(torch.rand(3, 3), axes=5), "axes must be from 1 to"),
        (lambda: spectral.make_checkerboard_image(10**9), "size of 1000000000×1000000000 is too large"),
        (lambda: spectral.normalized_radius((10**9, 10**9)), "is too large; at most"),
        (lambda: spectral.frequency_grid((10**9, 1)), "is too large; at most"),
        (lambda: spectral.radial_frequencies((10**6, 10**6)), "is too large; at most"),
    ],
)
def test_what_does_not_fit_together_is_said_where_it_is_known(call, sentence):
    with pytest.raises(SpectralError, match=sentence):
        call()


def test_scalars_of_torch_and_numpy_are_numbers():
    plain = spectral.make_checkerboard_image(4, amplitude=0.25)
    for scalar in (torch.tensor(0.25), np.float32(0.25)):
        assert torch.equal(spectral.make_checkerboard_image(4, amplitude=scalar), plain)


def test_calls_in_inference_mode_give_what_they_give_outside():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 3, 12, 12)
    expected = spectral.measure_instability_budget(net, x, progress=False)
    with torch.inference_mode():
        found = spectral.measure_instability_budget(net, x, progress=False)
        smooth = spectral.convert(net, "blurpool", example=12)
        tuned = spectral.distill(smooth, x, teacher=net, steps=1, progress=False)
        assert torch.is_inference_mode_enabled()
    pd.testing.assert_frame_equal(found, expected)
    for model in (smooth, tuned):
        model(x).sum().backward()  # what is made in that mode has no gradients, ever
