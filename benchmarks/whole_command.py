"""The sentence of README on Flickr8k, as typed: cold, then warm; and the command line, warm.

``python benchmarks/whole_command.py cold warm command --data-root FOLDER --cache-dir EMPTY`` runs
what it is asked for, each in a new process in a folder of its own, from the start of Python to
``results.json``. *cold* is the sentence with neither features nor an index of the shards, once;
*warm* is the same again, three times; *command* is ``python -m zslkit train``, three times. The
results file keeps what was measured before of what is not asked for.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zslkit.data.files import write_json
from zslkit.report.provenance import git_state, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "whole_command.json"
STATE = git_state(ROOT)  # before the results file changes
NOTEBOOK = (
    "papermill notebooks/03_train.ipynb out.ipynb -p preset laptop -p manifest flickr8k "
    "-p data_root DATA"
)
COMMAND = "python -m zslkit train --preset laptop --manifest flickr8k --data-root DATA"
KINDS = {"cold": (NOTEBOOK, 1), "warm": (NOTEBOOK, 3), "command": (COMMAND, 3)}


def run(sentence, data_root, cache):
    """Type one sentence in a new folder; give seconds and the figures of its results."""
    with tempfile.TemporaryDirectory(prefix="whole-command-") as place:
        folder = Path(place)
        for name in ("notebooks", "data_manifests"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "reports").mkdir()
        (folder / "reports" / "cache").symlink_to(cache / "features")
        words = shlex.split(sentence.replace("DATA", shlex.quote(str(data_root))))
        words = words[2:] if words[0] == "python" else words
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache / "user")}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{sentence}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (path,) = folder.glob("reports/*/results.json")
        metrics = json.loads(path.read_text("utf-8"))["metrics"]
    recall = metrics["retrieval"]["text_to_image"]
    cpu = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    figures = {name: round(recall[name]["value"], 4) for name in ("recall@1", "recall@10")}
    figures["hit@1"] = round(metrics["zeroshot"]["hit@1"]["value"], 4)
    return {"wall": round(wall, 1), "cpu": round(cpu, 1)} | figures


def main():
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="+", choices=list(KINDS))
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    args = parser.parse_args()
    cache = args.cache_dir.resolve()
    for part in ("features", "user"):
        (cache / part).mkdir(parents=True, exist_ok=True)
    if "cold" in args.kinds and any((cache / "features").iterdir()):
        sys.exit(f"{cache}/features holds something: a cold run needs a new --cache-dir")
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for kind in args.kinds:
        sentence, times = KINDS[kind]
        runs = []
        for _ in range(times):
            runs.append(run(sentence, args.data_root.resolve(), cache))
            print(kind, runs[-1], flush=True)
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        found[kind] = {"sentence": sentence, "runs": runs, "threads": threads, **STATE}
        found["machine"] = machine()
        found["note"] = "seconds of a machine that others used too: cpu is of all processes"
        write_json(RESULTS, found)  # a cold run takes long: what is known stays


if __name__ == "__main__":
    main()
