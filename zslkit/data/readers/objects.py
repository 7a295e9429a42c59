"""What a notebook holds: a pandas DataFrame, or a Dataset of Hugging Face's ``datasets``.

The manifest names an object by a hash of its content; it is known in this process only.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from zslkit.data.readers.finding import (
    SPLIT_NAMES,
    Found,
    Hints,
    find_column,
    find_columns,
    find_folder,
)
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, texts_of

OBJECTS: dict[str, Any] = {}
"""Objects by the name that :func:`name_object` gave them."""

_PREFIX = "object:"


def name_object(value: Any) -> str:
    """Keep an object and give the name under which settings and manifests know it.

    Raises
    ------
    ValueError
        If it is none of the kinds that can be read.
    """
    name = f"{_PREFIX}{type(value).__name__}-{_digest(value)[:16]}"
    OBJECTS[name] = value
    return name


def recognise_object(value: Any, hints: Hints) -> Found | None:
    """Take an object, or the name of one."""
    if isinstance(value, Path):
        return None
    value = _find(value) if isinstance(value, str) else value
    splits = {}
    if isinstance(value, dict):  # a DatasetDict
        known = {SPLIT_NAMES.get(name.lower(), name): part for name, part in value.items()}
        splits = {name: {"source": name_object(part)} for name, part in known.items()}
        value = next(iter(known.values()))
    whole = {"source": name_object(value)}
    columns = list(value.columns) if hasattr(value, "columns") else list(value.features)
    classes = [name for name in columns if _class_names(value, name)]
    try:
        image, caption = find_columns(columns, hints, type(value).__name__)
    except ValueError:
        image = find_column(columns, hints.image_field, ("image", "img"))
        if hints.caption_field is not None or not classes or image is None:
            raise
        caption = classes[0]
    if not isinstance(value, dict) and hasattr(value, "columns") and "split" in value.columns:
        parts = {name: value[value["split"] == name] for name in value["split"].unique()}
        if parts.keys() <= SPLIT_NAMES.keys():
            splits = {SPLIT_NAMES[n]: {"source": name_object(part)} for n, part in parts.items()}
    first = value[image].iloc[0] if hasattr(value[image], "iloc") else None
    root = hints.data_root or Path.cwd()
    if isinstance(first, str | Path):
        root = find_folder(value[image], Path.cwd(), hints, f"column {image!r}")
    words = (
        f"{type(value).__name__}, images from column {image!r}, captions from column {caption!r}"
    )
    fields = {"image_field": image, "caption_field": caption}
    return Found("objects", words, root, whole, splits, fields)


class ObjectImages(Source):
    """Images that an object holds, as files' bytes, PIL images or arrays."""

    def __init__(self, rows, images: Any, class_names=(), labels=()):
        super().__init__(rows, (), class_names, labels)
        self.images = images

    def raw(self, row: int) -> bytes:
        """Give the bytes of an image file; pixels are packed as PNG."""
        return _encoded(self.images[int(self.places["offset"][row])])

    def content(self, rows: np.ndarray) -> bytes:
        """Nothing: the object is named by its content."""
        return b""


def read_object(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Rows of a table in memory; those of one image file become its captions."""
    fields = manifest.image_field, manifest.caption_field
    return read_value(_find(split.source), *fields, root, split.source)


def read_value(value: Any, image: str, caption: str, root: Path, origin: str) -> Source:
    """Read a DataFrame or Dataset by its columns; names of images start from ``root``."""
    if hasattr(value, "columns"):
        images = list(value[image])
        if all(isinstance(item, str | Path) for item in images):
            from zslkit.data.readers.tables import read_rows

            return read_rows(value, image, caption, root, origin)
        captions, names = list(value[caption]), []
    else:
        names = _class_names(value, caption)
        captions, images = list(value[caption]), _Undecoded(value, image)
    rows = []
    for number, text in enumerate(captions):
        texts = [names[text]] if names else texts_of(text)
        rows.append((f"{number:07}", texts, (0, number, 1)))
    return ObjectImages(rows, images, names, captions if names else ())


class _Undecoded:
    """A column of images of a Dataset, whose files are not decoded by ``datasets``."""

    def __init__(self, data: Any, column: str):
        from datasets import Image

        feature = data.features[column]
        decodes = isinstance(feature, Image)
        self.data = data.cast_column(column, Image(decode=False)) if decodes else data
        self.column = column

    def __getitem__(self, row: int) -> Any:
        return self.data[row][self.column]


def _find(name: str) -> Any:
    if name not in OBJECTS:
        raise ValueError(
            f"manifest {name!r} was an object in another session; give it again, or write it to "
            "a file that can be named"
        )
    return OBJECTS[name]


def _class_names(value: Any, column: str) -> list[str]:
    if hasattr(value, "columns"):
        return []
    return getattr(value.features[column], "names", None) or []


def _encoded(image: Any) -> bytes:
    """Turn whatever shows an image into the bytes of a file."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if image is None:
        return b""
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    picture.save(stream := io.BytesIO(), "PNG", compress_level=1)
    return stream.getvalue()


def _digest(value: Any) -> str:
    if hasattr(value, "_fingerprint"):
        return hashlib.sha256(value._fingerprint.encode()).hexdigest()
    if isinstance(value, dict):
        parts = [f"{name}{_digest(part)}" for name, part in value.items()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    if not hasattr(value, "columns") or not hasattr(value, "iloc"):
        raise ValueError(
            f"{type(value).__name__} is no source of pairs: give a path, the name of a manifest, "
            "a pandas DataFrame or a datasets.Dataset (one that is not streamed)"
        )
    digest = hashlib.sha256()
    for column in value.columns:
        digest.update(f"\0{column}".encode())
        for item in value[column]:
            plain = isinstance(item, str | Path | int | float | list | tuple | None)
            data = str(item).encode() if plain else _encoded(item)
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
