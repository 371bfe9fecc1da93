"""Published files fetched through their libraries: into their own caches, in one sentence where it fails."""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from spectral.errors import SpectralError
from spectral.models.checkpoint import explain_unreadable

RANDOM = "@random"
HUB_TIMEOUT = 10.0  # seconds until a silent hub counts as unreachable
_PICKLE = b"\x80"  # how torch's older files begin; the newer ones are zip archives


@contextmanager
def fetching(asked: str, by_hand: str = "") -> Iterator[None]:
    """Let a library fetch its weights: unpickling tensors only, giving up soon, failing in one sentence.

    torchvision and antialiased_cnns unpickle whatever a file holds; torch's environment switch is the one way
    to forbid that from outside. They also wait for a silent server without end.
    """
    allowed = {
        key: os.environ.pop(key, None)
        for key in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    }
    patience = socket.getdefaulttimeout()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    socket.setdefaulttimeout(HUB_TIMEOUT)
    try:
        yield
    except Exception as error:  # four libraries' network and file errors have no common base
        raise SpectralError(_explain_fetch(asked, error, by_hand)) from error
    finally:
        socket.setdefaulttimeout(patience)
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        os.environ.update({key: value for key, value in allowed.items() if value is not None})


def _explain_fetch(asked: str, error: Exception, by_hand: str) -> str:
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or library in ("huggingface_hub", "httpx", "httpx2", "requests"):
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return (
            f"{asked}: its published weights could not be fetched ({reason}); {by_hand}without the hub use "
            f"'bundled/resnet20', '{asked}{RANDOM}' (structure only), or the path of a local file with "
            f"architecture={asked!r}"
        )
    return f"{asked}: its weights were found but not loaded: {explain_unreadable(error)}"


def require_hub(source: Any) -> None:
    """Ask the hub once, with a timeout: timm retries an unreachable one for a minute, file by file."""
    import huggingface_hub as hub

    if not source.hf_hub_id:
        return
    names = [source.hf_hub_filename] if source.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(find_in_hub_cache(source.hf_hub_id, name) for name in names):
        return
    with suppress(hub.errors.EntryNotFoundError):  # it answered; timm knows the other names of files
        hub.get_hf_file_metadata(hub.hf_hub_url(source.hf_hub_id, names[0]), timeout=HUB_TIMEOUT)


def fetch_from_hub(repository: str, name: str) -> Path:
    """Return a file of the hub: as it lies in the cache, else downloaded into it."""
    import huggingface_hub as hub

    cached = find_in_hub_cache(repository, name)
    if cached is None:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), timeout=HUB_TIMEOUT)
    return cached or Path(hub.hf_hub_download(repository, name))


def find_in_hub_cache(repository: str, name: str) -> Path | None:
    """Return a file of the hub as it lies in the cache, None if it doesn't."""
    import huggingface_hub as hub

    found = hub.try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


def download(url: str, path: Path) -> None:
    """Fetch a torch file; what arrives is kept only if it is one, whole, and no web page about a quota."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(url, str(arriving), progress=True)
        with arriving.open("rb") as file:
            torch_file = zipfile.is_zipfile(file) or (file.seek(0) == 0 and file.read(1) == _PICKLE)
        if not torch_file:
            raise OSError("what arrived is no complete weights file")
        os.replace(arriving, path)
    finally:
        arriving.unlink(missing_ok=True)
