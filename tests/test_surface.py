"""Every public function × every argument × unfit values: one sentence, and nothing harmed."""

from __future__ import annotations

import enum
import functools
import inspect
import math
import os
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from networks import unchanged
from PIL import Image
from torch import nn

import spectral
from spectral.arguments.validation import find_fault, fits
from spectral.errors import SpectralError
from spectral.training import LabelledImages


def unfit() -> dict[str, Any]:
    """Values that some arguments can't be; made anew for each call."""
    return {
        "none": None, "five": 5, "minus one": -1, "zero": 0, "huge": 10**12, "float": 2.5, "nan": math.nan,
        "inf": math.inf, "true": True, "empty text": "", "text": "no such thing", "bytes": b"abc",
        "zero byte": "a\0b", "long text": "x" * 5000, "empty list": [], "list": [1, "a", None],
        "empty dictionary": {}, "dictionary": {"a": 1}, "set": {1, 2}, "object": object(), "class": int,
        "function": lambda *args, **kwargs: None, "numpy scalar": np.float32(2.5),
        "numpy integer": np.int64(3), "torch scalar": torch.tensor(2.5), "complex": 1j,
        "text array": np.array(["a"]), "object array": np.array([None, 1], dtype=object),
        "empty array": np.zeros((0, 3)), "array": np.zeros((2, 3, 4, 4, 2, 2)),
        "sparse": torch.eye(8).to_sparse(), "meta": torch.empty(1, 3, 16, 16, device="meta"),
        "complex tensor": torch.zeros(1, 3, 16, 16, dtype=torch.complex64),
        "float8": torch.zeros(1, 3, 16, 16).to(torch.float8_e4m3fn),
        "integers": torch.zeros(1, 3, 16, 16, dtype=torch.int64), "empty tensor": torch.zeros(0, 3, 16, 16),
        "nan tensor": torch.full((1, 3, 16, 16), math.nan), "stride 0": torch.zeros(1).expand(10**4, 10**9),
        "quantised": torch.quantize_per_tensor(torch.zeros(1, 3, 16, 16), 1.0, 0, torch.qint8),
        "module": nn.ReLU(), "frame": pd.DataFrame({"a": [1]}), "path": Path("/proc/no/such/place"),
        "deep": _nest(2000), "picture": Image.new("L", (3, 3)),
        "masked": np.ma.masked_array(np.ones((2, 3, 8, 8)), mask=True), "series": pd.Series([1, 2]),
        "missing": pd.NA, "generator": (i for i in range(3)), "googol": 10**100, "member": Odd.ONE,
        "requires grad": torch.rand(1, 3, 16, 16, requires_grad=True), "surrogate": "caf\udce9",
        "turned": torch.rand(1, 16, 16, 3).permute(0, 3, 1, 2), "nested": [[1], [2, 3]], "range": range(3),
        "negative strides": np.ones((2, 3, 8, 8))[..., ::-1],
        "bool tensor": torch.zeros(1, 3, 16, 16, dtype=torch.bool),
        "subclass": nn.Parameter(torch.zeros(2)), "modules": nn.ModuleList([nn.ReLU()]), "evil": Evil(),
    }  # fmt: skip


class Odd(enum.Enum):
    ONE = "flc"


class Evil:
    """Can't be compared, asked or shown."""

    __hash__ = object.__hash__

    def fail(self, *other: object) -> Any:
        raise ValueError("it can't be looked at")

    __eq__ = __bool__ = __repr__ = fail


