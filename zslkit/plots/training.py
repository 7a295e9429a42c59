"""Figures of a training and of sweeps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zslkit.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    WIDTH,
    bare,
    new_figure,
    over_steps,
    plain_text,
    step_curve,
    styled,
    with_unit,
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


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss, its two terms, logit scales and learning rate against the optimizer step."""
    figure = new_figure(WIDTH, 2.9)
    panels = figure.subplots(1, 3)
    for panel, key, legend, colour, style in _CURVES:
        step_curve(panels[panel], history, key, linestyle=style, color=colour, label=legend)
    for axes, label in zip(panels, _PANELS, strict=True):
        over_steps(axes, label)
    return figure


def target_curves(history: Sequence[Mapping[str, float]], n_candidates: int) -> Figure:
    """Draw how soft the targets were at each optimizer step, between one-hot and uniform.

    Mean own-pair mass, mean entropy (nats) and the correlation with the teacher's similarity;
    dotted lines are the two limits for ``n_candidates`` captions.
    """
    figure = new_figure(WIDTH, 2.9)
    mass, entropy, agreement = panels = figure.subplots(1, 3)
    keys, colours = ("self_mass", "target_entropy", "target_agreement"), (BLUE, ORANGE, GREEN)
    for axes, key, colour in zip(panels, keys, colours, strict=True):
        step_curve(axes, history, key, color=colour)
    limits = (mass, 1, 1 / n_candidates), (entropy, 0, math.log(n_candidates))
    for axes, one_hot, uniform in limits:
        axes.axhline(one_hot, color="black", ls=":", lw=1, label="one-hot")
        axes.axhline(uniform, color="black", ls="-.", lw=1, label="uniform")
    agreement.axhline(0, color="black", ls=":", lw=1, label="inverted below")
    over_steps(mass, "mass on the own pair")
    over_steps(entropy, "target entropy (nats)")
    over_steps(agreement, "correlation with the teacher")
    agreement.set_ylim(min(-0.1, agreement.get_ylim()[0]), 1.05)
    return figure


def held_out_curve(history: Sequence[Mapping[str, float]]) -> Figure | None:
    """Draw what a callback measured on held-out pairs against the epoch, its best marked.

    None where nothing was measured.
    """
    names = sorted({name for row in history for name in row if name.startswith("held-out ")})
    if not names:
        return None
    figure = new_figure(WIDTH * 0.6, 2.9)
    axes = figure.subplots()
    for (name, _), (colour, *_) in styled(dict.fromkeys(names)):
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
    bare(axes)
    return figure


