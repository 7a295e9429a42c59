"""What data sets are at hand: what each is, its size, and whether its files are here."""

from pathlib import Path
from typing import Any

from zslkit.data.files import find_files
from zslkit.data.manifests import Manifest, list_manifests, load_manifest


def list_sets(data_root: str | Path | None = None) -> list[dict[str, Any]]:
    """Describe every manifest that :func:`load_manifest` knows by name; no file is opened.

    Parameters
    ----------
    data_root : str or Path, optional
        Folder that holds the sets; by default that of each manifest.

    Returns
    -------
    list of dict
        ``name``, ``title``, ``kind``, ``splits``, ``bytes`` (of the files that are here, else as
        the manifest states; None where it does not) and ``here``: "yes", "no",
        "in part", or "cannot tell".
    """
    return [_describe(load_manifest(name, data_root)) for name in list_manifests()]


def _describe(manifest: Manifest) -> dict[str, Any]:
    # a set that is the data root itself has no path that could tell
    found = [find_files(manifest.data_root, path) for path in manifest.paths if path != "."]
    files = {file for some in found for file in some}
    stated = [entry.size for entry in manifest.files]
    size = sum(stated) if stated and None not in stated else None
    if found and all(found) and all(file.is_file() for file in files):
        size = sum(file.stat().st_size for file in files)
    here = "yes" if all(found) else "in part" if files else "no"
    built_in = manifest.kind == "toy"
    return {
        "name": manifest.name,
        "title": manifest.title,
        "kind": manifest.kind,
        "splits": [*manifest.splits],
        "bytes": 0 if built_in else size,
        "here": here if found or built_in else "cannot tell",
    }
