"""The spectral-aliasing study in phases, each runnable alone and in order, over one shared measurement.

Five are the published study's. Beside them: NULA's perturbations (phase 6), anti-aliasing layers (7), a
survey of architectures (8), robustness (9) and the instability budget (10).
"""

from spectral.study.entry import run_phase_script, run_study
from spectral.study.options import PRESETS, StudyOptions, study_options

__all__ = ["PRESETS", "StudyOptions", "run_phase_script", "run_study", "study_options"]
