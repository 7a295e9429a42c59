"""Labelled sets in their official files: ImageNet, Tencent ML-Images, Open Images, torchvision's.

:func:`zslkit.pairs.open_pairs` calls what stands in ``READERS``. Images lie in a folder, or in
tars that stay packed. Class names are captions; a class without a known name goes by its id.
"""

import csv
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from zslkit.hierarchy import read_tencent_categories
from zslkit.manifests import Manifest, Problem, Split, find_files
from zslkit.pairs import IMAGE_SUFFIXES, PLACE, STRING, Groups, Source

_WNID = re.compile(r"n\d{8}")  # a synset of WordNet 3.0: its byte in data.noun
_TENCENT_ROW = re.compile(r"\S+(\s+\d+:\d+(\.\d+)?)+\s*")


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


def check_splits(manifest: Manifest) -> list[Problem]:
    """Open every split; name what keeps it from being read, and images that no list names."""
    problems, extra = [], {}
    for name, split in manifest.splits.items():
        try:
            source = READERS[manifest.kind](manifest, split, manifest.data_root)
        except ValueError as error:
            problems.append(Problem(name, "unsound", str(error)))
            continue
        place = split.folder or ", ".join(split.shards)
        extra[place] = extra.get(place, set(source.extra)) & set(source.extra)
    for place, names in extra.items() if not problems else ():
        if names:
            some = ", ".join(sorted(names)[:3])
            problems.append(Problem(place, "extra", f"{len(names)} images are in no list: {some}"))
    return problems


