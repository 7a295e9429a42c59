"""What the readers of labelled sets share: class names, files in folders or tars, lists."""

import csv
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from zslkit.data.files import find_files
from zslkit.data.schema import Split
from zslkit.data.source import IMAGE_SUFFIXES, PLACE, STRING, Groups, Source

WNID = re.compile(r"n\d{8}")  # a synset of WordNet 3.0: its byte in data.noun


class ClassNames(Groups):
    """Per image the names of its classes; ``values`` are class numbers."""

    def __init__(self, classes: Groups, names: Sequence[str]):
        super().__init__(classes.values, classes.starts, classes.stops)
        self.names = names

    def take(self, rows) -> "ClassNames":
        """Select images; numbers and names are shared."""
        return ClassNames(super().take(rows), self.names)

    def __getitem__(self, i: int) -> tuple:
        return tuple(self.names[number] for number in super().__getitem__(i))


class Labelled(Source):
    """Images with classes, N of them, without a Python object per image.

    Parameters
    ----------
    keys : sequence of N str
    ids, names : sequences of C str
    classes : ndarray of shape (N,) or Groups
        The class of each image, or the classes that it shows.
    negatives : Groups, optional
        The classes that people found absent.
    """

    def __init__(self, keys, ids, names, classes, negatives: Groups | None = None):
        self.keys, self.skipped = np.array(keys, dtype=STRING), ()
        self.class_ids, self.class_names = tuple(ids), tuple(names)
        one = np.arange(len(self.keys) + 1)
        single = not isinstance(classes, Groups)
        self.labels = np.asarray(classes, np.int64) if single else None
        self.positives = Groups(self.labels, one[:-1], one[1:]) if single else classes
        self.captions, self.negatives = ClassNames(self.positives, self.class_names), negatives
        self.scenes, self.extra = None, ()

    def place(
        self, store: "Store", rows: np.ndarray, listed: np.ndarray | None = None
    ) -> "Labelled":
        """Say where the images are, and which of the store no list names."""
        self.places, self.paths = store.places[rows], store.paths
        if listed is not None:
            unlisted = np.setdiff1d(np.arange(len(store.names)), listed)
            self.extra = np.array([store.names[i] for i in unlisted.tolist()], dtype=STRING)
        return self


@dataclass(frozen=True)
class Store:
    """Image files, F of them, in a folder or in tars.

    ``names`` are paths below the folder, sorted, or file names in the order of the tars, which in
    a tar of one synset come after that synset: ``n01440764/n01440764_18.JPEG``.
    """

    where: str
    names: list[str]
    places: np.ndarray  # (F,) PLACE
    paths: np.ndarray  # str

    def find(self, names: Iterable[str], origin: Path) -> np.ndarray:
        """Give the rows of images, all of which must be there, int64."""
        import pandas as pd

        names, index = list(names), pd.Index(self.names, dtype=object)
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            raise ValueError(f"{self.where} has more than one image {twice!r}")
        rows = index.get_indexer(pd.Index(names, dtype=object))
        if len(missing := np.flatnonzero(rows < 0)):
            raise ValueError(
                f"{len(missing)} of the {len(names)} images listed in {origin} are not in "
                f"{self.where}; the first: {names[missing[0]]}"
            )
        return rows


