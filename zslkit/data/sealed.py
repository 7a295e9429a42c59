"""Files that are known by size and hash, so that damage is noticed before use."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslkit.data.files import json_text, write_json, write_text

MANIFEST = "manifest.json"
"""Name of the list of a folder's files."""

CHECKSUMS = "checksums.json"
"""Name of the list of some files of a folder that goes on changing."""


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


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON object whole, with the SHA-256 of what it says."""
    write_text(path, sealed_text(facts))


def sealed_text(facts: Mapping[str, Any]) -> str:
    """Give the text that :func:`write_sealed` writes."""
    return json_text({**facts, "sha256": _of_facts(facts)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote, without its hash.

    Raises
    ------
    ValueError
        If the file is not what was written; names it.
    """
    try:
        facts = json.loads(path.read_text("utf-8"))
        if facts.pop("sha256") == _of_facts(facts):
            return facts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # no JSON, or of another shape
    raise ValueError(f"{str(path)!r} is damaged: it is not what was written")


def checksum(path: Path) -> str:
    """Give the SHA-256 of a file; of one that is not there, that of nothing."""
    return _facts(path)["sha256"] if path.is_file() else hashlib.sha256().hexdigest()


def note(*paths: Path) -> None:
    """Write down size and hash of files of one folder, in its ``checksums.json``."""
    _list(paths[0].parent, {path.name: [_facts(path)] for path in paths})


def write_noted(texts: Mapping[Path, str]) -> None:
    """Write files of one folder, each whole, and note them; a kill in between spoils nothing.

    Meanwhile the list holds what was there and what comes, so that either is sound.
    """
    folder = next(iter(texts)).parent
    coming = {path.name: _of_bytes(text.encode()) for path, text in texts.items()}
    before = {path.name: _facts(path) if path.is_file() else None for path in texts}
    _list(folder, {name: [before[name], coming[name]] for name in coming})
    for path, text in texts.items():
        write_text(path, text)
    _list(folder, {name: [facts] for name, facts in coming.items()})


def spoilt(folder: Path) -> dict[str, str]:
    """Say of each file that ``checksums.json`` lists and that is no longer so what is wrong."""
    if not (listing := folder / CHECKSUMS).is_file():
        return {}  # of an older version
    try:
        files = read_sealed(listing)["files"]
    except ValueError:
        return {CHECKSUMS: "it is damaged"}
    bad = {}
    for name, sound in files.items():
        facts = _facts(folder / name) if (folder / name).is_file() else None
        if facts not in sound:
            bad[name] = "its SHA-256 differs" if facts else "it is missing"
    return bad


def _list(folder: Path, files: Mapping[str, list]) -> None:
    listing = folder / CHECKSUMS
    try:
        earlier = read_sealed(listing)["files"]
    except (OSError, ValueError):  # of a damaged list nothing counts
        earlier = {}
    write_sealed(listing, {"files": earlier | files})


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


def _of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _of_bytes(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
