"""The documentation: every public name is in the reference, and the code on its pages runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import run_code

import spectral

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    path for path in [*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")]
    if path.name not in {"contributing.md", "changelog.md"}
)  # fmt: skip
EXAMPLES = sorted((DOCS / "examples").glob("[0-9]*.py"))


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^   (\w+)$", (DOCS / "api.rst").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == set(spectral.__all__)


def test_every_page_can_be_reached():
    index = (DOCS / "index.md").read_text()
    for page in PAGES:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or f"\n{name}\n" in index, name


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.stem)
def test_code_on_a_page_runs(page, tmp_path, no_network):
    run_code("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)), tmp_path)


def test_examples_are_there_and_told():
    assert len(EXAMPLES) >= 8
    for path in EXAMPLES:
        text = path.read_text()
        assert text.startswith('"""'), path.name
        assert len(text.splitlines()) <= 80, f"{path.name} is long for an example"
        assert "\nfigure = " in text.rpartition("# %%")[2], f"{path.name} doesn't end in a picture"
        compile(text, str(path), "exec")
