"""The objective in blocks against the written-out one: memory, time and gradients.

Run ``python benchmarks/blocks.py`` on Linux; writes a results file. Each kind is computed in turns
by both, forward and backward, one thread. Time is the process's own (other work on the machine
does not count); memory is the highest resident size above that before the call. Gradients are
compared with the formulas written out here in float64: those of the blocks in float32 and in
float64, and in float32 those of the written-out objective, whose own rounding stands beside.
Options: pairs, rounds, kinds, another output; ``--large 65536`` adds one run of the blocks alone in
a batch of that size, and its peak.
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
from zslkit.report.provenance import git_state

RESULTS = Path(__file__).parent / "results" / "blocks.json"
DIMENSION = 512
INTRA_MODAL = {"image_similarity_weight": 0.3, "text_similarity_weight": 0.3}
PROGRESS = 0.4
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


def leaves_of(kind, student, dtype):
    """Give what gradients are taken of: both sides, both scales and the bias."""
    scales = (49.0, 49.0) if "paper" in kind else (20.0, 15.0)
    leaves = [side.to(dtype, copy=True) for side in student]
    leaves += [torch.tensor(value, dtype=dtype) for value in (*scales, -9.0)]
    return [leaf.requires_grad_() for leaf in leaves]


def targets_written_out(score, config):
    """Soft targets of the rows of (n, n) float64 scores."""
    n, eye = len(score), torch.eye(len(score), dtype=score.dtype)
    if config.soft_targets == "label_smoothing":
        rest = config.label_smoothing / (n - 1)
        return rest + (1 - config.label_smoothing - rest) * eye
    if config.soft_targets == "transport":
        plan = score / config.epsilon
        for _ in range(config.sinkhorn_iterations):
            plan = plan.log_softmax(1).log_softmax(0)
        return plan.softmax(1)
    soft = (score / config.teacher_temperature).softmax(1)
    if config.soft_targets == "progressive":
        share = config.trusted_start + (config.trusted_end - config.trusted_start) * PROGRESS
        trusted = soft.diagonal().sort(descending=True, stable=True).indices[: round(share * n)]
        soft[trusted] = eye[trusted]
    return soft


def written_out(kind, student, teacher):
    """Give the gradients by the formulas in float64, one direction after the other."""
    config = RunConfig(**KINDS[kind])
    image, text, scale, distillation_scale, bias = leaves = leaves_of(kind, student, torch.float64)
    own_image, own_text = (side.double() for side in teacher)
    for turned in (False, True):
        similarity = text @ image.T if turned else image @ text.T
        weight = 1.0 if config.soft_targets == "none" else config.contrastive_weight
        if config.contrastive_loss == "sigmoid":
            if turned:
                break  # one side asks all questions
            signs = 2 * torch.eye(len(image), dtype=torch.float64) - 1
            logits = signs * (scale * similarity + bias)
            loss = -torch.nn.functional.logsigmoid(logits).sum(1).mean()
        else:
            loss = -weight * (scale * similarity).log_softmax(1).diagonal().mean() / 2
        if config.soft_targets != "none":
            score = config.image_similarity_weight * own_image @ own_image.T
            score += config.text_similarity_weight * own_text @ own_text.T
            score.fill_diagonal_(0)
            cross = own_image @ own_text.T
            targets = targets_written_out(score.add_(cross.T if turned else cross), config)
            fit = (targets * (distillation_scale * similarity).log_softmax(1)).sum(1).mean() / 2
            loss = loss - (1 - weight) * fit
        loss.backward()
    return [leaf.grad for leaf in leaves]


def call(function, kind, student, teacher, dtype=torch.float32):
    """Compute forward and backward once; give seconds, MiB and the gradients."""
    config, leaves = RunConfig(**KINDS[kind]), leaves_of(kind, student, dtype)
    teacher = Embedded(*(side.to(dtype) for side in teacher))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = resident("VmRSS"), time.process_time()
    loss, _ = function(
        Embedded(*leaves[:2]), teacher, *leaves[2:4], config, PROGRESS, logit_bias=leaves[4]
    )
    loss.backward()
    seconds = time.process_time() - start
    return seconds, resident("VmHWM") - before, [leaf.grad for leaf in leaves]


def deviation(gradients, truth):
    """Give each gradient's relative deviation: norm of the difference by norm."""
    names = ("image", "text", "logit_scale", "distillation_scale", "logit_bias")
    found = {
        name: ((a.double() - b).norm() / b.norm()).item()
        for name, a, b in zip(names, gradients, truth, strict=True)
        if b is not None  # plain InfoNCE has no second scale, and only the sigmoid a bias
    }
    return {name: float(f"{value:.2g}") for name, value in found.items()}


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
    truth = written_out(kind, student, teacher)
    row["gradient_deviation_from_float64"] = {
        "blocks": deviation(found["blocks"][0][2], truth),
        "plain": deviation(found["plain"][0][2], truth),
        "blocks in float64": deviation(
            call(blockwise_loss, kind, student, teacher, torch.float64)[2], truth
        ),
    }
    for name in ("cpu_seconds", "extra_mib"):
        row[f"ratio_{name}"] = round(row["blocks"][name] / row["plain"][name], 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS])
    parser.add_argument("--large", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
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
        "code": git_state(Path(__file__).parents[1]),
    }
    kinds = results.setdefault("kinds", {})
    if options.large:
        kind = options.kinds[0] if len(options.kinds) == 1 else "teacher"
        call(blockwise_loss, kind, embedded(0, 2048), embedded(1, 2048))  # load what is needed
        seconds, _, _ = call(
            blockwise_loss, kind, embedded(0, options.large), embedded(1, options.large)
        )
        results["large"] = {
            "pairs": options.large,
            "kind": kind,
            "cpu_seconds": round(seconds, 1),
            "process_peak_mib": round(resident("VmHWM")),
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")
        print(results["large"], flush=True)
        return
    student, teacher = embedded(0, options.pairs), embedded(1, options.pairs)
    for kind in options.kinds:
        kinds[kind] = compare(kind, student, teacher, options.rounds)
        print(kind, json.dumps(kinds[kind]), flush=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
