"""Manifests: what a data set is, where its files lie, and whether they are sound."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from zslkit.data.files import find_files
from zslkit.data.readers import reader_of
from zslkit.data.schema import LABELLED, FileEntry, ManifestFields, Problem
from zslkit.data.showing import Shown, some
from zslkit.data.strict import explain, nearest, parse_json


class Manifest(Shown, ManifestFields):
    """Description of one data set; read it with :func:`load_manifest`."""

    def _facts(self) -> dict[str, object]:
        facts = {"name": self.name, "title": self.title, "kind": self.kind}
        facts |= {"splits": some([*self.splits]), "files": len(self.files)}
        return facts | {"licence": self.licence}

    def as_found(self, root: Path | None = None) -> "Manifest":
        """Give the set in the first of its layouts of which some split is there, else its own."""
        root = self.data_root if root is None else root
        for layout in (self, *self.layouts):
            if any(all(find_files(root, p) for p in s.paths) for s in layout.splits.values()):
                fields = {name: getattr(layout, name) for name in ("kind", "splits", "files")}
                return self.model_copy(update=fields)
        return self

    def verify(self) -> list[Problem]:
        """Return every file that is missing, short or changed; empty if all is sound.

        A labelled set in its official files is opened as well: whatever keeps a split from being
        read is a problem, and so are images that no list names.
        """
        found = self.as_found()
        return found._verify()

    def _verify(self) -> list[Problem]:
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


def load_manifest(
    name_or_path: "Manifest | str | Path | Any",
    data_root: str | Path | None = None,
    *,
    image_field: str | None = None,
    caption_field: str | None = None,
    split_shares: Mapping[str, float] | None = None,
) -> Manifest:
    """Read and check a manifest, or find out what it would be; no image is opened.

    Parameters
    ----------
    name_or_path : str, Path, Manifest, DataFrame or Dataset
        A manifest's ``.json`` file, or its name: ``data_manifests/NAME.json`` in the working
        folder or one of its parents, beside the package, or inside it. Or a source without a
        manifest, which is recognised: see :data:`zslkit.data.readers.RECOGNISERS`.
    data_root : str or Path, optional
        Folder that the manifest's paths start from; by default that of the manifest file.
    image_field, caption_field : str, optional
        Columns or fields of images and captions, where they have no usual name.
    split_shares : mapping of str to float, optional
        Shares of the splits that are drawn where a source names none; they make 1.

    Raises
    ------
    ValueError
        If the name is unknown or the content is at fault.
    FileNotFoundError
        If a path is given and there is no such file.
    """
    fields = {"image_field": image_field, "caption_field": caption_field}
    fields = {name: value for name, value in fields.items() if value is not None}
    if isinstance(name_or_path, Manifest):
        manifest = name_or_path.model_copy(update=fields)
        manifest._data_root = Path(data_root or name_or_path.data_root)
        return manifest
    path = _find(name_or_path, data_root)
    if not isinstance(path, Path) or (content := _read_manifest(path)) is None:
        from zslkit.data.recognition import recognise  # late: readers are heavy

        content, found = recognise(path, data_root, image_field, caption_field, split_shares)
        manifest = Manifest.model_validate(content)
        manifest._data_root, manifest._understood = found.root, found.words
        return manifest
    manifest = parse_manifest(content | fields, str(path))
    if split_shares:
        splits = _draw_anew(manifest, split_shares)
        manifest = parse_manifest(content | fields | {"splits": splits}, str(path))
    manifest._data_root = Path(data_root) if data_root is not None else path.parent
    return manifest


def parse_manifest(content: Any, where: str) -> Manifest:
    """Check what a manifest's JSON holds.

    Raises
    ------
    ValueError
        One line for each field at fault; begins with ``where``.
    """
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from None
    paths = [*manifest.paths, manifest.image_folder]
    paths += [
        path for layout in manifest.layouts for s in layout.splits.values() for path in s.paths
    ]
    for path in paths:
        if ".." in PurePosixPath(path.replace("\\", "/")).parts or "\0" in path:
            raise ValueError(f"{where}: path {path!r} must not lead out of the data root")
    return manifest


def _draw_anew(manifest: Manifest, split_shares: Mapping[str, float]) -> dict[str, Any]:
    """Draw splits where a manifest has but one, or was written with drawn ones."""
    from zslkit.data.recognition import draw_splits

    splits = [split for split in manifest.splits.values() if split.share is None]
    if len(splits) != 1:
        known = ", ".join(manifest.splits)
        raise ValueError(
            f"split_shares={dict(split_shares)}: {manifest.name!r} names its own splits, {known}"
        )
    return draw_splits(splits[0].model_dump(), split_shares)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a file that says that it is a manifest; None for any other, and for folders."""
    if path.suffix != ".json" or not path.is_file():
        return None
    data = path.read_bytes()
    try:
        content = parse_json(data, str(path))
    except ValueError:
        if b"\n{" in data:  # JSON Lines under this name
            return None
        raise
    manifest_like = isinstance(content, dict) and not {"images", "annotations"} <= content.keys()
    return content if manifest_like else None


def list_manifests() -> list[str]:
    """Names that :func:`load_manifest` knows here."""
    return sorted({file.stem for file in _manifest_files()})


def _manifest_files() -> list[Path]:
    package = Path(__file__).parents[1]
    folders = (Path.cwd(), *Path.cwd().parents, package.parent, package)
    return [file for base in folders for file in base.glob("data_manifests/*.json")]


def _find(name: Any, data_root: str | Path | None) -> Any:
    """Give the file of a manifest by its name, or the source itself."""
    if not isinstance(name, str | Path) or str(name).startswith("object:"):
        return name
    if not Path(name).suffix and len(Path(name).parts) == 1:  # a name, rather than a path
        for file in _manifest_files():
            if file.stem == str(name):
                return file
    for path in (Path(name), *((Path(data_root) / name,) if data_root else ())):
        if path.exists():
            return path
    if Path(name).suffix or len(Path(name).parts) > 1:
        raise FileNotFoundError(f"manifest {str(name)!r}: there is no such file")
    raise ValueError(f"manifest {str(name)!r} is not known; {nearest(str(name), list_manifests())}")


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
