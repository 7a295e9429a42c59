"""How hard the toy set is: chance, linear probes with labels, and zero-shot without.

Reads a run on the toy set (``python benchmarks/toy_reference.py reports/03_train``); the probes
are logistic regressions on one half of the test scenes, scored on the other half.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import zslkit as zk
from zslkit.data.cache import embed
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.metrics import hits_at_k

RESULTS = Path(__file__).parent / "results" / "toy_reference.json"


def probe(features, labels):
    """Hits of a linear classifier on the second half of the scenes."""
    half = len(labels) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(features[:half], labels[:half])
    return model.predict(features[half:]) == labels[half:]


def main():
    """Measure all on the same second half of the test scenes."""
    run = zk.load_run(sys.argv[1])
    result = zk.evaluation.rank_labelled_images(run.model, run.config)
    half = len(result.labels) // 2
    size = run.config.image_size
    untrained = zk.build_dual_encoder(run.config).image_tower
    features = {
        "linear probe, 16 x 16 pixels": np.stack(
            [
                torch.nn.functional.adaptive_avg_pool2d(pair.pixels.float(), 16).flatten().numpy()
                for pair in result.pairs
            ]
        ),
        "linear probe, untrained tower": embed(untrained, result.pairs, None, image_size=size)[0],
        "linear probe, trained tower": embed(
            run.model.image_tower, result.pairs, None, image_size=size
        )[0],
    }
    figures = {name: estimate(probe(np.asarray(x), result.labels)) for name, x in features.items()}
    hits = hits_at_k(result.indices, result.labels, 1)[half:]
    figures["zero-shot, no labels"] = estimate(hits, chance=1 / len(result.bank.class_names))
    text = json.dumps(
        {
            "hit@1": figures,
            "config": run.config.model_dump(mode="json", exclude={"output_dir", "cache_dir"}),
        },
        indent=2,
    )
    RESULTS.write_text(text + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
