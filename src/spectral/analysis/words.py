"""What a diagnosis says, in plain words and with its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd

from spectral.analysis.fixes import ALL_SITES
from spectral.analysis.levels import MEDIAN, POOLED_SIGNAL, Level, find_free, find_level
from spectral.operators import LOSSLESS
from spectral.stats.columns import bound_flags
from spectral.table.display import Card, write_share
from spectral.table.schema import ALIAS_FREE, to_decibels, with_bounds

NOTABLE = 0.01  # share of the power above which a site is said to alias: −20 dB
NOTHING = "–"
NONE = "none"
TENTH = 10  # photographs, of which one is a tenth
NEGLIGIBLE = 5e-5  # a share that is written as 0.00 %
SOURCES = {"decimation": "decimation", "nonlinearity": "nonlinearities", "border": "borders"}
ALPHA = 0.05
_PARTS = {"stability": "what shifts change", "fixes": "what fixes it"}


class Findings(Protocol):
    """What is read of a `spectral.Diagnosis`, which puts itself in words by these functions."""

    facts: dict[str, Any]
    sites: pd.DataFrame
    summary: pd.DataFrame
    stability: pd.DataFrame
    per_image: pd.DataFrame
    budget: pd.DataFrame
    fixes: pd.DataFrame
    missing: pd.DataFrame
    unasked: tuple[str, ...]


def write_headline(found: Findings) -> list[str]:
    """Say in a few sentences whether a network aliases, whether it matters, and what helps."""
    said = [
        _say_sites(found),
        *_say_stability(found),
        _say_causes(found.budget, _name_output(found)),
        *_say_fixes(found.fixes),
    ]
    left = [what for part, what in _PARTS.items() if part in found.unasked]
    if left:
        said.append(f"Not asked for: {', '.join(left)}; `spectral diagnose` measures it.")
    if len(found.missing):
        count = len(found.missing)
        said.append(f"{_plural(count, 'thing')} couldn't be measured; the reasons are below.")
    return [sentence for sentence in said if sentence]


def describe_diagnosis(found: Findings) -> Card:
    """Say what was found in a few lines: the headline, a row for each site, and what couldn't be measured."""
    facts = found.facts
    count = facts.get("image_count")
    images = "the images" if count is None else _plural(count, "image")
    lead = f"{facts.get('model', 'a network')}, on {images} of {facts.get('images')}"
    level = find_level(found.sites)
    header = ["site", "op", "stride", f"{level.name} (95 % interval)", "AVR, input", "AVR, dense"]
    rows = [
        [str(row["name"]), str(row["op"]), str(row["stride"]),
         format_interval(row, "level_db", format_db), format_number(row["avr_input"]),
         format_number(row["avr_dense"])]
        for row in found.sites.to_dict("records")
    ]  # fmt: skip
    reasons = [f"not measured: {row['what']}: {row['reason']}" for row in found.missing.to_dict("records")]
    return Card([lead, *write_headline(found)], [header, *rows] if rows else [], reasons)


def format_db(value: Any) -> str:
    """Write decibels; −100 dB, the floor of what tables write, and what is below it are rounding, and none.

    Example:
        >>> format_db(-6.123), format_db(-100.0), format_db(float("-inf")), format_db(None)
        ('−6.1 dB', 'none', 'none', '–')
    """
    if _is_unknown(value):
        return NOTHING
    return NONE if value <= -100 else f"{value:.1f} dB".replace("-", "−")


def format_share(value: Any) -> str:
    """Write a share in per cent, as `spectral.table.display.write_share` does, or that it is unknown.

    Example:
        >>> format_share(0.0931), format_share(float("nan"))
        ('9.3 %', '–')
    """
    return NOTHING if _is_unknown(value) else write_share(value)


def format_number(value: Any) -> str:
    """Write a number with three digits.

    Example:
        >>> format_number(0.01234), format_number(-0.5), format_number(4089184256)
        ('0.0123', '−0.5', '4.09e+09')
    """
    if _is_unknown(value):
        return NOTHING
    return f"{value:.3g}".replace("-", "−").replace("e−", "e-")


