"""Folders whose every file is known by size and hash, so that damage is noticed before use."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zslkit.data.files import write_json

MANIFEST = "manifest.json"
"""Name of the list of a folder's files."""


def seal(folder: Path) -> None:
    """List every file of a folder with size in bytes and SHA-256, and force all to disk."""
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"files": files})
    for path in [*folder.iterdir(), folder]:
        flush(path)


def damage(folder: Path) -> str | None:
    """Say what is wrong with a sealed folder, naming the file; None when it is sound."""
    try:
        if not any(folder.iterdir()):
            return "it is empty"
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        for name, facts in listed.items():
            path = folder / name
            if path.stat().st_size != facts["size"]:
                return f"{name} has {path.stat().st_size:,} bytes, not {facts['size']:,}"
            if _facts(path) != facts:
                return f"{name} is not what was written (its SHA-256 differs)"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or of another shape
        return f"{MANIFEST} is damaged"
    return None if listed else f"{MANIFEST} lists no file"


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
