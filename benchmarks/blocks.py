"""The objective in blocks against the written-out one: memory, time and gradients.

Run ``python benchmarks/blocks.py`` on Linux; writes a results file. Each kind is computed in turns
by both, forward and backward, one thread. Time is the process's own (other work on the machine
does not count); memory is the highest resident size above that before the call. Options: pairs,
rounds; ``--large 65536`` adds one run of the blocks alone in a batch of that size, and its peak.
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from zslkit.config import RunConfig
from zslkit.kernels.blockwise import blockwise_loss
from zslkit.objective import Embedded, training_loss

RESULTS = Path(__file__).parent / "results" / "blocks.json"
DIMENSION = 512
INTRA_MODAL = {"image_similarity_weight": 0.3, "text_similarity_weight": 0.3}
KINDS = {
    "contrastive": {"soft_targets": "none"},
    "sigmoid": {"soft_targets": "none", "contrastive_loss": "sigmoid"},
    "label_smoothing": {"soft_targets": "label_smoothing"},
    "teacher": {"soft_targets": "teacher"},
    "teacher, scales of the paper": {"soft_targets": "teacher", "teacher_temperature": 0.01},
    "teacher, intra-modal": {"soft_targets": "teacher", **INTRA_MODAL},
    "progressive": {"soft_targets": "progressive"},
    "transport": {"soft_targets": "transport"},
}


def embedded(seed, n):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(n, DIMENSION, generator=generator) for _ in "vt")
    return Embedded(*(torch.nn.functional.normalize(side, dim=-1) for side in sides))


def resident(what):
    """Read VmRSS or VmHWM of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {what}")


def call(function, kind, student, teacher):
    """Compute forward and backward once; give seconds, MiB and the gradients."""
    config = RunConfig(**KINDS[kind])
    scales = (49.0, 49.0) if "paper" in kind else (20.0, 15.0)
    leaves = [side.clone().requires_grad_() for side in student]
    leaves += [torch.tensor(value, requires_grad=True) for value in (*scales, -9.0)]
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = resident("VmRSS"), time.process_time()
    loss, _ = function(
        Embedded(*leaves[:2]), teacher, *leaves[2:4], config, 0.4, logit_bias=leaves[4]
    )
    loss.backward()
    seconds = time.process_time() - start
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None and leaf.grad.any()]
    return seconds, resident("VmHWM") - before, grads


def compare(kind, student, teacher, rounds):
    """Call both in turns; give medians, spread and ratios."""
    found = {"plain": [], "blocks": []}
    for _ in range(rounds):
        found["plain"].append(call(training_loss, kind, student, teacher))
        found["blocks"].append(call(blockwise_loss, kind, student, teacher))
    row = {}
    for name, calls in found.items():
        seconds, memory = ([c[i] for c in calls] for i in (0, 1))
        row[name] = {
            "cpu_seconds": round(statistics.median(seconds), 2),
            "spread": [round(min(seconds), 2), round(max(seconds), 2)],
            "extra_mib": round(max(memory)),
        }
    pairs = zip(found["blocks"][0][2], found["plain"][0][2], strict=True)
    row["gradient_deviation"] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    for name in ("cpu_seconds", "extra_mib"):
        row[f"ratio_{name}"] = round(row["blocks"][name] / row["plain"][name], 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results |= {
        "what": "objective, forward and backward, float32, one thread, in turns; CPU seconds "
        "(median, lowest and highest), MiB of peak resident size above that before",
        "pairs": options.pairs,
        "dimension": DIMENSION,
        "rounds": options.rounds,
        "machine": {"platform": platform.machine(), "torch": torch.__version__.split("+")[0]},
    }
    kinds = results.setdefault("kinds", {})
    if options.large:
        call(blockwise_loss, "teacher", embedded(0, 2048), embedded(1, 2048))  # load what is needed
        seconds, _, _ = call(
            blockwise_loss, "teacher", embedded(0, options.large), embedded(1, options.large)
        )
        results["large"] = {
            "pairs": options.large,
            "kind": "teacher",
            "cpu_seconds": round(seconds, 1),
            "process_peak_mib": round(resident("VmHWM")),
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(results["large"], flush=True)
        return
    student, teacher = embedded(0, options.pairs), embedded(1, options.pairs)
    for kind in KINDS:
        kinds[kind] = compare(kind, student, teacher, options.rounds)
        print(kind, json.dumps(kinds[kind]), flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
