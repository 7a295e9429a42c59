"""Folders of images with metadata.csv, .jsonl or .parquet, as Hugging Face's ImageFolder."""

from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import (
    SPLIT_NAMES,
    Found,
    Hints,
    below,
    find_columns,
)
from zslkit.data.readers.tables import read_frame, read_rows
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source

_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Rows of all metadata files of a folder; names of images start from the file's own folder."""
    from pandas import concat

    folder, frames = root / split.source, []
    image, caption = manifest.image_field, manifest.caption_field
    for file in _metadata_files(folder):
        frame = read_frame(file.parent, file.name, (image, caption))
        start = file.parent.relative_to(folder)
        names = [(start / str(name)).as_posix() for name in frame[image]]
        frames.append(frame.assign(**{image: names}))
    return read_rows(concat(frames, ignore_index=True), image, caption, folder, split.source)


def recognise_metadata(path: Any, hints: Hints) -> Found | None:
    """Take a folder that holds a metadata file, or whose folders of splits do."""
    if not isinstance(path, Path) or not path.is_dir() or not (files := _metadata_files(path)):
        return None
    columns = list(read_frame(files[0].parent, files[0].name, ()))
    image, caption = find_columns(columns, hints, files[0].name)
    folders = [below(file.parent, path) for file in files]
    splits = {}
    if all(folder.lower() in SPLIT_NAMES for folder in folders):
        splits = {SPLIT_NAMES[folder.lower()]: {"source": folder} for folder in folders}
    words = f"{files[0].name}, images from column {image!r}, captions from column {caption!r}"
    fields = {"image_field": image, "caption_field": caption}
    return Found("metadata_folder", words, path, {"source": "."}, splits, fields)


def _metadata_files(folder: Path) -> list[Path]:
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    return [place / name for place in places for name in _FILES if (place / name).is_file()]
