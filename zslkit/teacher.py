"""Teachers: copies of the student's architecture that give soft targets and never train."""

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """A copy of a dual encoder, always in eval mode and without gradients.

    Parameters
    ----------
    student : DualEncoder
        Copied; tensors that do not train are shared instead, they never differ.
    kind : {"ema", "frozen", "previous"}
        How :meth:`update` treats the copy.
    decay : float
        Of the moving average, per call of :meth:`update`.
    warmup : bool
        Use the smaller decay (1 + n) / (10 + n) while it is smaller, after n updates: what is
        averaged at first is nearly the random start.
    """

    def __init__(
        self, student: nn.Module, kind: str = "ema", decay: float = 0.999, warmup: bool = False
    ):
        super().__init__()
        shared = {id(p): p for p in student.parameters() if not p.requires_grad}
        blocks = getattr(student, "frozen_blocks", ())  # their BatchNorm statistics rest too
        shared |= {id(buffer): buffer for block in blocks for buffer in block.buffers()}
        self.model = copy.deepcopy(student, memo=shared)
        self.model.requires_grad_(False)
        self.kind = kind
        self.decay, self.warmup = decay, warmup
        self.register_buffer("n_updates", torch.tensor(0))
        # A previous-generation teacher knows nothing until the first generation has ended.
        self.register_buffer("ready", torch.tensor(kind != "previous"))
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: a teacher with dropout or batch statistics teaches noise."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student after an optimizer step; only ``ema`` moves.

        Floating-point buffers (BatchNorm statistics) are averaged like the parameters, counters
        are copied.
        """
        if self.kind != "ema":
            return
        n = self.n_updates.item()
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        self.n_updates += 1
        sides = ([*model.parameters(), *model.buffers()] for model in (self.model, student))
        for own, value in zip(*sides, strict=True):
            if own is value:
                continue
            if value.is_floating_point():
                own.lerp_(value, 1 - decay)
            else:
                own.copy_(value)

    def end_generation(self, student: nn.Module) -> None:
        """Become a copy of the student at the end of a generation; only ``previous`` does.

        References
        ----------
        Furlanello et al. (2018), "Born-Again Neural Networks", arXiv:1805.04770.
        """
        if self.kind == "previous":
            self.model.load_state_dict(student.state_dict())
            self.ready.fill_(True)
