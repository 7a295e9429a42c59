"""Label spaces: lists of classes with ids and names, each known by a hash."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from zslkit.data.files import write_text
from zslkit.data.manifests import Manifest, list_manifests, load_manifest
from zslkit.data.showing import Shown, some
from zslkit.data.strict import nearest, parse_json
from zslkit.data.words import words

_IMAGENET = {  # timm's names of the lists in its package
    "imagenet1k": ("imagenet-1k",),
    "imagenet12k": ("imagenet-12k",),
    "imagenet21k": ("imagenet-22k",),  # the 21,841 synsets of the release of autumn 2011
    "imagenet21k+1k": ("imagenet-22k", "imagenet-1k"),
}


_FOLDER = "data_manifests/label_spaces"


@dataclass(frozen=True, repr=False)
class LabelSpace(Shown):
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

    def _facts(self) -> dict[str, object]:
        facts = {"name": self.name, "classes": len(self), "class_names": some(self.class_names)}
        return facts | {"source": self.source, "sha256": self.checksum[:12]}

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
    data = path.read_bytes()
    if path.suffix != ".txt" and b'"kind"' in data:
        found = parse_json(data, str(path))
        if isinstance(found, dict) and "kind" in found:
            return _listed(load_manifest(path, data_root))
    return parse_label_space(data, path)


def parse_label_space(data: bytes, path: Path) -> LabelSpace:
    """Read the content of a ``.txt`` or ``.json`` file of a label space.

    Raises
    ------
    ValueError
        If it is not that, or does not fit its checksum; begins with ``path``.
    """
    if path.suffix == ".txt":
        try:
            lines = [line.split(",") for line in data.decode().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error})") from None
        names = [tuple(part.strip() for part in line if part.strip()) for line in lines]
        if not all(names):
            raise ValueError(f"{path}: a line has no name")
        return from_names(path.stem, names, f"{path.name}, one class per line")
    found = parse_json(data, f"{path}: not a label space")
    try:
        ids, names, definitions = zip(*found["classes"], strict=True)
        names = tuple(map(tuple, names))
        texts = [found["name"], found["source"], *ids, *definitions, *chain(*names)]
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"{strange[0]!r} is no text")
        space = LabelSpace(found["name"], ids, names, definitions, found["source"])
    except (KeyError, TypeError) as error:
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
    except (ValueError, AttributeError, TypeError, RecursionError):
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
    from zslkit.data.readers.class_lists import listed_classes

    ids, names = listed_classes(manifest, manifest.data_root)
    source = f"lists of manifest {manifest.name}"
    return LabelSpace(manifest.name, ids, names, ("",) * len(ids), source)


def _known_files() -> list[Path]:
    package = Path(__file__).parents[1]
    folders = (package, package.parent, *reversed(Path.cwd().parents), Path.cwd())
    return [file for base in folders for file in sorted((base / _FOLDER).glob("*.json"))]
