"""Several processes, one batch: gather embeddings with gradients, average parameter gradients.

Start with ``torchrun --nproc-per-node N -m zslkit train``; one process needs none of this.
"""

import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 1 << 22  # numbers in an exchange of gradients: 16 MB of float32


def start(device: torch.device) -> None:
    """Join the process group that torchrun announces in the environment, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda" and device.index is None:  # one device for each process
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    """Give this process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Give the number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every process's loss depends on our rows: their gradients add up before we keep ours.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather(local: Tensor) -> Tensor:
    """Stack every process's (B, D) rows to (world_size * B, D), gradients included."""
    return _Gather.apply(local) if world_size() > 1 else local


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over processes.

    With :func:`gather`'s summed backward this is the gradient of the mean loss, no more by a
    factor of the world size. Gradients travel in buckets, a bucket while the next one is packed.
    torch's DistributedDataParallel starts its exchanges during a backward pass and expects one
    pass for each step; a batch in chunks has several, and every pass exchanges embeddings and
    BatchNorm's moments itself.
    """
    if world_size() == 1:
        return
    waiting = []
    for bucket in _buckets(parameters):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        waiting.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, exchange in waiting:
        exchange.wait()
        parts = (flat / world_size()).split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients of one type up to some megabytes: small exchanges wait for each other."""
    bucket, size = [], 0
    for parameter in parameters:
        if parameter.grad is None:  # every process must take part in every exchange
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (size > _BUCKET or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter.grad)
        size += parameter.numel()
    if bucket:
        yield bucket


def smallest(count: int) -> int:
    """Give the smallest of all processes' counts: a gather needs equal ones."""
    if world_size() == 1:
        return count
    counts = torch.tensor(count)
    dist.all_reduce(counts, dist.ReduceOp.MIN)
    return int(counts)


def any_process(flag: bool) -> bool:
    """Tell whether any process raised a flag: all must leave the loop together."""
    return smallest(int(not flag)) == 0
