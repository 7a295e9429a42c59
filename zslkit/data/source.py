"""What every reader gives: the images and captions of one split, not yet opened."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zslkit.data.images import decode_image
from zslkit.data.toy import ToyScenes

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}


PLACE = np.dtype([("file", "<u4"), ("offset", "<u8"), ("size", "<u4")])  # 16 bytes per image


STRING = np.dtypes.StringDType()  # millions of Python strings would cost gigabytes per process


class Groups(Sequence):
    """Per image a tuple of captions, or of class numbers: ``values[starts[i] : stops[i]]``."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray):
        self.values, self.starts, self.stops = values, starts, stops

    def take(self, rows) -> "Groups":
        """Select images; the values are shared."""
        return Groups(self.values, self.starts[rows], self.stops[rows])

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Spell out as (image, value) pairs: two arrays of as many items as there are."""
        sizes = self.stops - self.starts
        images = np.repeat(np.arange(len(self)), sizes)
        turn = np.arange(len(images)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return images, self.values[self.starts[images] + turn]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> tuple:
        return tuple(self.values[self.starts[i] : self.stops[i]].tolist())


class Source:
    """All images of one split; ``rows`` hold (key, captions, place or None)."""

    def __init__(self, rows, paths=(), class_names=(), labels=(), scenes: ToyScenes | None = None):
        complete = np.array([any(row[1]) and row[2] is not None for row in rows], dtype=bool)
        whole = list(compress(rows, complete))
        self.skipped = tuple(row[0] for row in compress(rows, ~complete))
        self.faults: tuple[str, ...] = ()  # what was wrong with files, in words
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
        number, offset, size = self.places[row].tolist()
        if self.scenes is not None:
            if number not in self.drawn:
                self.drawn[number] = torch.from_numpy(self.scenes.render(number)).permute(2, 0, 1)
            return self.drawn[number]
        # Opened anew: 3 microseconds, and nothing to mind about forks, threads and limits.
        with open(self.paths[number], "rb", buffering=0) as file:
            file.seek(offset)
            return decode_image(file.read(size))

    def stamp(self, rows: np.ndarray) -> bytes:
        """Bytes that change with the images, as far as sizes, or the first scene, tell."""
        drawn = b"" if self.scenes is None else self.read(0).numpy().tobytes()
        return self.places["size"][rows].tobytes() + drawn


def files_in(folder: Path, captions: dict, origin: str, class_names=(), labels=()) -> Source:
    """Make loose image files a source; all of them must exist."""
    paths = [folder / name for name in captions]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(
            f"{len(missing)} of the {len(paths)} image files listed in {origin} do not exist; "
            f"the first: {missing[0]}"
        )
    places = [(number, 0, path.stat().st_size) for number, path in enumerate(paths)]
    rows = list(zip(captions, captions.values(), places, strict=True))
    return Source(rows, paths, class_names, labels)
