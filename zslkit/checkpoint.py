"""Save and restore everything a run needs to go on: safetensors and JSON, nothing unpickled.

A run folder holds ``config.json``, ``metrics.jsonl``, ``checkpoints/step-N``, and ``run.json``
with its readable ``card.md``.
"""

import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zslkit.config import RunConfig
from zslkit.data.files import write_json
from zslkit.encoders.dual import build_dual_encoder
from zslkit.encoders.weights import fingerprint, load_tensors
from zslkit.report.cards import read_run
from zslkit.teacher import Teacher
from zslkit.training import dist

# What may differ between a run and its continuation without changing a single weight.
FREE_TO_CHANGE = {
    *("output_dir", "resume", "checkpoint_every", "cache_dir", "workers"),
    *("data_root", "zeroshot_data_root", "max_unreadable", "tensorboard", "test_split"),
    *("zeroshot_manifest", "zeroshot_split"),
    "prompt_templates",
}
_RUN_FILES = ("metrics.jsonl", "run.json", "card.md", "tensorboard", "checkpoints", "config.json")


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
    record: dict[str, Any] = field(default_factory=dict)
    """Facts of the run: steps, seconds, unreadable images, swapped captions, interruption."""


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
    step: int,
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Path:
    """Write one checkpoint atomically and remove the one before.

    Parameters
    ----------
    state : dict
        What else the loop needs: JSON values and tensors.

    Returns
    -------
    Path
        ``run_dir/checkpoints/step-N``; it exists only when complete.
    """
    folder = run_dir / "checkpoints" / f"step-{step:09d}"
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"writing-{os.getpid()}-{step}")
    temporary.mkdir(parents=True, exist_ok=True)
    tensors = {"model": trained_state(model)}
    if teacher is not None:
        own = teacher.state_dict()
        tensors["teacher"] = {name: own[name] for name in _teacher_names(tensors["model"])}
    packed = optimizer.state_dict()
    groups = {**packed["state"], "state": state, "rng": {"cpu": torch.get_rng_state()}}
    if torch.cuda.is_available():
        groups["rng"]["cuda"] = torch.cuda.get_rng_state()
    tensors["optimizer"] = {
        f"{group}.{slot}": value
        for group, slots in groups.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }
    for name, those in tensors.items():
        alone = {name: t.detach().cpu().contiguous().clone() for name, t in those.items()}
        save_file(alone, temporary / f"{name}.safetensors")
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    facts = {**plain, "step": step, "param_groups": packed["param_groups"]}
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
) -> dict[str, Any]:
    """Load a checkpoint into freshly built parts; return its ``state``.

    Raises
    ------
    ValueError
        If the checkpoint does not fit the parts, or frozen towers differ from the run's.
    """
    state = _load_weights(folder, model, teacher)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        group, _, slot = name.partition(".")
        groups[group][slot] = tensor
    random = groups.pop("rng")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    state |= groups.pop("state", {})
    moments = {int(number): slots for number, slots in groups.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state.pop("param_groups")})
    return state


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
    state = _load_weights(folder, model, teacher)
    record = (read_run(run_dir) or {}).get("record", {})
    history = read_history(run_dir, state["step"])
    return Run(model.eval(), config, history, run_dir, teacher, record)


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
