"""The training loop, readable top to bottom.

A run is a pure function of its configuration: killed anywhere and resumed, it ends with the
same weights, bit for bit on the CPU.
"""

import math
from collections.abc import Callable, Sequence

import torch

from zslkit.checkpoint import Run, read_history, restore_checkpoint, save_checkpoint, start_run_dir
from zslkit.config import RunConfig
from zslkit.data.sampling import check_broken
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.fitting import fit_projections
from zslkit.report.cards import write_card
from zslkit.report.provenance import peak_memory, provenance
from zslkit.teacher import build_teacher
from zslkit.training import dist
from zslkit.training.batches import TrainingData
from zslkit.training.coach import advise
from zslkit.training.device import choose_device, repeatable
from zslkit.training.monitor import Monitor, interruptible
from zslkit.training.optim import build_optimizer, clip_gradients, learning_rate_at, trainable
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
        join the row. ``run.record`` holds ``steps_per_epoch`` and ``total_steps`` by then.

    Returns
    -------
    Run
        The student in eval mode. Ctrl-C saves and returns early, with
        ``record["interrupted"]`` true.

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
    trust = None
    if config.start != "random" and not checkpoint:
        trust = fit_projections(model, data, config).trust
    teacher = build_teacher(model, config)
    optimizer = build_optimizer(model, config)
    parameters = trainable(model)
    total_steps = min(config.epochs * data.per_epoch, config.max_steps or math.inf)
    total_steps *= config.fit == "gradient"
    torch.manual_seed(config.seed + dist.rank())  # dropout differs between processes
    state = {"step": 0, "broken": sorted(data.broken), "seconds": 0.0, "trust": trust}
    if checkpoint:
        state = restore_checkpoint(checkpoint, model, teacher, optimizer)
    step, data.trust = state["step"], state.pop("trust", None)
    run = Run(model, config, read_history(run_dir, step), run_dir, teacher)
    run.record = {"steps_per_epoch": data.per_epoch, "total_steps": total_steps}
    monitor = Monitor(
        run_dir, run.history, step, total_steps, state["seconds"], config.tensorboard,
        quiet=dist.rank() > 0,
    )  # fmt: skip

    def save() -> None:
        if dist.rank() == 0:
            state.update(seconds=monitor.seconds, frozen=data.fingerprints)
            also = {} if data.trust is None else {"trust": data.trust}
            save_checkpoint(run_dir, step, model, teacher, optimizer, state | also)

    with repeatable(device), monitor, interruptible() as stop:
        for epoch, batch in data.stream(step, total_steps):
            if dist.any_process(stop.is_set()):
                break
            state["broken"] = sorted({*state["broken"], *batch.broken})
            check_broken(state["broken"], len(data.pairs), config.max_unreadable)
            if teacher and step and step % (config.generation_epochs * data.per_epoch) == 0:
                teacher.end_generation(model)
            epoch_starts = step % data.per_epoch == 0
            if config.pair_trust and config.trust_judge == "held_out":
                if data.trust is None:
                    data.estimate_trust(model)
            elif config.pair_trust and epoch >= config.pair_trust_epoch and epoch_starts:
                data.estimate_trust(teacher.model)

            if not model.training:  # a callback may have measured it
                model.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, total_steps, config)
            optimizer.zero_grad(set_to_none=True)
            trust = data.trust_of(batch)
            loss, terms = backward(model, teacher, batch, config, step / total_steps, trust)
            if not math.isfinite(loss):
                # nothing is saved: this forward pass may have spoilt BatchNorm statistics
                raise FloatingPointError(
                    f"loss={loss} at batch {step % data.per_epoch} of epoch {epoch} (keys "
                    f"{', '.join(batch.keys[:3])} …); no weight was changed by it. Try a lower "
                    f"learning_rate or logit_scale; {str(run_dir)!r} keeps its last checkpoint"
                )
            dist.average_gradients(parameters)
            gradient_norm = clip_gradients(parameters, config.clip_norm)
            optimizer.step()
            model.clamp_scales()
            if teacher:
                teacher.update(model)
            step += 1

            row = {
                "step": step,
                "epoch": epoch,
                "loss": loss,
                **terms,
                "logit_scale": model.logit_scale.item(),
                "distillation_scale": model.distillation_scale.item(),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "gradient_norm": gradient_norm,
            }
            if trust is not None:
                row["mean_trust"] = trust.mean().item()
            for callback in callbacks:
                row |= callback(run, row) or {}
            monitor.log(row, len(batch))
            epoch_ends = step % data.per_epoch == 0
            if epoch_ends or step in (EARLY, total_steps):
                monitor.tell(advise(run.history, config, data.duplicates))
            if step % config.checkpoint_every == 0:
                save()
        save()
    model.eval()
    seconds = monitor.seconds
    run.record |= {
        "steps": step,
        "interrupted": step < total_steps,
        "train_seconds": round(seconds, 2),
        "seconds_per_step": round(seconds / max(1, step), 4),
        "images_per_second": round(step * config.batch_size / seconds, 1),
        "peak_memory_mib": peak_memory(),
        "pairs": len(data),
        "swapped_captions": int(data.pairs.swapped.sum()),
        "unreadable_images": state["broken"],
        "advice": [*monitor.told.values()],
    }
    if dist.rank() == 0:
        write_card(run_dir, provenance(config) | {"record": run.record})
    return run
