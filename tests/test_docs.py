"""The documentation: every public name is in the reference, and the code on its pages runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment

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


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.stem)
def test_code_on_a_page_runs(page, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    given = {**environment(), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    if "site-packages" not in spectral.__file__:
        given["PYTHONPATH"] = os.pathsep.join(
            [str(Path(spectral.__file__).parents[1]), given.get("PYTHONPATH", "")]
        )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=given, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_examples_are_there_and_told():
    assert len(EXAMPLES) >= 8
    for path in EXAMPLES:
        text = path.read_text()
        assert text.startswith('"""'), path.name
        assert len(text.splitlines()) <= 80, f"{path.name} is long for an example"
        assert "\nfigure = " in text.rpartition("# %%")[2], f"{path.name} doesn't end in a picture"
        compile(text, str(path), "exec")
