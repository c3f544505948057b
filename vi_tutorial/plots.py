"""Figures of the series: functions that take data and an ``ax``, and keep no global state.

Colours carry a meaning, the same in every chapter: :data:`COLOURS`. Everything is drawn inside
``with style():``, so no function touches the global ``rcParams``::

    with plots.style():
        fig, ax = plt.subplots(figsize=(7, 3))
        plots.history(history, ax, evidence=-19.7)
        ax.set_title("The bound climbs to the evidence and stops there")

Data are NumPy arrays or torch tensors; bounds and gaps are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from vi_tutorial._motion import Animation, animate, slider
from vi_tutorial._style import COLOURS, Colours, style
from vi_tutorial._validation import check_count, check_positive

if TYPE_CHECKING:
    from vi_tutorial.evaluation import GapLedger
    from vi_tutorial.training import History

__all__ = [
    "CHAIN",
    "COLOURS",
    "Animation",
    "Colours",
    "animate",
    "chain",
    "density_contours",
    "history",
    "images",
    "ledger_bars",
    "normal_ellipse",
    "slider",
    "style",
]

Array = NDArray[Any] | torch.Tensor


def _array(name: str, value: Any) -> NDArray[np.float64]:
    """A finite float array, from an array, a tensor or a sequence."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite and not empty; received shape {array.shape}: {array}")
    return array


def _tint(colour: str, strength: float) -> tuple[float, float, float]:
    """A paler version of ``colour`` on white: an opaque one, so that overlaps do not darken."""
    red, green, blue = (1 - strength * (1 - c) for c in to_rgb(colour))
    return red, green, blue


# ---------------------------------------------------------------------------------------------------- the map

CHAIN = ("KL", "ELBO", "phi", "theta", "networks", "breaks")
"""The links of the series, in order: what :func:`chain` can light."""

_LINKS = {  # heading, caption, width in inches
    "KL": ("KL", "divergence", 0.90),
    "ELBO": ("ELBO", "lower bound", 0.98),
    "phi": ("φ", "model known", 1.06),
    "theta": ("θ", "form known", 0.98),
    "networks": ("networks", "form unknown", 1.14),
    "breaks": ("what breaks", "and mends", 1.14),
}


def chain(current: str | Sequence[str] | None = None) -> Figure:
    """The map of the series, with the link the reader has reached lit.

    KL → ELBO → φ (model known) → θ (form known) → networks (form unknown) → what breaks, and mends.

    Args:
        current: One of :data:`CHAIN`, several of them, or None for a map with nothing lit.

    Returns:
        A figure of 7 × 0.7 inches. It is closed for pyplot, so that a notebook shows it once: leave it on the
        last line of its cell.

    Raises:
        ValueError: If ``current`` names no link.

    Example:
        >>> chain(["phi", "theta"])
        <Figure size 700x70 with 1 Axes>
    """
    lit = [] if current is None else [current] if isinstance(current, str) else list(current)
    for link in lit:
        if link not in CHAIN:
            raise ValueError(f"current must be one of {', '.join(CHAIN)}, several of them, or None; received {link!r}")
    with style():
        fig = plt.figure(figsize=(7.0, 0.7), layout="none")
        plt.close(fig)
        ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 7.0), ylim=(0, 0.7))
        ax.set_axis_off()
        space = (7.0 - 0.04 - sum(width for _, _, width in _LINKS.values())) / (len(CHAIN) - 1)
        left = 0.02
        for link, (heading, caption, width) in _LINKS.items():
            on = link in lit
            box = FancyBboxPatch(
                (left, 0.05),
                width,
                0.6,
                boxstyle="round,pad=0,rounding_size=0.11",
                facecolor=COLOURS.accent if on else "white",
                edgecolor=COLOURS.accent if on else COLOURS.muted,
                linewidth=1.2,
                gid=f"{link} {'lit' if on else 'unlit'}",
            )
            ax.add_patch(box)
            middle, ink = left + width / 2, "white" if on else "#333333"
            ax.text(middle, 0.46, heading, ha="center", va="center", color=ink, weight="bold", size=10.5)
            ax.text(middle, 0.21, caption, ha="center", va="center", color=ink, size=10)
            if link != CHAIN[-1]:
                ends = ((left + width + 0.02, 0.35), (left + width + space - 0.02, 0.35))
                arrow = FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0)
                arrow.set(color=COLOURS.data, linewidth=1.2)
                ax.add_patch(arrow)
            left += width + space
    return fig


