"""The palette and the look of the series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.rcsetup import cycler

__all__ = ["COLOURS", "Colours", "style"]


class Colours(NamedTuple):
    """What each colour means. See :data:`COLOURS` for the values.

    Attributes:
        p: The target: posterior, prior, model.
        q: The approximation, and what it loses.
        evidence: log p(x), the ceiling of every bound.
        data: Observations.
        theta: The model's parameters, and what they lose.
        accent: The one thing to look at.
        muted: What stands behind: reference lines, earlier steps.

    Example:
        >>> COLOURS.q
        '#D55E00'
    """

    p: str
    q: str
    evidence: str
    data: str
    theta: str
    accent: str
    muted: str


COLOURS = Colours(
    p="#332288",
    q="#D55E00",
    evidence="#000000",
    data="#555555",
    theta="#0077BB",
    accent="#117733",
    muted="#888888",
)
"""Colours for the colour-blind: indigo and green (Paul Tol, *Colour Schemes*, 2021, "muted"), blue (the same,
"vibrant"), vermillion (Okabe & Ito 2008, in Wong, *Nature Methods* 8:441, 2011), and three greys. Each has a
contrast of at least 3:1 against white; p, q, evidence, data and theta differ from each other in lightness too,
so they survive a grey print."""

_STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.5),
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # the font that matplotlib brings: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.formatter.useoffset": False,
    "axes.prop_cycle": cycler(color=[COLOURS.q, COLOURS.p, COLOURS.theta, COLOURS.accent, COLOURS.data]),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of the series, inside a ``with`` block; afterwards ``rcParams`` are what they were.

    Readable at 700 px: 7 inches at 100 dots per inch, text of 10 points or more. matplotlib creates tick labels
    only when it draws, and a notebook draws at the end of the cell, outside the block; so figures that were made
    inside it are laid out once before it closes.

    Example:
        >>> import matplotlib as mpl
    >>> before = dict(mpl.rcParams)
        >>> with style():
        ...     mpl.rcParams["font.size"], mpl.rcParams["figure.dpi"]
        (11.0, 100.0)
        >>> dict(mpl.rcParams) == before
        True
    """
    # A notebook's backend switches figures on when it loads. Loaded inside the block, it would be undone at its end.
    plt.draw_if_interactive()
    earlier = set(plt.get_fignums())
    with plt.style.context(["default", _STYLE]):
        yield
        if new := sorted(set(plt.get_fignums()) - earlier):
            current = plt.gcf()
            for number in new:
                plt.figure(number).draw_without_rendering()
            plt.figure(current)
