"""Save and restore everything a run needs to go on: safetensors and JSON, nothing unpickled.

A run folder holds ``config.json``, ``metrics.jsonl``, ``checkpoints/step-N``, and ``run.json``
with its readable ``card.md``.
"""

import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zslkit.config import ObjectiveSettings, RunConfig
from zslkit.data.files import write_json, write_text
from zslkit.encoders.dual import build_dual_encoder
from zslkit.encoders.weights import fingerprint, load_tensors
from zslkit.report.cards import read_run
from zslkit.report.provenance import peak_memory
from zslkit.teacher import Teacher
from zslkit.training import dist

# What may differ between a run and its continuation without changing a single weight.
FREE_TO_CHANGE = {
    *("output_dir", "resume", "checkpoint_every", "cache_dir", "data_root", "workers"),
    *("tensorboard", "zeroshot_manifest", "zeroshot_split", "test_split"),
    "prompt_templates",
}
_RUN_FILES = ("metrics.jsonl", "run.json", "card.md", "tensorboard", "checkpoints", "config.json")


@dataclass
class LoopState:
    """Where the loop stands: with weights and optimizer all that going on takes."""

    step: int = 0
    """Optimizer steps taken."""
    broken: list[str] = field(default_factory=list)
    """Keys of unreadable images met so far, sorted."""
    seconds: float = 0.0
    """Spent on these steps, in all sessions of the run."""
    trust: Tensor | None = None
    """(N,) probability that each training pair is right; None before it is judged."""
    random: dict[str, Tensor] = field(default_factory=dict)
    """States of torch's random generators by device, as of the last checkpoint."""


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
    advice: list[str] = field(default_factory=list)
    """What the coach said last."""

    def describe(self, state: LoopState, batch_size: int) -> None:
        """Say how far the loop has come and what that took."""
        seconds, steps = state.seconds, max(1, state.step)
        self.steps, self.interrupted = state.step, state.step < self.total_steps
        self.train_seconds = round(seconds, 2)
        self.seconds_per_step = round(seconds / steps, 4)
        self.images_per_second = round(steps * batch_size / max(seconds, 1e-9), 1)
        self.unreadable_images, self.peak_memory_mib = state.broken, peak_memory()


@dataclass
class Run:
    """A trained or interrupted run."""

    model: nn.Module
    """The student, a ``DualEncoder``, in eval mode."""
    config: RunConfig
    """What it was trained with."""
    history: list[dict[str, float]]
    """One row per optimizer step, as in ``metrics.jsonl``."""
    run_dir: Path
    """Where it is stored."""
    teacher: nn.Module | None = None
    """The ``Teacher``, if the objective had one."""
    facts: RunFacts = field(default_factory=RunFacts)
    """Steps, seconds, unreadable images, swapped captions, interruption."""


def start_run_dir(config: RunConfig) -> tuple[Path, Path | None]:
    """Prepare the run folder; return it and the checkpoint to go on from, if any.

    Without ``resume``, an earlier run in the folder is moved aside, never overwritten.

    Raises
    ------
    OSError
        If the folder cannot be written.
    ValueError
        If ``resume`` is asked for with a configuration that would train differently.
    """
    run_dir = Path(config.output_dir)
    problem = None
    if dist.rank() == 0:  # a second process would move aside what the first has just begun
        try:
            _prepare(run_dir, config)
        except (OSError, ValueError) as error:
            problem = error
    if dist.any_process(problem is not None):
        raise problem or OSError(f"output_dir={config.output_dir!r}: see the error of process 0")
    return run_dir, latest_checkpoint(run_dir)


