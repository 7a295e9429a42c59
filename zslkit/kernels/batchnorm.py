"""BatchNorm over the batch of all processes, on any device and backend.

torch's ``SyncBatchNorm`` refuses the CPU and is a class of its own, which towers with their own
kind of BatchNorm (timm's) do not take. Here ``torch.nn.functional.batch_norm``, which all of them
call, is replaced while a tower embeds.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zslkit.training import dist


def normalises_over_batch(model: nn.Module) -> bool:
    """Tell whether a part of the model normalises by the statistics of the batch it sees."""
    kinds = nn.modules.batchnorm._BatchNorm
    return any(isinstance(part, kinds) and part.training for part in model.modules())


@contextlib.contextmanager
def synchronised() -> Iterator[None]:
    """Take BatchNorm's statistics over all processes' rows, and its gradients with them.

    Every process must run the same network. A single one computes what it always does.
    """
    if dist.world_size() == 1:
        yield
        return
    with _Synchronised():
        yield


class _Synchronised(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.batch_norm:
            return function(*args, **kwargs)
        return _batch_norm(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Give torch's function of the same name, over all processes."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, count = _moments(x.detach())
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * (count / (count - 1).clamp_min(1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    weight = mean.new_ones(len(mean)) if weight is None else weight
    bias = mean.new_zeros(len(mean)) if bias is None else bias
    return _Normalise.apply(x, weight, bias, mean, var, count, eps)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give mean and variance of each channel, (C,), over all processes, and values in each."""
    rows = x.transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(rows, dim=1, correction=0)
    count = mean.new_full((1,), rows.shape[1])
    # means and variances are merged: a sum of squares would lose the digits of a small variance
    parts = [torch.empty(2 * len(mean) + 1).to(mean) for _ in range(dist.world_size())]
    torch.distributed.all_gather(parts, torch.cat([mean, var, count]))
    every = torch.stack(parts)
    means, variances = every[:, : len(mean)], every[:, len(mean) : -1]
    counts = every[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(dim=0) / count
    return mean, ((variances + (means - mean) ** 2) * counts).sum(dim=0) / count, count


class _Normalise(torch.autograd.Function):
    """Normalise by moments of all processes' rows, which all these rows moved.

    References
    ----------
    Ioffe and Szegedy (2015), "Batch Normalization", arXiv:1502.03167, section 3.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, count, eps):
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight.to(mean), bias.to(mean), False, 0.0, eps)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, var, count = ctx.saved_tensors
        shape = (1, -1) + (1,) * (x.dim() - 2)
        inverse = (var + ctx.eps).rsqrt()
        gradient_of = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        rest = [d for d in range(x.dim()) if d != 1]
        sums = torch.stack([gradient_of.sum(rest), (gradient_of * normal).sum(rest)])
        of_bias, of_weight = sums.clone()
        # every process's loss depends on the moments: what they owe comes from all rows
        torch.distributed.all_reduce(sums)
        shift, slope = (sums / count).view(2, *shape)
        of_x = (gradient_of - shift - normal * slope) * (inverse * weight.to(mean)).view(shape)
        return of_x.to(x.dtype), of_weight.to(weight), of_bias.to(weight), None, None, None, None
