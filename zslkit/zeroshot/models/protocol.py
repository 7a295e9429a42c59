"""What a model must offer to be measured, asked and compared here, and nothing more.

Dimensions: B = images or texts, D = embedding, S = side of the square in pixels.
"""

import inspect
import math
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


MODELS: dict[str, Callable[[str], Any]] = {}
"""Models of your own by the word before the colon of their name: functions of what stands behind
it. ``load_model``, ``teacher_run`` and whatever else takes a name then take ``WORD:ANYTHING``."""

_METHODS = {"encode_image": "pixels", "encode_text": "texts", "image_transform": "train"}


def own_model(name: Any) -> Any:
    """Make the model of a name whose first word stands in :data:`MODELS`; else give None."""
    word, colon, rest = str(name).partition(":")
    return as_model(MODELS[word](rest)) if colon and word in MODELS else None


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
        If names of the protocol are missing or are not what it says, in one sentence. What the
        methods give is checked when they are called.
    """
    model = getattr(model, "model", model) if hasattr(model, "run_dir") else model
    if all(hasattr(model, name) for name in ("image_tower", "text_tower", "project_image")):
        return model
    kind = type(model).__name__
    names = (*_METHODS, "logit_scale")
    if missing := [name for name in names if not hasattr(model, name)]:
        raise ValueError(
            f"{kind} has no {', no '.join(missing)}: a model needs "
            "encode_image, encode_text, image_transform and logit_scale"
        )
    for name, takes in _METHODS.items():
        _check_method(f"{kind}.{name}", getattr(model, name), takes)
    _scale_of(model)
    return Dressed(model)


def _check_method(name: str, method: Any, takes: str) -> None:
    if not callable(method):
        raise ValueError(f"{name}={method!r}: must be a method of {takes}")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # builtins do not tell
        return
    try:
        signature.bind(object())
    except TypeError as error:
        raise ValueError(f"{name}{signature}: must take {takes} alone ({error})") from None


def _scale_of(model: Any) -> Tensor:
    """Read a model's scale as a Tensor of shape (); a ValueError if it cannot be one."""
    value = model.logit_scale
    try:
        scale = torch.as_tensor(value, dtype=torch.float32).reshape(())
    except (TypeError, ValueError, RuntimeError):
        scale = torch.tensor(math.nan)
    if not 0 < scale.item() < math.inf:
        raise ValueError(
            f"{type(model).__name__}.logit_scale={value!r}: must be one positive number, by which "
            "cosines are multiplied before the softmax (not its logarithm)"
        )
    return scale


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
        widths: dict[str, int] = {}
        self.image_tower = Side(model, "encode_image", widths)
        self.text_tower = Side(model, "encode_text", widths)

    @property
    def logit_scale(self) -> Tensor:
        """The model's own, as a Tensor of shape ()."""
        return _scale_of(self.model)

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
        """Give the model's own, which is checked as it is used."""
        return OwnTransform(f"{type(self.model).__name__}", self.model.image_transform(train))


class OwnTransform:
    """A user's map from an image to pixels; a ValueError says what it does not give.

    Parameters
    ----------
    name : str
        Of the model's class.
    own : callable
        What its ``image_transform`` gave.
    """

    def __init__(self, name: str, own: Any):
        self.name, self.own = f"{name}.image_transform", own
        self.key = getattr(own, "key", None)  # None: what was made with it is not kept
        self.shape: tuple[int, ...] | None = None
        if not callable(own):
            raise ValueError(f"{self.name}: gave {own!r}; it must give a function of an image")

    def __call__(self, image: Any) -> Tensor:
        """Map an image to pixels of the shape that the first had."""
        found = self.own(image)
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(
                f"{self.name}: its function gave {_words(found)} for an image; it must give a "
                "Tensor of shape (3, S, S)"
            )
        if shape != (self.shape or shape):
            raise ValueError(
                f"{self.name}: its function gave shape {self.shape} and {shape}; all images must "
                "get one size, or they cannot be stacked"
            )
        self.shape = shape
        return found


class Side(nn.Module):
    """One of the two methods of a user's model, as a tower; both note how wide its vectors are."""

    def __init__(self, model: Any, method: str, widths: dict[str, int]):
        super().__init__()
        self.model, self.method, self.widths = model, method, widths
        self.name = f"{type(model).__qualname__}.{method}"
        # weights that cannot be seen cannot be hashed, so nothing of theirs is kept on disk
        self.cacheable = isinstance(model, nn.Module)

    def forward(self, items: Any) -> Tensor:
        """Call the method; a ValueError says if it does not give a vector for each item."""
        found = getattr(self.model, self.method)(items)
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        if len(shape) != 2 or shape[0] != len(items):
            raise ValueError(
                f"{self.name} gave {_words(found)} for "
                f"{len(items)} items; it must give a Tensor of shape ({len(items)}, D)"
            )
        if not found.isfinite().all():
            raise ValueError(f"{self.name} gave NaN or infinity; its vectors must be finite")
        if len(found) and not found.any():
            raise ValueError(f"{self.name} gave zeros alone; its vectors must point somewhere")
        self.widths[self.name] = shape[1]
        if len({*self.widths.values()}) > 1:
            said = " and ".join(f"{name} gives {n}" for name, n in sorted(self.widths.items()))
            raise ValueError(f"{said} dimensions; both must give vectors of one space")
        return found


def _words(found: Any) -> str:
    """Word what was given in place of a Tensor of the right shape."""
    return f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def cacheable(model: Any) -> bool:
    """Tell whether a model's weights can be seen, and what was made with them recognised."""
    towers = (getattr(model, f"{side}_tower", None) for side in ("image", "text"))
    return all(getattr(tower, "cacheable", True) for tower in towers)
