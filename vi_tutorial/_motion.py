"""Pictures that move: animations with a scrubber, and live sliders, in a notebook and on a static page."""

from __future__ import annotations

import base64
import html
import importlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vi_tutorial._style import style
from vi_tutorial._validation import check_count, check_positive

__all__ = ["Animation", "animate", "slider"]

_MAX_FRAMES = 20
_MAX_BYTES = 300_000

_SCRUBBER = """\
<div class="vi-animation" id="@ID" role="group" aria-label="@NAME" style="max-width:@WIDTHpx">
<img alt="@ALT" src="@LAST" style="display:block;width:100%;max-width:100%;height:auto;background:#fff">
<div style="display:none;align-items:center;gap:.6em;margin-top:.4em">
<button type="button" style="font:inherit;color:inherit;background:none;border:1px solid;border-radius:4px;
padding:.2em .6em;min-width:4.6em;cursor:pointer">Play</button>
<label style="display:flex;align-items:center;gap:.6em;flex:1;min-width:0;margin:0">Frame
<input type="range" min="1" max="@COUNT" value="@COUNT" step="1" style="flex:1;min-width:0"></label>
<output style="white-space:nowrap;font-variant-numeric:tabular-nums"></output>
</div>
<script>
(() => {
  const here = document.currentScript && document.currentScript.closest(".vi-animation");
  const root = here || document.getElementById("@ID");
  const [img, button, range, output] = ["img", "button", "input", "output"].map(tag => root.querySelector(tag));
  const frames = @FRAMES.map(data => "data:image/png;base64," + data).concat(img.src);
  let timer = null;
  const show = frame => {
    img.src = frames[frame - 1];
    range.value = frame;
    output.textContent = frame + " / " + frames.length;
  };
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const next = () => {
    if (!root.isConnected || +range.value >= frames.length) return pause();
    show(+range.value + 1);
    if (+range.value === frames.length) pause();
  };
  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (+range.value === frames.length) show(1);
    button.textContent = "Pause";
    timer = setInterval(next, @INTERVAL);
  });
  range.addEventListener("input", () => { pause(); show(+range.value); });
  button.parentElement.style.display = "flex";
  show(frames.length);
})();
</script>
</div>
"""


@dataclass(frozen=True)
class Animation:
    """What :func:`animate` returns: one notebook output.

    Attributes:
        html: The scrubber, self-contained.
        png: The last frame.
        text: One line, with what is seen.

    Example:
        >>> Animation("<div></div>", b"", "Animation of a line")
        Animation of a line
    """

    html: str
    png: bytes
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/plain": self.text,
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
        }


