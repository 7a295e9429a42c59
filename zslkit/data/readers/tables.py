"""CSV and Parquet with a caption per row."""

from collections.abc import Sequence
from pathlib import Path

from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, files_in


def read_table(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Read a row per caption, or a list of captions per row."""
    image, caption = manifest.image_field, manifest.caption_field
    frame = read_frame(root, split.table, (image, caption), split.where)
    frame = frame.explode(caption)  # Parquet may hold lists
    captions = frame[caption].fillna("").astype(str).str.strip()
    groups = captions.groupby(frame[image], sort=False).agg(list).to_dict()
    return files_in(root / manifest.image_folder, groups, split.table)


def read_frame(root: Path, table: str, columns: Sequence[str], where: dict[str, str]):
    """Read the named columns of a table as text, and keep the rows that ``where`` asks for."""
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