def interval_curves(
    x: Sequence[float],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    limits: Mapping[str, Mapping[str, float]],
    second: Sequence[Mapping[str, float]],
    labels: tuple[str, str, str],
    unit: str = "%",
) -> Figure:
    """Draw estimates with intervals over a logarithmic x, limits across, and a second quantity.

    Each point of a curve is a mapping with value, low and high, drawn as a point alone where its
    ``n`` is below three; ``second`` has its own axis on
    the right. ``labels`` name x, the estimates, whose ``unit`` joins them, and the second
    quantity. Fractions are shown in percent, "%"; values of another unit as they are.
    """
    factor = 100 if unit == "%" else 1
    figure = new_figure(WIDTH * 0.85, 4.2)
    axes = figure.subplots()
    for (name, points), (colour, marker, _) in styled(curves):
        value, low, high = (
            factor * np.array([point[key] for point in points]) for key in ("value", "low", "high")
        )
        style = {"color": colour, "marker": marker, "capsize": 3, "label": name}
        axes.errorbar(x, value, _arms(points, value, low, high), **style)
    for (name, limit), style in zip(limits.items(), (":", "-."), strict=False):
        axes.axhline(factor * limit["value"], color="black", ls=style, lw=1, label=name)
    axes.set(xscale="log", xlabel=labels[0], ylabel=plain_text(with_unit(labels[1], unit), 36))
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    right = axes.twinx()
    right.plot(x, [point["value"] for point in second], color="grey", ls="--", label=labels[2])
    right.set_ylabel(labels[2], color="dimgrey")
    axes.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def interval_dots(
    series: Mapping[str, Mapping[str, Mapping[str, float]]],
    quantity: str,
    zero: bool = False,
    unit: str = "%",
) -> Figure:
    """Draw estimates with intervals, one row per name and one colour and marker per series.

    ``series`` maps a legend to (name to estimate with value, low and high); below an ``n`` of
    three only points are drawn. Fractions, "%", are
    shown in percent, or for differences (``zero``) in points beside a line at zero; values of
    another ``unit`` as they are.
    """
    factor = 100 if unit == "%" else 1
    names = list(dict.fromkeys(name for estimates in series.values() for name in estimates))
    figure = new_figure(WIDTH * 0.85, 1.1 + 0.16 * len(names) * (len(series) + 1))
    axes = figure.subplots()
    spread = np.linspace(-0.27, 0.27, len(series)) if len(series) > 1 else [0.0]
    for ((legend, estimates), (colour, marker, _)), shift in zip(
        styled(series), spread, strict=True
    ):
        value, low, high = (
            factor * np.array([estimates[name][key] for name in estimates])
            for key in ("value", "low", "high")
        )
        places = [names.index(name) + shift for name in estimates]
        axes.errorbar(
            value, places, xerr=_arms([*estimates.values()], value, low, high), fmt=marker,
            color=colour, capsize=3, ms=5, label=legend,
        )  # fmt: skip
    if zero:
        axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(names)), [plain_text(name, 34) for name in names])
    axes.set_xlabel(with_unit(quantity, "points" if zero and unit == "%" else unit))
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    bare(axes)
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=len(series), frameon=False, fontsize=9)
    return figure


def _arms(points: Sequence[Mapping[str, float]], value, low, high) -> np.ndarray | None:
    """Give the whiskers' lengths (2, K); none where fewer than three seeds made the interval."""
    if any(point.get("n", 3) < 3 for point in points):
        return None
    return np.abs([low - value, high - value])


def target_matrix(
    targets: Any, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> Figure:
    """Map soft targets (B, N), rows summing to 1, from images (rows) to captions (columns)."""
    targets = np.asarray(targets, dtype=float)
    n_rows, n_columns = targets.shape
    figure = new_figure(WIDTH * 0.75, 0.9 + WIDTH * 0.55 * min(1.2, n_rows / n_columns))
    axes = figure.subplots()
    shown = axes.imshow(targets, cmap="cividis", vmin=0, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="target probability", shrink=0.8)
    axes.set(xlabel="caption", ylabel="image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if row_labels:
        axes.set_yticks(range(n_rows), [plain_text(text, 24) for text in row_labels], fontsize=7)
    if column_labels:
        texts = [plain_text(text, 24, lines=1) for text in column_labels]
        axes.set_xticks(range(n_columns), texts, fontsize=7, rotation=45, ha="right")
    return figure


def target_panels(panels: Mapping[str, Any], labels: Sequence[str] = ()) -> Figure:
    """Map soft targets (B, N) of one batch side by side, such as at several temperatures.

    All panels share the colour scale, 0 to 1; ``labels`` word the captions below.
    """
    figure = new_figure(WIDTH, WIDTH / max(2, len(panels)) + (1.1 if labels else 0.5))
    columns = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (title, targets) in zip(columns, panels.items(), strict=True):
        targets = np.asarray(targets, dtype=float)
        shown = axes.imshow(targets, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(plain_text(title, 40), fontsize=9)
        axes.set_xlabel("caption")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if labels:
            texts = [plain_text(text, 30, lines=1) for text in labels]
            axes.set_xticks(range(len(texts)), texts, fontsize=6, rotation=60, ha="right")
    columns[0].set_ylabel("image")
    figure.colorbar(shown, ax=columns, label="target probability", shrink=0.8)
    return figure
