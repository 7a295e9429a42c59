"""What is odd in a label space: shared names, and classes named in training captions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zslkit.data.words import count_mentions, plurals
from zslkit.zeroshot.hierarchy import Hierarchy
from zslkit.zeroshot.label_spaces import LabelSpace, normal_form


def audit_label_space(
    space: LabelSpace,
    captions: Iterable[Sequence[str]] | None = None,
    hierarchy: Hierarchy | None = None,
    n_examples: int = 3,
) -> dict[str, dict[str, Any]]:
    """Count what makes a label space unfair, with examples.

    Parameters
    ----------
    captions : iterable of groups of str, optional
        Training captions (``pairs.captions``): a class whose name occurs there, in the singular
        or plural, whole words, any case, has been seen.
    hierarchy : Hierarchy, optional
        Also count classes with an ancestor among the classes.

    Returns
    -------
    dict
        For each finding ``n``, the classes concerned, and ``examples``: "duplicates" share their
        first name letter by letter, "case variants" but for case, hyphens and signs, "plural
        variants" but for a plural; "synonyms" have a name that another class has too, first or
        not; "inside another" have an ancestor here; "seen in captions".
    """
    classes_of: dict[str, dict[str, set[int]]] = {
        kind: defaultdict(set)
        for kind in ("duplicates", "case variants", "plural variants", "synonyms")
    }
    for number, names in enumerate(space.names):
        first = names[0]
        classes_of["duplicates"][first].add(number)
        classes_of["case variants"][normal_form(first)].add(number)
        for form in {normal_form(name) for name in names}:
            classes_of["synonyms"][form].add(number)
    forms = classes_of["case variants"]
    for form, numbers in forms.items():
        for plural in plurals(form.split()):
            if (other := " ".join(plural)) != form and other in forms:
                classes_of["plural variants"][form] |= numbers | forms[other]
    # case variants are those that are not letter by letter the same
    classes_of["case variants"] = {
        form: group for form, group in forms.items()
        if len({space.class_names[i] for i in group}) > 1
    }  # fmt: skip
    found = {"classes": {"n": len(space), "examples": []}}
    for kind, groups in classes_of.items():
        shared = [sorted(group) for group in groups.values() if len(group) > 1]
        worded = [" = ".join(_words_for(space, i) for i in group) for group in shared[:n_examples]]
        found[kind] = {"n": len({i for group in shared for i in group}), "examples": worded}
    if hierarchy is not None:
        inside = []
        for number, id in enumerate(space.ids):
            heights = hierarchy.heights(id) if id in hierarchy else {}
            above = [(height, other) for other, height in heights.items()
                     if height and other in space._number_of]  # fmt: skip
            inside += [(number, space._number_of[min(above)[1]])] if above else []
        worded = [f"{_words_for(space, i)} in {_words_for(space, parent)}"
                  for i, parent in inside[:n_examples]]  # fmt: skip
        found["inside another"] = {"n": len(inside), "examples": worded}
    if captions is not None:
        seen = seen_in(space, captions)
        often = np.argsort(-seen, kind="stable")[:n_examples]
        worded = [f"{space.class_names[i]} ({seen[i]} captions)" for i in often if seen[i]]
        found["seen in captions"] = {"n": int((seen > 0).sum()), "examples": worded}
    return found


def seen_in(space: LabelSpace, captions: Iterable[Sequence[str]]) -> np.ndarray:
    """Count, for each class, the captions in which its first name occurs, int64 (C,)."""
    counts = count_mentions(captions, list(dict.fromkeys(space.class_names)))
    return np.array([counts[name] for name in space.class_names], dtype=np.int64)


def _words_for(space: LabelSpace, number: int) -> str:
    name, id = space.class_names[number], space.ids[number]
    return name if name == id else f"{name} ({id})"
