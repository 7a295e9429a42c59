"""Images per second of a whole training step: zslkit, open_clip's step and a plain loop, in turns.

Needs the ``bench`` extra. Every contestant has copies of the same two towers (EfficientNet-Lite0
and a MiniLM sentence encoder, both training), projections, scales, batches and threads, and starts
from uint8 pixels and captions. One without a teacher each: zslkit; the step of open_clip's
``train_one_epoch`` with its ``ClipLoss`` and its AdamW. With a moving-average teacher: zslkit; the
loop that the papers describe, written out below. open_clip pads captions to 77 tokens; the peer
here pads to the longest of the batch, as zslkit does, and a further one shows 77.

Run ``python benchmarks/step.py``; captions are Flickr8k's where ZSLKIT_DATA names a folder with
it, else the toy scenes'. Times are CPU seconds of the process, so that other work on the machine
counts little; wall seconds stand beside. Writes a results file. ``--quick``: small and short,
printed only.
"""

import argparse
import copy
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.data.named import training_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.kernels import numbers
from zslkit.report.provenance import git_state
from zslkit.training.batches import TrainingBatch
from zslkit.training.device import repeatable
from zslkit.training.optim import build_optimizer, clip_gradients, set_learning_rate, trainable
from zslkit.training.step import backward

RESULTS = Path(__file__).parent / "results" / "step.json"
PEERS = {
    "zslkit": ("open_clip", "open_clip, 77 tokens"),
    "zslkit, EMA teacher": ("plain EMA loop",),
}
STEPS = 10_000  # of a run that these steps are the first of: the learning rate warms up