def format_count(value: Any) -> str:
    """Write how many there are, all digits of it.

    Example:
        >>> format_count(1234), format_count(50000.0), format_count(None)
        ('1234', '50000', '–')
    """
    return NOTHING if _is_unknown(value) else f"{value:.0f}"


def format_interval(row: Mapping[Any, Any], name: str, write: Any = format_number) -> str:
    """Write a mean with its interval.

    Example:
        >>> format_interval({"sis": 0.2, "sis_ci_low": 0.1, "sis_ci_high": 0.3}, "sis")
        '0.2 (0.1 to 0.3)'
        >>> format_interval({"x": -6.0, "x_ci_low": -6.5, "x_ci_high": -5.5}, "x", format_db)
        '−6.0 dB (−6.5 to −5.5)'
        >>> format_interval({"x": -100.0, "x_ci_low": -100.0, "x_ci_high": -100.0}, "x", format_db)
        'none'
    """
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    text: str = write(value)
    if _is_unknown(low) or _is_unknown(high):
        return text
    bounds = write(low), write(high)
    if {text, *bounds} == {NONE}:
        return text
    unit = text[len(text.rstrip("% dB")) :]
    return f"{text} ({bounds[0].removesuffix(unit)} to {bounds[1].removesuffix(unit)})"


def _say_sites(found: Findings) -> str:
    if "sites" in found.unasked:
        return "Its downsampling sites weren't looked at: nothing that is measured at them was asked for."
    if found.sites.empty:
        return "This network has no place where resolution drops: no decimation in it aliases."
    if "aliases" in found.unasked:
        metrics = ", ".join(sorted({*found.summary.loc[found.summary["site"] != "", "metric"]} - {""}))
        return (
            f"Neither the median channel's alias power ratio of its "
            f"{_plural(len(found.sites), 'downsampling site')} was asked for nor that of all channels "
            f"(measured: {metrics or 'nothing'})."
        )
    sites, level = found.sites, find_level(found.sites)
    known = sites[sites["level_ratio"].notna()]
    if known.empty:
        return _say_unmeasured(sites)
    bounded = known["level_ratio_ci_low"].notna()
    lowest, highest = (known[f"level_ratio{end}"].where(bounded, known["level_ratio"])
                       for end in ("_ci_low", "_ci_high"))  # fmt: skip
    count, there = int(known["n"].max()) if known["n"].notna().any() else 0, found.facts.get("image_count")
    on = "" if there is None or count == there or not count else f", on {_plural(count, 'image')}"
    where = "" if bounded.all() else " where there is one"
    sure = (
        f"interval included{where}" if bounded.any() else "without an interval, which needs two photographs"
    )
    sites_said = _plural(len(known), "measured site")
    said = _say_worst(known, level)
    loud = known[lowest > NOTABLE]
    if (highest <= ALIAS_FREE).all():
        return f"None of the {sites_said} passes on aliases{on}."
    if loud.empty and bounded.any() and not (highest <= NOTABLE).all():
        return f"None of the {sites_said} is sure to pass on more than 1 % aliases{on}; the most has {said}."
    if loud.empty:
        return f"None of the {sites_said} passes on more than 1 % aliases ({sure}{on}); the most has {said}."
    return (
        f"{len(loud)} of {sites_said} {'aliases' if len(loud) == 1 else 'alias'} "
        f"(more than 1 % of {level.power}, {sure}{on}); the worst is {said}.{_say_filtered(loud)}"
    )