def _prepare(run_dir: Path, config: RunConfig) -> None:
    """Make the folder ready; what it holds afterwards is this run's own."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if config.resume and (run_dir / "config.json").is_file():
            if changed := changes_since(run_dir, config):
                raise ValueError(
                    f"resume=True: the run in {str(run_dir)!r} was started with another "
                    f"configuration: {', '.join(changed)}; restore these, or choose another "
                    "output_dir"
                )
        elif earlier := [name for name in _RUN_FILES if (run_dir / name).exists()]:
            asides = (run_dir / f"earlier-{number}" for number in itertools.count(1))
            aside = next(folder for folder in asides if not folder.exists())
            aside.mkdir()
            for name in earlier:
                (run_dir / name).rename(aside / name)
        write_json(run_dir / "config.json", config.model_dump(mode="json"))
    except OSError as error:
        raise OSError(
            f"output_dir={config.output_dir!r}: cannot be written ({error.strerror}); "
            "give a folder that you may write to"
        ) from error


def changes_since(run_dir: Path, config: RunConfig) -> list[str]:
    """Name the settings that would make the run in ``run_dir`` train differently, if resumed.

    A setting that an older version did not know counts as its default.
    """
    earlier = json.loads((run_dir / "config.json").read_text())
    earlier = RunConfig().model_dump(mode="json") | earlier
    now = config.model_dump(mode="json")
    return [
        f"{name}={now[name]!r} (was {earlier[name]!r})"
        for name in now
        if name not in FREE_TO_CHANGE and earlier[name] != now[name]
    ]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Give the tensors that training may change: all but those of frozen blocks.

    Those are rebuilt from the configuration, so they are not stored with every checkpoint.
    """
    blocks = [block.state_dict(keep_vars=True) for block in model.frozen_blocks]
    still = {id(tensor) for block in blocks for tensor in block.values()}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if id(tensor) not in still}


