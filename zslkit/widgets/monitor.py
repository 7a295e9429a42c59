"""Curves that follow a training, and a button that stops it."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from zslkit.checkpoint import Run
from zslkit.widgets.live import PAGE, Box


class _StopButton(anywidget.AnyWidget):
    """A button that interrupts the kernel past its queue of messages."""

    _esm = Path(__file__).with_name("stop.js").read_text("utf-8")
    kernel, over = traitlets.Unicode().tag(sync=True), traitlets.Bool(False).tag(sync=True)


class TrainingMonitor(Box):
    """Watch a training while it runs, and end it early: a callback for :func:`zslkit.train`.

    Show it before the training starts; of each training another one. It changes no number. Its
    button does what Ctrl-C does: the run is saved after the step.

    Parameters
    ----------
    seconds : float
        Between two drawings, at least; 0 draws after every step.

    Raises
    ------
    ValueError
        If ``seconds`` is negative.
    """

    def __init__(self, seconds: float = 2.0):
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must be a number, 0 or more")
        super().__init__()
        self.seconds, self._due, self.stop = seconds, 0.0, _StopButton(kernel=_kernel_id())
        self._watched = False
        self.children = [ipywidgets.HTML(str(PAGE.style())), self.stop, self.message, self.view]
        self._say("The curves come with the first step.")

    def __call__(self, run: Run, row: Mapping[str, float]) -> None:
        """Draw the curves if it is time."""
        self._end_with_cell()
        self.stop.over = row["step"] == run.facts.total_steps
        if self.stop.over or time.monotonic() >= self._due:
            self._due = time.monotonic() + self.seconds
            self._draw([*run.history, row], run.facts.total_steps)

    def _end_with_cell(self) -> None:
        """Let the button end with the cell: a training that was stopped says no more."""
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None or self._watched:
            return
        self._watched = True

        def end(result: Any) -> None:
            self.stop.over = True
            shell.events.unregister("post_run_cell", end)

        shell.events.register("post_run_cell", end)

    def _draw(self, history: Sequence[Mapping[str, float]], total: int) -> None:
        row, keys = history[-1], dict.fromkeys(key for row in history for key in row)
        held_out = {key: key for key in keys if key.startswith("held-out ")}
        panels = [_panel(title, keys, history, total) for title, keys in _CURVES.items()]
        panels += [_panel("held-out pairs", held_out, history, total)] if held_out else []
        self.view.value = str(PAGE.training([panel for panel in panels if panel["curves"]]))
        self._say(f"Step {row['step']:,} of {total:,}, epoch {row['epoch'] + 1}.")


# panel → key of a history row, what it says
_CURVES = {
    "loss (nats)": {
        "loss": "total",
        "contrastive_loss": "contrastive",
        "distillation_loss": "distillation",
    },
    "logit scale": {"logit_scale": "contrastive", "distillation_scale": "distillation"},
    "learning rate": {"learning_rate": "learning rate"},
}


# what a curve says → its class in the style; held-out figures have the first colour, as in figures
_KINDS = {"total": "total", "distillation": "distillation", "learning rate": "rate"}


_POINTS = 300  # of a curve, at most: a page is sent to the browser each time


def _kernel_id() -> str:
    """Give the name under which the server knows this kernel; "" outside of one."""
    from ipykernel.kernelapp import IPKernelApp

    if not IPKernelApp.initialized():
        return ""
    return Path(IPKernelApp.instance().connection_file).stem.removeprefix("kernel-")


def _panel(title: str, keys: Mapping[str, str], history: Sequence, total: int) -> dict[str, Any]:
    """Lay curves out on a panel 300 wide and 100 high, steps from 0 to ``total``."""
    thinned = [*history[: -1 : len(history) // _POINTS + 1], history[-1]]
    curves = {}
    for key, words in keys.items():
        rows = history if key.startswith("held-out ") else thinned  # those are few, and far between
        if points := [(row["step"], row[key]) for row in rows if row.get(key) is not None]:
            curves[words] = points
    values = [value for points in curves.values() for _, value in points if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)

    def height(value: float) -> float:
        return round(100 - 100 * (value - low) / (high - low or 1), 1)

    lines = [
        (words, _KINDS.get(words, "contrastive"), points[-1][1], " ".join(
            f"{300 * step / total:.1f},{height(value):.1f}" for step, value in points
        ))
        for words, points in curves.items()
    ]  # fmt: skip
    y_ticks = [(height(value), f"{value:.4g}") for value in _ticks(low, high)]
    x_ticks = [(round(300 * step / total, 1), f"{step:,.0f}") for step in _ticks(0, total, whole=1)]
    return {"title": title, "curves": lines, "x_ticks": x_ticks, "y_ticks": y_ticks}


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Choose round numbers between two, as figures do."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(4, integer=bool(whole)).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]