def open_store(split: Split, root: Path) -> Store:
    """List the images of a split by the names and sizes of files, or by one scan of tar headers.

    Raises
    ------
    ValueError
        If neither folder nor tars are given, a tar is compressed or truncated, a file is empty,
        or there is no image at all.
    """
    if split.folder is None and not split.shards:
        raise ValueError("a split needs 'folder' or 'shards': where its images are")
    names: list[str] = []
    if split.folder is not None:
        where, files = split.folder, sorted(_walk(root / split.folder))
        names = [name for name, _ in files]
        paths = [f"{root / split.folder}{os.sep}{name}" for name in names]
        spans = ((number, 0, size) for number, (_, size) in enumerate(files))
    else:
        where = ", ".join(split.shards)
        paths = [str(path) for pattern in split.shards for path in find_files(root, pattern)]
        spans = _scan_tars(paths, names)
    places = np.fromiter(spans, dtype=PLACE)  # no tuple per image stays: there may be 14 million
    if not names:
        raise ValueError(f"{where} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(empty := np.flatnonzero(places["size"] == 0)):
        raise ValueError(f"{where}: {len(empty)} images are empty; the first: {names[empty[0]]}")
    return Store(where, names, places, np.array(paths, dtype=STRING))


def _walk(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:  # per file a third of the time that pathlib takes
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif is_image(entry.name):
                yield prefix + entry.name, entry.stat().st_size


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is an image that we read."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _scan_tars(paths: Sequence[str], names: list[str]) -> Iterator[tuple[int, int, int]]:
    """Yield (tar, offset, size) of the images in tars, and append their names."""
    for number, path in enumerate(paths):
        for name, offset, size in _open_tar(path):
            names.append(name)
            yield number, offset, size


def _open_tar(path: str) -> Iterator[tuple[str, int, int]]:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(
                f"{path} is compressed, so that images cannot be read where they lie; unpack it "
                f"first: tar -xzf {os.path.basename(path)}"
            )
        file.seek(0)
        yield from _scan_tar(file, path, 0)


def _scan_tar(file, path: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of the images in a tar, and in the tars in it."""
    stem = PurePosixPath(path).stem
    of_class = WNID.fullmatch(stem) is not None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                offset = start + member.offset_data
                if member.name.endswith(".tar"):
                    inner = tar.extractfile(member)
                    yield from _scan_tar(inner, f"{path}/{member.name}", offset)
                elif member.isfile() and is_image(member.name):
                    name = member.name.rpartition("/")[2]
                    yield f"{stem}/{name}" if of_class else name, offset, member.size
            file.seek(tar.offset)
            if len(file.read(512)) < 512:  # tarfile takes the end of the file for that of the tar
                raise tarfile.ReadError("the mark of its end is missing")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is truncated, or no tar file ({error})") from error


def read_csv(path: Path, types: dict, where: dict[str, str] | None = None):
    """Read some columns; a last row with fewer fields than the header is refused."""
    import pandas as pd

    with open(path, "rb") as file:
        header = next(csv.reader([file.readline().decode()]), [])
        file.seek(max(0, os.path.getsize(path) - 65536))
        last = (file.read().decode(errors="replace").splitlines() or [""])[-1]
    where = where or {}
    for column in (*types, *where):
        if column not in header:
            raise ValueError(f"{path}: no column {column!r}; its columns: {', '.join(header)}")
    if len(fields := next(csv.reader([last]))) != len(header):
        raise ValueError(
            f"{path}: the last row has {len(fields)} of {len(header)} fields ({last[:80]!r}); the "
            "file is cut short"
        )
    columns = {**dict.fromkeys(where, str), **types}
    try:
        frame = pd.read_csv(path, usecols=list(columns), dtype=columns, keep_default_na=False)
    except ValueError as error:  # of the parser, which does not say what it reads
        raise ValueError(f"{path}: {error}") from error
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def group(images, numbers, n_images: int, n_classes: int, without: Groups | None = None) -> Groups:
    """Collect the classes of each image, each once, in order; leave out those of ``without``."""
    codes = np.sort(images.astype(np.int64) * n_classes + numbers)
    codes = codes[np.diff(codes, prepend=codes[:1] - 1) > 0]  # np.unique takes five times as long
    if without is not None:
        owner, values = without.spread()
        codes = np.setdiff1d(codes, owner * n_classes + values, assume_unique=True)
    bounds = np.searchsorted(codes, np.arange(n_images + 1) * n_classes)
    return Groups((codes % max(n_classes, 1)).astype(np.int32), bounds[:-1], bounds[1:])
