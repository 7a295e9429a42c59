"""Teachers: copies of the student's architecture that give soft targets and never train."""

import copy

import torch
from torch import Tensor, nn

from zslkit.objective import Embedded
from zslkit.training.batches import TrainingBatch, encode


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
        self._sides: tuple | None = None  # a tuple, so that the student is no part of this module
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: a teacher with dropout or batch statistics teaches noise."""
        return super().train(False)

    def embed(self, batch: TrainingBatch) -> Embedded:
        """Embed the batch that the student learns from."""
        return encode(self.model, batch)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student after an optimizer step; only ``ema`` moves.

        Floating-point buffers (BatchNorm statistics) are averaged like the parameters, counters
        are copied. Tensors are listed at the first call: neither model may move to another
        device afterwards.
        """
        if self.kind != "ema":
            return
        n = self.n_updates.item()
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        self.n_updates += 1
        if self._sides is None or self._sides[0] is not student:
            self._sides = student, *self._gather(student)
        _, moving, targets, counters, counts = self._sides
        torch._foreach_lerp_(moving, targets, 1 - decay)
        for own, value in zip(counters, counts, strict=True):
            own.copy_(value)

    def _gather(self, student: nn.Module) -> list[list[Tensor]]:
        """List what moves, towards what, and counters: walking both models costs more than that."""
        sides = ([*model.parameters(), *model.buffers()] for model in (self.model, student))
        pairs = [(own, value) for own, value in zip(*sides, strict=True) if own is not value]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        return [[pair[side] for pair in kind] for kind in (floats, counts) for side in (0, 1)]

    def end_generation(self, student: nn.Module) -> None:
        """Become a copy of the student at the end of a generation; only ``previous`` does.

        References
        ----------
        Furlanello et al. (2018), "Born-Again Neural Networks", arXiv:1805.04770.
        """
        if self.kind == "previous":
            self.model.load_state_dict(student.state_dict())
            self.ready.fill_(True)
