"""Ask many label spaces at once of one ranking of the images, and write the answers."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zslkit.config import RunConfig
from zslkit.data.files import write_json, write_text
from zslkit.data.named import labelled_images
from zslkit.data.pairs import Pairs
from zslkit.data.source import Groups
from zslkit.data.weights import fingerprint
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.metrics import (
    harmonic_mean,
    mean_average_precision,
    per_frequency,
    reliability,
)
from zslkit.evaluation.protocols import risk_coverage
from zslkit.evaluation.stream import NOTHING, Ranking, rank_images
from zslkit.training import dist
from zslkit.zeroshot.answer_keys import POLICIES, AnswerKey
from zslkit.zeroshot.class_bank import build_class_bank, cached_class_bank
from zslkit.zeroshot.hierarchy import Hierarchy, error_distances, hierarchical_precision_at_k
from zslkit.zeroshot.label_audit import seen_in
from zslkit.zeroshot.label_spaces import LabelSpace, load_label_space, own_label_space, union
from zslkit.zeroshot.models.protocol import as_model
from zslkit.zeroshot.prompts import Descriptions, find_templates
from zslkit.zeroshot.ranking import ClassBank

KS = (1, 2, 5, 10)


class Question(NamedTuple):
    """One label space asked with one set of templates."""

    space: LabelSpace
    bank: ClassBank
    """(U, D); its names are ``AnswerKey(space).prompt_names``."""
    matched: Sequence[tuple[int, ...]]
    """For each class of the images its classes in ``space``; see :meth:`LabelSpace.match`."""


def pose(
    model: DualEncoder,
    pairs: Pairs,
    spaces: Sequence[LabelSpace],
    templates: Mapping[str, str | Sequence[str]],
    mapping: Mapping[str, Sequence[str]] | None = None,
    cache_dir: str | Path | None = None,
    descriptions: Descriptions | None = None,
) -> dict[str, Question]:
    """Build the banks of every label space under every set of templates, named "SPACE / SET".

    Parameters
    ----------
    templates : mapping of str to str or sequence of str
        As :func:`build_class_bank` takes them; ``{description}`` is filled with the texts of
        ``descriptions``, and of classes that have none there with the label space's definitions.
    mapping : mapping, optional
        Says by hand which classes of the label spaces the set's classes are; see
        :meth:`LabelSpace.match`.
    cache_dir : path, optional
        Keeps the banks; see :func:`cached_class_bank`.

    Raises
    ------
    ValueError
        If two label spaces have one name, or templates, descriptions or ``mapping`` do not fit.
    """
    build = partial(cached_class_bank, cache_dir=cache_dir) if cache_dir else build_class_bank
    titles = [space.name for space in spaces]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise ValueError(f"two label spaces are called {twice[0]!r}: give each a name of its own")
    # one bank of all names for all spaces, unless each describes them in words of its own
    every = [*dict.fromkeys(name for space in spaces for name in space.class_names)]
    row_of, shared = {name: row for row, name in enumerate(every)}, {}
    for name, texts in templates.items():
        if not any("{description}" in text for text in find_templates(texts)):
            shared[name] = build(model, every, texts).embeddings
    questions = {}
    for space in spaces:
        names = AnswerKey(space).prompt_names
        matched = space.match(pairs.class_ids, pairs.class_names, mapping)
        for name, texts in templates.items():
            if name in shared:
                bank = ClassBank(shared[name][[row_of[n] for n in names]], names)
            else:
                told = {**space.described, **(descriptions or {})}
                bank = build(model, names, texts, descriptions=told)
            questions[f"{space.name} / {name}"] = Question(space, bank, matched)
    return questions


def evaluate_stream(
    model: DualEncoder,
    pairs: Pairs,
    questions: Mapping[str, Question],
    output_dir: str | Path,
    *,
    ks: Sequence[int] = KS,
    captions: Sequence[Sequence[str]] | None = None,
    hierarchy: Hierarchy | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model on labelled images, for several label spaces and templates in one pass.

    Writes ``evaluation.json`` (what is returned) and, for each question, a table with the figures
    of every class; the parts that :func:`rank_images` left are then removed. What is written
    depends on model, images and label spaces only: not on when, in how many goes or by how many
    processes it was made.

    Parameters
    ----------
    pairs : Pairs
        Labelled images.
    captions : sequence of groups of str, optional
        Training captions: figures for classes seen and unseen in them.
    hierarchy : Hierarchy, optional
        How far off errors are, in label spaces all of whose ids it knows.
    **options
        For :func:`rank_images`.

    Raises
    ------
    ValueError
        If the images have no classes, none of their classes is in a label space, or a k is out
        of question.
    """
    if pairs.positives is None:
        raise ValueError(
            f"{pairs.manifest.name!r}, split {pairs.split!r}: its images have no classes"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)} must be numbers from 1 up")
    keys = {space.checksum: AnswerKey(space) for space, *_ in questions.values()}
    depths, truths, asked = {}, {}, {}
    for name, question in questions.items():
        key = keys[question.space.checksum]
        if question.bank.class_names != key.prompt_names:
            raise ValueError(f"{name}: the bank does not hold the {len(key.prompt_names)} names")
        if max(ks) > len(question.space):
            raise ValueError(f"ks={tuple(ks)}: {name} has {len(question.space)} classes")
        depths[name] = key.depth(max(ks))
        truths[name] = _spread(pairs.positives, question.matched)
        if not len(truths[name][0]):
            raise ValueError(f"{name}: no image shows a class of this label space")
        asked[name] = _verified(pairs, question, key)
    folder, model = Path(output_dir), as_model(model)
    banks = {name: question.bank for name, question in questions.items()}
    readable, rankings = rank_images(
        model, pairs, banks, depths, folder / "parts", asked=asked, **options
    )
    results: dict[str, Any] = {
        "images": {
            "manifest": pairs.manifest.name,
            "manifest_sha256": pairs.manifest.checksum,
            "split": pairs.split,
            "n": len(pairs),
            "unreadable": np.delete(pairs.keys, readable).tolist(),
        },
        "model": fingerprint(model),
        "questions": {},
    }
    spaces = {question.space.checksum: question.space for question in questions.values()}
    # templates do not matter here: the captions are read once for each label space
    seen = {} if captions is None else {k: seen_in(v, captions) for k, v in spaces.items()}
    for name, question in questions.items():
        key, (owner, truth) = keys[question.space.checksum], truths[name]
        # from positions in the pairs to positions among the readable images
        known = np.isin(owner, readable)
        owner, truth = np.searchsorted(readable, owner[known]), truth[known]
        here = _Here(question, key, rankings[name], owner, truth)
        facts = _describe(pairs, question, readable, owner)
        facts["hits"] = _hits(here, ks)
        facts["certainty"] = _certainty(here, model.logit_scale.item())
        if pairs.negatives is not None:
            facts["mean average precision"] = _average_precision(here, asked[name], readable)
        if captions is not None:
            facts["seen in captions"] = _by_frequency(here, seen[question.space.checksum])
        if hierarchy is not None and all(id in hierarchy for id in question.space.ids):
            facts["hierarchy"] = _by_hierarchy(here, hierarchy, ks)
        results["questions"][name] = facts
        if dist.rank() == 0:
            _write_classes(folder / f"{_file_name(name)}.csv", here, ks)
    if dist.rank() == 0:
        write_json(folder / "evaluation.json", results)
        shutil.rmtree(folder / "parts")  # every process has read them
    return results


