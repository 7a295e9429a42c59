"""Parquet with the images themselves, as Hugging Face's ``datasets`` and img2dataset write it."""

import json
from pathlib import Path
from typing import Any

from zslkit.data.files import find_files
from zslkit.data.readers.finding import (
    SPLIT_NAMES,
    Found,
    Hints,
    below,
    find_columns,
    named_splits,
    succeeded,
)
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, size_of, texts_of

_KEPT = 4  # groups of rows whose images stay in memory, per process


class ParquetImages(Source):
    """Images in a column of bytes, or of ``{bytes, path}``, read a group of rows at a time."""

    def __init__(self, rows, paths, column: str, class_names=(), labels=()):
        super().__init__(rows, paths, class_names, labels)
        self.column, self._groups = column, {}

    def raw(self, row: int) -> bytes:
        """Give the bytes of an image file."""
        number, place, _ = self.places[row].tolist()
        group, at = divmod(place, 1 << 32)
        if (number, group) not in self._groups:
            from pyarrow.parquet import ParquetFile

            while len(self._groups) >= _KEPT:
                del self._groups[next(iter(self._groups))]
            table = ParquetFile(self.paths[number]).read_row_group(group, [self.column])
            self._groups[number, group] = table[self.column].combine_chunks()
        image = self._groups[number, group][at].as_py()
        if isinstance(image, bytes):
            return image
        return image["bytes"] or _outside(image, self.paths[number]).read_bytes()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": {}}  # workers read for themselves


def read_parquet_images(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Rows of one or more files; captions from a column of texts, of lists, or of class labels."""
    from pyarrow.compute import binary_length
    from pyarrow.parquet import ParquetFile

    image, caption = manifest.image_field, manifest.caption_field
    paths = [path for pattern in split.shards for path in find_files(root, pattern)]
    rows, labels, n_failed = [], [], 0
    names = _class_names(ParquetFile(paths[0]).schema_arrow, caption)
    for number, path in enumerate(paths):
        file = ParquetFile(path)
        status = ["status"] if "status" in file.schema_arrow.names else []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, [image, caption, *status])
            sizes = binary_length(_bytes_of(table[image])).to_pylist()
            if None in sizes:  # `datasets` leaves files where they are, and stores their paths
                images = table[image].to_pylist()
                sizes = [size or _size(images[at], path) for at, size in enumerate(sizes)]
            values = table[caption].to_pylist()
            fine = succeeded(table["status"].to_pylist()) if status else None
            fine = fine or [True] * len(sizes)
            n_failed += len(fine) - sum(fine)
            for at, (size, value) in enumerate(zip(sizes, values, strict=True)):
                if not fine[at]:  # a link that img2dataset could not follow was never an image
                    continue
                place = (number, (group << 32) + at, size) if size else "missing"
                known = names and value is not None and value >= 0
                labels.append(value if known else 0)
                texts = [names[value]] if known else [] if names else texts_of(value)
                rows.append((f"{path.stem}/{len(rows):07}", texts, place))
    source = ParquetImages(rows, paths, image, names, labels if names else ())
    source.notes = (f"{n_failed} links that img2dataset could not follow",) if n_failed else ()
    return source


def recognise_parquet(path: Any, hints: Hints) -> Found | None:
    """Take a file, or a folder of files, with a column of images' bytes."""
    if not isinstance(path, Path):
        return None
    files = [path] if path.suffix == ".parquet" and path.is_file() else []
    if path.is_dir() and not list(path.glob("*.tar")):
        files = sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    if not files:
        return None
    from pyarrow.parquet import ParquetFile

    schema = ParquetFile(files[0]).schema_arrow
    binary = [field.name for field in schema if _holds_images(field.type)]
    if not binary:
        return None
    columns = [name for name in schema.names if name in binary or name not in ("image", "jpg")]
    classes = [name for name in schema.names if _class_names(schema, name)]
    if hints.image_field is None and not any(c in ("image", "jpg", "img") for c in binary):
        hints = Hints(binary[0], hints.caption_field, hints.data_root)
    try:
        image, caption = find_columns(columns, hints, files[0].name)
    except ValueError:
        if hints.caption_field is not None or not classes:
            raise
        image, caption = hints.image_field or binary[0], classes[0]
    root = path if path.is_dir() else path.parent
    whole = [below(file, root) for file in files]
    groups = named_splits([Path(name).name for name in whole]) if path.is_dir() else {}
    by_folder = {SPLIT_NAMES.get(Path(name).parts[0].lower()) for name in whole}
    splits = {
        split: {"shards": [name for name in whole if Path(name).name in names]}
        for split, names in groups.items()
    }
    if not splits and None not in by_folder and path.is_dir():
        for name in whole:
            split = splits.setdefault(SPLIT_NAMES[Path(name).parts[0].lower()], {"shards": []})
            split["shards"].append(name)
    what = "class labels" if caption in classes else "captions"
    words = f"image bytes from column {image!r}, {what} from column {caption!r}"
    fields = {"image_field": image, "caption_field": caption}
    return Found("parquet_images", words, root, {"shards": whole}, splits, fields)


def _outside(image: Any, path: Path) -> Path:
    return path.parent / str(image["path"])


def _size(image: Any, path: Path) -> int | None:
    if not isinstance(image, dict) or not image.get("path"):
        return None
    return size_of(_outside(image, path))


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _bytes_of(column: Any) -> Any:
    from pyarrow import types

    column = column.combine_chunks()
    return column.field("bytes") if types.is_struct(column.type) else column


def _class_names(schema: Any, column: str) -> list[str]:
    """Read the names of a column of class labels, where ``datasets`` wrote them; else none."""
    facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = facts.get("info", {}).get("features", {}).get(column, {})
    return feature.get("names", []) if isinstance(feature, dict) else []
