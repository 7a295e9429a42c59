"""Manifest → Pairs: one sequence over tar shards, tables, image folders and toy scenes."""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import chain, compress, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zslkit.images import BrokenImageError, decode_image, to_pil
from zslkit.manifests import Manifest, Split, find_files, load_manifest
from zslkit.sampling import Batch, check_broken, iterate_batches
from zslkit.toy import ToyScenes

__all__ = ["Batch", "Pair", "Pairs", "check_broken", "iterate_batches", "open_pairs"]

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # WebDataset: the key ends at the first dot
PLACE = np.dtype([("file", "<u4"), ("offset", "<u8"), ("size", "<u4")])  # 16 bytes per image
_MAX_SKIPPED = 0.01  # share of a harvest that may lack image or caption; it is left out
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


@dataclass(frozen=True)
class Pair:
    """One image and its captions; the image is read when first asked for."""

    key: str
    captions: tuple[str, ...]
    label: int | None
    _read: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def pixels(self) -> Tensor:
        """Tensor of shape (3, H, W), uint8, RGB."""
        return self._read()

    @cached_property
    def image(self):
        """PIL image, RGB."""
        return to_pil(self.pixels)


class Pairs(Sequence):
    """Sequence of pairs; open it with :func:`open_pairs`. No file stays open between reads.

    Attributes
    ----------
    manifest, split
        What the pairs were opened from.
    keys : ndarray of str, captions : Sequence of tuple of str
        Per image; no image is decoded for them.
    labels : ndarray of int64 or None
        Position of each image's class in the tuple ``class_names``, if each has one.
    class_ids : tuple of str
        What the set's own lists call the classes: WordNet synsets, MIDs; else their names.
    positives, negatives : Sequence of tuple of int, or None
        Per image the classes that it shows, and those that people found absent, if known.
    swapped : ndarray of bool
        Images that were given another image's captions. For reports, never for training.
    skipped : tuple of str
        Keys left out because the source lacks the image or every caption.
    """

    def __init__(self, manifest, split, source: "Source", caption_noise, seed, max_pairs):
        rng, n = np.random.default_rng(seed), len(source.keys)
        # Sorted, so that reading runs forward through the shards.
        rows = np.arange(n) if max_pairs is None else np.sort(rng.permutation(n)[:max_pairs])
        caption_rows, self.swapped = rows.copy(), np.zeros(len(rows), dtype=bool)
        if caption_noise > 0 and len(rows) > 1:
            chosen = rng.permutation(len(rows))[: max(2, round(caption_noise * len(rows)))]
            caption_rows[chosen] = rows[np.roll(chosen, 1)]  # one cycle: none keeps its own
            self.swapped[chosen] = True
        self.manifest, self.split, self.skipped = manifest, split, source.skipped
        self.keys, self.captions = source.keys[rows], source.captions.take(caption_rows)
        self.labels = None if source.labels is None else source.labels[rows]
        self.class_names, self.class_ids = source.class_names, source.class_ids
        self.positives, self.negatives = (
            None if groups is None else groups.take(rows)
            for groups in (source.positives, source.negatives)
        )
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Pair:
        i = range(len(self))[i]  # understands -1 and raises IndexError
        label = None if self.labels is None else int(self.labels[i])
        return Pair(self.keys[i], self.captions[i], label, partial(self.read_pixels, i))

    def read_pixels(self, i: int) -> Tensor:
        """Decode image ``i``: (3, H, W) uint8, or a BrokenImageError that names its key."""
        try:
            return self._source.read(int(self._rows[i]))
        except (BrokenImageError, OSError) as error:
            raise BrokenImageError(f"image {self.keys[i]!r}: {error}") from error

    @cached_property
    def image_fingerprint(self) -> str:
        """Sha256 of which images these are, whatever their captions: a key for cached features."""
        stamp = self._source.stamp(self._rows)
        return _sha256(chain((self.manifest.checksum, self.split), self.keys), stamp)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of images and captions, and so of the noise, seed and max_pairs in effect."""
        return _sha256(chain((self.image_fingerprint,), self.captions))


def open_pairs(
    manifest: Manifest | str | Path,
    split: str,
    *,
    data_root: str | Path | None = None,
    caption_noise: float = 0.0,
    seed: int = 0,
    max_pairs: int | None = None,
) -> Pairs:
    """Open one split of a data set.

    Parameters
    ----------
    manifest : Manifest, str or Path
        A manifest, or its name or file for :func:`zslkit.manifests.load_manifest`.
    split : str
        One of ``manifest.splits``.
    data_root : str or Path, optional
        Folder that the manifest's paths start from.
    caption_noise : float in [0, 1]
        Share of images whose captions are exchanged among themselves, all of an image together.
    seed : int
        Draws the images for ``max_pairs`` and ``caption_noise``; no effect otherwise.
    max_pairs : int, optional
        Keep this many images; a larger number keeps them and more.

    Raises
    ------
    ValueError
        If the split, a column, caption_noise or max_pairs is out of question, a class is listed
        twice, or images or captions are missing.
    FileNotFoundError
        If a file that the manifest names is missing.
    """
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest, data_root)
    if split not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise ValueError(f"split={split!r}: {manifest.name!r} has no such split; known: {known}")
    if not 0 <= caption_noise <= 1:
        raise ValueError(f"caption_noise={caption_noise} must lie between 0 and 1")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs} must be at least 1, or None for all")
    root = manifest.data_root if data_root is None else Path(data_root)
    for path in manifest.splits[split].paths:
        if not find_files(root, path):
            raise FileNotFoundError(
                f"{path!r} of manifest {manifest.name!r} is not under data_root={str(root)!r}; "
                f"how to obtain it: {manifest.how_to_obtain}"
            )
    source = _READERS.get(manifest.kind, _read_labelled)(manifest, manifest.splits[split], root)
    check_broken(source.skipped, len(source.keys) + len(source.skipped), _MAX_SKIPPED)
    if len(source.keys) == 0:
        raise ValueError(f"split {split!r} of {manifest.name!r} holds no image with a caption")
    return Pairs(manifest, split, source, caption_noise, seed, max_pairs)


class Source:
    """All images of one split; ``rows`` hold (key, captions, place or None)."""

    def __init__(self, rows, paths=(), class_names=(), labels=(), scenes: ToyScenes | None = None):
        complete = np.array([any(row[1]) and row[2] is not None for row in rows], dtype=bool)
        whole = list(compress(rows, complete))
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


def _read_toy(manifest: Manifest, split: Split, root: Path) -> Source:
    return _draw_toy(split.scenes, split.n, split.seed, manifest.image_size)


@lru_cache(maxsize=8)  # the runs of a sweep share the scenes that they have drawn
def _draw_toy(split: str, n: int, seed: int, image_size: int) -> Source:
    scenes = ToyScenes(split, n, seed, image_size)
    rows = [(f"{split}-{i:06d}", scenes.captions(i), (i, 0, 0)) for i in range(n)]
    labels = [scenes.class_index(i) for i in range(n)]
    return Source(rows, (), scenes.class_names, labels, scenes)


def _read_shards(manifest: Manifest, split: Split, root: Path) -> Source:
    """Index tar shards, as img2dataset and webdataset write them, by one scan of their headers."""
    paths = [path for pattern in split.shards for path in find_files(root, pattern)]
    scans = (_scan(path, number, manifest.caption_field) for number, path in enumerate(paths))
    return Source([row for rows in scans for row in rows], paths)


def _scan(path: Path, number: int, caption_field: str | None) -> list[list]:
    samples: dict[str, list] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, suffix = match[1], match[2].lower()
                sample = samples.setdefault(key, [key, [], None])
                if suffix in IMAGE_SUFFIXES:
                    sample[2] = (number, member.offset_data, member.size)
                elif suffix == ("txt" if caption_field is None else "json"):
                    text = tar.extractfile(member).read().decode("utf-8", "replace")
                    sample[1] = _captions(text, caption_field, f"{path}, {member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a sound uncompressed tar file ({error})") from error
    if not any(caption for sample in samples.values() for caption in sample[1]):
        where = ".txt members" if caption_field is None else f"field {caption_field!r} of .json"
        raise ValueError(
            f"{path}: none of its {len(samples)} samples has a caption in {where}; caption_field "
            "in the manifest names a field of .json members, null means .txt members"
        )
    return list(samples.values())


def _captions(text: str, caption_field: str | None, where: str) -> list[str]:
    if caption_field is None:
        return [text.strip()]
    record = json.loads(text)
    if caption_field not in record:
        raise ValueError(f"{where}: no field {caption_field!r}; its fields: {', '.join(record)}")
    value = record[caption_field]
    return [str(item or "").strip() for item in (value if isinstance(value, list) else [value])]


def _read_table(manifest: Manifest, split: Split, root: Path) -> Source:
    image, caption = manifest.image_field, manifest.caption_field
    frame = _read_frame(root, split.table, (image, caption), split.where)
    frame = frame.explode(caption)  # Parquet may hold lists
    captions = frame[caption].fillna("").astype(str).str.strip()
    groups = captions.groupby(frame[image], sort=False).agg(list).to_dict()
    return _files(root / manifest.image_folder, groups, split.table)


def _read_folder(manifest: Manifest, split: Split, root: Path) -> Source:
    folder = root / split.folder
    if split.labels is not None:
        frame = _read_frame(root, split.labels, ("file", "class_name"), split.where)
        of_file = dict(zip(frame["file"], frame["class_name"], strict=True))
    else:
        files = (path.relative_to(folder) for path in sorted(folder.glob("*/**/*")))
        images = [path for path in files if path.suffix[1:].lower() in IMAGE_SUFFIXES]
        of_file = {path.as_posix(): path.parts[0].replace("_", " ") for path in images}
    names = sorted(set(of_file.values()))
    if manifest.class_list is not None:
        lines = (root / manifest.class_list).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"class_list {manifest.class_list!r}: {len(twice)} classes are listed more than once "
            f"({', '.join(twice[:3])}); list each once"
        )
    if strange := sorted(set(of_file.values()) - set(names)):
        raise ValueError(f"class_list {manifest.class_list!r} lacks the class {strange[0]!r}")
    captions = {file: [name] for file, name in of_file.items()}
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of[name] for name in of_file.values()]
    return _files(folder, captions, split.labels or split.folder, names, labels)


def _files(folder: Path, captions: dict, origin: str, class_names=(), labels=()) -> Source:
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


def _read_labelled(manifest: Manifest, split: Split, root: Path) -> Source:
    from zslkit.labelled import READERS

    return READERS[manifest.kind](manifest, split, root)


def _read_frame(root: Path, table: str, columns: Sequence[str], where: dict[str, str]):
    import pandas as pd

    try:
        if table.endswith(".parquet"):
            frame = pd.read_parquet(root / table)
        else:  # all text: a caption may well be "None" or "NA"
            frame = pd.read_csv(root / table, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{table} is empty; it needs columns {', '.join(columns)}") from None
    for column in (*columns, *where):
        if column not in frame:
            raise ValueError(f"{table}: no column {column!r}; its columns: {', '.join(frame)}")
    for column, value in where.items():
        frame = frame[frame[column].astype(str) == value]
    return frame


def _sha256(texts: Iterable, data: bytes = b"") -> str:
    """Hash the JSON text of a list, in pieces: of millions of keys it would fill gigabytes."""
    digest, texts, comma = hashlib.sha256(b"["), iter(texts), ""
    while some := list(islice(texts, 65536)):
        digest.update((comma + json.dumps(some)[1:-1]).encode())
        comma = ", "
    digest.update(b"]" + data)
    return digest.hexdigest()


_READERS = {
    "toy": _read_toy,
    "shards": _read_shards,
    "table": _read_table,
    "image_folder": _read_folder,
}
