"""Milliseconds of the loss, forward and backward: zslkit against open_clip and POT in one run.

Needs the ``bench`` extra. Run ``python benchmarks/objective.py``; writes a results file.
"""

import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from zslkit.losses import contrastive_loss
from zslkit.targets import sinkhorn

RESULTS = Path(__file__).parent / "results" / "objective.json"
BATCH, DIMENSION, ROUNDS = 512, 768, 15


def median_ms(functions):
    """Call the functions in turn, so that a drifting machine is fair to both."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(sorted(values[2:])[ROUNDS // 2], 2) for name, values in times.items()}


def main():
    """Compare the contrastive loss with open_clip's and Sinkhorn with POT's."""
    import ot
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    sides = [torch.nn.functional.normalize(torch.randn(BATCH, DIMENSION), dim=1) for _ in "vt"]
    image, text = (side.requires_grad_() for side in sides)
    scale, peer = torch.tensor(20.0), ClipLoss()
    similarity = (image @ text.T).detach()
    marginal = np.full(BATCH, 1 / BATCH)
    score = similarity.double().numpy()
    contrastive = median_ms(
        {
            "zslkit": lambda: contrastive_loss(scale * image @ text.T).backward(),
            "open_clip": lambda: peer(image, text, scale).backward(),
        }
    )
    transport = median_ms(
        {
            "zslkit": lambda: sinkhorn(similarity, 0.15, 5),
            "POT log": lambda: ot.bregman.sinkhorn_log(
                marginal, marginal, -score, 0.15, numItermax=5, stopThr=0, warn=False
            ),
        }
    )
    results = {
        "what": f"milliseconds, batch {BATCH}, dimension {DIMENSION}, median of {ROUNDS}",
        "contrastive_loss": contrastive,
        "sinkhorn_5_iterations": transport,
        "ratio": {
            "contrastive_loss / open_clip": round(
                contrastive["zslkit"] / contrastive["open_clip"], 2
            ),
            "sinkhorn / POT log": round(transport["zslkit"] / transport["POT log"], 2),
        },
        "machine": {
            "platform": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