@functools.cache
def _nest(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


def good(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments with which each public function works; what is missing has none to be unfit."""
    model, x = net(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sites, smooth = spectral.find_sites(model, 16), spectral.convert(model, "blurpool", example=(3, 16, 16))
    P, maps = spectral.compute_power_spectrum(x), x[0]
    quiet = {"progress": False}
    looked = {"model": model, "images": x}
    return {
        "AliasingMonitor": {
            "model": net(),
            "sites": sites,
            "metrics": ("avr",),
            "taps": ("dense",),
            "every": 1,
        },
        "AliasingPenalty": {"model": net(), "sites": sites, "metric": "am_relative"},
        "FeatureExtractor": {
            "model": net(),
            "sites": sites,
            "capture_input": True,
            "tap": "input",
            "detach": True,
        },
        "Recipe": {
            "epochs": 1,
            "batch_size": 2,
            "max_lr": 0.1,
            "schedule": "step",
            "momentum": 0.9,
            "weight_decay": 0.1,
            "crop_padding": 1,
            "flip": True,
            "perturb": (),
            "attack": None,
            "epsilon": 0.1,
            "attack_step": None,
            "attack_steps": 1,
            "ema": 0.0,
            "precision": "fp32",
            "seed": 0,
        },
        "classify": {"model": model, "image": x[0]},
        "compute_alias_categories": {
            "dense": maps,
            "stride": 2,
            "phase": 0,
            "size": None,
            "threshold_db": 20.0,
        },
        "compute_alias_metrics": {"dense": maps, "stride": 2, "phase": 0, "size": None},
        "compute_alias_power_ratio": {"dense": maps, "stride": 2, "phase": 0, "size": None, "db": False},
        "compute_am": {"dense": maps, "stride": 2, "phase": 0, "size": None, "difference": "complex"},
        "compute_am_relative": {"dense": maps, "stride": 2, "phase": 0, "size": None},
        "compute_avr": {"P": P, "stride": 2, "cutoff": "radial", "exclude_dc": False},
        "compute_channel_alias_ratios": {"dense": maps, "stride": 2, "phase": 0, "size": None},
        "compute_instability": {"reference": torch.rand(2, 3), "shifted": [torch.rand(2, 3)]},
        "compute_power_spectrum": {"x": x, "window": None, "axes": 2},
        "compute_radial_profile": {"P": P},
        "compute_sis": {"model": model, "images": x, "axes": None, "logits": None},
        "conversion_report": {"model": spectral.convert(model, "blurpool", example=(3, 16, 16))},
        "convert": {"model": model, "method": "blurpool", "where": None, "placement": "auto", "example": 16},
        "average_weights": {"models": [model, net()], "shares": [0.3, 0.7]},
        "exact_bin_frequencies": {"size": (8, 8)},
        "find_global_pools": {"model": model, "example": 16},
        "find_reductions": {"model": model, "example": 16},
        "find_sites": {"model": model, "example": 16},
        "find_white_noise_ratio": {"extents": (8, 8), "stride": 2, "phase": 0, "size": None},
        "frequency_grid": {"size": (4, 4)},
        "get_stride_layers": {"model": model},
        "load_images": {"source": "synthetic", "size": 8, "limit": 2, "seed": 0},
        "load_model": {"name": "bundled/resnet8@random", "architecture": None, "device": "cpu"},
        "log_power_spectrum": {"P": P},
        "make_checkerboard_image": {"size": 8, "amplitude": 1.0, "mean": 0.0},
        "make_constant_image": {"size": 8},
        "make_dead_leaves_image": {"size": 8, "seed": 0},
        "make_perturbation": {"name": "decimate-2"},
        "make_white_noise_image": {"size": 8, "seed": 0},
        "match_sites": {"a": sites, "b": sites},
        "measure": {
            **looked,
            "metrics": ("avr",),
            "sites": None,
            "taps": ("input",),
            "batch_size": 2,
            "out": None,
            "progress": False,
            "name": None,
            "preprocessing": None,
            "logits": None,
        },
        "measure_consistency": {**looked, "batch_size": 2},
        "measure_equivariance": {**looked, "batch_size": 2} | quiet,
        "model_info": {"model": model},
        "normalized_radius": {"size": (4, 4)},
        "radial_frequencies": {"size": (4, 4)},
        "read": {"folder": folder / "run"},
        "convert_alike": {"model": model, "report": spectral.conversion_report(smooth), "example": None},
        "revert": {"model": smooth},
        "split_border": {"maps": maps, "axes": 2},
        "summarize_measurements": {"table": spectral.measure(model, x, ("avr",), progress=False)},
    }


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("surface")
    model = net()
    spectral.measure(model, torch.rand(2, 3, 16, 16), ("avr",), progress=False, out=folder / "run")
    os.chdir(folder)
    return good(folder)


def call(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """Return what other than a sentence a call ends in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = function(**given)
    except SpectralError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]
    if hasattr(made, "remove_hooks"):
        made.remove_hooks()
    return None


@pytest.mark.slow
def test_every_function_and_argument(arguments):
    faults, calls = [], 0
    for name, given in arguments.items():
        function = getattr(spectral, name)
        assert set(given) <= set(inspect.signature(function).parameters), name
        assert call(function, given) is None, name
        models = [value for value in given.values() if isinstance(value, nn.Module)]
        with unchanged(models[0] if models else nn.ReLU()):
            for argument in given:
                for kind, value in unfit().items():
                    fault = call(function, {**given, argument: value})
                    calls += 1
                    if fault:
                        faults.append(f"{name}({argument}={kind}): {fault}")
    assert calls >= 1500
    assert not faults, f"{len(faults)} of {calls}:\n" + "\n".join(faults)


def good_analyses(folder: Path) -> dict[str, dict[str, Any]]:
    """The same of what runs a network several times, of which a part of the values is tried."""
    model, x = net(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    looked = {"model": model, "images": x}
    own = {"preprocessing": None, "logits": None}
    run = {"batch_size": 2, "progress": False, **own}
    few = {"methods": ("flc",), "batch_size": 2, "progress": False, **own}
    smooth = spectral.convert(model, "flc", example=16)
    pictures = spectral.load_images("synthetic", size=16, limit=2)
    stable = spectral.measure_stability(model, x, comb=False, circular=False, progress=False)
    budget = spectral.measure_instability_budget(model, x, sources=("border",), factor=2, progress=False)
    found = spectral.diagnose(model, x, methods=("flc",), fix_images=2, budget_images=0, out=folder / "found",
                              progress=False)  # fmt: skip
    data = LabelledImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.arange(2), ("a", "b"), "none")
    return {
        "Corruption": {"kind": "fog", "severity": 1, "seed": 0},
        "ImageSet": {"source": "x", "items": pictures.items, "size": 16},
        "PerturbedImages": {"images": pictures, "perturbation": spectral.make_perturbation("decimate-2")},
        "attribute_instability": {**looked, "method": "ideal", "sites": None, **run},
        "compute_imaging_ratio": {"x": x[0], "factor": 2},
        "compute_logit_jitter": {"reference": x[0, 0], "shifted": [x[0, 1]], "spread": None},
        "compute_logit_spread": {"logits": x[0, 0]},
        "count_macs": {"model": model, "args": x},
        "diagnose": {**looked, **few, "fix_images": 2, "budget_images": 0, "out": None, "name": None},
        "distill": {"model": smooth, "images": x, "teacher": model, "steps": 1, "batch_size": 2,
                    "max_lr": 1e-3, "layer_weight": 1.0, "seed": 0, "preprocessing": None, "out": None,
                    "progress": False},
        "find_causes": {"model": model, "example": 16},
        "find_upsampling": {"model": model, "example": 16},
        "fourier_shift": {"x": x, "shift": (0.5, 0.5)},
        "idealize": {"model": model, "sources": ("decimation",), "where": None, "factor": 2},
        "inspect_sites": {**looked, "sites": None, "batch_size": 2, **own},
        "list_bundled": {},
        "make_sinusoidal_image": {"size": 8, "frequency": 0.25, "axis": "x", "channels": 3, "phase": 0.0,
                                  "amplitude": 0.5, "mean": 0.5},
        "measure_diagonal": {**looked, "steps": 3, "batch_size": 2, **own},
        "measure_fixes": {**looked, **few, "singly": [], "stability": None},
        "measure_fourier_heatmap": {"model": model, "images": pictures, "norm": 4.0, "radius": 0, "stride": 1,
                                    "seed": 0, **run, "logits": nn.Identity()},
        "measure_imaging": {**looked, **run},
        "measure_instability_budget": {**looked, "sources": ("border",), "split": (), "orders": 1,
                                       "shifts": "pixel", "factor": 2, "seed": 0, **run},
        "measure_latency": {"models": {"a": model}, "inputs": {"a": x}, "repeats": 1},
        "measure_predictions": {**looked, "perturbations": ["decimate-2"], **run},
        "measure_robustness": {**looked, "attacks": ("fgsm",), "epsilon": 0.03, "seed": 0, **run},
        "measure_stability": {**looked, "comb": False, "circular": False, **run},
        "measure_worst_shift": {**looked, "max_shift": 1, "fill": "circular", "batch_size": 2, **own},
        "pair_sites": {"models": {"a": model, "b": net()}, "reference": None},
        "read_diagnosis": {"path": folder / "found"},
        "recalibrate": {"model": smooth, "images": x, "reference": None, "inplace": False,
                        "preprocessing": None},
        "reconstruct": {"model": smooth, "images": x, "reference": model, "ridge": 1e-3, "seed": 0,
                        "inplace": False, "preprocessing": None},
        "register_operator": {"operator": None},
        "summarize_instability_budget": {"table": budget},
        "summarize_stability": {"table": stable},
        "sweep": {"models": ["bundled/resnet8@random"], "images": "synthetic", "metrics": ("avr",),
                  "out": folder / "sweep", "taps": ("input",), "limit": 1, "seed": 0, "batch_size": 2,
                  "unit": 2, "device": "cpu", "workers": 0},
        "train": {"architecture": "resnet20", "train_set": data, "test_set": data, "out": folder / "train",
                  "recipe": spectral.Recipe(epochs=1, batch_size=2), "device": "cpu", "progress": False,
                  "start": None},
        "write_page": {"found": found, "path": folder / "page.html"},
        "write_report": {"folder": folder / "found", "path": folder / "report.html"},
    }  # fmt: skip


MADE_HERE = frozenset({  # what functions give, and what takes nothing
    "Capture", "Cause", "ConversionReport", "Diagnosis", "Site", "SpectralError", "SpectralWarning",
    "Upsampling", "BrokenJobError", "alone",
})  # fmt: skip
FEW = dict.fromkeys(("diagnose", "distill", "measure_fixes", "reconstruct", "sweep", "train"), 4)
SOME = 8  # of the values of all arguments of an analysis; MORE=… in the environment tries more of them


@pytest.mark.slow
def test_every_analysis_and_some_values_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, faults = random.Random(0), []
    for name, given in good_analyses(tmp_path).items():
        function = getattr(spectral, name)
        if name == "count_macs":  # takes what the network takes
            function = lambda model, args: spectral.count_macs(model, args)  # noqa: E731
        assert name == "register_operator" or call(function, given) is None, name
        pairs = [(argument, kind) for argument in given for kind in unfit()]
        most = FEW.get(name, SOME) * int(os.environ.get("MORE", 1))
        with unchanged(next((v for v in given.values() if isinstance(v, nn.Module)), nn.ReLU())):
            for argument, kind in rng.sample(pairs, min(most, len(pairs))):
                fault = call(function, {**given, argument: unfit()[kind]})
                if fault:
                    faults.append(f"{name}({argument}={kind}): {fault}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("room", [spectral.layers, spectral.perturb], ids=["layers", "perturb"])
def test_what_is_made_of_a_room(room):
    rng, faults = random.Random(0), []
    for name in room.__all__:
        made = getattr(room, name)
        if inspect.isclass(made) and not getattr(made, "_is_protocol", False):
            known = inspect.signature(made).parameters.values()
            given = {p.name: 2 if p.default is p.empty else p.default for p in known if p.kind not in (2, 4)}
            for _ in range(SOME if given else 0):
                argument, kind = rng.choice(list(given)), rng.choice(list(unfit()))
                fault = call(made, {**given, argument: unfit()[kind]})
                if fault:
                    faults.append(f"{name}({argument}={kind}): {fault}")
    assert not faults, "\n".join(faults)


def test_every_public_function_is_walked(arguments, tmp_path):
    public = {name for name in spectral.__all__ if callable(getattr(spectral, name))}
    analyses = set(re.findall(r'^        "(\w+)": {', inspect.getsource(good_analyses), re.MULTILINE))
    assert public - MADE_HERE == set(arguments) | analyses


def good_columns() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (2, 30))
    clusters, flags = np.repeat(np.arange(10), 3), (a > 1.5).astype(float)
    drawn = {"n_resamples": 20, "seed": 0}
    return {
        "compare_paired": {"a": a, "b": b, "clusters": clusters},
        "compare_shares": {"a": flags, "b": 1 - flags, "clusters": clusters},
        "correlate": {"x": a, "y": b, "clusters": clusters, **drawn},
        "correlate_ranks": {"x": a, "y": b, "given": None, **drawn},
        "count_share": {"successes": 3, "n": 5},
        "estimate_mean": {"values": a},
        "holm": {"p_values": [0.1, 0.2]},
        "relative_change": {"reference": a, "values": b, "clusters": clusters},
        "summarize": {"values": a, "silent": None, "clusters": clusters, "low": 0.0, "high": 9.0},
        "summarize_share": {"flags": flags, "clusters": clusters},
    }


@pytest.mark.parametrize("name", good_columns())
def test_statistics(name):
    function, given = getattr(spectral.stats, name), good_columns()[name]
    given = dict(zip(inspect.signature(function).parameters, given.values(), strict=False))
    assert call(function, given) is None
    faults = [
        f"{argument}={kind}: {fault}"
        for argument in given
        for kind, value in unfit().items()
        if (fault := call(function, {**given, argument: value}))
    ]
    assert not faults, "\n".join(faults)


def test_annotations_are_read():
    assert fits((1, 2), tuple[int, int])
    assert not fits((1, 2.5), tuple[int, ...])
    assert (
        find_fault(torch.zeros(3).to_sparse(), torch.Tensor) == "has a sparse_coo tensor; pass x.to_dense()"
    )
