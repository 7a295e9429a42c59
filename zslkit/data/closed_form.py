"""Ridge regression and canonical correlations of cached features, exact in one pass.

Dimensions: N = images, M = captions, F = image features, G = text features, K = dimensions kept.
All sums are float64 and take O((F + G)²) memory, however many pairs there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 8192  # images at a time: their float64 copy stays below 100 MB


class LinearMaps(NamedTuple):
    """What projects both sides: ``features @ weight.T + bias``."""

    image_weight: Tensor
    """(K, F), float64."""
    image_bias: Tensor
    """(K,)."""
    text_weight: Tensor
    """(K, G)."""
    text_bias: Tensor
    """(K,)."""

    def project_image(self, features: Tensor) -> Tensor:
        """Map (B, F) image features to (B, K) unit vectors, float32."""
        return _project(features, self.image_weight, self.image_bias)

    def project_text(self, features: Tensor) -> Tensor:
        """Map (B, G) text features to (B, K) unit vectors, float32."""
        return _project(features, self.text_weight, self.text_bias)


class Moments:
    """Weighted sums of pairs up to second order; they add, and a part can be taken out again.

    Several captions of one image are as many pairs. Features are brought to unit length first, as
    ``DualEncoder`` does.

    Parameters
    ----------
    image_dim, text_dim : int
        F and G.
    """

    def __init__(self, image_dim: int, text_dim: int):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.weight = zeros()
        self.image, self.text = zeros(image_dim), zeros(text_dim)
        self.image_image = zeros(image_dim, image_dim)
        self.text_text, self.image_text = zeros(text_dim, text_dim), zeros(image_dim, text_dim)

    def add(
        self, images: Tensor, texts: Tensor, owner: Tensor, weights: Tensor | None = None
    ) -> "Moments":
        """Take in images and their captions; returns itself.

        Parameters
        ----------
        images : Tensor of shape (N, F)
        texts : Tensor of shape (M, G)
        owner : Tensor of shape (M,), int64
            Row of each caption's image, rising.
        weights : Tensor of shape (M,), optional
            Of each pair, not negative; all 1 when not given.

        Raises
        ------
        ValueError
            For shapes that do not fit, an owner out of range or order, or negative weights.
        """
        weights = torch.ones(len(texts)) if weights is None else weights
        _check(images, texts, owner, weights, self)
        for rows, captions in _blocks(owner, len(images)):
            # an image's captions enter as their weighted sum: F² work for images, not captions
            v, w = _unit(images[rows]), weights[captions].double()
            t, own = _unit(texts[captions]), owner[captions] - rows.start
            mass = torch.zeros(len(v), dtype=w.dtype).index_add_(0, own, w)
            weighted = w[:, None] * t
            sums = torch.zeros(len(v), t.shape[1], dtype=w.dtype).index_add_(0, own, weighted)
            self.weight += w.sum()
            self.image += mass @ v
            self.text += weighted.sum(dim=0)
            self.image_image += (v * mass[:, None]).T @ v
            self.text_text += weighted.T @ t
            self.image_text += v.T @ sums
        return self

    def __add__(self, other: "Moments") -> "Moments":
        return self._with(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        return self._with(other, -1)

    def _with(self, other: "Moments", sign: int) -> "Moments":
        both = Moments(len(self.image), len(self.text))
        both.__dict__ = {name: part + sign * vars(other)[name] for name, part in vars(self).items()}
        return both


class Spectra:
    """Eigenvectors of both covariances and the cross-covariance between them.

    Found once; each penalty is then tried in a fraction of the time.

    Parameters
    ----------
    moments : Moments
        Of at least two pairs.

    Raises
    ------
    ValueError
        If the pairs weigh nothing, or all are equal on one side.
    """

    def __init__(self, moments: Moments):
        if not moments.weight > 0:
            raise ValueError(
                f"the pairs weigh {moments.weight:g} in all: there is nothing to fit; give pairs, "
                "and weights above 0"
            )
        self.means = moments.image / moments.weight, moments.text / moments.weight
        x, y = self.means
        sides = (moments.image_image, x), (moments.text_text, y)
        found = [
            torch.linalg.eigh(square / moments.weight - torch.outer(mean, mean))
            for square, mean in sides
        ]
        self.values = [values.clamp_min(0) for values, _ in found]
        self.vectors = [vectors for _, vectors in found]
        for side, values in zip(("image", "text"), self.values, strict=True):
            if not values.mean() > 1e-12:
                raise ValueError(f"all {side} features are equal: there is nothing to fit")
        cross = moments.image_text / moments.weight - torch.outer(x, y)
        self.cross = self.vectors[0].T @ cross @ self.vectors[1]

    def ridge(self, penalty: float, text_penalty: float | None = None) -> LinearMaps:
        """Regress the text features on those of images; the text side is left as it is.

        Parameters
        ----------
        penalty : float
            Of the image side, in units of its mean variance; scikit-learn's ``alpha`` is it
            times the number of pairs times that variance.
        text_penalty : float, optional
            Regress on partly whitened text features (covariance + penalty)^(-1/2) instead.

        Returns
        -------
        LinearMaps
            K = G.
        """
        image, text = self._shrunk(penalty, text_penalty)
        scale = torch.ones_like(text) if text_penalty is None else text**-0.5
        return self._maps(self.cross / image[:, None] * scale, torch.diag(scale))

    def cca(
        self, penalty: float, text_penalty: float, power: float = 1.0, k: int | None = None
    ) -> LinearMaps:
        """Find the directions that correlate most, weighted by how much they do.

        Parameters
        ----------
        penalty, text_penalty : float
            Added to the covariance before it is whitened, in units of its mean variance: the
            larger, the less is whitened.
        power : float
            Each direction counts by its correlation to this power; 0 is plain CCA.
        k : int, optional
            Directions kept; all by default.

        Returns
        -------
        LinearMaps
            Directions in falling order of correlation.

        References
        ----------
        Hardoon, Szedmak and Shawe-Taylor (2004), "Canonical correlation analysis: an overview
        with application to learning methods", section 2 and, for the penalty, section 4; Gong et
        al. (2014), arXiv:1212.4522, section 3.2, for the power of the correlations.
        """
        image, text = (part**-0.5 for part in self._shrunk(penalty, text_penalty))
        u, correlations, vh = torch.linalg.svd(
            image[:, None] * self.cross * text, full_matrices=False
        )
        kept = correlations[:k] ** power
        return self._maps(
            image[:, None] * u[:, : len(kept)] * kept, text[:, None] * vh[: len(kept)].T * kept
        )

    def _shrunk(self, *penalties: float | None) -> list[Tensor]:
        for name, penalty in zip(("penalty", "text_penalty"), penalties, strict=True):
            if penalty is not None and not penalty > 0:
                raise ValueError(f"{name}={penalty} must be above 0: features can be redundant")
        return [
            values + (penalty or 0) * values.mean()
            for values, penalty in zip(self.values, penalties, strict=True)
        ]

    def _maps(self, image: Tensor, text: Tensor) -> LinearMaps:
        """Turn maps between the eigenbases into weights and the biases that centre."""
        sides = []
        for basis, part, mean in zip(self.vectors, (image, text), self.means, strict=True):
            weight = (basis @ part).T
            sides += [weight, -weight @ mean]
        return LinearMaps(*sides)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=-1)


def _project(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    parts = [_unit(block) @ weight.T + bias for block in features.split(_BLOCK)]
    return F.normalize(torch.cat(parts), dim=-1).float()


def _blocks(owner: Tensor, n_images: int, size: int = _BLOCK) -> Iterator[tuple[slice, slice]]:
    """Give runs of images and the captions that belong to them."""
    edges = torch.tensor([*range(0, n_images, size), n_images])
    places = torch.searchsorted(owner.contiguous(), edges).tolist()
    for number, start in enumerate(edges[:-1].tolist()):
        yield slice(start, start + size), slice(places[number], places[number + 1])


def _check(images: Tensor, texts: Tensor, owner: Tensor, weights: Tensor, into: Moments) -> None:
    n, m = len(images), len(texts)
    wanted = (n, len(into.image)), (m, len(into.text)), (m,), (m,)
    shapes = tuple(tuple(part.shape) for part in (images, texts, owner, weights))
    if shapes != wanted:
        raise ValueError(
            f"images, texts, owner and weights must have the shapes {wanted}, got {shapes}"
        )
    if m and not (owner[0] >= 0 and owner[-1] < n and (owner.diff() >= 0).all()):
        raise ValueError(f"owner must hold rows of the {n} images in rising order")
    if not (weights >= 0).all():
        raise ValueError("weights must be numbers from 0 up")
