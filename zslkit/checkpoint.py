"""Save and restore everything a run needs to go on: safetensors and JSON, nothing unpickled.

``run_dir/checkpoints/step-N`` is sealed: a list of its files with sizes and hashes is compared on
every read, and the newest sound checkpoint is the one that counts.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zslkit.config import RunConfig
from zslkit.data.files import write_json
from zslkit.data.sealed import damage, flush, seal
from zslkit.data.showing import Shown
from zslkit.data.weights import check_finite, fingerprint, load_tensors
from zslkit.encoders.dual import build_dual_encoder
from zslkit.report.checkpoints import checkpoint_at, latest_checkpoint, to_remove
from zslkit.report.run_folder import (
    RunFacts,
    config_of_run,
    history_hash,
    read_history,
    recorded_facts,
    run_facts,
)
from zslkit.teacher import Teacher
from zslkit.zeroshot.models.teacher import FixedTeacher, is_other_model


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
    """(M,) probability that each training caption is right; None before it is judged."""
    random: dict[str, Tensor] = field(default_factory=dict)
    """States of torch's random generators by device, as of the last checkpoint."""
    history: str | None = None
    """Hash of the rows of ``metrics.jsonl`` up to the last checkpoint."""


@dataclass(repr=False)
class Run(Shown):
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
    stopped_by: int | None = None
    """Number of the signal that ended it early, if one did."""

    def _facts(self) -> dict[str, Any]:
        return {"run_dir": str(self.run_dir), **run_facts(self.config, self.facts, self.history)}


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
    keep: int = 2,
    lasting: Collection[int] = (),
    history: Sequence[Mapping[str, float]] = (),
) -> Path:
    """Write one checkpoint atomically; remove all but the last ones.

    Parameters
    ----------
    state : LoopState
        Its random states are taken here.
    frozen : mapping of str to str
        Fingerprints of the towers that are not stored.
    keep : int
        Checkpoints that stay, this one included.
    lasting : collection of int
        Steps of others that stay.
    history : sequence of mapping
        Rows up to this step, whose hash is kept.

    Returns
    -------
    Path
        ``run_dir/checkpoints/step-N``; it exists only when complete.

    Raises
    ------
    FloatingPointError
        If a tensor is not finite; nothing is written.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step:09d}"
    if folder.is_dir() and damage(folder) is None:
        return folder
    tensors = {"model": trained_state(model)}
    if getattr(teacher, "kind", "fixed") != "fixed":  # a fixed one is rebuilt, like frozen towers
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
    check_finite(tensors, state.step, run_dir)
    temporary = folder.with_name(f"writing-{os.getpid()}-{state.step}")
    temporary.mkdir(parents=True, exist_ok=True)
    for name, those in tensors.items():
        alone = {name: t.detach().cpu().contiguous().clone() for name, t in those.items()}
        save_file(alone, temporary / f"{name}.safetensors")
    facts = {"step": state.step, "broken": state.broken, "seconds": state.seconds}
    state.history = history_hash([*history])
    facts |= {"frozen": dict(frozen), "param_groups": packed["param_groups"]}
    facts["history"] = state.history
    write_json(temporary / "state.json", facts)
    seal(temporary)
    shutil.rmtree(folder, ignore_errors=True)  # damaged, and trained again since
    os.rename(temporary, folder)
    flush(folder.parent)
    for other in to_remove(folder, keep, lasting):
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
    where = facts["step"], facts["broken"], facts["seconds"]
    return LoopState(*where, trust, random, facts.get("history"))


def load_run(run_dir: str | Path, step: int | None = None) -> Run:
    """Load a run: its model, configuration and history.

    Parameters
    ----------
    run_dir : path
        What ``output_dir`` was during training.
    step : int, optional
        Of a checkpoint that the run keeps, such as the best; the last sound one by default.

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
    folder = latest_checkpoint(run_dir) if step is None else checkpoint_at(run_dir, step)
    if folder is None or not (run_dir / "config.json").is_file():
        raise FileNotFoundError(
            f"run_dir={str(run_dir)!r}: no run with a checkpoint here; "
            "give the output_dir of a finished training run"
        )
    config = config_of_run(run_dir)
    # The checkpoint holds all tensors of a tower that trained: no pretrained ones are needed.
    needless = {f"{kind}_weights": "none" for kind in ("image", "text")
                if getattr(config, f"{kind}_tower") == "train"}  # fmt: skip
    model = build_dual_encoder(config.model_copy(update=needless))
    teacher = None
    if (folder / "teacher.safetensors").is_file():
        teacher = Teacher(model, config.teacher, config.ema_decay, config.ema_warmup)
    state = _load_weights(folder, model, teacher)
    history = read_history(run_dir, state["step"], state.get("history"))
    facts = recorded_facts(run_dir, state["step"])
    return Run(model.eval(), config, history, run_dir, teacher, facts)


def build_teacher(student: nn.Module, config: RunConfig) -> nn.Module | None:
    """Build the teacher that ``config`` asks for; None when no soft target needs one.

    It stands here, not in :mod:`zslkit.teacher`, because a frozen teacher is an earlier run.

    Raises
    ------
    ValueError
        If ``teacher_run`` holds a run whose weights do not fit the student, or a model of another
        kind is asked to judge pairs.
    """
    if not config.needs_teacher:
        return None
    if config.teacher == "frozen" and is_other_model(config.teacher_run):
        return FixedTeacher(config)
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


def _load_weights(folder: Path, model: nn.Module, teacher: nn.Module | None) -> dict[str, Any]:
    """Load student and teacher and check the towers that are not stored; return the state."""
    names = trained_state(model).keys()
    owner = "the towers of its configuration"
    load_tensors(model, folder / "model.safetensors", names, owner)
    if getattr(teacher, "kind", "fixed") != "fixed":
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
