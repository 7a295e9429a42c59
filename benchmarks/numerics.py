"""Which settings give equal bits on processors of different makers.

``python benchmarks/numerics.py`` builds the toy report under limited capability levels of torch,
oneDNN and MKL, each with native and with portable numerics, and counts the metrics that are equal
to the bit to those of this processor without limits. Sweeps are cut to two seeds (``PLAN``), and
notebooks run one at a time, so that seconds compare. Where ``qemu-x86_64`` is installed (Debian:
qemu-user), an Intel Haswell and an AMD EPYC of the first generation that it emulates train two
steps: a report would take hours there. Every row is written when it is done, and found again.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zslkit.data.files import write_json
from zslkit.report.numerics import PORTABLE
from zslkit.report.provenance import git_state, machine, source_checksum

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "numerics.json"
LIMITS = {
    "this processor": {},
    "torch limited to AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN limited to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN limited to SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "MKL's compatible branch": {"MKL_CBWR": "COMPATIBLE"},
}
EMULATED = ("Haswell", "EPYC")
SCRIPT = """
import contextlib, hashlib, io, sys, tempfile
import zslkit as zk
changes = {"batch_size": 16, "max_steps": 2, "threads": 1, "output_dir": tempfile.mkdtemp()}
with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    run = zk.train(zk.RunConfig.preset("toy", **changes))
state = sorted(run.model.state_dict().items())
print(hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in state)).hexdigest()[:16])
"""
PLAN = {
    "04_temperature_ablation": {"parameters": {"seeds": [0, 1]}},
    "05_zero_shot_evaluation": {"after": ["03_train"]},
    "06_embedding_maps": {"after": ["03_train"]},
    "08_compare_objectives": {"parameters": {"seeds": [0, 1], "caption_noises": [0.5]}},
}
# 02 has no trained figures, and 07 none at all
REPORT = """
import json, sys
from pathlib import Path
from zslkit.report.runner import build_report
plan = json.loads(sys.argv[2])
names = ["00_quickstart", "01_data", "03_train", *plan]
paths = [Path("notebooks") / f"{name}.ipynb" for name in names]
report = build_report(paths, sys.argv[1], plan, jobs=1, portable=sys.argv[3] == "True")
sys.exit(", ".join(report.failed))
"""


def train(settings, emulator=()):
    """Checksum of the weights, and the seconds it took; an error stops the benchmark."""
    start = time.perf_counter()
    done = subprocess.run(
        [*emulator, sys.executable, "-c", SCRIPT], env={**os.environ, **settings},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {"weights": done.stdout.split()[-1], "seconds": round(time.perf_counter() - start, 1)}


def build(settings, portable):
    """Metrics of a report by notebook and name, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", REPORT, folder, json.dumps(PLAN), str(portable)],
            env={**os.environ, **settings}, capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{settings}: the report failed:\n{done.stdout}{done.stderr}")
        seconds = round(time.perf_counter() - start, 1)
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
        facts |= {"trained": {}, "report": {}}
    places = {name: (limit, ()) for name, limit in LIMITS.items()}
    if emulator := shutil.which("qemu-x86_64"):
        places |= {f"{cpu}, emulated": ({}, (emulator, "-cpu", cpu)) for cpu in EMULATED}
    for kind, hold in (("native", {}), ("portable", PORTABLE)):
        rows = facts["trained"].setdefault(kind, {})
        for name, (limit, emulate) in places.items():
            if name not in rows:
                rows[name] = train(limit | hold, emulate)
                write_json(RESULTS, facts)
            print(kind, name, rows[name], flush=True)
        facts[f"different checksums, {kind}"] = len({one["weights"] for one in rows.values()})
        rows, reference = facts["report"].setdefault(kind, {}), None
        for name, limit in LIMITS.items():
            if name in rows and reference:
                continue
            found, seconds = build(limit, kind == "portable")
            reference = reference or found
            by_notebook = compare(found, reference)
            total = {k: sum(row[k] for row in by_notebook.values()) for k in ("equal", "unequal")}
            rows[name] = {**total, "seconds": seconds, "notebooks": by_notebook}
            write_json(RESULTS, facts)
            print(kind, name, rows[name], flush=True)
    seconds = {
        kind: [r["seconds"] for r in rows.values()] for kind, rows in facts["report"].items()
    }
    medians = {kind: statistics.median(every) for kind, every in seconds.items()}
    facts["portable seconds over native"] = round(medians["portable"] / medians["native"], 2)
    write_json(RESULTS, facts)


if __name__ == "__main__":
    main()
