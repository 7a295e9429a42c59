"""Arrays in, Figure out: colours of Okabe and Ito (2008), white in any theme, no pyplot state."""

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALE_GREEN, PALE_GREY = "#80CFB9", "#D5D5D5"  # behind black text
WIDTH = 9.0  # inches: the text width of a notebook

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
    for name, colour in zip(names, (BLUE, ORANGE, GREEN), strict=False):
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
    styles = zip((BLUE, ORANGE, GREEN, "black"), "os^D", strict=True)
    for (name, points), (colour, marker) in zip(curves.items(), styles, strict=False):
        value, low, high = (
            100 * np.array([point[key] for point in points]) for key in ("value", "low", "high")
        )
        style = {"color": colour, "marker": marker, "capsize": 3, "label": name}
        axes.errorbar(x, value, np.abs([low - value, high - value]), **style)
    for (name, value), style in zip(limits.items(), (":", "-."), strict=False):
        axes.axhline(100 * value, color="black", ls=style, lw=1, label=name)
    axes.set(xscale="log", xlabel=labels[0], ylabel=f"{labels[1]} (%)")
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
    styles = zip((BLUE, ORANGE, GREEN, "black"), "os^D", strict=True)
    spread = np.linspace(-0.27, 0.27, len(series)) if len(series) > 1 else [0.0]
    for (legend, estimates), (colour, marker), shift in zip(
        series.items(), styles, spread, strict=False
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
    rows = math.ceil(len(images) / 2)
    figure = _figure(WIDTH, 1.75 * rows + 0.3)
    grid = figure.add_gridspec(rows, 4, width_ratios=[1, 1.1, 1, 1.1])
    for place, (image, ranked) in enumerate(zip(images, predictions, strict=True)):
        truth = truths[place] if len(truths) else ()
        truth = {truth} if isinstance(truth, str) else set(truth)
        row, column = divmod(place, 2)
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


def _figure(width: float, height: float) -> Figure:
    return NotebookFigure(figsize=(width, height), layout="constrained", facecolor="white")


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
