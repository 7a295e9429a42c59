"""Which settings give equal bits on processors of different makers.

``python benchmarks/numerics.py`` trains two steps of the toy preset under limited capability levels
of torch, oneDNN and MKL and, where ``qemu-x86_64`` is installed (Debian: qemu-user), on an Intel
Haswell and an AMD EPYC of the first generation that it emulates; each with native and with
portable numerics. Writes a results file: a checksum of the trained weights for each.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from zslkit.report.numerics import PORTABLE
from zslkit.report.provenance import machine

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


def train(settings, emulator=()):
    """Checksum of the weights, and the seconds it took; an error stops the benchmark."""
    start = time.perf_counter()
    done = subprocess.run(
        [*emulator, sys.executable, "-c", SCRIPT], env={**os.environ, **settings},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {"weights": done.stdout.split()[-1], "seconds": round(time.perf_counter() - start, 1)}


def main():
    """Run everything, one after the other."""
    places = {name: (limit, ()) for name, limit in LIMITS.items()}
    if emulator := shutil.which("qemu-x86_64"):
        places |= {f"{cpu}, emulated": ({}, (emulator, "-cpu", cpu)) for cpu in EMULATED}
    found = {"native": {}, "portable": {}}
    for name, (limit, emulate) in places.items():
        for kind, settings in (("native", limit), ("portable", limit | PORTABLE)):
            found[kind][name] = train(settings, emulate)
            print(kind, name, found[kind][name], flush=True)
    different = {k: len({one["weights"] for one in v.values()}) for k, v in found.items()}
    facts = {"different checksums": different, **found, "machine": machine()}
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
