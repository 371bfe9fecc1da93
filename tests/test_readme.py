"""README: its code runs, its commands exist; its numbers and those of docs/results.md are the tables'."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from command import run_code
from PIL import Image

from spectral import cli
from spectral.experiments.tuning import LAYER_METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("spectral ")
]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_code_runs(code: str, tmp_path: Path, no_network: list[object]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat.png")
    few = re.sub(r"(limit=|take\()\d+", r"\g<1>8", code)  # so many images show that it runs
    run_code(few, tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    called = cli.main.commands[name]
    with click.Context(called, info_name=name) as context:
        called.parse_args(context, arguments)
    given = {part.partition("=")[0] for part in arguments if part.startswith("--")}
    known = {option for parameter in called.params for option in parameter.opts}
    assert given <= known


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) >= 1
    assert len(COMMANDS) >= 8


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:experiments|benchmarks|tests|results|docs)/[\w/.-]+)`", TEXT + RESULTS):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT):
        assert (ROOT / name).exists(), name


def test_numbers_are_those_of_the_tables() -> None:
    said = " ".join(f"{TEXT} {RESULTS}".split())
    for sentence in (
        *say_survey(),
        *say_resampling(),
        *say_checkerboards(),
        *say_averaged(),
        *say_blame(),
        *say_attacks(),
        *say_attacks_on_more_images(),
        *say_attacks_on_a_published_network(),
        *say_repair(),
        *say_distillation(),
        *say_costs(),
        *say_costs_on_a_cpu(),
        *say_what_closes(),
        *say_what_predicts(),
        *say_remedies(),
    ):
        assert sentence in said, sentence


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / "reference" / "tables" / f"{name}.csv")


def write(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def say_survey() -> list[str]:
    table = read("coverage_third_party")
    found = table[table["find"] == "found"]
    true = found[found["missed"].isna() & found["false"].isna()]
    with_sites = table[table["measurable"] > 0]
    converted = (with_sites["convert"] == "converted").sum()
    return [
        f"its run over {len(table)} of 358", f"sites found in {len(found)}, complete and true in {len(true)}",
        f"measured with the defaults {(table['measure'] == 'measured').sum()}",
        f"converted {converted} of {len(with_sites)}",
    ]  # fmt: skip


def say_resampling() -> list[str]:
    table = read("phase6_nula").set_index(["model", "perturbation"])
    asked = ["resize-0.5", "resize-0.25", "decimate-2", "blur-decimate-2"]
    lost = [-100 * table.loc[f"bundled/nula-w32{end}"].loc[asked, "delta_clean"] for end in ("", "-robust")]
    (plain, robust), cost = lost, -100 * table.loc[("bundled/nula-w32-robust", "clean"), "delta_base"]
    return [
        f"(phase 6, {table['n'].max():,} images): NULA loses {plain.min():.0f} to {plain.max():.0f} points "
        f"under it, and {robust.min():.0f} to {robust.max():.0f} when trained on it, which costs {cost:.1f} ",
    ]


def say_checkerboards() -> list[str]:
    table = pd.read_csv(ROOT / "results" / "reference" / "published-cifar10" / "tables" / "phase6_nula.csv")
    share = (100 * table.set_index(["model", "perturbation"])["accuracy"]).map("{:.1f}".format)
    base, clean, robust = (
        "cifar-hub/resnet20",
        "resnet20-clean.safetensors",
        "resnet20-nula-robust.safetensors",
    )
    board = "checkerboard-0.05"
    tuned = pd.read_csv(
        ROOT / "results" / "reference" / "checkerboard-training" / "tables" / "checkerboard_training.csv"
    )
    deep = pd.read_csv(
        ROOT / "results" / "reference" / "published-cifar10-resnet56" / "tables" / "phase6_nula.csv"
    )
    held = (100 * deep.query("perturbation == @board").set_index("model")["accuracy"]).map("{:.1f}".format)
    first = tuned.query("perturbation == @board and seed == 0").set_index("variant")["accuracy"]
    kept = (100 * first).map("{:.1f}".format)
    return [
        f"it keeps {kept['as published']} % of the others, at four times the rate {kept['rate 0.2']} %, on "
        f"JPEG copies of the same ones {kept['jpeg']} % (`checkerboard-training`, a run each",
        f"keeps {held['resnet56-robust.safetensors']} % where it kept {held['cifar-hub/resnet56']} (",
        f"({table['n'].max():.0f} lossless CIFAR-10 images",
        f"keeps {share[base, board]} % of its {share[base, 'clean']} %",
        f"keeps {share[robust, board]} of {share[robust, 'clean']} %",
        f"{share[clean, board]} of {share[clean, 'clean']} %",
        f"{share[robust, 'resize-0.25']} % for {share[base, 'resize-0.25']} under `resize-0.25`",
        f"{share[robust, 'decimate-2']} for {share[base, 'decimate-2']} under `decimate-2`",
    ]


def say_averaged() -> list[str]:
    said = []
    for network, words in (
        (
            "resnet20",
            ("gains {:.1f} points under ε = .05", "{:.1f} to {:.1f} under resampling, for {:.1f} clean"),
        ),
        ("resnet56", ("`), {:.1f} and ", "{:.1f} to {:.1f}, for {:.1f}.")),
    ):
        folder = "averaged-cifar10" if network == "resnet20" else f"averaged-cifar10-{network}"
        table = pd.read_csv(ROOT / "results" / "reference" / folder / "tables" / "phase6_nula.csv")
        gain = (100 * table.set_index(["model", "perturbation"])["delta_base"])[f"{network}-mean.safetensors"]
        resampled = gain[["resize-0.5", "resize-0.25", "decimate-2"]]
        assert table["base"].dropna().unique().tolist() == [f"cifar-hub/{network}"]
        assert table["n"].max() == 3000
        said += [
            words[0].format(gain["checkerboard-0.05"]),
            words[1].format(resampled.min(), resampled.max(), -gain["clean"]),
        ]
    return ["scored on the other 3000, ", *said]


def say_blame() -> list[str]:
    table = read("phase4_attribution")
    single = table[table["layer"] != "all sites"]
    certain = single[single["p_holm"] < 0.05]
    assert list(certain["model"]) == ["bundled/nula-w32"]
    assert certain["layer_index"].iloc[0] == 0
    row = certain.iloc[0]
    return [
        f"(phase 4, {row.n_clusters:.0f} photographs)",
        f"(ΔSIS {write(row.delta_sis, 4)}, Holm p = {write(row.p_holm, 3)[1:]})",
    ]


def say_attacks() -> list[str]:
    networks, pairs, related = (read(f"phase9_{name}") for name in ("networks", "pairs", "correlation"))
    robust = networks.groupby("training")["autoattack_accuracy"].agg(["min", "max", "size"])
    attacked = robust.loc[[name for name in robust.index if "fgsm" in name.lower()]]
    rest = robust.drop(attacked.index)
    assert rest["max"].max() == 0
    low, high = attacked["min"].min(), attacked["max"].max()
    median = "alias_power_ratio_channel_median"
    row = related.query("networks == 'all' and attack == 'autoattack' and response == 'robust accuracy' and "
                        f"metric == '{median}' and level == 'mean over sites'").iloc[0]  # fmt: skip
    pair = pairs.query(f"pair == 'all' and metric == '{median}' and level == 'mean over sites'").iloc[0]
    assert pair["n"] == pair["n_lower"] == attacked["size"].sum() == 3
    assert (pairs.query("metric == @median and pair != 'all'")["reference"] == "control").sum() == 2
    return [
        f"{len(networks)} networks, {networks['n'].max():.0f} images",
        f"is 0 for the {rest['size'].sum()} networks trained without attacks and {write(low)[1:]} to "
        f"{write(high)[1:]} for the three trained on them",
        f"Spearman of the median alias power ratio {write(row.spearman)}, {write(row.spearman_ci_low)} to "
        f"{write(row.spearman_ci_high)}; Holm p = {row.spearman_p_holm:.2g} over",
        f"given clean accuracy {write(row.partial)}, {write(row.partial_ci_low)} to "
        f"{write(row.partial_ci_high)})",
        f"(to {write(pair.ratio)} of it, {write(pair.ratio_ci_low)} to {write(pair.ratio_ci_high)}; Holm p = "
        f"{pair.p_holm:.2g})",
    ]


def say_attacks_on_more_images() -> list[str]:
    """Beside phase 9 as committed: more images and pairs, and the whole of AutoAttack on some images."""
    folder = ROOT / "results" / "reference" / "robustness-1024" / "tables"
    networks, pairs, related = (
        pd.read_csv(folder / f"phase9_{name}.csv") for name in ("networks", "pairs", "correlation")
    )
    whole = pd.read_csv(folder / "autoattack.csv")
    weak = pd.read_csv(folder / "attack_pairs.csv").set_index("model")
    asap, flc = (weak.loc[f"bundled/resnet20-tuned-{layer}"] for layer in ("asap", "flc"))
    kept = 100 * whole["autoattack_accuracy"]
    row = related.query("networks == 'all' and attack == 'pgd-50' and level == 'mean over sites' and "
                        "metric == 'alias_power_ratio_channel_median'").iloc[0]  # fmt: skip
    attacked = networks["training"] == "fgsm"
    left = 100 * networks["pgd-50_accuracy"]
    assert left[~attacked].max() == 0
    every = pairs.query("pair == 'all' and level == 'mean over sites'").set_index("metric")
    pooled, median, am = (
        every.loc[name] for name in ("alias_power_ratio", "alias_power_ratio_channel_median", "am")
    )
    assert pooled["n"] == pooled["n_lower"] == am["n"]
    assert (pairs.query("pair != 'all'")["reference"] == "control").all()
    return [
        f"On {networks['n'].max():.0f} images ({len(networks)} networks, ",
        f"on {whole['n'].max()} of the images, leaves {kept.min():.0f} to {kept.max():.0f} % "
        f"({len(whole)} of",
        f"(Spearman of the median alias power ratio {write(row.spearman)}, {write(row.spearman_ci_low)} to "
        f"{write(row.spearman_ci_high)}). Against",
        f"PGD with 50 steps leaves nothing right of the {(~attacked).sum()} networks trained without attacks "
        f"and {left[attacked].min():.0f} to {left[attacked].max():.0f} % of the {attacked.sum()} trained on",
        f"the pooled ratio to {write(pooled.ratio)} of it ({write(pooled.ratio_ci_low)} to "
        f"{write(pooled.ratio_ci_high)}; Holm p = {write(pooled.p_holm, 3)[1:]}) in all {pooled['n']:.0f} "
        "pairs",
        f"AM to {write(am.ratio)} ({write(am.ratio_ci_low)} to {write(am.ratio_ci_high)})",
        f"the median ratio in {median.n_lower:.0f} of {median['n']:.0f} (to {write(median.ratio)}, "
        f"{write(median.ratio_ci_low)} to {write(median.ratio_ci_high)})",
        f"ASAP and FLC keep {100 * asap.difference:.1f} and {100 * flc.difference:.1f} points more than the "
        f"strided network (Holm p = {write(asap.p_holm, 3)[1:]} and {write(flc.p_holm, 3)[1:]})",
    ]


def say_attacks_on_a_published_network() -> list[str]:
    tables = ROOT / "results" / "reference" / "published-cifar10" / "tables"
    (row,) = pd.read_csv(tables / "phase9_networks.csv").to_dict("records")
    assert row["model"] == "cifar-hub/resnet20"
    kept = 100 * row["pgd-50-weak_accuracy"]
    return [f"published ResNet-20 ({row['n']} images, ", f"keeps {kept:.1f} % under PGD-50 at 1/255"]


def say_distillation() -> list[str]:
    """Made on another machine than the rest of the repairs: its times don't compare with theirs."""
    said, rows = {}, {}
    tables = {
        "flc": "repair-distilled", "asap": "repair-distilled", "blurpool": "repair-distilled-blurpool",
        "flc, three views": "repair-views",
    }  # fmt: skip
    for name, folder in tables.items():
        path = ROOT / "results" / "reference" / folder / "tables" / "repair.csv"
        method = name.partition(",")[0]
        row = rows[name] = pd.read_csv(path).set_index(["method", "repair"]).loc[(method, "distilled")]
        lost, low, high = -100 * row[["accuracy_change", "accuracy_change_ci_high", "accuracy_change_ci_low"]]
        said[name] = (
            f"{100 * row['accuracy']:.1f} %, at {lost:.1f} points ({low:.1f} to {high:.1f}), with "
            f"{100 * (1 - row['sis_ratio']):.0f} % less SIS and "
            f"{100 * (1 - row['logit_jitter_ratio']):.0f} % less jitter".replace("(-", "(−")
        )
        effort = json.loads(path.with_suffix(".json").read_text())["effort"]
        assert effort["zoom"] == (0.5 if method == "blurpool" else 0.75)
        assert effort["views"] == (3 if folder == "repair-views" else 1)
    alone = read("repair").set_index(["method", "repair"])["accuracy"]["blurpool", "reconstructed"]
    assert rows["blurpool"]["accuracy"] <= alone
    return [
        f"with {rows['flc']['n_tuned']} of the other half, on a CPU; `repair-distilled`) bring FLC at all "
        f"five sites to {said['flc']}",
        f"as are ASAP's {said['asap']}",
        f"Three views of each image in FLC's fit (`repair-views`) give {said['flc, three views']}",
        f"(`repair-distilled-blurpool`), has {said['blurpool']}: accuracy no better than by the fit alone",
    ]


