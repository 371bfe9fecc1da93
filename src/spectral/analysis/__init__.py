"""Answers about networks: (model or models, images) or tables → tables; each is one line in a notebook.

- One network: `diagnose`, `inspect_sites`, `measure_fixes`, `find_unstable_images`; spectra at its sites by
  `measure_spectra`, `measure_profiles`, `measure_image_avr`, `measure_folding` and `sweep_frequencies`.
- Networks side by side: `compare_models` on the same images, paired; `weigh_models` for stability, accuracy,
  time and arithmetic; `compare_families` and `compare_signals` from what `spectral.measure` gave of each,
  whose rows `lay_out_sites` spreads.
- Under perturbations: `compare_perturbed` and `compare_classes` from predictions; what resampling hides by
  `describe_null_space`, `compute_null_share`, `tabulate_null_frequencies` and `check_blindness`.
- What goes with instability, image by image: `correlate_layers`, `correlate_given_margin`, `regress_layers`,
  `regress_confidence`.
- Over many networks: `correlate_networks` and `compare_pairs`, robustness against aliasing.
- Summaries: `summarize_attribution`, `summarize_equivariance`, `summarize_profiles`, `average_profiles`.

Each has its picture in `spectral.figures`, a function of its table and nothing else:

- per image `plot_measurement`, `plot_stability`, `plot_blame` (of `spectral.attribute_instability`),
  `plot_movement` (of `spectral.measure_equivariance`), `plot_budget_images`, `plot_predictions`,
  `plot_diagonal`; means with intervals `plot_summary`, `plot_stability_summary`, `plot_blame_summary`,
  `plot_instability_budget`, `plot_fixes`;
- networks side by side `plot_compare`, `plot_models`, `plot_perturbed`, `plot_classes`;
- spectra `plot_spectra`, `plot_folding`, `plot_profiles`, `plot_image_avr`, `plot_frequency_sweep`,
  `plot_null_frequencies`, `plot_sensitivity` (of `spectral.measure_fourier_heatmap`).

`spectral.figures.plot_table` finds the picture of a table, and so does ``spectral plot TABLE``.
"""

from spectral.analysis.comparison import compare_models
from spectral.analysis.correlation import (
    correlate_given_margin,
    correlate_layers,
    regress_confidence,
    regress_layers,
    select_loud,
)
from spectral.analysis.details import SiteDetail, inspect_sites
from spectral.analysis.diagnosing import diagnose
from spectral.analysis.diagnosis import Diagnosis, from_measurements, is_diagnosis, read_diagnosis
from spectral.analysis.effects import summarize_attribution, summarize_equivariance
from spectral.analysis.examples import UnstableImages, find_unstable_images
from spectral.analysis.families import compare_families, compare_signals
from spectral.analysis.fixes import ALL_SITES, measure_fixes
from spectral.analysis.layout import lay_out_sites
from spectral.analysis.perturbations import (
    check_blindness,
    compare_classes,
    compare_perturbed,
    compute_null_share,
    describe_null_space,
    tabulate_null_frequencies,
)
from spectral.analysis.robustness import compare_pairs, correlate_networks, place_sites, tabulate_levels
from spectral.analysis.spectra import (
    STUDY_FREQUENCIES,
    TAPS,
    average_profiles,
    measure_folding,
    measure_image_avr,
    measure_profiles,
    measure_spectra,
    summarize_profiles,
    sweep_frequencies,
    tabulate_spectrum,
)
from spectral.analysis.tradeoff import measure_costs, name_device, weigh_models
from spectral.analysis.words import write_headline
from spectral.arguments.validation import guard_room

__all__ = [
    "ALL_SITES",
    "STUDY_FREQUENCIES",
    "TAPS",
    "Diagnosis",
    "SiteDetail",
    "UnstableImages",
    "average_profiles",
    "check_blindness",
    "compare_classes",
    "compare_families",
    "compare_models",
    "compare_pairs",
    "compare_perturbed",
    "compare_signals",
    "compute_null_share",
    "correlate_given_margin",
    "correlate_layers",
    "correlate_networks",
    "describe_null_space",
    "diagnose",
    "find_unstable_images",
    "from_measurements",
    "inspect_sites",
    "is_diagnosis",
    "lay_out_sites",
    "measure_costs",
    "measure_fixes",
    "measure_folding",
    "measure_image_avr",
    "measure_profiles",
    "measure_spectra",
    "name_device",
    "place_sites",
    "read_diagnosis",
    "regress_confidence",
    "regress_layers",
    "select_loud",
    "summarize_attribution",
    "summarize_equivariance",
    "summarize_profiles",
    "sweep_frequencies",
    "tabulate_levels",
    "tabulate_null_frequencies",
    "tabulate_spectrum",
    "weigh_models",
    "write_headline",
]

guard_room(globals())
