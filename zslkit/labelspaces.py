"""Label spaces: which classes there are, what they are called, and which answers count as right.

Dimensions: C = classes, U = different names among them, N = images, M = true classes of all
images, K = ranked names kept for each image.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zslkit.audit import count_mentions, plurals, words
from zslkit.config import nearest
from zslkit.hierarchy import Hierarchy
from zslkit.manifests import Manifest, list_manifests, load_manifest
from zslkit.provenance import write_text

Policy = Literal["strict", "merge_duplicates", "accept_synonyms"]
POLICIES: tuple[Policy, ...] = ("strict", "merge_duplicates", "accept_synonyms")
_IMAGENET = {  # timm's names of the lists in its package
    "imagenet1k": ("imagenet-1k",),
    "imagenet12k": ("imagenet-12k",),
    "imagenet21k": ("imagenet-22k",),  # the 21,841 synsets of the release of autumn 2011
    "imagenet21k+1k": ("imagenet-22k", "imagenet-1k"),
}
_FOLDER = "data_manifests/label_spaces"


@dataclass(frozen=True)
class LabelSpace:
    """C classes with an id each, unique, and one name or more, of which prompts take the first.

    Raises
    ------
    ValueError
        If there is no class, an id occurs twice, or a class has no name.
    """

    name: str
    ids: tuple[str, ...]
    """(C,) WordNet synset, Open Images MID, or the name itself."""
    names: tuple[tuple[str, ...], ...]
    """(C,) of one name or more each; other classes may share them."""
    definitions: tuple[str, ...]
    """(C,) texts, empty where there is none."""
    source: str

    def __post_init__(self):
        if not self.ids:
            raise ValueError(f"label space {self.name!r} has no classes")
        if not len(self.ids) == len(self.names) == len(self.definitions):
            raise ValueError(
                f"label space {self.name!r}: {len(self.ids)} ids, {len(self.names)} lists of "
                f"names and {len(self.definitions)} definitions must be equally many"
            )
        if len(self._number_of) < len(self.ids):
            twice = next(id for i, id in enumerate(self.ids) if self._number_of[id] != i)
            raise ValueError(f"label space {self.name!r}: id {twice!r} occurs more than once")
        if nameless := [id for id, names in zip(self.ids, self.names, strict=True)
                        if not names or not all(names)]:  # fmt: skip
            raise ValueError(f"label space {self.name!r}: class {nameless[0]!r} has an empty name")

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {id: number for number, id in enumerate(self.ids)}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """(C,) The name that prompts take; two classes may have the same."""
        return tuple(names[0] for names in self.names)

    @cached_property
    def described(self) -> dict[str, tuple[str, ...]]:
        """The definitions of all classes that have a first name, where there are any."""
        found = defaultdict(list)
        for name, definition in zip(self.class_names, self.definitions, strict=True):
            found[name] += [definition] if definition else []
        return {name: tuple(texts) for name, texts in found.items()}

    @cached_property
    def checksum(self) -> str:
        """Sha256 of the classes in their order: ids, names and definitions, not the title."""
        text = json.dumps(self._classes(), ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: str | Path) -> Path:
        """Write a JSON file, a class per line, for :func:`load_label_space`; give its path."""
        facts = {"name": self.name, "source": self.source, "sha256": self.checksum}
        head = json.dumps(facts, indent=2, ensure_ascii=False).removesuffix("\n}")
        rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in self._classes())
        write_text(Path(path), f'{head},\n  "classes": [\n    {rows}\n  ]\n}}\n')
        return Path(path)

    def match(
        self,
        ids: Sequence[str],
        class_names: Sequence[str],
        mapping: Mapping[str, Sequence[str]] | None = None,
    ) -> list[tuple[int, ...]]:
        """Find the classes of another set here: class numbers for each of them, or none.

        An equal id decides; else an entry of ``mapping`` (its class name → ids here); else all
        classes whose first name is the same; else all that have it among their names. What names
        alone have found deserves a look: WordNet calls a walrus "sea horse".

        Raises
        ------
        ValueError
            If ``mapping`` names a class that the set, or an id that this space, has not.
        """
        mapping = mapping or {}
        if strange := [name for name in mapping if name not in class_names]:
            raise ValueError(
                f"mapping: {strange[0]!r} is no class; {nearest(strange[0], class_names)}"
            )
        first, any_name = defaultdict(list), defaultdict(list)
        for number, names in enumerate(self.names):
            first[normal_form(names[0])].append(number)
            for form in dict.fromkeys(map(normal_form, names)):
                any_name[form].append(number)
        found = []
        for id, name in zip(ids, class_names, strict=True):
            form = normal_form(name)
            if id in self._number_of:
                found.append((self._number_of[id],))
            elif name in mapping:
                if strange := [id for id in mapping[name] if id not in self._number_of]:
                    raise ValueError(f"mapping: {name!r} → {strange[0]!r} is not in {self.name!r}")
                found.append(tuple(self._number_of[chosen] for chosen in mapping[name]))
            else:
                found.append(tuple(first.get(form) or any_name.get(form, ())))
        return found

    def _classes(self) -> list[list]:
        rows = zip(self.ids, self.names, self.definitions, strict=True)
        return [[id, list(names), definition] for id, names, definition in rows]


def load_label_space(name_or_path: str | Path, data_root: str | Path | None = None) -> LabelSpace:
    """Build a known label space, or read one from a file.

    Parameters
    ----------
    name_or_path : str or Path
        imagenet1k, imagenet12k, imagenet21k (21,841 synsets), imagenet21k+1k (their union,
        21,842), from the lists in the timm package; a file of ``data_manifests/label_spaces``
        (cifar10, cifar100, caltech101); a ``.json`` file as :meth:`LabelSpace.save` writes it;
        a ``.txt`` file with one class per line, further names after commas; or the manifest of
        Open Images or Tencent ML-Images, whose own lists are then read, and no image.
    data_root : str or Path, optional
        Folder that the manifest's paths start from.

    Raises
    ------
    ValueError
        If the name is unknown, a file has no classes or its content does not fit its checksum.
    FileNotFoundError
        If a path is given and there is no such file.
    """
    name = str(name_or_path)
    if name in _IMAGENET:
        return _imagenet(name)
    path = Path(name)
    if path.suffix not in (".json", ".txt"):
        files = {file.stem: file for file in _known_files()}
        if name not in files and name in list_manifests():
            return _listed(load_manifest(name, data_root))
        if name not in files:
            known = [*_IMAGENET, *sorted(files)]
            raise ValueError(f"label space {name!r} is not known; {nearest(name, known)}")
        path = files[name]
    if not path.is_file():
        raise FileNotFoundError(f"label space {name!r}: there is no such file")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        lines = [line.split(",") for line in text.splitlines() if line.strip()]
        names = [tuple(part.strip() for part in line if part.strip()) for line in lines]
        return from_names(path.stem, names, f"{path.name}, one class per line")
    try:
        found = json.loads(text)
        if "kind" in found:
            return _listed(load_manifest(path, data_root))
        ids, names, definitions = zip(*found["classes"], strict=True)
        names = tuple(map(tuple, names))
        space = LabelSpace(found["name"], ids, names, definitions, found["source"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a label space ({type(error).__name__}: {error})") from None
    if space.checksum != found.get("sha256"):
        raise ValueError(
            f"{path}: its classes have sha256 {space.checksum}, the file says "
            f"{found.get('sha256')}; if the change is meant, write it with LabelSpace.save"
        )
    return space


def from_names(name: str, names: Iterable[str | Sequence[str]], source: str) -> LabelSpace:
    """Make a label space of plain names, or of lists of names; the first is also the id."""
    lists = tuple((item,) if isinstance(item, str) else tuple(item) for item in names)
    ids = tuple(item[0] for item in lists)
    return LabelSpace(name, ids, lists, ("",) * len(lists), source)


def own_label_space(pairs: Any) -> LabelSpace:
    """Make the label space of a set's own classes; a ValueError refuses unlabelled sets."""
    if pairs.positives is None:
        raise ValueError(
            f"{pairs.manifest.name!r}, split {pairs.split!r}: its images have no classes"
        )
    names = tuple((name,) for name in pairs.class_names)
    source = f"classes of manifest {pairs.manifest.name}"
    return LabelSpace(pairs.manifest.name, pairs.class_ids, names, ("",) * len(names), source)