def _say_worst(known: pd.DataFrame, level: Level) -> str:
    """Say which site aliases most, how much, and how much noise would that nothing filters."""
    worst = known.sort_values("level_ratio", ascending=False).iloc[0].to_dict()
    noise: Any = worst.get("white_noise") if level.metric == MEDIAN else None
    beside = "" if _is_unknown(noise) else f", where white noise has {format_db(to_decibels(float(noise)))}"
    note = f" ({level.note})" if level.note else ""
    return (
        f"{worst['name']} with {format_interval(worst, 'level_db', format_db)}{beside}: aliases are "
        f"{format_share(worst['level_ratio'])} of {level.power}{note}"
    )


def _say_filtered(loud: pd.DataFrame) -> str:
    """Say at how many of the sites that alias a filter stands, so that the aliases come from behind it."""
    made = loud[POOLED_SIGNAL].astype(float) > NOTABLE  # less may be rounding, or a border's
    count = int((find_free(loud) & made).sum())
    if not count:
        return ""
    where = "There" if len(loud) == 1 else f"At {'all' if count == len(loud) else count} of them"
    return (
        f" {where} nothing is left to fold at the tap dense: these aliases are made behind it, by a "
        f"nonlinearity on the coarser lattice."
    )


def _say_unmeasured(sites: pd.DataFrame) -> str:
    """Say why no site has a value: what keeps every sample has nothing to be measured."""
    lossy = int((sites["reason"] != LOSSLESS).sum())
    kept = f"{_plural(len(sites) - lossy, 'downsampling site')}"
    if not lossy:
        return f"Nothing aliases at its {kept}: every sample is kept, as a channel."
    more = f"; at {kept} every sample is kept" if lossy < len(sites) else ""
    return f"None of its {_plural(lossy, 'downsampling site')} could be measured{more}."


def _say_stability(found: Findings) -> list[str]:
    said = _say_changed(found.per_image)
    sis = found.stability[found.stability["metric"] == "sis"] if len(found.stability) else found.stability
    return [*said, *(_say_sis(row) for row in sis.to_dict("records"))]


def _say_changed(images: pd.DataFrame) -> list[str]:
    if images.empty:
        return []
    flags = images["n_changed"] > 0
    share = bound_flags("x", flags, images["cluster"])
    # else the share that follows would seem to be another than the count's
    once = ", each photograph counting once" if images["cluster"].nunique() < len(images) else ""
    return [
        f"Shifts by one pixel change the predicted class of {int(flags.sum())} of "
        f"{_plural(len(images), 'image')}{once}: {format_interval(share, 'x', format_share)}."
    ]


def _say_sis(sis: Mapping[Any, Any]) -> str:
    top, several = sis.get("top_tenth"), sis["n_clusters"] > 1
    tail = f", median {format_number(sis.get('median'))}" if several else ""
    if sis["n_clusters"] >= TENTH and not _is_unknown(top):
        tail += f"; a tenth of the photographs carries {format_share(top)} of it"
    bounds = {f"sis{end}": sis.get(key) for end, key in (("", "mean"), ("_ci_low", "ci_low"),
                                                         ("_ci_high", "ci_high"))}  # fmt: skip
    return f"SIS is {format_interval(bounds, 'sis')}{tail}."


def _name_output(found: Findings) -> str:
    """Say what it is of a network whose movement an instability budget tells of."""
    if found.facts.get("logits", "output") is None:
        return "its output"
    whole = found.stability
    reasons = list(whole.loc[whole["metric"] == "logit_jitter", "reason"]) if len(whole) else []
    return "its probabilities" if any("holds probabilities" in reason for reason in reasons) else "the logits"


