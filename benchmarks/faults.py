"""``make faults``: put every fault of ``tests/faults`` into runs, hundreds of times.

Prints fault | tried | survived | equal and writes ``benchmarks/results/faults.json`` after every
try, so that a run of it that was itself killed goes on from there. Each row says which code it was
tried on; one of other code stays until it has been tried anew, which ``ARGS=--fresh`` does. Rows
that are not there come first. ``--only WORDS`` takes rows whose name holds these words, and
``--tries N`` so many tries of each, as where a machine is shared.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from scenarios import SCENARIOS, Ground

from zslkit.data.files import write_json
from zslkit.report.provenance import SOURCES, git_state

RESULTS = Path(__file__).parent / "results" / "faults.json"


def main() -> None:
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"faults": {}}
    here = {"code": SOURCES, **git_state(Path(__file__).parents[1])}
    rows, going_on = found["faults"], found.setdefault("going on", {})
    for old in [words for words in rows if words not in SCENARIOS]:
        del rows[old]  # under another name now
    for unfinished in [words for words, row in going_on.items() if row["code"] != SOURCES]:
        del going_on[unfinished]
    found |= {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--tries", type=int, default=1 << 30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        for words in sorted(SCENARIOS, key=lambda words: words in rows):
            function, wanted = SCENARIOS[words]
            if words in rows and (not options.fresh or rows[words]["code"] == SOURCES):
                continue
            if options.only not in words:
                continue
            row = going_on.setdefault(words, {**here, **dict.fromkeys(FIGURES, 0)})
            last = row["tries"] + options.tries
            while row["tried"] < wanted and row["tries"] < last:
                own = Path(folder) / f"{row['tries']}"
                own.mkdir()
                began, cpu = time.monotonic(), sum(os.times()[:4])
                outcome = function(ground, own, random.Random(f"{words} {row['tries']}"))
                for name, value in zip(("tried", "survived", "equal"), outcome, strict=True):
                    row[name] += value
                row["tries"] += 1
                row["seconds"] = round(row["seconds"] + time.monotonic() - began, 2)
                row["cpu_seconds"] = round(row["cpu_seconds"] + sum(os.times()[:4]) - cpu, 2)
                if outcome.survived < outcome.tried:
                    row.setdefault("lost_tries", []).append(row["tries"] - 1)
                write_json(RESULTS, found)
                os.system(f"rm -rf {own}")
            if row["tried"] >= wanted:
                rows[words] = going_on.pop(words)
                write_json(RESULTS, found)
            print(f"{words:50} | {row['tried']} | {row['survived']} | {row['equal']}", flush=True)


FIGURES = ("tries", "tried", "survived", "equal", "seconds", "cpu_seconds")

if __name__ == "__main__":
    main()
