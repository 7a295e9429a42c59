"""What one process computes for all."""

from collections.abc import Callable

import torch
import torch.distributed
from torch import Tensor

from zslkit.training import dist


def computed_once(compute: Callable[[], Tensor]) -> Tensor:
    """Compute in the first process and give the result to all.

    Parameters
    ----------
    compute : callable
        Gives a float32 Tensor of any shape on the CPU; called in the first process only, so it
        must not wait for the others.

    Raises
    ------
    RuntimeError
        In the other processes, if the first one failed.
    """
    if dist.world_size() == 1:
        return compute()
    result, error, shape = None, None, torch.full((8,), -1)
    if dist.rank() == 0:
        try:
            result = compute().clone()  # not one of inference mode, which cannot be sent
            shape[: result.dim()] = torch.tensor(result.shape)
            shape[-1] = result.dim()
        except Exception as problem:  # the others wait: they must hear of it first
            error = problem
    torch.distributed.broadcast(shape, 0)
    if error is not None:
        raise error
    if shape[-1] < 0:
        raise RuntimeError("see the error of process 0")
    if result is None:
        result = torch.empty(shape[: int(shape[-1])].tolist())
    torch.distributed.broadcast(result, 0)
    return result
