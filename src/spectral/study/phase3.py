"""Phase 3, natural images: AVR layer by layer on many photographs, families compared image by image.

At the input tap (the study's) and at the dense tap, which is what the decimation sees: a blur pool's input
looks worse than a strided convolution's, and its dense map doesn't. Paired tests, Holm-corrected over
all that the table shows. Then at the tap signal, where two networks' maps are alike wherever their norms,
activations and pools stand: AVR per axis without the mean, and the alias power ratio channel by channel.

Example: python experiments/phase3_natural_images.py --limit 200 --out results
"""

from __future__ import annotations

import pandas as pd

from spectral.analysis import TAPS, compare_families, compare_signals, summarize_profiles
from spectral.study.declaration import Phase, Table
from spectral.study.families import Study

PROFILE_IMAGES = 128


def profile_reference(study: Study) -> pd.DataFrame:
    """Radial profiles of the strided network: one image, and mean and 10–90 % range over many."""
    family = study.families[0]
    profiles = pd.concat(study.profile_images(family, PROFILE_IMAGES, tap) for tap in TAPS)
    return summarize_profiles(study.place(family, profiles))


PHASE = Phase(
    "natural images",
    Study,
    (
        Table("per_image", lambda study: study.per_image, seconds=28),
        Table("phase3_layerwise_avr_stats", lambda study, images: compare_families(images, study.families),
              needs=("per_image",), figures=("fig7_layerwise_mean_avr", "fig8_avr_distributions"),
              seconds=6),
        Table("phase3_signal", lambda study: compare_signals(study.signal, study.families),
              seconds=4),
        Table("fig9_radial_profiles_natural", profile_reference, figures=("fig9_radial_profiles_natural",),
              seconds=2),
    ),
)  # fmt: skip
