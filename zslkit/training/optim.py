"""Optimizer, learning rate and clipping."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zslkit.config import OptimisationSettings


def build_optimizer(model: nn.Module, config: OptimisationSettings) -> torch.optim.Optimizer:
    """Build AdamW or SGD; norms, biases and scales (fewer than two dimensions) do not decay."""
    groups = [
        {"params": [p for p in trainable(model) if p.dim() > 1]},
        {"params": [p for p in trainable(model) if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one pass over the weights
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def learning_rate_at(step: int, total_steps: int, config: OptimisationSettings) -> float:
    """Give the learning rate of an optimizer step: linear warm-up, then cosine to zero.

    References
    ----------
    Loshchilov and Hutter (2017), arXiv:1608.03983, equation 5, one cycle, per step.
    """
    warmup = min(config.warmup_steps, total_steps - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, total_steps: int, config: OptimisationSettings
) -> float:
    """Give all groups of an optimizer the learning rate of a step, and return it."""
    rate = learning_rate_at(step, total_steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float | None) -> Tensor:
    """Scale gradients down to a global norm; return the norm they had, on their device."""
    return nn.utils.clip_grad_norm_(list(parameters), largest or math.inf)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that training changes."""
    return [p for p in model.parameters() if p.requires_grad]
