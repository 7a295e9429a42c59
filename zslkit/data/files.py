"""Where files lie, and writing them whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def project_root(start: str | Path = ".") -> Path:
    """Find the nearest folder upwards that holds ``data_manifests``, else ``start`` itself.

    JupyterLab starts kernels in the notebook's folder and papermill in the caller's; relative
    paths mean the same in both once the notebook has moved here.
    """
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "data_manifests").is_dir():
            return folder
    return start


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the file or folder at a path, or all that match a pattern, sorted."""
    path = root / pattern
    return [path] if path.exists() else sorted(root.glob(pattern))


def portable(value: Any) -> Any:
    """Make paths relative to the project; of those outside keep the last part, they name people."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str | Path) and Path(value).is_absolute():
        path, root = Path(value), project_root()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else f"…/{path.name}"
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always whole."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Give the text that :func:`write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text so that the file is always whole."""
    with whole(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: the path to write to, renamed to ``path`` at the end.

    Whoever reads ``path`` meanwhile finds the old file. After an error nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
