"""Maps of embeddings, drawn or to walk through."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from zslkit.plots.style import DARK, WIDTH, class_styles, new_figure, plain_text


class MapPanel(NamedTuple):
    """One map of embeddings on a plane; N = images, C = classes."""

    title: str
    images: np.ndarray
    """(N, 2)."""
    prompts: np.ndarray
    """(C, 2), where the prompts of the classes lie; (0, 2) leaves them out."""
    predicted: Sequence[str]
    """N class names."""


def embedding_maps(
    panels: Sequence[MapPanel], truths: Sequence[str], class_names: Sequence[str], shown: Sequence
) -> Figure:
    """Draw maps side by side: images as points, class prompts as stars, ``shown`` in colour.

    ``truths`` are the N true classes. A ValueError refuses more than seven classes in colour,
    and those that are not among ``class_names``.
    """
    styles = class_styles(shown, class_names)
    of_image, of_prompt = (np.array(_groups(names, styles)) for names in (truths, class_names))
    figure = new_figure(WIDTH, WIDTH / len(panels) + 0.6)
    columns = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, panel in zip(columns, panels, strict=True):
        for name, (colour, marker, _) in styles.items():
            x, y = panel.images[of_image == name].T
            label = plain_text(name, 24, lines=1) if name else "other classes"
            axes.scatter(x, y, 14, colour, marker=marker, lw=0, label=label)
            if len(panel.prompts):
                x, y = panel.prompts[of_prompt == name].T
                size, edge = (130, "black") if name else (60, "grey")
                axes.scatter(x, y, size, colour, marker="*", edgecolors=edge, lw=0.8, zorder=3)
        axes.set(title=panel.title, xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    if any(len(panel.prompts) for panel in panels):
        axes.scatter([], [], 130, "white", marker="*", edgecolors="black", label="class prompt")
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


_TELL = html.escape(
    "const page = this.contentWindow, told = document.body, tell = () => page.postMessage("
    "told.dataset.jpThemeLight === 'false' || told.dataset.mdColorScheme === 'slate', '*'); "
    "tell(); new MutationObserver(tell).observe(told, {attributes: true})"
)

# Thumbnails are turned back. Alone in a window, the page follows the system.
_THEME = f"""<style>
body {{margin: 0; background: white; min-height: 100vh}}
:root.dark {{background: #121212; --photo: hue-rotate(180deg) invert(1)}}
:root.dark body {{filter: {DARK}}}
</style>
<script>
const dark = (yes) => document.documentElement.classList.toggle("dark", yes === true)
addEventListener("message", (event) => dark(event.data))
if (window === parent) dark(matchMedia("(prefers-color-scheme: dark)").matches)
</script>
</head>"""


@dataclass(frozen=True)
class Page:
    """An HTML page that needs no network; notebooks, also exported ones, show it in a frame."""

    html: str = field(repr=False)
    height: int
    """Of the frame, in pixels."""

    def write(self, path: str | Path) -> Path:
        """Save the page as a file of its own."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # as data.files.whole does, of which this family knows nothing
        temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
        temporary.write_text(self.html, encoding="utf-8")
        return temporary.replace(path)

    def _repr_html_(self) -> str:
        # sandboxed: the page's scripts run, but reach neither the notebook nor its server, so
        # they are told the theme, now and when it changes
        return (
            f'<iframe sandbox="allow-scripts" style="width: 100%; border: 0" onload="{_TELL}" '
            f'height="{self.height}" srcdoc="{html.escape(self.html)}"></iframe>'
        )


def map_page(
    panels: Sequence[MapPanel],
    truths: Sequence[str],
    class_names: Sequence[str],
    shown: Sequence[str],
    thumbnails: Sequence[str],
) -> Page:
    """Make :func:`embedding_maps` interactive: hovering shows thumbnail, truth and prediction.

    ``thumbnails`` are N data URIs. What is selected in one map is so in all.
    """
    from bokeh.embed import file_html
    from bokeh.layouts import gridplot
    from bokeh.models import ColumnDataSource
    from bokeh.resources import INLINE

    styles = class_styles(shown, class_names)
    groups, of_prompt = _groups(truths, styles), _groups(class_names, styles)
    images = {
        "truth": truths,
        "thumbnail": thumbnails,
        "group": [name[:26] or "other classes" for name in groups],
        "colour": [styles[name][0] for name in groups],
        "marker": [styles[name][2] for name in groups],
    }
    for number, panel in enumerate(panels):
        x, y = np.asarray(panel.images, dtype=float).T
        images |= {f"x{number}": x, f"y{number}": y, f"predicted{number}": panel.predicted}
    above = sorted(range(len(groups)), key=lambda i: groups[i] != "")  # grey lies below colour
    source = ColumnDataSource({key: [values[i] for i in above] for key, values in images.items()})
    stars = {
        "name": list(class_names),
        "colour": [styles[name][0] for name in of_prompt],
        "size": [16 if name else 9 for name in of_prompt],
    }
    plots = [_bokeh_map(panel, n, source, stars) for n, panel in enumerate(panels)]
    grid = gridplot([plots], merge_tools=True, toolbar_options={"logo": None})
    page = file_html(grid, INLINE, "Map of embeddings")
    return Page(page.replace("</head>", _THEME, 1), height=590)


def _bokeh_map(panel: MapPanel, number: int, source: Any, stars: Mapping[str, Sequence]) -> Any:
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    tools = "pan,box_zoom,wheel_zoom,lasso_select,reset"
    plot = figure(width=470, height=540, title=panel.title, tools=tools)
    points = plot.scatter(
        f"x{number}", f"y{number}", source=source, marker="marker", color="colour", size=6,
        legend_group="group", nonselection_alpha=0.1,
    )  # fmt: skip
    x, y = np.asarray(panel.prompts, dtype=np.float32).T
    prompts = plot.scatter(
        "x", "y", source={**stars, "x": x, "y": y}, marker="star", size="size",
        fill_color="colour", line_color="black",
    )  # fmt: skip
    # Bokeh escapes what it puts in place of @name
    about = '<img src="@thumbnail" style="filter: var(--photo)"><div>@truth</div>'
    about += f"<div>named @predicted{number}</div>"
    plot.add_tools(HoverTool(renderers=[points], tooltips=about, limit=3))
    plot.add_tools(HoverTool(renderers=[prompts], tooltips="prompts of @name"))
    plot.axis.visible = plot.grid.visible = False
    plot.add_layout(plot.legend[0], "below")
    plot.legend.ncols, plot.legend.label_text_font_size = 2, "9pt"
    return plot


def _groups(names: Sequence[str], styles: Mapping[str, tuple]) -> list[str]:
    return [name if name in styles else "" for name in names]
