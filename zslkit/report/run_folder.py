"""The folder of a run: whose it is, what it was started with, its rows and its facts.

It holds ``config.json``, ``inputs.json``, ``metrics.jsonl``, ``checkpoints/``, ``run.json`` with
its readable ``card.md``, ``review.json`` with the decisions on captions that were read, if any,
``checksums.json`` of these and, while a run writes to it, ``lock.json``.
"""

import contextlib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.data.files import json_text, write_text
from zslkit.data.locks import locked
from zslkit.data.manifests import list_manifests
from zslkit.data.review import checksum
from zslkit.data.sealed import sealed_text, spoilt, write_noted
from zslkit.report.inputs import NAME as INPUTS
from zslkit.report.inputs import refuse_mixture
from zslkit.report.provenance import peak_memory
from zslkit.training import dist

# What may differ between a run and its continuation without changing a single weight.
FREE_TO_CHANGE = {
    *("output_dir", "resume", "checkpoint_every", "keep_checkpoints", "cache_dir", "workers"),
    *("data_root", "zeroshot_data_root", "max_unreadable", "tensorboard", "test_split"),
    *("zeroshot_manifest", "zeroshot_split", "keep_every", "best_by", "allow_changed"),
    *("prompt_templates", "review"),  # what a review holds is compared, not its path
}
_RUN_FILES = ("metrics.jsonl", "run.json", "card.md", "tensorboard", "checkpoints", "config.json")
_RUN_FILES += ("review.json", "places.json", INPUTS, "checksums.json")

# Settings that may name a file or folder; relative ones start from where the run was started.
_PLACES = ("manifest", "zeroshot_manifest", "data_root", "zeroshot_data_root", "image_weights")
_PLACES += ("teacher_run", "caption_noise_file", "cache_dir", "review")


@dataclass
class RunFacts:
    """What there is to say of a run besides its curves; ``record`` in ``run.json``."""

    steps_per_epoch: int = 0
    total_steps: int = 0
    """Where the run ends, by its configuration."""
    steps: int = 0
    """Taken so far."""
    interrupted: bool = True
    """Whether ``total_steps`` were not reached."""
    train_seconds: float = 0.0
    seconds_per_step: float = 0.0
    images_per_second: float = 0.0
    peak_memory_mib: dict[str, int] = field(default_factory=dict)
    """By place: resident, and the device's name."""
    pairs: int = 0
    """Pairs trained on."""
    swapped_captions: int = 0
    unreadable_images: list[str] = field(default_factory=list)
    """Their keys."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Keys of pairs that could not be used, by the reason."""
    source: list[str] = field(default_factory=list)
    """How the training pairs were understood, in two lines."""
    advice: list[str] = field(default_factory=list)
    """What the coach said last."""

    def measure(self, steps: int, seconds: float, batch_size: int) -> None:
        """Say how far the run has come and what that took."""
        self.steps, self.interrupted = steps, steps < self.total_steps
        self.train_seconds = round(seconds, 2)
        self.seconds_per_step = round(seconds / max(1, steps), 4)
        self.images_per_second = round(steps * batch_size / max(seconds, 1e-9), 1)
        self.peak_memory_mib = peak_memory()


def run_facts(
    config: RunConfig, facts: RunFacts, history: list[dict[str, float]]
) -> dict[str, object]:
    """Give what a run says of itself in a notebook: few facts, in order."""
    found = {"manifest": config.manifest, "image_encoder": config.image_encoder}
    found |= {"text_encoder": config.text_encoder, "soft_targets": config.soft_targets}
    found["steps"] = f"{facts.steps} of {facts.total_steps}"
    if history:
        found["loss"] = f"{history[0]['loss']:.4g} → {history[-1]['loss']:.4g}"
    return found | {"seconds": facts.train_seconds}


