"""Phase 1, feature extraction: do hooks and spectra give what known inputs must give?

A natural image, a pixel checkerboard and a constant image pass through every network; power spectra, radial
profiles and AVR at every site, at the input and dense taps.

Example: python experiments/phase1_feature_extraction.py --out results
"""

from __future__ import annotations

import pandas as pd

from spectral.metrics import compute_avr
from spectral.spectrum import compute_power_spectrum
from spectral.study.common import TAPS, Study, tabulate_spectrum
from spectral.synthetic import make_constant_image


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    study.write_table("phase1_layerwise_avr", measure_known_inputs(study))
    study.write_table("fig1_layerwise_power_spectra", spectra_of_natural_image(study))
    study.write_table("fig2_radial_profiles", profiles_of_natural_image(study))
    study.draw("fig1_layerwise_power_spectra", "fig2_radial_profiles", "avr_comparison")


def measure_known_inputs(study: Study) -> pd.DataFrame:
    """AVR at the image and every site for a natural image, a checkerboard and a constant."""
    frames = []
    for kind in ("natural", "checkerboard", "constant"):
        images = {}
        for family in study.families:
            if kind == "natural":
                images[family] = study.natural_image(family)
            elif kind == "checkerboard":
                images[family] = study.checkerboard(family)
            else:
                size = study.info(family).preprocessing.size
                images[family] = study.prepare(family, make_constant_image(size)[None] * 0.9)
        table = study.measure_avr(images)
        table.insert(0, "input_kind", kind)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def spectra_of_natural_image(study: Study) -> pd.DataFrame:
    """Power per bin at every site and tap for one natural image."""
    frames = []
    for family in study.families:
        for tap in TAPS:
            captured = study.capture(family, study.natural_image(family), tap)
            for site in study.sites[family]:
                power = compute_power_spectrum(captured[site.name])[0]
                avr = float(compute_avr(power, site.stride))
                facts = {**study.describe(family, site), "tap": tap, "avr": avr}
                frames.append(tabulate_spectrum(power).assign(**facts))
    return pd.concat(frames, ignore_index=True)


def profiles_of_natural_image(study: Study) -> pd.DataFrame:
    """Radial profile at every site and tap for one natural image."""
    frames = [
        study.measure_profiles(family, study.natural_image(family), tap)
        for family in study.families
        for tap in TAPS
    ]
    return pd.concat(frames, ignore_index=True).drop(columns="image_index")