def say_repair() -> list[str]:
    table = read("repair")
    table["method"] = table["method"].str.replace("@.*", ", some", regex=True)
    table = table.set_index(["method", "repair"])
    top = (100 * table["accuracy"]).map("{:.1f}".format)
    lost = (-100 * table["accuracy_change"]).map("{:.1f}".format)
    fitted = table.xs("reconstructed", level="repair")
    low, high = -100 * fitted.loc["blurpool", ["accuracy_change_ci_high", "accuracy_change_ci_low"]]
    sis = (100 * (1 - fitted["sis_ratio"])).map("{:.0f} %".format)
    jitter = (100 * (1 - fitted["logit_jitter_ratio"])).map("{:.0f} %".format)
    aps = table.loc["aps"].loc[["as converted", "recalibrated"], ["sis_ratio", "logit_jitter_ratio"]]
    assert (aps > 1).all(axis=None)
    return [
        f"takes top-1 from {top['unaltered', 'unaltered']} to {top['blurpool', 'as converted']} %.",
        f"it is {top['blurpool', 'reconstructed']} %, and shifts by one pixel move its predictions "
        f"{sis['blurpool']} less (SIS), its logits {jitter['blurpool']} less (jitter)",
        f"top-1 of {top['unaltered', 'unaltered']} % falls to {top['blurpool', 'as converted']} % "
        f"with BlurPool put in and to {top['flc', 'as converted']} % with FLC",
        f"bring back {top['blurpool', 'recalibrated']} and {top['flc', 'recalibrated']} %",
        f"{top['blurpool', 'reconstructed']} and {top['flc', 'reconstructed']} %. BlurPool then has "
        f"{sis['blurpool']} less SIS and {jitter['blurpool']} less logit jitter than the unaltered network, "
        f"at {lost['blurpool', 'reconstructed']} points ({low:.1f} to {high:.1f})".replace("(-", "(−"),
        f"FLC has {sis['flc']} less SIS and {jitter['flc']} less jitter, at "
        f"{lost['flc', 'reconstructed']} points",
        f"FLC costs {lost['flc, some', 'reconstructed']} points and takes {sis['flc, some']} of SIS and "
        f"{jitter['flc, some']} of jitter, BlurPool {lost['blurpool, some', 'reconstructed']} points",
        f"APS, which costs {-100 * table['accuracy_change']['aps', 'as converted']:.0f} point as converted",
        f"by statistics ({top['aps', 'recalibrated']} %)",
    ]


