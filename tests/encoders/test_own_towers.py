"""Towers from outside the library: a row each is all it takes to train with them."""

import pytest
import torch
from torch import nn

import zslkit as zk


class Colours(nn.Module):
    """Mean colour of the four quarters of an image, (B, 12)."""

    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


class Letters(nn.Module):
    """How often each letter occurs, (B, 26)."""

    feature_dim = 26

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, texts):
        counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        return self.scale * torch.tensor(counts, dtype=torch.float32)


@pytest.fixture
def own(monkeypatch):
    asked = []

    def colours(name, weights):
        asked.append((name, weights))
        return Colours(), [0.5] * 3, [0.25] * 3

    monkeypatch.setitem(zk.encoders.IMAGE_LIBRARIES, "mine", colours)
    monkeypatch.setitem(zk.encoders.TEXT_TOWERS, "letters", lambda *given: Letters(1.0))
    return asked


def test_own_towers_train_and_are_loaded_again(own, tiny_settings, tmp_path):
    towers = {"image_encoder": "mine:colours", "text_encoder": "letters"}
    config = zk.RunConfig(**{**tiny_settings, **towers}, output_dir=str(tmp_path))
    run = zk.train(config)
    assert own[0] == ("colours", "none")
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    colours = run.model.image_tower(white)
    torch.testing.assert_close(colours, torch.full((1, 12), 2.0))  # (1 - 0.5) / 0.25
    assert run.model.text_tower.scale.item() != 1.0  # it was trained
    again = zk.load_run(tmp_path).model
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    assert 0 <= zk.evaluate(again, config)["zeroshot"]["hit@1"]["value"] <= 1


def test_without_its_row_a_tower_is_unknown(tiny_settings):
    with pytest.raises(ValueError, match="image_encoder='mine:colours': must start with"):
        zk.build_dual_encoder(zk.RunConfig(**{**tiny_settings, "image_encoder": "mine:colours"}))
