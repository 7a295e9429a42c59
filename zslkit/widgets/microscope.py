"""Soft labels of one batch, under settings to move."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import pandas as pd
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.kinds import SOFT_TARGETS
from zslkit.data.pairs import Pairs
from zslkit.evaluation.explore import target_table, teacher_of
from zslkit.evaluation.retrieval import embed_batch
from zslkit.kernels.reading import numbers
from zslkit.objective import soft_targets
from zslkit.targets import target_agreement, target_statistics
from zslkit.training.coach import judge_targets
from zslkit.widgets.live import PAGE, SHOWN, Live, control, csv_base64, jpeg_base64, small_picture


class SoftLabelMicroscope(Live):
    """See the soft targets of a batch, and what temperature, weights and epsilon do to them.

    Its controls are attributes, so that a script can set their ``value``: ``kind``,
    ``temperature``, ``image_weight``, ``text_weight``, ``epsilon``, ``smoothing``, ``trusted``.

    Parameters
    ----------
    run_or_config : Run or RunConfig
        Whose teacher softens the labels (:func:`zslkit.evaluation.teacher_of`), and where the
        controls start.
    pairs : Pairs
        Where the pairs come from; of several captions the first counts.
    rows : sequence of int
        The batch. Images that cannot be read are left out, with a word.
    debounce : float
        Seconds without a change before targets are computed; 0 computes at once.

    Raises
    ------
    ValueError
        If ``debounce`` is negative.
    """

    def __init__(
        self,
        run_or_config: Run | RunConfig,
        pairs: Pairs,
        rows: Sequence[int],
        debounce: float = 0.15,
    ):
        is_run = isinstance(run_or_config, Run)
        self._origin, self._pairs, self._rows = run_or_config, pairs, [*map(int, rows)]
        self._config, self._batch = run_or_config.config if is_run else run_or_config, None
        super().__init__(_target_controls(self._config), debounce)
        head = [ipywidgets.HTML(str(PAGE.style())), *self._controls.values()]
        self.children = [*head, self.message, self.view, self.picture, self.saved]
        self._changed()

    @property
    def statistics(self) -> pd.DataFrame:
        """One row per pair: row, key, caption, self_mass, target_entropy (nats), others."""
        return self._current()["table"]

    @property
    def targets(self) -> Tensor:
        """(B, B) soft targets from images to captions; rows sum to 1."""
        return self._current()["targets"]

    @property
    def alarms(self) -> list[str]:
        """Sentences about targets that are one-hot, uniform or inverted."""
        return self._current()["alarms"]

    def figure(self) -> Any:
        """Draw the matrix as a Figure; a ValueError if nothing is shown."""
        from zslkit.plots.training import target_matrix

        table = self.statistics
        return target_matrix(self.targets, list(table["key"]), list(table["caption"]))

    def _idle(self, wanted: Mapping[str, Any]) -> set[str]:
        settings = SOFT_TARGETS[wanted["kind"]].settings
        return {name for name, (field, _) in _SETTINGS.items() if field not in settings}

    def _compute(self, wanted: Mapping[str, Any], tell: Callable) -> tuple[dict[str, Any], str]:
        if self._batch is None:
            model, words = teacher_of(self._origin)
            rows, images, embedded = embed_batch(model, self._pairs, self._rows)
            if lost := [str(self._pairs.keys[i]) for i in self._rows if i not in rows]:
                words += f" Unreadable, and left out: {', '.join(lost)}."
            self._batch = (
                rows,
                [jpeg_base64(small_picture(image, 48)) for image in images],
                embedded,
                words,
            )
        rows, jpegs, embedded, words = self._batch
        asked = {field: wanted[name] for name, (field, _) in _SETTINGS.items()}
        config = self._config.model_copy(update={"soft_targets": wanted["kind"], **asked})
        targets, _ = soft_targets(len(rows), len(rows), embedded, config, progress=1.0)
        table = target_table(targets, [self._pairs.captions[i][0] for i in rows])
        table.insert(0, "key", [str(self._pairs.keys[i]) for i in rows])
        table.insert(0, "row", rows)
        agreement = target_agreement(targets, embedded.image @ embedded.text.T)
        statistics = numbers(target_statistics(targets) | {"target_agreement": agreement})
        alarms = [*judge_targets(statistics, config, len(rows)).values()]
        result = {"targets": targets, "table": table, "alarms": alarms, "jpegs": jpegs}
        return result, words.strip()

    def _html(self, targets: Tensor, table: pd.DataFrame, alarms: list, jpegs: list) -> str:
        mean, uniform = numbers(target_statistics(targets)), math.log(len(table))
        shares, pairs = targets[:SHOWN, :SHOWN].tolist(), table[:SHOWN].to_dict("records")
        facts = alarms, mean, uniform, pairs, jpegs, shares, len(table)
        return str(PAGE.microscope(*facts, csv_base64(table)))


# control → field of RunConfig, what it says
_SETTINGS = {
    "temperature": ("teacher_temperature", "temperature"),
    "image_weight": ("image_similarity_weight", "image–image weight"),
    "text_weight": ("text_similarity_weight", "text–text weight"),
    "epsilon": ("epsilon", "epsilon"),
    "smoothing": ("label_smoothing", "label smoothing"),
    "trusted": ("trusted_end", "share kept one-hot"),
}


def _target_controls(config: RunConfig) -> dict[str, ipywidgets.Widget]:
    menu = [name for name, kind in SOFT_TARGETS.items() if kind.function]
    first = config.soft_targets if SOFT_TARGETS[config.soft_targets].function else "teacher"
    controls = {"kind": control(ipywidgets.Dropdown, "kind of targets", options=menu, value=first)}
    for name, (field, words) in _SETTINGS.items():
        value = getattr(config, field)
        if name in ("temperature", "epsilon"):  # over orders of magnitude
            low, high = min(-3, math.floor(math.log10(value))), max(1, math.ceil(math.log10(value)))
            options = {"min": low, "max": high, "step": 0.02, "readout_format": ".3g"}
            controls[name] = control(ipywidgets.FloatLogSlider, words, value=value, **options)
        else:
            most = {"smoothing": 0.99, "trusted": 1.0}.get(name, max(2.0, value))
            options = {"value": value, "max": most, "step": 0.01}
            controls[name] = control(ipywidgets.FloatSlider, words, **options)
    return controls
