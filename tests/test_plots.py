"""Figures are not compared by the notebook tests: here stands what must be true of them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vi_tutorial import _motion, plots
from vi_tutorial.evaluation import GapLedger
from vi_tutorial.training import History

LEDGERS = [
    GapLedger(-21.3, 0.4, 1.2, -19.7, 0.8),
    GapLedger(-20.9, 0.0, 1.2, -19.7, -0.3),
    GapLedger(-19.69, 0.01, -0.02, -19.7, None),
]
LABELS = ["encoder", "mean field", "full rank"]


def new_ax(width: float = 7.0, height: float = 3.5) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").subplots()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    c = np.array(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def move_a_line(fig: Figure, frame: int) -> None:
    ax = fig.subplots()
    ax.set_ylim(0, 5)
    ax.plot([0, 1], [0, frame + 0.5], color=plots.COLOURS.q, linewidth=4)


# -------------------------------------------------------------------------------------------------- colours, style


@pytest.mark.parametrize("colour", plots.COLOURS)
def test_every_colour_stands_out_against_white(colour: str) -> None:
    assert 1.05 / (luminance(colour) + 0.05) >= 3


@pytest.mark.parametrize(("one", "other"), combinations(["p", "q", "evidence", "data", "theta"], 2))
def test_colours_with_a_meaning_differ_in_grey(one: str, other: str) -> None:
    values = [luminance(getattr(plots.COLOURS, name)) for name in (one, other)]
    lightness = 116 * np.cbrt(values) - 16 * (np.array(values) > 0)
    assert abs(np.diff(lightness)) > 6


def test_style_restores_everything_even_after_an_error() -> None:
    before = dict(mpl.rcParams)

    def fail() -> None:
        with plots.style():
            mpl.rcParams["lines.linewidth"] = 17
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert dict(mpl.rcParams) == before


def test_style_does_not_depend_on_the_readers_own_settings() -> None:
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 4}), plots.style():
        assert mpl.rcParams["axes.facecolor"] == "white"
        assert mpl.rcParams["font.size"] >= 10


def test_tick_labels_keep_the_style_when_drawn_later() -> None:
    with plots.style():
        fig, ax = plt.subplots()
        ax.plot([1, 2])
        other = plt.figure()
        plt.figure(fig)
    try:
        assert plt.gcf() is fig
        with mpl.rc_context({"xtick.labelsize": 3}):
            fig.canvas.draw()
            assert {label.get_size() for label in ax.get_xticklabels()} == {10.0}
        assert fig.dpi == 100
    finally:
        plt.close(fig)
        plt.close(other)


DRAWINGS: list[Callable[[], object]] = [
    lambda: plots.chain("KL"),
    lambda: plots.ledger_bars(LEDGERS, LABELS, new_ax()),
    lambda: plots.history(History(bound=[-3.0, -2.0], validation=[(1, -2.5)]), new_ax(), evidence=-1.0),
    lambda: plots.images(np.zeros((2, 4)), new_ax(), vmin=0, vmax=1),
    lambda: plots.normal_ellipse(np.zeros(2), np.eye(2), new_ax()),
    lambda: plots.density_contours(-np.add.outer(GRID**2, GRID**2), GRID, GRID, new_ax()),
    lambda: plots.animate(move_a_line, 2, "a line", name="line", figsize=(2, 1)),
    lambda: plots.slider(lambda fig, n: move_a_line(fig, n), figsize=(2, 1), n=(0, 4, 2)),
]
GRID = np.linspace(-4, 4, 81)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_no_function_leaves_a_trace(drawing: Callable[[], object]) -> None:
    before, figures = dict(mpl.rcParams), plt.get_fignums()
    drawing()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures


def test_a_notebook_shows_each_figure_once() -> None:
    drawing = "with plots.style():\n    fig, ax = plt.subplots(figsize=(2, 1))\n    ax.plot([0, 1])"
    cells = [
        "import matplotlib.pyplot as plt\nfrom vi_tutorial import plots\n" + drawing,
        drawing,
        'plots.chain("KL")',
        "plots.slider(lambda fig, n: fig.subplots().plot([n]), figsize=(2, 1), n=(0, 4, 2))",
        'plots.animate(lambda fig, n: fig.subplots().plot([n]), 2, "dots", name="dots", figsize=(2, 1))',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert [len(output) for output in outputs] == [1, 1, 1, 1, 1]
    assert all("image/png" in output[0].data for output in outputs)
    assert "widgets" not in notebook.metadata


# -------------------------------------------------------------------------------------------------------- the map


@pytest.mark.parametrize(("current", "lit"), [(None, []), ("ELBO", ["ELBO"]), (["phi", "theta"], ["phi", "theta"])])
def test_the_chain_lights_what_is_asked_and_nothing_else(current: str | list[str] | None, lit: list[str]) -> None:
    states = dict(patch.get_gid().split() for patch in plots.chain(current).axes[0].patches if patch.get_gid())
    assert list(states) == list(plots.CHAIN)
    assert [link for link, state in states.items() if state == "lit"] == lit


def test_the_chain_is_the_same_picture_each_time_and_its_words_stay_in_their_boxes() -> None:
    def places(fig: Figure) -> list[np.ndarray]:
        return [patch.get_window_extent().get_points() for patch in fig.axes[0].patches]

    nothing, theta = plots.chain(), plots.chain("theta")
    np.testing.assert_array_equal(places(nothing), places(theta))
    boxes = [patch.get_window_extent() for patch in nothing.axes[0].patches if patch.get_gid()]
    for index, text in enumerate(nothing.axes[0].texts):
        words, box = text.get_window_extent(), boxes[index // 2]
        assert box.x0 + 2 < words.x0 < words.x1 < box.x1 - 2
        assert text.get_size() >= 10


def test_an_unknown_link_is_named() -> None:
    with pytest.raises(ValueError, match=r"current must be one of KL, ELBO, .* received 'psi'"):
        plots.chain(["phi", "psi"])


# -------------------------------------------------------------------------------------------- the ledger, history


def bars(ax: Axes, gid: str) -> list[tuple[float, float]]:
    """Start and end of each bar of a kind, as signed lengths say."""
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches if bar.get_gid() == gid]


def test_segments_of_a_ledger_add_up_to_the_evidence_and_the_reference() -> None:
    ax = new_ax()
    plots.ledger_bars(LEDGERS, LABELS, ax)
    kinds = [bars(ax, gid) for gid in ("ELBO", "amortisation gap", "approximation gap")]
    for ledger, elbo, amortised, approximated in zip(LEDGERS, *kinds, strict=True):
        assert elbo[1] == pytest.approx(ledger.elbo)
        assert amortised == pytest.approx((elbo[1], elbo[1] + ledger.amortisation_gap))
        assert approximated == pytest.approx((amortised[1], ledger.log_evidence))
    references = [ledger for ledger in LEDGERS if ledger.theta_gap]
    assert bars(ax, "θ gap") == [
        pytest.approx((ledger.log_evidence, ledger.log_evidence + ledger.theta_gap)) for ledger in references
    ]
    hatched = [bar.get_gid() for bar in ax.patches if bar.get_hatch()]
    assert hatched == ["approximation gap"]  # the negative one


@pytest.mark.parametrize(
    "ledgers",
    [
        LEDGERS,
        LEDGERS[:1],
        [GapLedger(-2406.1, 1e-3, 6e-4, -2406.0984, None), GapLedger(-2406.0998, 2e-5, -3e-4, -2406.10008, None)],
        [GapLedger(-19.7, 0.0, 0.0, -19.7, None)],
        [GapLedger(-500.0, 100.0, 0.01, -399.99, -50.0), GapLedger(-410.0, -0.2, 9.0, -401.2, 20.0)],
        [GapLedger(-3.0, 0.0, 1e-13, -3.0, 0.0)],
    ],
)
@pytest.mark.parametrize("width", [5.5, 7.0])
def test_no_words_of_a_ledger_overlap_or_leave_the_picture(ledgers: list[GapLedger], width: float) -> None:
    with plots.style():
        ax = new_ax(width, 1.2 + 0.85 * len(ledgers))
        plots.ledger_bars(ledgers, [f"ledger {n}" for n in range(len(ledgers))], ax)
        ax.figure.draw_without_rendering()
    words = [text.get_window_extent() for text in ax.texts if text.get_text()]
    for one, other in combinations(words, 2):
        assert not one.overlaps(other)
    assert all(box.x0 > ax.bbox.x0 - 1 for box in words), "covers the name of the ledger"
    assert all(box.x1 < ax.figure.bbox.x1 for box in words), "clipped"
    assert not any("−0.0" in text.get_text() and float(text.get_text().split("−")[1]) == 0 for text in ax.texts)


def test_a_gap_is_written_on_its_bar_or_beside_it_but_always() -> None:
    ax = new_ax()
    plots.ledger_bars(LEDGERS, LABELS, ax)
    words = "\n".join(text.get_text() for text in ax.texts).split("\n")
    assert {"ELBO −21.30", "0.40", "1.20", "θ gap 0.80", "θ gap −0.30", "log evidence −19.70"} <= set(words)
    assert {"amortisation 0.01", "approximation −0.02"} <= set(words)


def test_a_ledger_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ledgers must be finite, with elbo .* received -19\.7.* and -10\.0 for 'q'"):
        plots.ledger_bars([GapLedger(-21.3, 0.4, 1.2, -10.0, None)], ["q"], new_ax())
    with pytest.raises(ValueError, match="ledgers must be finite"):
        plots.ledger_bars([GapLedger(-np.inf, np.inf, 1.2, -10.0, None)], ["q"], new_ax())
    with pytest.raises(ValueError, match="ledgers must be at least one, with one label each; received 3 and 1 labels"):
        plots.ledger_bars(LEDGERS, ["q"], new_ax())


def test_history_draws_bound_held_out_values_and_evidence() -> None:
    ax = new_ax()
    bound = torch.tensor([-9.0, -4.0, -3.1], requires_grad=True)
    plots.history(History(bound=bound, validation=[(1, -5.0), (3, -4.0)]), ax, evidence=-3.0)  # type: ignore[arg-type]
    training, held_out, evidence = ax.lines
    np.testing.assert_allclose(training.get_xydata(), [[0, -9], [1, -4], [2, -3.1]], rtol=1e-6)
    np.testing.assert_array_equal(held_out.get_xydata(), [[1, -5], [3, -4]])
    assert set(evidence.get_ydata()) == {-3.0}
    assert ax.get_ylim()[1] > -3.0
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "ELBO (nats)")


@pytest.mark.parametrize("bound", [[], [float("nan")], [[-1.0, -2.0]]])
def test_history_refuses_what_is_not_one_finite_number_per_step(bound: list) -> None:
    with pytest.raises(ValueError, match=r"history\.bound must be .*received"):
        plots.history(History(bound=bound), new_ax())


# ---------------------------------------------------------------------------------------------- images, densities


def test_images_stand_row_by_row_with_crisp_pixels() -> None:
    ax = new_ax()
    x = torch.arange(5 * 6, dtype=torch.float64).reshape(5, 2, 3)
    plots.images(x, ax, vmin=0, vmax=29, num_cols=3, row_labels=["one", "two"])
    (image,) = ax.images
    sheet = image.get_array()
    np.testing.assert_array_equal(sheet[1:3, 1:4], x[0])
    np.testing.assert_array_equal(sheet[4:6, 5:8], x[4])
    assert sheet.count() == x.numel()  # lines between the images, and the missing sixth, are masked
    assert image.get_interpolation() == "nearest"
    assert image.get_clim() == (0, 29)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]
    flat = new_ax()
    plots.images(x.reshape(5, 6), flat, vmin=0, vmax=29, num_cols=3, shape=(2, 3))
    np.testing.assert_array_equal(flat.images[0].get_array().filled(-1), sheet.filled(-1))


@pytest.mark.parametrize(
    ("x", "wrong", "message"),
    [
        (np.zeros((2, 6)), {}, r"x must be \(N, H\*W\) with H, W = 2, 2; received shape \(2, 6\)"),
        (np.zeros(4), {}, r"x must have shape .* received \(4,\)"),
        (np.full((1, 4), np.nan), {}, "x must be finite"),
        (np.zeros((2, 4)), {"vmin": 1}, "vmin must be below vmax; received 1 and 1"),
        (np.zeros((2, 4)), {"num_cols": 0}, "num_cols must be at least 1; received 0"),
        (np.zeros((2, 4)), {"row_labels": ["a", "b"]}, "row_labels must have one name for each of 1 rows; received 2"),
    ],
)
def test_images_name_bad_arguments(x: np.ndarray, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.images(x, new_ax(), **{"vmin": 0, "vmax": 1} | wrong)


def test_an_ellipse_has_the_mahalanobis_distance_of_its_level() -> None:
    ax = new_ax()
    loc, covariance = torch.tensor([1.0, -2.0]), np.array([[1.0, 0.9], [0.9, 1.2]])
    plots.normal_ellipse(loc, covariance, ax, levels=(0.5, 2.0), label="q")
    assert len(ax.lines) == 2
    for level, line in zip((0.5, 2.0), ax.lines, strict=True):
        offset = line.get_xydata() - np.array([1.0, -2.0])
        squared = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
        np.testing.assert_allclose(squared, level**2, rtol=1e-10)
        np.testing.assert_allclose(offset[0], offset[-1], atol=1e-12)  # closed
        extent = np.abs(offset).max(0)
        np.testing.assert_allclose(extent, level * np.sqrt(np.diag(covariance)), rtol=1e-3)  # not the variances
    assert ax.get_legend_handles_labels()[1] == ["q"]


@pytest.mark.parametrize(
    ("loc", "covariance", "levels", "message"),
    [
        (np.zeros(3), np.eye(3), [1.0], r"loc, covariance must have shapes .* received \(3,\), \(3, 3\)"),
        (np.zeros(2), np.ones(2), [1.0], "received"),
        (np.zeros(2), [[1.0, 2.0], [2.0, 1.0]], [1.0], "covariance must be symmetric positive definite"),
        (np.zeros(2), [[1.0, 0.5], [0.0, 1.0]], [1.0], "covariance must be symmetric positive definite"),
        (np.zeros(2), np.eye(2), [0.0], "levels must be"),
    ],
)
def test_ellipses_name_bad_arguments(loc: np.ndarray, covariance: np.ndarray, levels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.normal_ellipse(loc, covariance, new_ax(), levels)


def test_contours_enclose_the_stated_mass() -> None:
    """Of a correlated normal, on an uneven grid, up to a constant: the χ² quantile is known, −2 log(1 − mass)."""
    covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
    xs = np.sinh(np.linspace(-2.5, 2.5, 301))
    ys = np.linspace(-5, 5, 251)
    points = np.stack(np.meshgrid(xs, ys), -1)
    log_density = 7.0 - 0.5 * np.einsum("...i,ij,...j->...", points, np.linalg.inv(covariance), points)
    ax = new_ax()
    plots.density_contours(torch.tensor(log_density), xs, ys, ax, masses=(0.5, 0.9), label="posterior")
    (curves,) = ax.collections
    np.testing.assert_allclose(curves.levels, [0.1, 0.5], atol=2e-3)  # density over its peak is 1 − mass
    for path, mass in zip(curves.get_paths(), (0.9, 0.5), strict=True):
        at = path.vertices
        squared = np.einsum("ni,ij,nj->n", at, np.linalg.inv(covariance), at)
        np.testing.assert_allclose(1 - np.exp(-squared / 2), mass, atol=0.01)
    assert ax.get_legend_handles_labels()[1] == ["posterior"]


def test_contours_bear_a_density_that_ends() -> None:
    """Uniform on a rectangle twice as probable as another: half the mass is most of the first."""
    log_density = np.full((40, 40), -np.inf)
    log_density[10:20, 5:35], log_density[25:35, 5:35] = np.log(2), 0.0
    ax = new_ax()
    plots.density_contours(log_density, np.arange(40), np.arange(40), ax, masses=[0.9])
    assert ax.collections[0].levels == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("log_density", "masses", "message"),
    [
        (np.zeros((81, 80)), [0.5], r"log_density must have shape .* \(81, 81\)"),
        (np.full((81, 81), np.nan), [0.5], "log_density must .*without NaN"),
        (np.full((81, 81), -np.inf), [0.5], "log_density must .*somewhere finite"),
        (np.zeros((81, 81)), [90], "masses must lie between 0 and 1; received 90"),
        (-1e4 * np.add.outer(GRID**2, GRID**2), [0.5], "xs, ys must be fine enough"),
    ],
)
def test_contours_name_bad_arguments(log_density: np.ndarray, masses: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.density_contours(log_density, GRID, GRID, new_ax(), masses)


# ----------------------------------------------------------------------------------------------------- animations


@pytest.fixture(scope="module")
def animation() -> plots.Animation:
    return plots.animate(move_a_line, 5, 'A "line" <rises>.', name="A line, rising!", figsize=(4, 2), interval_ms=250)


def frames_of(page: str) -> list[Image.Image]:
    """Every frame in order: those of the script, and the one that stands in the page."""
    (script,) = re.findall(r"const frames = (\[.*?\])", page)
    (last,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in [*json.loads(script), last]]


def test_an_animation_is_one_output_of_three_kinds(animation: plots.Animation) -> None:
    data, metadata = DisplayFormatter().format(animation)
    assert set(data) == {"text/plain", "text/html", "image/png"}
    assert data["text/plain"] == 'Animation A line, rising!, 5 frames: A "line" <rises>.'
    last = frames_of(animation.html)[-1]
    assert base64.b64decode(data["image/png"]) == animation.png
    assert last.tobytes() == Image.open(io.BytesIO(animation.png)).tobytes()
    assert metadata == {}


def test_an_animation_needs_nothing_from_elsewhere_and_is_the_same_each_time(animation: plots.Animation) -> None:
    again = plots.animate(move_a_line, 5, 'A "line" <rises>.', name="A line, rising!", figsize=(4, 2), interval_ms=250)
    assert again == animation
    assert 'id="vi-animation-a-line-rising"' in animation.html
    assert "://" not in animation.html
    assert 'src="//' not in animation.html
    assert 'alt="A &quot;line&quot; &lt;rises&gt;."' in animation.html
    assert "@" not in animation.html


def test_frames_show_what_was_drawn_in_its_colours(animation: plots.Animation) -> None:
    frames = frames_of(animation.html)
    assert len(frames) == 5
    heights = []
    for frame in frames:
        assert frame.size == (400, 200)
        assert frame.mode == "P"
        pixels = np.asarray(frame.convert("RGB"))
        assert (pixels[0, 0] == 255).all()
        orange = np.abs(pixels.astype(int) - 255 * np.array(to_rgb(plots.COLOURS.q))).sum(-1) < 12
        heights.append(200 - np.argwhere(orange)[:, 0].min())
    assert heights == sorted(set(heights))  # the line rises
    assert rgb_to_hsv(np.asarray(frames[0].convert("RGB")) / 255)[..., 1].max() > 0.9


def test_frames_of_usual_size_fit_and_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.linspace(0, 20, 400)

    def draw(fig: Figure, frame: int) -> None:
        ax = fig.subplots()
        for colour in (plots.COLOURS.p, plots.COLOURS.q):
            ax.plot(grid, np.sin(grid / 3 + (colour == plots.COLOURS.q) * frame / 3), color=colour)

    monkeypatch.setattr(_motion, "_MAX_BYTES", 90_000)  # as if twenty frames had 300 kB
    result = plots.animate(draw, 6, "waves", name="waves")
    assert len(result.html) + 4 * len(result.png) / 3 <= 90_004
    monkeypatch.setattr(_motion, "_MAX_BYTES", 5_000)
    with pytest.raises(ValueError, match=r"figsize must be smaller, or num_frames fewer, .* received \(4, 2\) and 5"):
        plots.animate(move_a_line, 5, "a line", name="line", figsize=(4, 2))


@pytest.mark.parametrize(
    ("num_frames", "changes", "message"),
    [
        (21, {}, "num_frames must be at most 20; received 21"),
        (0, {}, "num_frames must be at least 1; received 0"),
        (2, {"alt": " "}, "alt must hold words"),
        (2, {"name": "φ"}, "name must hold"),
        (2, {"interval_ms": 0}, "interval_ms must be"),
    ],
)
def test_animations_name_bad_arguments(num_frames: int, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.animate(move_a_line, num_frames, **{"alt": "a line", "name": "line"} | changes)


# --------------------------------------------------------------------------------------------------------- sliders


class Shown(list):
    """Stands for IPython's ``display``: remembers, and hands out a handle."""

    def __call__(self, *values: object, display_id: bool = False) -> Shown:
        self.extend(values)
        return self

    def update(self, value: object) -> None:
        self.append(value)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr("IPython.display.display", shown)
    return shown


