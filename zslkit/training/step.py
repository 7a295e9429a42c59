"""One step: embed a batch, whole or in chunks, and carry the loss's gradients back."""

from contextlib import nullcontext

import torch

from zslkit.config import RunConfig
from zslkit.encoders.dual import DualEncoder
from zslkit.kernels.batchnorm import normalises_over_batch, synchronised
from zslkit.kernels.blockwise import blockwise_loss, fits
from zslkit.kernels.recompute import recomputing
from zslkit.objective import Embedded, training_loss
from zslkit.teacher import Teacher
from zslkit.training import dist
from zslkit.training.batches import TrainingBatch, encode
from zslkit.training.device import autocast


def backward(
    model: DualEncoder,
    teacher: Teacher | None,
    batch: TrainingBatch,
    config: RunConfig,
    progress: float,
    trust: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add the gradients of one batch to the parameters; return the loss and its terms.

    These stay on the device: to read one is to wait for it.

    With ``accumulation`` above 1 the batch is embedded in chunks without gradients, the loss of
    the whole batch gives the gradient of each embedding, and each chunk is embedded again to
    carry it on. Only one chunk's activations are in memory, every negative counts, and the
    scales get their gradient once. Random numbers repeat. A model that normalises over the batch
    is embedded whole, over all processes, and makes its blocks' activations again instead.

    References
    ----------
    Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup", arXiv:2101.06983.
    """
    batch, device = batch[: dist.smallest(len(batch))], batch.images.device
    trust = None if trust is None else trust[: len(batch)]
    guide = None
    if teacher is not None and teacher.ready:
        with torch.no_grad(), autocast(config, device):
            guide = teacher.embed(batch)
    scales = model.logit_scale, model.distillation_scale
    bias = getattr(model, "logit_bias", None)
    size = -(-len(batch) // config.accumulation)
    # exact either way; below some thousand pairs the written-out matrices are small and quicker
    objective = blockwise_loss if fits(config, len(batch)) else training_loss
    chunks = [batch[start : start + size] for start in range(0, len(batch), size)]
    if len(chunks) == 1 or normalises_over_batch(model):
        with nullcontext() if len(chunks) == 1 else recomputing(model):
            with autocast(config, device), synchronised():
                student = encode(model, batch)
            loss, terms = objective(student, guide, *scales, config, progress, trust, bias)
            loss.backward()
        return loss.detach(), terms

    seeds = torch.randint(2**62, (len(chunks),)).tolist()

    def encode_chunk(chunk: TrainingBatch, seed: int) -> Embedded:
        """Embed one chunk with random numbers of its own, the same at every call."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with autocast(config, device):
                return encode(model, chunk)

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        parts = [encode_chunk(*chunk) for chunk in zip(chunks, seeds, strict=True)]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    whole = Embedded(*(torch.cat(side).requires_grad_() for side in zip(*parts, strict=True)))
    loss, terms = objective(whole, guide, *scales, config, progress, trust, bias)
    loss.backward()
    gradients = zip(*(side.grad.split(size) for side in whole), strict=True)
    for chunk, seed, gradient in zip(chunks, seeds, gradients, strict=True):
        torch.autograd.backward(list(encode_chunk(chunk, seed)), list(gradient))
    return loss.detach(), terms
