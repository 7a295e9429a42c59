"""The training loop, readable top to bottom.

A run is a pure function of its configuration: killed anywhere and resumed, it ends with the
same weights, bit for bit on the CPU.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from zslkit.checkpoint import (
    LoopState,
    Run,
    RunFacts,
    build_teacher,
    restore_checkpoint,
    rewind_history,
    save_checkpoint,
    start_run_dir,
)
from zslkit.config import RunConfig
from zslkit.data.sampling import check_broken
from zslkit.encoders.dual import build_dual_encoder
from zslkit.report.cards import write_card
from zslkit.report.provenance import provenance
from zslkit.training import dist
from zslkit.training.batches import TrainingData
from zslkit.training.coach import advise
from zslkit.training.device import choose_device, repeatable
from zslkit.training.monitor import Monitor, interruptible
from zslkit.training.optim import build_optimizer, clip_gradients, set_learning_rate, trainable
from zslkit.training.step import backward

Callback = Callable[[Run, dict[str, float]], dict[str, float] | None]

EARLY = 100
"""Step of a first look at the curves, besides those at the end of each epoch: some are long."""


def train(config: RunConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Train a dual encoder as ``config`` says.

    Parameters
    ----------
    config : RunConfig
        All settings; ``output_dir`` receives config, metrics and checkpoints.
    callbacks : sequence of callable
        Called as ``callback(run, row)`` after each optimizer step; the numbers that one returns
        join the row. ``run.facts`` holds ``steps_per_epoch`` and ``total_steps`` by then.

    Returns
    -------
    Run
        The student in eval mode. Ctrl-C saves and returns early, with
        ``facts.interrupted`` true.

    Raises
    ------
    ValueError
        For settings that do not fit the data, or a resumed run with other settings.
    FloatingPointError
        When the loss is not finite, before the weights change; names the batch.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    dist.start(device)
    model = build_dual_encoder(config).to(device)
    data = TrainingData(model, config, device)
    run_dir, checkpoint = start_run_dir(config)
    teacher = build_teacher(model, config)
    optimizer = build_optimizer(model, config)
    parameters = trainable(model)
    total_steps = min(config.epochs * data.per_epoch, config.max_steps or math.inf)
    torch.manual_seed(config.seed + dist.rank())  # dropout differs between processes
    state = LoopState(broken=sorted(data.broken))
    if checkpoint:
        state = restore_checkpoint(checkpoint, model, teacher, optimizer)
    facts = RunFacts(data.per_epoch, total_steps)
    run = Run(model, config, rewind_history(run_dir, state.step), run_dir, teacher, facts)
    monitor = Monitor(run_dir, state.step, total_steps, config.tensorboard, quiet=dist.rank() > 0)

    def save() -> None:
        if dist.rank() == 0:
            save_checkpoint(run_dir, state, model, teacher, optimizer, data.fingerprints)

    began = time.perf_counter() - state.seconds
    with repeatable(device), monitor, interruptible() as stop:
        for epoch, batch in data.stream(state.step, total_steps):
            if dist.any_process(stop.is_set()):
                break
            state.broken = sorted({*state.broken, *batch.broken})
            check_broken(state.broken, len(data.pairs), config.max_unreadable)
            ended, within = divmod(state.step, data.per_epoch)  # epochs, and batches of this one
            if teacher and ended and within == 0 and ended % config.generation_epochs == 0:
                teacher.end_generation(model)
            if config.pair_trust and epoch >= config.pair_trust_epoch and within == 0:
                state.trust = data.estimate_trust(teacher.model)

            if not model.training:  # a callback may have measured it
                model.train()
            rate = set_learning_rate(optimizer, state.step, total_steps, config)
            optimizer.zero_grad(set_to_none=True)
            trust = None if state.trust is None else state.trust[batch.rows].to(device)
            loss, terms = backward(model, teacher, batch, config, state.step / total_steps, trust)
            if not math.isfinite(loss):
                # nothing is saved: this forward pass may have spoilt BatchNorm statistics
                raise FloatingPointError(
                    f"loss={loss} at batch {within} of epoch {epoch} (keys "
                    f"{', '.join(batch.keys[:3])} …); no weight was changed by it. Try a lower "
                    f"learning_rate or logit_scale; {str(run_dir)!r} keeps its last checkpoint"
                )
            dist.average_gradients(parameters)
            gradient_norm = clip_gradients(parameters, config.clip_norm)
            optimizer.step()
            model.clamp_scales()
            if teacher:
                teacher.update(model)
            state.step += 1

            row = {"step": state.step, "epoch": epoch, "loss": loss, **terms, **model.scales()}
            row |= {"learning_rate": rate, "gradient_norm": gradient_norm}
            if trust is not None:
                row["mean_trust"] = trust.mean().item()
            for callback in callbacks:
                row |= callback(run, row) or {}
            run.history.append(row)
            monitor.log(row, len(batch))
            if state.step % data.per_epoch == 0 or state.step in (EARLY, total_steps):
                advice = advise(run.history, config, data.duplicates)
                facts.advice = [*advice.values()]
                monitor.tell(advice)
            state.seconds = time.perf_counter() - began
            if state.step % config.checkpoint_every == 0:
                save()
        save()
    model.eval()
    facts.describe(state, config.batch_size)
    facts.pairs, facts.swapped_captions = len(data), int(data.pairs.swapped.sum())
    if dist.rank() == 0:
        write_card(run_dir, provenance(config) | {"record": asdict(facts)})
    return run
