"""One page over all results of a report."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from zslkit.data.files import write_text
from zslkit.report.cards import card, load_results, read_run
from zslkit.report.tables import ESTIMATE, estimate_row, flat


def describe(notebook: Path, target: Path, folder: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what the index shows of one notebook.

    Parameters
    ----------
    notebook : Path
        Its source; title and question are the first lines of the text that begins with ``# ``.
    target : Path
        The executed copy, beside its HTML page.
    folder : Path
        Of its results; they are shown unless there was an error.
    how : mapping
        How it went: ``error`` ("" if none), ``minutes`` if it was run, ``unchanged`` since when.
    """
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    text = next((text for text in texts if text.startswith("# ")), f"# {notebook.stem}")
    title, _, body = re.sub("[*`]", "", text[2:]).partition("\n")
    entry = {"name": notebook.stem, "title": title, "question": body.strip().split("\n\n")[0]}
    entry |= {"page": "minutes" in how and target.with_suffix(".html").is_file(), **how}
    if (folder / "results.json").is_file() and not how["error"]:
        run, results = read_run(folder), load_results(folder)
        entry["results"], entry["card"] = results, card(run) if run else {}
        entry["n_runs"] = sum(1 for _ in folder.glob("**/seed-*/run.json"))
        files = {label: folder / file for label, file in results["figures"].items()}
        shown = [label for label in files if files[label].is_file()][:3]
        entry["thumbnails"] = {label: _thumbnail(files[label]) for label in shown}
    return entry


def write_index(entries: Sequence[Mapping[str, Any]], page: Path) -> Path:
    """Write the page over all notebooks, as :func:`describe` gives them; give its path."""
    from jinja2 import Environment

    results = {entry["name"]: entry["results"] for entry in entries if "results" in entry}
    last = next(reversed(results.values()), {"versions": {}, "machine": {}})
    source = Path(__file__).with_name("report.html").read_text("utf-8")
    html = Environment(autoescape=True, trim_blocks=True).from_string(source).render(
        entries=entries,
        failed=sum(bool(entry["error"]) for entry in entries),
        header=ESTIMATE,
        results={name: [estimate_row(*row) for row in flat(found["metrics"])]
                 for name, found in results.items()},
        about=" · ".join(f"{k} {v}" for k, v in (last["versions"] | last["machine"]).items()),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip
    write_text(page, html)
    return page


def _thumbnail(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((720, 720))
        image.save(stream := io.BytesIO(), format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
