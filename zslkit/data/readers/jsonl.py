"""JSON Lines, and JSON lists of records."""

from pathlib import Path
from typing import Any

from zslkit.data.strict import parse_json


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a record per line, or a list of records.

    Raises
    ------
    ValueError
        If a line is not a JSON object; it names the line.
    """
    records = []
    with open(path, encoding="utf-8-sig") as file:
        if file.read(1) == "[":
            file.seek(0)
            lines = enumerate(_list_of(file.read(), path), 1)
        else:
            file.seek(0)
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in lines:
            where = f"{path.name}, line {number}"
            record = parse_json(line, where) if isinstance(line, str) else line
            if not isinstance(record, dict):
                raise ValueError(f"{path.name}, record {number}: {record!r} is no JSON object")
            records.append(record)
    return records


def _list_of(text: str, path: Path) -> list[Any]:
    return parse_json(text, path.name)
