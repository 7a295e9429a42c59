"""Objectives on cached features under wrong training captions: rSum, R@k, hit@1, what is kept.

``python benchmarks/wrong_captions.py --data-root FOLDER`` fills the results file row by row and
goes on where it was stopped; several may run at once, each with its ``--part`` (1/2 and 2/2).
``--tune`` tries the grids below on dev and records what it finds; the test split is read once for
each row, with the settings that stand here. No row is told which captions are wrong: trainings and
peers keep one setting under every noise, closed forms choose theirs in each run, on dev pairs as
noisy as the training pairs.

Trained rows are ``zk.train``'s loop without its folder, on features that are read once: a test
compares the weights.
"""

import argparse
import fcntl
import json
import statistics
import time
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import PEERS
from peers.heads import Pairs

import zslkit as zk
from zslkit.checkpoint import build_teacher
from zslkit.data.cache import tower_features
from zslkit.data.caption_trust import held_out_trust
from zslkit.data.files import whole
from zslkit.data.sampling import CaptionDraw, caption_choice, epoch_order
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation import fitting, recall_sum, retrieval_ranks
from zslkit.evaluation.fitting import Features
from zslkit.evaluation.intervals import seed_interval
from zslkit.report.provenance import git_state, machine
from zslkit.training.batches import TrainingBatch
from zslkit.training.optim import build_optimizer, set_learning_rate
from zslkit.training.step import backward
from zslkit.zeroshot.prompts import find_templates

RESULTS = Path(__file__).parent / "results" / "wrong_captions.json"
CLOSED = {
    f"{words}{', filtered' * filtered}": (kind, filtered)
    for kind, words in (("ridge", "ridge"), ("cca", "CCA"))
    for filtered in (False, True)
}
TRAINED = {
    "InfoNCE": ("laptop", {"soft_targets": "none"}),
    "laptop": ("laptop", {}),
    "noisy": ("noisy", {}),
}
PLAIN = "plain script"
OBJECTIVES = [*CLOSED, PLAIN, *PEERS, *TRAINED]
CHOSEN = {PLAIN: {"rate": 3e-3}, **{name: {"rate": 3e-3} for name in PEERS}}
CHOSEN["RINCE"] |= {"q": 0.1, "share": 1e-3}  # with theirs, 0.5 and 0.01, it learns nothing here
"""Settings besides the functions' own: by rSum on dev, means over ``TUNED_ON``, as --tune found."""
RATES = (1e-3, 3e-3, 1e-2)
TUNED_ON = ("clean", "caption 50")
NOISES = ["clean"] + [f"{kind} {share}" for share in (50, 20, 70) for kind in ("caption", "image")]
SCORES = ("rsum", "text_to_image R@1", "text_to_image R@10", "hit@1")


