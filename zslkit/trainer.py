"""The training loop, readable top to bottom.

A run is a pure function of its configuration: killed anywhere and resumed, it ends with the
same weights, bit for bit on the CPU.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from zslkit.checkpoint import (
    LoopState,
    Run,
    build_teacher,
    restore_checkpoint,
    save_checkpoint,
)
from zslkit.config import RunConfig
from zslkit.data.sampling import CaptionDraw, check_broken
from zslkit.data.signals import interruptible
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.fitting import fit_projections
from zslkit.kernels.reading import numbers
from zslkit.kernels.sharing import computed_once
from zslkit.report.cards import write_card
from zslkit.report.checkpoints import best_step, lasting_steps, latest_checkpoint
from zslkit.report.inputs import fingerprint_inputs
from zslkit.report.provenance import provenance
from zslkit.report.run_folder import RunFacts, rewind_history, run_folder, say_where
from zslkit.training import dist
from zslkit.training.batches import TrainingData
from zslkit.training.coach import advise
from zslkit.training.device import choose_device, repeatable
from zslkit.training.monitor import Monitor
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
        The student in eval mode. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save and return early, with
        ``facts.interrupted`` true and ``stopped_by`` the signal's number.

    Raises
    ------
    ValueError
        For settings that do not fit the data, a resumed run with other settings, or one whose
        checkpoints are all damaged.
    BlockingIOError
        If another run writes to ``output_dir``; names it.
    FloatingPointError
        When loss or gradients are not finite, before the weights change; names the batch. Or
        when weights are not, before they are saved.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    dist.start(device)
    model = build_dual_encoder(config).to(device)
    data = TrainingData(model, config, device)
    config = data.config  # its batch is no larger than the data
    total_steps = min(config.epochs * data.per_epoch, config.max_steps or math.inf)
    total_steps *= config.fit == "gradient"
    facts = RunFacts(data.per_epoch, total_steps, pairs=len(data))
    facts.swapped_captions = int(data.pairs.swapped.sum())

    inputs = fingerprint_inputs(config, data.pairs)
    with run_folder(config, inputs) as run_dir, repeatable(device), interruptible() as stop:
        state, checkpoint = LoopState(broken=sorted(data.broken)), latest_checkpoint(run_dir)
        if config.start != "random" and not checkpoint:
            state.trust = fit_projections(model, data, config).trust
        teacher = build_teacher(model, config)
        optimizer, parameters = build_optimizer(model, config), trainable(model)
        torch.manual_seed(config.seed + dist.rank())  # dropout differs between processes
        if checkpoint:
            state = restore_checkpoint(checkpoint, model, teacher, optimizer)
        judges = config.pair_trust and config.trust_judge == "teacher"
        if config.pair_trust and not judges:
            if state.trust is None:
                state.trust = computed_once(lambda: data.estimate_trust(model))
            # known before the first step: none is spent on the rest
            data.draw = CaptionDraw(data.captions_of, state.trust)
        say_where(run_dir, config.resume, checkpoint)
        history = rewind_history(run_dir, state.step, state.history)
        run = Run(model, config, history, run_dir, teacher, facts)
        began = time.perf_counter() - state.seconds

        def save() -> None:
            parts, rows = (model, teacher, optimizer), run.history
            stay = config.keep_checkpoints, lasting_steps(rows, config, state.step)
            save_checkpoint(run_dir, state, *parts, data.fingerprints, *stay, rows)

        with Monitor(run_dir, state.step, total_steps, config.tensorboard, dist.rank() > 0) as show:
            for epoch, batch in data.stream(state.step, total_steps):
                if dist.any_process(stop.signum is not None):
                    run.stopped_by = stop.signum or signal.SIGINT
                    break
                state.broken = sorted({*state.broken, *batch.broken})
                left_out = [*data.pairs.skipped, *state.broken]
                check_broken(left_out, data.n_listed, config.max_unreadable)
                ended, within = divmod(state.step, data.per_epoch)  # epochs, batches of this one
                if teacher and ended and within == 0 and ended % config.generation_epochs == 0:
                    teacher.end_generation(model)
                if judges and epoch >= config.pair_trust_epoch and within == 0:
                    state.trust = computed_once(lambda: data.estimate_trust(teacher.model))

                if not model.training:  # a callback may have measured it
                    model.train()
                rate = set_learning_rate(optimizer, state.step, total_steps, config)
                optimizer.zero_grad(set_to_none=True)
                trust = None if state.trust is None else state.trust[batch.captions].to(device)
                progress = state.step / total_steps
                loss, terms = backward(model, teacher, batch, config, progress, trust)
                dist.average_gradients(parameters)
                norm = clip_gradients(parameters, config.clip_norm)
                if trust is not None:
                    terms["mean_trust"] = trust.mean()
                terms = numbers({"loss": loss, **terms, "gradient_norm": norm}, of_all=True)
                loss, norm = terms["loss"], terms["gradient_norm"]
                if dist.any_process(not math.isfinite(loss + norm)):
                    # nothing is saved: this forward pass may have spoilt BatchNorm statistics
                    raise FloatingPointError(
                        f"loss={loss}, gradient_norm={norm} at batch {within} of epoch {epoch} "
                        f"(keys {', '.join(batch.keys[:3])} …); no weight was changed by it. Try "
                        "a lower learning_rate or logit_scale; "
                        f"{str(run_dir)!r} keeps its last checkpoint"
                    )
                optimizer.step()
                model.clamp_scales()
                if teacher:
                    teacher.update(model)
                state.step += 1

                row = {"step": state.step, "epoch": epoch, **terms}
                row |= {**numbers(model.scales()), "learning_rate": rate}
                for callback in callbacks:
                    row |= callback(run, row) or {}
                run.history.append(row)
                show.log(row, len(batch))
                if state.step % data.per_epoch == 0 or state.step in (EARLY, total_steps):
                    advice = advise(run.history, config, data.duplicates)
                    facts.advice = [*advice.values()]
                    show.tell(advice)
                state.seconds = time.perf_counter() - began
                best = best_step(run.history, config.best_by) == state.step
                best = dist.any_process(best and dist.rank() == 0)  # the first one measures
                if best or state.step % config.checkpoint_every == 0:
                    save()
            save()
        model.eval()
        facts.measure(state.step, state.seconds, config.batch_size)
        facts.unreadable_images, facts.source = state.broken, list(data.pairs.understood)
        facts.left_out = data.pairs.left_out | ({"unreadable": b} if (b := state.broken) else {})
        if dist.rank() == 0:
            write_card(run_dir, provenance(config) | {"record": asdict(facts)})
    return run
