"""Why a network's answer changes when its image moves: decimation, nonlinearities, borders, position."""

from spectral.causes.cause import SOURCES, Cause, Source, Where, check_sources, choose_causes
from spectral.causes.ideal import Idealized, Plans, check_factor, find_causes, idealize
from spectral.causes.memo import Memo, Offset, Turn
from spectral.causes.upsampling import Upsampling, find_upsampling

__all__ = [
    "SOURCES",
    "Cause",
    "Idealized",
    "Memo",
    "Offset",
    "Plans",
    "Source",
    "Turn",
    "Upsampling",
    "Where",
    "check_factor",
    "check_sources",
    "choose_causes",
    "find_causes",
    "find_upsampling",
    "idealize",
]
