"""Figures as parts of a page: SVG that takes the page's colours, and small pictures."""

from __future__ import annotations

import base64
import io
import re
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from spectral.figures.style import INK, use_style

_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>\s*", re.DOTALL)


def to_svg(drawn: Figure, name: str, title: str) -> str:
    """Write a figure as the text of an ``<svg>`` element.

    Its ink is the page's text colour, its ground is transparent, and all ids begin with its name, so that
    several stand in one page. Text stays text.

    Args:
        drawn: the figure.
        name: unique in the page; letters, digits and hyphens.
        title: what it shows, for who can't see it.

    Example:
        >>> from spectral.figures.style import new_figure
        >>> to_svg(new_figure(1, 1), "empty", "nothing").startswith('<svg role="img" aria-label="nothing"')
        True
    """
    text = io.StringIO()
    with use_style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = _HEAD.sub("", text.getvalue())
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(INK, "currentColor", svg, flags=re.IGNORECASE)
    svg = re.sub(r"(?<=<svg )", f'role="img" aria-label="{escape(title)}" ', svg, count=1)
    return re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg))


def to_picture(values: ArrayLike, scale: str = "cividis", symmetric: bool = False, largest: int = 256) -> str:
    """Write a map as a small PNG in a ``data:`` address.

    Args:
        values: (H, W) of numbers, drawn from their smallest to their largest, or pixels (H, W, 3).
        scale: matplotlib's name of the colours.
        symmetric: whether 0 is in the middle of the scale.
        largest: longer side that is kept.

    Example:
        >>> to_picture(np.eye(4))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    array = np.asarray(values)
    if array.ndim == 2:
        low, high = float(np.nanmin(array)), float(np.nanmax(array))
        if symmetric:
            high = max(abs(low), abs(high))
            low = -high
        unit = (array - low) / (high - low) if high > low else np.zeros_like(array, dtype=float)
        array = (matplotlib.colormaps[scale](unit)[..., :3] * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    image.thumbnail((largest, largest))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def find_colour(unit: float) -> tuple[str, str]:
    """Return a colour of the scale cividis, 0 … 1, and which of black and white is read on it.

    Example:
        >>> find_colour(0.0), find_colour(1.0)
        (('#00224e', '#ffffff'), ('#fee838', '#000000'))
    """
    red, green, blue, _ = matplotlib.colormaps["cividis"](min(max(unit, 0.0), 1.0))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    ground = "#" + "".join(f"{round(c * 255):02x}" for c in (red, green, blue))
    return ground, "#000000" if luminance > 0.179 else "#ffffff"  # where both have the same contrast
