"""Colours, sizes and small helpers that all figures share."""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


PALE_GREEN, PALE_GREY = "#80CFB9", "#D5D5D5"  # behind black text


WIDTH = 9.0  # inches: the text width of a notebook


# Colour, and marker in matplotlib and in Bokeh: seven classes that also differ in shape.
CLASS_STYLES = (
    (BLUE, "o", "circle"),
    (ORANGE, "s", "square"),
    (GREEN, "^", "triangle"),
    ("#CC79A7", "D", "diamond"),
    ("#E69F00", "v", "inverted_triangle"),
    ("#56B4E9", "h", "hex"),
    ("black", "P", "plus"),
)


# A dark page turns a figure's lightness round and keeps its hues; white becomes the page's #111.
DARK = "invert(.93) hue-rotate(180deg)"
_FOLLOW = f"""<style>
[data-jp-theme-light="false"] img.zslkit-figure,
[data-md-color-scheme="slate"] img.zslkit-figure {{filter: {DARK}}}
</style>"""


class NotebookFigure(Figure):
    """A figure that notebooks show although pyplot, which would register it, is not used.

    It follows the theme, unless it holds a photo: turned round, a face would be a negative.
    """

    has_photos = False

    def _repr_png_(self) -> bytes:
        self.savefig(stream := io.BytesIO(), format="png", dpi=110)
        return stream.getvalue()

    def _repr_html_(self) -> str | None:
        if self.has_photos:
            return None  # the picture above, as it is
        data = base64.b64encode(self._repr_png_()).decode()
        return f'{_FOLLOW}<img class="zslkit-figure" src="data:image/png;base64,{data}">'


def class_styles(shown: Sequence[str], class_names: Sequence[str]) -> dict[str, tuple]:
    """Map each class in colour to its style, and "" to that of the others, if there are any."""
    if unknown := [name for name in shown if name not in class_names]:
        raise ValueError(f"class {unknown[0]!r} is not among the {len(class_names)} of the set")
    if len(shown) > len(CLASS_STYLES):
        raise ValueError(f"{len(shown)} classes in colour are more than {len(CLASS_STYLES)}")
    rest = {} if set(shown) == set(class_names) else {"": (PALE_GREY, "o", "circle")}
    return rest | dict(zip(shown, CLASS_STYLES, strict=False))


def new_figure(width: float, height: float) -> Figure:
    """Start a white figure of this size, in inches."""
    return NotebookFigure(figsize=(width, height), layout="constrained", facecolor="white")


def styled(items: Mapping[str, Any]) -> list[tuple]:
    """Pair the items with colours and markers; a ValueError says when there are too many."""
    if len(items) > len(CLASS_STYLES):
        raise ValueError(f"{len(items)} curves are more than {len(CLASS_STYLES)} styles")
    return [*zip(items.items(), CLASS_STYLES, strict=False)]


def step_curve(axes: Any, history: Sequence[Mapping[str, float]], key: str, **style: Any) -> None:
    """Draw one number of the history over the steps that logged it."""
    points = [(row["step"], row[key]) for row in history if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def over_steps(axes: Any, label: str) -> None:
    """Finish a panel whose x axis counts optimizer steps."""
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bare(axes)


def with_unit(quantity: str, unit: str) -> str:
    """Word an axis: the quantity, and its unit in brackets if it has one."""
    return f"{quantity} ({unit})" if unit else quantity


def bare(axes: Any) -> None:
    """Take off the frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def show_image(axes: Any, image: Any, caption: str, width: int) -> None:
    """Show an image (H, W, 3), (3, H, W) or (H, W) with its caption below."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    axes.imshow(pixels, cmap="gray")
    axes.get_figure().has_photos = True
    axes.axis("off")
    axes.set_title(plain_text(caption, width), y=0, pad=-4, va="top", fontsize=8)


def plain_text(text: str, width: int, lines: int = 3) -> str:
    """Wrap and shorten text that others wrote; its dollars are money, not formulas."""
    wrapped = textwrap.fill(str(text), width, max_lines=lines, placeholder=" …")
    return wrapped.replace("$", r"\$")