def test_slider_shows_the_picture_alone_where_progress_is_off(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VI_TUTORIAL_PROGRESS", "off")
    plots.slider(lambda fig, mean: fig.suptitle(f"{mean}"), mean=(-1.0, 1.0, 0.5))
    (fig,) = shown
    assert fig.get_suptitle() == "0.5"


def test_slider_shows_the_picture_alone_without_widgets(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VI_TUTORIAL_PROGRESS", raising=False)
    monkeypatch.setattr(_motion, "_widgets", lambda: None)
    plots.slider(lambda fig, mean: fig.suptitle(f"{mean}"), mean=(-1.0, 1.0, 0.5))
    assert [type(value) for value in shown] == [Figure]


def test_moving_a_slider_draws_again(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.delenv("VI_TUTORIAL_PROGRESS", raising=False)
    plots.slider(lambda fig, k, beta: fig.suptitle(f"{k}, {beta}"), k=(1, 9, 2), beta=(0.0, 4.0, 1.0))
    k, beta, fig = shown
    assert isinstance(k, widgets.IntSlider)
    assert isinstance(beta, widgets.FloatSlider)
    k.value = 7
    assert shown[3:] == [fig]
    assert fig.get_suptitle() == "7, 1.0"
    beta.value = 3.0
    assert fig.get_suptitle() == "7, 3.0"


def test_a_slider_shows_what_its_cell_meant_after_later_cells(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.delenv("VI_TUTORIAL_PROGRESS", raising=False)
    notebook: dict[str, object] = {"plots": plots}
    exec(
        "offset = 10\n"
        "def shifted(mean, *, by=1):\n    return offset + by * mean\n"
        "def draw(fig, mean):\n    fig.suptitle(str(shifted(mean)))\n"
        "plots.slider(draw, mean=(0, 9, 2))",
        notebook,
    )
    mean, fig = shown
    exec("offset = 500\ndef shifted(mean):\n    return 'another function'\ndef draw(): pass", notebook)
    mean.value = 5
    assert fig.get_suptitle() == "15"


def test_slider_names_bad_ranges() -> None:
    with pytest.raises(ValueError, match=r"mean must be \(lowest, highest, default\) .* received \(1, 0, 2\)"):
        plots.slider(print, mean=(1, 0, 2))
    with pytest.raises(ValueError, match="ranges must name at least one argument"):
        plots.slider(print)
