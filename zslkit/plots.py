"""Arrays in, Figure out: colours of Okabe and Ito (2008), white in any theme, no pyplot state."""

import html
import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

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

_PANELS = ("loss (nats)", "logit scale (1 / temperature)", "learning rate")
_CURVES = (  # panel, key of a history row, legend, colour, line style
    (0, "loss", "total", "black", "-"),
    (0, "contrastive_loss", "contrastive", BLUE, "-"),
    (0, "distillation_loss", "distillation", ORANGE, "--"),
    (1, "logit_scale", "contrastive", BLUE, "-"),
    (1, "distillation_scale", "distillation", ORANGE, "--"),
    (2, "learning_rate", "learning rate", GREEN, "-"),
)


class NotebookFigure(Figure):
    """A figure that notebooks show although pyplot, which would register it, is not used."""

    def _repr_png_(self) -> bytes:
        self.savefig(stream := io.BytesIO(), format="png", dpi=110)
        return stream.getvalue()


def pair_grid(images: Sequence, captions: Sequence[str], columns: int = 4) -> Figure:
    """Show images, (3, H, W), (H, W, 3) or PIL, above their captions."""
    rows = math.ceil(len(images) / columns)
    figure = _figure(WIDTH, rows * (WIDTH / columns + 0.55))
    for place, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        _show(figure.add_subplot(rows, columns, place), image, caption, width=104 // columns)
    return figure


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss, its two terms, logit scales and learning rate against the optimizer step."""
    figure = _figure(WIDTH, 2.9)
    panels = figure.subplots(1, 3)
    for panel, key, legend, colour, style in _CURVES:
        _step_curve(panels[panel], history, key, linestyle=style, color=colour, label=legend)
    for axes, label in zip(panels, _PANELS, strict=True):
        _over_steps(axes, label)
    return figure


def target_curves(history: Sequence[Mapping[str, float]], n_candidates: int) -> Figure:
    """Draw how soft the targets were at each optimizer step, between one-hot and uniform.

    Mean own-pair mass, mean entropy (nats) and the correlation with the teacher's similarity;
    dotted lines are the two limits for ``n_candidates`` captions.
    """
    figure = _figure(WIDTH, 2.9)
    mass, entropy, agreement = panels = figure.subplots(1, 3)
    keys, colours = ("self_mass", "target_entropy", "target_agreement"), (BLUE, ORANGE, GREEN)
    for axes, key, colour in zip(panels, keys, colours, strict=True):
        _step_curve(axes, history, key, color=colour)
    limits = (mass, 1, 1 / n_candidates), (entropy, 0, math.log(n_candidates))
    for axes, one_hot, uniform in limits:
        axes.axhline(one_hot, color="black", ls=":", lw=1, label="one-hot")
        axes.axhline(uniform, color="black", ls="-.", lw=1, label="uniform")
    agreement.axhline(0, color="black", ls=":", lw=1, label="inverted below")
    _over_steps(mass, "mass on the own pair")
    _over_steps(entropy, "target entropy (nats)")
    _over_steps(agreement, "correlation with the teacher")
    agreement.set_ylim(min(-0.1, agreement.get_ylim()[0]), 1.05)
    return figure


def held_out_curve(history: Sequence[Mapping[str, float]]) -> Figure | None:
    """Draw what a callback measured on held-out pairs against the epoch, its best marked.

    None where nothing was measured.
    """
    names = sorted({name for row in history for name in row if name.startswith("held-out ")})
    if not names:
        return None
    figure = _figure(WIDTH * 0.6, 2.9)
    axes = figure.subplots()
    for (name, _), (colour, *_) in _styled(dict.fromkeys(names)):
        points = [(row["epoch"] + 1, 100 * row[name]) for row in history if name in row]
        epochs, values = np.array(points).T
        axes.plot(epochs, values, "o-", color=colour, ms=4, label=name)
        best = values.argmax()
        axes.annotate(
            f"{values[best]:.1f}", (epochs[best], values[best]), (0, 6), ha="center", fontsize=8,
            textcoords="offset points",
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel=f"{', '.join(names)} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.margins(y=0.15)
    _bare(axes)
    return figure


def hit_bars(
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]] | None = None,
    chance: float | None = None,
    quantity: str = "hit@1",
) -> Figure:
    """Draw fractions as bars in percent, with (low, high) intervals and the level of chance."""
    percent, places = 100 * np.asarray(values, dtype=float), np.arange(len(labels))
    low, high = (percent, percent) if intervals is None else 100 * np.asarray(intervals).T
    figure = _figure(WIDTH * 0.75, 0.9 + 0.42 * len(labels))
    axes = figure.subplots()
    arms = None if intervals is None else np.abs([low - percent, high - percent])
    bars = axes.barh(places, percent, xerr=arms, height=0.62, color=BLUE, capsize=3)
    axes.bar_label(bars, fmt="%.1f", padding=5)
    if chance is not None:
        axes.axvline(100 * chance, color=ORANGE, ls="--", label=f"chance {100 * chance:.2g} %")
        figure.legend(loc="outside upper right", frameon=False, fontsize=8)
    axes.set_yticks(places, [_plain(label, 34) for label in labels])
    axes.set(xlabel=f"{quantity} (%)", xlim=(0, 1.12 * max(*high, 100 * (chance or 0), 1e-9)))
    axes.invert_yaxis()
    _bare(axes)
    return figure


def interval_curves(
    x: Sequence[float],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    limits: Mapping[str, float],
    second: Sequence[float],
    labels: tuple[str, str, str],
) -> Figure:
    """Draw fractions with intervals over a logarithmic x, limits across, and a second quantity.

    Each point of a curve is a mapping with value, low and high; ``second`` has its own axis on
    the right. ``labels`` name x, the fractions (in percent) and the second quantity.
    """
    figure = _figure(WIDTH * 0.85, 4.2)
    axes = figure.subplots()
    for (name, points), (colour, marker, _) in _styled(curves):
        value, low, high = (
            100 * np.array([point[key] for point in points]) for key in ("value", "low", "high")
        )
        style = {"color": colour, "marker": marker, "capsize": 3, "label": name}
        axes.errorbar(x, value, np.abs([low - value, high - value]), **style)
    for (name, value), style in zip(limits.items(), (":", "-."), strict=False):
        axes.axhline(100 * value, color="black", ls=style, lw=1, label=name)
    axes.set(xscale="log", xlabel=labels[0], ylabel=_plain(f"{labels[1]} (%)", 36))
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    right = axes.twinx()
    right.plot(x, second, color="grey", ls="--", label=labels[2])
    right.set_ylabel(labels[2], color="dimgrey")
    axes.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def interval_dots(
    series: Mapping[str, Mapping[str, Mapping[str, float]]], quantity: str, zero: bool = False
) -> Figure:
    """Draw estimates with intervals, one row per name and one colour and marker per series.

    ``series`` maps a legend to (name to estimate with value, low and high, fractions); shown in
    percent, or for differences (``zero``) in points beside a line at zero.
    """
    names = list(dict.fromkeys(name for estimates in series.values() for name in estimates))
    figure = _figure(WIDTH * 0.85, 1.1 + 0.16 * len(names) * (len(series) + 1))
    axes = figure.subplots()
    spread = np.linspace(-0.27, 0.27, len(series)) if len(series) > 1 else [0.0]
    for ((legend, estimates), (colour, marker, _)), shift in zip(
        _styled(series), spread, strict=True
    ):
        value, low, high = (
            100 * np.array([estimates[name][key] for name in estimates])
            for key in ("value", "low", "high")
        )
        places = [names.index(name) + shift for name in estimates]
        axes.errorbar(
            value, places, xerr=np.abs([low - value, high - value]), fmt=marker, color=colour,
            capsize=3, ms=5, label=legend,
        )  # fmt: skip
    if zero:
        axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(names)), [_plain(name, 34) for name in names])
    axes.set_xlabel(f"{quantity} ({'points' if zero else '%'})")
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    _bare(axes)
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=len(series), frameon=False, fontsize=9)
    return figure


def confusion_heatmap(matrix: Any, class_names: Sequence[str], n_shown: int = 16) -> Figure:
    """Map counts of true class (rows) and first-ranked class (columns), (C, C), in percent of rows.

    Of more than ``n_shown`` classes those with the most errors, made or received, are shown.
    """
    import seaborn

    matrix = np.asarray(matrix, dtype=float)
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    chosen = np.sort(np.argsort(-errors, kind="stable")[:n_shown])
    shares = 100 * matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    labels = [_plain(class_names[c], 18, lines=1) for c in chosen]
    figure = _figure(WIDTH, 1.6 + 0.36 * len(chosen))
    axes = figure.subplots()
    seaborn.heatmap(
        shares[np.ix_(chosen, chosen)], ax=axes, cmap="cividis", vmin=0, vmax=100, annot=True,
        fmt=".0f", annot_kws={"fontsize": 7}, xticklabels=labels, yticklabels=labels,
        cbar_kws={"label": "share of the true class's images (%)"}, linewidths=0.5,
    )  # fmt: skip
    axes.set(xlabel="class ranked first", ylabel="true class")
    axes.tick_params(labelsize=8)
    axes.set_xticks(axes.get_xticks(), labels, rotation=45, ha="right")
    return figure


def reliability_diagram(reliability: Mapping[str, Any]) -> Figure:
    """Draw accuracy against confidence, as :func:`zslkit.metrics.reliability` gives them.

    On the diagonal a probability means what it says; bars below show how many images say it.
    """
    confidence, accuracy, n = (
        np.array([bin[key] for bin in reliability["bins"]])
        for key in ("confidence", "accuracy", "n")
    )
    figure = _figure(WIDTH * 0.6, 4.6)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], ls="--", color="grey", label="calibrated")
    label = f"model, expected calibration error {100 * reliability['ece']:.1f} points"
    axes.plot(100 * confidence, 100 * accuracy, "o-", color=BLUE, label=label)
    axes.set(ylabel="right (%)", xlim=(0, 100), ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8)
    counts.bar(100 * confidence, n, width=6, color=PALE_GREY, edgecolor="grey")
    counts.set(xlabel="probability of the class ranked first (%)", ylabel="images")
    for panel in (axes, counts):
        _bare(panel)
    return figure


def target_matrix(
    targets: Any, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> Figure:
    """Map soft targets (B, N), rows summing to 1, from images (rows) to captions (columns)."""
    targets = np.asarray(targets, dtype=float)
    n_rows, n_columns = targets.shape
    figure = _figure(WIDTH * 0.75, 0.9 + WIDTH * 0.55 * min(1.2, n_rows / n_columns))
    axes = figure.subplots()
    shown = axes.imshow(targets, cmap="cividis", vmin=0, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="target probability", shrink=0.8)
    axes.set(xlabel="caption", ylabel="image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if row_labels:
        axes.set_yticks(range(n_rows), [_plain(text, 24) for text in row_labels], fontsize=7)
    if column_labels:
        texts = [_plain(text, 24, lines=1) for text in column_labels]
        axes.set_xticks(range(n_columns), texts, fontsize=7, rotation=45, ha="right")
    return figure


def prediction_grid(
    images: Sequence, predictions: Sequence[Sequence], truths: Sequence[str | Collection[str]] = ()
) -> Figure:
    """Show photos beside their (class_name, similarity, probability) bars, true classes ticked."""
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    figure = _figure(WIDTH * (0.6 if columns == 1 else 1), 1.75 * rows + 0.3)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1, 1.1] * columns)
    for place, (image, ranked) in enumerate(zip(images, predictions, strict=True)):
        truth = truths[place] if len(truths) else ()
        truth = {truth} if isinstance(truth, str) else set(truth)
        row, column = divmod(place, columns)
        _show(figure.add_subplot(grid[row, 2 * column]), image, ", ".join(sorted(truth)), width=26)
        axes, names = figure.add_subplot(grid[row, 2 * column + 1]), [p[0] for p in ranked]
        colours = [PALE_GREEN if name in truth else PALE_GREY for name in names]
        axes.barh(range(len(names)), [100 * p[2] for p in ranked], color=colours)
        for height, name in enumerate(names):
            mark = _plain(f"✓ {name}" if name in truth else name, 30, lines=1)
            axes.text(1.5, height, mark, fontsize=8, va="center")
        axes.set(xlim=(0, 100), yticks=[], ylim=(len(names) - 0.5, -0.5))
        axes.set_xlabel("probability (%)", fontsize=8)
        axes.tick_params(labelsize=8)
        _bare(axes)
    return figure


def bar_panels(labels: Sequence[str], panels: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one panel of bars for each quantity, named with its unit, over the same labels."""
    figure, places = _figure(WIDTH, 0.9 + 0.42 * len(labels)), np.arange(len(labels))
    columns = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, values) in zip(columns, panels.items(), strict=True):
        bars = axes.barh(places, values, height=0.62, color=BLUE)
        axes.bar_label(bars, fmt=lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}", padding=4)
        axes.set(xlabel=name, xlim=(0, 1.35 * max(*values, 1e-9)))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        _bare(axes)
    columns[0].set_yticks(places, [_plain(label, 34) for label in labels])
    columns[0].invert_yaxis()
    return figure


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
    styles = _class_styles(shown, class_names)
    of_image, of_prompt = (np.array(_groups(names, styles)) for names in (truths, class_names))
    figure = _figure(WIDTH, WIDTH / len(panels) + 0.6)
    columns = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, panel in zip(columns, panels, strict=True):
        for name, (colour, marker, _) in styles.items():
            x, y = panel.images[of_image == name].T
            label = _plain(name, 24, lines=1) if name else "other classes"
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


