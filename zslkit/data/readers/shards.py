"""Tar shards in WebDataset layout, as img2dataset writes them."""

import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from zslkit.data.files import find_files
from zslkit.data.readers.finding import CAPTION_COLUMNS, Found, Hints, find_column, named_splits
from zslkit.data.readers.shard_index import read_samples
from zslkit.data.readers.tars import END
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import STRING, Groups, Source

_PIECE = 1 << 22  # bytes of text turned into strings at a time: as Python's they take twice that


def read_shards(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Index tar shards, as img2dataset and webdataset write them, by one scan of their headers.

    A damaged or cut shard is refused. Samples whose caption cannot be read, or that lack image or
    caption, are left out: ``Source.skipped`` names them, ``Source.faults`` says why.
    """
    paths = [path for pattern in split.shards for path in find_files(root, pattern)]
    samples = read_samples(paths, manifest.caption_field)
    source = Source([], paths)
    texts = _strings(samples.captions)
    samples = samples._replace(captions=b"")  # of millions, hundreds of megabytes
    source.keys = _strings(samples.keys)
    samples = samples._replace(keys=b"")
    bounds = np.concatenate([[0], np.cumsum(samples.counts, dtype=np.int64)])
    source.captions = Groups(texts, bounds[:-1], bounds[1:])
    source.places = samples.places
    source.skipped = tuple(samples.skipped.decode().split(END)[:-1])
    if source.skipped:
        source.left_out = {"without a readable image or caption": list(source.skipped)}
    source.faults = tuple(samples.faults.decode().split(END)[:-1])
    return source


def recognise_shards(path: Any, hints: Hints) -> Found | None:
    """Take a tar, or a folder of tars; captions are in .txt members, or a usual field of .json."""
    if not isinstance(path, Path):
        return None
    files = [path] if path.suffix == ".tar" and path.is_file() else []
    files = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]) if path.is_dir() else files
    if not files:
        return None
    field = hints.caption_field or _caption_field(files[0])
    root = path if path.is_dir() else path.parent
    names = [file.relative_to(root).as_posix() for file in files]
    groups = named_splits(names) if path.is_dir() else {}
    splits = {split: {"shards": part} for split, part in groups.items()}
    words = f"{len(files)} tar shards, captions from " + (f".json {field!r}" if field else ".txt")
    return Found("shards", words, root, {"shards": names}, splits, {"caption_field": field})


def _caption_field(path: Path) -> str | None:
    """Look into the first members of a tar for captions: None means .txt."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in islice(tar, 64):
                suffix = member.name.rpartition(".")[2].lower()
                if suffix == "txt":
                    return None
                if suffix == "json":
                    fields = json.loads(tar.extractfile(member).read())
                    field = find_column(list(fields), None, CAPTION_COLUMNS)
                    if field is not None:
                        return field
    except tarfile.TarError:
        pass  # the reader says what is wrong with the file
    return None


def _strings(data: bytes) -> np.ndarray:
    """Turn texts that each end with ``END`` into an array."""
    strings = np.empty(data.count(END.encode()), dtype=STRING)
    start = done = 0
    while start < len(data):
        stop = data.find(END.encode(), min(start + _PIECE, len(data) - 1)) + 1
        some = data[start:stop].decode().split(END)[:-1]
        strings[done : done + len(some)] = some
        start, done = stop, done + len(some)
    return strings
