"""Synthetic tables with the columns that the study's phases write, for tests of the figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectral.table.schema import BOUNDS, with_bounds

MODELS = {
    "strided": "bundled/resnet20",
    "blurpool": "bundled/resnet20-blurpool",
    "nula": "bundled/nula-narrow",
}
CIFAR_LAYERS = ("layer2.0.conv1", "layer2.0.shortcut.0", "layer3.0.conv1", "layer3.0.shortcut.0")
RESNET50_LAYERS = (
    *("conv1", "maxpool", "layer2.0.conv2", "layer2.0.downsample.0"),
    *("layer3.0.conv2", "layer3.0.downsample.0", "layer4.0.conv2", "layer4.0.downsample.0"),
)
TAPS = ("input", "dense")
# How much of the high band survives at a tap, by family: what makes the families differ.
KEPT = {("blurpool", "dense"): 0.15, ("nula", "dense"): 0.5}


@dataclass(frozen=True)
class Shape:
    """Layers of the reference model, map sizes by depth, images, and how many layers NULA has."""

    layers: tuple[str, ...] = CIFAR_LAYERS
    sizes: tuple[int, ...] = (32, 32, 16, 16)
    n_images: int = 40
    nula_layers: int = 3


CIFAR = Shape()
RESNET50 = Shape(RESNET50_LAYERS, (224, 112, 56, 56, 28, 28, 14, 14), 1000, 4)


def make_tables(shape: Shape = CIFAR) -> dict[str, pd.DataFrame]:
    """All tables that figures read, with plausible numbers; the same at every call."""
    per_image = _per_image(shape)
    stats = _stats(per_image)
    profiles = _profiles(shape)
    dense = profiles[profiles["tap"] == "dense"]
    natural = dense[dense["family"] == "strided"]
    spread = {"power_mean": 1.1, "power_p10": 0.3, "power_p90": 2.5}
    return {
        "phase1_layerwise_avr": _inputs(shape),
        "fig1_layerwise_power_spectra": _spectra(shape),
        "fig2_radial_profiles": profiles,
        "phase2a_frequency_sweep": _sweep(shape),
        "phase2b_architecture_comparison": _checkerboard(shape),
        "fig6_aliasing_folding": _folding(shape),
        "per_image": per_image,
        "phase3_layerwise_avr_stats": stats,
        "fig9_radial_profiles_natural": natural.assign(
            n_images=shape.n_images, **{k: natural["power"] * v for k, v in spread.items()}
        ),
        "phase4_images": _certainty(per_image),
        "phase4_confidence": _confidence(shape),
        "phase4_partial": _partial(per_image),
        "phase4_correlation": _correlations(per_image),
        "phase5_tradeoff": _tradeoff(per_image),
        "fig15_radial_overlay": dense.assign(n_images=shape.n_images),
        **_survey(shape),
        "fourier_heatmap": _heatmap(),
        "penalty": _penalty(),
        "repair": _repair(),
        **_nula(shape),
        "phase7_layers": _layers(),
        **_stability(shape),
        **_robustness(),
        "compare": _compared(per_image),
        "budget": _budget(),
        "phase10_budget": _budget(),
        "phase4_budget": _budget(),
    }


def _sites(shape: Shape) -> Iterator[dict[str, object]]:
    """Rows of the common columns, one per site and tap."""
    for family, model in MODELS.items():
        for index, layer in enumerate(shape.layers):
            if family == "nula" and index >= shape.nula_layers:
                continue
            site = f"{layer}.blur" if family == "blurpool" else layer
            for tap in TAPS:
                yield {
                    "model": model,
                    "family": family,
                    "site": site,
                    "layer": layer,
                    "layer_index": index,
                    "op": "blur_pool" if family == "blurpool" else "conv",
                    "stride": "2x2",
                    "tap": tap,
                }


def _image_rows() -> Iterator[dict[str, object]]:
    for family, model in MODELS.items():
        image = {
            "site": "image",
            "layer": "image",
            "layer_index": -1,
            "op": "",
            "stride": "2x2",
            "tap": "input",
        }
        yield {"model": model, "family": family, **image}


def _power(size: int, kept: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A natural-looking spectrum, its frequencies, and with the high band scaled by ``kept``."""
    rng = np.random.default_rng(seed)
    freqs = np.fft.fftshift(np.fft.fftfreq(size))
    f_u, f_v = np.meshgrid(freqs, freqs, indexing="ij")
    radius = np.hypot(f_u, f_v)
    power = size**2 / (radius + 1 / size) ** 2.2 * rng.exponential(size=radius.shape)
    return f_u, f_v, power * np.where(2 * radius > 0.5, kept, 1.0)


