"""Weights on disk: saved as safetensors with a JSON beside, read without running code, loaded strictly."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from spectral.errors import SpectralError, name_few, warn
from spectral.files.atomic import ensure_writable, replacing, require_place, sync, write_whole
from spectral.models.weights_id import hash_state

# Files older than this buffer lack it; it counts training steps and changes nothing in eval mode.
_OPTIONAL_BUFFER = "num_batches_tracked"
# What wrappers (DataParallel, torch.compile, a network with its normalisation) put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
MADE = "made"  # under what the JSON beside weights has what a command made them of
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".th")
_INDEX = (".safetensors.index.json", ".bin.index.json")  # of weights in several files, as transformers writes
_PART = re.compile(r"(.*)-\d{5}-of-\d{5}")
_MOST_UNFOLDED = 2**28  # bytes that a torch file may unfold to beyond its own length


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> Path:
    """Write a model's weights as safetensors and ``metadata`` as JSON of the same stem beside them.

    Both files appear whole or not at all: each is written under a temporary name and renamed, the weights
    last, so that where there are some they have their JSON. It also gets ``weights_id``, so that weights and
    a JSON that don't belong together are noticed.

    Args:
        model: the network; its state dict is saved.
        path: where to, ending in ``.safetensors``; missing folders are made.
        metadata: what JSON can hold. ``architecture`` is needed to load the file without naming one;
            ``family``, ``mean``, ``std``, ``size`` and ``classes`` are read back too.

    Returns:
        The path of the weights.

    Raises:
        SpectralError: if the path has another ending or can't be written, the metadata isn't JSON, or a
            weight isn't finite; nothing is written then.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise SpectralError(f"a checkpoint's name must end in .safetensors, got {str(path)!r}")
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in model.state_dict().items()
    }
    require_finite(state, "the model to save", find_bounds(model))
    try:
        text = json.dumps({**metadata, "weights_id": hash_state(state)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpectralError(
            f"{path}: the checkpoint's metadata can't be written as JSON ({error})"
        ) from error
    try:
        ensure_writable(path.parent)
        with replacing(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state))
            sync(temporary)  # the state of the training is removed then
            write_whole(path.with_suffix(".json"), f"{text}\n".encode("utf-8", "backslashreplace"))
    except SpectralError as error:
        raise SpectralError(f"{path}: the checkpoint can't be written there ({error})") from error
    return path


def refuse_other_checkpoint(path: Path, made: Mapping[str, Any]) -> None:
    """Refuse to write weights where others stand, or a JSON beside them: these would be lost.

    Args:
        path: of the weights.
        made: what the new ones are made of, as `save_checkpoint` is given it under `MADE`.

    Raises:
        SpectralError: naming what differs, or what isn't known of those that stand there.

    Example:
        >>> refuse_other_checkpoint(Path("no/such/net.safetensors"), {"method": "flc"})
    """
    way_out = "choose another file or delete it"
    files = path, path.with_suffix(".json")
    require_place(*files)
    there = [file for file in files if os.path.lexists(file)]
    if not there:
        return
    known = read_metadata(path)
    before = known.get(MADE)
    if not isinstance(before, dict):
        raise SpectralError(f"{there[0]} stands there, and nothing tells what it was made of; {way_out}")
    for key, value in json.loads(json.dumps(made)).items():
        if before.get(key) != value:
            raise SpectralError(f"{there[0]} is of {key} = {before.get(key)!r}, not {value!r}; {way_out}")
    if path in there and hash_state(load_state(path)) != known.get("weights_id"):
        raise SpectralError(f"{path} has other weights than {there[1].name} describes; {way_out}")


def is_weights_file(path: Path) -> bool:
    """Whether a file's name says that it has weights, or tells where those in several files are.

    Example:
        >>> is_weights_file(Path("net.pth")), is_weights_file(Path("model.safetensors.index.json"))
        (True, True)
    """
    return path.suffix.lower() in WEIGHT_SUFFIXES or is_index(path)


def is_index(path: Path) -> bool:
    """Whether a file's name says that it tells in which files the weights are."""
    return path.name.endswith(_INDEX)


def list_parts(path: Path) -> list[Path]:
    """List the files that hold what an index names.

    Raises:
        SpectralError: if it is no index.
    """
    return sorted(set(_read_index(path).values()))


def _read_index(path: Path) -> dict[str, Path]:
    """Read in which file beside it each of the weights is."""
    try:
        named = json.loads(path.read_bytes())["weight_map"]
        if not named or any(Path(name).name != name for name in named.values()):
            raise ValueError("expected the names of files beside it")
        return {name: path.with_name(file) for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpectralError(
            f"{path} tells no files of weights ({type(error).__name__}: {error}); copy or download it again"
        ) from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` or torch file, on the CPU, without running code from it.

    Of weights in several files the index is given (``model.safetensors.index.json``).

    A dictionary under ``state_dict`` or ``model`` is unwrapped, with a warning where the file has other
    weights of the same network, as averages over the training (``ema``). A ``module.`` that every name
    starts with (as `torch.nn.DataParallel` leaves it) is removed.

    Args:
        path: the file.

    Raises:
        SpectralError: if the file is missing, damaged, holds pickled objects other than tensors (they aren't
            created), is no state dict, holds a NaN or an infinite statistic, or unfolds to much more than it
            is long.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise SpectralError(f"{path}: there is no such weights file; check the path")
    if is_index(path):
        return _join_parts(path)
    part = _PART.fullmatch(path.stem)
    if part is not None:
        index = f"{part[1]}{path.suffix}.index.json"
        raise SpectralError(f"{path} is one of several files of weights; give their index, {index}")
    return _load_file(path)


def _join_parts(index: Path) -> dict[str, Tensor]:
    """Read the weights that are in several files.

    Raises:
        SpectralError: if a file isn't there, or they don't have what the index names.
    """
    state: dict[str, Tensor] = {}
    named = _read_index(index)
    for path in sorted(set(named.values())):
        if not path.is_file():
            raise SpectralError(f"{index}: there is no {path.name} beside it, which has some of the weights")
        state |= _load_file(path)
    if missing := sorted(set(named) - set(state)):
        raise SpectralError(
            f"{index} names what its files don't have: {name_few(missing)}; copy all of them again"
        )
    return state


def _load_file(path: Path) -> dict[str, Tensor]:
    _refuse_unfolding(path)
    try:
        content = (
            _read_safetensors(path)
            if path.suffix.lower() == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged file makes these readers raise nearly anything
        raise SpectralError(f"{path}: {explain_unreadable(error)}") from error
    state = _plain_state(content, path)
    # Which of the others may be infinite is known once their network is.
    require_finite(state, str(path), [name for name in state if not _is_statistic(name)])
    return state


def _refuse_unfolding(path: Path) -> None:
    """Refuse a torch file whose compressed members, which torch never writes, unfold to gigabytes."""
    unfolded, size = 0, path.stat().st_size
    # One that is none, or damaged, is told when it is read.
    with suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        unfolded = sum(member.file_size for member in file.infolist())
    if unfolded > size + _MOST_UNFOLDED:
        raise SpectralError(
            f"{path}: {size / 2**20:.0f} MiB that unfold to {unfolded / 2**20:.0f}; write the weights again "
            f"with torch.save, or as safetensors"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # its reader takes no name that isn't UTF-8
        return safetensors.torch.load(path.read_bytes())
    return safetensors.torch.load_file(path)


def explain_unreadable(error: BaseException) -> str:
    """Say in half a sentence why a weights file could not be read: it holds code, or it is damaged.

    Example:
        >>> explain_unreadable(EOFError())
        'the file holds no weights, or is damaged or incomplete (EOFError); copy or download it again'
    """
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"GLOBAL (\S+)", str(cause)) if isinstance(cause, pickle.UnpicklingError) else None
        if found:
            return (
                f"the file holds pickled objects other than weights ({found[1]}) and was refused, nothing in "
                f"it was run; save model.state_dict() instead, best as .safetensors"
            )
        cause = cause.__cause__ or cause.__context__
    # torch's own explanation of a failed unpickling is a paragraph that advises to allow code.
    detail = "" if isinstance(error, pickle.UnpicklingError) else " ".join(str(error).split())[:120]
    reason = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
    return f"the file holds no weights, or is damaged or incomplete ({reason}); copy or download it again"


def _plain_state(content: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            _say_others(content, key, path)
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise SpectralError(
            f"{path}: expected a state dict (names and tensors), got "
            f"{'an empty one' if isinstance(content, Mapping) else type(content).__name__}"
        )
    wrong = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise SpectralError(
            f"{path}: expected a state dict (names and tensors), got entries that aren't tensors: "
            f"{name_few(wrong)}"
        )
    for name, value in content.items():
        _require_plain(str(name), value, path)
    prefix = "module." if all(str(name).startswith("module.") for name in content) else ""
    return {str(name).removeprefix(prefix): tensor.detach() for name, tensor in content.items()}


def _say_others(content: Mapping[str, Any], chosen: str, path: Path) -> None:
    """Warn where a file has other weights of the same network too, as averages over the training."""
    names = _list_weights(content[chosen])
    others = [
        str(key)
        for key, value in content.items()
        if key != chosen and 2 * len(names & _list_weights(value)) > len(names)
    ]
    if others:
        warn(
            f"{path} has weights under {', '.join(map(repr, [chosen, *others]))}; those under {chosen!r} are "
            f"taken. For others: torch.save(torch.load({path.name!r})[{others[0]!r}], "
            f"{f'{path.stem}-{others[0]}{path.suffix}'!r}), and load that file"
        )


def _list_weights(state: object) -> set[tuple[str, torch.Size]]:
    """Name the tensors of a state dict, with their shapes; nothing where it is none."""
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        return set()
    return {(str(n).removeprefix("module."), x.shape) for n, x in state.items() if isinstance(x, Tensor)}


def _require_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse what would lose something, or can't be used, when it is copied into a network's weights.

    Raises:
        SpectralError: naming the tensor and what it is.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    what = ""
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() == 1):
        what = f"of type {kind}"
    elif tensor.device.type == "meta":
        what = "without data (on the meta device)"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        what = f"{'quantised' if tensor.is_quantized else str(tensor.layout).removeprefix('torch.')}"
    elif tensor.numel() * tensor.element_size() > max(2**20, 4 * tensor.untyped_storage().nbytes()):
        what = f"of {tensor.numel():.2g} elements that repeat few values"
    if what:
        raise SpectralError(
            f"{path}: the weights must be plain real tensors, but {name} is one {what}; save it as float32"
        )


def require_finite(state: Mapping[str, Tensor], where: str, bounds: Iterable[str] = ()) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        state: names and tensors.
        where: whose weights they are, for the message.
        bounds: names of those that may be infinite, see `find_bounds`.

    Raises:
        SpectralError: naming the first tensor that isn't finite.

    Example:
        >>> require_finite({"fc.bias": torch.zeros(3)}, "net")
    """
    infinite = frozenset(bounds)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            fit = ~torch.isnan(tensor) if name in infinite else torch.isfinite(tensor)
            bad = tensor.numel() - int(fit.count_nonzero())
            if bad:
                raise SpectralError(
                    f"{where}: the weights must be finite, but {name} has {bad} NaN or infinite values of "
                    f"{tensor.numel()}; train or download it again"
                )


def find_bounds(model: nn.Module) -> list[str]:
    """List the buffers that infinities may be in by design, as in a mask or a bound: all but statistics.

    Example:
        >>> find_bounds(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
        ['0.num_batches_tracked']
    """
    return [name for name, _ in model.named_buffers(remove_duplicate=False) if not _is_statistic(name)]


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def strip_wrappers(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, as ``module.`` and ``model.``, where every name has them.

    Args:
        state: names and tensors.
        model: what they are for; prefixes that all of its own names have stay.

    Example:
        >>> bias = torch.zeros(2)
        >>> list(strip_wrappers({"module.model.bias": bias}, nn.Linear(2, 2)))
        ['bias']
        >>> list(strip_wrappers({"module.bias": bias, "epoch": bias}, nn.Linear(2, 2)))
        ['module.bias', 'epoch']
    """
    own = list(model.state_dict())
    for prefix in _WRAPPERS:
        shared = bool(state) and all(name.startswith(prefix) for name in state)
        if shared and not all(name.startswith(prefix) for name in own):
            inner = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            return strip_wrappers(inner, model)
    return dict(state)


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whose names and shapes must be exactly the model's.

    Only BatchNorm's step counter may be missing, as in files from before it existed; it has no effect in
    eval mode.

    Args:
        model: gets the weights in place.
        state: names and tensors.
        where: where they come from, for the message.

    Raises:
        SpectralError: listing what is missing, what is unexpected and which shapes differ; the model keeps
            its weights then.
    """
    own = model.state_dict()
    whole = [
        name
        for name, tensor in own.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if whole:
        raise SpectralError(
            f"{where}: {name_few(whole)} should be real numbers and are {state[whole[0]].dtype}; save them "
            f"as float32"
        )
    missing = [name for name in own if name not in state and not name.endswith(_OPTIONAL_BUFFER)]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{len(found)} {what}: {name_few(found)}"
        for found, what in (
            (missing, "missing from the file"),
            (unexpected, "unknown to the model"),
            (reshaped, "of another shape"),
        )
        if found
    ]
    if problems:
        raise SpectralError(
            f"{where}: {len(state)} tensors don't fit {type(model).__name__} with its {len(own)}; "
            f"{'; '.join(problems)}; give the architecture that the weights were trained as"
        )
    model.load_state_dict(dict(state))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the JSON of the same stem beside a weights file, or an empty dictionary where there is none.

    Raises:
        SpectralError: if that file isn't a JSON object.
    """
    path, given = path.with_suffix(".json"), path
    if path == given or not path.is_file():  # an index describes files, and no network
        return {}
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant
        )
    except (OSError, ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise SpectralError(f"{path}: expected the weights' description as JSON ({why})") from error
    if not isinstance(content, dict):
        raise SpectralError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has a name twice: which of the two holds is anybody's guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is in it twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
