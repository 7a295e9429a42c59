"""results.json: metrics, configuration, seed, checksums, versions."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from zslkit.data.files import portable, write_json
from zslkit.report.cards import read_run, write_card
from zslkit.report.provenance import provenance
from zslkit.report.tables import flat

PUBLISHED = {
    "source": "README of facebookresearch/OTTER (Wu et al., 2021, arXiv:2112.09445)",
    "settings": {
        "training pairs": "2,911,810 of CC3M, 10 epochs",
        "image encoder": "ResNet-50, ImageNet weights, fine-tuned",
        "text encoder": "DeCLUTR-sci-base, fine-tuned",
        "labelled images": "Google Open Images; ImageNet-10K (Tencent ML-Images)",
        "truth": "several labels for an image; one of them among the k is a hit",
        "label policy": "not stated",
    },
    "sets": ("Google Open Images", "ImageNet-10K (Tencent)"),
    "ks": (1, 5, 10),
    "methods": {
        "InfoNCE": ((0.268, 0.551, 0.664), (0.109, 0.294, 0.405)),
        "label smoothing": ((0.263, 0.559, 0.675), (0.101, 0.296, 0.398)),
        "distillation (EMA teacher)": ((0.267, 0.553, 0.671), (0.100, 0.275, 0.385)),
        "optimal transport": ((0.291, 0.596, 0.709), (0.120, 0.318, 0.421)),
    },
    "claims": "arXiv:2104.08945, abstract: +73 % relative over the previous best on ImageNet "
    "21k+1k, +10.5 % relative over CLIP on Google Open Images (19,958 classes), with 3 M pairs",
}


def record(
    metrics: Mapping[str, Any],
    config: Any,
    output_dir: str | Path,
    *,
    figures: Mapping[str, Any] | None = None,
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
    extra : mapping or dataclass, optional
        Anything that JSON holds, such as a run's ``facts``.
    notebook, parameters : str and mapping, optional
        The notebook's name and what it was given: with them the results can be reproduced.
        Parameters that are None are left out.

    Raises
    ------
    ValueError
        For a metric that is no finite number, or a figure whose name is no plain file name.
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
        "extra": portable(extra),
        **provenance(config),
    }
    if wrong := [name for name in figures if not re.fullmatch(r"[\w-]+", name)]:
        raise ValueError(f"figure names take letters, digits, _ and -, not {wrong}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=144)
    write_json(folder / "results.json", results)
    if run := read_run(folder):
        facts = run["record"] | {key: extra[key] for key in ("advice",) if key in extra}
        write_card(folder, run | {"record": facts, "metrics": results["metrics"]})
    return folder / "results.json"


def results_table(results: Sequence[Mapping[str, Any]]) -> Any:
    """Put the metrics of several results, names joined by " / ", into a pandas DataFrame."""
    from pandas import DataFrame

    columns = ["name", "metric", "value", "low", "high", "n", "chance", "seed"]
    rows = [
        {"name": result["name"], "metric": metric, "seed": result["seed"], **numbers}
        for result in results
        for metric, numbers in flat(result["metrics"])
    ]
    return DataFrame(rows, columns=columns)


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