def say_costs() -> list[str]:
    budget = read("phase10_budget").query("model == 'bundled/resnet20' and metric == 'logit_jitter'")
    share = budget[budget["site"].isna()].set_index("source")["share"]
    ratios = read("gpu_ratios").query("layout == 'channels_last, fp32'").set_index("variant")["x_bare"]
    whole = read("gpu_whole").set_index("variant")["study_over_this"]
    assert (read("gpu_waits")["waits"] == 0).all()
    faults = read("faults")
    assert (faults["faults"] == 0).all()
    made = faults.groupby("fault")["trials"].sum()
    return [
        f"is to {100 * share['decimation']:.0f} % decimation's doing, to "
        f"{100 * share['nonlinearity']:.0f} % the nonlinearities' and to "
        f"{100 * share['border']:.0f} % the borders'",
        f"AVR takes it to {ratios['avr input']:.2f} ×, AVR and AM at the dense tap to "
        f"{ratios['avr+am dense']:.2f} ×",
        f"of AVR is {whole['measure avr, input']:.0f} times as fast as the study's way, of everything by "
        f"default {whole['measure defaults']:.0f} times",
        f"{made['kills']} kills, {made['writers']} pairs of writers, {made['bits']} flipped bits, "
        f"{made['interrupts']} interrupts and {made['threads']} pairs of threads",
    ]


