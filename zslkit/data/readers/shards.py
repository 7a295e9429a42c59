"""Tar shards in WebDataset layout, as img2dataset writes them."""

from pathlib import Path

import numpy as np

from zslkit.data.files import find_files
from zslkit.data.readers.shard_index import read_samples
from zslkit.data.readers.tars import END
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import STRING, Groups, Source

_PIECE = 1 << 24  # bytes of text turned into strings at a time: as Python's they take twice that


def read_shards(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Index tar shards, as img2dataset and webdataset write them, by one scan of their headers.

    A damaged or cut shard is refused. Samples whose caption cannot be read, or that lack image or
    caption, are left out: ``Source.skipped`` names them, ``Source.faults`` says why.
    """
    paths = [path for pattern in split.shards for path in find_files(root, pattern)]
    samples = read_samples(paths, manifest.caption_field)
    source = Source([], paths)
    source.keys, texts = _strings(samples.keys), _strings(samples.captions)
    bounds = np.concatenate([[0], np.cumsum(samples.counts, dtype=np.int64)])
    source.captions = Groups(texts, bounds[:-1], bounds[1:])
    source.places = samples.places
    source.skipped = tuple(samples.skipped.decode().split(END)[:-1])
    source.faults = tuple(samples.faults.decode().split(END)[:-1])
    return source


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
