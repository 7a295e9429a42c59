"""Steps per second of the training loop under the ``laptop`` preset, before and now, with profiles.

Run ``python benchmarks/loop.py --before TREE`` with a checkout of the commit to compare with (``git
worktree add TREE 5267a1d``). Each tree trains in turns, in a process of its own, on random features
of the sizes that the preset's frozen towers give, so that nothing but the loop is measured: what a
warm cache leaves of a training. Times are CPU seconds of the process; wall seconds stand beside.
Writes a results file. Without ``--before`` only the present tree, printed. Options: ``--rounds``,
``--steps``, ``--threads``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "loop.json"
TREE = Path(__file__).parents[1]
PAIRS, WIDTHS = 6144, (1280, 384)  # EfficientNet-Lite2, MiniLM; images of Flickr8k's training split
LOOP = (
    """
import json, sys, time
from pathlib import Path
import numpy as np, torch
import zslkit.training.batches as batches, zslkit.trainer as trainer
from zslkit.config import RunConfig
from zslkit.data.cache import Embeddings

folder, steps, threads, profiled = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
generator = torch.Generator().manual_seed(0)
images = torch.randn(PAIRS, WIDTHS[0], generator=generator)
texts = torch.randn(5 * PAIRS, WIDTHS[1], generator=generator)
batches.tower_features = lambda model, items, config, words: Embeddings(
    images if "images" in words else texts[: len(items)], ()
)
batches.caption_features = lambda *_: (texts, np.arange(len(texts)))
words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
manifest = {"name": "many", "kind": "toy", **words, "image_size": 32}
manifest["splits"] = {"train": {"scenes": "train", "n": len(images)}}
path = Path(folder, "many.json")
path.write_text(json.dumps(manifest))
config = RunConfig.preset(
    "laptop", manifest=str(path), zeroshot_manifest=None, image_weights="none", init="random",
    cache_dir=None, epochs=1000, max_steps=steps, output_dir=folder + "/run", threads=threads,
)
marks, kinds = [], []

def mark(run, row):
    marks.append((time.process_time(), time.perf_counter()))

class Profile:
    def __call__(self, run, row):
        if row["step"] == 10:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.__enter__()
        if row["step"] == steps - 1:
            self.profile.__exit__(None, None, None)
            found = sorted(self.profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
            n = 1000 * (steps - 11)
            kinds.extend([e.key, round(e.self_cpu_time_total / n, 3), round(e.count / n * 1000, 1)]
                         for e in found[:14])

run = trainer.train(config, [Profile() if profiled else mark])
spent = {}
if marks:
    (c0, w0), (c1, w1) = marks[9], marks[-2]
    n = len(marks) - 11
    spent = {"cpu_ms": 1000 * (c1 - c0) / n, "wall_ms": 1000 * (w1 - w0) / n}
print(json.dumps(spent | {"profile": kinds, "loss": run.history[-1]["loss"]}))
""".replace("PAIRS", str(PAIRS))
    .replace("WIDTHS[0]", str(WIDTHS[0]))
    .replace("WIDTHS[1]", str(WIDTHS[1]))
)


def loop(tree, steps, threads, profiled=False):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", LOOP, folder, str(steps), str(threads), str(int(profiled))],
            env=os.environ | {"PYTHONPATH": str(tree), "TQDM_DISABLE": "1"},
            capture_output=True, text=True, cwd=folder, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def commit_of(tree):
    return subprocess.check_output(
        ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"], text=True
    ).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    trees = {"before": options.before, "now": TREE}
    trees = {name: tree for name, tree in trees.items() if tree}
    found = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            found[name].append(loop(tree, options.steps, options.threads))
    results = {
        "what": f"one step of the laptop preset's loop on random features ({PAIRS} images, batch "
        "512), milliseconds of CPU (median, lowest and highest of the rounds) and wall, and where "
        "they go: self time of operations in ms, and calls, for each step",
        "rounds": options.rounds, "steps": options.steps, "threads": options.threads,
    }  # fmt: skip
    for name, tree in trees.items():
        for kind in ("cpu_ms", "wall_ms"):
            values = [one[kind] for one in found[name]]
            results.setdefault(name, {"commit": commit_of(tree)})[kind] = {
                "median": round(statistics.median(values), 2),
                "spread": [round(min(values), 2), round(max(values), 2)],
            }
        profile = loop(tree, options.steps, options.threads, profiled=True)["profile"]
        results[name]["profile"] = {key: {"ms": ms, "calls": n} for key, ms, n in profile}
        results[name]["last_loss"] = round(found[name][-1]["loss"], 4)
    if options.before:
        for kind in ("cpu_ms", "wall_ms"):
            ratios = [a[kind] / b[kind] for a, b in zip(*found.values(), strict=True)]
            results[f"times_faster_{kind}"] = {
                "median": round(statistics.median(ratios), 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            }
    results["machine"] = {"platform": platform.machine(), "cores": os.cpu_count()}
    if options.before:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