def say_costs_on_a_cpu() -> list[str]:
    ratio = read("overhead").set_index("variant")["x_bare"]
    wall = read("overhead_whole").query("clock == 'wall'").set_index(["case", "variant"])["x_bare"]
    whole, worst = wall["whole call"], wall["whole call, band-limited maps"]
    share = 100 * read("identity").set_index("check")["share"]["all checks"]
    decoded = 100 * read("decoding").set_index("way")["share"]["spectral"]
    budget = read("budget_cost").set_index("model")
    small, large = budget.loc["bundled/resnet20"], budget.loc["timm/resnet50@random"]
    assert large["height"] == 224
    return [
        f"AVR takes it to {ratio['AVR, input, 7 convs']:.2f} ×, AVR and AM at the dense tap to "
        f"{ratio['AVR + AM, dense, 8 sites']:.2f} ×. Whole",
        f"take {whole['AVR, input']:.2f} and {whole['AVR + AM, dense']:.2f} × as long as",
        f"takes {worst['AVR, input']:.2f} × where",
        f"is {share:.1f} % of a `measure`",
        f"decoding reaches {decoded:.0f} % of what",
        f"of three sources costs {small['budget_passes']:.0f} forward passes of its images "
        f"({small['n']:.0f}, `resnet20`; {small['separate_passes']:.0f} one set of sources at a time), and "
        f"{large['seconds_busy']:.0f} s of a processor for a ResNet-50 on {large['n']:.0f} images",
    ]


