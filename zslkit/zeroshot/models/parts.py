"""What a public contrastive model is taken apart into: two towers and their preprocessing.

Dimensions: B = images or texts, D = embedding, S = side of the square in pixels.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zslkit.data.images import to_pil


class Parts(NamedTuple):
    """What a checkpoint is taken apart into."""

    image: "PretrainedImageTower"
    text: "PretrainedTextTower"
    log_logit_scale: Tensor
    logit_bias: Tensor | None
    source: Any
    """The library's own model and what goes with it, for those who want to compare."""


class PretrainedImageTower(nn.Module):
    """The image half of a checkpoint; ``forward`` gives (B, D) embeddings, not normalised."""

    def __init__(self, name: str, net: nn.Module, transform: "LibraryTransform", files: Any = None):
        super().__init__()
        self.files = files
        self.name, self.net, self.transform = name, net, transform
        with torch.no_grad():
            size = transform.size
            self.feature_dim = net.eval()(torch.zeros(1, 3, size, size)).shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) normalised pixels, or uint8 ones of the right size, to (B, D)."""
        return self.net(self.normalise(pixels))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels; floats pass unchanged."""
        return self.transform.normalise(pixels)

    def image_transform(self, train: bool) -> "LibraryTransform":
        """Give the checkpoint's preprocessing, or a random crop to the same pixels."""
        return self.transform.of(train)


class PretrainedTextTower(nn.Module):
    """The text half of a checkpoint with its tokenizer."""

    def __init__(self, name: str, net: nn.Module, tokenizer: Callable, feature_dim: int):
        super().__init__()
        self.name, self.net, self.tokenizer, self.feature_dim = name, net, tokenizer, feature_dim

    def forward(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, D) embeddings, not normalised."""
        return self.net(self.tokenizer(list(texts)).to(next(self.net.parameters()).device))


class LibraryTransform:
    """A library's own preprocessing of an image for evaluation, and a random crop for training.

    Parameters
    ----------
    process : callable
        PIL image → float (3, S, S), normalised.
    size : int
        S in pixels.
    mean, std : sequence of 3 floats
        Of pixels in [0, 1].
    facts : mapping
        JSON that says all of this; it keys caches.
    """

    def __init__(self, process: Callable, size: int, mean, std, facts: Any, train: bool = False):
        self.process, self.size, self.train, self.facts = process, size, train, facts
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def key(self) -> str:
        """Text that differs where pixels would."""
        return json.dumps(self.facts, sort_keys=True, default=str)

    def of(self, train: bool) -> "LibraryTransform":
        """Give the twin for training or for evaluation."""
        args = (self.process, self.size, self.mean, self.std, self.facts)
        return LibraryTransform(*args, train)

    def __call__(self, image: Any) -> Tensor:
        """Map a PIL image or uint8 (3, H, W) tensor to float (3, S, S)."""
        if not self.train:
            image = to_pil(image) if isinstance(image, Tensor) else image
            return self.process(image.convert("RGB"))
        from torchvision.transforms import v2

        options = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
        crop = v2.RandomResizedCrop(self.size, scale=(0.5, 1.0), **options)
        steps = v2.Compose([v2.RGB(), v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])
        return self.normalise(steps(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels; floats are taken as normalised already."""
        if pixels.is_floating_point():
            return pixels
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in self._statistics)
        return (pixels / 255 - mean) / std

    def picture(self, pixels: Tensor) -> Tensor:
        """Undo the normalisation: uint8 (3, S, S) to look at."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in self._statistics)
        return ((pixels * std + mean) * 255).round().clamp(0, 255).byte()

    @property
    def _statistics(self) -> tuple:
        return self.mean, self.std


def side_of(size: Any) -> int:
    """Give the side of a square whose size is a number or a pair."""
    return int(size if isinstance(size, int) else size[0])


def first_line(error: BaseException) -> str:
    """Give the first line of an error's words, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
