"""benchmarks/wrong_captions.py: its loop is zk.train's, its intervals and its resuming."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import zslkit as zk
from zslkit.evaluation.fitting import fit_projections
from zslkit.training.batches import TrainingData

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import wrong_captions
from peers.heads import Pairs

sys.path.pop(0)


@pytest.mark.parametrize("weighs", [False, True])
def test_the_loop_without_a_folder_gives_the_weights_of_train(tiny_settings, tmp_path, weighs):
    own = {"image_tower": "frozen", "text_tower": "frozen", "init": "cca", "epochs": 2}
    own |= {"image_dropout": 0.3, "soft_targets": "teacher", "output_dir": str(tmp_path / "run")}
    own |= {"pair_trust": weighs, "trust_judge": "held_out", "max_steps": None, "batch_size": 8}
    own |= {"clip_norm": None}  # as in laptop
    config = zk.RunConfig(**{**tiny_settings, **own})
    run = zk.train(config)
    model = zk.build_dual_encoder(config)
    data = TrainingData(model, config, torch.device("cpu"))
    fitted = fit_projections(model, data, config)
    images, texts, owner, _ = data.features_of(model)
    counts = torch.bincount(owner).numpy()
    pairs = Pairs(images, texts, np.cumsum(counts) - counts, counts, config.seed)
    widths = images.shape[1], texts.shape[1]
    found = wrong_captions.trained(config, widths, pairs, fitted.maps, fitted.trust).state_dict()
    for name, tensor in run.model.state_dict().items():
        if "tower" not in name:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_a_difference_over_seeds_and_photos_has_an_interval_of_both():
    same = wrong_captions.difference(np.full((5, 40), 0.25))
    assert same == {"value": 0.25, "low": 0.25, "high": 0.25}
    photos = np.random.default_rng(0).normal(1, 1, size=(1, 400))
    one = wrong_captions.difference(photos)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 / 20, rel=0.2)
    apart = wrong_captions.difference(photos + np.array([[-1.0], [0.0], [1.0]]))
    assert apart["high"] - apart["low"] > 3 * (one["high"] - one["low"])


def test_two_parts_fill_a_table_once_and_what_is_done_stays(tmp_path, monkeypatch):
    filled = []

    class Board:
        def __init__(self, args):
            pass

        def measure(self, *maps):
            scores = dict.fromkeys(wrong_captions.SCORES, 1.0)
            return scores, {name: np.ones(3) for name in scores}

    def projections(name, board, noise, settings):
        filled.append((*noise, name))
        if len(filled) == 5:
            raise KeyboardInterrupt
        return None, None, 0.1

    monkeypatch.setattr(wrong_captions, "Board", Board)
    monkeypatch.setattr(wrong_captions, "Noise", lambda board, noise, seed: (noise, seed))
    monkeypatch.setattr(wrong_captions, "projections", projections)
    args = argparse.Namespace(
        noises=["clean", "caption 50"], seeds=[0, 1], objectives=["ridge", "CCA"], split="test",
        results=tmp_path / "found.json", photos=tmp_path / "photos", image_encoder="x", commit="c",
    )  # fmt: skip
    wrong_captions.fill(argparse.Namespace(**vars(args), part="1/2"))
    with pytest.raises(KeyboardInterrupt):
        wrong_captions.fill(argparse.Namespace(**vars(args), part="2/2"))
    for part in ("2/2", "1/2"):
        wrong_captions.fill(argparse.Namespace(**vars(args), part=part))
    assert len(filled) == 9  # the one that was interrupted was filled again
    with wrong_captions.shared_facts(args) as facts:
        rows = facts["rows"]
    assert len({(row["noise"], row["objective"], row["seed"]) for row in rows}) == len(rows) == 8
    photos = {
        (noise, name): {s: {k: np.full(3, 1.0 + (name == "CCA")) for k in wrong_captions.SCORES}
                        for s in (0, 1)}
        for noise in args.noises for name in args.objectives
    }  # fmt: skip
    means = wrong_captions.summarise(rows, photos)
    assert means["caption 50"]["CCA"]["kept of own clean rsum"] == 1
    closed = means["clean"]["CCA"]["hit@1 - best closed form"]
    assert closed == {"of": "ridge", "value": 1, "low": 1, "high": 1}
