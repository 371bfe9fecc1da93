from . import (
    analysis,
    data,
    figures,
    layers,
    models,
    operators,
    perturb,
    stats,
    study,
    sweeping,
    synthetic,
    table,
)
from .analysis import Diagnosis, diagnose, inspect_sites, measure_fixes, read_diagnosis
from .budget import measure_instability_budget, summarize_instability_budget
from .causes import Cause, Upsampling, find_causes, find_upsampling, idealize
from .classification import classify
from .data import ImageSet, load_images
from .errors import BrokenJobError, SpectralError, SpectralWarning
from .hooks.capture import Capture
from .hooks.extractor import FeatureExtractor
from .imaging import compute_imaging_ratio, measure_imaging
from .latency import count_macs, measure_latency
from .measurement import measure
from .metrics.aliasing import (
    compute_alias_categories,
    compute_alias_metrics,
    compute_alias_power_ratio,
    compute_am,
    compute_am_relative,
    compute_avr,
)
from .metrics.channels import compute_channel_alias_ratios, find_white_noise_ratio, split_border
from .metrics.instability import (
    compute_instability,
    compute_logit_jitter,
    compute_logit_spread,
    compute_sis,
)
from .metrics.spectrum import (
    compute_power_spectrum,
    compute_radial_profile,
    frequency_grid,
    log_power_spectrum,
    normalized_radius,
    radial_frequencies,
)
from .models import list_bundled, load_model, model_info
from .monitor import AliasingMonitor, AliasingPenalty
from .operators import register_operator
from .page import write_page, write_report
from .pairing import match_sites, pair_sites
from .perturb import (
    Corruption,
    PerturbedImages,
    make_perturbation,
    measure_fourier_heatmap,
    measure_predictions,
    measure_robustness,
)
from .processes.ranks import alone
from .repair.averaging import average_weights
from .repair.distillation import distill
from .repair.recalibration import recalibrate
from .repair.reconstruction import reconstruct
from .runs.folder import read
from .runs.summary import summarize_measurements
from .sites import Site, find_global_pools, find_reductions, find_sites, get_stride_layers
from .stability import (
    attribute_instability,
    fourier_shift,
    measure_consistency,
    measure_diagonal,
    measure_equivariance,
    measure_stability,
    measure_worst_shift,
    summarize_stability,
)
from .surgery import ConversionReport, conversion_report, convert, convert_alike, revert
from .sweeping import sweep
from .synthetic import (
    exact_bin_frequencies,
    make_checkerboard_image,
    make_constant_image,
    make_dead_leaves_image,
    make_sinusoidal_image,
    make_white_noise_image,
)
from .training import Recipe, train

__version__: str

__all__ = [
    "AliasingMonitor", "AliasingPenalty", "BrokenJobError", "Capture", "Cause", "ConversionReport",
    "Corruption", "Diagnosis", "FeatureExtractor", "ImageSet", "PerturbedImages", "Recipe", "Site",
    "SpectralError", "SpectralWarning", "Upsampling", "alone", "analysis", "attribute_instability",
    "average_weights",
    "classify", "compute_alias_categories", "compute_alias_metrics", "compute_alias_power_ratio",
    "compute_am", "compute_am_relative", "compute_avr", "compute_channel_alias_ratios",
    "compute_imaging_ratio", "compute_instability", "compute_logit_jitter", "compute_logit_spread",
    "compute_power_spectrum", "compute_radial_profile", "compute_sis", "conversion_report", "convert",
    "convert_alike",
    "count_macs", "data", "diagnose", "distill", "exact_bin_frequencies", "figures", "find_causes",
    "find_global_pools", "find_reductions", "find_sites", "find_upsampling", "find_white_noise_ratio",
    "fourier_shift", "frequency_grid", "get_stride_layers", "idealize", "inspect_sites", "layers",
    "list_bundled", "load_images", "load_model", "log_power_spectrum", "make_checkerboard_image",
    "make_constant_image", "make_dead_leaves_image", "make_perturbation", "make_sinusoidal_image",
    "make_white_noise_image", "match_sites", "measure", "measure_consistency", "measure_diagonal",
    "measure_equivariance", "measure_fixes", "measure_fourier_heatmap", "measure_imaging",
    "measure_instability_budget", "measure_latency", "measure_predictions", "measure_robustness",
    "measure_stability", "measure_worst_shift", "model_info", "models", "normalized_radius",
    "operators", "pair_sites", "perturb", "radial_frequencies", "read", "read_diagnosis", "recalibrate",
    "reconstruct", "register_operator", "revert", "split_border", "stats", "study",
    "summarize_instability_budget",
    "summarize_measurements", "summarize_stability", "sweep", "sweeping", "synthetic", "table", "train",
    "write_page", "write_report",
]  # fmt: skip