@dataclass(frozen=True)
class Page:
    """An HTML page that needs no network; notebooks, also exported ones, show it in a frame."""

    html: str = field(repr=False)
    height: int
    """Of the frame, in pixels."""

    def write(self, path: str | Path) -> Path:
        """Save the page as a file of its own."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.html, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        # sandboxed: the page's scripts run, but reach neither the notebook nor its server
        return (
            f'<iframe sandbox="allow-scripts" style="width: 100%; border: 0" '
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

    styles = _class_styles(shown, class_names)
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
    return Page(file_html(grid, INLINE, "Map of embeddings"), height=590)


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
    about = f'<img src="@thumbnail"><div>@truth</div><div>named @predicted{number}</div>'
    plot.add_tools(HoverTool(renderers=[points], tooltips=about, limit=3))
    plot.add_tools(HoverTool(renderers=[prompts], tooltips="prompts of @name"))
    plot.axis.visible = plot.grid.visible = False
    plot.add_layout(plot.legend[0], "below")
    plot.legend.ncols, plot.legend.label_text_font_size = 2, "9pt"
    return plot


def _class_styles(shown: Sequence[str], class_names: Sequence[str]) -> dict[str, tuple]:
    """Map each class in colour to its style, and "" to that of the others, if there are any."""
    if unknown := [name for name in shown if name not in class_names]:
        raise ValueError(f"class {unknown[0]!r} is not among the {len(class_names)} of the set")
    if len(shown) > len(CLASS_STYLES):
        raise ValueError(f"{len(shown)} classes in colour are more than {len(CLASS_STYLES)}")
    rest = {} if set(shown) == set(class_names) else {"": (PALE_GREY, "o", "circle")}
    return rest | dict(zip(shown, CLASS_STYLES, strict=False))


def _groups(names: Sequence[str], styles: Mapping[str, tuple]) -> list[str]:
    return [name if name in styles else "" for name in names]


def _figure(width: float, height: float) -> Figure:
    return NotebookFigure(figsize=(width, height), layout="constrained", facecolor="white")


def _styled(items: Mapping[str, Any]) -> list[tuple]:
    """Pair the items with colours and markers; a ValueError says when there are too many."""
    if len(items) > len(CLASS_STYLES):
        raise ValueError(f"{len(items)} curves are more than {len(CLASS_STYLES)} styles")
    return [*zip(items.items(), CLASS_STYLES, strict=False)]


def _step_curve(axes: Any, history: Sequence[Mapping[str, float]], key: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in history if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _over_steps(axes: Any, label: str) -> None:
    """Finish a panel whose x axis counts optimizer steps."""
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _bare(axes)


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Any, image: Any, caption: str, width: int) -> None:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    axes.imshow(pixels, cmap="gray")
    axes.axis("off")
    axes.set_title(_plain(caption, width), y=0, pad=-4, va="top", fontsize=8)


def _plain(text: str, width: int, lines: int = 3) -> str:
    """Wrap and shorten text that others wrote; its dollars are money, not formulas."""
    wrapped = textwrap.fill(str(text), width, max_lines=lines, placeholder=" …")
    return wrapped.replace("$", r"\$")


def distributions(
    samples: Mapping[str, Sequence[float]], label: str, whole: bool = False
) -> Figure:
    """Draw samples as histograms over shared bins, each with an area of one.

    ``whole`` gives each whole number a bar of its own, in percent.
    """
    from seaborn import histplot

    figure = _figure(WIDTH * 0.85, 3.3)
    axes, pooled = figure.subplots(), np.concatenate([*samples.values()])
    ends = pooled.min() - 0.5, pooled.max() + 1.5
    bins = np.arange(*ends) if whole else np.histogram_bin_edges(pooled, 60)
    shape = {"bins": bins, "stat": "percent" if whole else "density", "element": "step"}
    for (name, values), (colour, *_) in _styled(samples):
        legend = f"{name} (n = {len(values):,})"
        histplot(np.asarray(values), **shape, color=colour, alpha=0.3, label=legend, ax=axes)
    axes.set(xlabel=label, ylabel="share (%)" if whole else "density")
    axes.legend(frameon=False)
    _bare(axes)
    return figure


def image_sizes(sizes: Any) -> Figure:
    """Draw widths and heights, (K, 2) in pixels, as dots whose area grows with their number."""
    distinct, counts = np.unique(np.asarray(sizes), axis=0, return_counts=True)
    figure = _figure(WIDTH * 0.5, WIDTH * 0.5)
    axes, most = figure.subplots(), counts.argmax()
    axes.axline((0, 0), slope=1, color="grey", ls=":", lw=1)
    axes.scatter(*distinct.T, s=8 + 300 * counts / counts.max(), color=BLUE, alpha=0.5, lw=0)
    width, height = distinct[most]
    title = f"most frequent: {width} × {height}, {counts[most]:,} of {counts.sum():,} images"
    axes.set_title(title, fontsize=9)
    ends = (0, 1.1 * distinct.max())
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=ends, ylim=ends, aspect=1)
    _bare(axes)
    return figure


def rivals_curve(expected: Mapping[int, Mapping[str, float]], batch_size: int) -> Figure:
    """Draw how many captions of a batch are expected to fit as well, with intervals, over B."""
    figure = _figure(WIDTH * 0.7, 3.6)
    axes, points = figure.subplots(), expected.values()
    value, low, high = (np.array([p[key] for p in points]) for key in ("value", "low", "high"))
    axes.errorbar([*expected], value, [value - low, high - value], fmt="o-", color=BLUE, capsize=3)
    axes.axvline(batch_size, color=ORANGE, ls="--", label=f"configured batch, {batch_size:,}")
    axes.axhline(1, color="grey", ls=":", label="one for each image")
    axes.set(xscale="log", xlabel="batch size B (pairs)", ylabel="other captions that fit as well")
    axes.set_xticks([*expected], [f"{size:,}" for size in expected], fontsize=8)
    if value.any():  # logarithms need something above 0
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    _bare(axes)
    return figure


def abstention_curve(curves: Mapping[str, tuple[Any, Any, float]]) -> Figure:
    """Draw errors among the answers over the share of images answered, for up to four models.

    Each curve is (coverage, risk, area) as :func:`zslkit.protocols.risk_coverage` gives them.
    """
    figure = _figure(WIDTH * 0.6, 3.6)
    axes, lines = figure.subplots(), ("-", "--", "-.", ":")
    styles = zip((BLUE, ORANGE, GREEN, "black"), lines, strict=True)
    for (name, curve), (colour, line) in zip(curves.items(), styles, strict=False):
        coverage, risk, area = curve
        label = f"{_plain(name, 34)}, area {area:.3f}"
        # a threshold answers all images of one confidence or none: steps, not slopes
        axes.step(
            100 * np.asarray(coverage), 100 * np.asarray(risk), where="pre", color=colour, ls=line,
            label=label,
        )  # fmt: skip
    axes.set(xlabel="images answered (%)", ylabel="wrong among them (%)", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _bare(axes)
    return figure
