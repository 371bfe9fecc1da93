"""How the documentation is built: Sphinx, with warnings as errors and the examples executed."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst

import spectral

torch.set_num_threads(1)
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries; examples show their own

project = "spectral"
author = "The spectral authors"
copyright = author
release = spectral.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "examples", "gallery/*.ipynb", "gallery/*.py"]
templates_path = ["_templates"]
default_role = "py:obj"  # `find_sites` is a link where it is a public name
nitpicky = False
suppress_warnings = ["config.cache"]  # the scraper below can't be pickled, so pages are read anew each time

html_theme = "furo"
html_title = f"spectral {release}"
html_static_path = ["_static"]
html_css_files = ["spectral.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_imported_members = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Shape", "notes_style"), ("Units", "notes_style"), ("Source", "notes_style")]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _find_figures(block: Any, variables: dict[str, Any], gallery: dict[str, Any]) -> str:
    """Write the figures that a block of an example has made: those of this project aren't pyplot's."""
    shown = variables.setdefault("figures_shown", [])
    made = [v for v in variables["example_globals"].values() if isinstance(v, Figure) and v not in shown]
    shown += made
    paths = []
    for drawn, path in zip(made, variables["image_path_iterator"], strict=False):
        drawn.savefig(path, dpi=150, bbox_inches="tight")
        paths.append(path)
    return figure_rst(paths, gallery["src_dir"])


sphinx_gallery_conf = {
    "image_scrapers": (_find_figures,),
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"[/\\]\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "reference_url": {},
    "image_srcset": [],
    "plot_gallery": "True",
}


def _write_math(block: bool) -> Any:
    """Make a visitor that writes LaTeX as MathML: pages then need no script and no network."""

    def visit(self: Any, node: nodes.Element) -> None:
        formula = tex2mathml(node.astext(), as_block=block)
        self.body.append(f'<div class="math">{formula}</div>' if block else formula)
        raise nodes.SkipNode

    return visit


LITERAL = re.compile(r"(``.*?``|`[^`]+`)")


def _escape(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep what docstrings write as mathematics, |f| and *.jpg, from being read as markup."""
    for i, line in enumerate(lines):
        line = re.sub(r"^(\s*[A-Z])\. ", r"\1\\. ", line)  # J. Grabinski is no tenth item of a list
        if not line.lstrip().startswith((">>>", "...")):
            parts = LITERAL.split(line)
            parts[::2] = [re.sub(r"(?<!\\)[|*]", r"\\\g<0>", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def _skip(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave what has a page of its own out of the pages of rooms."""
    return True if what == "module" and name in spectral.__all__ else None


def setup(app: Sphinx) -> None:
    """Add the renderer of formulas, and what is done to docstrings."""
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon adds its own markup
    app.connect("autodoc-skip-member", _skip)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_write_math(False), None), block_renderers=(_write_math(True), None)
    )
