"""Embed a whole batch in less memory: blocks' activations are made again for the gradient.

Chunks of a batch cannot be embedded apart where a tower normalises over the batch: each would be
normalised by itself. Such a tower sees the whole batch and keeps only what enters its blocks.
"""

import contextlib
from collections.abc import Callable, Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from zslkit.encoders.dual import DualEncoder
from zslkit.encoders.freezing import blocks
from zslkit.kernels.batchnorm import synchronised


@contextlib.contextmanager
def recomputing(model: DualEncoder) -> Iterator[None]:
    """Keep the inputs of blocks alone; forward and backward pass both belong inside.

    References
    ----------
    Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    nets = [getattr(tower, "net", tower) for tower in (model.image_tower, model.text_tower)]
    parts = [
        part
        for net in nets
        for part in blocks(getattr(net, "body", net))
        if any(parameter.requires_grad for parameter in part.parameters())
    ]
    for part in parts:
        part.forward = _forgetful(part)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _forgetful(part: nn.Module) -> Callable:
    """Give the forward pass of a block that is made again when its gradient is asked for."""
    forward = part.forward

    def contexts() -> tuple:
        return contextlib.nullcontext(), _again(part)

    def once(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return once


@contextlib.contextmanager
def _again(part: nn.Module) -> Iterator[None]:
    """Make a forward pass again: BatchNorm's running statistics have moved already."""
    noted = [(buffer, buffer.clone()) for buffer in part.buffers()]
    try:
        with synchronised():
            yield
    finally:
        for buffer, value in noted:
            buffer.copy_(value)
