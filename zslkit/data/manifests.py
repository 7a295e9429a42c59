"""Manifests: what a data set is, where its files lie, and whether they are sound."""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from zslkit.data.files import find_files
from zslkit.data.readers import reader_of
from zslkit.data.schema import LABELLED, FileEntry, ManifestFields, Problem
from zslkit.data.showing import Shown, some
from zslkit.data.strict import explain, nearest


class Manifest(Shown, ManifestFields):
    """Description of one data set; read it with :func:`load_manifest`."""

    def _facts(self) -> dict[str, object]:
        facts = {"name": self.name, "title": self.title, "kind": self.kind}
        facts |= {"splits": some([*self.splits]), "files": len(self.files)}
        return facts | {"licence": self.licence}

    def verify(self) -> list[Problem]:
        """Return every file that is missing, short or changed; empty if all is sound.

        A labelled set in its official files is opened as well: whatever keeps a split from being
        read is a problem, and so are images that no list names.
        """
        known = {entry.path: entry for entry in self.files}
        entries = [known.get(path, FileEntry(path=path)) for path in self.paths]
        problems = [problem for entry in entries if (problem := _check(self.data_root, entry))]
        if self.kind in LABELLED and not problems:
            problems = self._check_splits()
        return problems

    def _check_splits(self) -> list[Problem]:
        """Open every split; name what keeps it from being read, and images that no list names."""
        problems, extra = [], {}
        for name, split in self.splits.items():
            try:
                source = reader_of(self.kind)(self, split, self.data_root)
            except ValueError as error:
                problems.append(Problem(name, "unsound", str(error)))
                continue
            place = split.folder or ", ".join(split.shards)
            extra[place] = extra.get(place, set(source.extra)) & set(source.extra)
        for place, names in extra.items() if not problems else ():
            if names:
                some = ", ".join(sorted(names)[:3])
                detail = f"{len(names)} images are in no list: {some}"
                problems.append(Problem(place, "extra", detail))
        return problems


def load_manifest(name_or_path: str | Path, data_root: str | Path | None = None) -> Manifest:
    """Read and check a manifest; the files it describes are not touched.

    Parameters
    ----------
    name_or_path : str or Path
        A ``.json`` file, or a name: ``data_manifests/NAME.json`` in the working folder or one
        of its parents, beside the package, or inside it.
    data_root : str or Path, optional
        Folder that the manifest's paths start from; by default that of the manifest file.

    Raises
    ------
    ValueError
        If the name is unknown or the content is at fault.
    FileNotFoundError
        If a path is given and there is no such file.
    """
    path = _find(str(name_or_path))
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    manifest._data_root = Path(data_root) if data_root is not None else path.parent
    return manifest


def list_manifests() -> list[str]:
    """Names that :func:`load_manifest` knows here."""
    return sorted({file.stem for file in _manifest_files()})


def _manifest_files() -> list[Path]:
    package = Path(__file__).parents[1]
    folders = (Path.cwd(), *Path.cwd().parents, package.parent, package)
    return [file for base in folders for file in base.glob("data_manifests/*.json")]


def _find(name: str) -> Path:
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"manifest {name!r}: there is no such file")
        return Path(name)
    for file in _manifest_files():
        if file.stem == name:
            return file
    raise ValueError(f"manifest {name!r} is not known; {nearest(name, list_manifests())}")


def _check(root: Path, entry: FileEntry) -> Problem | None:
    if not find_files(root, entry.path):
        return Problem(entry.path, "missing", f"not found under {root}")
    path = root / entry.path
    if entry.size is not None and (size := path.stat().st_size) != entry.size:
        kind = "short" if size < entry.size else "changed"
        return Problem(entry.path, kind, f"expected {entry.size} bytes, got {size}")
    for algorithm in ("sha256", "md5"):
        expected = getattr(entry, algorithm)
        if expected is None:
            continue
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if (got := digest.hexdigest()) != expected:
            return Problem(entry.path, "changed", f"expected {algorithm} {expected}, got {got}")
    return None
