"""Folders of labelled images."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import SPLIT_NAMES, Found, Hints, is_image
from zslkit.data.readers.tables import read_frame
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import IMAGE_SUFFIXES, Source, files_in


def read_folder(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images by the folder of their class, or by a CSV of file,class_name."""
    folder = root / split.folder
    if split.classes:
        of_file = dict(_chosen(folder, split))
    elif split.labels is not None:
        frame = read_frame(root, split.labels, ("file", "class_name"), split.where)
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
    return files_in(folder, captions, split.labels or split.folder, names, labels)


def _chosen(folder: Path, split: Split) -> Iterator[tuple[str, str]]:
    """Give images of the folders in ``classes``, of each the ``per_class`` of least sha1."""
    for part, class_name in split.classes.items():
        files = [path for path in sorted((folder / part).glob("*")) if is_image(path)]
        names = [path.relative_to(folder).as_posix() for path in files]
        drawn = sorted(names, key=lambda name: hashlib.sha1(name.encode()).digest())
        yield from ((name, class_name) for name in sorted(drawn[: split.per_class]))


def recognise_folder(path: Any, hints: Hints) -> Found | None:
    """Take a folder whose folders hold images: of classes, or of splits that hold classes."""
    if not isinstance(path, Path) or not path.is_dir():
        return None
    parts = [child for child in sorted(path.iterdir()) if child.is_dir() and child.name[0] != "."]
    if parts and all(child.name.lower() in SPLIT_NAMES for child in parts):
        splits = {SPLIT_NAMES[child.name.lower()]: {"folder": child.name} for child in parts}
        parts = [child for part in parts for child in part.iterdir() if child.is_dir()]
        whole = next(iter(splits.values()))
    else:
        splits, whole = {}, {"folder": "."}
    if not any(is_image(file) for child in parts for file in child.glob("*")):
        return None
    words = f"labelled images, {len({part.name for part in parts})} classes by folder"
    return Found("image_folder", words, path, whole, splits)
