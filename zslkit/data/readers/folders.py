"""Folders of labelled images."""

from collections import Counter
from pathlib import Path

from zslkit.data.readers.tables import read_frame
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import IMAGE_SUFFIXES, Source, files_in


def read_folder(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images by the folder of their class, or by a CSV of file,class_name."""
    folder = root / split.folder
    if split.labels is not None:
        frame = read_frame(root, split.labels, ("file", "class_name"), split.where)
        of_file = dict(zip(frame["file"], frame["class_name"], strict=True))
    else:
        files = (path.relative_to(folder) for path in sorted(folder.glob("*/**/*")))
        images = [path for path in files if path.suffix[1:].lower() in IMAGE_SUFFIXES]
        of_file = {path.as_posix(): path.parts[0].replace("_", " ") for path in images}
    names = sorted(set(of_file.values()))
    if manifest.class_list is not None:
        lines = (root / manifest.class_list).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"class_list {manifest.class_list!r}: {len(twice)} classes are listed more than once "
            f"({', '.join(twice[:3])}); list each once"
        )
    if strange := sorted(set(of_file.values()) - set(names)):
        raise ValueError(f"class_list {manifest.class_list!r} lacks the class {strange[0]!r}")
    captions = {file: [name] for file, name in of_file.items()}
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of[name] for name in of_file.values()]
    return files_in(folder, captions, split.labels or split.folder, names, labels)
