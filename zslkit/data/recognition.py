"""Sources without a manifest: a file, folder or object → the manifest that need not be written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslkit.data.readers import RECOGNISERS, recognisers
from zslkit.data.readers.finding import Found, Hints

SPLIT_SHARES: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
"""Of a set that names no splits, unless others are asked for."""


def recognise(
    source: Any,
    data_root: str | Path | None = None,
    image_field: str | None = None,
    caption_field: str | None = None,
    split_shares: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], Found]:
    """Find out how a source is to be read.

    Returns
    -------
    dict, Found
        The content of a manifest, and what the recogniser found.

    Raises
    ------
    ValueError
        If no recogniser takes the source, a column is not found, or the source names splits and
        ``split_shares`` asks for others.
    """
    named = isinstance(source, str) and source.startswith("object:")
    path = Path(source) if isinstance(source, str | Path) and not named else source
    if isinstance(path, Path) and data_root and not path.exists():
        path = Path(data_root) / path
    hints = Hints(image_field, caption_field, None if data_root is None else Path(data_root))
    found = next(filter(None, (ask(path, hints) for ask in recognisers())), None)
    if found is None:
        raise ValueError(
            f"manifest={str(source)!r}: not a source that is understood ({_what_is(path)}); known "
            f"are {', '.join(RECOGNISERS)}: see docs/formats.md"
        )
    splits = dict(found.splits) if len(found.splits) > 1 else {}  # one, such as train, splits none
    if "dev" in splits and "test" not in splits:  # it is then what a run is measured on
        splits["test"] = splits.pop("dev")
    if splits and split_shares:
        raise ValueError(
            f"split_shares={dict(split_shares)}: {str(source)!r} names its own splits, "
            f"{', '.join(splits)}"
        )
    if not splits:
        splits = draw_splits(found.split, split_shares or SPLIT_SHARES)
    name = path.resolve().stem if isinstance(path, Path) else type(path).__name__
    content = {"name": name, "kind": found.kind, "title": name, **found.fields}
    return content | {"description": f"{found.words}.", "splits": splits}, found


def draw_splits(split: Mapping[str, Any], shares: Mapping[str, float]) -> dict[str, dict]:
    """Make splits that each keep a share of one, and ``all``.

    Raises
    ------
    ValueError
        If the shares are not positive numbers that make 1.
    """
    if not shares or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) <= 0:
        raise ValueError(
            f"split_shares={dict(shares)} must be positive and make 1, such as {dict(SPLIT_SHARES)}"
        )
    splits, start = {}, 0.0
    for name, share in shares.items():
        stop = round(start + share, 9)
        splits[name] = {**split, "share": [start, stop]}
        start = stop
    return splits | ({} if "all" in splits else {"all": dict(split)})


def _what_is(path: Any) -> str:
    if not isinstance(path, Path):
        return type(path).__name__
    if path.is_file():
        return f"a file ending in {path.suffix!r}"
    children = sorted(path.iterdir())
    if not children:
        return "an empty folder"
    from zslkit.data.readers.finding import is_image

    n_images = sum(map(is_image, children))
    some = ", ".join(child.name for child in children[:3])
    if n_images:
        return (
            f"a folder of {n_images} images without captions: give each a .txt beside it, or a "
            "metadata.csv of file_name,caption; or a folder for each class"
        )
    return f"a folder with {some}"