def _spectra(shape: Shape) -> pd.DataFrame:
    parts = []
    for seed, site in enumerate(_sites(shape)):
        size = shape.sizes[int(str(site["layer_index"]))]
        f_u, f_v, power = _power(size, KEPT.get((str(site["family"]), str(site["tap"])), 1.0), seed)
        avr = power[2 * np.hypot(f_u, f_v) > 0.5].sum() / power.sum()
        bins = {"f_u": f_u.ravel(), "f_v": f_v.ravel(), "power": power.ravel()}
        parts.append(pd.DataFrame({**site, "height": size, "width": size, "avr": avr, **bins}))
    return pd.concat(parts, ignore_index=True)


def _profiles(shape: Shape) -> pd.DataFrame:
    parts = []
    for seed, site in enumerate(_sites(shape)):
        size = shape.sizes[int(str(site["layer_index"]))]
        rng = np.random.default_rng(seed)
        rho = np.arange(int(size / 2 * np.sqrt(2))) * 2 / size
        power = (rho + 2 / size) ** -2.4 * rng.uniform(0.7, 1.4, rho.size)
        power *= np.where(rho > 0.5, KEPT.get((str(site["family"]), str(site["tap"])), 1.0), 1.0)
        parts.append(pd.DataFrame({**site, "rho": rho, "power": power / power.sum() / size}))
    return pd.concat(parts, ignore_index=True)


def _inputs(shape: Shape) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for kind, at_image in {"natural": 0.021, "checkerboard": 1.0, "constant": 0.0}.items():
        for image in _image_rows():
            size = {"height": shape.sizes[0], "width": shape.sizes[0]}
            rows.append({"input_kind": kind, **image, **size, "avr": at_image, "silent": False})
        for site in _sites(shape):
            size = shape.sizes[int(str(site["layer_index"]))]
            silent = kind == "checkerboard" and site["family"] == "blurpool" and site["layer_index"] == 2
            avr = 0.0 if silent else rng.uniform(0.02, 0.4) * (0.1 if kind == "constant" else 1)
            rows.append(
                {"input_kind": kind, **site, "height": size, "width": size, "avr": avr, "silent": silent}
            )
    return pd.DataFrame(rows)


def _sweep(shape: Shape) -> pd.DataFrame:
    exact = np.arange(1, 17) / 16 - 1 / 32
    study = np.array([0.10, 0.19, 0.28, 0.37, 0.46, 0.54, 0.63, 0.72, 0.81, 0.90])
    rows = []
    for site in [*_image_rows(), *(s for s in _sites(shape) if s["layer_index"] == 0)]:
        slope = {"image": 1e4, "input": 14.0, "dense": 9.0}[
            str(site["layer"] if site["layer"] == "image" else site["tap"])
        ]
        top = KEPT.get((str(site["family"]), str(site["tap"])), 0.9) if site["layer"] != "image" else 1.0
        for grid, frequencies in {"exact bin": exact, "study": study}.items():
            for frequency in frequencies:
                avr = top / (1 + np.exp(np.clip(-slope * (frequency - 0.5), -50, 50)))
                rows.append({**site, "grid": grid, "frequency": frequency, "avr": avr})
    return pd.DataFrame(rows).drop(columns=["op", "stride"])


def _checkerboard(shape: Shape) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows: list[dict[str, object]] = [{**image, "avr": 1.0} for image in _image_rows()]
    for site in _sites(shape):
        kept = KEPT.get((str(site["family"]), str(site["tap"])), 1.0)
        rows.append({**site, "avr": kept * rng.uniform(0.1, 0.9)})
    return pd.DataFrame(rows)


