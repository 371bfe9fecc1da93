"""Surgery: anti-aliasing layers in place of a trained network's decimations."""

from spectral.surgery.conversion import METHODS, convert, revert
from spectral.surgery.report import ConversionReport, ConversionRow, Cost, conversion_report

__all__ = [
    "METHODS",
    "ConversionReport",
    "ConversionRow",
    "Cost",
    "conversion_report",
    "convert",
    "revert",
]
