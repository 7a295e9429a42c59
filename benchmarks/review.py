"""One round of review on planted wrong captions: who ranks first, and what dropping them brings.

``python benchmarks/review.py --data-root FOLDER`` fills the results file row by row and goes on
where it was stopped. A tenth of Flickr8k's training captions is wrong; the ranking does not see
the mask. In the round the first tenth ranked is looked at by somebody who is always right: wrong
captions are dropped, the others kept. The test split is read once for each model.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import zslkit as zk
from zslkit.data.review import Decision, add_decisions
from zslkit.evaluation import rank_labelled_images, rank_pairs, recall_sum, zeroshot_metrics
from zslkit.report.provenance import machine
from zslkit.training.batches import TrainingData

RESULTS = Path(__file__).parent / "results" / "review.json"
NOISE, LOOKED_AT, KINDS, SEEDS = 0.1, (0.05, 0.1), ("caption", "image"), (0, 1, 2)
MODELS = {"laptop": {}, "CCA": {"fit": "cca"}}


def configure(args, changes, seed):
    """Make a configuration; a folder of its own for each run."""
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir, "threads": 1}
    folder = tempfile.mkdtemp(prefix="review-")
    return zk.RunConfig.preset("laptop", **where, **changes, seed=seed, output_dir=folder)


def measure(run, config):
    """Give recalls on the clean test split, their sum, and hit@1 on the labelled images."""
    ranks, _ = rank_pairs(run.model, zk.held_out_pairs(config), config)
    found = {"rsum": recall_sum(ranks)}
    for way, rank in ranks.items():
        found |= {f"{way} R@{k}": float((rank < k).mean()) for k in (1, 10)}
    hits = zeroshot_metrics(rank_labelled_images(run.model, config))
    return {name: round(v, 4) for name, v in (found | {"hit@1": hits["hit@1"]["value"]}).items()}


def rank_and_decide(run, config, file):
    """Rank the captions of a run; write what one who is always right says of the first tenth."""
    data = TrainingData(run.model, config, torch.device("cpu"))
    began = time.process_time()
    table = zk.find_suspects(run, max(LOOKED_AT), data)
    seconds = round(time.process_time() - began, 1)
    truth, n_wrong = {}, int(data.pairs.wrong.sum())
    places = iter(data.pairs.wrong.tolist())
    for key, group in zip(data.pairs.keys.tolist(), data.pairs.captions, strict=True):
        truth |= {(key, text): next(places) for text in group}
    asked = [*zip(table["image"], table["caption"], strict=True)]
    wrong = [truth[place] for place in asked]
    n_all, found = len(data.pairs.wrong), {"wrong captions": n_wrong, "cpu_seconds": seconds}
    for share in LOOKED_AT:
        first = wrong[: round(share * n_all)]
        found[f"precision of first {share:.0%}"] = round(sum(first) / len(first), 4)
        found[f"recall of first {share:.0%}"] = round(sum(first) / n_wrong, 4)
    add_decisions(file, [
        Decision(image=image, caption=caption, action="drop")
        for (image, caption), bad in dict(zip(asked, wrong, strict=True)).items() if bad
    ])  # fmt: skip
    return found


def summarise(rows):
    """Average over seeds; the spread beside it, as three seeds make no interval worth the name."""
    means = {}
    for row in rows:
        means.setdefault(f"{row['kind']}: {row['what']}", []).append(row)
    return {
        name: {
            key: {"mean": round(statistics.mean(values), 4),
                  "least": min(values), "most": max(values)}
            for key in group[0] if key not in ("kind", "what", "seed")
            for values in [[row[key] for row in group]]
        } | {"seeds": len(group)}
        for name, group in means.items()
    }  # fmt: skip


def main():
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--cache-dir", default="reports/cache")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
    done = {(row["kind"], row["what"], row["seed"]) for row in rows}

    def keep(kind, what, seed, found):
        rows.append({"kind": kind, "what": what, "seed": seed, **found})
        facts = {
            "what": "Flickr8k, preset laptop, a tenth of the training captions wrong; figures on "
            "the clean test split; after: the wrong ones among the first tenth ranked are dropped. "
            "CPU seconds of one thread on a machine shared with other work.",
            "machine": machine(),
            "means": summarise(rows),
            "rows": rows,
        }
        args.results.write_text(json.dumps(facts, indent=1) + "\n")
        print(kind, what, seed, found, flush=True)

    for seed in args.seeds:
        for model, changes in MODELS.items():
            if ("none", f"{model}, clean captions", seed) not in done:
                config = configure(args, changes, seed)
                run = zk.train(config)
                keep("none", f"{model}, clean captions", seed, measure(run, config))
        for kind in KINDS:
            if (kind, "CCA, after", seed) in done:
                continue
            noise = {"caption_noise": NOISE, "caption_noise_kind": kind}
            file = Path(tempfile.mkdtemp(prefix="review-")) / "flickr8k.review.json"
            found = {}
            for model, changes in MODELS.items():
                config = configure(args, {**changes, **noise}, seed)
                run = zk.train(config)
                found[f"{model}, before"] = measure(run, config)
                if model == "laptop":
                    found["ranking"] = rank_and_decide(run, config, file)
            for model, changes in MODELS.items():
                config = configure(args, {**changes, **noise, "review": str(file)}, seed)
                found[f"{model}, after"] = measure(zk.train(config), config)
            for what, figures in found.items():
                keep(kind, what, seed, figures)


if __name__ == "__main__":
    main()
