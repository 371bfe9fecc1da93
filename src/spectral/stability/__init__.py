"""How stable a network is when its input moves: predictions, feature maps, and which site is to blame."""

from spectral.stability.attribution import ALL_SITES, attribute_instability
from spectral.stability.consistency import PROTOCOLS, draw_shifts, find_crop_source, measure_consistency
from spectral.stability.equivariance import EQUIVARIANCE_SHIFTS, compare_moved, measure_equivariance
from spectral.stability.lattice import find_total_stride
from spectral.stability.scores import measure_stability
from spectral.stability.shifts import fourier_shift
from spectral.stability.summary import summarize_stability
from spectral.stability.sweeps import DIAGONAL_STEPS, measure_diagonal, measure_worst_shift

__all__ = [
    "ALL_SITES",
    "DIAGONAL_STEPS",
    "EQUIVARIANCE_SHIFTS",
    "PROTOCOLS",
    "attribute_instability",
    "compare_moved",
    "draw_shifts",
    "find_crop_source",
    "find_total_stride",
    "fourier_shift",
    "measure_consistency",
    "measure_diagonal",
    "measure_equivariance",
    "measure_stability",
    "measure_worst_shift",
    "summarize_stability",
]