def _say_causes(budget: pd.DataFrame, what: str) -> str:
    """Say which causes the movement of an output has, the largest first, and what none of them explains."""
    if budget.empty:
        return ""
    own = budget[(budget["metric"] == "logit_jitter") & budget["share"].notna()]
    causes = own[own["source"].isin(list(SOURCES))].sort_values("share", ascending=False)
    rest = own[own["source"] == "unexplained"].to_dict("records")
    if causes.empty or not rest:
        return ""
    parts, unsure = [], []
    for row in causes.to_dict("records"):
        none, name = _is_none(row), SOURCES[row["source"]]
        parts.append(f"{NONE if none else format_interval(row, 'share', format_share)} by {name}")
        if not none and row["share_ci_low"] <= 0 <= row["share_ci_high"]:
            unsure.append(name)
    images = _plural(int(rest[0]["n"]), "image")
    said = f"{', '.join(parts)}; {format_share(rest[0]['share'])} stays unexplained (on {images}"
    if causes["share_ci_low"].isna().all():
        return f"The movement of {what} is caused to {said}, which are too few for intervals)."
    have = "has" if unsure == [SOURCES["decimation"]] else "have"
    doubt = f" Whether {' and '.join(unsure)} {have} a part in it isn't sure." if unsure else ""
    return f"The movement of {what} is caused to {said}).{doubt}"


def _is_none(row: Mapping[Any, Any]) -> bool:
    """Whether a cause has no part in anything, its interval included."""
    known = [row[name] for name in with_bounds("share") if not _is_unknown(row[name])]
    return bool(max(map(abs, known)) < NEGLIGIBLE)


def _say_fixes(fixes: pd.DataFrame) -> list[str]:
    if fixes.empty:
        return []
    tried = fixes[fixes["n"].fillna(0) > 0]
    if tried.empty:
        first = fixes.iloc[0]
        where = f"{first['method']} at {first['site']}"
        return [f"Nothing could be measured with the layers that were tried; {where}: {first['reason']}."]
    count = _plural(len(tried), "replacement")
    tested = tried[tried["delta_sis"].notna()]
    if tested.empty:
        return [_say_quietest(tried, count)]
    better = tested[(tested["delta_sis"] < 0) & (tested["p_holm"] < ALPHA)]
    on = f"on {_plural(int(tested['n'].max()), 'image')}, without training"
    if tested["p_holm"].isna().all():
        lead = f"Whether one of {count} lowers SIS isn't known: that needs two photographs ({on})."
        return [f"{lead} {_say_quietest(tried, '')}".strip()]
    if better.empty:
        worse = int(((tested["delta_sis"] > 0) & (tested["p_holm"] < ALPHA)).sum())
        raised = f", {worse} {'raises' if worse == 1 else 'raise'} it" if worse else ""
        return [f"None of {count} lowers SIS for sure{raised} ({on}). {_say_quietest(tried, '')}".strip()]
    best = better.sort_values("delta_sis").iloc[0].to_dict()
    less = {f"x{end}": -best[f"delta_sis{other}"] for end, other in
            (("", ""), ("_ci_low", "_ci_high"), ("_ci_high", "_ci_low"))}  # fmt: skip
    lower, most = ("lowers", "") if len(better) == 1 else ("lower", " most of them")
    where = f"{best['method']} at {best['site']}"
    return [
        f"Of {count} ({on}), {len(better)} {lower} SIS for sure, {where}{most}: by "
        f"{format_interval(less, 'x')}, with {format_share(best['agreement'])} of the predictions kept."
    ]


def _say_quietest(tried: pd.DataFrame, count: str) -> str:
    """Say which layer at all sites leaves the least aliases; alone it says of how many, ``count``."""
    whole = tried[(tried["site"] == ALL_SITES) & tried["level_db"].notna()]
    if whole.empty:
        return ""
    best = whole.sort_values("level_db").iloc[0]
    before, after = format_db(best["level_db_original"]), format_db(best["level_db"])
    if {before, after} == {NONE}:
        return ""
    lead = f"Of {count}, {best['method']} at all sites" if count else f"At all sites, {best['method']}"
    least = f"leaves the least aliases, {after}" if len(whole) > 1 else f"leaves aliases of {after}"
    what = "removes all aliases that are measured" if after == NONE else least
    kept = best.get("agreement")
    cost = "" if _is_unknown(kept) else f", with {format_share(kept)} of the predictions kept"
    return f"{lead} {what} ({before} as it is){cost}."


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _is_unknown(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
