"""The spectral-aliasing study: five phases, each runnable alone and in order, over one shared measurement.

Beside it: a survey of architectures (phase 8), the coverage of libraries, and training with a penalty.
"""

from spectral.study.options import PHASES, PRESETS, StudyOptions, run_phase_script, run_study, study_options

__all__ = ["PHASES", "PRESETS", "StudyOptions", "run_phase_script", "run_study", "study_options"]
