"""The figures and seconds of clip-benchmark's evaluator beside ours, on one model and one set.

``python benchmarks/judge.py RUN_DIR [MANIFEST SPLIT DATA_ROOT]`` takes a trained run and ranks
the classes of its labelled images: their own, and these among 1,000. Writes a results file.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from clip_benchmark.metrics import zeroshot_classification as judge
from clip_benchmark_adapter import as_clip

import zslkit as zk
from zslkit.report.provenance import machine

RESULTS = Path(__file__).parent / "results" / "judge.json"


class Labelled(torch.utils.data.Dataset):
    """(pixels, class) as the judge reads them."""

    def __init__(self, model, pairs, space):
        self.transform, self.pairs, self.classes = model.image_transform(False), pairs, space.ids

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.transform(self.pairs.read_pixels(i)), int(self.pairs.labels[i])


def thousand(own):
    """Put names of ImageNet behind the set's own classes, 1,000 in all."""
    others = zk.load_label_space("imagenet1k").class_names
    names = [*dict.fromkeys([*own.class_names, *others])][:1000]
    return zk.zeroshot.from_names("1,000 classes", names, "own classes, then ImageNet-1k")


def main(run_dir, manifest=None, split=None, data_root=None):
    """Let both evaluate; their hits must agree to the last image."""
    run = zk.load_run(run_dir)
    config, templates = run.config, zk.zeroshot.find_templates(run.config.prompt_templates)
    place = data_root or config.data_root
    name, part = manifest or config.zeroshot_manifest, split or config.zeroshot_split
    pairs = zk.open_pairs(name, part, data_root=place)
    clip, tokenizer = as_clip(run.model)
    as_array = torch.Tensor.numpy
    results = {}
    for space in (own := zk.zeroshot.own_label_space(pairs), thousand(own)):
        loader = torch.utils.data.DataLoader(Labelled(run.model, pairs, space), batch_size=256)
        texts = [text.replace("{}", "{c}") for text in templates]
        start = time.perf_counter()
        # NumPy 2.4 refuses float() of arrays with one element, which the judge's code takes
        torch.Tensor.numpy = lambda self: as_array(self).squeeze()
        names = list(space.class_names)
        theirs = judge.evaluate(clip, loader, tokenizer, names, texts, "cpu", amp=False)
        torch.Tensor.numpy = as_array
        between = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            questions = zk.evaluation.pose(run.model, pairs, [space], {"run": templates})
            found = zk.evaluation.evaluate_stream(run.model, pairs, questions, folder)
        seconds = {"zslkit": time.perf_counter() - between, "clip-benchmark": between - start}
        hits = found["questions"][f"{space.name} / run"]["hits"]["strict"]
        ours = {"acc1": hits["hit@1"]["value"], "acc5": hits["hit@5"]["value"]}
        results[f"{len(space)} classes"] = {
            "images": len(pairs),
            "zslkit": ours,
            "clip-benchmark": {name: theirs[name] for name in ours},
            "largest difference": max(abs(ours[name] - theirs[name]) for name in ours),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "ratio zslkit / clip-benchmark": round(
                seconds["zslkit"] / seconds["clip-benchmark"], 2
            ),
        }
    words = f"{len(templates)} templates, images of {name}, {config.image_encoder}"
    facts = {"what": f"hit@1, hit@5 and seconds of both evaluators, {words}", **results}
    RESULTS.write_text(json.dumps(facts | {"machine": machine()}, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
