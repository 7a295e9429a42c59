"""What several processes and chunks need; tests/training/test_dist.py has real processes."""

import pytest
import torch
from torch import nn

from zslkit.config import RunConfig
from zslkit.encoders.dual import build_dual_encoder
from zslkit.kernels import sharing
from zslkit.kernels.batchnorm import normalises_over_batch
from zslkit.kernels.randomness import random_states, restore_random_states
from zslkit.kernels.recompute import recomputing
from zslkit.kernels.sharing import computed_once
from zslkit.training import dist


def test_only_batchnorm_in_train_mode_normalises_over_the_batch():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert normalises_over_batch(model)
    assert not normalises_over_batch(model.eval())
    assert not normalises_over_batch(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))


def test_recomputing_gives_the_same_and_keeps_less(tiny_settings):
    """Gradients and BatchNorm's statistics bit for bit; statistics move once."""
    found, kept = [], []
    for less in (False, True):
        model = build_dual_encoder(RunConfig(**tiny_settings)).train()
        before = dict(vars(next(model.image_tower.net.children())))
        pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        held = {}

        def note(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            if less:
                with recomputing(model):
                    loss = model.encode_image(pixels).sum()
                    kept.append(sum(held.values()))
                    loss.backward()
            else:
                loss = model.encode_image(pixels).sum()
                kept.append(sum(held.values()))
                loss.backward()
        found.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            | dict(model.named_buffers())
        )
        assert dict(vars(next(model.image_tower.net.children()))).keys() == before.keys()
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
    assert kept[1] < 0.6 * kept[0]


def in_process(monkeypatch, rank, world_size=2):
    monkeypatch.setattr(dist, "rank", lambda: rank)
    monkeypatch.setattr(dist, "world_size", lambda: world_size)


def test_every_process_gets_its_own_random_state_back(monkeypatch):
    torch.manual_seed(5)
    first, second = torch.get_rng_state(), torch.Generator().manual_seed(6).get_state()
    states = {"cpu": first, "cpu.1": second}
    drawn = []
    for rank in (0, 1, 2, 3):
        in_process(monkeypatch, rank)
        torch.manual_seed(0)
        restore_random_states(states)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()
    assert drawn[1] == torch.rand(3, generator=torch.Generator().manual_seed(6)).tolist()
    assert len({*map(tuple, drawn)}) == 4  # the two that had none draw numbers of their own
    in_process(monkeypatch, 0, 1)
    assert random_states().keys() == {"cpu"}


def test_what_the_first_process_cannot_compute_fails_in_all(monkeypatch):
    """Else the others would wait for it for ever."""
    sent = []

    def broadcast(tensor, source):
        if not tensor.dtype.is_floating_point:
            if dist.rank() == 0:
                sent.append(tensor.clone())
            else:
                tensor.copy_(sent[-1])

    def fail():
        raise ValueError("no such captions")

    monkeypatch.setattr(sharing.torch.distributed, "broadcast", broadcast)
    in_process(monkeypatch, 0)
    with pytest.raises(ValueError, match="no such captions"):
        computed_once(fail)
    in_process(monkeypatch, 1)
    with pytest.raises(RuntimeError, match="see the error of process 0"):
        computed_once(fail)
    in_process(monkeypatch, 0, 1)
    assert computed_once(lambda: torch.ones(3)).tolist() == [1, 1, 1]