def say_what_closes() -> list[str]:
    budget = read("phase10_budget").query("metric == 'logit_jitter'")
    share = 100 * budget[budget["site"].isna()].set_index(["model", "source"])["share"]
    blurred, nula = share["bundled/resnet20-blurpool"], share["bundled/nula-w32"]
    left = max(
        share[f"bundled/{name}"]["unexplained"] for name in ("resnet20", "resnet20-blurpool", "nula-w32")
    )
    total = budget[budget["source"] == "total"].set_index("model")["value"]
    tuned = {name: f"bundled/resnet20-tuned-{name}" for name in LAYER_METHODS if name != "strided"}
    part = {name: share[own]["decimation"] for name, own in tuned.items()}
    jitter = {name: f"{total[own]:.3f}".lstrip("0") for name, own in tuned.items()}
    borders = [share[own]["border"] for own in tuned.values()]
    spared = {name for name, own in part.items() if abs(own) < 1e-6}
    unexplained = {name: share[own]["unexplained"] for name, own in tuned.items()}
    assert max(left for name, left in unexplained.items() if name != "space-to-depth") < 1
    assert spared == {"flc", "asap", "aps", "lps", "space-to-depth"}
    table = read("closure")
    rest = 100 * table[["sis_unexplained", "logit_jitter_unexplained"]]
    closed = (rest <= 2).all(axis=1)
    open_ = table[(rest > 2).any(axis=1)]
    assert open_.empty
    assert list(table[~closed]["reason"].str.contains("one sample")) == [True]
    return [
        f"with BlurPool to {blurred['decimation']:.0f}, {blurred['nonlinearity']:.0f} and "
        f"{blurred['border']:.0f} %; of `nula-w32` it is the borders' ({nula['border']:.0f} %)",
        f"they leave at most {left:.1f} % of it",
        f"BlurPool {part['blurpool']:.0f} %, "
        f"wavelets {part['wavelet']:.0f} and {part['wavelet-bior2.2']:.0f} %",
        f"{unexplained['space-to-depth']:.0f} % is nobody's: it stays unexplained",
        f"is to {min(borders):.0f} to {max(borders):.0f} % the borders'",
        f"({jitter['aps']} and {jitter['lps']}, not "
        f"{total['bundled/resnet20-tuned-strided']:.3f}; FLC {jitter['flc']})".replace(" 0.", " ."),
        f"In {closed.sum()} of {len(table)} pairs of network and image size ({table['height'].min()} to "
        f"{table['height'].max()} px",
        f"the causes leave at most {rest[closed].max(axis=None):.1f} % of SIS and of the jitter",
    ]


