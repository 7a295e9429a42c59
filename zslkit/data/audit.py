"""What is in a set of pairs: duplicates, and captions that do not fit."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zslkit.config import RunConfig, RunSettings
from zslkit.data.cache import tower_features
from zslkit.data.images import BrokenImageError, to_pil
from zslkit.data.pairs import Pairs
from zslkit.data.sampling import caption_choice
from zslkit.encoders.dual import DualEncoder, build_dual_encoder
from zslkit.evaluation.intervals import estimate, wilson_interval
from zslkit.evaluation.retrieval import embed_images, embed_texts
from zslkit.training.device import choose_device
from zslkit.zeroshot.models.protocol import as_model

FOLDS = 5  # of the regression: every pair is judged by a model that never saw it


class ImageFacts(NamedTuple):
    """What decoding the images of a split told; K of them could be read."""

    rows: np.ndarray
    """(K,) int64, positions in the pairs."""
    sizes: np.ndarray
    """(K, 2) int64, width and height in pixels."""
    checksums: np.ndarray
    """(K,) str, sha256 of size and pixels."""
    hashes: np.ndarray
    """(K,) uint64, perceptual hash."""
    broken: tuple[str, ...]
    """Messages that name the images which could not be read."""


class PairFit(NamedTuple):
    """How well captions fit their images, beside other captions; N pairs could be read."""

    rows: np.ndarray
    """(N,) int64, positions in the pairs."""
    captions: list[str]
    """The caption of each pair that was judged."""
    own: np.ndarray
    """(N,) cosine similarities on the diagonal: image and its own caption."""
    others: np.ndarray
    """(N, up to 32) of those off the diagonal, drawn with the seed."""
    rivals: np.ndarray
    """(N,) share of other captions that fit the image at least as well as its own."""


def look_at_images(pairs: Pairs, max_images: int | None = None, seed: int = 0) -> ImageFacts:
    """Decode images for their sizes, checksums and perceptual hashes.

    The hash is ImageHash's ``phash``: 64 signs of the lowest frequencies of a 32 x 32 grey copy
    (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1).
    Of more than ``max_images`` a sample is drawn with the seed; ``rows`` says which. A sample of
    a tenth holds about a hundredth of the pairs of duplicates.

    Raises
    ------
    ValueError
        If ``max_images`` is below 1.
    """
    from imagehash import phash

    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images={max_images} must be at least 1, or None for all")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:max_images])
    found, broken = [], []
    for i in chosen.tolist():
        try:
            pixels = pairs.read_pixels(i)
        except BrokenImageError as error:
            broken.append(str(error))
            continue
        size = tuple(pixels.shape[:0:-1])
        digest = hashlib.sha256(f"{size}".encode() + pixels.numpy().tobytes()).hexdigest()
        bits = np.packbits(phash(to_pil(pixels)).hash).view(np.uint64)[0]
        found.append((i, size, digest, bits))
    kinds = [("row", "i8"), ("size", "i8", 2), ("checksum", "U64"), ("hash", "u8")]
    facts = np.array(found, dtype=kinds)
    return ImageFacts(*(facts[kind[0]] for kind in kinds), tuple(broken))


def find_duplicates(first: ImageFacts, second: ImageFacts | None = None, max_distance: int = 4):
    """List all pairs of images whose hashes differ in at most ``max_distance`` of 64 bits.

    Without ``second`` within one set, each pair once. Ten thousand images make fifty million
    comparisons: seconds. Plain surfaces have nearly equal hashes without being copies: look.

    Returns
    -------
    DataFrame
        ``first`` and ``second`` (positions in the pairs), ``distance`` (bits) and ``exact``
        (equal size and pixels), closest first.
    """
    from pandas import DataFrame

    other, found = first if second is None else second, []
    for start in range(0, len(first.hashes), 512):
        block = first.hashes[start : start + 512, None]
        distance = np.bitwise_count(block ^ other.hashes)
        near = distance <= max_distance
        if second is None:
            near &= np.arange(len(other.hashes)) > start + np.arange(len(block))[:, None]
        a, b = near.nonzero()
        found.append(np.stack([a + start, b, distance[a, b]]))
    a, b, distance = np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)
    columns = {"first": first.rows[a], "second": other.rows[b], "distance": distance}
    table = DataFrame(columns | {"exact": first.checksums[a] == other.checksums[b]})
    order = ["distance", "exact", "first", "second"]
    return table.sort_values(order, ascending=[True, False, True, True], ignore_index=True)


def score_pairs(pairs: Pairs, config: RunConfig, model: DualEncoder | None = None) -> PairFit:
    """Score each image with its own caption and with captions of other images.

    Parameters
    ----------
    pairs : Pairs
        Of an image's captions, the one that the first epoch draws is judged.
    config : RunConfig
        Towers, cache and seed; that of the run, where ``model`` is given.
    model : DualEncoder, optional
        A trained model, whose similarities are taken; pairs that it was trained on look better
        than they are. Without it a ridge regression from image to text features of the
        configured towers, out of fold: standardised features, penalty F, and the cosine between
        prediction and caption.

    Raises
    ------
    ValueError
        If there are too few readable pairs to hold two in each fold.
    """
    device = choose_device(config.device)
    count = np.array([len(group) for group in pairs.captions])
    first = np.cumsum(count) - count
    texts = np.array([text for group in pairs.captions for text in group], object)
    # distinct and sorted, as the trainer embeds them: both share an entry of the cache
    distinct, entry = np.unique(texts, return_inverse=True)
    drawn = first + caption_choice(count, config.seed, 0, np.arange(len(pairs)))
    if model is None:
        towers = build_dual_encoder(config).to(device)
        found = tower_features(towers, pairs, config, "images")
        rows, images = found.readable(pairs.keys), found.features.numpy()
        features = tower_features(towers, distinct.tolist(), config, "captions").features.numpy()
        targets = np.add.reduceat(features[entry], first) / count[:, None]
        blocks = _out_of_fold(images[rows], targets[rows], features[entry[drawn[rows]]], config)
    else:
        images, rows = embed_images(model := as_model(model).to(device), pairs, config)
        features = embed_texts(model, distinct.tolist(), config).numpy()
        order = np.random.default_rng(config.seed).permutation(len(rows))
        blocks = [(order, images.numpy()[order], features[entry[drawn[rows[order]]]])]
    return PairFit(rows, texts[drawn[rows]].tolist(), *_diagonal(blocks, len(rows)))


def mismatch_bound(rivals: Any) -> dict[str, float]:
    """Bound the share of captions that miss their image from above.

    A mismatched caption is a random one: of its rivals (see :class:`PairFit`) the share is
    uniform on [0, 1], and among the q worst-placed pairs, with at least 1 - q of the others
    ahead, it is found with probability q, as F_off says of pairs off the diagonal. Hence
    F_on(q) / F_off(q) = (pairs found there / N) / q estimates the share. From above, because
    a right caption may be vague, or the features blind to what it says, and stand there too.

    Of q = 0.05, 0.1 ... 0.95 the one with the lowest upper limit (Wilson, 95 %) is taken: the
    smallest ratio itself would mostly be the luckiest.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``n``, as ``metrics.estimate`` words it.

    References
    ----------
    Storey (2002), "A direct approach to false discovery rates", Journal of the Royal
    Statistical Society B 64, equation 6: pi_0 <= #{p > lambda} / (m (1 - lambda)), with
    rivals as p-values, and captions for hypotheses.
    """
    rivals, bounds = np.asarray(rivals), []
    for q in np.arange(1, 20) / 20:
        # a hair, as 1 - q is not exact in binary
        share = wilson_interval(int((rivals >= 1 - q - 1e-9).sum()), len(rivals))
        ratios = {key: min(1.0, float(share[key] / q)) for key in ("value", "low", "high")}
        bounds.append(ratios | {"n": len(rivals)})
    return min(bounds, key=lambda bound: bound["high"])


def expected_rivals(rivals: Any, batch_sizes: Sequence[int]) -> dict[int, dict[str, float]]:
    """Expect how many other captions of a batch fit an image at least as well as its own.

    (B - 1) times the mean of ``rivals``, (N,), with a bootstrap interval over images.
    """
    rate = estimate(rivals)
    ends = ("value", "low", "high")
    return {b: {k: (b - 1) * rate[k] for k in ends} | {"n": rate["n"]} for b in batch_sizes}


def _out_of_fold(
    images: np.ndarray, targets: np.ndarray, drawn: np.ndarray, config: RunSettings
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Predict (N, F) text features from images; give rows, predictions and texts by fold."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler

    if len(images) < 2 * FOLDS:
        raise ValueError(f"{len(images)} readable pairs are too few: {FOLDS} folds need two each")
    blocks, rng = [], np.random.default_rng(config.seed)
    for train, test in KFold(FOLDS, shuffle=True, random_state=config.seed).split(images):
        test = rng.permutation(test)
        x, y = StandardScaler().fit(images[train]), StandardScaler().fit(targets[train])
        ridge = Ridge(alpha=images.shape[1])
        ridge.fit(x.transform(images[train]), y.transform(targets[train]))
        blocks.append((test, ridge.predict(x.transform(images[test])), y.transform(drawn[test])))
    return blocks


def _diagonal(blocks: Iterable, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare images and texts, up to 1,024 at a time: own, others and rivals of PairFit."""
    kept = min(32, min(len(rows) for rows, *_ in blocks) - 1)
    own, others, rivals = np.empty(n), np.empty((n, kept)), np.empty(n)
    for rows, images, texts in blocks:
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 1024)):
            left, right = (
                x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images[part], texts[part])
            )
            similarity, place = left @ right.T, rows[part]
            off = similarity[~np.eye(len(part), dtype=bool)].reshape(len(part), -1)
            own[place] = similarity.diagonal()
            others[place] = off[:, :kept]
            # a hair: of two equal captions one may come out of the product a last bit lower
            rivals[place] = (off >= own[place, None] - 1e-6).mean(axis=1)
    return own, others, rivals