# ------------------------------------------------------------------------------------------- bounds and gaps


class _Row(NamedTuple):
    """One ledger as positions on the axis, in nats."""

    elbo: float
    amortised: float
    evidence: float
    reference: float


_GAPS = {"amortisation gap": _tint(COLOURS.q, 0.45), "approximation gap": to_rgb(COLOURS.q)}


def _row(ledger: GapLedger, label: str) -> _Row:
    elbo, evidence = float(ledger.elbo), float(ledger.log_evidence)
    amortised = elbo + float(ledger.amortisation_gap)
    end = amortised + float(ledger.approximation_gap)
    row = _Row(elbo, amortised, evidence, evidence + float(ledger.theta_gap or 0.0))
    if not np.isfinite(row).all() or not abs(end - evidence) <= 1e-5 * max(1.0, abs(evidence)):
        raise ValueError(
            f"ledgers must be finite, with elbo + amortisation_gap + approximation_gap = log_evidence; "
            f"received {end} and {evidence} for {label!r}"
        )
    return row


def _nats(value: float, decimals: int) -> str:
    """A number with a true minus sign, and never a negative zero."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _pixels(words: str, ax: Axes) -> float:
    """How wide a label will be."""
    text = ax.text(0, 0, words, size=10)
    width = text.get_window_extent().width
    text.remove()
    return width


def _draw_gaps(y: int, row: _Row, words: dict[str, str], ax: Axes) -> None:
    """The segments of one ledger, the mark of its ELBO, and its θ gap below."""
    ax.plot([row.elbo] * 2, [y - 0.29, y + 0.29], color=COLOURS.q, linewidth=3, zorder=4)
    for (name, colour), start, end in zip(_GAPS.items(), row, row[1:], strict=False):
        bar = ax.barh(y, end - start, left=start, height=0.46, color=colour, linewidth=0, gid=name)[0]
        if end < start:
            bar.set(facecolor="none", edgecolor=colour, hatch="////")
        ax.text((start + end) / 2, y, words.get(name, ""), ha="center", va="center", size=10)
    if row.reference != row.evidence:
        loss = row.reference - row.evidence
        ax.barh(y + 0.38, loss, left=row.evidence, height=0.14, color=COLOURS.theta, gid="θ gap")
        ax.plot([row.reference] * 2, [y + 0.29, y + 0.47], color=COLOURS.theta, linewidth=2.5)


def ledger_bars(ledgers: Sequence[GapLedger], labels: Sequence[str], ax: Axes) -> None:
    """Draw gap ledgers as bars: from the ELBO, gap by gap, up to the log evidence.

    The axis starts a little below the smallest ELBO, so the gaps are what one sees. A gap is written on its
    segment, or beside the bar where it does not fit; one that is zero in every ledger is left out. A negative
    gap (Monte Carlo error) is hatched and runs backwards. What θ loses against the reference is the thin bar
    below.

    Args:
        ledgers: One or more :class:`~vi_tutorial.evaluation.GapLedger`, or objects with the same attributes, in
            nats.
        labels: A name for each.
        ax: Where to draw, as wide as the page; allow 0.8 inches of height for each ledger and 1.2 for the axis.

    Raises:
        ValueError: If there is no ledger, a ledger is not finite or does not add up, or ``labels`` has another
            length.

    Example:
        >>> from vi_tutorial.evaluation import GapLedger
        >>> ax = Figure().subplots()
        >>> ledger_bars([GapLedger(-21.3, 0.4, 1.2, -19.7, None)], ["mean-field q"], ax)
        >>> [text.get_text() for text in ax.texts if text.get_text()]
        ['ELBO −21.30', '0.40', '1.20', 'log evidence −19.70']
    """
    if len(ledgers) == 0 or len(ledgers) != len(labels):
        raise ValueError(
            f"ledgers must be at least one, with one label each; received {len(ledgers)} and {len(labels)} labels"
        )
    rows = [_row(ledger, label) for ledger, label in zip(ledgers, labels, strict=True)]
    low, high = float(np.min(rows)), float(np.max(rows))
    span = high - low if high - low > 1e-9 * max(1.0, abs(high)) else 1.0
    low = high - span
    decimals = max(1, 2 - int(np.floor(np.log10(span))))
    gaps = [dict(zip(_GAPS, np.diff(row[:3]), strict=True)) for row in rows]
    visible = [[name for name in _GAPS if abs(gap[name]) >= 0.5 * 10.0**-decimals] for gap in gaps]
    shown = [name for name in _GAPS if any(name in names for names in visible)]
    thetas = ["" if led.theta_gap is None else f"θ gap {_nats(led.theta_gap, decimals)}" for led in ledgers]
    elbos = [f"ELBO {_nats(row.elbo, decimals)}" for row in rows]

    ax.set(ylim=(len(rows) - 0.35, -0.7), xlim=(low, low + span), xlabel="nats")  # the first ledger on top
    ax.set_yticks(range(len(rows)), labels)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    room = ax.bbox.width
    ax.xaxis.set_major_locator(MaxNLocator(max(2, int(room // 110))))
    handles = [Patch(color=_GAPS[name], label=name) for name in shown]
    handles += [Patch(color=COLOURS.theta, label="θ gap")] * any(thetas)
    below = ax.transAxes + ScaledTranslation(0, -0.5, ax.figure.dpi_scale_trans)
    if handles:
        corner: dict[str, Any] = {"bbox_to_anchor": (1, 0), "bbox_transform": below, "borderaxespad": 0}
        ax.legend(handles=handles, loc="upper right", ncols=max(1, int(room // 170)), **corner)

    # How many pixels a nat may take, so that every label left and right of the bars has room. A gap too narrow for
    # its number moves beside its bar, which may make the next one too narrow: three rounds settle it.
    stub = max(_pixels(words, ax) for words in elbos) + 16
    notes = [""] * len(rows)
    for _ in range(3):
        scale = (room - stub - 4) / span
        for row, note, theta in zip(rows, notes, thetas, strict=True):
            for edge, words in ((max(row[:3]), note), (max(row[2:]), theta)):
                if words and edge > low:
                    scale = min(scale, (room - stub - 16 - _pixels(words, ax)) / (edge - low))
        scale = max(scale, 0.1 * room / span)
        beside = [
            [name for name in names if _pixels(_nats(gap[name], decimals), ax) > 0.8 * gap[name] * scale]
            for gap, names in zip(gaps, visible, strict=True)
        ]
        notes = [
            "\n".join(f"{name.removesuffix(' gap')} {_nats(gap[name], decimals)}" for name in names)
            for gap, names in zip(gaps, beside, strict=True)
        ]
    step = 8 / scale
    left = low - stub / scale
    ax.set_xlim(left, left + room / scale)
    for y, (row, words) in enumerate(zip(rows, elbos, strict=True)):
        ax.barh(y, row.elbo - left, left=left, height=0.46, color=_tint(COLOURS.muted, 0.35), gid="ELBO")
        ax.text(min(row[:3]) - step, y, words, ha="right", va="center", size=10)
        _draw_gaps(y, row, {name: _nats(gaps[y][name], decimals) for name in visible[y] if name not in beside[y]}, ax)
        ax.text(max(row[:3]) + step, y, notes[y], va="center", size=10, linespacing=1.1)
        ax.text(max(row[2:]) + step, y + 0.38, thetas[y], va="center", size=10, color=COLOURS.theta)
    same = np.ptp([row.evidence for row in rows]) < 0.5 * 10.0**-decimals
    for y, row in enumerate(rows[:1] if same else rows):  # one line for all, or one for each
        bottom = len(rows) - 0.45 if same else y + 0.42
        ax.plot([row.evidence] * 2, [y - 0.6, bottom], color=COLOURS.evidence, linewidth=2, zorder=5)
        words = f"log evidence {_nats(row.evidence, decimals)}"
        side, ha = (-1, "right") if _pixels(words, ax) * 1.15 < (row.evidence - left) * scale else (1, "left")
        ax.text(row.evidence + side * step, y - 0.45, words, size=10, weight="bold", ha=ha, va="center")


def history(history: History, ax: Axes, evidence: float | None = None) -> None:
    """Draw a bound over the steps of its optimisation, and the evidence it cannot pass.

    Args:
        history: A :class:`~vi_tutorial.training.History`, or an object with the same ``bound`` (num_steps,), before
            each step, and ``validation``, pairs (number of steps, bound on held-out data) or None; in nats.
        ax: Where to draw.
        evidence: log p(x) in nats, or None where it is not known.

    Raises:
        ValueError: If a value is not finite, or ``bound`` is empty or not one number per step.

    Example:
        >>> from vi_tutorial.training import History
        >>> ax = Figure().subplots()
        >>> history(History(bound=[-9.0, -4.0, -3.1]), ax, evidence=-3.0)
        >>> ax.get_ylabel(), [text.get_text() for text in ax.texts]
        ('ELBO (nats)', ['log evidence −3.00'])
    """
    bound = _array("history.bound", history.bound)
    if bound.ndim != 1:
        raise ValueError(f"history.bound must be one number per step; received shape {bound.shape}")
    ax.plot(bound, color=COLOURS.q, linewidth=1.5, label="training")
    ax.set(xlabel="step", ylabel="ELBO (nats)")
    if history.validation is not None and len(history.validation) > 0:
        steps, values = _array("history.validation", history.validation).T
        dots: dict[str, Any] = {"color": COLOURS.accent, "marker": "o", "markersize": 5, "linestyle": "--"}
        ax.plot(steps, values, label="held out", **dots)
        ax.legend(loc="lower right")
    if evidence is not None:
        ax.axhline(evidence, color=COLOURS.evidence, linewidth=1.5)
        place: dict[str, Any] = {
            "xy": (1, evidence),
            "xycoords": ax.get_yaxis_transform(),
            "textcoords": "offset points",
        }
        ax.annotate(f"log evidence {_nats(evidence, 2)}", xytext=(0, 3), ha="right", size=10, weight="bold", **place)
        ax.margins(y=0.14)


# ------------------------------------------------------------------------------------------ images and densities


def images(
    x: Array,
    ax: Axes,
    *,
    vmin: float,
    vmax: float,
    num_cols: int | None = None,
    shape: tuple[int, int] | None = None,
    row_labels: Sequence[str] | None = None,
) -> None:
    """Draw images side by side on one ``ax``, dark where the value is high, each pixel a crisp square.

    Args:
        x: Images, (N, H, W), or (N, H·W) with ``shape``, which may be left out for square ones.
        ax: Where to draw; about 0.6 inches for each image make 8 × 8 pixels easy to see.
        vmin: The value drawn white.
        vmax: The value drawn black.
        num_cols: Images in a row; all N by default. The last row may be shorter.
        shape: (H, W).
        row_labels: A name for each row.

    Raises:
        ValueError: If ``x`` is not finite or has another shape, ``vmin`` is not below ``vmax``, or ``row_labels`` has
            not one name per row.

    Example:
        >>> ax = Figure().subplots()
        >>> images(torch.zeros(6, 64), ax, vmin=0, vmax=16, num_cols=3, row_labels=["data", "reconstruction"])
        >>> ax.images[0].get_array().shape  # 2 × 3 images of 8 × 8, and a line of one pixel around each
        (19, 28)
    """
    array = _array("x", x)
    if array.ndim == 2:
        side = round(array.shape[1] ** 0.5)
        height, width = shape or (side, side)
        if height * width != array.shape[1]:
            raise ValueError(f"x must be (N, H*W) with H, W = {height}, {width}; received shape {array.shape}")
        array = array.reshape(-1, height, width)
    if array.ndim != 3:
        raise ValueError(f"x must have shape (N, H, W) or (N, H*W); received {array.shape}")
    if not vmin < vmax:
        raise ValueError(f"vmin must be below vmax; received {vmin} and {vmax}")
    count, height, width = array.shape
    cols = check_count("num_cols", count if num_cols is None else num_cols)
    rows = -(-count // cols)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must have one name for each of {rows} rows; received {len(row_labels)}")
    sheet = np.full((rows * (height + 1) + 1, cols * (width + 1) + 1), np.nan)
    for index, image in enumerate(array):
        top, left = (index // cols) * (height + 1) + 1, (index % cols) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    ink = mpl.colormaps["gray_r"].with_extremes(bad="#D8D8D8")
    ax.imshow(np.ma.masked_invalid(sheet), cmap=ink, vmin=vmin, vmax=vmax, interpolation="nearest", aspect="equal")
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks((np.arange(rows) + 0.5) * (height + 1) if row_labels else [], row_labels or [])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def normal_ellipse(
    loc: Array,
    covariance: Array,
    ax: Axes,
    levels: Sequence[float] = (1.0, 2.0),
    *,
    colour: str = COLOURS.q,
    label: str | None = None,
    linestyle: str = "-",
) -> None:
    r"""Draw a bivariate normal as one closed curve for each level.

    A level is a Mahalanobis distance, the curve :math:`(z-\mu)^\top \Sigma^{-1} (z-\mu) = \text{level}^2`; in two
    dimensions it encloses the mass :math:`1 - e^{-\text{level}^2/2}`: 39 % at 1, 86 % at 2.

    Args:
        loc: Mean, (2,).
        covariance: Covariance matrix (not standard deviations), (2, 2).
        ax: Where to draw.
        levels: Distances in standard deviations, all above 0.
        colour: Of the curves.
        label: For a legend; stands there once.
        linestyle: Of the curves.

    Raises:
        ValueError: If a shape differs, ``covariance`` is not symmetric positive definite, or a level is not positive.

    Example:
        >>> ax = Figure().subplots()
        >>> normal_ellipse(torch.zeros(2), torch.eye(2), ax, levels=[2.0], label="q")
        >>> np.allclose(np.linalg.norm(ax.lines[0].get_xydata(), axis=1), 2.0)
        True
    """
    mean, cov = _array("loc", loc), _array("covariance", covariance)
    if mean.shape != (2,) or cov.shape != (2, 2):
        raise ValueError(f"loc, covariance must have shapes (2,), (2, 2); received {mean.shape}, {cov.shape}")
    variances, axes = np.linalg.eigh(cov)
    if not np.allclose(cov, cov.T) or variances[0] <= 0:
        raise ValueError(f"covariance must be symmetric positive definite; received {cov.tolist()}")
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    for index, level in enumerate(levels):
        x, y = mean[:, None] + check_positive("levels", level) * (axes * np.sqrt(variances)) @ circle
        ax.plot(x, y, color=colour, linestyle=linestyle, label=None if index else label)


def density_contours(
    log_density: Array,
    xs: Array,
    ys: Array,
    ax: Axes,
    masses: Sequence[float] = (0.5, 0.9),
    *,
    colour: str = COLOURS.p,
    label: str | None = None,
) -> None:
    """Draw the smallest regions of a density on a grid that hold the stated probability masses.

    The density need not be normalised; its mass is summed over the grid, which should therefore contain nearly all of
    it.

    Args:
        log_density: Log density in nats, (len(ys), len(xs)); −∞ where there is none.
        xs: Increasing grid of the first coordinate, (num_xs,).
        ys: Increasing grid of the second coordinate, (num_ys,).
        ax: Where to draw.
        masses: Probabilities, each between 0 and 1.
        colour: Of the curves.
        label: For a legend.

    Raises:
        ValueError: If the shapes disagree, the log density is NaN or +∞ or everywhere −∞, or a mass is not in (0, 1).

    Example:
        >>> z = np.linspace(-5, 5, 201)
        >>> ax = Figure().subplots()
        >>> density_contours(-0.5 * (z**2 + z[:, None] ** 2), z, z, ax, masses=[0.9])
        >>> round(float(ax.collections[0].levels[0]), 2)  # relative to the peak: for a normal, 1 − mass
        0.1
    """
    across, up = _array("xs", xs), _array("ys", ys)
    log_p = log_density.detach().cpu().numpy() if isinstance(log_density, torch.Tensor) else np.asarray(log_density)
    peak = log_p.max()
    if log_p.shape != (up.size, across.size) or not np.isfinite(peak):
        raise ValueError(
            f"log_density must have shape (len(ys), len(xs)) = {(up.size, across.size)}, without NaN or +inf, "
            f"somewhere finite; received shape {log_p.shape} with maximum {peak}"
        )
    for mass in masses:
        if not 0 < mass < 1:
            raise ValueError(f"masses must lie between 0 and 1; received {mass}")
    density = np.exp(log_p - peak)
    highest_first = np.argsort(density, axis=None)[::-1]
    cells = (density * np.outer(np.gradient(up), np.gradient(across))).ravel()[highest_first]
    held = (np.cumsum(cells) - cells / 2) / cells.sum()  # the mass above each cell's middle
    levels = np.interp(masses, held, density.ravel()[highest_first])
    if levels.max() == 1:
        raise ValueError(f"xs, ys must be fine enough; received a grid with a mass of {2 * held[0]:.2g} in one cell")
    curves = ax.contour(across, up, density, levels=np.unique(levels), colors=colour, linewidths=2.0)
    names = {level: f"{100 * mass:g} %" for level, mass in zip(levels, masses, strict=True)}
    ax.clabel(curves, fmt=names, fontsize=10)
    if label is not None:
        ax.plot([], [], color=colour, label=label)
