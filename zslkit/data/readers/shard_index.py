"""An index beside the shards: the second opening of millions of pairs reads one file.

It holds what a scan found (keys, captions, places, faults) and the names, sizes and times of the
shards; when any of these differ, the shards are scanned again. A change of a shard that keeps its
size and time is not seen. Small sets are scanned each time and get no index.
"""

import contextlib
import hashlib
import json
import operator
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from zslkit.data.files import write_json
from zslkit.data.readers import tars
from zslkit.data.readers.tars import END, Samples

_LAYOUT = 1  # part of every signature: raise it when what is stored changes
_WORTH = 20_000  # samples that take about a second to scan
_PARALLEL = 1 << 30  # bytes of shards from which starting processes pays
_FOLDER = ".zslkit-index"


def read_samples(paths: list[Path], caption_field: str | None) -> Samples:
    """Give the samples of shards from their index, or scan them and write it.

    Raises
    ------
    ValueError
        If a shard is damaged or holds no caption.
    """
    signature = _signature(paths, caption_field)
    name = hashlib.sha256(signature).hexdigest()[:16] + ".npz"
    folders = [paths[0].parent / _FOLDER, _cache_folder()]
    for folder in folders:
        with contextlib.suppress(ValueError, OSError):
            samples, noted = tars.load(folder / name)
            if noted == signature:
                return samples
    samples = _scan_all(paths, caption_field)
    samples = samples._replace(faults=samples.faults + _repeated(samples.keys))
    if len(samples.counts) >= _WORTH and _signature(paths, caption_field) == signature:
        for folder in folders:
            with contextlib.suppress(OSError):
                _write(folder, name, samples, signature)
                break
    return samples


def _signature(paths: list[Path], caption_field: str | None) -> bytes:
    """Names, sizes and times of shards, and how they are read."""
    base, facts = paths[0].parent, []
    for path in paths:
        found = path.stat()
        facts.append([os.path.relpath(path, base), found.st_size, found.st_mtime_ns])
    return json.dumps([_LAYOUT, caption_field, facts]).encode()


def _cache_folder() -> Path:
    """Give the folder for sets that lie where nothing may be written."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zslkit" / "shards"


def _write(folder: Path, name: str, samples: Samples, signature: bytes) -> None:
    """Write an index whole or not at all, in place of those of earlier states of these shards."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        tars.save(temporary, samples, signature=signature)
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)


def _scan_all(paths: list[Path], caption_field: str | None) -> Samples:
    sizes = [path.stat().st_size for path in paths]
    workers = min(os.cpu_count() or 1, len(paths)) if sum(sizes) >= _PARALLEL else 1
    if workers == 1:
        return tars.join([tars.scan(p, n, caption_field) for n, p in enumerate(paths)])
    # Consecutive shards of about equal bytes for each process. Not multiprocessing: forking a
    # process that has used torch's threads is unsafe, spawning runs the caller's script again.
    shares = np.minimum(np.cumsum(sizes) * workers // (sum(sizes) + 1), workers - 1)
    package = Path(__file__).parents[3]
    search = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="zslkit-index-") as folder:
        running = []
        for worker in range(workers):
            job, output = Path(folder, f"{worker}.json"), Path(folder, f"{worker}.npz")
            shards = [(int(n), str(paths[n].absolute())) for n in np.flatnonzero(shares == worker)]
            if not shards:
                continue
            write_json(job, {"caption_field": caption_field, "shards": shards})
            command = [sys.executable, "-m", tars.__name__, str(job), str(output)]
            process = subprocess.Popen(
                command, env=os.environ | {"PYTHONPATH": search}, stderr=subprocess.PIPE
            )
            running.append((process, output))
        try:
            ends = [(process.communicate()[1], process.returncode) for process, _ in running]
        finally:
            for process, _ in running:
                process.kill()
        for message, code in ends:
            if code:
                raise ValueError(message.decode(errors="replace").strip().splitlines()[-1])
        return tars.join([tars.load(output)[0] for _, output in running])


def _repeated(keys: bytes) -> bytes:
    """Word the keys that occur more than once, as a fault; nothing where there are none."""
    every = keys.split(END.encode())[:-1]
    # most sets are in rising order, which is seen at once; a set is quicker than sorting
    if all(map(operator.lt, every, every[1:])) or len({*every}) == len(every):
        return b""
    names = np.array(keys.decode().split(END)[:-1], dtype=np.dtypes.StringDType())
    names.sort()
    again = names[1:][names[1:] == names[:-1]]
    first = ", ".join(dict.fromkeys(again[:1000].tolist()))[:200]
    return f"{len(again)} keys occur in more than one shard: {first}{END}".encode()