def _png(picture: Image.Image, num_colours: int) -> bytes:
    """A picture as a small file: with a palette, chosen so that thin lines keep their colour."""
    file = io.BytesIO()
    palette = picture.quantize(num_colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _page(values: dict[str, str]) -> str:
    return re.sub("@([A-Z]+)", lambda match: values[match[1]], _SCRUBBER)


def animate(
    draw: Callable[[Figure, int], object],
    num_frames: int,
    alt: str,
    *,
    name: str,
    figsize: tuple[float, float] = (7.0, 3.5),
    interval_ms: int = 300,
) -> Animation:
    """A short animation with a slider and a play button, that needs no server and no other file.

    It starts paused, on its last frame, which is also what a viewer without scripts shows; Play runs it once from the
    first. The output is the same at each run: its id comes from ``name``.

    Args:
        draw: ``draw(fig, frame)`` draws frame 0, 1, …, ``num_frames`` − 1 on an empty figure, in :func:`style`. Fix
            the axes' limits, or they will jump.
        num_frames: 1 to 20.
        alt: What is seen, in words, for those who do not see it.
        name: Of the animation; letters and digits, different for each in a chapter.
        figsize: Width and height in inches, at 100 pixels per inch.
        interval_ms: Milliseconds from frame to frame.

    Returns:
        The output; leave it on the last line of its cell.

    Raises:
        ValueError: If ``num_frames`` is not 1 to 20, ``alt`` or ``name`` is empty, ``interval_ms`` is not positive, or
            the frames do not fit in 300 kB.

    Example:
        >>> def draw(fig, frame):
        ...     fig.subplots().plot([0, 1], [0, frame])
        >>> animate(draw, 3, "A line that becomes steeper.", name="steeper", figsize=(2, 1))
        Animation steeper, 3 frames: A line that becomes steeper.
    """
    if check_count("num_frames", num_frames) > _MAX_FRAMES:
        raise ValueError(f"num_frames must be at most {_MAX_FRAMES}; received {num_frames}")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for argument, value in (("alt", alt.strip()), ("name", slug)):
        if not value:
            raise ValueError(f"{argument} must hold words that say what is seen; received {value!r}")
    check_positive("interval_ms", interval_ms)
    pictures = []
    with style():
        for frame in range(num_frames):
            fig = Figure(figsize=figsize)
            canvas = FigureCanvasAgg(fig)
            draw(fig, frame)
            canvas.draw()
            pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    for num_colours in (128, 64, 32, 16):
        pngs = [_png(picture, num_colours) for picture in pictures]
        frames = [base64.b64encode(png).decode() for png in pngs]
        values = {
            "ID": f"vi-animation-{slug}",
            "NAME": html.escape(f"Animation {name}"),
            "ALT": html.escape(alt),
            "WIDTH": f"{100 * figsize[0]:.0f}",
            "COUNT": str(num_frames),
            "LAST": f"data:image/png;base64,{frames[-1]}",
            "FRAMES": json.dumps(frames[:-1], separators=(",", ":")),
            "INTERVAL": str(interval_ms),
        }
        page = _page(values)
        if len(page) + len(frames[-1]) <= _MAX_BYTES:
            return Animation(page, pngs[-1], f"Animation {name}, {num_frames} frames: {alt}")
    raise ValueError(
        f"figsize must be smaller, or num_frames fewer, for frames of {_MAX_BYTES} bytes in all; "
        f"received {figsize} and {num_frames}, which make {len(page) + len(frames[-1])}"
    )


def slider(
    draw: Callable[..., object],
    *,
    figsize: tuple[float, float] = (7.0, 3.5),
    **ranges: tuple[float, float, float],
) -> None:
    """Show a picture beneath sliders that redraw it.

    The picture alone is shown where nobody can move a slider: when the environment says ``VI_TUTORIAL_PROGRESS=off``
    (as it does when the tools run a notebook), or without ``ipywidgets``.

    A reader moves the slider after later cells have run. The picture still shows what its own cell meant: the names
    that ``draw``, and the functions it calls from the same notebook, look up are those of this call. (The *objects*
    are not copied: what later cells change in place is seen changed.)

    Args:
        draw: ``draw(fig, **values)`` draws on an empty figure, in :func:`style`.
        figsize: Width and height in inches.
        ranges: For each argument of ``draw``, (lowest, highest, default). Three ints make a slider of whole numbers.

    Raises:
        ValueError: If no range is given, or a default does not lie in its range.

    Example:
        >>> slider(lambda fig, mean: fig.subplots().plot([mean]), mean=(-1.0, 1.0, 2.0))
        Traceback (most recent call last):
        ValueError: mean must be (lowest, highest, default) with the default between; received (-1.0, 1.0, 2.0)
    """
    if not ranges:
        raise ValueError("ranges must name at least one argument of draw; received none")
    for name, (low, high, default) in ranges.items():
        if not (low < high and low <= default <= high):
            raise ValueError(
                f"{name} must be (lowest, highest, default) with the default between; received {(low, high, default)}"
            )
    draw = _with_names_of_now(draw)
    with style():
        fig = plt.figure(figsize=figsize)
    plt.close(fig)  # shown by us, once; not again by pyplot at the end of the cell

    def redraw(**values: float) -> Figure:
        fig.clear()
        with style():
            draw(fig, **values)
            fig.draw_without_rendering()
        return fig

    display = importlib.import_module("IPython.display").display
    redraw(**{name: default for name, (_, _, default) in ranges.items()})
    widgets = None if os.environ.get("VI_TUTORIAL_PROGRESS") == "off" else _widgets()
    if widgets is None:
        display(fig)
        return
    sliders = {}
    for name, (low, high, default) in ranges.items():
        if all(isinstance(value, int) for value in (low, high, default)):
            sliders[name] = widgets.IntSlider(default, low, high, description=name)
        else:
            sliders[name] = widgets.FloatSlider(default, min=low, max=high, step=(high - low) / 100, description=name)
    display(*sliders.values())
    picture = display(fig, display_id=True)
    for control in sliders.values():
        control.observe(lambda _: picture.update(redraw(**{n: s.value for n, s in sliders.items()})), names="value")


def _with_names_of_now(function: Callable[..., object]) -> Callable[..., object]:
    """The function, and those of the same module that it can call, with a copy of the module's names."""
    if not isinstance(function, FunctionType):
        return function
    names = function.__globals__
    copy = dict(names)

    def rebuilt(old: FunctionType) -> FunctionType:
        new = FunctionType(old.__code__, copy, old.__name__, old.__defaults__, old.__closure__)
        new.__kwdefaults__ = old.__kwdefaults__
        return new

    for name, value in names.items():
        if isinstance(value, FunctionType) and value.__globals__ is names:
            copy[name] = rebuilt(value)
    return rebuilt(function)


def _widgets() -> Any:
    """``ipywidgets``, or None where it is not installed."""
    try:
        return importlib.import_module("ipywidgets")
    except ImportError:
        return None
