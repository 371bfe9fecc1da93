"""Phase 1, feature extraction: do hooks and spectra give what known inputs must give?

A natural image, a pixel checkerboard and a constant image pass through every network; power spectra, radial
profiles and AVR at every site, at the input and dense taps.

Example: python experiments/phase1_feature_extraction.py --out results
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from torch import Tensor

from spectral.analysis import TAPS, measure_profiles, measure_spectra
from spectral.study.declaration import Phase, Table
from spectral.study.families import Study
from spectral.synthetic import make_constant_image

LIGHT = 0.9  # of the constant image


def measure_known_inputs(study: Study) -> pd.DataFrame:
    """AVR at the image and every site for a natural image, a checkerboard and a constant."""
    inputs: dict[str, Callable[[str], Tensor]] = {
        "natural": study.natural_image,
        "checkerboard": study.checkerboard,
        "constant": lambda family: _make_constant(study, family),
    }
    frames = []
    for kind, make in inputs.items():
        table = study.measure_images({family: make(family) for family in study.families})
        table.insert(0, "input_kind", kind)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def _make_constant(study: Study, family: str) -> Tensor:
    return study.prepare(family, make_constant_image(study.info(family).preprocessing.size)[None] * LIGHT)


def measure_natural_spectra(study: Study) -> pd.DataFrame:
    """Power per bin at every site and tap for one natural image."""
    return study.measure_each(
        lambda family, *net: measure_spectra(net[0], study.natural_image(family), net[1])
    )


def measure_natural_profiles(study: Study) -> pd.DataFrame:
    """Radial profile at every site and tap for one natural image."""
    return study.measure_each(
        lambda family, model, sites: pd.concat(
            measure_profiles(model, study.natural_image(family), sites, tap) for tap in TAPS
        ).drop(columns="image_index")
    )


PHASE = Phase(
    "feature extraction",
    Study,
    (
        Table("phase1_layerwise_avr", measure_known_inputs, figures=("avr_comparison",), seconds=2),
        Table("fig1_layerwise_power_spectra", measure_natural_spectra,
              figures=("fig1_layerwise_power_spectra",)),
        Table("fig2_radial_profiles", measure_natural_profiles, figures=("fig2_radial_profiles",)),
    ),
)  # fmt: skip
