"""What the checks of shards cost: opening 300,000 pairs with them and without, in turns.

Run ``python benchmarks/opening.py --folder F``; F receives 30 synthetic shards (0.6 GB) that are
deleted at the end. All openings are in one process, that scans as one; medians of CPU seconds.
Checked are sums and ends of all headers, captions, counts, and keys that occur twice; of an index
also that its columns fit together. Writes a results file.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from index import write_shards

from zslkit.data.files import write_json
from zslkit.data.pairs import open_pairs
from zslkit.data.readers import shard_index, tars
from zslkit.report.provenance import SOURCES, git_state

RESULTS = Path(__file__).parent / "results" / "opening.json"
CHECKS = {
    "sums of headers": (tars, "_check_sum", lambda *given: None),
    "counts of img2dataset": (tars, "_check_counts", lambda *given: None),
    "captions": (tars, "_check_captions", lambda captions: None),
    "keys that occur twice": (shard_index, "_repeated", lambda keys: b""),
    "columns of the index": (tars, "_fit_together", lambda samples: True),
}


@contextlib.contextmanager
def without(names: list[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(*CHECKS[name]))
        yield


def seconds(path: Path) -> float:
    gc.collect()
    began = time.process_time()
    assert len(open_pairs(path, "train", quiet=True)) == 300_000
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shards = options.folder / "shards"
    shards.mkdir(parents=True)
    found = {}
    try:
        write_shards(shards, 30, 10_000)
        words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
        splits = {"train": {"shards": ["*.tar"]}}
        path = shards / "mine.json"
        path.write_text(json.dumps({"name": "mine", "kind": "shards", **words, "splits": splits}))
        shard_index._PARALLEL = 1 << 60
        for kind, worth in (("scanned", 1 << 60), ("from the index", 1)):
            shard_index._WORTH = worth
            seconds(path)  # from disk into memory; writes the index
            times = {"with checks": [], "without": []}
            for _ in range(options.rounds):
                times["with checks"].append(seconds(path))
                with without([*CHECKS]):
                    times["without"].append(seconds(path))
            medians = {name: statistics.median(values) for name, values in times.items()}
            ratio = medians["with checks"] / medians["without"]
            rounded = {name: [round(x, 3) for x in values] for name, values in times.items()}
            found[kind] = {"cpu_seconds": rounded, "ratio of medians": round(ratio, 3)}
            print(kind, found[kind], flush=True)
        results = {"code": SOURCES, **git_state(Path(__file__).parents[1]), "pairs": 300_000}
        results |= {"checks": [*CHECKS], "openings": found}
        results |= {"machine": platform.machine(), "cores": os.cpu_count()}
        write_json(RESULTS, results)
    finally:
        shutil.rmtree(shards)


if __name__ == "__main__":
    main()
