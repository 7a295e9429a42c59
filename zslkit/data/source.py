"""What every reader gives: the images and captions of one split, not yet opened."""

import contextlib
import hashlib
import stat
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zslkit.data.images import BrokenImageError, decode_image
from zslkit.data.toy import ToyScenes

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
IMAGE_SUFFIXES |= {"heic", "heif", "avif"}


PLACE = np.dtype([("file", "<u4"), ("offset", "<u8"), ("size", "<u4")])  # 16 bytes per image


HASHED_WHOLE = 2**29
"""Bytes of image files up to which all of them are hashed."""
HASHED_SOME = 8192
"""Of more bytes, this many files are."""

STRING = np.dtypes.StringDType()  # millions of Python strings would cost gigabytes per process


class Groups(Sequence):
    """Per image a tuple of captions, or of class numbers: ``values[starts[i] : stops[i]]``."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray):
        self.values, self.starts, self.stops = values, starts, stops

    @property
    def sizes(self) -> np.ndarray:
        """How many values each image has."""
        return self.stops - self.starts

    def take(self, rows) -> "Groups":
        """Select images; the values are shared."""
        return Groups(self.values, self.starts[rows], self.stops[rows])

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Spell out as (image, value) pairs: two arrays of as many items as there are."""
        sizes = self.sizes
        images = np.repeat(np.arange(len(self)), sizes)
        turn = np.arange(len(images)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return images, self.values[self.starts[images] + turn]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> tuple:
        return tuple(self.values[self.starts[i] : self.stops[i]].tolist())


class Source:
    """All images of one split; ``rows`` hold (key, captions, place).

    A word in the place of a place says why there is no image; None means the same.
    """

    notes: tuple[str, ...] = ()
    """What else was left out, for people."""
    has_files = True
    """Whether :meth:`raw` gives image files."""
    left_out: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Keys of incomplete rows, by what is wrong with them."""
    faults: tuple[str, ...] = ()
    """What was wrong with files, in words."""

    def __init__(self, rows, paths=(), class_names=(), labels=(), scenes: ToyScenes | None = None):
        complete = np.array([any(row[1]) and isinstance(row[2], tuple) for row in rows], dtype=bool)
        whole = list(compress(rows, complete))
        self.left_out = {}
        for key, _, place in compress(rows, ~complete):
            why = "no caption" if isinstance(place, tuple) else place or "no image"
            self.left_out.setdefault(why, []).append(key)
        self.skipped = tuple(row[0] for row in compress(rows, ~complete))
        self.keys = np.array([row[0] for row in whole], dtype=STRING)
        captions = [[text for text in row[1] if text] for row in whole]
        bounds = np.cumsum([0, *map(len, captions)])
        texts = np.array([text for group in captions for text in group], dtype=STRING)
        self.captions = Groups(texts, bounds[:-1], bounds[1:])
        self.places = np.array([row[2] for row in whole], dtype=PLACE)
        self.labels = np.array(labels, np.int64)[complete] if class_names else None
        self.paths, self.class_names, self.scenes = paths, tuple(class_names), scenes
        self.class_ids = self.class_names
        one = np.arange(len(whole) + 1)
        self.positives = Groups(self.labels, one[:-1], one[1:]) if class_names else None
        self.negatives: Groups | None = None
        self.drawn: dict[int, Tensor] = {}  # a scene is drawn once, not once per epoch

    def read(self, row: int) -> Tensor:
        """Decode the image of one row: (3, H, W) uint8; BrokenImageError if it cannot be."""
        if self.scenes is None:
            return decode_image(self.raw(row))
        number = int(self.places["file"][row])
        if number not in self.drawn:
            self.drawn[number] = torch.from_numpy(self.scenes.render(number)).permute(2, 0, 1)
        return self.drawn[number]

    def raw(self, row: int) -> bytes:
        """Give the bytes of the image file of one row."""
        number, offset, size = self.places[row].tolist()
        # Opened anew: 3 microseconds, and nothing to mind about forks, threads and limits.
        with open(self.paths[number], "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def file_name(self, row: int) -> str | None:
        """Name the file of one row; None where it is part of a larger file."""
        number, offset, _ = self.places[row].tolist()
        return None if offset or number >= len(self.paths) else str(self.paths[number])

    def rename(self, change: Callable[[str], str]) -> "Source":
        """Change all keys."""
        self.keys = np.array([change(key) for key in self.keys.tolist()], dtype=STRING)
        self.skipped = tuple(map(change, self.skipped))
        self.left_out = {why: list(map(change, keys)) for why, keys in self.left_out.items()}
        return self

    def stamp(self, rows: np.ndarray) -> bytes:
        """Bytes that change with the images, as far as sizes, or the first scene, tell."""
        drawn = b"" if self.scenes is None else self.read(0).numpy().tobytes()
        return self.places["size"][rows].tobytes() + drawn

    def content(self, rows: np.ndarray) -> bytes:
        """Bytes that change with what the image files hold; empty where there are no files.

        Of more than half a gigabyte 8,192 files are read, evenly taken: a file replaced by one of
        equal size is then noticed only if it is among them.
        """
        if self.scenes is not None or not self.has_files:
            return b""
        if self.places["size"][rows].sum(dtype=np.int64) > HASHED_WHOLE:
            rows = rows[:: -(-len(rows) // HASHED_SOME)]
        digest = hashlib.sha256()
        for row in rows.tolist():
            with contextlib.suppress(OSError, BrokenImageError):  # named when it is decoded
                data = self.raw(row)
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()


def files_in(folder: Path, captions: dict, origin: str, class_names=(), labels=()) -> Source:
    """Make loose image files a source; those that are not there are left out, but not all may be.

    Raises
    ------
    ValueError
        If none of the files exists.
    """
    paths, rows = [folder / name for name in captions], []
    for number, (name, path) in enumerate(zip(captions, paths, strict=True)):
        size = size_of(path)
        rows.append((name, captions[name], "missing" if size is None else (number, 0, size)))
    if rows and all(row[2] == "missing" for row in rows):
        raise ValueError(
            f"none of the {len(paths)} image files listed in {origin} exists; the first: {paths[0]}"
        )
    return Source(rows, paths, class_names, labels)


def texts_of(value: Any) -> list[str]:
    """Read one caption, or a list of them, as stripped texts."""
    many = value if isinstance(value, list | tuple | np.ndarray) else [value]
    return list(dict.fromkeys("" if item is None else str(item).strip() for item in many))


def size_of(path: Path) -> int | None:
    """Give the size of a file in bytes, None where there is none."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a name with a null byte
        facts = path.stat()
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None
    return None
