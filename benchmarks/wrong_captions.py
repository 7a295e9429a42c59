"""Objectives on cached features under wrong training captions: rSum, R@k, hit@1, what is kept.

``python benchmarks/wrong_captions.py --data-root FOLDER`` fills the results file row by row and
goes on where it was stopped; ``--objectives``, ``--seeds`` and ``--noises`` choose a part. The
test split is read once for each row. Settings were chosen on dev: those of trainings and peers on
clean captions and on captions of which half were shuffled, one seed; closed forms choose theirs
in each run, on dev pairs as noisy as the training pairs. No row is told which captions are wrong.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import PEERS
from peers.heads import Pairs

import zslkit as zk
from zslkit.data.cache import tower_features
from zslkit.data.sampling import caption_choice, epoch_order
from zslkit.evaluation import recall_sum, retrieval_ranks
from zslkit.evaluation.fitting import Features
from zslkit.evaluation.intervals import seed_interval
from zslkit.report.provenance import machine
from zslkit.zeroshot.prompts import find_templates

RESULTS = Path(__file__).parent / "results" / "wrong_captions.json"
HELD_OUT = {"pair_trust": True, "trust_judge": "held_out"}
CLOSED = {
    f"{words}{', filtered' * filtered}": {"kind": kind, "filtered": filtered}
    for kind, words in (("ridge", "ridge"), ("cca", "CCA"))
    for filtered in (False, True)
}
TRAINED = {
    "InfoNCE": ("laptop", {"soft_targets": "none"}),
    "laptop": ("laptop", {}),
    "laptop before, from a random start": ("laptop", {"init": "random", "epochs": 20}),
    "noisy": ("noisy", {}),
}
PLAIN = "plain script"
OBJECTIVES = [*CLOSED, PLAIN, *PEERS, *TRAINED]
NOISES = ["clean"] + [f"{kind} {share}" for share in (50, 20, 70) for kind in ("caption", "image")]
BOARD = None


class Board:
    """Features of all splits, read once, and what judges a row on them."""

    def __init__(self, args):
        self.args, config = args, configure(args, "laptop", {}, 0, "clean")
        self.model = zk.build_dual_encoder(config).eval()
        train = zk.training_pairs(config)
        held_out = {s: zk.open_pairs(config.manifest, s, data_root=config.data_root)
                    for s in ("dev", args.split)}  # fmt: skip
        self.rows = {}
        self.images = tower_features(self.model, train, config, "training images").features.clone()
        self.dev_images = tower_features(self.model, held_out["dev"], config, "dev images").features
        self.texts = {}
        for pairs, words in ((train, "training captions"), (held_out["dev"], "dev captions")):
            distinct = np.unique(np.array([*chain.from_iterable(pairs.captions)], object)).tolist()
            found = tower_features(self.model, distinct, config, words).features
            self.texts |= dict(zip(distinct, found, strict=True))
        asked = held_out[args.split]
        self.asked = Features(
            tower_features(self.model, asked, config, "images").features,
            tower_features(self.model, [*chain.from_iterable(asked.captions)], config, "texts")
            .features,
            owner_of(asked.captions),
        )  # fmt: skip
        labelled = zk.labelled_images(config)
        self.labels, self.names = torch.from_numpy(labelled.labels), labelled.class_names
        self.labelled = tower_features(self.model, labelled, config, "labelled images").features
        templates = find_templates(config.prompt_templates)
        prompts = [template.format(name) for name in self.names for template in templates]
        self.prompts = tower_features(self.model, prompts, config, "prompts").features

    def features(self, captions, images):
        """Give the features of images and captions, wrong ones where they stand."""
        texts = torch.stack([self.texts[text] for text in chain.from_iterable(captions)])
        return Features(images, texts, owner_of(captions))

    def training(self, config):
        """Give the training features under a row's noise, and dev's under the same."""
        dev = zk.open_pairs(config.manifest, "dev", data_root=config.data_root, seed=config.seed,
                            caption_noise=config.caption_noise,
                            caption_noise_kind=config.caption_noise_kind)  # fmt: skip
        train = zk.training_pairs(config)
        return (self.features(train.captions, self.images),
                self.features(dev.captions, self.dev_images))  # fmt: skip

    @torch.inference_mode()
    def measure(self, project_image, project_text):
        """Give the figures of two projections to unit vectors."""
        images, texts = project_image(self.asked.images), project_text(self.asked.texts)
        ranks = retrieval_ranks(images, texts, self.asked.owner)
        found = {"rsum": recall_sum(ranks)}
        for way, rank in ranks.items():
            found |= {f"{way} R@{k}": float((rank < k).mean()) for k in (1, 5, 10)}
        bank = project_text(self.prompts).view(len(self.names), -1, images.shape[1]).mean(dim=1)
        guesses = (project_image(self.labelled) @ F.normalize(bank, dim=-1).T).argmax(dim=1)
        return found | {"hit@1": (guesses == self.labels).float().mean().item()}


def owner_of(captions):
    """Give the image of each caption."""
    return torch.from_numpy(np.repeat(np.arange(len(captions)), [len(group) for group in captions]))


def configure(args, preset, changes, seed, noise):
    """Make the configuration of one row."""
    kind, _, share = noise.partition(" ")
    wrong = {} if noise == "clean" else {
        "caption_noise": int(share) / 100, "caption_noise_kind": kind,
    }  # fmt: skip
    towers = {"image_encoder": args.image_encoder, "image_size": args.image_size}
    towers |= {"image_weights": args.image_weights} if args.image_weights else {}
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir, "threads": 1}
    folder = tempfile.mkdtemp(prefix="wrong-captions-")
    more = {**towers, **where, **wrong, "output_dir": folder, "seed": seed}
    return zk.RunConfig.preset(preset, **{**changes, **more})


def plain(pairs, epochs=10, rate=3e-3, dim=512):
    """Train linear heads with InfoNCE as one writes it down, without zslkit's loop."""
    torch.manual_seed(pairs.seed)
    images, texts = pairs.images, pairs.texts
    heads = torch.nn.ModuleList([torch.nn.Linear(x.shape[1], dim) for x in (images, texts)])
    scale = torch.nn.Parameter(torch.tensor(20.0).log())
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * (len(images) // 512))
    for epoch in range(epochs):
        order = epoch_order(len(images), pairs.seed, epoch)
        for rows in order[: len(order) // 512 * 512].reshape(-1, 512):
            chosen = caption_choice(pairs.counts[rows], pairs.seed, epoch, rows)
            captions = torch.from_numpy(pairs.first[rows] + chosen)
            v = F.normalize(heads[0](images[torch.from_numpy(rows)]), dim=-1)
            t = F.normalize(heads[1](texts[captions]), dim=-1)
            logits, own = scale.exp() * v @ t.T, torch.arange(len(v))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return heads


def projections(name, board, config):
    """Fit or train one row; give its two projections and the CPU seconds that it took."""
    if name in TRAINED:
        start = time.process_time()
        model = zk.train(config).model
        seconds = time.process_time() - start
        return model.project_image, model.project_text, seconds
    train, dev = board.training(config)
    start = time.process_time()
    if name in CLOSED:
        found = zk.fit_closed_form(*train, dev=dev,
                                   **CLOSED[name]).maps  # fmt: skip
        return found.project_image, found.project_text, time.process_time() - start
    counts = torch.bincount(train.owner, minlength=len(train.images)).numpy()
    unit = (F.normalize(part, dim=-1) for part in train[:2])
    pairs = Pairs(*unit, np.cumsum(counts) - counts, counts, config.seed)
    if name == PLAIN:
        sides = [[head] for head in plain(pairs)]
    else:
        found = [heads.eval() for heads in PEERS[name](pairs)]
        sides = [[heads.image for heads in found], [heads.text for heads in found]]

    def joined(heads):
        # several unit vectors side by side: similarities are averaged
        return lambda x: F.normalize(
            torch.cat([F.normalize(h(F.normalize(x, dim=-1)), dim=-1) for h in heads], 1), dim=-1
        )

    return *map(joined, sides), time.process_time() - start


def summarise(rows):
    """Average rows over seeds; say what is kept, and what a row is above the best closed form."""
    table = {}
    for row in rows:
        table.setdefault(row["noise"], {}).setdefault(row["objective"], {})[row["seed"]] = row
    keys = [key for key in rows[0] if key not in ("noise", "objective", "seed")]
    means = {
        noise: {
            name: {"seeds": len(group)}
            | {key: round(statistics.mean(row[key] for row in group.values()), 4) for key in keys}
            for name, group in by_name.items()
        }
        for noise, by_name in table.items()
    }
    clean = means.get("clean", {})
    for noise, by_name in means.items():
        for name, found in by_name.items():
            for key in ("rsum", "text_to_image R@1", "hit@1"):
                here = {seed: row[key] for seed, row in table[noise][name].items()}
                if len(here) > 1:
                    found[f"{key} interval"] = interval([*here.values()])
                best = max((other for other in by_name if other in CLOSED), default=None,
                           key=lambda other: by_name[other][key])  # fmt: skip
                found |= difference(f"{key} - best closed form", here, table[noise].get(best), key)
                if name in clean:
                    most = max(other[key] for other in clean.values())
                    found[f"kept of own clean {key}"] = round(found[key] / clean[name][key], 4)
                    found[f"kept of best clean {key}"] = round(found[key] / most, 4)
    return means


def interval(values):
    """Give the 95 % Student-t interval over seeds."""
    found = seed_interval(values)
    return [round(found[end], 4) for end in ("low", "high")]


def difference(what, here, other, key):
    """Give the mean difference to another row over the seeds that both have, with its interval."""
    both = [here[seed] - other[seed][key] for seed in here if other and seed in other]
    if len(both) < 2:
        return {}
    return {what: round(statistics.mean(both), 4), f"{what} interval": interval(both)}


def main():
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--image-encoder", default="timm:tf_efficientnet_lite2")
    parser.add_argument("--image-weights")
    parser.add_argument("--image-size", type=int, default=260)
    parser.add_argument("--cache-dir", default="reports/cache")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--noises", nargs="+", default=NOISES, choices=NOISES)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    args = parser.parse_args()
    what = f"Flickr8k {args.split}, {args.image_encoder} and MiniLM, frozen; one thread"
    facts = json.loads(args.results.read_text()) if args.results.is_file() else {}
    facts = facts if facts.get("what") == what else {"rows": []}  # no rows of other towers
    rows, spent = facts["rows"], facts.get("seconds", {"cpu": 0.0, "wall": 0.0})
    done = {(row["noise"], row["objective"], row["seed"]) for row in rows}
    asked = [
        (noise, name, seed)
        for noises in (args.noises[:3], args.noises[3:])  # the main ones of all seeds first
        for seed in args.seeds
        for noise in noises
        for name in args.objectives
        if (noise, name, seed) not in done
    ]
    cpu, began = spent["cpu"], time.perf_counter()
    with ProcessPoolExecutor(
        args.jobs, get_context("spawn"), initializer=start, initargs=(args,)
    ) as pool:
        for job in as_completed([pool.submit(one_row, *place) for place in asked]):
            row, seconds = job.result()
            rows.append(row)
            cpu += seconds
            wall = spent["wall"] + time.perf_counter() - began
            note = "shared machine: CPU seconds, of all rows together, say more than wall"
            facts = {"what": what, "note": note, "machine": machine()}
            facts |= {"seconds": {"cpu": round(cpu, 1), "wall": round(wall, 1)}}
            facts |= {"means": summarise(rows), "rows": rows}
            args.results.write_text(json.dumps(facts, indent=1) + "\n")
            print(*(row[key] for key in ("noise", "objective", "seed")), round(row["rsum"], 1),
                  round(row["hit@1"], 3), row["cpu_seconds"], flush=True)  # fmt: skip


def start(args):
    """Read the features once in each process."""
    global BOARD
    torch.set_num_threads(1)
    BOARD = Board(args)


def one_row(noise, name, seed):
    """Fill one row; give it with the CPU seconds that it took in all."""
    cpu, board = time.process_time(), BOARD
    preset, changes = TRAINED.get(name, ("laptop", {}))
    config = configure(board.args, preset, changes, seed, noise)
    with contextlib.redirect_stdout(sys.stderr):
        *maps, seconds = projections(name, board, config)
    row = {"noise": noise, "objective": name, "seed": seed, **board.measure(*maps)}
    return row | {"cpu_seconds": round(seconds, 2)}, time.process_time() - cpu


if __name__ == "__main__":
    main()
