"""Lists of classes in the files that their sets publish: ids, names and descriptions."""

import csv
import re
from pathlib import Path

from zslkit.data.schema import ManifestFields

_TENCENT_COLUMNS = ["category_index", "category_id", "index_of_parent_category", "category name"]


def read_tencent_categories(path: str | Path) -> list[tuple[str, int, str]]:
    """Read Tencent ML-Images' categories: 11,166, in the official file.

    Returns
    -------
    list of (str, int, str)
        Synset, number of the category above (-1 for none) and lemmas, in the order that gives
        categories their numbers.

    Raises
    ------
    ValueError
        If the first line is not the official one, or a row is cut short, out of order, or below a
        category that is missing.
    """
    first, *lines = Path(path).read_text(encoding="utf-8").splitlines() or [""]
    if first.split("\t") != _TENCENT_COLUMNS or not lines:
        raise ValueError(
            f"{path}: its first line must be {'<tab>'.join(_TENCENT_COLUMNS)}, and rows follow"
        )
    rows = []
    for number, line in enumerate(lines):
        match = re.fullmatch(rf"{number}\t(\S+)\t(-1|\d+)\t(.+)", line)
        if match is None or int(match[2]) >= len(lines):
            raise ValueError(
                f"{path}, line {number + 2}: {line!r} is cut short, out of order, or below a "
                "category that is missing"
            )
        rows.append((match[1], int(match[2]), match[3]))
    return rows


def listed_classes(
    manifest: ManifestFields, root: Path
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