def evaluate_run(
    model: DualEncoder,
    config: RunConfig,
    spaces: Sequence[str | Path],
    templates: Mapping[str, str | Sequence[str]],
    output_dir: str | Path,
    *,
    mapping: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate as :func:`evaluate_stream` does, on the labelled images that ``config`` names.

    Parameters
    ----------
    spaces : sequence of str or Path
        For :func:`load_label_space`; ``own`` is that of the images, ``own+NAME`` another with
        their classes in front of it.
    templates : mapping of str to str or sequence of str
        For :func:`pose`, as is ``mapping``.
    **options
        For :func:`evaluate_stream`.

    Raises
    ------
    ValueError
        If ``config`` names no labelled images.
    """
    pairs = labelled_images(config, several=True)
    found = [find_space(str(space), pairs) for space in spaces]
    questions = pose(model, pairs, found, templates, mapping, config.cache_dir)
    options = {"workers": config.workers, "max_unreadable": config.max_unreadable, **options}
    return evaluate_stream(model, pairs, questions, output_dir, **options)


def find_space(name: str, pairs: Pairs) -> LabelSpace:
    """Load a label space, ``own``, that of the images, or ``own+NAME``, another behind it."""
    if name == "own":
        return own_label_space(pairs)
    if name.startswith("own+"):
        return union(own_label_space(pairs), find_space(name.removeprefix("own+"), pairs))
    return load_label_space(name, pairs.manifest.data_root)


@dataclass(frozen=True)
class _Here:
    """One question and what is known of its answers; images count among the readable ones."""

    question: Question
    key: AnswerKey
    ranking: Ranking
    owner: np.ndarray  # (M,)
    truth: np.ndarray  # (M,)

    @cached_property
    def asked_images(self) -> np.ndarray:
        """Images with a true class in the label space, sorted."""
        return np.unique(self.owner)

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Places of the first right answer for ``asked_images``, under each policy."""
        given = self.ranking.indices, self.owner, self.truth
        return {p: self.key.first_right(*given, p)[self.asked_images] for p in POLICIES}

    @cached_property
    def places_of_classes(self) -> np.ndarray:
        """Find the place, strictly, of each true class: an image with two counts for both."""
        return self.key.places(self.ranking.indices, self.owner, self.truth, "strict")


def _describe(pairs: Pairs, question: Question, readable: np.ndarray, owner: np.ndarray) -> dict:
    space = question.space
    lost = [name for name, found in zip(pairs.class_names, question.matched, strict=True)
            if not found]  # fmt: skip
    return {
        "label space": {"name": space.name, "sha256": space.checksum, "source": space.source},
        "classes": len(space),
        "names": len(question.bank.class_names),
        "n": len(np.unique(owner)),
        "left out": {"images": len(readable) - len(np.unique(owner)), "classes": lost},
    }


def _hits(here: _Here, ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Give flat hit@k under each policy, with the chance level of guessing."""
    hits: dict[str, dict[str, Any]] = {}
    for policy in POLICIES:
        places, given = here.places[policy], (here.owner, here.truth, policy)
        hits[policy] = {
            f"hit@{k}": estimate(places < k, chance=here.key.chance(k, *given)) for k in ks
        }
    return hits


def _certainty(here: _Here, logit_scale: float) -> dict[str, float]:
    """Compare the probability of the first name with how often it is a name of the true class."""
    ranking, rows = here.ranking, here.asked_images
    confidence = (logit_scale * ranking.scores[rows, 0] - ranking.totals[rows]).exp().clamp(max=1)
    right = here.places["merge_duplicates"] < 1
    return {
        "calibration error": reliability(confidence.numpy(), right)["ece"],
        "area under risk over coverage": risk_coverage(confidence, right).area,
    }


def _average_precision(here: _Here, asked: "_Verified", readable: np.ndarray) -> dict[str, Any]:
    """Average precision over human-verified labels, as Open Images counts."""
    kept = np.isin(asked.images, readable)
    labels = asked.images[kept], asked.classes[kept], here.ranking.asked, asked.positive[kept]
    classes = len(np.unique(labels[1][labels[3]]))
    return {"value": mean_average_precision(*labels), "classes": classes, "n": int(kept.sum())}


def _by_frequency(here: _Here, seen: np.ndarray) -> dict[str, Any]:
    """Split hit@1 (strict) by how many training captions name the class."""
    hits = here.places_of_classes < 1
    found: dict[str, Any] = {
        "by captions that name the class": per_frequency(hits, here.truth, seen)
    }
    counts = np.bincount(here.truth, minlength=len(seen))
    rates = np.bincount(here.truth, weights=hits, minlength=len(seen)) / np.maximum(counts, 1)
    for name, classes in {"seen": seen > 0, "unseen": seen == 0}.items():
        if (these := classes & (counts > 0)).any():
            found[f"{name} classes"] = estimate(rates[these])
    if {"seen classes", "unseen classes"} <= found.keys():
        sides = (found[f"{name} classes"]["value"] for name in ("seen", "unseen"))
        found["harmonic mean"] = harmonic_mean(*sides)
    return found


def _by_hierarchy(here: _Here, hierarchy: Hierarchy, ks: Sequence[int]) -> dict[str, Any]:
    """Give hierarchical precision@k and the distance of errors, over (image, true class)."""
    ids = np.array(here.question.space.ids)
    ranked = ids[here.key.first_classes(here.ranking.indices[here.owner], max(*ks, 2))]
    true = ids[here.truth]
    precision = hierarchical_precision_at_k(ranked, true, hierarchy, ids.tolist(), ks)
    missed = ranked[:, 0] != true
    distances = error_distances(ranked[missed], true[missed], hierarchy) if missed.any() else []
    joined = np.isfinite(distances)
    found: dict[str, Any] = {f"precision@{k}": value for k, value in precision.items()}
    found["errors without a common ancestor"] = int((~joined).sum())
    if joined.any():
        found["mean distance of errors"] = float(np.asarray(distances)[joined].mean())
    return found


def _write_classes(path: Path, here: _Here, ks: Sequence[int]) -> None:
    """Write hit@k of every class that occurs, under ``strict``."""
    space, places = here.question.space, here.places_of_classes
    counts = np.bincount(here.truth, minlength=len(space))
    rates = [np.bincount(here.truth, weights=places < k, minlength=len(space)) for k in ks]
    writer = csv.writer(table := io.StringIO(), lineterminator="\n")
    writer.writerow(["id", "class_name", "n", *(f"hit@{k}" for k in ks)])
    for c in np.flatnonzero(counts):
        shares = [round(rate[c] / counts[c], 6) for rate in rates]
        writer.writerow([space.ids[c], space.class_names[c], counts[c], *shares])
    write_text(path, table.getvalue())


class _Verified(NamedTuple):
    """Asked similarities of human-verified labels."""

    images: np.ndarray  # (A,)
    rows: np.ndarray  # (A,)
    classes: np.ndarray  # (A,) in the label space
    positive: np.ndarray  # (A,) bool


def _verified(pairs: Pairs, question: Question, key: AnswerKey) -> _Verified:
    if pairs.negatives is None:
        return _Verified(*NOTHING, NOTHING.rows, np.empty(0, bool))
    sides = [_spread(side, question.matched) for side in (pairs.positives, pairs.negatives)]
    images, classes = (np.concatenate(both) for both in zip(*sides, strict=True))
    positive = np.arange(len(images)) < len(sides[0][0])
    order = np.argsort(images, kind="stable")
    classes = classes[order]
    return _Verified(images[order], key.row_of[classes], classes, positive[order])


def _spread(labels: Groups, matched: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Spell out labels of images as (image, class of the label space), both (M,), sorted."""
    images, classes = labels.spread()
    sizes = np.array([len(found) for found in matched])
    bounds = np.cumsum(sizes) - sizes
    values = np.array([c for found in matched for c in found], np.int64)
    stops = bounds[classes] + sizes[classes]
    which, truth = Groups(values, bounds[classes], stops).spread()
    # two classes of an image may be one here
    return tuple(np.unique(np.stack([images[which], truth]), axis=1))


def _file_name(question: str) -> str:
    return "".join(c if c.isalnum() or c in "+-_" else "_" for c in question)
