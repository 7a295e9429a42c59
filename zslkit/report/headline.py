"""A notebook's answer in one sentence, one number and one figure: the first page shows these."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from zslkit.data.strict import Strict, check_names, explain
from zslkit.evaluation.registry import metric_facts
from zslkit.report.tables import notebook_texts


class Headline(Strict):
    """What a notebook found, computed by it."""

    sentence: str
    """One sentence that answers the notebook's question, in words."""
    metric: str
    """Name of the number, as the registry of metrics knows it: words, unit, percent."""
    value: float
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; none where there is none."""
    over: str = ""
    """What the interval is over, such as "960 images, one training"."""
    chance: float | None = None
    figure: str | None = None
    """Which of the recorded figures shows it best."""
    number: int | None = None
    """Number of that figure in the notebook, whose caption joins it."""

    @model_validator(mode="after")
    def _is_sound(self) -> "Headline":
        for name in ("sentence", "metric"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must be words, not {getattr(self, name)!r}")
        numbers = [number for number in (self.low, self.value, self.high) if number is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"value, low and high must be finite, got {numbers}")
        if (self.low is None) != (self.high is None) or numbers != sorted(numbers):
            raise ValueError(f"low={self.low} and high={self.high} must enclose value={self.value}")
        return self


def read_headline(given: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Any]:
    """Check a headline against the recorded figures; give it as plain JSON.

    Raises
    ------
    ValueError
        For an unknown or missing key, a sentence without words, an interval that does not
        enclose its value, or a figure that was not recorded.
    """
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in given.items()}
    check_names(plain, Headline.model_fields, "key of a headline")
    try:
        found = Headline(**plain)
    except ValidationError as error:
        raise ValueError(f"headline: {explain(error)}") from None
    if found.figure is not None and found.figure not in figures:
        raise ValueError(f"headline: figure={found.figure!r} is not among {', '.join(figures)}")
    return found.model_dump(exclude_none=True)


def headline_words(headline: Mapping[str, Any]) -> dict[str, str]:
    """Word the number of a headline: ``number``, ``unit`` in words, ``interval``, ``chance``."""
    facts = metric_facts(headline["metric"])
    ends = [headline[key] for key in ("low", "high") if key in headline]
    over = headline.get("over", "")
    shown = f"95 % interval {' to '.join(map(facts.write, ends))}" if ends else ""
    words = ", ".join(part for part in (shown, over and f"over {over}") if part)
    chance = f"chance {facts.write(headline['chance'])}" if "chance" in headline else ""
    kind = f"difference in {facts.words}" if facts.is_difference else facts.words
    return {"number": facts.write(headline["value"]), "metric": kind, "interval": words,
            "chance": chance}  # fmt: skip


def caption_of(notebook: Path, number: int | None) -> str:
    """Find the caption of a numbered figure among a notebook's texts, "" where there is none."""
    for text in notebook_texts(notebook):
        if number is not None and text.startswith(f"**Figure {number}.**"):
            return re.sub(r"[*`]", "", text.split("\n\n")[0])
    return ""
