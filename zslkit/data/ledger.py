"""Which pairs of a list of links are still there, and which were lost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zslkit.data.files import whole
from zslkit.evaluation.intervals import wilson_interval

_COLUMNS = {  # of a ledger, as img2dataset calls them
    **dict.fromkeys(("key", "url", "caption", "status", "error_message", "sha256"), "string"),
    **dict.fromkeys(("width", "height"), "Int64"),
}


_OPTIONAL = {"caption", "sha256"}  # written only where --caption_col, --compute_hash asked for it


def read_ledger(path: str | Path) -> Any:
    """Read what became of each link: img2dataset's output folder, or what write_ledger wrote.

    Returns
    -------
    DataFrame
        Columns key, url, caption, status (``success`` or a reason), error_message, sha256,
        width and height; caption and sha256 are missing values where they were not kept.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no shard's Parquet file in the folder.
    ValueError
        If a file is no table or lacks a column; it names both.
    """
    from pandas import concat

    path = Path(path)
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not shards:
        raise FileNotFoundError(
            f"{path}: holds no NNNNN.parquet; a ledger is the output folder of img2dataset"
        )
    tables = (_read_table(shard, _COLUMNS.keys() - _OPTIONAL) for shard in shards)
    tidy = [table.reindex(columns=[*_COLUMNS]).astype(_COLUMNS) for table in tables]
    return concat(tidy, ignore_index=True)


def write_ledger(ledger: Any, path: str | Path) -> Path:
    """Write a ledger as one .parquet or .csv file: links and checksums, no images.

    Raises
    ------
    ValueError
        If the name ends otherwise.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: a ledger is written as .parquet or .csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = ledger.to_csv if path.suffix == ".csv" else ledger.to_parquet
    with whole(path) as temporary:
        write(temporary, index=False)
    return path


def read_listing(path: str | Path) -> Any:
    """Read the links that were to be fetched: url and caption, from TSV, CSV or Parquet.

    A TSV may lack a first line of names, as that of CC3M does: caption, then url.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table or lacks a column; it names both.
    """
    return _read_table(Path(path), ("url", "caption"))[["url", "caption"]].astype("string")


def summarise_ledger(ledger: Any, listing: Any = None) -> dict[str, Any]:
    """Say what of a listing survives.

    Returns
    -------
    dict
        ``listed``, ``untried`` (links of the listing that the ledger lacks), ``tried``,
        ``survived``, ``share_survived`` of those tried, with its Wilson interval, and
        ``reasons``: how often each message of failure occurs, most frequent first.
    """
    survived = _survived(ledger)
    reasons = ledger["error_message"].fillna(ledger["status"])[~survived].value_counts()
    listing = ledger if listing is None else listing
    return {
        "listed": len(listing),
        "untried": int((~listing["url"].isin(ledger["url"])).sum()),
        "tried": len(ledger),
        "survived": int(survived.sum()),
        "share_survived": wilson_interval(int(survived.sum()), len(ledger)),
        "reasons": {str(reason): int(count) for reason, count in reasons.items()},
    }


def compare_ledgers(a: Any, b: Any) -> dict[str, float]:
    """Compare the links that survive in two ledgers, each link once.

    Returns
    -------
    dict
        Counts ``both``, ``only_a``, ``only_b``; of those in both ``changed``, other content by
        checksum, and ``unchecked``, for want of one; ``jaccard``, the share of all that is in
        both, 1 where nothing survives in either.
    """
    a, b = (
        ledger[_survived(ledger)].drop_duplicates("url").set_index("url")["sha256"]
        for ledger in (a, b)
    )
    both = a.index.intersection(b.index)
    same = (a[both] == b[both]).astype("boolean")  # missing where either checksum is
    union = len(a) + len(b) - len(both)
    return {
        "both": len(both),
        "only_a": len(a) - len(both),
        "only_b": len(b) - len(both),
        "changed": int((~same).sum()),
        "unchecked": int(same.isna().sum()),
        "jaccard": len(both) / union if union else 1.0,
    }


def _survived(ledger: Any) -> Any:
    return ledger["status"].eq("success").fillna(False)


def _read_table(path: Path, needed: Iterable[str]) -> Any:
    """Read .parquet, .csv or .tsv; other than numbers everything in the last two is text."""
    import pandas as pd

    text = {"dtype": "string", "keep_default_na": False, "na_values": [""]}
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix == ".tsv":  # CC3M's captions hold quotation marks that nothing closes
            table = pd.read_csv(path, sep="\t", quoting=3, header=None, **text)
            named = int({"url", "caption"} <= set(table.iloc[0]))  # rows of names: 1 or 0
            table.columns = list(table.iloc[0]) if named else ["caption", "url"]
            table = table[named:]
        else:
            table = pd.read_csv(path, **text)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # the bases of pandas' and pyarrow's own errors
        raise ValueError(f"{path}: not a readable table ({error})") from error
    if missing := sorted(set(needed) - set(table)):
        raise ValueError(f"{path}: no column {missing[0]!r}; its columns: {', '.join(table)}")
    return table.reset_index(drop=True)
