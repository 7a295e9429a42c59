"""``make faults``: put every fault of ``tests/faults`` into runs, hundreds of times.

Prints fault | tried | survived | equal and writes ``benchmarks/results/faults.json`` after every
try, so that a run of it that was itself killed goes on from there.
"""

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
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if found.get("code") != SOURCES or "--fresh" in sys.argv:
        found = {"code": SOURCES, **git_state(Path(__file__).parents[1]), "faults": {}}
    found |= {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        for words, (function, wanted) in SCENARIOS.items():
            row = found["faults"].setdefault(words, dict.fromkeys(FIGURES, 0))
            while row["tried"] < wanted:
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
            print(f"{words:50} | {row['tried']} | {row['survived']} | {row['equal']}", flush=True)


FIGURES = ("tries", "tried", "survived", "equal", "seconds", "cpu_seconds")

if __name__ == "__main__":
    main()
