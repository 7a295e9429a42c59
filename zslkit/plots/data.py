"""Figures of pairs and their captions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from zslkit.plots.style import BLUE, ORANGE, WIDTH, bare, new_figure, show_image, styled


def pair_grid(images: Sequence, captions: Sequence[str], columns: int = 4) -> Figure:
    """Show images, (3, H, W), (H, W, 3) or PIL, above their captions."""
    rows = math.ceil(len(images) / columns)
    figure = new_figure(WIDTH, rows * (WIDTH / columns + 0.55))
    for place, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        show_image(figure.add_subplot(rows, columns, place), image, caption, width=104 // columns)
    return figure


def distributions(
    samples: Mapping[str, Sequence[float]], label: str, whole: bool = False
) -> Figure:
    """Draw samples as histograms over shared bins, each with an area of one.

    ``whole`` gives each whole number a bar of its own, in percent.
    """
    from seaborn import histplot

    figure = new_figure(WIDTH * 0.85, 3.3)
    axes, pooled = figure.subplots(), np.concatenate([*samples.values()])
    ends = pooled.min() - 0.5, pooled.max() + 1.5
    bins = np.arange(*ends) if whole else np.histogram_bin_edges(pooled, 60)
    shape = {"bins": bins, "stat": "percent" if whole else "density", "element": "step"}
    for (name, values), (colour, *_) in styled(samples):
        legend = f"{name} (n = {len(values):,})"
        histplot(np.asarray(values), **shape, color=colour, alpha=0.3, label=legend, ax=axes)
    axes.set(xlabel=label, ylabel="share (%)" if whole else "density")
    axes.legend(frameon=False)
    bare(axes)
    return figure


def image_sizes(sizes: Any) -> Figure:
    """Draw widths and heights, (K, 2) in pixels, as dots whose area grows with their number."""
    distinct, counts = np.unique(np.asarray(sizes), axis=0, return_counts=True)
    figure = new_figure(WIDTH * 0.5, WIDTH * 0.5)
    axes, most = figure.subplots(), counts.argmax()
    axes.axline((0, 0), slope=1, color="grey", ls=":", lw=1)
    axes.scatter(*distinct.T, s=8 + 300 * counts / counts.max(), color=BLUE, alpha=0.5, lw=0)
    width, height = distinct[most]
    title = f"most frequent: {width} × {height}, {counts[most]:,} of {counts.sum():,} images"
    axes.set_title(title, fontsize=9)
    ends = (0, 1.1 * distinct.max())
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=ends, ylim=ends, aspect=1)
    bare(axes)
    return figure


def rivals_curve(expected: Mapping[int, Mapping[str, float]], batch_size: int) -> Figure:
    """Draw how many captions of a batch are expected to fit as well, with intervals, over B."""
    figure = new_figure(WIDTH * 0.7, 3.6)
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
    bare(axes)
    return figure
