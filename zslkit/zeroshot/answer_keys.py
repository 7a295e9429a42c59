"""Which classes of a label space are right answers, under three policies."""

from collections import defaultdict
from functools import cached_property
from typing import Any, Literal

import numpy as np

from zslkit.data.strict import nearest
from zslkit.zeroshot.label_spaces import LabelSpace, normal_form

Policy = Literal["strict", "merge_duplicates", "accept_synonyms"]


POLICIES: tuple[Policy, ...] = ("strict", "merge_duplicates", "accept_synonyms")


class AnswerKey:
    """Read ranked names as answers, under three policies on classes that share names.

    The bank holds each different name once, so that equal names never compete. Then

    - ``strict``: every class is one of its own; classes with the same name stand in a row, the
      lowest number first, and only the true one is right, as evaluators have it that do not look;
    - ``merge_duplicates``: classes whose names agree in :func:`normal_form` are one class;
    - ``accept_synonyms``: besides, an answer is right if it is a name of a class that shares any
      of its names with the true class.

    Attributes
    ----------
    prompt_names : tuple of U str
        Different first names, in the order of the classes: the classes of the bank.
    row_of : ndarray of shape (C,), int64
        The row of each class among them.
    """

    def __init__(self, space: LabelSpace):
        self.space = space
        numbers: dict[str, int] = {}
        self.row_of = np.array([numbers.setdefault(n, len(numbers)) for n in space.class_names])
        self.prompt_names = tuple(numbers)
        groups: dict[str, int] = {}
        forms = map(normal_form, self.prompt_names)
        self._group = np.array([groups.setdefault(form, len(groups)) for form in forms])
        self._members = np.bincount(self.row_of)
        # the place of a class among those that have the same name
        self._by_row = np.argsort(self.row_of, kind="stable")
        self._starts = np.cumsum(self._members) - self._members
        self._turn = np.empty(len(space), np.int64)
        self._turn[self._by_row] = np.arange(len(space)) - np.repeat(self._starts, self._members)

    def n_answers(self, policy: Policy) -> int:
        """Count the answers that a policy tells apart."""
        return len(self.space) if policy == "strict" else int(self._group.max()) + 1

    def chance(self, k: int, owner: np.ndarray, true_classes: np.ndarray, policy: Policy) -> float:
        """Give the mean probability that k different answers, drawn blindly, hold a right one.

        With A answers, of which r are right for an image, it is 1 − C(A − r, k) / C(A, k): k / A
        where one is right. Under ``accept_synonyms``, and for an image of several classes, more
        are.

        Parameters
        ----------
        owner, true_classes : ndarray of shape (M,), int
            Which image has which class.
        """
        classes, answers = self._right_answers(policy)
        first = np.searchsorted(classes, true_classes)
        n = np.searchsorted(classes, true_classes, side="right") - first
        each = np.repeat(first - (n.cumsum() - n), n) + np.arange(n.sum())
        distinct = np.unique(np.stack([np.repeat(owner, n), answers[each]]), axis=1)
        _, n_right = np.unique(distinct[0], return_counts=True)
        n_answers = self.n_answers(policy)
        drawn = np.arange(min(k, n_answers))
        left = np.maximum(n_answers - n_right[:, None] - drawn, 0) / (n_answers - drawn)
        several = 1 - left.prod(axis=1)
        return float(np.where(n_right == 1, len(drawn) / n_answers, several).mean())

    def _right_answers(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """List each class, in order, beside the answers that are right for it."""
        classes = np.arange(len(self.space))
        if policy == "strict":
            return classes, classes
        if policy == "merge_duplicates":
            return classes, self._group[self.row_of]
        classes, rows = np.divmod(self._accepted, len(self.prompt_names))
        return tuple(np.unique(np.stack([classes, self._group[rows]]), axis=1))

    def depth(self, k: int) -> int:
        """Say how many names must be ranked so that k answers are certain under every policy."""
        return min(len(self.prompt_names), k * int(np.bincount(self._group).max()))

    def places(
        self, ranked: Any, owner: np.ndarray, true_classes: np.ndarray, policy: Policy
    ) -> np.ndarray:
        """Find the place of the first answer that is right for each true class, 0 for the best.

        Parameters
        ----------
        ranked : array of shape (N, K), int
            Rows of ``prompt_names``, best first.
        owner, true_classes : ndarray of shape (M,), int
            Which image has which class; an image may have several.

        Returns
        -------
        ndarray of shape (M,), int64
            ``C`` where no right answer is among those kept.

        Raises
        ------
        ValueError
            For an unknown policy.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r}: no such policy; {nearest(policy, POLICIES)}")
        ranked, found = np.asarray(ranked), [np.empty(0, np.int64)]
        for start in range(0, len(owner), 65536):  # bounds the (M, K) arrays
            rows = ranked[owner[start : start + 65536]]
            truth = true_classes[start : start + 65536]
            if policy == "strict":
                right = rows == self.row_of[truth][:, None]
                members = self._members[rows]
                place = members.cumsum(axis=1) - members + self._turn[truth][:, None]
            else:
                groups = self._group[rows]
                if policy == "merge_duplicates":
                    right = groups == self._group[self.row_of[truth]][:, None]
                else:
                    wanted = truth[:, None] * len(self.prompt_names) + rows
                    right = np.isin(wanted, self._accepted)
                place = _is_new(groups).cumsum(axis=1) - 1
            found.append(np.where(right, place, len(self.space)).min(axis=1))
        return np.concatenate(found)

    def first_right(
        self, ranked: Any, owner: np.ndarray, true_classes: np.ndarray, policy: Policy
    ) -> np.ndarray:
        """Find the place of the first right answer for each image, (N,); see :meth:`places`."""
        best = np.full(len(ranked), len(self.space), np.int64)
        np.minimum.at(best, owner, self.places(ranked, owner, true_classes, policy))
        return best

    def first_classes(self, ranked: Any, k: int) -> np.ndarray:
        """List the first k classes of each image as ``strict`` reads them, int64 (N, k)."""
        rows = np.asarray(ranked)[:, :k]  # a row is one class at least
        members = self._members[rows]
        first = np.repeat((members.cumsum(axis=1) - members).ravel(), members.ravel())
        turn = np.arange(len(first)) - np.repeat(
            members.ravel().cumsum() - members.ravel(), members.ravel()
        )
        image = np.repeat(np.arange(len(rows)), members.sum(axis=1))
        classes = self._by_row[np.repeat(self._starts[rows].ravel(), members.ravel()) + turn]
        kept = first + turn < k
        found = np.empty((len(rows), k), np.int64)
        found[image[kept], (first + turn)[kept]] = classes[kept]
        return found

    @cached_property
    def _accepted(self) -> np.ndarray:
        """Give class * U + row for each row that answers a class, sorted."""
        having = defaultdict(set)
        forms = [{normal_form(name) for name in names} for names in self.space.names]
        for number, names in enumerate(forms):
            for form in names:
                having[form].add(number)
        rows_of_group = defaultdict(set)
        for row, group in enumerate(self._group.tolist()):
            rows_of_group[group].add(row)
        pairs = [
            number * len(self.prompt_names) + row
            for number, names in enumerate(forms)
            for group in {int(self._group[self.row_of[other]])
                          for form in names for other in having[form]}
            for row in rows_of_group[group]
        ]  # fmt: skip
        return np.unique(np.array(pairs, np.int64))


def _is_new(groups: np.ndarray) -> np.ndarray:
    """Mark in each row of (M, K) the first of equal numbers, bool (M, K)."""
    order = groups.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order, axis=1)
    new = np.ones(groups.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    unordered = np.empty_like(new)
    np.put_along_axis(unordered, order, new, axis=1)
    return unordered