def read_label_map(path: str | Path | None) -> dict[str, list[str]] | None:
    """Read a JSON file of class name to ids, for :meth:`LabelSpace.match`; None stays None.

    Raises
    ------
    ValueError
        If the file is anything else.
    FileNotFoundError
        If there is no such file.
    """
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        sound = all(isinstance(id, str) for ids in found.values() for id in ids)
    except (json.JSONDecodeError, AttributeError, TypeError):
        sound = False
    if not sound or any(isinstance(ids, str) for ids in found.values()):
        raise ValueError(f'label_map={str(path)!r}: must be JSON such as {{"dog": ["n02084071"]}}')
    return found


def union(a: LabelSpace, b: LabelSpace) -> LabelSpace:
    """Put the classes of two label spaces together, those of the first before the others.

    Of classes with one id the first counts.
    """
    new = [i for i, id in enumerate(b.ids) if id not in a._number_of]
    both = (
        field + tuple(other[i] for i in new)
        for field, other in zip(
            (a.ids, a.names, a.definitions), (b.ids, b.names, b.definitions), strict=True
        )
    )
    return LabelSpace(f"{a.name}+{b.name}", *both, f"{a.source}; {b.source}")


def normal_form(name: str) -> str:
    """Write a name without case, hyphens and signs, in which duplicates become equal."""
    return " ".join(words(name)) or name.casefold()


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


