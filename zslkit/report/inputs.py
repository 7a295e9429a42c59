"""What a run read, by content: a resume that would mix two versions of it is refused."""

import hashlib
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.config.sections import INPUTS
from zslkit.data.kinds import code_of_kinds
from zslkit.data.pairs import Pairs
from zslkit.data.sealed import read_sealed
from zslkit.report.provenance import PACKAGES, SOURCES, installed
from zslkit.training import dist

NAME = "inputs.json"
"""The file of a run folder that holds them."""
_WORDS = {"manifest": "the manifest is another", "images": "images differ",
          "captions": "captions differ", "code": "code differs",
          "packages": "packages differ", "processes": "number of processes differs"}  # fmt: skip
assert _WORDS.keys() == {*INPUTS}


def fingerprint_inputs(config: RunConfig, pairs: Pairs) -> dict[str, Any]:
    """Fingerprint what a run reads besides its settings.

    Parameters
    ----------
    pairs : Pairs
        The training pairs. Of images above half a gigabyte 8,192 are hashed, evenly taken, and
        the sizes of all; see :meth:`zslkit.data.source.Source.content`.

    Returns
    -------
    dict
        ``manifest``, ``images``, ``captions``, ``code``: hashes; ``packages``: versions;
        ``processes``: how many there are.
    """
    found = installed()
    versions = {name: found[name] for name in sorted(PACKAGES & found.keys())}
    return {
        "manifest": pairs.manifest.checksum,
        "images": pairs.image_fingerprint,
        "captions": pairs.fingerprint,
        "code": _code(config),
        "packages": {"python": platform.python_version(), **versions},
        "processes": dist.world_size(),
    }


def changed_inputs(run_dir: Path, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Say in words which inputs of a run are no longer those that it began with, by name.

    Of an older version's run, which wrote none down, nothing can be said. Where images or the
    manifest differ, what follows from that is not named again.
    """
    if not (Path(run_dir) / NAME).is_file():
        return {}
    earlier = read_sealed(Path(run_dir) / NAME)
    changed = [name for name in INPUTS if earlier.get(name) != inputs[name]]
    follows = {"manifest": ("images", "captions"), "images": ("captions",)}
    implied = {other for name in changed for other in follows.get(name, ())}
    return {name: _words(name, earlier.get(name), inputs[name])
            for name in changed if name not in implied}  # fmt: skip


def refuse_mixture(run_dir: Path, inputs: Mapping[str, Any], allowed: Collection[str]) -> list[str]:
    """Refuse to go on where inputs changed that were not allowed to; list those that were.

    Raises
    ------
    ValueError
        Names what changed, and the setting that would allow it.
    """
    changed = changed_inputs(run_dir, inputs)
    if wrong := [name for name in changed if name not in allowed]:
        raise ValueError(
            f"resume=True: since the run in {str(run_dir)!r} began, "
            f"{'; '.join(changed[name] for name in wrong)}: going on would mix the two. Restore "
            f"what it read, choose another output_dir, or, where you mean it, give "
            f"allow_changed={','.join(wrong)}"
        )
    return [*changed.values()]


def same_code(run_dir: Path, config: RunConfig) -> bool:
    """Tell whether a run was begun under today's code; of an older version's, assume it."""
    if not (Path(run_dir) / NAME).is_file():
        return True
    return read_sealed(Path(run_dir) / NAME)["code"] == _code(config)


def _code(config: RunConfig) -> str:
    own = code_of_kinds(config.model_dump(mode="json"))
    return hashlib.sha256(f"{SOURCES}{sorted(own.items())}".encode()).hexdigest()


def _words(name: str, before: Any, now: Any) -> str:
    words = _WORDS[name]
    if name == "processes":
        words += f" ({now}, was {before})"
    if name == "packages":
        before = before or {}
        pairs = ((one, before.get(one), now.get(one)) for one in sorted({*before, *now}))
        words += f" ({', '.join(f'{n} {b}, was {a}' for n, a, b in pairs if a != b)})"
    return words
