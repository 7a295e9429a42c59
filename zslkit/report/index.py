"""The first page of a report: what the data are, what each notebook found, the runs' cards."""

import base64
import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zslkit.data.files import write_text
from zslkit.data.manifests import load_manifest
from zslkit.report.cards import card, load_results, read_run
from zslkit.report.headline import caption_of, headline_words
from zslkit.report.tables import TEMPLATES, title_of


def describe(notebook: Path, target: Path, folder: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what the first page shows of one notebook.

    Parameters
    ----------
    notebook : Path
        Its source; title and question are the first lines of the text that begins with ``# ``.
    target : Path
        The executed copy, beside its HTML page.
    folder : Path
        Of its results; they are shown unless there was an error: the headline with its figure,
        or where the results have none the first figure.
    how : mapping
        How it went: ``error`` ("" if none), ``minutes`` if it was run, ``unchanged`` since when.
    """
    title, question = title_of(notebook)
    entry = {"name": notebook.stem, "title": title, "question": question}
    entry |= {"page": "minutes" in how and target.with_suffix(".html").is_file(), **how}
    if (folder / "results.json").is_file() and not how["error"]:
        run, results = read_run(folder), load_results(folder)
        entry["results"], entry["card"] = results, card(run) if run else {}
        entry["n_runs"] = sum(1 for _ in folder.glob("**/seed-*/run.json"))
        entry["headline"] = headline = results.get("headline")
        entry["words"] = headline_words(headline) if headline else {}
        shown = _shown(results, folder)
        number = headline.get("number") if headline else None
        caption = caption_of(notebook, number) if headline and headline.get("figure") else ""
        entry["figures"] = [
            {"name": name, "caption": caption, "data": _picture(folder / file),
             "link": quote(os.path.relpath(folder / file, target.parent)),
             "photos": name in results.get("photos", [name])}
            for name, file in shown
        ]  # fmt: skip
    return entry


def write_index(entries: Sequence[Mapping[str, Any]], page: Path) -> Path:
    """Write the page over all notebooks, as :func:`describe` gives them; give its path."""
    results = [entry["results"] for entry in entries if "results" in entry]
    last = results[-1] if results else {"versions": {}, "machine": {}}
    data = [*_data_sets(results)]
    html = render(
        "index.html",
        entries=entries,
        failed=sum(bool(entry["error"]) for entry in entries),
        data=data,
        drawn=any(found["drawn"] for found in data),
        about=" · ".join(_words(last["versions"] | last["machine"])),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )
    write_text(page, html)
    return page


def render(template: str, **values: Any) -> str:
    """Fill one of the templates of the report's pages; everything is escaped."""
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(autoescape=True, trim_blocks=True, loader=FileSystemLoader(TEMPLATES))
    return pages.get_template(template).render(**values)


def _words(facts: Mapping[str, Any]) -> list[str]:
    """Give each fact as its name and value; what a fact lists is listed without its files."""
    return [
        f"{name} {', '.join(sorted({*value.values()})) if isinstance(value, Mapping) else value}"
        for name, value in facts.items()
    ]


def _shown(results: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Choose the headline's figure, else the first; nothing that someone has tidied up."""
    chosen = (results.get("headline") or {}).get("figure")
    files = {name: file for name, file in results["figures"].items() if (folder / file).is_file()}
    return [(name, files[name]) for name in files if name == chosen or not chosen][:1]


def _data_sets(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Word the manifests that the results name, once each, where they can be found."""
    names = (found["config"].get(key) for found in results
             for key in ("manifest", "zeroshot_manifest"))  # fmt: skip
    for name in dict.fromkeys(filter(None, names)):
        with contextlib.suppress(OSError, ValueError):  # moved since: results keep the checksum
            manifest = load_manifest(name)
            drawn = manifest.kind == "toy"  # of others the splits' sizes are not written there
            splits = manifest.splits.items()
            counts = (f"{split}: {found.n:,}" if drawn else split for split, found in splits)
            yield {"title": manifest.title, "description": manifest.description,
                   "counts": ", ".join(counts), "drawn": drawn}  # fmt: skip


def _picture(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((1400, 1400))
        image.save(stream := io.BytesIO(), format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
