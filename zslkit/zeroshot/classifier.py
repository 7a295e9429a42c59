"""Name what images show among given classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zslkit.data.embedding import Photos, embed_batches, in_blocks
from zslkit.data.sampling import check_broken
from zslkit.data.showing import Shown
from zslkit.zeroshot.class_bank import build_class_bank, eval_mode
from zslkit.zeroshot.models.protocol import as_model
from zslkit.zeroshot.ranking import ClassBank, class_probabilities, rank_classes


class Prediction(NamedTuple):
    """A class, its cosine similarity, and its softmax probability over all C classes."""

    class_name: str
    similarity: float
    probability: float


class ZeroShotClassifier(Shown):
    """Name what photos show, among classes given as words (see :func:`build_class_bank`).

    Parameters
    ----------
    model : Run, or anything with the four names of a ``ZeroShotModel``
        What looks and reads.
    class_names : sequence of C str, optional
        None twice; without them the classes that the model was saved with.
    templates : str or sequence of str, optional
        Without them those that the model was trained with, else ``simple``.
    threshold : float in [0, 1]
        A photo whose best class is less probable is left unnamed.

    Attributes
    ----------
    classes_ : ndarray of C str
        In the order of the columns of :meth:`predict_proba`.
    logit_scale : float
        Multiplies similarities before the softmax: the model's own until :meth:`calibrate`.

    Raises
    ------
    ValueError
        If there are no classes, the model lacks one of the four names, or the threshold is no
        probability.
    """

    def __init__(
        self,
        model: Any,
        class_names: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        threshold: float = 0.0,
    ):
        if not hasattr(getattr(model, "model", model), "logit_scale"):
            raise ValueError(f"{type(model).__name__} has no logit_scale, so no probabilities")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a probability, from 0 to 1")
        self.model, self.threshold = as_model(model), threshold
        config = getattr(self.model, "config", None)
        self.templates = templates or getattr(config, "prompt_templates", "simple")
        if class_names is None:
            self.bank = getattr(self.model, "class_bank", None)
            if self.bank is None:
                raise ValueError("class_names=None: this model was saved without classes")
        else:
            self.bank = build_class_bank(self.model, class_names, self.templates)
        self.logit_scale = torch.as_tensor(self.model.logit_scale).detach().item()

    @property
    def classes_(self) -> np.ndarray:
        """Names of the classes."""
        return np.array(self.bank.class_names)

    def add_classes(self, class_names: Sequence[str]) -> "ZeroShotClassifier":
        """Add classes behind those there are; only they pass the text encoder."""
        if known := [name for name in class_names if name in self.bank.class_names]:
            raise ValueError(f"class_names: {', '.join(known[:10])} are there already")
        new = build_class_bank(self.model, class_names, self.templates)
        embeddings = torch.cat([self.bank.embeddings, new.embeddings])
        self.bank = ClassBank(embeddings, (*self.bank.class_names, *new.class_names))
        return self

    def remove_classes(self, class_names: Sequence[str]) -> "ZeroShotClassifier":
        """Remove classes; at least one must stay."""
        names = self.bank.class_names
        if unknown := [name for name in class_names if name not in names]:
            raise ValueError(f"class_names: {', '.join(unknown[:10])} are not among the classes")
        kept = [i for i, name in enumerate(names) if name not in set(class_names)]
        if not kept:
            raise ValueError("class_names: none would be left; at least one class must stay")
        self.bank = ClassBank(self.bank.embeddings[kept], tuple(names[i] for i in kept))
        return self

    def _facts(self) -> dict[str, object]:
        return {"model": type(self.model).__name__, **self.bank._facts()}

    def predict(
        self, images: Any, k: int = 5, batch_size: int = 64, max_unreadable: float = 0.0
    ) -> list:
        """Give the k best classes of each image, best first.

        Parameters
        ----------
        images : image, or sequence of images
            A path, a PIL image, an (H, W, 3) or (H, W) array or a (3, H, W) tensor of uint8; or
            many of these.
        k : int
            Classes for each image; all, if there are fewer.
        max_unreadable : float
            Share of the images that may be unreadable; each of these gets no prediction, ``[]``.

        Returns
        -------
        list of Prediction, or list of these lists
            For one image, or for many. Empty where the best class stays below ``threshold``.

        Raises
        ------
        ValueError
            If more are unreadable, by name.
        """
        names, many = self.bank.class_names, not _is_image(images)
        images = images if many else [images]
        results: list[list[Prediction]] = [[] for _ in images]
        for rows, embeddings in self._embedded(images, batch_size, max_unreadable):
            scores, indices = rank_classes(embeddings, self.bank, min(k, len(names)))
            shares = class_probabilities(embeddings, self.bank, scores, self.logit_scale)
            ranked = torch.stack([indices, scores, shares], dim=2).tolist()
            for row, best in zip(rows, ranked, strict=True):
                found = [Prediction(names[int(i)], s, p) for i, s, p in best]
                results[row] = found if found[0].probability >= self.threshold else []
        return results if many else results[0]

    def predict_proba(self, images: Any, batch_size: int = 64) -> np.ndarray:
        """Give the probability of every class: (N, C), or (C,) for one image; rows sum to 1."""
        many, scale = not _is_image(images), self.logit_scale
        rows = [
            (scale * embeddings.float().cpu() @ self.bank.embeddings.T).softmax(dim=1)
            for _, embeddings in self._embedded(images if many else [images], batch_size)
        ]
        found = torch.cat(rows).numpy() if rows else np.zeros((0, len(self.bank.class_names)))
        return found if many else found[0]

    def calibrate(self, images: Sequence, labels: Sequence[str]) -> "ZeroShotClassifier":
        """Fit ``logit_scale`` to labelled images, so that probabilities can be believed.

        Rankings stay as they are. Images must be others than those that are judged later, and
        like them.

        Parameters
        ----------
        labels : sequence of str
            The true class of each image.

        Raises
        ------
        ValueError
            For labels that are no classes, or images from which no scale can be told.

        References
        ----------
        Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv:1706.04599, 4.2.
        """
        if unknown := sorted(set(labels) - set(self.bank.class_names)):
            raise ValueError(f"labels: {', '.join(unknown[:10])} are not among the classes")
        if not len(images) or len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels; give one for each")
        embeddings = torch.cat([part.float().cpu() for _, part in self._embedded(images, 64)])
        truth = [self.bank.class_names.index(label) for label in labels]
        self.logit_scale = best_scale(embeddings @ self.bank.embeddings.T, torch.tensor(truth))
        return self

    @torch.no_grad()
    def _embedded(
        self, images: Sequence, batch_size: int, max_unreadable: float = 0.0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Give rows and (n, D) embeddings of batches of those images that can be read."""
        broken: list[str] = []
        batches = embed_batches(
            self.model.encode_image,
            Photos([_as_pixels(image) for image in images]),
            in_blocks(len(images), batch_size),
            transform=self.model.image_transform(train=False),
            device=next(self.model.parameters()).device,
        )
        with eval_mode(self.model):
            for rows, embeddings, unreadable in batches:
                broken.extend(unreadable)
                check_broken(broken, len(images), max_unreadable)
                if embeddings is not None:
                    yield rows, embeddings


