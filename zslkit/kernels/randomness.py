"""Random states of all processes: saved together, given back to each."""

import zlib
from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from zslkit.training import dist


def random_states() -> dict[str, Tensor]:
    """Collect the states of torch's generators; every process must call it.

    Returns
    -------
    dict of str to Tensor of uint8
        ``cpu`` and, where there is an accelerator, ``cuda`` of the first process; ``cpu.1`` and
        so on of the others.
    """
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    if dist.world_size() == 1:
        return own
    found = {}
    for device, state in own.items():
        every = [torch.empty_like(state) for _ in range(dist.world_size())]
        torch.distributed.all_gather(every, state)
        found |= {_name(device, rank): state for rank, state in enumerate(every)}
    return found


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Give this process its own states back.

    One that had none, because the run goes on in more processes than before, takes states that
    follow from the first one's and its number: never those of another process, whose dropout
    masks it would repeat.
    """
    rank = dist.rank()
    if _name("cpu", rank) not in states:
        torch.manual_seed(zlib.crc32(states["cpu"].numpy().tobytes()) + rank)
        return
    torch.set_rng_state(states[_name("cpu", rank)])
    if _name("cuda", rank) in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[_name("cuda", rank)])


def _name(device: str, rank: int) -> str:
    return f"{device}.{rank}" if rank else device
