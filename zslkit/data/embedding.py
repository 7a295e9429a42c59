"""Images → vectors, and the one policy for images that cannot be read.

They are left out and named, never replaced and never fatal by themselves; whoever reports on the
rest holds their number against a limit with :func:`~zslkit.data.sampling.check_broken`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.data.images import BrokenImageError, decode_image
from zslkit.data.sampling import read_batches


class ImageVectors(NamedTuple):
    """What became of one batch of images."""

    rows: np.ndarray
    """(n,) int64, positions of the images that could be read."""
    vectors: Tensor | None
    """(n, F) on the device; None where no image of the batch could be read."""
    broken: tuple[str, ...]
    """Keys of the others."""


def embed_batches(
    encode: Callable[[Tensor], Tensor],
    images: Sequence,
    batches: Sequence[np.ndarray],
    *,
    transform: Callable[[Any], Tensor],
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[ImageVectors]:
    """Read, transform and embed batches of images, leaving out those that cannot be read.

    Parameters
    ----------
    encode : callable
        (n, 3, S, S) uint8 on ``device`` → (n, F): a tower, or ``DualEncoder.encode_image``.
    images : Pairs or Photos
        Where the batches' positions point.
    batches : sequence of ndarray of int64
        Positions of the images that pass the encoder together.
    transform : callable
        An image → (3, S, S) uint8.
    workers : int
        Processes that read and transform.
    """
    for batch in read_batches(images, batches, transform, workers):
        vectors = encode(batch.pixels.to(device)) if len(batch.indices) else None
        yield ImageVectors(batch.indices.numpy(), vectors, tuple(batch.broken))


def readable_pairs(pairs: Sequence, rows: Iterable[int]) -> list:
    """Give those of some pairs whose image can be read, to be looked at."""

    def is_readable(pair: Any) -> bool:
        try:
            return pair.pixels is not None  # kept by the pair
        except BrokenImageError:
            return False

    return [pair for pair in (pairs[row] for row in rows) if is_readable(pair)]


def in_blocks(n: int, size: int) -> list[np.ndarray]:
    """Cut the positions 0 … n − 1 into blocks of at most ``size``."""
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


@dataclass(frozen=True)
class Photos:
    """Images at hand, to be read like those of ``Pairs``.

    Parameters
    ----------
    images : sequence
        PIL images, uint8 tensors of shape (3, H, W), or paths of files.
    """

    images: Sequence

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def keys(self) -> list[str]:
        """Names: the path of a file, otherwise the number in the list."""
        named = (isinstance(image, str | Path) for image in self.images)
        names = enumerate(zip(self.images, named, strict=True))
        return [str(image) if is_file else f"image {i}" for i, (image, is_file) in names]

    @property
    def captions(self) -> list[tuple[str]]:
        """An empty caption for each."""
        return [("",)] * len(self)

    def read_pixels(self, i: int) -> Any:
        """Decode the file ``i``, or give the image as it is; see :meth:`Pairs.read_pixels`."""
        image = self.images[i]
        if not isinstance(image, str | Path):
            return image
        try:
            return decode_image(Path(image).read_bytes(), f"{image}: ")
        except OSError as error:
            raise BrokenImageError(f"{image}: {error}") from error
