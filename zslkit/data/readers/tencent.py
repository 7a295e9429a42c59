"""Tencent ML-Images in its official files."""

import re
from itertools import islice
from pathlib import Path

import numpy as np

from zslkit.data.readers.class_lists import listed_classes
from zslkit.data.readers.labelled import Labelled, group, open_store
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source

_TENCENT_ROW = re.compile(r"\S+(\s+\d+:\d+(\.\d+)?)+\s*")


def read_tencent(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images with all classes of their list, ancestors included; confidence 0 says nothing."""
    ids, lemmas = listed_classes(manifest, root)
    store = open_store(split, root)
    names, numbers, confidences, counts = _read_tencent_list(root / split.labels)
    if len(strange := np.flatnonzero((numbers < 0) | (numbers >= len(ids)))):
        raise ValueError(
            f"{split.labels}: category {numbers[strange[0]]} is not among the {len(ids)} of "
            f"{manifest.class_list}"
        )
    rows = store.find(names, root / split.labels)
    images = np.repeat(np.arange(len(rows)), counts)[confidences > 0]
    positives = group(images, numbers[confidences > 0], len(rows), len(ids))
    source = Labelled(names, ids, [first for first, *_ in lemmas], positives)
    return source.place(store, rows, rows)


def _read_tencent_list(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Read ``image<tab>category:confidence…`` per line, a block of lines at a time."""
    names, numbers, confidences, counts, n = [], [], [], [], 0
    with open(path, encoding="utf-8") as file:
        while lines := list(islice(file, 65536)):
            rows = [line.split() for line in lines]
            texts = ":".join(":".join(row[1:]) for row in rows).split(":")
            try:
                numbers.append(np.array(texts[::2], dtype=np.int64))
                confidences.append(np.array(texts[1::2], dtype=np.float32))
                counts.append(np.array([len(row) - 1 for row in rows]))
                # a lost digit of the last confidence would go unnoticed
                sound = len(texts) == 2 * counts[-1].sum() and _TENCENT_ROW.fullmatch(lines[-1])
            except ValueError:
                sound = False
            if not sound:
                bad = next(i for i, line in enumerate(lines) if not _TENCENT_ROW.fullmatch(line))
                raise ValueError(
                    f"{path}, line {n + bad + 1}: {lines[bad].strip()!r} is cut short or not "
                    "'image<tab>category:confidence<tab>…'"
                )
            names += [row[0] for row in rows]
            n += len(lines)
    if not names:
        raise ValueError(f"{path} is empty; it needs lines of 'image<tab>category:confidence'")
    return names, *(np.concatenate(parts) for parts in (numbers, confidences, counts))