@contextlib.contextmanager
def run_folder(config: RunConfig, inputs: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Prepare the folder of a run and hold its lock for the time of a block.

    Without ``resume``, an earlier run in the folder is moved aside, never overwritten.

    Parameters
    ----------
    inputs : mapping, optional
        What :func:`zslkit.report.inputs.fingerprint_inputs` gives: written down, and compared
        where a run goes on.

    Raises
    ------
    BlockingIOError
        If another run writes to the folder; the message says who.
    OSError
        If the folder cannot be written.
    ValueError
        If ``resume`` is asked for with a configuration that would train differently, or with other
        inputs, or a file that it needs is damaged.
    """
    run_dir = Path(config.output_dir)
    problem = None
    with contextlib.ExitStack() as stack:
        if dist.rank() == 0:  # a second process would move aside what the first has just begun
            try:
                _prepare(run_dir, config, inputs or {}, stack)
            except (OSError, ValueError) as error:
                problem = error
        if dist.any_process(problem is not None):
            raise problem or OSError(f"output_dir={str(run_dir)!r}: see the error of process 0")
        yield run_dir


def _prepare(
    run_dir: Path, config: RunConfig, inputs: Mapping[str, Any], stack: contextlib.ExitStack
) -> None:
    """Make the folder ready; what it holds afterwards is this run's own."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(run_dir / "lock.json"))
        if config.resume and (run_dir / "config.json").is_file():
            if changed := changes_since(run_dir, config):
                raise ValueError(
                    f"resume=True: the run in {str(run_dir)!r} was started with another "
                    f"configuration: {', '.join(changed)}; restore these, or choose another "
                    "output_dir"
                )
            allowed = refuse_mixture(run_dir, inputs, config.allowed_changes) if inputs else []
            for change in allowed:
                print(f"resume=True: {change}, as allow_changed has it")
        elif earlier := [name for name in _RUN_FILES if (run_dir / name).exists()]:
            asides = (run_dir / f"earlier-{number}" for number in itertools.count(1))
            aside = next(folder for folder in asides if not folder.exists())
            aside.mkdir()
            for name in earlier:
                (run_dir / name).rename(aside / name)
        texts = {run_dir / "config.json": json_text(config.model_dump(mode="json"))}
        places = {"run_dir": str(run_dir.resolve()), "started_in": str(Path.cwd())}
        texts[run_dir / "places.json"] = json_text(places)
        if config.review is not None:
            texts[run_dir / "review.json"] = Path(config.review).read_text("utf-8")
        write_noted(texts | ({run_dir / INPUTS: sealed_text(inputs)} if inputs else {}))
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"output_dir={config.output_dir!r}: cannot be written ({error.strerror}); "
            "give a folder that you may write to"
        ) from error


def config_of_run(run_dir: str | Path) -> RunConfig:
    """Read the configuration of a run so that it finds its data from wherever it is used.

    Relative files and folders are those of the folder in which the run was started; where they
    are no longer there, those at the same place as seen from the run's own folder, which may have
    moved with them.

    Raises
    ------
    FileNotFoundError
        If there is no ``config.json``.
    ValueError
        If it, or what is read beside it, is damaged.
    """
    run_dir = Path(run_dir).resolve()
    config = RunConfig(**read_settings(run_dir))
    if not (run_dir / "places.json").is_file():  # of an older version
        return config
    places = json.loads((run_dir / "places.json").read_text("utf-8"))
    started_in, old_dir = Path(places["started_in"]), places["run_dir"]
    found = {}
    for name in _PLACES:
        value = getattr(config, name)
        if value is None or value in list_manifests():
            continue
        before = started_in / value
        moved = run_dir / os.path.relpath(before, old_dir)
        if started_in == Path.cwd() and before.exists():
            continue
        if (place := next((p for p in (before, moved) if p.exists()), None)) is not None:
            found[name] = str(Path(os.path.normpath(place)))
    return config.model_copy(update=found)