def shared_classes(a: LabelSpace, b: LabelSpace) -> dict[str, int]:
    """Count ids, whole lists of names, and first names that two label spaces have in common."""
    return {
        "ids": len({*a.ids} & {*b.ids}),
        "lists of names": len({*a.names} & {*b.names}),
        "first names": len({*a.class_names} & {*b.class_names}),
    }


def seen_in(space: LabelSpace, captions: Iterable[Sequence[str]]) -> np.ndarray:
    """Count, for each class, the captions in which its first name occurs, int64 (C,)."""
    counts = count_mentions(captions, list(dict.fromkeys(space.class_names)))
    return np.array([counts[name] for name in space.class_names], dtype=np.int64)


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
        """Count the answers that a policy tells apart: the base of the chance level."""
        return len(self.space) if policy == "strict" else int(self._group.max()) + 1

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


def _imagenet(name: str) -> LabelSpace:
    import timm
    from timm.data import ImageNetInfo

    parts = [ImageNetInfo(subset) for subset in _IMAGENET[name]]
    ids = tuple(dict.fromkeys(id for part in parts for id in part.label_names()))
    names = tuple(tuple(parts[0].label_name_to_description(id).split(", ")) for id in ids)
    detailed = (parts[0].label_name_to_description(id, detailed=True) for id in ids)
    starts = (f"{', '.join(group)}: " for group in names)
    definitions = tuple(text.removeprefix(s) for text, s in zip(detailed, starts, strict=True))
    source = f"timm {timm.__version__}: {' and '.join(_IMAGENET[name])}; WordNet 3.0 lemmas"
    return LabelSpace(name, ids, names, definitions, source)


def _listed(manifest: Manifest) -> LabelSpace:
    from zslkit.labelled import listed_classes

    ids, names = listed_classes(manifest, manifest.data_root)
    source = f"lists of manifest {manifest.name}"
    return LabelSpace(manifest.name, ids, names, ("",) * len(ids), source)


def _known_files() -> list[Path]:
    package = Path(__file__).parent
    folders = (package, package.parent, *reversed(Path.cwd().parents), Path.cwd())
    return [file for base in folders for file in sorted((base / _FOLDER).glob("*.json"))]


def _words_for(space: LabelSpace, number: int) -> str:
    name, id = space.class_names[number], space.ids[number]
    return name if name == id else f"{name} ({id})"
