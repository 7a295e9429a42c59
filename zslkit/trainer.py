"""The training loop, readable top to bottom.

A run is a pure function of its configuration: killed anywhere and resumed, it ends with the
same weights, bit for bit on the CPU.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from zslkit import dist
from zslkit.cards import write_card
from zslkit.checkpoint import (
    Run,
    read_history,
    restore_checkpoint,
    save_checkpoint,
    start_run_dir,
)
from zslkit.coach import advise
from zslkit.config import RunConfig
from zslkit.encoders import DualEncoder, build_dual_encoder
from zslkit.feeding import TrainingBatch, TrainingData, encode
from zslkit.monitor import Monitor, interruptible
from zslkit.objective import Embedded, training_loss
from zslkit.pairs import check_broken
from zslkit.provenance import peak_memory, provenance
from zslkit.teacher import Teacher, build_teacher

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
    teacher = build_teacher(model, config)
    optimizer = build_optimizer(model, config)
    parameters = trainable(model)
    total_steps = min(config.epochs * data.per_epoch, config.max_steps or math.inf)
    torch.manual_seed(config.seed + dist.rank())  # dropout differs between processes
    state = {"step": 0, "broken": sorted(data.broken), "seconds": 0.0}
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
            if config.pair_trust and epoch >= config.pair_trust_epoch and epoch_starts:
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


def backward(
    model: DualEncoder,
    teacher: Teacher | None,
    batch: TrainingBatch,
    config: RunConfig,
    progress: float,
    trust: torch.Tensor | None = None,
) -> tuple[float, dict[str, float]]:
    """Add the gradients of one batch to the parameters; return the loss and its terms.

    With ``accumulation`` above 1 the batch is embedded in chunks without gradients, the loss of
    the whole batch gives the gradient of each embedding, and each chunk is embedded again to
    carry it on. Only one chunk's activations are in memory, every negative counts, and the
    scales get their gradient once. Random numbers repeat; BatchNorm statistics move once.

    References
    ----------
    Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup", arXiv:2101.06983.
    """
    batch, device = batch[: dist.smallest(len(batch))], batch.images.device
    trust = None if trust is None else trust[: len(batch)]
    guide = None
    if teacher is not None and teacher.ready:
        with torch.no_grad(), autocast(config, device):
            guide = encode(teacher.model, batch)
    scales = model.logit_scale, model.distillation_scale
    bias = getattr(model, "logit_bias", None)
    size = -(-len(batch) // config.accumulation)
    chunks = [batch[start : start + size] for start in range(0, len(batch), size)]
    if len(chunks) == 1:
        with autocast(config, device):
            student = encode(model, batch)
        loss, terms = training_loss(student, guide, *scales, config, progress, trust, bias)
        loss.backward()
        return loss.item(), terms

    seeds = torch.randint(2**62, (len(chunks),)).tolist()

    def encode_chunk(chunk: TrainingBatch, seed: int) -> Embedded:
        """Embed one chunk with random numbers of its own, the same at every call."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with autocast(config, device):
                return encode(model, chunk)

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        parts = [encode_chunk(*chunk) for chunk in zip(chunks, seeds, strict=True)]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    whole = Embedded(*(torch.cat(side).requires_grad_() for side in zip(*parts, strict=True)))
    loss, terms = training_loss(whole, guide, *scales, config, progress, trust, bias)
    loss.backward()
    gradients = zip(*(side.grad.split(size) for side in whole), strict=True)
    for chunk, seed, gradient in zip(chunks, seeds, gradients, strict=True):
        torch.autograd.backward(list(encode_chunk(chunk, seed)), list(gradient))
    return loss.item(), terms


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Build AdamW or SGD; norms, biases and scales (fewer than two dimensions) do not decay."""
    groups = [
        {"params": [p for p in trainable(model) if p.dim() > 1]},
        {"params": [p for p in trainable(model) if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one pass over the weights
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def learning_rate_at(step: int, total_steps: int, config: RunConfig) -> float:
    """Give the learning rate of an optimizer step: linear warm-up, then cosine to zero.

    References
    ----------
    Loshchilov and Hutter (2017), arXiv:1608.03983, equation 5, one cycle, per step.
    """
    warmup = min(config.warmup_steps, total_steps - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float | None) -> float:
    """Scale gradients down to a global norm; return the norm they had."""
    return nn.utils.clip_grad_norm_(list(parameters), largest or math.inf).item()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that training changes."""
    return [p for p in model.parameters() if p.requires_grad]


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On the CPU, take algorithms whose sums do not depend on which thread comes first.

    Without it the gradient of ``nn.EmbeddingBag`` differs from call to call with two threads.
    """
    memory, before = torch.utils.deterministic, torch.get_deterministic_debug_mode()
    filled = memory.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # would write every new tensor twice
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)  # also whether the caller wants warnings only
        memory.fill_uninitialized_memory = filled


def choose_device(name: str) -> torch.device:
    """Turn ``auto`` into the accelerator if there is one, else the CPU.

    Raises
    ------
    ValueError
        If the named device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r}: must be auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "take auto or cpu"
        )
    return device


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where asked for or, with ``auto``, where the device has it."""
    auto = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and auto)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
