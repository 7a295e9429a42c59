"""Figures of zero-shot evaluation."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zslkit.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PALE_GREEN,
    PALE_GREY,
    WIDTH,
    bare,
    new_figure,
    plain_text,
    show_image,
)


def hit_bars(
    estimates: Mapping[str, float | Mapping[str, float]],
    chance: float | None = None,
    quantity: str = "hit@1",
) -> Figure:
    """Draw fractions as bars in percent, with their intervals and the level of chance.

    ``estimates`` maps a label to a number, or to an estimate with value and perhaps low and high.
    """
    found = [e if isinstance(e, Mapping) else {"value": e} for e in estimates.values()]
    percent, low, high = (
        100 * np.array([estimate.get(key, estimate["value"]) for estimate in found], dtype=float)
        for key in ("value", "low", "high")
    )
    places = np.arange(len(found))
    figure = new_figure(WIDTH * 0.75, 0.9 + 0.42 * len(found))
    axes = figure.subplots()
    known = any("low" in estimate for estimate in found)
    arms = np.abs([low - percent, high - percent]) if known else None
    bars = axes.barh(places, percent, xerr=arms, height=0.62, color=BLUE, capsize=3)
    axes.bar_label(bars, fmt="%.1f", padding=5)
    if chance is not None:
        axes.axvline(100 * chance, color=ORANGE, ls="--", label=f"chance {100 * chance:.2g} %")
        figure.legend(loc="outside upper right", frameon=False, fontsize=8)
    axes.set_yticks(places, [plain_text(label, 34) for label in estimates])
    axes.set(xlabel=f"{quantity} (%)", xlim=(0, 1.12 * max(*high, 100 * (chance or 0), 1e-9)))
    axes.invert_yaxis()
    bare(axes)
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
    labels = [plain_text(class_names[c], 18, lines=1) for c in chosen]
    figure = new_figure(WIDTH, 1.6 + 0.36 * len(chosen))
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
    """Draw accuracy against confidence, as :func:`zslkit.evaluation.reliability` gives them.

    On the diagonal a probability means what it says; bars below show how many images say it.
    """
    confidence, accuracy, n = (
        np.array([bin[key] for bin in reliability["bins"]])
        for key in ("confidence", "accuracy", "n")
    )
    figure = new_figure(WIDTH * 0.6, 4.6)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], ls="--", color="grey", label="calibrated")
    label = f"model, expected calibration error {100 * reliability['ece']:.1f} points"
    line = {"color": BLUE, "label": label, "clip_on": False, "zorder": 3}  # markers stay whole
    axes.plot(100 * confidence, 100 * accuracy, "o-", **line)
    axes.set(ylabel="right (%)", xlim=(0, 100), ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8)
    counts.bar(100 * confidence, n, width=6, color=PALE_GREY, edgecolor="grey")
    counts.set(xlabel="probability of the class ranked first (%)", ylabel="images")
    for panel in (axes, counts):
        bare(panel)
    return figure


def prediction_grid(
    images: Sequence, predictions: Sequence[Sequence], truths: Sequence[str | Collection[str]] = ()
) -> Figure:
    """Show photos beside their (class_name, similarity, probability) bars, true classes ticked."""
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    figure = new_figure(WIDTH * (0.6 if columns == 1 else 1), 1.75 * rows + 0.3)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1, 1.1] * columns)
    for place, (image, ranked) in enumerate(zip(images, predictions, strict=True)):
        truth = truths[place] if len(truths) else ()
        truth = {truth} if isinstance(truth, str) else set(truth)
        row, column = divmod(place, columns)
        show_image(
            figure.add_subplot(grid[row, 2 * column]), image, ", ".join(sorted(truth)), width=26
        )
        axes, names = figure.add_subplot(grid[row, 2 * column + 1]), [p[0] for p in ranked]
        colours = [PALE_GREEN if name in truth else PALE_GREY for name in names]
        axes.barh(range(len(names)), [100 * p[2] for p in ranked], color=colours)
        for height, name in enumerate(names):
            mark = plain_text(f"✓ {name}" if name in truth else name, 30, lines=1)
            axes.text(1.5, height, mark, fontsize=8, va="center")
        axes.set(xlim=(0, 100), yticks=[], ylim=(len(names) - 0.5, -0.5))
        axes.set_xlabel("probability (%)", fontsize=8)
        axes.tick_params(labelsize=8)
        bare(axes)
    return figure


def bar_panels(labels: Sequence[str], panels: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one panel of bars for each quantity, named with its unit, over the same labels."""
    figure, places = new_figure(WIDTH, 0.9 + 0.42 * len(labels)), np.arange(len(labels))
    columns = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, values) in zip(columns, panels.items(), strict=True):
        bars = axes.barh(places, values, height=0.62, color=BLUE)
        axes.bar_label(bars, fmt=lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}", padding=4)
        axes.set(xlabel=name, xlim=(0, 1.35 * max(*values, 1e-9)))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        bare(axes)
    columns[0].set_yticks(places, [plain_text(label, 34) for label in labels])
    columns[0].invert_yaxis()
    return figure


def abstention_curve(curves: Mapping[str, tuple[Any, Any, float]]) -> Figure:
    """Draw errors among the answers over the share of images answered, for up to four models.

    Each curve is (coverage, risk, area) as :func:`zslkit.evaluation.risk_coverage` gives them.
    """
    figure = new_figure(WIDTH * 0.6, 3.6)
    axes, lines = figure.subplots(), ("-", "--", "-.", ":")
    styles = zip((BLUE, ORANGE, GREEN, "black"), lines, strict=True)
    for (name, curve), (colour, line) in zip(curves.items(), styles, strict=False):
        coverage, risk, area = curve
        label = f"{plain_text(name, 34)}, area {area:.3f}"
        # a threshold answers all images of one confidence or none: steps, not slopes
        axes.step(
            100 * np.asarray(coverage), 100 * np.asarray(risk), where="pre", color=colour, ls=line,
            label=label,
        )  # fmt: skip
    axes.set(xlabel="images answered (%)", ylabel="wrong among them (%)", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    bare(axes)
    return figure
