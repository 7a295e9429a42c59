"""CSV, TSV, JSONL and Parquet with a caption per row."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import (
    SPLIT_NAMES,
    Found,
    Hints,
    below,
    find_columns,
    find_folder,
    succeeded,
)
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, files_in

SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".psv", ".jsonl", ".ndjson", ".json", ".parquet")


def read_table(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Read a row per caption, or a list of captions per row."""
    image, caption = manifest.image_field, manifest.caption_field
    frame = read_frame(root, split.table, (image, caption), split.where)
    fine = succeeded(frame["status"]) if "status" in frame else None
    whole, n_all = frame if fine is None else frame[fine], len(frame)
    source = read_rows(whole, image, caption, root / manifest.image_folder, split.table)
    if len(whole) < n_all:
        failed = f"{n_all - len(whole)} links that img2dataset could not follow"
        source.notes = (*source.notes, failed)
    return source


def read_rows(frame: Any, image: str, caption: str, folder: Path, origin: str) -> Source:
    """Make rows of image names and captions a source: equal rows once, captions by image."""
    frame = frame[[image, caption]].explode(caption)  # Parquet and JSONL may hold lists
    captions = frame[caption].fillna("").astype(str).str.strip()
    rows = captions.groupby(frame[image].astype(str).str.strip(), sort=False)
    groups = {name: list(dict.fromkeys(texts)) for name, texts in rows}
    n_equal = len(captions) - sum(map(len, groups.values()))
    source = files_in(folder, groups, origin)
    source.notes = (f"{n_equal} rows that repeat another",) if n_equal else ()
    return source


def recognise_table(path: Any, hints: Hints) -> Found | None:
    """Take a file with columns of image names and captions; or the only such file of a folder."""
    if not isinstance(path, Path):
        return None
    if path.is_dir():
        tables = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        tables = [file for file in tables if file.suffix not in (".txt", ".json")]
        if len(tables) != 1 or tables[0].stem == "metadata" or list(path.glob("*.tar")):
            return None
        try:
            return recognise_table(tables[0], hints)
        except ValueError:  # such as the labels of a labelled folder
            return None
    if path.suffix.lower() not in SUFFIXES:
        return None
    frame = read_frame(path.parent, path.name, ())
    image, caption = find_columns(list(frame), hints, path.name)
    folder = find_folder(frame[image], path.parent, hints, path.name)
    root = hints.data_root or path.parent
    table = {"table": below(path, root)}
    splits = {}
    if "split" in frame and set(frame["split"].astype(str)) <= SPLIT_NAMES.keys():
        values = sorted(set(frame["split"].astype(str)))
        splits = {SPLIT_NAMES[value]: table | {"where": {"split": value}} for value in values}
    words = f"images from column {image!r}, captions from column {caption!r}"
    fields = {"image_field": image, "caption_field": caption, "image_folder": below(folder, root)}
    return Found("table", words, root, table, splits, fields)


def read_frame(
    root: Path, table: str, columns: Sequence[str], where: dict[str, str] | None = None
) -> Any:
    """Read the named columns of a table as text, and keep the rows that ``where`` asks for."""
    import pandas as pd

    path, where, suffix = root / table, where or {}, Path(table).suffix.lower()
    try:
        if suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif suffix in (".jsonl", ".ndjson", ".json"):
            from zslkit.data.readers.jsonl import read_records

            frame = pd.DataFrame(read_records(path))
        else:  # all text: a caption may well be "None" or "NA"
            options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
            frame = pd.read_csv(path, **options, **delimiter_of(path))
    except pd.errors.EmptyDataError:
        needs = f"; it needs columns {', '.join(columns)}" if columns else ""
        raise ValueError(f"{table} is empty{needs}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 text ({error}); save it as UTF-8") from error
    except pd.errors.ParserError as error:
        raise ValueError(f"{table} is not a sound table: {error}") from error
    for column in (*columns, *where):
        if column not in frame:
            raise ValueError(f"{table}: no column {column!r}; its columns: {', '.join(frame)}")
    for column, value in where.items():
        frame = frame[frame[column].astype(str) == value]
    return frame


def delimiter_of(path: Path) -> dict[str, Any]:
    """Say how pandas should split a file: by what its first line holds most of, , ; tab or |.

    Tab-separated files with a quotation mark that no other closes, as CC3M's, have none that quote.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        separator = max(",\t;|", key=first.count)  # the comma where there is none
        if separator != "\t":
            return {"sep": separator}
        return {"sep": "\t"} | ({"quoting": csv.QUOTE_NONE} if _unclosed(file) else {})


def _unclosed(lines: Iterable[str]) -> bool:
    return any(line.count('"') % 2 for line in lines)
