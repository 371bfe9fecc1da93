"""Where networks come from: one file per kind of source, which offers names and opens them."""

from spectral.models.sources.base import Loaded, Source, require_name
from spectral.models.sources.huggingface import TRANSFORMERS, is_folder, open_transformers
from spectral.models.sources.libraries import ANTIALIASED, TIMM, TORCHVISION, open_timm, settle_input
from spectral.models.sources.own import FORM, UNKNOWN, open_own
from spectral.models.sources.packaged import PACKAGED
from spectral.models.sources.published import CIFAR_HUB_SOURCE, NULA, ROBUSTBENCH
from spectral.models.sources.timm_config import STEMS as LIBRARY_STEMS
from spectral.models.sources.timm_config import find_config, read_config

# Those that `load_model` takes, but for this project's own checkpoints.
SOURCES: dict[str, Source] = {
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "antialiased": ANTIALIASED,
    "packaged": PACKAGED,
    "cifar-hub": CIFAR_HUB_SOURCE,
    "nula": NULA,
    "robustbench": ROBUSTBENCH,
    "hf": TRANSFORMERS,
}

__all__ = [
    "FORM",
    "LIBRARY_STEMS",
    "SOURCES",
    "UNKNOWN",
    "Loaded",
    "Source",
    "find_config",
    "is_folder",
    "open_own",
    "open_timm",
    "open_transformers",
    "read_config",
    "require_name",
    "settle_input",
]
