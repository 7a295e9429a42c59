"""Objectives on cached features under wrong training captions: rSum, R@k, hit@1, what is kept.

``python benchmarks/wrong_captions.py --data-root FOLDER`` fills the results file row by row and
goes on where it was stopped; ``--objectives``, ``--seeds`` and ``--noises`` choose a part. The
test split is read once for each row; settings were chosen on dev, closed forms choose theirs in
each run, on dev pairs as noisy as the training pairs.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import zslkit as zk
from zslkit.data.sampling import caption_choice, epoch_order
from zslkit.evaluation import rank_labelled_images, rank_pairs, recall_sum, zeroshot_metrics
from zslkit.evaluation.intervals import seed_interval
from zslkit.report.provenance import machine
from zslkit.training.batches import TrainingData

RESULTS = Path(__file__).parent / "results" / "wrong_captions.json"
FILTERED = {"pair_trust": True, "trust_judge": "held_out"}
OBJECTIVES = {
    "ridge": ("laptop", {"fit": "ridge"}),
    "ridge, filtered": ("laptop", {"fit": "ridge", **FILTERED}),
    "CCA": ("laptop", {"fit": "cca"}),
    "CCA, filtered": ("laptop", {"fit": "cca", **FILTERED}),
    "InfoNCE": ("laptop", {"soft_targets": "none"}),
    "EMA teacher (laptop)": ("laptop", {}),
    "EMA teacher from CCA": ("laptop", {"init": "cca", "epochs": 10}),
    "EMA teacher, trust by the teacher": (
        "laptop",
        {"pair_trust": True, "trust_judge": "teacher"},
    ),
    "noisy": ("noisy", {}),
}
PLAIN = "plain script"
NOISES = ["clean"] + [f"{kind} {share}" for kind in ("image", "caption") for share in (20, 50, 70)]


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


def plain(config, epochs=10, rate=3e-3):
    """Train linear heads with InfoNCE as one writes it down, without zslkit's loop."""
    torch.manual_seed(config.seed)
    model = zk.build_dual_encoder(config)
    data = TrainingData(model, config, torch.device("cpu"))
    images, texts = (
        F.normalize(data.image_features, dim=-1),
        F.normalize(data.text_features, dim=-1),
    )
    heads = torch.nn.ModuleList(
        [torch.nn.Linear(part.shape[1], config.embedding_dim) for part in (images, texts)]
    )
    scale = torch.nn.Parameter(torch.tensor(20.0).log())
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], rate, weight_decay=0.1)
    steps = epochs * (len(images) // 512)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for epoch in range(epochs):
        order = epoch_order(len(images), config.seed, epoch)
        for rows in order[: len(order) // 512 * 512].reshape(-1, 512):
            chosen = caption_choice(data.captions_of[rows], config.seed, epoch, rows)
            captions = data.feature_of[data.first_caption[rows] + chosen]
            v = F.normalize(heads[0](images[torch.from_numpy(rows)]), dim=-1)
            t = F.normalize(heads[1](texts[torch.from_numpy(captions)]), dim=-1)
            logits, own = scale.exp() * v @ t.T, torch.arange(len(v))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for head, side in zip(heads, ("image", "text"), strict=True):
        getattr(model, f"{side}_projection")[-1].load_state_dict(head.state_dict())
    return model.eval()


def measure(model, config, split):
    """Give the figures of one row on a split of clean pairs and on the labelled images."""
    pairs = zk.open_pairs(config.manifest, split, data_root=config.data_root)
    ranks, _ = rank_pairs(model, pairs, config)
    found = {"rsum": recall_sum(ranks)}
    for way, rank in ranks.items():
        found |= {f"{way} R@{k}": float((rank < k).mean()) for k in (1, 5, 10)}
    hits = zeroshot_metrics(rank_labelled_images(model, config))
    return found | {"hit@1": hits["hit@1"]["value"]}


def summarise(rows):
    """Average rows over seeds and say what is kept of the own and of the best clean score."""
    table = {}
    for row in rows:
        table.setdefault(row["noise"], {}).setdefault(row["objective"], []).append(row)
    means = {
        noise: {
            name: {
                "seeds": len(group),
                **{key: round(statistics.mean(row[key] for row in group), 4)
                   for key in group[0] if key not in ("noise", "objective", "seed")},
                "rsum interval": [
                    round(seed_interval([row["rsum"] for row in group])[end], 1)
                    for end in ("low", "high")
                ] if len(group) > 1 else None,
            }
            for name, group in by_name.items()
        }
        for noise, by_name in table.items()
    }  # fmt: skip
    clean = means.get("clean", {})
    for by_name in means.values():
        for name, found in by_name.items():
            for key in ("rsum", "text_to_image R@1", "hit@1") if name in clean else ():
                best = max(other[key] for other in clean.values())
                found[f"kept of own clean {key}"] = round(found[key] / clean[name][key], 4)
                found[f"kept of best clean {key}"] = round(found[key] / best, 4)
    return means


def main():
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--image-encoder", default="torchvision:mobilenet_v2")
    parser.add_argument("--image-weights")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--cache-dir", default="reports/cache")
    parser.add_argument("--objectives", nargs="+", default=[*OBJECTIVES, PLAIN])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--noises", nargs="+", default=NOISES, choices=NOISES)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
    done = {(row["noise"], row["objective"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for noise in args.noises:
            for name in args.objectives:
                if (noise, name, seed) in done:
                    continue
                preset, changes = OBJECTIVES.get(name, ("laptop", {}))
                config = configure(args, preset, changes, seed, noise)
                start = time.process_time()
                model = plain(config) if name == PLAIN else zk.train(config).model
                seconds = round(time.process_time() - start, 1)
                row = {"noise": noise, "objective": name, "seed": seed}
                rows.append(row | measure(model, config, args.split) | {"cpu_seconds": seconds})
                what = f"Flickr8k {args.split}, {args.image_encoder} and MiniLM, frozen; one thread"
                facts = {"what": what, "machine": machine(), "means": summarise(rows), "rows": rows}
                args.results.write_text(json.dumps(facts, indent=1) + "\n")
                print(noise, name, seed, round(rows[-1]["rsum"], 1), seconds, flush=True)


if __name__ == "__main__":
    main()
