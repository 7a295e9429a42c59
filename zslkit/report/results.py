"""results.json: metrics, configuration, seed, checksums, versions."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from zslkit.data.files import portable, whole, write_json
from zslkit.data.strict import Strict
from zslkit.report.cards import read_run, write_card
from zslkit.report.headline import read_headline
from zslkit.report.provenance import provenance


class Published(Strict):
    """Other people's figures, to stand beside ours and never as ours."""

    source: str
    settings: dict[str, str]
    sets: tuple[str, ...]
    ks: tuple[int, ...]
    methods: dict[str, tuple[tuple[float, ...], ...]]
    """Each method's hit@k as fractions: one row a set, one figure a k."""
    claims: str

    @model_validator(mode="after")
    def _is_complete(self) -> "Published":
        for method, rows in self.methods.items():
            lengths = [len(row) for row in rows]
            if lengths != [len(self.ks)] * len(self.sets):
                raise ValueError(f"methods={method!r}: needs {len(self.ks)} figures for each of "
                                 f"{len(self.sets)} sets, has {lengths}")  # fmt: skip
            if wrong := [value for row in rows for value in row if not 0 <= value <= 1]:
                raise ValueError(f"methods={method!r}: {wrong[0]} is no fraction")
        return self


PUBLISHED = Published.model_validate_json(
    Path(__file__).with_name("published.json").read_text("utf-8")
).model_dump()
"""What ``published.json`` quotes, with its source."""


def record(
    metrics: Mapping[str, Any],
    config: Any,
    output_dir: str | Path,
    *,
    figures: Mapping[str, Any] | None = None,
    headline: Mapping[str, Any] | None = None,
    extra: Any = None,
    notebook: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Write a notebook's figures and then, atomically, ``results.json``; give its path.

    In the folder of a run the metrics, and ``extra["advice"]``, also join its card.

    Parameters
    ----------
    metrics : mapping
        Numbers, nested at will, or what ``metrics.estimate`` returns.
    config : RunConfig, mapping or None
        Stored, like ``parameters`` and ``extra``, with paths outside the project cut to their
        last part.
    figures : mapping, optional
        Names to Figures, saved as ``NAME.png``.
    headline : mapping, optional
        The answer as the first page of a report shows it, with the fields of
        :class:`~zslkit.report.headline.Headline`: ``sentence``, ``metric``, ``value``, ...
    extra : mapping or dataclass, optional
        Anything that JSON holds, such as a run's ``facts``.
    notebook, parameters : str and mapping, optional
        The notebook's name and what it was given: with them the results can be reproduced.
        Parameters that are None are left out.

    Raises
    ------
    ValueError
        For a metric that is no finite number, a headline that is not sound, or a figure whose
        name is no plain file name.
    """
    folder, figures, extra = Path(output_dir), figures or {}, extra or {}
    extra = asdict(extra) if is_dataclass(extra) else extra
    given = {name: value for name, value in (parameters or {}).items() if value is not None}
    results = {
        "name": folder.resolve().name,
        "notebook": notebook,
        "parameters": portable(given),
        "metrics": _numbers(metrics, "metrics"),
        "figures": {name: f"{name}.png" for name in figures},
        "photos": [name for name in figures if getattr(figures[name], "has_photos", False)],
        "headline": read_headline(headline, [*figures]) if headline else None,
        "extra": portable(extra),
        **provenance(config),
    }
    if wrong := [name for name in figures if not re.fullmatch(r"[\w-]+", name)]:
        raise ValueError(f"figure names take letters, digits, _ and -, not {wrong}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        with whole(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=144, format="png")
    write_json(folder / "results.json", results)
    if run := read_run(folder):
        facts = run["record"] | {key: extra[key] for key in ("advice",) if key in extra}
        write_card(folder, run | {"record": facts, "metrics": results["metrics"]})
    return folder / "results.json"


def _numbers(value: Any, name: str) -> Any:
    """Turn nested numbers of any library into plain ones; JSON has no NaN and no infinity."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(key): _numbers(item, f"{name} / {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item, f"{name} / {place}") for place, item in enumerate(value)]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} is no finite number")
    return value