def _folding(shape: Shape) -> pd.DataFrame:
    parts = []
    size = min(shape.sizes[0], 112)
    for seed, (family, model) in enumerate(MODELS.items()):
        _, _, dense = _power(size, KEPT.get((family, "dense"), 1.0), seed)
        quarter = size // 4
        inside = dense[quarter:-quarter, quarter:-quarter] / 16
        aliases = np.roll(dense, size // 2, axis=(0, 1))[quarter:-quarter, quarter:-quarter] / 16
        panels = {"dense": dense, "output": inside + aliases, "alias_free": inside, "aliases": aliases}
        ratio = aliases.sum() / panels["output"].sum()
        for panel, power in panels.items():
            n = len(power)
            freqs = np.fft.fftshift(np.fft.fftfreq(n))
            f_u, f_v = np.meshgrid(freqs, freqs, indexing="ij")
            bins = {"f_u": f_u.ravel(), "f_v": f_v.ravel(), "power": power.ravel()}
            site = {"model": model, "family": family, "site": shape.layers[0], "panel": panel}
            site |= {"height": n, "width": n, "stride_h": 2, "stride_w": 2, "alias_power_ratio": ratio}
            parts.append(pd.DataFrame({**site, **bins}))
    return pd.concat(parts, ignore_index=True)


def _per_image(shape: Shape) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    images = [f"photo{i:04d}.png" for i in range(shape.n_images)]
    sis = {
        family: np.minimum(rng.lognormal(-4.2, 1.5, shape.n_images) * scale, 0.9)
        for family, scale in {"strided": 1.0, "blurpool": 0.6, "nula": 0.3}.items()
    }
    parts = []
    for site in _sites(shape):
        family = str(site["family"])
        centre = 0.08 + 0.3 * (int(str(site["layer_index"])) % 3) / 3
        centre *= KEPT.get((family, str(site["tap"])), 1.0) * (1.3 if family == "blurpool" else 1.0)
        avr = np.clip(centre * (1 + 0.2 * rng.normal(size=shape.n_images) + 0.4 * sis[family]), 0, 1)
        rest = {"am_relative": avr / 2, "alias_power_ratio": avr / 3, "sis": sis[family], "silent": False}
        common = {key: value for key, value in site.items() if key not in ("op", "stride")}
        cluster = [f"photo{i % 12}" for i in range(shape.n_images)]
        parts.append(pd.DataFrame({"image": images, "cluster": cluster, **common, "avr": avr, **rest}))
    return pd.concat(parts, ignore_index=True)


def _stars(p: float) -> str:
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def _stats(per_image: pd.DataFrame) -> pd.DataFrame:
    """Pairs against strided, summarised with pandas alone."""
    rng = np.random.default_rng(4)
    rows = []
    for (index, layer, tap), here in per_image.groupby(["layer_index", "layer", "tap"]):
        sides = dict(list(here.groupby("family")))
        for other in sides:
            if other == "strided":
                continue
            p = float(rng.choice([1e-9, 0.004, 0.03, 0.4]))
            row: dict[str, object] = {
                "layer": layer,
                "layer_index": index,
                "tap": tap,
                "stride": "2x2",
                "n": len(here) // len(sides),
                "n_clusters": 12,
            }
            for side, family in (("a", "strided"), ("b", other)):
                avr = sides[family]["avr"]
                row |= {f"{key}_{side}": sides[family][key].iloc[0] for key in ("family", "model", "site")}
                row |= {
                    f"mean_{side}": avr.mean(),
                    f"std_{side}": avr.std(),
                    f"avr_pooled_{side}": avr.mean(),
                }
                row |= {
                    f"n_silent_{side}": 0,
                    f"mean_{side}_ci_low": avr.mean() - 0.01,
                    f"mean_{side}_ci_high": avr.mean() + 0.01,
                }
                row |= {f"op_{side}": "conv"}
            row |= {"mean_difference": 0.0, "t": 1.0, "df": 9, "p": p / 4, "p_holm": p, "wilcoxon_p": p}
            row |= {"wilcoxon_p_holm": p, "effect_size": 0.4, "significance": _stars(p)}
            rows.append(row)
    return pd.DataFrame(rows)


def _correlations(per_image: pd.DataFrame) -> pd.DataFrame:
    rows = []
    keys = ["model", "family", "site", "layer", "layer_index", "tap"]
    for key, own in per_image.groupby(keys, sort=False):
        pearson, spearman = own["avr"].corr(own["sis"]), own["avr"].rank().corr(own["sis"].rank())
        half, p = 2 / np.sqrt(len(own)), float(np.exp(-abs(pearson) * 40))
        row: dict[str, object] = {
            **dict(zip(keys, key, strict=True)),
            "op": "conv",
            "stride": "2x2",
            "n": len(own),
            "n_clusters": 12,
        }
        for name, value in {
            "pearson": pearson,
            "spearman": spearman,
            "distance_correlation": abs(spearman),
        }.items():
            row |= {
                name: value,
                f"{name}_ci_low": value - half,
                f"{name}_ci_high": value + half,
                f"{name}_p": p,
            }
        rows.append(row | {"pearson_p_holm": p, "r2": pearson**2, "significance": _stars(p), "reason": ""})
    return pd.DataFrame(rows)


def _certainty(per_image: pd.DataFrame) -> pd.DataFrame:
    """Margins that rule SIS, and jitter that they don't, one row per family and image."""
    rng = np.random.default_rng(5)
    own = per_image.drop_duplicates(["family", "image"])[["model", "family", "image", "cluster", "sis"]]
    margins = -np.log(own["sis"]) * rng.uniform(0.9, 1.1, len(own))
    return own.assign(logit_margin=margins, logit_jitter=rng.lognormal(-3.5, 0.6, len(own)))


def _confidence(shape: Shape) -> pd.DataFrame:
    rows = [
        {"model": model, "family": family, "response": f"log {response}", "predictors": predictors,
         "r2": r2 if shape.n_images >= 20 else float("nan")}
        for family, model in MODELS.items()
        for response, predictors, r2 in (("sis", "logit margin", 0.91), ("sis", "AVR of all layers", -0.1),
                                         ("logit_jitter", "logit margin", 0.02))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _partial(per_image: pd.DataFrame) -> pd.DataFrame:
    dense = _correlations(per_image).query("tap == 'dense'")
    parts = []
    for (response, scale), (predictor, tap) in itertools.product(
        (("sis", 0.5), ("logit_jitter", 0.9)),
        (("avr", "dense"), ("alias_power_ratio_channel_median", "signal")),
    ):
        found = {
            f"spearman_given_margin{end}": scale * dense[f"spearman{end}"]
            for end in ("", "_ci_low", "_ci_high")
        }
        parts.append(dense.assign(response=response, predictor=predictor, tap=tap, **found))
    return pd.concat(parts, ignore_index=True)


def _tradeoff(per_image: pd.DataFrame) -> pd.DataFrame:
    rows = []
    scores = per_image.drop_duplicates(["family", "image"])
    reference = scores[scores["family"] == "strided"]["sis"].mean()
    for (family, model), latency in zip(MODELS.items(), (2.352, 2.798, 4.1), strict=True):
        sis = scores[scores["family"] == family]["sis"]
        mean, change = sis.mean(), 100 * (sis.mean() / reference - 1)
        row: dict[str, object] = {
            "model": model,
            "family": family,
            "n": len(sis),
            "n_clusters": 12,
            "sis": mean,
            "sis_median": sis.median(),
        }
        row |= {"sis_ci_low": 0.85 * mean, "sis_ci_high": 1.15 * mean, "sis_change_percent": change}
        row |= {
            "sis_change_percent_ci_low": change - 3,
            "sis_change_percent_ci_high": change + 3,
            "sis_p": 1e-5,
            "sis_p_holm": 2e-5,
        }
        row |= {"accuracy": 0.84, "accuracy_ci_low": 0.8, "accuracy_ci_high": 0.88, "n_labelled": len(sis)}
        row |= {
            "agreement": 1.0 if family == "strided" else 0.654,
            "agreement_ci_low": 0.6,
            "agreement_ci_high": 0.7,
        }
        row |= {"latency_ms": latency, "latency_q25": 0.97 * latency, "latency_q75": 1.06 * latency}
        row |= {"latency_ratio": latency / 2.352, "batch_size": 32, "device": "cpu", "threads": 2}
        rows.append(row | {"parameters": 270_000, "macs": 41_000_000})
    return pd.DataFrame(rows)


# Model → kinds of its sites in order; None for one that could not be loaded.
SURVEYED: dict[str, tuple[str, ...] | None] = {
    "timm/resnet18@random": ("conv", "max_pool", "conv", "conv"),
    "antialiased/resnet18@random": ("conv", "blur_pool", "blur_pool"),
    "timm/swin_tiny_patch4_window7_224@random": ("conv", "space_to_depth", "resize"),
    "timm/hiera_tiny_224@random": ("conv", "window_max"),
    "timm/vit_tiny_patch16_224": ("conv",),
    "bundled/resnet20": ("conv", "slice", "avg_pool"),
    "timm/away": None,
}


def _survey(shape: Shape) -> dict[str, pd.DataFrame]:
    """Both tables of the architectures: with lossless and unmeasurable sites, a zero, a model not loaded."""
    rng = np.random.default_rng(5)
    sites: list[dict[str, object]] = []
    models: list[dict[str, object]] = []
    for model, kinds in SURVEYED.items():
        weights = "random" if "@" in model else "trained" if model.startswith("bundled") else "published"
        facts = {"model": model, "weights": weights}
        if kinds is None:
            sites.append({**facts, "reason": "no hub"})
            models.append({**facts, "reason": "no hub"})
            continue
        own = []
        for index, op in enumerate(kinds):
            site = {**facts, "op": op, "depth": index / max(len(kinds) - 1, 1)}
            if op == "space_to_depth":
                sites.append({**site, "reason": "lossless: every sample is kept, as a channel"})
            elif op == "resize":
                sites.append({**site, "reason": "a factor that is no integer"})
            else:
                ratio = float(rng.uniform(0.01, 0.3))
                own.append(ratio)
                rest = {"avr_input": min(1.5 * ratio, 1), "avr_dense": 1.1 * ratio, **_count(shape)}
                sites.append({**site, **rest, **_decibels(ratio)})
        sis = 0.0 if "hiera" in model else float(10 ** rng.uniform(-6, -1))
        rest = {"sis": sis, "sis_ci_low": 0.8 * sis, "sis_ci_high": 1.3 * sis, **_count(shape)}
        models.append({**facts, **rest, **_decibels(float(np.mean(own)))})
    empty = {"reason": ""}
    return {
        "phase8_architectures": pd.DataFrame(sites).fillna(empty),
        "phase8_models": pd.DataFrame(models).assign(reason=lambda t: t["reason"].fillna("")),
    }


def _decibels(ratio: float) -> dict[str, float]:
    mean = float(10 * np.log10(ratio))
    return dict(zip(with_bounds("alias_power_db_channel_median"), (mean, mean - 1, mean + 0.8), strict=True))


def _penalty() -> pd.DataFrame:
    rows = []
    for run, weight in (("plain", 0.0), ("penalty", 1.0)):
        for epoch in range(7):
            accuracy = 0.9 * epoch / (epoch + 1) + 0.05
            aliases = 0.5 / (1 + weight * epoch / 3)
            bounds = {"accuracy_ci_low": accuracy - 0.04, "accuracy_ci_high": accuracy + 0.04}
            row = {"run": run, "weight": weight, "epoch": epoch, "am_relative": aliases, "accuracy": accuracy}
            rows.append({**row, **bounds, "n": 500})
    return pd.DataFrame(rows)


def _heatmap() -> pd.DataFrame:
    """Two networks, sensitive to high frequencies and to low ones; few images have labels."""
    i, j = (k.ravel() for k in np.meshgrid(np.arange(-4, 4), np.arange(-4, 4), indexing="ij"))
    size = {"height": 8, "width": 8, "i": i, "j": j, "f_u": i / 8, "f_v": j / 8}
    facts = {"norm": 4.0, "n": 64, "n_clusters": 50, "n_labelled": 20, "clean_error": 0.1}
    facts |= dict(zip(with_bounds("error"), (0.5, 0.3, 0.7), strict=True))
    radius = np.hypot(i, j) / 6
    shares = {MODELS["strided"]: radius, MODELS["blurpool"]: 1 - radius}
    ends = {"": 0.0, "_ci_low": -0.1, "_ci_high": 0.1}
    frames = [
        pd.DataFrame({f"disagreement{end}": share + shift for end, shift in ends.items()}).assign(
            model=model, **size, **facts
        )
        for model, share in shares.items()
    ]
    return pd.concat(frames, ignore_index=True)


# Perturbation → about how many of its images a plain network still gets right.
PERTURBED = {
    "clean": 0.9, "resize-0.5": 0.6, "resize-0.25": 0.25, "decimate-2": 0.3, "checkerboard-0.03": 0.75,
    "checkerboard-0.05": 0.45, "blur-decimate-2": 0.4, "checkerboard-0.03-normalised": 0.85,
}  # fmt: skip


def _nula(shape: Shape) -> dict[str, pd.DataFrame]:
    """Networks under perturbations, one image under some of them, and null spaces."""
    rng = np.random.default_rng(7)
    rows = []
    models = [MODELS["nula"], f"{MODELS['nula']}-robust", MODELS["strided"], MODELS["blurpool"]]
    for model in models:
        for test, plain in PERTURBED.items():
            accuracy = plain if model == models[0] else float(rng.uniform(plain, 0.9))
            agreement = 1.0 if test == "clean" else accuracy - 0.05
            row: dict[str, object] = {"model": model, "perturbation": test, **_count(shape)}
            row |= {"n_labelled": 5 * shape.n_images, "base": models[0] if model != models[0] else np.nan}
            row |= {"delta_base_p_holm": np.nan if model == models[0] else float(rng.choice([0.001, 0.4]))}
            for name, share in (("accuracy", accuracy), ("agreement", agreement)):
                row |= {name: share, f"{name}_ci_low": share - 0.04, f"{name}_ci_high": min(share + 0.03, 1)}
            rows.append(row)
    return {
        "phase6_nula": pd.DataFrame(rows), "phase6_pixels": _pixels(rng),
        **_null_spaces(models, shape),
    }  # fmt: skip


def _pixels(rng: np.random.Generator) -> pd.DataFrame:
    image = rng.uniform(size=(8, 8, 3)).round(2)
    board = 0.05 * (-1.0) ** np.indices((8, 8)).sum(0)[..., None]
    panels = {
        "clean": image,
        "resize-0.25": np.broadcast_to(image.mean((0, 1)), image.shape),
        "decimate-2": image[::2, ::2].repeat(2, 0).repeat(2, 1),
        "checkerboard-0.05": image + board,
    }
    rows, columns = np.indices((8, 8)).reshape(2, -1)
    parts = []
    for panel, pixels in panels.items():
        colours = dict(zip(("red", "green", "blue"), pixels.reshape(-1, 3).T, strict=True))
        parts.append(pd.DataFrame({"panel": panel, "row": rows, "column": columns, **colours}))
    return pd.concat(parts, ignore_index=True)


def _null_spaces(models: list[str], shape: Shape) -> dict[str, pd.DataFrame]:
    f_u, f_v = (f.ravel() for f in np.meshgrid(np.linspace(0, 0.5, 5), np.linspace(0, 0.5, 5), indexing="ij"))
    maps, rows = [], []
    for place, operator in enumerate(("resize-0.5", "decimate-2")):
        share = 1 - np.cos(np.pi * f_u) ** 2 * np.cos(np.pi * f_v) ** 2 if place == 0 else 0.75
        maps.append(pd.DataFrame({"operator": operator, "f_u": f_u, "f_v": f_v, "share": share}))
        shares = {"null_share": 0.02 + 0.7 * place, "null_share_no_mean": 0.13 + 0.6 * place}
        for model in models:
            row = {"model": model, "operator": operator, "pixels": 64, "null_dimension": 48}
            row |= {**_count(shape), "checkerboard_share": 1 - 0.25 * place}
            for name, value in shares.items():
                row |= {name: value, f"{name}_ci_low": value - 0.01, f"{name}_ci_high": value + 0.01}
            rows.append(row)
    return {"fig26_null_space": pd.concat(maps, ignore_index=True), "phase6_null_space": pd.DataFrame(rows)}


def _stability(shape: Shape) -> dict[str, pd.DataFrame]:
    """Equivariance, one family exact; ΔSIS of the strided network alone; predictions along a diagonal."""
    rng = np.random.default_rng(8)
    equivariance: list[dict[str, object]] = []
    attribution: list[dict[str, object]] = []
    for site in _sites(shape):
        if site["tap"] != "dense":
            continue
        facts = {key: site[key] for key in ("model", "family", "site", "layer", "layer_index", "op")}
        for kind in ("whole", "sub-pixel"):
            psnr = np.inf if site["family"] == "nula" else float(rng.uniform(20, 35))
            error = 0.0 if site["family"] == "nula" else float(rng.uniform(0.1, 0.5))
            row = {**facts, "kind": kind, **_count(shape), "psnr_db": psnr, "relative_error": error}
            row |= {"psnr_db_ci_low": psnr - 1, "psnr_db_ci_high": psnr + 1.5}
            equivariance.append(
                row | {"relative_error_ci_low": 0.9 * error, "relative_error_ci_high": 1.1 * error}
            )
        if site["family"] == "strided":
            attribution.append({**facts, **_replaced(rng, shape), "significance": "**"})
        else:
            attribution.append({**facts, "n": 0, "n_clusters": 0, "reason": "it is anti-aliased already"})
    whole = {"model": MODELS["strided"], "family": "strided", "site": "all sites", "layer": "all sites"}
    attribution.append({**whole, "layer_index": 99, "op": "conv", **_replaced(rng, shape)})
    traces = []
    for family, model in MODELS.items():
        for image in range(4):
            confidence = rng.uniform(size=33)
            facts = {"model": model, "family": family, "image": f"photo{image:04d}.png", "n": 4}
            own = {"offset": np.arange(33), "confidence": confidence, "changed": confidence < 0.4}
            traces.append(pd.DataFrame({**facts, **own}))
    return {
        "phase4_equivariance": pd.DataFrame(equivariance),
        "phase4_attribution": pd.DataFrame(attribution),
        "phase4_diagonal_trace": pd.concat(traces, ignore_index=True),
    }


def _count(shape: Shape) -> dict[str, int]:
    return {"n": shape.n_images, "n_clusters": 12}


def _replaced(rng: np.random.Generator, shape: Shape) -> dict[str, object]:
    delta, agreement = float(rng.uniform(-0.02, 0.01)), float(rng.uniform(0.8, 1))
    row: dict[str, object] = {**_count(shape), "delta_sis": delta}
    row |= {"delta_sis_ci_low": delta - 0.01, "delta_sis_ci_high": delta + 0.01, "significance": ""}
    return row | {"agreement": agreement, "agreement_ci_low": agreement - 0.1, "agreement_ci_high": 1.0}


LAYERS = ("strided", "blurpool", "blurpool-5", "learned", "flc", "aps", "wavelet-bior2.2", "space-to-depth")


def _layers() -> pd.DataFrame:
    """Layers of nearly one cost, some tuned; one without aliases, one with none to measure."""
    rng = np.random.default_rng(6)
    source = {
        "accuracy_source": "test images of cifar10-jpeg",
        "latency_batch": 16,
        "device": "cpu",
        "n": 64,
        "n_clusters": 40,
    }
    rows = []
    for method in ("original", *LAYERS):
        cost = 1.0 if method == "original" else float(rng.uniform(1.2, 1.4))
        states = ["original"] if method == "original" else ["converted", "tuned"]
        for state in states[: 1 if method == "blurpool-5" else 2]:
            sis = float(rng.uniform(0.02, 0.05))
            row: dict[str, object] = {"method": method, "state": state, "latency_ratio": cost, **source}
            row |= {"sis": sis, "sis_ci_low": 0.7 * sis, "sis_ci_high": 1.4 * sis}
            row |= {"accuracy": np.nan if state == "converted" else float(rng.uniform(0.8, 0.9))}
            ratio = 1e-14 if method == "flc" else float(rng.uniform(0.01, 0.3))
            lossless = method == "space-to-depth"
            row |= {} if lossless else _decibels(ratio)
            row |= {"aliasing_reason": "lossless: every sample is kept, as a channel" if lossless else ""}
            rows.append(row)
    return pd.DataFrame(rows)


def _compared(per_image: pd.DataFrame) -> pd.DataFrame:
    """Both families against the strided one, at like sites, and of the whole model."""
    rows: list[dict[str, object]] = []
    facts = {"model_a": MODELS["strided"], "n": per_image["image"].nunique(), "n_clusters": 12}
    for family in ("blurpool", "nula"):
        own = per_image[per_image["family"] == family]
        for (index, layer), here in own.groupby(["layer_index", "layer"]):
            other = per_image[(per_image["family"] == "strided") & (per_image["layer"] == layer)]
            names = {("dense", "avr"): "avr_separable_exclude_dc", ("input", "avr"): "avr",
                     ("dense", "am_relative"): "alias_power_db_channel_median"}  # fmt: skip
            for (tap, metric), name in names.items():
                row = {**facts, "model_b": MODELS[family], "layer": layer, "layer_index": index, "tap": tap}
                row |= _sides(*(t.loc[t["tap"] == tap, metric] for t in (other, here)))
                rows.append({**row, "metric": name, "significance": "***" if index else ""})
        whole = [per_image.loc[per_image["family"] == f, "sis"] for f in ("strided", family)]
        rows.append({**facts, "model_b": MODELS[family], "metric": "sis", **_sides(*whole)})
        rows.append({**facts, "model_b": MODELS[family], "metric": "agreement", "mean_b": 0.8})
        rows.append({**facts, "model_b": MODELS[family], "n": 0, "n_clusters": 0, "reason": "no like site"})
    return pd.DataFrame(rows)


def _budget() -> pd.DataFrame:
    """Two networks, three sources, the rest, and the places of one source."""
    shares = {"total": 1.0, "decimation": 0.4, "nonlinearity": 0.35, "border": 0.24, "unexplained": 0.01}
    rows: list[dict[str, object]] = []
    for model, metric in itertools.product(MODELS.values(), ("sis", "logit_jitter")):
        for source, share in shares.items():
            for site, part in (("", share), *((f"layer{i}", share / 3) for i in range(3 * (share == 0.4)))):
                rows.append({
                    "model": model, "metric": metric, "source": source, "site": site, "n_clusters": 12,
                    "share": part, "share_ci_low": part - 0.05, "share_ci_high": part + 0.05,
                    "first_in": part / 2, "last_out": part * 1.5, "agreement": float("nan") if site else 0.7,
                })  # fmt: skip
    rows.append({"model": "net", "metric": "", "source": "position", "site": "fc", "reason": "flattened"})
    return pd.DataFrame(rows)


def _sides(first: pd.Series, second: pd.Series) -> dict[str, float]:
    row = {}
    for side, values in (("a", first), ("b", second)):
        mean = float(values.mean())
        row |= {f"mean_{side}{end}": scale * mean for end, scale in zip(BOUNDS, (1, 0.9, 1.1), strict=True)}
    return row


# Network → training and downsampling; the last is of a library, and no kind that has a colour or a marker.
ATTACKED = {
    "bundled/resnet20": ("standard", "strided"),
    "bundled/resnet20-blurpool": ("standard", "blurpool"),
    "bundled/resnet20-tuned-flc": ("standard", "flc"),
    "bundled/nula-w32-robust": ("robust", "blurpool"),
    "bundled/resnet20-fgsm": ("fgsm", "strided"),
    "bundled/resnet20-control": ("standard", "strided"),
    "bundled/resnet20-tuned-flc-fgsm": ("fgsm", "flc"),
    "robustbench/Wang2020Improving": ("adversarial", "as published"),
    "elsewhere/net": ("unheard of", "learned"),
}
LEVELS = ("step 1, main path", "step 1, shortcut", "step 2, main path", "step 2, shortcut")


def _robustness() -> dict[str, pd.DataFrame]:
    """Networks that attacks leave something of, and others; flc has no aliases, one disordered attacks."""
    rng = np.random.default_rng(7)
    networks: list[dict[str, object]] = []
    sites: list[dict[str, object]] = []
    for model, (training, downsampling) in ATTACKED.items():
        strength = 0.0 if training == "standard" else float(rng.uniform(0.2, 0.5))
        row: dict[str, object] = {"model": model, "training": training, "downsampling": downsampling}
        row |= {
            "response": "robust accuracy",
            "n": 128,
            "n_clusters": 128,
            "attacks_ordered": training != "robust",
        }
        shares = {"pgd-50-weak": 1.6, "fgsm": 1.2, "pgd-50": 1.1, "apgd-ce": 1.05, "autoattack": 1.0,
                  "gaussian_noise": 0.7, "defocus_blur": 0.8, "jpeg_compression": 1.3}  # fmt: skip
        for test, share in shares.items():
            row |= _shares(f"{test}_accuracy", strength * share) | _shares(f"{test}_agreement", strength)
        for name in ("clean_accuracy", "test_accuracy", "consistency"):
            row |= _shares(name, float(rng.uniform(0.7, 0.9)))
        free = downsampling == "flc"
        ratio = 1e-14 if free else float(rng.uniform(0.02, 0.3))
        networks.append({**row, **_decibels(ratio), **_shares("am_relative", ratio**0.5)})
        for level in LEVELS:
            am = 1e-6 if free else float(rng.uniform(0.2, 6))
            site = {"model": model, "level": level, "am": am, "am_ci_low": 0.9 * am, "am_ci_high": 1.1 * am}
            sites.append({**site, "alias_free": free})
    return {
        "phase9_networks": pd.DataFrame(networks),
        "phase9_sites": pd.DataFrame(sites),
        "phase9_correlation": _ranked(rng),
    }


def _ranked(rng: np.random.Generator) -> pd.DataFrame:
    """Coefficients with intervals; one has none, and one isn't determined at all."""
    rows = []
    for group in ("all", "standard"):
        for metric in ("am", "am_relative", "alias_power_ratio_channel_median"):
            for level in (*LEVELS, "mean over sites"):
                row: dict[str, object] = {"networks": group, "attack": "autoattack", "n_networks": 8}
                for name in ("spearman", "partial"):
                    value = float(rng.uniform(-0.9, 0.3))
                    bounds = {f"{name}_ci_low": value - 0.1, f"{name}_ci_high": min(value + 0.4, 1.0)}
                    row |= {name: value, **bounds}
                row |= {"metric": metric, "level": level}
                rows.append(row)
    table = pd.DataFrame(rows)
    table.loc[1, ["spearman_ci_low", "spearman_ci_high"]] = np.nan
    table.loc[2, ["partial", "partial_ci_low", "partial_ci_high"]] = np.nan
    return table


def _repair() -> pd.DataFrame:
    """An unaltered network, two layers in each state of repair."""
    states = ("as converted", "recalibrated", "reconstructed", "distilled")
    methods = ("flc", "aps@layer2.0.conv1")
    names = [("unaltered", "unaltered"), *((method, state) for method in methods for state in states)]
    rows: list[dict[str, object]] = []
    for place, (method, state) in enumerate(names):
        shares = {
            **_shares("accuracy", 0.5 + 0.04 * place), **_shares("agreement", 1 - 0.05 * place),
            **_shares("sis", 0.1 + 0.01 * place), **_shares("consistency_both", 0.8 + 0.02 * place),
        }  # fmt: skip
        facts = {"model": "bundled/resnet20", "method": method, "repair": state}
        rows.append({**facts, "n": 40, "n_labelled": 40, "n_tuned": 20, **shares})
    return pd.DataFrame(rows)


def _shares(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_ci_low": max(value - 0.08, 0.0), f"{name}_ci_high": min(value + 0.08, 1.0)}
