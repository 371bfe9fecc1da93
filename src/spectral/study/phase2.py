"""Phase 2, synthetic inputs: does AVR behave as sampling theory predicts?

A frequency sweep on exact bins and at the study's ten frequencies, a checkerboard through every network, and
where the energy above the new Nyquist frequency lands when a site decimates.

Example: python experiments/phase2_synthetic.py --out results
"""

from __future__ import annotations

import pandas as pd

from spectral.analysis import measure_folding, sweep_frequencies
from spectral.study.declaration import Phase, Table
from spectral.study.families import Study

SWEEP = ["model", "family", "site", "layer", "layer_index", "tap", "grid", "frequency", "avr"]


def sweep_families(study: Study) -> pd.DataFrame:
    """AVR of horizontal sinusoids: of the image itself, and at the first site of every network."""
    return study.measure_each(
        lambda family, model, sites: sweep_frequencies(model, study.info(family).preprocessing.size, sites)
    )[SWEEP]


def compare_on_checkerboard(study: Study) -> pd.DataFrame:
    """AVR at every site for a ±1 checkerboard, the highest frequency an image can hold."""
    return study.measure_images({family: study.checkerboard(family) for family in study.families})


def follow_folding(study: Study) -> pd.DataFrame:
    """Spectra before and after the first decimation of a natural image, and of the aliases alone."""
    return study.measure_each(
        lambda family, model, sites: measure_folding(model, study.natural_image(family), sites[0])
    ).drop(columns=["layer", "layer_index"])


PHASE = Phase(
    "synthetic inputs",
    Study,
    (
        Table("phase2a_frequency_sweep", sweep_families, figures=("fig4_avr_vs_frequency",), seconds=4),
        Table("phase2b_architecture_comparison", compare_on_checkerboard,
              figures=("fig5_layerwise_avr_comparison",)),
        Table("fig6_aliasing_folding", follow_folding, figures=("fig6_aliasing_folding",)),
    ),
)  # fmt: skip