class Board:
    """Features of all splits, read once, and what judges a row on them."""

    def __init__(self, args):
        self.args, config = args, configure(args, "laptop", {}, 0, "clean")
        model = zk.build_dual_encoder(config).eval()
        self.widths = model.image_tower.feature_dim, model.text_tower.feature_dim
        train = zk.training_pairs(config)
        held_out = {s: zk.open_pairs(config.manifest, s, data_root=config.data_root)
                    for s in ("dev", args.split)}  # fmt: skip
        self.images = tower_features(model, train, config, "training images").features.clone()
        self.dev_images = tower_features(model, held_out["dev"], config, "dev images").features
        self.places, parts = {}, []
        for pairs, words in ((train, "training captions"), (held_out["dev"], "dev captions")):
            distinct = np.unique(np.array([*chain.from_iterable(pairs.captions)], object)).tolist()
            parts.append(tower_features(model, distinct, config, words).features)
            first = sum(map(len, parts[:-1]))
            self.places |= {text: first + row for row, text in enumerate(distinct)}
        self.texts = torch.cat(parts)
        asked = held_out[args.split]
        captions = [*chain.from_iterable(asked.captions)]
        if args.split == "dev":
            self.asked = self.features(asked.captions, self.dev_images)
        else:
            self.asked = Features(
                tower_features(model, asked, config, "images").features,
                tower_features(model, captions, config, "texts").features,
                owner_of(asked.captions),
            )
        labelled = zk.labelled_images(config)
        self.labels, self.names = torch.from_numpy(labelled.labels), labelled.class_names
        self.labelled = tower_features(model, labelled, config, "labelled images").features
        templates = find_templates(config.prompt_templates)
        prompts = [template.format(name) for name in self.names for template in templates]
        self.prompts = tower_features(model, prompts, config, "prompts").features

    def features(self, captions, images):
        """Give the features of images and captions, wrong ones where they stand."""
        rows = [self.places[text] for text in chain.from_iterable(captions)]
        return Features(images, self.texts[rows], owner_of(captions))

    @torch.inference_mode()
    def measure(self, project_image, project_text):
        """Give the figures of two projections to unit vectors, and what each photo adds to them."""
        images, texts = project_image(self.asked.images), project_text(self.asked.texts)
        ranks = retrieval_ranks(images, texts, self.asked.owner)
        found = {"rsum": recall_sum(ranks)}
        for way, rank in ranks.items():
            found |= {f"{way} R@{k}": float((rank < k).mean()) for k in (1, 5, 10)}
        bank = project_text(self.prompts).view(len(self.names), -1, images.shape[1]).mean(dim=1)
        guesses = (project_image(self.labelled) @ F.normalize(bank, dim=-1).T).argmax(dim=1)
        right = (guesses == self.labels).numpy()
        owner, sizes = self.asked.owner.numpy(), np.bincount(self.asked.owner.numpy())
        by_caption = [np.bincount(owner, ranks["text_to_image"] < k) / sizes for k in (1, 5, 10)]
        by_image = [ranks["image_to_text"] < k for k in (1, 5, 10)]
        photos = {"rsum": 100 * (sum(by_caption) + sum(by_image)), "hit@1": right}
        photos |= {"text_to_image R@1": by_caption[0], "text_to_image R@10": by_caption[2]}
        return found | {"hit@1": float(right.mean())}, photos


class Noise:
    """Training and dev features under one noise and seed, and what several rows share."""

    def __init__(self, board, noise, seed):
        config = configure(board.args, "laptop", {}, seed, noise)
        dev = zk.open_pairs(config.manifest, "dev", data_root=config.data_root, seed=seed,
                            caption_noise=config.caption_noise,
                            caption_noise_kind=config.caption_noise_kind)  # fmt: skip
        train = zk.training_pairs(config)
        self.train = board.features(train.captions, board.images)
        self.dev = board.features(dev.captions, board.dev_images)
        self.seed, self.fits, self.seconds = seed, {}, {}
        counts = torch.bincount(self.train.owner, minlength=len(board.images)).numpy()
        first = np.cumsum(counts) - counts
        self.pairs = Pairs(*self.train[:2], first, counts, seed)
        unit = (F.normalize(part, dim=-1) for part in self.train[:2])
        self.unit_pairs = Pairs(*unit, first, counts, seed)

    @cached_property
    def trust(self):
        """Weight of each caption, by fits that never saw it."""
        began = time.process_time()
        found = held_out_trust(*self.train)
        self.seconds["trust"] = time.process_time() - began
        return found

    def fit(self, kind, filtered):
        """Give a closed form and the CPU seconds that it takes, trust included."""
        if (kind, filtered) not in self.fits:
            trust = self.trust if filtered else None
            began = time.process_time()
            found = zk.fit_closed_form(*self.train, kind=kind, dev=self.dev, filtered=filtered,
                                       trust=trust)  # fmt: skip
            seconds = time.process_time() - began + (self.seconds["trust"] if filtered else 0)
            self.fits[kind, filtered] = found, seconds
        return self.fits[kind, filtered]


class Tower(torch.nn.Module):
    """Stands where a frozen tower would: only the width of its features is asked for."""

    def __init__(self, feature_dim):
        super().__init__()
        self.feature_dim = feature_dim


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
    return zk.RunConfig.preset(preset, **{**changes, **towers, **where, **wrong, "seed": seed})


