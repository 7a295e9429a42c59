"""Where and how a run computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zslkit.config import OptimisationSettings
from zslkit.report.numerics import hold_numerics


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
    hold_numerics()
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


def autocast(config: OptimisationSettings, device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where asked for or, with ``auto``, where the device has it."""
    auto = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and auto)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
