"""Metrics and facts as tables of words."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zslkit.evaluation.registry import metric_facts, metric_label

Table = list[list[str]]

TEMPLATES = Path(__file__).with_name("templates")
"""Of the report's pages."""


ESTIMATE = ["metric", "value", "95 % interval", "n", "chance"]
"""Header of what :func:`estimate_row` gives."""


def estimate_row(metric: str, numbers: Mapping[str, float]) -> list[str]:
    """Word value, interval, n and chance, as :func:`metric_facts` says they are written."""
    facts = metric_facts(metric)
    keys = [key for key in ("value", "low", "high", "chance") if key in numbers]
    shown = {key: facts.write(numbers[key]) for key in keys}
    interval = "{low} to {high}".format(**shown) if "low" in shown else ""
    n, chance = str(numbers.get("n", "")), shown.get("chance", "")
    return [metric_label(metric), shown["value"], interval, n, chance]


def flat(metrics: Any, name: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Walk nested metrics; a lone number becomes an estimate without interval."""
    metrics = dict(enumerate(metrics)) if isinstance(metrics, list) else metrics
    if isinstance(metrics, Mapping) and "value" not in metrics:
        for key, value in metrics.items():
            yield from flat(value, f"{name} / {key}" if name else str(key))
    else:
        yield name, metrics if isinstance(metrics, Mapping) else {"value": metrics}


def pair_rows(differences: Mapping[str, tuple]) -> Table:
    """Word what differs as rows of name, before, after."""
    return [[name, *map(as_word, pair)] for name, pair in differences.items()]


def filled(tables: dict[str, Table]) -> dict[str, Table]:
    """Leave out tables that have no row below their head."""
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def as_word(value: Any) -> str:
    """Show a value as JSON does, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """Keep Markdown and HTML from reading marks in names, paths and captions."""
    return re.sub(r"([\\`*<>|$\[\]])", r"\\\1", " ".join(text.split()))


def table_line(cells: Sequence[str]) -> str:
    """Write one row of a Markdown table."""
    return f"| {' | '.join(map(escaped, cells))} |"


def notebook_texts(notebook: Path) -> list[str]:
    """Read the Markdown cells of a notebook's file."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def title_of(notebook: Path) -> tuple[str, str]:
    """Give a notebook's title and the paragraph below it, without marks."""
    texts = notebook_texts(notebook)
    text = next((text for text in texts if text.startswith("# ")), f"# {notebook.stem}")
    title, _, body = re.sub("[*`]", "", text[2:]).partition("\n")
    return title, body.strip().split("\n\n")[0]