def trained(config, widths, pairs, start, trust=None):
    """Train projections as ``zk.train`` does, from a closed form; give the model."""
    if trust is not None:
        draw = CaptionDraw(pairs.counts, trust)
        texts, trust = pairs.texts[draw.rows], trust[draw.rows]
        pairs = Pairs(pairs.images, texts, draw.first, draw.counts, pairs.seed)
    model = DualEncoder(*map(Tower, widths), config)
    fitting.load_maps(model, start, config)
    teacher, optimizer = build_teacher(model, config), build_optimizer(model, config)
    torch.manual_seed(config.seed)
    step, total = 0, config.epochs * (len(pairs.images) // config.batch_size)
    model.train()
    for epoch in range(config.epochs):
        for rows, captions in pairs.batches(epoch, config.batch_size):
            set_learning_rate(optimizer, step, total, config)
            optimizer.zero_grad(set_to_none=True)
            images, texts = pairs.images[rows], pairs.texts[captions]
            batch = TrainingBatch(images, texts, [""] * len(rows), rows.numpy(), captions.numpy())
            believed = None if trust is None else trust[captions]
            backward(model, teacher, batch, config, step / total, believed)
            optimizer.step()
            model.clamp_scales()
            if teacher:
                teacher.update(model)
            step += 1
    return model.eval()


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


def projections(name, board, noise, settings):
    """Fit or train one row; give its two projections and the CPU seconds that it took."""
    if name in CLOSED:
        found, seconds = noise.fit(*CLOSED[name])
        return found.maps.project_image, found.maps.project_text, seconds
    began = time.process_time()
    if name in TRAINED:
        preset, changes = TRAINED[name]
        config = configure(board.args, preset, {**changes, **settings}, noise.seed, "clean")
        start, seconds = noise.fit("cca", config.pair_trust)
        began = time.process_time()
        model = trained(config, board.widths, noise.pairs, start.maps, start.trust)
        seconds += time.process_time() - began
        return model.project_image, model.project_text, seconds
    if name == PLAIN:
        sides = [[head] for head in plain(noise.unit_pairs, **settings)]
    else:
        found = [heads.eval() for heads in PEERS[name](noise.unit_pairs, **settings)]
        sides = [[heads.image for heads in found], [heads.text for heads in found]]

    def joined(heads):
        # several unit vectors side by side: similarities are averaged
        return lambda x: F.normalize(
            torch.cat([F.normalize(h(F.normalize(x, dim=-1)), dim=-1) for h in heads], 1), dim=-1
        )

    return *map(joined, sides), time.process_time() - began


def summarise(rows, photos):
    """Average rows over seeds; say what is kept, and how far a row is from the closed forms."""
    table = {}
    for row in rows:
        table.setdefault(row["noise"], {}).setdefault(row["objective"], {})[row["seed"]] = row
    ratings = [key for key in rows[0] if key not in ("noise", "objective", "seed", "commit")]
    means = {
        noise: {
            name: {"seeds": len(group)}
            | {key: round(statistics.mean(row[key] for row in group.values()), 4)
               for key in ratings}
            for name, group in by_name.items()
        }
        for noise, by_name in table.items()
    }  # fmt: skip
    clean = means.get("clean", {})
    for noise, by_name in means.items():
        closed = [name for name in by_name if name in CLOSED]
        for name, found in by_name.items():
            for key in SCORES:
                values = [row[key] for row in table[noise][name].values()]
                if len(values) > 1:
                    ends = seed_interval(values)
                    found[f"{key} interval"] = [round(ends[end], 4) for end in ("low", "high")]
                if name in clean:
                    most = max(other[key] for other in clean.values())
                    found[f"kept of own clean {key}"] = round(found[key] / clean[name][key], 4)
                    found[f"kept of best clean {key}"] = round(found[key] / most, 4)
                best = max(closed, key=lambda other: by_name[other][key], default="")
                others = {"best closed form": best, "laptop": "laptop", "plain script": PLAIN}
                for words, other in others.items():
                    ours, theirs = (photos.get((noise, each), {}) for each in (name, other))
                    both = sorted(ours.keys() & theirs.keys())
                    if name != other and both:
                        pairs = [ours[seed][key] - theirs[seed][key].astype(float) for seed in both]
                        found[f"{key} - {words}"] = {"of": other, **difference(np.array(pairs))}
    return means


def difference(pairs, n_resamples=2000):
    """Mean of (S, N) differences, and its 95 % bootstrap interval over seeds and photos."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(n_resamples):
        seeds = rng.integers(len(pairs), size=len(pairs))
        # the mean over the drawn seeds first: photos are the same ones in each
        by_photo = pairs[seeds].mean(axis=0)
        drawn.append(by_photo[rng.integers(len(by_photo), size=len(by_photo))].mean())
    ends = dict(zip(("low", "high"), np.quantile(drawn, (0.025, 0.975)), strict=True))
    return {key: round(float(x), 4) for key, x in {"value": pairs.mean(), **ends}.items()}


@contextmanager
def shared_facts(args):
    """Read the results, let them be changed, write them whole; one process at a time."""
    what = f"Flickr8k {args.split}, {args.image_encoder} and MiniLM, frozen; one thread"
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = json.loads(args.results.read_text()) if args.results.is_file() else {}
        if facts.get("what") != what:  # no rows of other towers
            facts = {"what": what, "rows": []}
        yield facts
        with whole(args.results) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")


def fill(args):
    """Fill the rows of this part, each written when it is finished."""
    groups = [
        (noise, seed)
        for noises in (args.noises[:3], args.noises[3:])  # the main ones of all seeds first
        for seed in args.seeds
        for noise in noises
    ]
    part, parts = map(int, args.part.split("/"))
    board = None
    for noise, seed in groups[part - 1 :: parts]:
        with shared_facts(args) as facts:
            done = {(row["noise"], row["objective"], row["seed"]) for row in facts["rows"]}
        names = [name for name in args.objectives if (noise, name, seed) not in done]
        began = time.process_time()
        if names:
            board = board or Board(args)
            under = Noise(board, noise, seed)
        for name in names:
            *maps, seconds = projections(name, board, under, CHOSEN.get(name, {}))
            found, photos = board.measure(*maps)
            args.photos.mkdir(parents=True, exist_ok=True)
            np.savez(args.photos / f"{noise} {name} {seed}.npz", **photos)
            row = {"noise": noise, "objective": name, "seed": seed, **found}
            row |= {"cpu_seconds": round(seconds, 2), "commit": args.commit}
            with shared_facts(args) as facts:
                facts["rows"].append(row)
                spent = facts.get("cpu_seconds_of_all", 0) + time.process_time() - began
                facts["cpu_seconds_of_all"] = round(spent, 1)
            began = time.process_time()
            print(noise, name, seed, round(row["rsum"], 1), round(row["hit@1"], 3),
                  row["cpu_seconds"], flush=True)  # fmt: skip


def tune(args):
    """Try rates on dev under two noises, one seed; keep what each gave."""
    board, tried = Board(args), {}
    for noise in TUNED_ON:
        under = Noise(board, noise, 0)
        for name in args.objectives:
            for rate in RATES if name in CHOSEN else ():
                *maps, _ = projections(name, board, under, {"rate": rate})
                score = round(board.measure(*maps)[0]["rsum"], 2)
                tried.setdefault(name, {}).setdefault(str(rate), {})[noise] = score
                print(noise, name, rate, score, flush=True)
    return tried


def main():
    """Fill the table, or tune."""
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
    parser.add_argument("--photos", type=Path, default=Path("reports/wrong_captions"),
                        help="folder for what each photo adds to a row")  # fmt: skip
    parser.add_argument("--part", default="1/1", help="which share of the table, such as 1/2")
    parser.add_argument("--tune", action="store_true", help="try rates on dev instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = git_state(Path(__file__).parents[1])
    args.commit = f"{state['commit']}{' with changes' if state['dirty'] else ''}"
    if args.tune:
        wanted, args.split = args.split, "dev"
        tried, args.split = tune(args), wanted
        with shared_facts(args) as facts:
            found = facts.setdefault("chosen_on_dev", {"seed": 0, "rsum": {}})
            found["rsum"] |= tried
        return
    fill(args)
    with shared_facts(args) as facts:
        facts["note"] = "shared machine: CPU seconds say more than wall; trust is counted in each"
        facts["machine"], rows = machine(), facts["rows"]
        photos = {}
        for row in rows:
            key = row["noise"], row["objective"]
            path = args.photos / f"{row['noise']} {row['objective']} {row['seed']}.npz"
            if path.is_file():
                photos.setdefault(key, {})[row["seed"]] = dict(np.load(path))
        facts["means"] = summarise(rows, photos)


if __name__ == "__main__":
    main()
