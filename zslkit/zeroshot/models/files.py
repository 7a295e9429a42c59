"""Name the images of folders, patterns, lists and shards, in memory that does not grow.

What is known of an image leaves as soon as its batch is done; what cannot be read is listed.
"""

import csv
import glob
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from zslkit.data.files import write_text
from zslkit.data.images import BrokenImageError, decode_image
from zslkit.data.source import IMAGE_SUFFIXES
from zslkit.zeroshot.classifier import Prediction, ZeroShotClassifier

COLUMNS = ("image", "rank", "class_name", "similarity", "probability")
_LIST_COLUMNS = ("image", "path", "file", "filename", "filepath")


class Named(NamedTuple):
    """What came of naming images."""

    n_images: int
    """Those that could be read."""
    n_unnamed: int
    """Of these, those whose best class stayed below the threshold."""
    broken: list[str]
    """One message for each image that could not be read."""


def image_sources(inputs: Iterable[str | Path]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Find images, one after the other: a name, and a function that reads the bytes.

    Parameters
    ----------
    inputs : iterable of str or Path
        Image files, folders (with their subfolders), patterns, ``.csv`` files with a column
        image, path, file, filename or filepath (relative to the CSV) and ``.tar`` shards.

    Raises
    ------
    FileNotFoundError
        For a path that is not there, and a pattern or folder without images.
    ValueError
        For a CSV without such a column.
    """
    for item in map(str, inputs):
        path = Path(item)
        if path.is_dir():
            yield from _of_folder(path)
        elif path.is_file():
            yield from _of_file(path)
        elif found := sorted(glob.glob(item, recursive=True)):
            for match in map(Path, found):
                if match.is_file():
                    yield from _of_file(match)
        else:
            raise FileNotFoundError(f"images={item!r}: no such file or folder, and no match")


def predict_files(
    classifier: ZeroShotClassifier,
    inputs: Iterable[str | Path],
    output: str | Path | None = None,
    k: int = 5,
    batch_size: int = 64,
    workers: int = 4,
    show: Callable[[str, list[Prediction]], None] | None = None,
) -> Named:
    """Name any number of images and write what was found.

    Parameters
    ----------
    output : path, optional
        ``.csv``, ``.parquet``, ``.jsonl`` or ``.json``: rows of image, rank from 1, class_name,
        similarity and probability. An image below the threshold has one row without a class.
        Whole or not there. Unreadable images go to ``OUTPUT.broken.txt``.
    k : int
        Classes kept; all, if there are fewer.
    workers : int
        Threads that read and decode.
    show : callable, optional
        Called with the name and the predictions of each image.

    Raises
    ------
    ValueError
        For an output of another kind.
    FileNotFoundError
        For inputs that are not there.
    """
    k, n, unnamed, broken = min(k, len(classifier.bank.class_names)), 0, 0, []
    bar = tqdm(desc="images", unit="image", delay=2, disable=None)
    with _writer(output) as write, ThreadPoolExecutor(workers) as pool, bar:
        for names, images in _batches(image_sources(inputs), pool, batch_size, broken, bar):
            found = classifier.predict(images, k, batch_size) if images else []
            write([row for item in zip(names, found, strict=True) for row in _rows(*item)])
            for name, ranked in zip(names, found, strict=True):
                n, unnamed = n + 1, unnamed + (not ranked)
                if show:
                    show(name, ranked)
    if output is not None:
        listing = Path(f"{output}.broken.txt")
        listing.unlink(missing_ok=True)
        if broken:
            write_text(listing, "\n".join(broken) + "\n")
    return Named(n, unnamed, broken)


def _batches(
    sources: Iterator[tuple], pool: ThreadPoolExecutor, size: int, broken: list, bar: Any
) -> Iterator[tuple[list[str], list]]:
    """Read ahead by one batch, so that the model and the disk both work."""

    def begin() -> list:
        # read here, in order (a shard is one stream), and decode on threads
        return [(name, pool.submit(_decode, name, read)) for name, read in islice(sources, size)]

    waiting = begin()
    while waiting:
        ready, waiting = waiting, begin()
        names, images = [], []
        for name, job in ready:
            image = job.result()
            if isinstance(image, str):
                broken.append(image)
            else:
                names.append(name)
                images.append(image)
        bar.update(len(ready))
        yield names, images


def _decode(name: str, read: Callable[[], bytes]) -> Any:
    try:
        return decode_image(read(), f"{name}: ")
    except (BrokenImageError, OSError) as error:
        return str(error)


def _rows(name: str, ranked: Sequence[Prediction]) -> list[tuple]:
    return [(name, rank, *found) for rank, found in enumerate(ranked, 1)] or [
        (name, 1, None, None, None)
    ]


def _of_folder(folder: Path) -> Iterator[tuple]:
    found = False
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if _is_image(name) or name.endswith(".tar"):
                found = True
                yield from _of_file(Path(place) / name)
    if not found:
        raise FileNotFoundError(f"images={str(folder)!r}: a folder without images")


def _of_file(path: Path) -> Iterator[tuple]:
    if path.suffix == ".tar":
        with tarfile.open(path) as shard:
            for member in shard:
                if member.isfile() and _is_image(member.name):
                    data = shard.extractfile(member).read()
                    yield f"{path}/{member.name}", lambda data=data: data
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            column = next((c for c in _LIST_COLUMNS if c in (rows.fieldnames or ())), None)
            if column is None:
                raise ValueError(
                    f"images={str(path)!r}: no column {', '.join(_LIST_COLUMNS)}; it has "
                    f"{', '.join(rows.fieldnames or ['none'])}"
                )
            for row in rows:
                yield row[column], (path.parent / row[column]).read_bytes
    else:
        yield str(path), path.read_bytes


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


class _writer:
    """A table that grows row by row, in the format of its file's name."""

    def __init__(self, output: str | Path | None):
        self.path = None if output is None else Path(output)
        kind = "" if self.path is None else self.path.suffix.lower()
        kinds = {"": _Nothing, ".csv": _Csv, ".json": _Json, ".jsonl": _JsonLines,
                 ".parquet": _Parquet}  # fmt: skip
        if kind not in kinds or (kind == "" and output is not None):
            raise ValueError(f"output={str(output)!r}: must end with {', '.join([*kinds][1:])}")
        self.kind = kinds[kind]

    def __enter__(self) -> Callable[[list[tuple]], None]:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self.table = self.kind(None if self.path is None else self.temporary)
        return self.table.write

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.table.close()
        if self.path is None:
            return
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


class _Nothing:
    def __init__(self, path: Path | None):
        pass

    def write(self, rows: list[tuple]) -> None:
        pass

    def close(self) -> None:
        pass


class _Csv(_Nothing):
    def __init__(self, path: Path):
        self.file = path.open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.file, lineterminator="\n")
        self.rows.writerow(COLUMNS)

    def write(self, rows: list[tuple]) -> None:
        self.rows.writerows(rows)

    def close(self) -> None:
        self.file.close()


class _JsonLines(_Nothing):
    before, between, after = "", "\n", "\n"

    def __init__(self, path: Path):
        self.file, self.first = path.open("w", encoding="utf-8"), True
        self.file.write(self.before)

    def write(self, rows: list[tuple]) -> None:
        for row in rows:
            text = json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False)
            self.file.write(("" if self.first else self.between) + text)
            self.first = False

    def close(self) -> None:
        self.file.write("" if self.first and not self.before else self.after)
        self.file.close()


class _Json(_JsonLines):
    before, between, after = "[\n", ",\n", "\n]\n"


class _Parquet(_Nothing):
    def __init__(self, path: Path):
        import pyarrow
        from pyarrow import parquet

        kinds = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), *[pyarrow.float32()] * 2)
        self.arrow = pyarrow
        self.schema = pyarrow.schema([*zip(COLUMNS, kinds, strict=True)])
        self.table = parquet.ParquetWriter(path, self.schema)

    def write(self, rows: list[tuple]) -> None:
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            self.table.write_table(self.arrow.table(columns, schema=self.schema))

    def close(self) -> None:
        self.table.close()
