"""Which checkpoints a run folder holds, which of them counts, and which stay."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from zslkit.config import RunSettings
from zslkit.data.sealed import damage


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Find the newest sound checkpoint of a run, None if there is none at all.

    Newer ones that are damaged are named in a warning.

    Raises
    ------
    ValueError
        If all are damaged: to start over is not for us to decide.
    """
    damaged = []
    for folder in sorted((Path(run_dir) / "checkpoints").glob("step-*"), reverse=True):
        if (problem := damage(folder)) is None:
            if damaged:
                message = f"damaged and passed over: {'; '.join(damaged)}; using {folder.name}"
                warnings.warn(message, stacklevel=2)
            return folder
        damaged.append(f"checkpoint {str(folder)!r}: {problem}")
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged)}; no sound one is left: restore one from a copy, or remove "
            f"them and train again"
        )
    return None


def checkpoint_at(run_dir: Path, step: int) -> Path:
    """Give the checkpoint of a step.

    Raises
    ------
    FileNotFoundError
        If the run keeps none of that step; names those that it keeps.
    ValueError
        If it is damaged.
    """
    folder = Path(run_dir) / "checkpoints" / f"step-{step:09d}"
    if not folder.is_dir():
        kept = [int(other.name.removeprefix("step-")) for other in folder.parent.glob("step-*")]
        some = ", ".join(map(str, sorted(kept))) or "none"
        raise FileNotFoundError(f"step={step}: {str(run_dir)!r} keeps no such checkpoint: {some}")
    if (problem := damage(folder)) is not None:
        raise ValueError(f"checkpoint {str(folder)!r}: {problem}; restore it from a copy")
    return folder


def best_step(history: Sequence[Mapping[str, float]], name: str | None) -> int | None:
    """Give the step of the highest figure of that name, the first of equals; None without any."""
    rows = [row for row in history if name in row]
    return max(rows, key=lambda row: (row[name], -row["step"]))["step"] if rows else None


def lasting_steps(
    history: Sequence[Mapping[str, float]], config: RunSettings, step: int
) -> set[int]:
    """Say which checkpoints stay besides the last ones: the best, and every n-th."""
    every = (config.keep_every or step + 1) * config.checkpoint_every
    return {*range(every, step + 1, every), best_step(history, config.best_by)} - {None}


def to_remove(folder: Path, keep: int, lasting: Collection[int]) -> list[Path]:
    """List what stands beside a new checkpoint and may go: older ones, what dead writers left.

    Parameters
    ----------
    folder : Path
        The new checkpoint.
    keep : int
        So many stay up to this one, besides those of ``lasting`` steps.
    """
    done = sorted(other for other in folder.parent.glob("step-*") if other <= folder)
    named = {folder.with_name(f"step-{step:09d}") for step in lasting}
    return sorted({*folder.parent.iterdir()} - {*done[-keep:]} - (named & {*done}))
