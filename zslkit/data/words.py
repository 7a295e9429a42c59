"""What captions say, without any model: words, lengths, mentions of classes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class CaptionFacts(NamedTuple):
    """Counts over the captions of a split."""

    per_image: np.ndarray
    """(N,) int64, captions of each image."""
    lengths: np.ndarray
    """(M,) int64, words of each caption."""
    vocabulary: Counter
    """How often each word occurs, in lower case."""
    repeated: dict[str, int]
    """Captions of several images, but for case and blanks, and how many images; most first."""

    @property
    def counts(self) -> dict[str, float]:
        """Numbers for a table and for ``results.json``."""
        once = sum(count == 1 for count in self.vocabulary.values())
        return {
            "images": len(self.per_image),
            "captions": len(self.lengths),
            "captions per image": float(self.per_image.mean()),
            "words per caption": float(self.lengths.mean()),
            "distinct words": len(self.vocabulary),
            "share of words that occur once": once / max(1, len(self.vocabulary)),
            "captions of several images": len(self.repeated),
        }


def words(text: str) -> list[str]:
    """Split a text into lower-case words: letters and digits, with apostrophes inside."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def describe_captions(captions: Iterable[Sequence[str]]) -> CaptionFacts:
    """Count words and repetitions in the captions of N images, such as ``pairs.captions``."""
    per_image, lengths, vocabulary, images = [], [], Counter(), Counter()
    for group in captions:
        split = [words(text) for text in group]
        per_image.append(len(group))
        lengths.extend(map(len, split))
        vocabulary.update(word for part in split for word in part)
        images.update({" ".join(text.lower().split()) for text in group})
    repeated = {text: count for text, count in images.most_common() if count > 1}
    return CaptionFacts(np.array(per_image), np.array(lengths), vocabulary, repeated)


def plurals(name: Sequence[str]) -> set[tuple[str, ...]]:
    """Give a class name, as words, in the singular, simple plurals and the possessive."""
    if not name:
        return set()
    *head, last = name
    forms = (last, f"{last}s", f"{last}es", f"{last}'s", re.sub("y$", "ies", last))
    return {(*head, form) for form in forms}


def mentions(captions: Iterable[Sequence[str]], class_names: Sequence[str]) -> Iterator[set[str]]:
    """Give for every caption the classes that it names, as :func:`count_mentions` counts them."""
    classes_of = defaultdict(set)
    for name in class_names:
        for form in plurals(words(name)):
            classes_of[form].add(name)
    longest = max(map(len, classes_of), default=0)
    for tokens in (words(text) for group in captions for text in group):
        ends = range(1, longest + 1)
        parts = {tuple(tokens[i : i + n]) for i in range(len(tokens)) for n in ends}
        yield set().union(*(classes_of[part] for part in parts & classes_of.keys()))


def count_mentions(captions: Iterable[Sequence[str]], class_names: Sequence[str]) -> dict[str, int]:
    """Count the captions that name each class: whole words, any case, also plural or possessive.

    A class whose count is 0 was never named, though a synonym may have been.
    """
    counts = dict.fromkeys(class_names, 0)
    for names in mentions(captions, class_names):
        for name in names:
            counts[name] += 1
    return counts


def duplicate_share(captions: Sequence[str], batch_size: int) -> float:
    """Expect, for random batches, the share of pairs that meet an equal caption in their batch.

    Parameters
    ----------
    captions : sequence of str
        One for each pair.
    """
    n, others = len(captions), min(batch_size, len(captions)) - 1
    met = 0.0
    for size, groups in Counter(Counter(captions).values()).items():
        alone = 0.0  # none of its equals among the others: hypergeometric
        if n - size >= others:
            terms = n - size + 1, n - others, n - size - others + 1, n
            more, fewer = (sum(map(math.lgamma, half)) for half in (terms[:2], terms[2:]))
            alone = math.exp(more - fewer)
        met += size * groups * (1 - alone)
    return met / n if others > 0 else 0.0
