"""Class hierarchies, and how wrong a wrong answer is by them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import networkx as nx
import numpy as np

from zslkit.data.readers.class_lists import read_tencent_categories


@dataclass(frozen=True)
class Hierarchy:
    """Classes and their parents, from the narrower to the wider; a class may have several.

    Parameters
    ----------
    parents : mapping of str to tuple of str
        For each class those directly above it. One that is only named as a parent is a root.

    Raises
    ------
    ValueError
        If a class is above itself; the message names the circle.
    """

    parents: Mapping[str, tuple[str, ...]]
    _heights: dict[str, dict[str, int]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        above = {id: tuple(dict.fromkeys(parents)) for id, parents in self.parents.items()}
        roots = {parent: () for parents in above.values() for parent in parents}
        object.__setattr__(self, "parents", MappingProxyType({**roots, **above}))
        self._refuse_circles()

    def _refuse_circles(self) -> None:
        if not nx.is_directed_acyclic_graph(self.graph):
            circle = [child for child, _ in nx.find_cycle(self.graph)]
            raise ValueError(f"the hierarchy has a circle: {' → '.join([*circle, circle[0]])}")

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Edges from each class to those directly above it; frozen."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.parents)
        graph.add_edges_from((id, one) for id, above in self.parents.items() for one in above)
        return nx.freeze(graph)

    def __contains__(self, id: object) -> bool:
        return id in self.parents

    def __len__(self) -> int:
        return len(self.parents)

    def __reduce__(self):
        return Hierarchy, (dict(self.parents),)

    def children(self, id: str) -> tuple[str, ...]:
        """Classes directly below one."""
        return tuple(self.graph.predecessors(id))

    def heights(self, id: str) -> Mapping[str, int]:
        """Edges from a class up to itself (0) and to each of its ancestors, the shortest way.

        Raises
        ------
        ValueError
            If the class is unknown.
        """
        if id not in self.parents:
            raise ValueError(f"class {id!r} is not in the hierarchy of {len(self)} classes")
        if id not in self._heights:
            self._heights[id] = dict(nx.single_source_shortest_path_length(self.graph, id))
        return self._heights[id]

    def ancestors(self, id: str) -> frozenset[str]:
        """All classes above one, itself not among them."""
        return frozenset(self.heights(id)) - {id}

    def distance(self, a: str, b: str) -> float:
        """Count the edges of the shortest path through a common ancestor; inf if there is none."""
        up_a, up_b = self.heights(a), self.heights(b)
        return min((up_a[id] + up_b[id] for id in up_a.keys() & up_b.keys()), default=math.inf)

    def distances(self, class_ids: Sequence[str]) -> "Distances":
        """Prepare to measure from any class to all of these."""
        return Distances(self, class_ids)


class Distances:
    """Distances from any class to C classes at once: :meth:`Hierarchy.distance`, by arrays.

    networkx measures the ways up; their sums stay on arrays, because a class meets tens of
    thousands of others through each of its ancestors.
    """

    def __init__(self, hierarchy: Hierarchy, class_ids: Sequence[str]):
        self.hierarchy, self.n_classes = hierarchy, len(class_ids)
        below: dict[str, tuple[list[int], list[int]]] = {}
        for number, id in enumerate(class_ids):
            for ancestor, height in hierarchy.heights(id).items():
                numbers, heights = below.setdefault(ancestor, ([], []))
                numbers.append(number)
                heights.append(height)
        self._below = {id: (np.array(n), np.array(h)) for id, (n, h) in below.items()}

    def __getitem__(self, id: str) -> np.ndarray:
        """Distances from class ``id``, float (C,)."""
        distances = np.full(self.n_classes, np.inf)
        for ancestor, height in self.hierarchy.heights(id).items():
            if ancestor in self._below:
                numbers, heights = self._below[ancestor]
                distances[numbers] = np.minimum(distances[numbers], height + heights)
        return distances


def hierarchical_precision_at_k(
    ranked_ids: Sequence[Sequence[str]],
    true_ids: Sequence[str],
    hierarchy: Hierarchy,
    class_ids: Sequence[str],
    ks: Iterable[int],
) -> dict[int, float]:
    """Share of the first k answers that are near the true class, averaged over images.

    Near are the classes of hCorrectSet(true class, k): from radius 0 on, all classes at that
    distance are added until there are at least k. A whole radius is added at once, so the set may
    be larger than k, and only classes of ``class_ids`` count towards it. For k = 1 it is the true
    class alone if that is one of them: flat hit@1. Where fewer than k can be reached, all that
    can are near. The paper counts hops in the graph; here a path goes up to a common ancestor and
    down, which differs only where classes have several parents: two parents of one class do not
    become neighbours through it.

    Parameters
    ----------
    ranked_ids : array of str, shape (N, K)
        Answers from ``class_ids``, best first.
    true_ids : sequence of N str
    class_ids : sequence of C str
        Classes that the model chose from.
    ks : iterable of int
        Each between 1 and K.

    Raises
    ------
    ValueError
        If the numbers of images differ, k is out of range, an answer is not in ``class_ids``, or
        a class is not in the hierarchy.

    References
    ----------
    Frome et al. (2013), "DeViSE: A Deep Visual-Semantic Embedding Model", appendix B.
    """
    ranked, true = _checked(ranked_ids, true_ids)
    ks = list(ks)
    if wrong := [k for k in ks if not 1 <= k <= ranked.shape[1]]:
        raise ValueError(
            f"k={wrong[0]} must lie between 1 and the {ranked.shape[1]} ranked classes"
        )
    number_of = {id: number for number, id in enumerate(class_ids)}
    if strange := [id for id in np.unique(ranked).tolist() if id not in number_of]:
        raise ValueError(f"answer {strange[0]!r} is not one of the {len(number_of)} class_ids")
    answers, inverse = np.unique(ranked, return_inverse=True)
    numbers = np.array([number_of[id] for id in answers.tolist()])[inverse].reshape(ranked.shape)
    distances = hierarchy.distances(class_ids)
    near = dict.fromkeys(ks, 0)
    classes, owner = np.unique(true, return_inverse=True)
    for number, images in enumerate(_members(owner, len(classes))):
        distance = distances[classes[number]]
        radii = np.sort(distance[np.isfinite(distance)])  # the k-th nearest ends the growth
        of_answers = distance[numbers[images]]
        for k in ks:
            radius = radii[min(k, len(radii)) - 1] if len(radii) else -1
            near[k] += int((of_answers[:, :k] <= radius).sum())
    return {k: near[k] / (k * len(true)) for k in ks}


def error_distances(
    ranked_ids: Sequence[Sequence[str]], true_ids: Sequence[str], hierarchy: Hierarchy
) -> np.ndarray:
    """Distance from the true class to the first-ranked wrong one, for each image.

    The mean over all images says how near the best wrong answer is; over those whose first
    answer is wrong, how bad mistakes are (Bertinetto et al. 2020, "Making Better Mistakes",
    arXiv:1912.09393, who measure the height of the common ancestor instead).

    Parameters
    ----------
    ranked_ids : array of str, shape (N, K)
        Answers, best first.
    true_ids : sequence of N str

    Returns
    -------
    ndarray of shape (N,), float
        Edges through a common ancestor; NaN where no wrong class is ranked, inf if no ancestor is
        shared.

    Raises
    ------
    ValueError
        If the numbers of images differ or a class is not in the hierarchy.
    """
    ranked, true = _checked(ranked_ids, true_ids)
    wrong = ranked != true[:, None]
    first = ranked[np.arange(len(true)), wrong.argmax(axis=1)]
    return np.array([
        hierarchy.distance(a, b) if any_wrong else math.nan
        for a, b, any_wrong in zip(true.tolist(), first.tolist(), wrong.any(axis=1), strict=True)
    ])  # fmt: skip


def read_hierarchy(path: str | Path) -> Hierarchy:
    """Read a hierarchy from any of the files below, told apart by how they begin.

    WordNet's ``data.noun``, ImageNet's ``wordnet.is_a.txt``, Open Images'
    ``bbox_labels_600_hierarchy.json`` and Tencent ML-Images'
    ``dictionary_and_semantic_hierarchy.txt``.

    Raises
    ------
    ValueError
        As the reader of that file does.
    """
    with open(path, encoding="utf-8") as file:
        head = file.readline()
    if head.startswith("{"):
        return read_open_images_hierarchy(path)
    if head.startswith("category_index"):
        return read_tencent_hierarchy(path)
    # a licence, or a synset's offset, file number, type and count of words
    if head.startswith("  ") or len(head.split()) > 2:
        return read_wordnet(path)
    return read_is_a(path)


def read_wordnet(path: str | Path) -> Hierarchy:
    """Read hypernyms and instance hypernyms from WordNet's ``data.noun``; ids are n + offset.

    ImageNet's synsets are those of version 3.0.

    Raises
    ------
    ValueError
        If a line is cut short, or points to a synset that the file lacks.

    References
    ----------
    wndb(5WN): synset_offset lex_filenum ss_type w_cnt (word lex_id)… p_cnt (pointer_symbol
    synset_offset pos source/target)… | gloss, where w_cnt is hexadecimal.
    """
    parents: dict[str, tuple[str, ...]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("  "):  # the licence
                continue
            try:
                head, _ = line.split(" | ", 1)
                fields = head.split()
                pointers = fields[4 + 2 * int(fields[3], 16) :]
                symbols, offsets = pointers[1::4], pointers[2::4]
                if len(pointers) != 1 + 4 * int(pointers[0]):
                    raise ValueError("pointers")
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}, line {number}: cut short, or no noun: {line[:60].strip()!r}"
                ) from None
            above = zip(symbols, offsets, strict=True)
            parents[f"n{fields[0]}"] = tuple(f"n{to}" for s, to in above if s in ("@", "@i"))
    for id, above in parents.items():
        if lost := [parent for parent in above if parent not in parents]:
            raise ValueError(f"{path}: {id} is below {lost[0]}, which the file lacks")
    return Hierarchy(parents)


def read_is_a(path: str | Path) -> Hierarchy:
    """Read ImageNet's ``wordnet.is_a.txt``: a parent and a child per line.

    Raises
    ------
    ValueError
        If a line has not two ids.
    """
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if len(ids := line.split()) != 2:
            raise ValueError(f"{path}, line {number}: {line!r} must be 'parent child'")
        parents.setdefault(ids[1], []).append(ids[0])
    return Hierarchy({id: tuple(above) for id, above in parents.items()})


def read_open_images_hierarchy(path: str | Path) -> Hierarchy:
    """Read ``bbox_labels_600_hierarchy.json``: nested LabelName, Subcategory, Part.

    A subcategory is a kind of what it lies in; a part is not (a wheel is no kind of car), so it
    gets no parent from there.

    Raises
    ------
    ValueError
        If the file is cut short or a node has no LabelName.
    """
    parents: dict[str, list[str]] = {}
    try:
        nodes = [(json.loads(Path(path).read_text(encoding="utf-8")), None)]
        for node, parent in nodes:  # grows as nodes are opened
            above = parents.setdefault(node["LabelName"], [])
            above += [parent] if parent is not None else []
            nodes += [(child, node["LabelName"]) for child in node.get("Subcategory", ())]
            nodes += [(child, None) for child in node.get("Part", ())]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path}: cut short, or no hierarchy of LabelNames ({error!r})") from None
    return Hierarchy({id: tuple(above) for id, above in parents.items()})


def read_tencent_hierarchy(path: str | Path) -> Hierarchy:
    """Read Tencent ML-Images' ``dictionary_and_semantic_hierarchy.txt``: four trees.

    Raises
    ------
    ValueError
        As :func:`read_tencent_categories` does.
    """
    rows = read_tencent_categories(path)
    parents: dict[str, list[str]] = {id: [] for id, _, _ in rows}
    for id, parent, _ in rows:
        parents[id] += [rows[parent][0]] if parent >= 0 else []
    return Hierarchy({id: tuple(above) for id, above in parents.items()})


def _checked(ranked_ids, true_ids) -> tuple[np.ndarray, np.ndarray]:
    ranked, true = np.asarray(ranked_ids), np.asarray(true_ids)
    if ranked.ndim != 2 or len(ranked) != len(true) or not ranked.size:
        raise ValueError(
            f"ranked_ids of shape {ranked.shape} must be (N, K), one row for each of the "
            f"{len(true)} true_ids"
        )
    return ranked, true


def _members(owner: np.ndarray, n: int) -> list[np.ndarray]:
    """List, for each number below n, where it stands."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=n))[:-1])