def _walk(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:  # per file a third of the time that pathlib takes
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif _is_image(entry.name):
                yield prefix + entry.name, entry.stat().st_size


def _is_image(name: str) -> bool:
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
    of_class = _WNID.fullmatch(stem) is not None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                offset = start + member.offset_data
                if member.name.endswith(".tar"):
                    inner = tar.extractfile(member)
                    yield from _scan_tar(inner, f"{path}/{member.name}", offset)
                elif member.isfile() and _is_image(member.name):
                    name = member.name.rpartition("/")[2]
                    yield f"{stem}/{name}" if of_class else name, offset, member.size
            file.seek(tar.offset)
            if len(file.read(512)) < 512:  # tarfile takes the end of the file for that of the tar
                raise tarfile.ReadError("the mark of its end is missing")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is truncated, or no tar file ({error})") from error


def _read_imagenet(manifest: Manifest, split: Split, root: Path) -> Source:
    """Classes by folder or tar, or by a ground truth file for the flat validation images.

    The file has a line per image: the synset (TensorFlow's
    ``imagenet_2012_validation_synset_labels.txt``), or the devkit's own ILSVRC2012_ID, from 1,
    which only the devkit's ``meta.mat`` explains: it is not the alphabetical order that all
    toolkits number classes in, and that classes have here too unless a text file lists them.
    """
    store = open_store(split, root)
    names, by_number = _read_synsets(root, manifest.class_list)
    if split.labels is None:
        rows, wnids = np.arange(len(store.names)), [n.partition("/")[0] for n in store.names]
    else:
        wnids = (root / split.labels).read_text(encoding="utf-8").split()
        if wnids and wnids[0].isdigit():
            if not by_number:
                raise ValueError(
                    f"{split.labels} holds ILSVRC2012_IDs; class_list must name the devkit's "
                    f"meta.mat, which explains them, not {manifest.class_list!r}"
                )
            if strange := [number for number in wnids if number not in by_number]:
                raise ValueError(f"{split.labels}: no class has ILSVRC2012_ID {strange[0]}")
            wnids = [by_number[number] for number in wnids]
        listed = (f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(len(wnids)))
        rows = store.find(listed, root / split.labels)
        if len(rows) < len(store.names):
            extra = store.names[np.setdiff1d(np.arange(len(store.names)), rows)[0]]
            raise ValueError(
                f"{split.labels} has {len(wnids)} lines for the {len(store.names)} images in "
                f"{store.where}; the first without: {extra}"
            )
    found = set(wnids)
    if strange := sorted(wnid for wnid in found if not _WNID.fullmatch(wnid)):
        raise ValueError(
            f"{store.where}: {strange[0]!r} is no synset such as n01440764; images lie in a "
            "folder or tar for each, or 'labels' names the ground truth file"
        )
    if names is None:
        names = {wnid: wnid for wnid in sorted(found)}
    if strange := sorted(found - names.keys()):
        raise ValueError(
            f"{store.where}: {len(strange)} classes are not in class_list "
            f"{manifest.class_list!r}; the first: {strange[0]}"
        )
    if missing := [wnid for wnid in names if wnid not in found]:
        raise ValueError(
            f"{store.where}: {len(missing)} of the {len(names)} classes in class_list "
            f"{manifest.class_list!r} have no image; the first: {missing[0]}"
        )
    number_of = {wnid: number for number, wnid in enumerate(names)}
    labels = np.array([number_of[wnid] for wnid in wnids])
    keys = [store.names[row] for row in rows.tolist()]
    return Labelled(keys, names, names.values(), labels).place(store, rows)


def _read_synsets(root: Path, file: str | None) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Read first lemmas by synset, and synsets by ILSVRC2012_ID if the file is meta.mat."""
    if file is None:
        return None, {}
    if file.endswith(".mat"):
        from scipy.io import loadmat

        synsets = np.atleast_1d(loadmat(root / file, squeeze_me=True)["synsets"])
        leaves = sorted(
            (str(row["WNID"]), str(row["words"]), str(row["ILSVRC2012_ID"]))
            for row in synsets if row["num_children"] == 0
        )  # fmt: skip
        names = {wnid: words.partition(",")[0] for wnid, words, _ in leaves}
        return names, {number: wnid for wnid, _, number in leaves}
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    parts = [line.split(None, 1) for line in lines if line.strip()]
    names = {part[0]: part[-1].partition(",")[0].strip() for part in parts}
    if len(names) < len(parts) or not all(map(_WNID.fullmatch, names)):
        raise ValueError(
            f"class_list {file!r} must have lines such as 'n01440764 tench, Tinca tinca', each "
            "synset once"
        )
    return names, {}


def _read_tencent(manifest: Manifest, split: Split, root: Path) -> Source:
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
    positives = _group(images, numbers[confidences > 0], len(rows), len(ids))
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


def _read_open_images(manifest: Manifest, split: Split, root: Path) -> Source:
    """Images with at least one class that people confirmed; of others, nothing is known.

    Without ``class_list`` (classes-trainable.txt), all described classes count. A class that one
    source confirms and another denies is a positive.
    """
    ids, names = listed_classes(manifest, root)
    store = open_store(split, root)
    labels = _read_csv(
        root / split.labels, {"ImageID": "category", "LabelName": "category", "Confidence": "f4"}
    )
    confidence = labels["Confidence"].to_numpy()
    if len(strange := np.flatnonzero((confidence != 0) & (confidence != 1))):
        raise ValueError(
            f"{split.labels}, row {strange[0] + 2}: Confidence is {confidence[strange[0]]}; people "
            "say 0 or 1: the file of human-verified labels is meant, not the machine's"
        )
    images = labels["ImageID"].cat.categories
    number_of = {id: number for number, id in enumerate(ids)}
    to_class = np.array([number_of.get(id, -1) for id in labels["LabelName"].cat.categories])
    image, number = labels["ImageID"].cat.codes.to_numpy(), to_class[labels["LabelName"].cat.codes]
    if manifest.class_list is None and len(unknown := np.flatnonzero(number < 0)):
        raise ValueError(
            f"{split.labels}: {labels['LabelName'].iloc[unknown[0]]!r} is not in "
            f"{manifest.class_descriptions}"
        )
    confirmed, denied = ((confidence == value) & (number >= 0) for value in (1, 0))
    positives = _group(image[confirmed], number[confirmed], len(images), len(ids))
    negatives = _group(image[denied], number[denied], len(images), len(ids), positives)
    shown = np.flatnonzero(positives.starts < positives.stops)

    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in store.names]
    by_id = Store(store.where, stems, store.places, store.paths)
    listed = by_id.find(images, root / split.labels)
    keys, rows = images[shown].tolist(), listed[shown]
    if split.image_list is not None:
        every = _read_csv(root / split.image_list, {"ImageID": str}, split.where)["ImageID"]
        if strange := sorted(set(images) - set(every)):
            raise ValueError(
                f"{split.labels}: image {strange[0]!r} is not in {split.image_list}, where "
                f"{split.where}"
            )
        listed = by_id.find(every, root / split.image_list)
    first = [name for name, *_ in names]
    source = Labelled(keys, ids, first, positives.take(shown), negatives.take(shown))
    return source.place(store, rows, listed)


def listed_classes(
    manifest: Manifest, root: Path
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Read ids and names of all classes from the lists of Tencent ML-Images or Open Images.

    Raises
    ------
    ValueError
        If the manifest is of another kind, or a class of ``class_list`` is not described.
    """
    if manifest.kind == "tencent":
        ids, _, lemmas = zip(*read_tencent_categories(root / manifest.class_list), strict=True)
        return ids, tuple(tuple(part.strip() for part in text.split(",")) for text in lemmas)
    if manifest.kind != "open_images":
        raise ValueError(f"manifest {manifest.name!r}: kind {manifest.kind!r} lists no classes")
    described = _read_descriptions(root / manifest.class_descriptions)
    ids = tuple(described)
    if manifest.class_list is not None:
        ids = tuple((root / manifest.class_list).read_text(encoding="utf-8").split())
        if strange := [id for id in ids if id not in described]:
            raise ValueError(
                f"class_list {manifest.class_list!r}: {strange[0]!r} is not in "
                f"{manifest.class_descriptions}"
            )
    return ids, tuple((described[id],) for id in ids)


def _read_descriptions(path: Path) -> dict[str, str]:
    """Read LabelName,DisplayName; from V7 on, the first line says so."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0] != "LabelName"]
    bad = [row for row in rows or [[]] if len(row) != 2]
    if bad := bad or [row for row in rows[-1:] if not all(row)]:
        raise ValueError(f"{path}: {','.join(bad[0])!r} is cut short or not LabelName,DisplayName")
    return {id: name or id for id, name in rows}


def _read_csv(path: Path, types: dict, where: dict[str, str] | None = None):
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


def _group(images, numbers, n_images: int, n_classes: int, without: Groups | None = None) -> Groups:
    """Collect the classes of each image, each once, in order; leave out those of ``without``."""
    codes = np.sort(images.astype(np.int64) * n_classes + numbers)
    codes = codes[np.diff(codes, prepend=codes[:1] - 1) > 0]  # np.unique takes five times as long
    if without is not None:
        owner, values = without.spread()
        codes = np.setdiff1d(codes, owner * n_classes + values, assume_unique=True)
    bounds = np.searchsorted(codes, np.arange(n_images + 1) * n_classes)
    return Groups((codes % max(n_classes, 1)).astype(np.int32), bounds[:-1], bounds[1:])


class Torchvision(Labelled):
    """A data set of torchvision, which reads its images as it does."""

    def __init__(self, data, targets: np.ndarray, names: Sequence[str]):
        super().__init__([f"{i:07}" for i in range(len(targets))], names, names, targets)
        self.data = data

    def read(self, row: int) -> Tensor:
        """Decode an image: (3, H, W) uint8."""
        pixels = np.array(self.data[row][0].convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def stamp(self, rows: np.ndarray) -> bytes:
        """Bytes that change with the classes, or with the first image."""
        return self.labels[rows].tobytes() + self.read(0).numpy().tobytes()


def _read_torchvision(manifest: Manifest, split: Split, root: Path) -> Source:
    """Any class of torchvision.datasets that has class names and one class per image."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    kind = getattr(datasets, split.dataset, None)
    if kind is None:
        raise ValueError(f"dataset={split.dataset!r}: torchvision.datasets has no such class")
    if split.arguments.get("download"):
        raise ValueError("arguments: nothing is downloaded on opening; see how_to_obtain")
    folder = root / (split.folder or ".")
    try:
        data = kind(folder, **split.arguments)
    except TypeError as error:
        raise ValueError(f"dataset={split.dataset!r}, arguments: {error}") from error
    except (RuntimeError, FileNotFoundError) as error:
        files = [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]
        below = folder / getattr(kind, "base_folder", "")
        bad = [below / name for name, md5, *_ in files if not check_integrity(below / name, md5)]
        named = f"{bad[0]} is missing or has another md5" if bad else error
        raise ValueError(
            f"{split.dataset} in {folder}: {named}; how to obtain it: {manifest.how_to_obtain}"
        ) from error
    names = getattr(data, "classes", getattr(data, "categories", None))
    places = ("targets", "_labels", "labels", "y")  # torchvision has no one name for them
    targets = next((getattr(data, name) for name in places if hasattr(data, name)), None)
    if targets is None or names is None or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"dataset={split.dataset!r} does not tell one name per class and one class per image; "
            "sets that do are CIFAR10, CIFAR100, Caltech101, Food101, Flowers102, DTD, ImageFolder"
        )
    return Torchvision(data, np.asarray(targets), names)


READERS = {
    "imagenet_folder": _read_imagenet,
    "imagenet_tar": _read_imagenet,
    "tencent": _read_tencent,
    "open_images": _read_open_images,
    "torchvision": _read_torchvision,
}
