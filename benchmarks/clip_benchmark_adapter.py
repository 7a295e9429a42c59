"""Our models behind other people's interfaces, so that their tools can judge them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Prompts(list):
    """Texts that can be sent to a device, which the model's own tokenizer leaves to the model."""

    def to(self, device: Any) -> "Prompts":
        """Stay: the text tower tokenizes."""
        return self


class ClipModel(nn.Module):
    """A ``DualEncoder`` with the two methods that evaluators of CLIP models call.

    ``encode_image`` takes (B, 3, S, S) uint8 pixels, as ``image_transform(train=False)`` gives
    them; ``encode_text`` what :func:`as_clip`'s tokenizer gives. Both return (B, D) unit vectors.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval()

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed images."""
        return self.model.encode_image(pixels)

    @torch.no_grad()
    def encode_text(self, prompts: Prompts) -> Tensor:
        """Embed texts."""
        return self.model.encode_text(list(prompts))


def as_clip(model: nn.Module) -> tuple[ClipModel, Callable[[Sequence[str]], Prompts]]:
    """Give model and tokenizer as clip-benchmark's ``metrics.zeroshot_classification`` wants them.

    Its templates have ``{c}`` where ours have ``{}``; pass ``amp=False``, or it computes in half
    precision.
    """
    return ClipModel(model), Prompts