class Ours:
    """The step as :func:`zslkit.train` takes it."""

    def __init__(self, config: RunConfig):
        self.config, self.step = config, 0
        self.model = build_dual_encoder(config).train()
        self.teacher = build_teacher(self.model, config)
        self.optimizer, self.parameters = build_optimizer(self.model, config), trainable(self.model)

    def __call__(self, pixels, captions):
        """Take one step; give the loss."""
        rows = np.arange(len(captions))
        batch = TrainingBatch(pixels, captions, [*map(str, rows)], rows, rows)
        set_learning_rate(self.optimizer, self.step, STEPS, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = backward(self.model, self.teacher, batch, self.config, self.step / STEPS)
        norm = clip_gradients(self.parameters, self.config.clip_norm)
        row = numbers({"loss": loss, **terms, "gradient_norm": norm})
        self.optimizer.step()
        self.model.clamp_scales()
        if self.teacher:
            self.teacher.update(self.model)
        row |= numbers(self.model.scales())
        self.step += 1
        return row["loss"]


class Plain(nn.Module):
    """The same towers as open_clip holds them: image features, text features, one scale."""

    def __init__(self, config: RunConfig):
        super().__init__()
        ours = build_dual_encoder(config).train()
        self.visual, self.text = ours.image_tower, ours.text_tower.net
        self.tokenizer = ours.text_tower.tokenizer
        self.image_projection, self.text_projection = ours.image_projection, ours.text_projection
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)
        self.statistics = mean, std  # of these weights, as torchvision's transforms take them

    def forward(self, images, tokens):
        """Embed a batch."""
        hidden = self.text(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        features = self.image_projection(F.normalize(self.visual.net(images), dim=-1))
        texts = self.text_projection(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return F.normalize(features, dim=-1), F.normalize(texts, dim=-1), self.logit_scale.exp()

    def inputs(self, pixels, captions, length):
        """Make what a loader would hand on: normalised pixels and tokens."""
        mean, std = self.statistics
        options = {"padding": "max_length" if length else True, "truncation": True}
        tokens = self.tokenizer(
            captions, return_tensors="pt", max_length=length or self.longest, **options
        )
        return (pixels.float() / 255 - mean) / std, tokens

    longest = 64


def adamw(model, config):
    """Group as open_clip's main.py does: gains and biases do not decay."""
    named = [*model.named_parameters()]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


class OpenClip:
    """One step of open_clip_train/train.py, train_one_epoch, without mixed precision."""

    def __init__(self, config: RunConfig, length: int | None = None):
        from open_clip.loss import ClipLoss

        self.model, self.loss, self.length = Plain(config), ClipLoss(cache_labels=True), length
        self.optimizer = adamw(self.model, config)

    def __call__(self, pixels, captions):
        """Take one step; give the loss."""
        images, tokens = self.model.inputs(pixels, captions, self.length)
        self.optimizer.zero_grad()
        image_features, text_features, logit_scale = self.model(images, tokens)
        loss = self.loss(image_features, text_features, logit_scale)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss.item()


class PlainTeacher:
    """Distillation from a moving average, as one writes it down."""

    def __init__(self, config: RunConfig):
        self.config, self.model = config, Plain(config)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.second_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.optimizer = adamw(self.model, config)
        self.optimizer.add_param_group({"params": [self.second_scale], "weight_decay": 0.0})

    def __call__(self, pixels, captions):
        """Take one step; give the loss."""
        images, tokens = self.model.inputs(pixels, captions, None)
        with torch.no_grad():
            own_image, own_text, _ = self.teacher(images, tokens)
            score = own_image @ own_text.T / self.config.teacher_temperature
            targets = score.softmax(1), score.T.softmax(1)
        image, text, scale = self.model(images, tokens)
        labels = torch.arange(len(image))
        loss = 0
        for similarity, soft in zip((image @ text.T, text @ image.T), targets, strict=True):
            hard = F.cross_entropy(scale * similarity, labels)
            soft = F.cross_entropy(self.second_scale.exp() * similarity, soft)
            loss = loss + (hard + soft) / 4
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
            pairs = zip(self.teacher.parameters(), self.model.parameters(), strict=True)
            for average, value in pairs:
                average.mul_(self.config.ema_decay).add_(value, alpha=1 - self.config.ema_decay)
            for average, value in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
                average.copy_(value)
        return loss.item()


def settings(options, soft_targets):
    frozen = {"image_tower": "train", "text_tower": "train"}
    return RunConfig(
        image_encoder="timm:tf_efficientnet_lite0", image_weights="pretrained",
        image_size=options.image_size, text_encoder="hf:sentence-transformers/all-MiniLM-L6-v2",
        text_weights="pretrained", max_tokens=64, embedding_dim=512, clip_norm=None,
        batch_size=options.batch, soft_targets=soft_targets, learning_rate=1e-4,
        contrastive_weight=0.5, **frozen,
    )  # fmt: skip


def captions_of(n):
    """Give captions, and whose they are."""
    folder = os.environ.get("ZSLKIT_DATA", "")
    manifest = "flickr8k" if folder and (Path(folder) / "flickr8k").is_dir() else "toy"
    options = {"data_root": folder} if manifest == "flickr8k" else {}
    pairs = training_pairs(RunConfig(manifest=manifest, **options))
    return [pairs.captions[i % len(pairs)][i % len(pairs.captions[0])] for i in range(n)], manifest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.image_size, options.rounds = 16, 32, 2
    torch.set_num_threads(options.threads)
    contestants = {
        "zslkit": Ours(settings(options, "none")),
        "open_clip": OpenClip(settings(options, "none")),
        "open_clip, 77 tokens": OpenClip(settings(options, "none"), length=77),
        "zslkit, EMA teacher": Ours(settings(options, "teacher")),
        "plain EMA loop": PlainTeacher(settings(options, "teacher")),
    }
    captions, manifest = captions_of((options.rounds + 1) * options.batch)
    pixels = torch.randint(
        256, (options.batch, 3, options.image_size, options.image_size), dtype=torch.uint8
    )
    rates = {name: {"cpu": [], "wall": []} for name in contestants}
    losses = {name: [] for name in contestants}
    for number in range(options.rounds + 1):  # the first one warms up
        texts = captions[number * options.batch :][: options.batch]
        for name, step in contestants.items():
            start = time.process_time(), time.perf_counter()
            if name.startswith("zslkit"):
                with repeatable(torch.device("cpu")):
                    losses[name].append(step(pixels, texts))
            else:
                losses[name].append(step(pixels, texts))
            spent = time.process_time() - start[0], time.perf_counter() - start[1]
            if number:
                for kind, seconds in zip(("cpu", "wall"), spent, strict=True):
                    rates[name][kind].append(options.batch / seconds)
    ratios = {}
    for ours, peers in PEERS.items():
        for peer in peers:
            found = [a / b for a, b in zip(rates[ours]["cpu"], rates[peer]["cpu"], strict=True)]
            wall = [a / b for a, b in zip(rates[ours]["wall"], rates[peer]["wall"], strict=True)]
            ratios[f"{ours} / {peer}"] = {
                "median": round(statistics.median(found), 3),
                "spread": [round(min(found), 3), round(max(found), 3)],
                "median of wall time": round(statistics.median(wall), 3),
            }
    results = {
        "what": "images per CPU second of a training step, batch by batch in turns, median and "
        "lowest and highest; ratios are those of single rounds",
        "batch": options.batch, "image_size": options.image_size, "rounds": options.rounds,
        "threads": options.threads, "captions": manifest,
        "images_per_second": {
            name: {
                "median": round(statistics.median(rate["cpu"]), 1),
                "spread": [round(min(rate["cpu"]), 1), round(max(rate["cpu"]), 1)],
            }
            for name, rate in rates.items()
        },
        "ratio": ratios,
        "first_losses": {name: round(values[0], 4) for name, values in losses.items()},
        "machine": {"platform": platform.machine(), "cores": os.cpu_count(),
                    "torch": torch.__version__.split("+")[0]},
        "code": git_state(Path(__file__).parents[1]),
    }  # fmt: skip
    if not options.quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
