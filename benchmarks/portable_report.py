"""Which metrics of the toy report are equal to the bit under other capability levels.

``python benchmarks/portable_report.py`` builds the report under the limits of ``numerics.py``, with
native and with portable numerics, and counts the metrics that are equal to the bit to those of this
processor without limits. Trainings stop after 16 steps, the sweep is small and 05 asks among the
set's own classes (``PLAN``); 08 computes as 04 does. Notebooks run one at a time, and CPU seconds
are compared. Every row is written when it is done, and found again.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from numerics import LIMITS

from zslkit.data.files import write_json
from zslkit.report.provenance import git_state, machine, source_checksum

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results" / "portable_report.json"
SHORT = {"max_steps": 16}
SWEEP = SHORT | {"seeds": [0, 1]}
PLAN = {
    "00_quickstart": {"parameters": SHORT},
    "01_data": {},
    "03_train": {"parameters": SHORT},
    "04_temperature_ablation": {
        "parameters": SWEEP | {"temperatures": [0.1], "contrastive_weights": [0.2]}
    },
    "05_zero_shot_evaluation": {"parameters": {"label_spaces": ["own"]}, "after": ["03_train"]},
    "06_embedding_maps": {"after": ["03_train"]},
}
# the variables of portable numerics take the place of all other limits: these would be one run
HELD = ("this processor", "oneDNN limited to SSE4.1")
# 02 has no trained figures, and 07 none at all
REPORT = """
import json, sys
from pathlib import Path
from zslkit.report.runner import build_report
plan = json.loads(sys.argv[2])
paths = [Path("notebooks") / f"{name}.ipynb" for name in plan]
report = build_report(paths, sys.argv[1], plan, jobs=1, portable=sys.argv[3] == "True")
sys.exit(", ".join(report.failed))
"""


def build(settings, portable):
    """Metrics of a report by notebook and name, and the seconds it took: wall, and of all cores."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", REPORT, folder, json.dumps(PLAN), str(portable)],
            env={**os.environ, **settings}, capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{settings}: the report failed:\n{done.stdout}{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(used, 1)}
        found = sorted(Path(folder).glob("*/results.json"))
        metrics = {
            path.parent.name: json.loads(path.read_text("utf-8"))["metrics"] for path in found
        }
    return dict(leaves(metrics)), seconds


def leaves(tree, name=()):
    """Give (name, value) of every number and word of a tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*name, str(key)))
    else:
        yield " / ".join(name), tree


def compare(found, reference):
    """Count by notebook what is equal to the bit, and what is not."""
    if found.keys() != reference.keys():
        raise RuntimeError(f"metrics differ: {sorted(found.keys() ^ reference.keys())}")
    rows = {}
    for name, value in reference.items():
        row = rows.setdefault(name.split(" / ")[0], {"equal": 0, "unequal": 0})
        row["equal" if repr(found[name]) == repr(value) else "unequal"] += 1
    return rows


def main():
    """Run everything, one after the other."""
    facts = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if facts.get("sources") != source_checksum():
        facts = {"code": git_state(ROOT), "sources": source_checksum(), "machine": machine()}
        facts |= {"native": {}, "portable": {}}
    for kind, names in (("native", LIMITS), ("portable", HELD)):
        rows, reference = facts[kind], None
        for name in names:
            if name in rows and reference:
                continue
            found, seconds = build(LIMITS[name], kind == "portable")
            reference = reference or found
            by_notebook = compare(found, reference)
            total = {k: sum(row[k] for row in by_notebook.values()) for k in ("equal", "unequal")}
            rows[name] = {**total, **seconds, "notebooks": by_notebook}
            write_json(RESULTS, facts)
            print(kind, name, rows[name], flush=True)
    cost = {
        k: statistics.median(r["cpu_seconds"] for r in facts[k].values())
        for k in ("native", "portable")
    }
    facts["portable CPU seconds over native"] = round(cost["portable"] / cost["native"], 2)
    write_json(RESULTS, facts)


if __name__ == "__main__":
    main()
