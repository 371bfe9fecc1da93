"""Networks: published ones by name, our own, and the weights files of both."""

from spectral.models.architectures import ARCHITECTURES, build, family_of
from spectral.models.info import ModelInfo, Preprocessing, model_info
from spectral.models.load import list_bundled, list_models, load_model

__all__ = [
    "ARCHITECTURES",
    "ModelInfo",
    "Preprocessing",
    "build",
    "family_of",
    "list_bundled",
    "list_models",
    "load_model",
    "model_info",
]
