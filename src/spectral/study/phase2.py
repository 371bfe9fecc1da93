"""Phase 2, synthetic inputs: does AVR behave as sampling theory predicts?

A frequency sweep on exact bins and at the study's ten frequencies, a checkerboard through every network, and
where the energy above the new Nyquist frequency lands when a site decimates.

Example: python experiments/phase2_synthetic.py --out results
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from spectral.metrics import compute_alias_power_ratio, compute_avr, split_aliases
from spectral.spectrum import compute_power_spectrum
from spectral.study.common import TAPS, Study, tabulate_spectrum
from spectral.synthetic import exact_bin_frequencies, make_sinusoidal_image

# Ten equal steps from 0.1 to 0.9 of Nyquist; the study prints them rounded.
STUDY_FREQUENCIES = tuple(np.linspace(0.1, 0.9, 10))


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    study.write_table("phase2a_frequency_sweep", sweep_frequencies(study))
    study.write_table("phase2b_architecture_comparison", compare_on_checkerboard(study))
    study.write_table("fig6_aliasing_folding", follow_folding(study))
    study.draw("fig4_avr_vs_frequency", "fig5_layerwise_avr_comparison", "fig6_aliasing_folding")


def sweep_frequencies(study: Study) -> pd.DataFrame:
    """AVR of horizontal sinusoids: of the image itself, and at the first site of every network."""
    rows: list[dict[str, Any]] = []
    for family in study.families:
        size = study.info(family).preprocessing.size
        first = study.sites[family][0]
        for grid, frequency in sweep_grid(size):
            image = 2 * make_sinusoidal_image(size, frequency)[None].to(study.options.device) - 1
            shared = {"model": study.names[family], "family": family, "grid": grid, "frequency": frequency}
            avr = float(compute_avr(compute_power_spectrum(image)[0], 2))
            rows.append({**shared, "site": "image", "layer": "image", "layer_index": -1, "tap": "input",
                         "avr": avr})  # fmt: skip
            for tap in TAPS:
                captured = study.capture(family, image, tap)[first.name]
                avr = float(compute_avr(compute_power_spectrum(captured)[0], first.stride))
                rows.append({**shared, **study.describe(family, first), "tap": tap, "avr": avr})
    columns = ["model", "family", "site", "layer", "layer_index", "tap", "grid", "frequency", "avr"]
    return pd.DataFrame(rows)[columns]


def sweep_grid(size: tuple[int, int]) -> Iterator[tuple[str, float]]:
    """Yield (grid name, normalised frequency): at most 32 exact bins, then the study's ten."""
    exact = [f for f in exact_bin_frequencies(size) if f <= 1]
    for frequency in exact[:: max(1, len(exact) // 32)]:
        yield "exact bin", float(frequency)
    for frequency in STUDY_FREQUENCIES:
        yield "study", float(frequency)


def compare_on_checkerboard(study: Study) -> pd.DataFrame:
    """AVR at every site for a ±1 checkerboard, the highest frequency an image can hold."""
    return study.measure_avr({family: study.checkerboard(family) for family in study.families})


def follow_folding(study: Study) -> pd.DataFrame:
    """Spectra before and after the first decimation of a natural image, and of the aliases alone."""
    frames = []
    for family in study.families:
        site = study.sites[family][0]
        dense = study.capture(family, study.natural_image(family), "dense")[site.name]
        kept, aliases = split_aliases(dense, site.stride, site.geometry.phase, site.output_size)
        ratio = float(compute_alias_power_ratio(dense, site.stride, site.geometry.phase, site.output_size))
        panels = {"dense": dense, "output": kept, "alias_free": kept - aliases, "aliases": aliases}
        for panel, maps in panels.items():
            table = tabulate_spectrum(compute_power_spectrum(maps)[0])
            facts: dict[str, Any] = {
                "model": study.names[family], "family": family, "site": site.name, "panel": panel,
                "stride_h": site.stride[0], "stride_w": site.stride[1], "alias_power_ratio": ratio,
            }  # fmt: skip
            frames.append(table.assign(**facts))
    return pd.concat(frames, ignore_index=True)
