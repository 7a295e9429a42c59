"""What a model must offer to be measured, asked and compared here, and nothing more.

Dimensions: B = images or texts, D = embedding, S = side of the square in pixels.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@runtime_checkable
class ZeroShotModel(Protocol):
    """Four names make a model; a class of your own that has them needs no base class.

    ``DualEncoder``, what :func:`zslkit.load_model` gives and what
    :func:`zslkit.from_pretrained` gives have them too.
    """

    logit_scale: Any
    """Multiplies cosine similarities before the softmax: a number or a Tensor of shape ()."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) pixels, as ``image_transform`` gives them, to (B, D) unit vectors."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, D) unit vectors; tokenizing is the model's own affair."""

    def image_transform(self, train: bool) -> Callable[[Any], Tensor]:
        """Give the map from a PIL image or uint8 (3, H, W) tensor to (3, S, S) pixels."""


def as_model(model: Any) -> Any:
    """Take a run's model, a model of ours, or dress anything that is a :class:`ZeroShotModel`.

    Returns
    -------
    object
        With the four names and besides ``image_tower``, ``text_tower``, ``project_image`` and
        ``project_text``, as a ``DualEncoder`` has them, a Module with at least one parameter.

    Raises
    ------
    ValueError
        If names of the protocol are missing, in one sentence.
    """
    model = getattr(model, "model", model) if hasattr(model, "run_dir") else model
    if all(hasattr(model, name) for name in ("image_tower", "text_tower", "project_image")):
        return model
    names = ("encode_image", "encode_text", "image_transform", "logit_scale")
    if missing := [name for name in names if not hasattr(model, name)]:
        raise ValueError(
            f"{type(model).__name__} has no {', no '.join(missing)}: a model needs "
            "encode_image, encode_text, image_transform and logit_scale"
        )
    return Dressed(model)


class Dressed(nn.Module):
    """A user's model in the clothes of ours: each side is a tower, the projection does nothing."""

    never_trains = True

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        own = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = getattr(model, "device", None) if own is None else own.device
        # where it stands tells everybody where to send pixels
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.image_tower = Side(model, "encode_image")
        self.text_tower = Side(model, "encode_text")

    @property
    def logit_scale(self) -> Tensor:
        """The model's own, as a Tensor of shape ()."""
        return torch.as_tensor(self.model.logit_scale, dtype=torch.float32).reshape(())

    def project_image(self, features: Tensor) -> Tensor:
        """Make (B, D) vectors unit ones, float32."""
        return F.normalize(features.float(), dim=-1)

    project_text = project_image

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed images as (B, D) unit vectors."""
        return self.project_image(self.image_tower(pixels))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts as (B, D) unit vectors."""
        return self.project_text(self.text_tower(texts))

    def image_transform(self, train: bool) -> Callable[[Any], Tensor]:
        """Give the model's own."""
        return self.model.image_transform(train)


class Side(nn.Module):
    """One of the two methods of a user's model, as a tower."""

    def __init__(self, model: Any, method: str):
        super().__init__()
        self.model, self.method = model, method
        self.name = f"{type(model).__qualname__}.{method}"
        # weights that cannot be seen cannot be hashed, so nothing of theirs is kept on disk
        self.cacheable = isinstance(model, nn.Module)

    def forward(self, items: Any) -> Tensor:
        """Call the method; a ValueError says if it does not give a vector for each item."""
        found = getattr(self.model, self.method)(items)
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) != 2 or shape[0] != len(items):
            raise ValueError(
                f"{self.name} gave {'shape ' + str(shape) if shape else type(found).__name__} for "
                f"{len(items)} items; it must give a Tensor of shape ({len(items)}, D)"
            )
        return found


def cacheable(model: Any) -> bool:
    """Tell whether a model's weights can be seen, and what was made with them recognised."""
    towers = (getattr(model, f"{side}_tower", None) for side in ("image", "text"))
    return all(getattr(tower, "cacheable", True) for tower in towers)
