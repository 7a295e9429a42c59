"""What recognisers share: hints, findings, and how columns, folders and splits are found."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zslkit.data.source import IMAGE_SUFFIXES

IMAGE_COLUMNS = ("image", "filename", "file_name", "file", "filepath", "file_path", "image_path")
IMAGE_COLUMNS += ("path", "img", "jpg", "png", "url")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "description")
SPLIT_NAMES = {  # as they are often called, and as our settings call them
    **{name: name for name in ("train", "dev", "test")},
    **{"training": "train", "val": "dev", "valid": "dev", "validation": "dev", "testing": "test"},
}

_LOOKED_AT = 200  # names of images that are looked for to find their folder


@dataclass(frozen=True)
class Hints:
    """What the caller knows of a source."""

    image_field: str | None = None
    """Column or field of images, or of their names."""
    caption_field: str | None = None
    """Column or field of captions."""
    data_root: Path | None = None
    """Folder that names of images start from."""


@dataclass(frozen=True)
class Found:
    """What a recogniser found: the manifest that need not be written."""

    kind: str
    """Key of the reader."""
    words: str
    """What was understood, for people."""
    root: Path
    """Folder that all paths start from."""
    split: dict[str, Any]
    """Of the whole source, as in a manifest."""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, where the source names splits."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the manifest."""


def find_column(columns: Sequence[str], named: str | None, usual: Sequence[str]) -> str | None:
    """Find a column: that which is named, or else the first with a usual name, in any case."""
    if named is not None:
        return named if named in columns else None
    plain = {str(column).strip().lower(): column for column in reversed(columns)}
    return next((plain[name] for name in usual if name in plain), None)


def find_columns(columns: Sequence[str], hints: Hints, what: str) -> tuple[str, str]:
    """Find the columns of images and captions.

    Raises
    ------
    ValueError
        If there is none; it names the setting and the columns.
    """
    found = []
    for setting, usual in (("image_field", IMAGE_COLUMNS), ("caption_field", CAPTION_COLUMNS)):
        named = getattr(hints, setting)
        column = find_column(columns, named, usual)
        if column is None:
            wanted = f"no column {named!r}" if named else f"none of {', '.join(usual)}"
            raise ValueError(
                f"{what}: {wanted} is among its columns, {', '.join(map(str, columns))}; name the "
                f"right one with {setting}"
            )
        found.append(column)
    return found[0], found[1]


def find_folder(names: Iterable[Any], start: Path, hints: Hints, what: str) -> Path:
    """Find the folder that names of images start from, by where most of the first ones exist.

    Looked at are ``data_root``, or else the source's folder, those in it and beside it, the one
    around it, and the working folder.

    Raises
    ------
    ValueError
        If no image is found anywhere, or the names are links.
    """
    names = [str(name) for _, name in zip(range(_LOOKED_AT), names, strict=False)]
    if names and all(re.match(r"https?://", name) for name in names):
        raise ValueError(
            f"{what} holds links such as {names[0]!r}, not files; fetch the images first, for "
            "instance with img2dataset, and give its output folder"
        )
    places = [hints.data_root] if hints.data_root is not None else [start, Path.cwd()]
    around = [*places, *(start.parent,) * (hints.data_root is None)]
    if hints.data_root is None:
        places.append(start.parent)
    places += sorted(child for place in around for child in _folders(place))
    hits = [sum((place / name).is_file() for name in names) for place in places]
    if not any(hits):
        raise ValueError(
            f"{what}: none of its first {len(names)} images, such as {names[:1]}, is a file under "
            f"{places[0]} or a folder in it; data_root must name the folder that they start from"
        )
    return places[hits.index(max(hits))]


def below(path: Path, root: Path) -> str:
    """Write a path from a root on, also where it lies beside it."""
    return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()


def succeeded(statuses: Iterable[Any]) -> list[bool] | None:
    """Read img2dataset's column ``status``: which rows have an image; None for any other column."""
    statuses = [str(status) for status in statuses]
    known = {"success", "failed_to_download", "failed_to_resize"}
    if "success" not in statuses or not set(statuses) <= known:
        return None
    return [status == "success" for status in statuses]


def named_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names that all begin with that of a split, such as val-00000.tar; else nothing."""
    groups: dict[str, list[str]] = {}
    for name in names:
        head = re.split(r"[-_.]", name.lower())[0]
        if head not in SPLIT_NAMES:
            return {}
        groups.setdefault(SPLIT_NAMES[head], []).append(name)
    return groups


def is_image(path: Path) -> bool:
    """Tell by the suffix whether a file should be an image."""
    return path.suffix[1:].lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [child for child in place.iterdir() if child.is_dir() and child.name[0] != "."][:200]
