"""Bring numbers from a device, together: each reading waits until the device is done."""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from zslkit.training import dist


def numbers(tensors: Mapping[str, Tensor], of_all: bool = False) -> dict[str, float]:
    """Read tensors of shape () as numbers, in one transfer.

    Parameters
    ----------
    tensors : mapping of str to Tensor of shape ()
        On one device.
    of_all : bool
        Means over all processes, each of which must call this: a loss is that of own rows.

    Returns
    -------
    dict of str to float
        Under the same names; float32 values as they are.
    """
    if not tensors:
        return {}
    values = torch.stack([tensor.detach().double() for tensor in tensors.values()])
    if of_all and dist.world_size() > 1:
        torch.distributed.all_reduce(values)
        values /= dist.world_size()
    return dict(zip(tensors, values.tolist(), strict=True))
