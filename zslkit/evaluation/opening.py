"""The first batch of a run once more, for whoever wants to compute its loss in the open."""

from typing import NamedTuple

import torch

from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.encoders.dual import DualEncoder, build_dual_encoder
from zslkit.evaluation.fitting import fit_projections
from zslkit.kernels.batchnorm import normalises_over_batch, synchronised
from zslkit.objective import Embedded
from zslkit.training.batches import TrainingBatch, TrainingData, encode
from zslkit.training.device import autocast, choose_device, repeatable


class FirstBatch(NamedTuple):
    """What the loss of the first optimizer step was computed from; B pairs, D dimensions."""

    student: Embedded
    """(B, D) each, in train mode: BatchNorm by the batch, dropout drawn as then."""
    teacher: Embedded | None
    """(B, D) each, in eval mode; None where there is no teacher, or none yet."""
    model: DualEncoder
    """The student before the step, with its scales."""
    weights: torch.Tensor | None = None
    """(B,) of each pair, with mean 1, where captions are weighed from the first step on."""


def first_batch(config: RunConfig) -> FirstBatch:
    """Build the model, read the first batch and embed both, as :func:`zslkit.train` does.

    On the CPU equal to the trainer's to the last bit. Costs one forward pass and, where a frozen
    tower has no cache, its features of all pairs. The global random state is left alone.

    References
    ----------
    The loss of it: Cheng et al. (2021), arXiv:2104.08945, equation 3.
    """
    device = choose_device(config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), repeatable(device):
        model = build_dual_encoder(config).to(device)
        data, trust = TrainingData(model, config, device), None
        if config.start != "random":
            trust = fit_projections(model, data, config).trust
        elif config.pair_trust and config.trust_judge == "held_out":
            trust = data.estimate_trust(model)
        teacher = build_teacher(model, config)
        torch.manual_seed(config.seed)  # dropout
        _, batch = next(data.stream(0, 1))
        model.train()
        with torch.no_grad(), autocast(config, device):
            guide = teacher.embed(batch) if teacher and teacher.ready else None
            student = _in_chunks(model, batch, config.accumulation)
        weights = None if trust is None else trust[batch.captions].to(device)
        weights = None if weights is None else weights / weights.mean().clamp_min(1e-6)
        return FirstBatch(student, guide, model, weights)


def _in_chunks(model: DualEncoder, batch: TrainingBatch, n: int) -> Embedded:
    """Embed a batch as a step does: whole where a tower normalises over it, else in chunks."""
    size = -(-len(batch) // n)
    chunks = [batch[start : start + size] for start in range(0, len(batch), size)]
    if len(chunks) == 1 or normalises_over_batch(model):
        with synchronised():
            return encode(model, batch)
    parts = []
    for chunk, seed in zip(chunks, torch.randint(2**62, (len(chunks),)).tolist(), strict=True):
        torch.manual_seed(seed)
        parts.append(encode(model, chunk))
    return Embedded(*(torch.cat(side) for side in zip(*parts, strict=True)))