def save_checkpoint(
    run_dir: Path,
    state: LoopState,
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write one checkpoint atomically and remove the one before.

    Parameters
    ----------
    state : LoopState
        Its random states are taken here.
    frozen : mapping of str to str
        Fingerprints of the towers that are not stored.

    Returns
    -------
    Path
        ``run_dir/checkpoints/step-N``; it exists only when complete.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step:09d}"
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"writing-{os.getpid()}-{state.step}")
    temporary.mkdir(parents=True, exist_ok=True)
    tensors = {"model": trained_state(model)}
    if teacher is not None:
        own = teacher.state_dict()
        tensors["teacher"] = {name: own[name] for name in _teacher_names(tensors["model"])}
    packed = optimizer.state_dict()
    state.random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state.random["cuda"] = torch.cuda.get_rng_state()
    groups = {**packed["state"], "state": {"trust": state.trust}, "rng": state.random}
    tensors["optimizer"] = {
        f"{group}.{slot}": value
        for group, slots in groups.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }
    for name, those in tensors.items():
        alone = {name: t.detach().cpu().contiguous().clone() for name, t in those.items()}
        save_file(alone, temporary / f"{name}.safetensors")
    facts = {"step": state.step, "broken": state.broken, "seconds": state.seconds}
    facts |= {"frozen": dict(frozen), "param_groups": packed["param_groups"]}
    write_json(temporary / "state.json", facts)
    _sync(temporary)
    os.rename(temporary, folder)
    _sync(folder.parent)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def restore_checkpoint(
    folder: Path, model: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer
) -> LoopState:
    """Load a checkpoint into freshly built parts and torch's random generators.

    Raises
    ------
    ValueError
        If the checkpoint does not fit the parts, or frozen towers differ from the run's.
    """
    facts = _load_weights(folder, model, teacher)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        group, _, slot = name.partition(".")
        groups[group][slot] = tensor
    random = groups.pop("rng")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    trust = groups.pop("state", {}).get("trust")
    moments = {int(number): slots for number, slots in groups.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": facts["param_groups"]})
    return LoopState(facts["step"], facts["broken"], facts["seconds"], trust, random)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Find the newest complete checkpoint of a run, None if there is none."""
    return max((Path(run_dir) / "checkpoints").glob("step-*"), default=None)


def load_run(run_dir: str | Path) -> Run:
    """Load a run: its model, configuration and history.

    Parameters
    ----------
    run_dir : path
        What ``output_dir`` was during training.

    Returns
    -------
    Run
        ``.model`` in eval mode on the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run or no checkpoint yet.
    ValueError
        If the weights do not fit the towers that the configuration describes, or a frozen
        tower is no longer the one that the run was trained with.
    """
    run_dir = Path(run_dir)
    folder = latest_checkpoint(run_dir)
    if folder is None or not (run_dir / "config.json").is_file():
        raise FileNotFoundError(
            f"run_dir={str(run_dir)!r}: no run with a checkpoint here; "
            "give the output_dir of a finished training run"
        )
    config = RunConfig(**json.loads((run_dir / "config.json").read_text()))
    # The checkpoint holds all tensors of a tower that trained: no pretrained ones are needed.
    needless = {f"{kind}_weights": "none" for kind in ("image", "text")
                if getattr(config, f"{kind}_tower") == "train"}  # fmt: skip
    model = build_dual_encoder(config.model_copy(update=needless))
    teacher = None
    if (folder / "teacher.safetensors").is_file():
        teacher = Teacher(model, config.teacher, config.ema_decay, config.ema_warmup)
    step = _load_weights(folder, model, teacher)["step"]
    facts = RunFacts(**(read_run(run_dir) or {}).get("record", {"steps": step}))
    return Run(model.eval(), config, read_history(run_dir, step), run_dir, teacher, facts)


def build_teacher(student: nn.Module, config: ObjectiveSettings) -> Teacher | None:
    """Build the teacher that ``config`` asks for; None when no soft target needs one.

    It stands here, not in :mod:`zslkit.teacher`, because a frozen teacher is an earlier run.

    Raises
    ------
    ValueError
        If ``teacher_run`` holds a run whose weights do not fit the student.
    """
    if not config.needs_teacher:
        return None
    teacher = Teacher(student, config.teacher, config.ema_decay, config.ema_warmup)
    if config.teacher == "frozen":
        source = load_run(config.teacher_run).model
        try:
            teacher.model.load_state_dict(source.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"teacher_run={config.teacher_run!r}: its weights do not fit this run's towers "
                f"and embedding_dim ({str(error).splitlines()[-1].strip()})"
            ) from None
    return teacher


def read_history(run_dir: Path, last_step: int) -> list[dict[str, float]]:
    """Read the rows of ``metrics.jsonl`` up to a step; a torn last line is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        if row["step"] <= last_step:
            rows.append(row)
    return rows


def rewind_history(run_dir: Path, last_step: int) -> list[dict[str, float]]:
    """Cut ``metrics.jsonl`` after a step: later rows are trained again, and would stand twice."""
    rows = read_history(run_dir, last_step)
    if dist.rank() == 0:
        write_text(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _load_weights(folder: Path, model: nn.Module, teacher: nn.Module | None) -> dict[str, Any]:
    """Load student and teacher and check the towers that are not stored; return the state."""
    names = trained_state(model).keys()
    owner = "the towers of its configuration"
    load_tensors(model, folder / "model.safetensors", names, owner)
    if teacher is not None:
        load_tensors(teacher, folder / "teacher.safetensors", _teacher_names(names), owner)
    state = json.loads((folder / "state.json").read_text())
    # the trained parts would not suit other frozen towers than those of the training
    for tower, expected in state.get("frozen", {}).items():
        if fingerprint(getattr(model, tower)) != expected:
            kind = tower.removesuffix("_tower")
            raise ValueError(
                f"the frozen {kind} encoder is not the one this run was trained with: what "
                f"{kind}_encoder and {kind}_weights name has changed since; restore it"
            )
    return state


def _teacher_names(names: Iterable[str]) -> list[str]:
    return ["ready", "n_updates", *(f"model.{name}" for name in names)]


def _sync(folder: Path) -> None:
    """Force a folder and its files to disk before the rename that makes them count."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