def say_what_predicts() -> list[str]:
    table = read("phase4_confidence")
    r2 = table.set_index(["response", "predictors"])["r2"]
    margin, avr = 100 * r2["log sis", "logit margin"], r2["log sis", "AVR of all layers"]
    assert (r2["log logit_jitter", "logit margin"] < 0).all()
    partial = read("phase4_partial").query("predictor == 'avr'")
    certain = partial[partial["p_holm"] < 0.05]
    jitter = certain.query("response == 'logit_jitter'")["spearman_given_margin"]
    assert (certain["response"] == "sis").sum() == 1
    return [
        f"(phase 4, {table['n_clusters'].max()} photographs)",
        f"explains {margin.min():.0f} to {margin.max():.0f} % of the variance of log SIS",
        f"(R² {write(avr.min())} to {write(avr.max())})",
        f"at {len(jitter)} of {(partial['response'] == 'logit_jitter').sum()} sites beyond chance "
        f"(rank correlation {write(jitter.min())[1:]} to {write(jitter.max())[1:]})",
    ]


def say_remedies() -> list[str]:
    table = read("remedies").set_index("model")
    net, control = table.loc["bundled/resnet20-remedied"], table.loc["bundled/resnet20-remedied-control"]
    assert net["n"] == control["n"]
    return [
        f"({net['n']} test images)",
        f"has an SIS of {net['sis']:.0e}, its control of {control['sis']:.3f}".replace("0.", "."),
        f"({100 * net['accuracy']:.1f} and {100 * control['accuracy']:.1f} %;",
        f"after {net['epochs']} and {control['epochs']} epochs",
        f"takes {net['latency_ratio']:.1f} times as long",
    ]  # fmt: skip
