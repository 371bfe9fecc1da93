"""Surgery: anti-aliasing layers in place of a trained network's decimations."""

from spectral.surgery.conversion import METHODS, check_methods, convert, convert_alike, read_change, revert
from spectral.surgery.remedies import ACTIVATIONS, BORDERS, check_remedies
from spectral.surgery.report import ConversionReport, ConversionRow, Cost, conversion_report

__all__ = [
    "ACTIVATIONS",
    "BORDERS",
    "METHODS",
    "ConversionReport",
    "ConversionRow",
    "Cost",
    "check_methods",
    "check_remedies",
    "conversion_report",
    "convert",
    "convert_alike",
    "read_change",
    "revert",
]
