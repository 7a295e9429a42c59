"""Bring numbers from a device, together: each reading waits until the device is done."""

from collections.abc import Mapping

import torch
from torch import Tensor


def numbers(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Read tensors of shape () as numbers, in one transfer.

    Parameters
    ----------
    tensors : mapping of str to Tensor of shape ()
        On one device.

    Returns
    -------
    dict of str to float
        Under the same names; float32 values as they are.
    """
    if not tensors:
        return {}
    values = torch.stack([tensor.detach().double() for tensor in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))
