"""docs/claims.md: each paragraph has a verdict and names a table, whose numbers are its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "results" / "reference"
AGGREGATES = ("max", "min", "mean", "median")
NUMBER = re.compile(r"(?<![\w.])−?\d+(?:\.\d+|(?=\s%))")


@dataclass
class Claim:
    """A paragraph, and the lines behind it that say where its numbers stand."""

    text: str
    checks: list[tuple[str, ...]]

    @property
    def found(self) -> str:
        """What is found here: all behind the claim, which is bold."""
        return self.text[self.text.index("**", 2) + 2 :]


def read_claims() -> list[Claim]:
    claims: list[Claim] = []
    for block in (ROOT / "docs" / "claims.md").read_text().split("\n\n"):
        if block.startswith("**"):
            claims.append(Claim(" ".join(block.split()), []))
        elif block.startswith("% check"):
            claims[-1].checks += [
                tuple(part.strip() for part in line.removeprefix("% check").split("|"))
                for line in block.splitlines()
            ]
    return claims


CLAIMS = read_claims()


def evaluate(name: str, query: str, expression: str) -> float:
    folder, _, stem = name.rpartition("/")
    rows = pd.read_csv(TABLES / folder / "tables" / f"{stem}.csv").query(query)
    if expression == "count":
        return len(rows)
    how, _, rest = expression.partition(" ")
    values = rows.eval(rest if how in AGGREGATES else expression)
    if how in AGGREGATES:
        return float(values.agg(how))
    assert len(values) == 1, f"{name}: {query} has {len(values)} rows"
    return float(values.iloc[0])


def test_there_are_claims_of_each_document():
    text = (ROOT / "docs" / "claims.md").read_text()
    assert text.count("\n## ") == 5
    assert len(CLAIMS) > 25
    # else it is a comment to MyST, and its end of a sentence is gone
    assert all(line.startswith("% check ") for line in text.splitlines() if line.startswith("%"))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[2:40])
def test_a_claim_has_a_verdict_and_its_numbers_are_the_tables(claim: Claim) -> None:
    assert re.match(r" \*[^*]+\*", claim.found), "a verdict comes first"
    can_be_tested = "*Can't be tested here*" not in claim.found
    named = set(re.findall(r"`([\w/-]+)`", claim.found))
    assert {name for name, *_ in claim.checks} <= named
    assert bool(claim.checks) == can_be_tested
    for name, query, expression, said in claim.checks:
        digits = len(said.partition(".")[2])
        value = evaluate(name, query, expression)
        assert f"{value:.{digits}f}".replace("-", "−") == said, (name, query, expression)
        assert re.search(rf"(?<![\d.]){re.escape(said)}(?![\d])", claim.found) or said == "0", said
    checked = {said for *_, said in claim.checks}
    assert set(NUMBER.findall(claim.found)) - {"0.05"} <= checked
