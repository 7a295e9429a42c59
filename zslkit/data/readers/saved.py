"""Folders that ``save_to_disk`` of Hugging Face's ``datasets`` wrote: Arrow files, facts."""

import dataclasses
from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import SPLIT_NAMES, Found, Hints, below
from zslkit.data.readers.objects import read_value, recognise_object
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source

_MARKS = ("dataset_dict.json", "state.json")  # of a DatasetDict, and of a Dataset


def read_saved(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Rows of one saved Dataset, as they are read where it is in memory."""
    folder = root / split.source
    fields = manifest.image_field, manifest.caption_field
    return read_value(_load(folder), *fields, folder, split.source)


def recognise_saved(path: Any, hints: Hints) -> Found | None:
    """Take a folder with the facts that ``save_to_disk`` leaves."""
    if not isinstance(path, Path) or not any((path / mark).is_file() for mark in _MARKS):
        return None
    value, whole, splits = _load(path), {"source": "."}, {}
    if isinstance(value, dict):
        folders = {SPLIT_NAMES.get(name.lower(), name): name for name in value}
        splits = {split: {"source": below(path / name, path)} for split, name in folders.items()}
        whole, value = next(iter(splits.values())), next(iter(value.values()))
    found = recognise_object(value, hints)
    words = found.words.replace(type(value).__name__, "datasets.save_to_disk", 1)
    facts = {"kind": "saved_dataset", "words": words, "root": path, "split": whole}
    return dataclasses.replace(found, **facts, splits=splits)


def _load(folder: Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError:
        raise ValueError(
            f"{folder}: written by save_to_disk of the package datasets, which is not installed; "
            "pip install datasets, or save the set with to_parquet"
        ) from None
    return load_from_disk(str(folder))
