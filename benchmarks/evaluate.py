"""Seconds and memory to find hit@1, 2, 5 and 10 among 22,843 classes: zslkit and its peers.

Needs scikit-learn (the ``notebooks`` extra). ``python benchmarks/evaluate.py`` runs every
contender in processes of their own, in turn, and writes a results file.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from zslkit.report.provenance import machine

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
IMAGES, CLASSES, DIMENSION, KS, ROUNDS = 50_000, 22_843, 768, (1, 2, 5, 10), 3


def embeddings():
    """Draw unit vectors; every image lies near its class."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(CLASSES, DIMENSION, generator=generator)
    truth = torch.randint(CLASSES, (IMAGES,), generator=generator)
    images = torch.empty(IMAGES, DIMENSION)
    for start in range(0, IMAGES, 5000):  # in blocks: the peak shall be the contender's
        rows = slice(start, start + 5000)
        images[rows] = bank[truth[rows]] / 9 + torch.randn(5000, DIMENSION, generator=generator)
    normalize = torch.nn.functional.normalize
    return normalize(images, out=images), normalize(bank, out=bank), truth.numpy()


def zslkit(images, bank, truth):
    """Rank, find softmax denominators and read answers, as `evaluate_stream` does."""
    from zslkit.zeroshot.answer_keys import AnswerKey
    from zslkit.zeroshot.label_spaces import from_names
    from zslkit.zeroshot.ranking import ClassBank, rank_and_total

    names = [f"class {number}" for number in range(CLASSES)]
    key = AnswerKey(from_names("benchmark", names, "invented"))
    ranked = [
        rank_and_total(images[start : start + 4096], ClassBank(bank, names), max(KS), 20.0)[1]
        for start in range(0, IMAGES, 4096)
    ]
    places = key.first_right(torch.cat(ranked), np.arange(IMAGES), truth, "strict")
    return [float((places < k).mean()) for k in KS]


def bare(images, bank, truth):
    """Only the chunked matrix product and top-k, as one writes it down."""
    best = [(images[s : s + 256] @ bank.T).topk(max(KS), dim=1).indices
            for s in range(0, IMAGES, 256)]  # fmt: skip
    return _hits(torch.cat(best), truth)


def bare_in_place(images, bank, truth):
    """Write it into memory that is asked for once: the fastest bare product that we know."""
    scores, best = torch.empty(256, CLASSES), torch.empty(IMAGES, max(KS), dtype=torch.int64)
    for start in range(0, IMAGES, 256):
        rows = images[start : start + 256]
        block = torch.mm(rows, bank.T, out=scores[: len(rows)])
        best[start : start + 256] = block.topk(max(KS), dim=1).indices
    return _hits(best, truth)


def _hits(best, truth):
    right = best.numpy() == truth[:, None]
    return [float(right[:, :k].any(axis=1).mean()) for k in KS]


def scikit_learn(images, bank, truth):
    """Ask NearestNeighbors once for each k."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(metric="cosine", algorithm="brute").fit(bank.numpy())
    hits = []
    for k in KS:
        found = model.kneighbors(images.numpy(), n_neighbors=k, return_distance=False)
        hits.append(float((found == truth[:, None]).any(axis=1).mean()))
    return hits


CONTENDERS = {
    "zslkit": zslkit,
    "bare": bare,
    "bare, in place": bare_in_place,
    "scikit-learn": scikit_learn,
}


def contend(name):
    """Run one contender here and print what it took."""
    images, bank, truth = embeddings()
    before = time.perf_counter()
    hits = CONTENDERS[name](images, bank, truth)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(json.dumps({"seconds": seconds, "peak_mb": peak * 1.048576, "hits": hits}))


def main():
    """Run all contenders in turn and write the table."""
    runs = {name: [] for name in CONTENDERS}
    for number in range(ROUNDS):
        for name in CONTENDERS:
            if number and name == "scikit-learn":  # minutes: once is enough for its ratio
                continue
            done = subprocess.run(
                [sys.executable, __file__, name], capture_output=True, text=True, check=True
            )
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[name][-1], flush=True)
    seconds = {name: statistics.median(run["seconds"] for run in runs[name]) for name in runs}
    results = {
        "what": f"{IMAGES} image embeddings, {CLASSES} classes, {DIMENSION} dimensions, float32; "
        f"hit@{KS}; medians of {ROUNDS} processes, scikit-learn {len(runs['scikit-learn'])}",
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "all seconds": {n: [round(r["seconds"], 1) for r in done] for n, done in runs.items()},
        "peak_mb": {name: round(max(r["peak_mb"] for r in runs[name])) for name in runs},
        "hits": {name: runs[name][0]["hits"] for name in runs},
        "ratio": {
            "zslkit / bare": round(seconds["zslkit"] / seconds["bare"], 2),
            "zslkit / bare, in place": round(seconds["zslkit"] / seconds["bare, in place"], 2),
            "scikit-learn / zslkit": round(seconds["scikit-learn"] / seconds["zslkit"], 1),
        },
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["ratio"], indent=2))


if __name__ == "__main__":
    contend(sys.argv[1]) if len(sys.argv) > 1 else main()
