"""Wrong captions on purpose, as the field plants them; N = images, M = captions of them all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from zslkit.data.schema import CaptionNoise
from zslkit.data.source import STRING, Groups

KINDS = get_args(CaptionNoise)
_NEIGHBOURS = 10  # of a caption, from which a similar wrong one is drawn
_BOILERPLATE = "a photo from the web"


class Planted(NamedTuple):
    """Captions of which some are wrong, and which; the masks are for reports only."""

    captions: Groups
    """Of N images."""
    wrong: np.ndarray
    """(M,) bool, per caption in order."""
    images: np.ndarray
    """(N,) bool: images with a wrong caption."""


def plant(
    captions: Sequence[tuple[str, ...]],
    share: float,
    kind: CaptionNoise,
    rng: np.random.Generator,
    indices: np.ndarray | None = None,
) -> Planted:
    """Make single captions wrong; ``image`` swaps are the business of ``Pairs``.

    Parameters
    ----------
    captions : sequence of N tuples of str
    share : float in [0, 1]
        Of all captions.
    kind : str
        ``caption`` permutes the chosen captions among themselves in one cycle, as the field's
        tests of noisy correspondence do; ``similar`` lets each chosen caption change places with
        one of those that share most words with it; ``words`` takes half of the words away;
        ``boilerplate`` puts one text in the place of all.
    indices : (M,) int, optional
        Instead: which caption stands in each place, as published lists of noise say it.

    Returns
    -------
    Planted
        A caption that came to stand with its own image again is not counted as wrong.

    Raises
    ------
    ValueError
        For an unknown kind, or indices that do not fit.

    References
    ----------
    Huang et al. (2021), "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS,
    section 4.1: captions of the training set shuffled at random for a share of the pairs.
    """
    texts = np.array([text for group in captions for text in group], dtype=STRING)
    sizes = np.array([len(group) for group in captions])
    owner = np.repeat(np.arange(len(captions)), sizes)
    source, spoilt = np.arange(len(texts)), np.zeros(len(texts), dtype=bool)
    if indices is not None:
        source = _published(indices, len(texts))
    elif share > 0 and len(texts) > 1:
        chosen = rng.permutation(len(texts))[: max(2, round(share * len(texts)))]
        if kind == "caption":
            source[chosen] = np.roll(chosen, 1)
        elif kind == "similar":
            source = _change_places(texts, owner, chosen, rng)
        elif kind in ("words", "boilerplate"):
            spoilt[chosen] = True
            halves = (_half(text, rng) for text in texts[chosen])
            texts[chosen] = _BOILERPLATE if kind == "boilerplate" else np.array([*halves], STRING)
        else:
            raise ValueError(f"caption_noise_kind={kind!r}: known here are {', '.join(KINDS[1:])}")
    wrong = spoilt | (owner[source] != owner)
    ends = np.cumsum(sizes)
    images = np.bincount(owner[wrong], minlength=len(captions)) > 0
    return Planted(Groups(texts[source], ends - sizes, ends), wrong, images)


def read_indices(path: str | Path) -> np.ndarray:
    """Read which caption stands in each place: a ``.npy`` array, or one whole number a line.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    path = Path(path)
    try:
        found = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64)
    except ValueError as error:
        raise ValueError(
            f"caption_noise_file={str(path)!r}: must hold whole numbers, one a line, or be a .npy "
            f"array of them ({error})"
        ) from None
    return np.asarray(found)


def _published(indices: np.ndarray, n: int) -> np.ndarray:
    fits = indices.shape == (n,) and indices.dtype.kind in "iu"
    if not fits or indices.min() < 0 or indices.max() >= n:
        raise ValueError(
            f"caption_noise_file: needs {n} whole numbers from 0 to {n - 1}, one for each "
            f"caption; it has shape {indices.shape} and type {indices.dtype}"
        )
    return indices.astype(np.int64)


def _change_places(texts, owner, chosen, rng) -> np.ndarray:
    """Pair chosen captions with others of near meaning and swap the two."""
    table, source = _word_table(texts), np.arange(len(texts))
    free = np.ones(len(texts), dtype=bool)
    for start in range(0, len(chosen), 512):
        block = chosen[start : start + 512]
        scores = (table[block] @ table[chosen].T).toarray()
        for place, row in zip(block, scores, strict=True):
            if not free[place]:
                continue
            others = np.flatnonzero(free[chosen] & (owner[chosen] != owner[place]))
            if len(others):  # the very last may find none: they keep their own
                k = min(len(others), _NEIGHBOURS)
                near = others[np.argpartition(-row[others], k - 1)[:k]]
                other = chosen[rng.choice(np.sort(near))]
                source[[place, other]] = other, place
                free[[place, other]] = False
    return source


def _word_table(texts):
    """Weigh the words of each text by their rarity: a sparse matrix, rows of length 1."""
    from scipy.sparse import csr_matrix, diags

    words = [sorted({*text.lower().split()}) for text in texts]
    known = {word: i for i, word in enumerate(sorted({w for group in words for w in group}))}
    columns = np.array([known[word] for group in words for word in group], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum([len(group) for group in words])])
    table = csr_matrix((np.ones(len(columns)), columns, ends), (len(texts), len(known)))
    rarity = np.log(len(texts) / np.maximum(1, np.bincount(columns, minlength=len(known))))
    table = table @ diags(rarity)
    lengths = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return diags(1 / np.maximum(lengths, 1e-12)) @ table


def _half(text: str, rng: np.random.Generator) -> str:
    """Leave every second of the words, drawn at random, in their order; at least one."""
    words = text.split()
    kept = np.sort(rng.permutation(len(words))[: max(1, len(words) // 2)])
    return " ".join(words[i] for i in kept)