def best_scale(scores: Tensor, truth: Tensor) -> float:
    """Find the scale whose softmax over (N, C) similarities fits (N,) true classes best.

    Raises
    ------
    ValueError
        If no scale between 0.01 and 10,000 is best: images that are all named right want an
        infinite one, similarities that say nothing want 0.
    """
    from scipy.optimize import brentq

    scores = scores.double()
    right = scores.gather(1, truth[:, None])[:, 0]

    def slope(scale: float) -> float:
        """Differentiate the mean negative log-likelihood, which is convex in the scale."""
        expected = ((scale * scores).softmax(dim=1) * scores).sum(dim=1)
        return (expected - right).mean().item()

    low, high = 0.01, 10_000.0
    if not slope(low) < 0 < slope(high):
        raise ValueError(
            f"no scale between 0.01 and 10,000 suits these {len(truth)} images best: their answers "
            "are all right, or say nothing; give more of them, some of which are hard"
        )
    return float(brentq(slope, low, high))


def _is_image(value: Any) -> bool:
    if isinstance(value, str | Path | Image.Image):
        return True
    dims = getattr(value, "ndim", 0)
    return dims == 3 or (dims == 2 and isinstance(value, np.ndarray))


def _as_pixels(image: Any) -> Any:
    """Turn an array into a (3, H, W) tensor; leave everything else."""
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype != np.uint8:
        raise ValueError(f"an array of {image.dtype}: give pixels as uint8, 0 to 255")
    image = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3]
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
