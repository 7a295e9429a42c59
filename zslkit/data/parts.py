"""Finished parts of a long embedding: what was interrupted goes on from them."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from zslkit.data.files import whole
from zslkit.data.sealed import note, spoilt

ITEMS = 8192
"""Items of a part: a minute or two of images on a CPU."""


class Parts:
    """What has been embedded since, kept in a folder part by part.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder, self.n_blocks, self.n_parts = folder, 0, 0
        self.done = False
        self._new: list[tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]] = []

    def read(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Yield rows, vectors and broken keys of each part, up to the first that is not sound."""
        bad = spoilt(self.folder) if self.folder else {}
        while self.folder and "checksums.json" not in bad:
            path = self._path(self.n_parts)
            if not path.is_file() or path.name in bad:
                return
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()["facts"])
                rows, vectors = file.get_tensor("rows"), file.get_tensor("vectors")
            self.n_blocks += facts["blocks"]
            self.n_parts += 1
            yield rows, vectors, facts["broken"]

    def add(self, rows: np.ndarray, vectors: np.ndarray | None, broken: tuple[str, ...]) -> None:
        """Take one block more; a part that is full is written."""
        if self.folder is not None:
            self._new.append((rows, vectors, broken))
            if sum(len(rows) + len(broken) for rows, _, broken in self._new) >= ITEMS:
                self.flush()

    def flush(self) -> None:
        """Write what was added since the last part."""
        vectors = [block for _, block, _ in self._new if block is not None]
        if self.folder is None or not vectors:
            return
        tensors = {"rows": np.concatenate([rows for rows, _, _ in self._new]),
                   "vectors": np.concatenate(vectors)}  # fmt: skip
        facts = {
            "blocks": len(self._new),
            "broken": [key for *_, keys in self._new for key in keys],
        }
        path = self._path(self.n_parts)
        with whole(path) as temporary:
            save_file(tensors, temporary, {"facts": json.dumps(facts)})
        note(path)
        self.n_parts, self.n_blocks = self.n_parts + 1, self.n_blocks + len(self._new)
        self._new = []

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


@contextlib.contextmanager
def parts_in(folder: Path | None) -> Iterator[Parts]:
    """Keep parts in a folder that one process at a time uses; removed when all is done.

    A process that finds it in use, such as another of torchrun, keeps none.
    """
    if folder is None:
        yield Parts(None)
        return
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Parts(None)
            return
        yield (parts := Parts(folder))
        if parts.done:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