def changes_since(run_dir: Path, config: RunConfig) -> list[str]:
    """Name the settings that would make the run in ``run_dir`` train differently, if resumed.

    A setting that an older version did not know counts as its default.

    Raises
    ------
    ValueError
        If ``config.json`` is damaged.
    """
    earlier = read_settings(run_dir)
    earlier = RunConfig().model_dump(mode="json") | earlier
    now = config.model_dump(mode="json")
    kept = run_dir / "review.json"
    reviews = [config.review, kept if kept.is_file() else None]
    before, after = (path and checksum(path)[:12] for path in reversed(reviews))
    decided = [] if before == after else [f"decisions of review={after!r} (was {before!r})"]
    return decided + [
        f"{name}={now[name]!r} (was {earlier[name]!r})"
        for name in now
        if name not in FREE_TO_CHANGE and earlier[name] != now[name]
    ]


def read_settings(run_dir: Path) -> dict[str, Any]:
    """Read ``config.json`` of a run.

    Raises
    ------
    ValueError
        If it, or the list of checksums, is not what was written; names the file.
    """
    bad = spoilt(Path(run_dir))
    for name in ("checksums.json", "config.json", "places.json", "review.json", INPUTS):
        if name in bad:
            raise ValueError(
                f"{str(Path(run_dir) / name)!r}: {bad[name]}: it is not what the run wrote. "
                "Restore it from a copy; if you changed it on purpose, delete checksums.json "
                "beside it"
            )
    path = Path(run_dir) / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); restore it from a copy") from None


def recorded_facts(run_dir: Path, step: int) -> RunFacts:
    """Give what ``run.json`` says of a run; of one that is damaged or not there, the steps alone.

    Damage, also of the card, is named in a warning: weights do not depend on either.
    """
    bad = spoilt(run_dir)
    for name in ("run.json", "card.md"):
        if name in bad and (run_dir / name).is_file():
            message = f"{str(run_dir / name)!r}: {bad[name]}; it is left unread"
            warnings.warn(message, stacklevel=3)
    path = run_dir / "run.json"
    if "run.json" in bad or not path.is_file():
        return RunFacts(steps=step)
    return RunFacts(**json.loads(path.read_text("utf-8")).get("record", {"steps": step}))


def read_history(
    run_dir: Path, last_step: int, written: str | None = None
) -> list[dict[str, float]]:
    """Read the rows of ``metrics.jsonl`` up to a step; a torn last line is left out.

    Parameters
    ----------
    written : str, optional
        Hash of these rows as the checkpoint knows it, see :func:`history_hash`: where rows were
        lost or changed since, a warning says so.
    """
    path, rows = Path(run_dir) / "metrics.jsonl", []
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row["step"] <= last_step:
                rows.append(row)
        except (ValueError, KeyError, TypeError):  # cut short by a kill, or damaged
            continue
    if written is not None and history_hash(rows) != written:
        lost = last_step - len({row["step"] for row in rows})
        warnings.warn(
            f"{str(path)!r}: {f'{lost} of {last_step} rows are lost' if lost else 'rows changed'} "
            "since the checkpoint was written; curves are drawn from what is left, the weights do "
            "not depend on it",
            stacklevel=3,
        )
    return rows


def history_hash(rows: list[dict[str, float]]) -> str:
    """Hash rows as ``metrics.jsonl`` holds them."""
    return hashlib.sha256(_lines(rows).encode()).hexdigest()


def rewind_history(
    run_dir: Path, last_step: int, written: str | None = None
) -> list[dict[str, float]]:
    """Cut ``metrics.jsonl`` after a step: later rows are trained again, and would stand twice."""
    rows = read_history(run_dir, last_step, written)
    if dist.rank() == 0:
        write_text(run_dir / "metrics.jsonl", _lines(rows))
    return rows


def say_where(run_dir: Path, resume: bool, checkpoint: Path | None) -> None:
    """Print where a run that was told to go on does so: never does it start over silently."""
    if resume and dist.rank() == 0:
        where = "no checkpoint yet: starting at step 0"
        if checkpoint is not None:
            where = f"going on from step {int(checkpoint.name.removeprefix('step-'))}"
        print(f"resume=True: {str(run_dir)!r}: {where}")


def _lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
