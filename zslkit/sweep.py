"""Many runs, one table: variants of a configuration over seeds, resumable."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zslkit.config import RunConfig
from zslkit.metrics import paired_difference, seed_interval

OBJECTIVES: dict[str, dict[str, Any]] = {
    "InfoNCE": {"soft_targets": "none"},
    "label smoothing": {"soft_targets": "label_smoothing", "label_smoothing": 0.3},
    "teacher": {"soft_targets": "teacher"},
    "teacher + intra-modal": {
        "soft_targets": "teacher",
        "teacher_temperature": 0.1,
        "image_similarity_weight": 0.5,
        "text_similarity_weight": 0.5,
    },
    "transport": {
        "soft_targets": "transport",
        "image_similarity_weight": 0.5,
        "text_similarity_weight": 0.5,
    },
    "progressive": {"soft_targets": "progressive", "contrastive_weight": 0.0, "trusted_end": 0.2},
    "teacher + pair trust": {"soft_targets": "teacher", "pair_trust": True},
}
"""Objectives to compare, by the fields that tell them apart."""


def run_sweep(base: RunConfig, variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]):
    """Train and measure every variant with every seed; skip what an earlier call has done.

    Each run writes its results to ``base.output_dir/VARIANT/seed-N``. Frozen towers are embedded
    once, into the cache that all runs share.

    Parameters
    ----------
    base : RunConfig
        What the variants have in common.
    variants : mapping
        Name of a variant to the fields it changes.
    seeds : sequence of int
        Initial weights, data order and caption noise of each repetition.

    Returns
    -------
    DataFrame
        Tidy: columns variant, seed, metric, value, and ``train_seconds``.

    Raises
    ------
    ValueError
        For fewer than two different seeds, before anything is trained.
    """
    from pandas import DataFrame
    from tqdm.auto import tqdm

    if len(set(seeds)) < 2:
        raise ValueError(f"seeds={list(seeds)}: an interval needs at least two different ones")
    runs = [(name, seed) for name in variants for seed in seeds]
    rows: list[dict[str, Any]] = []
    for name, seed in tqdm(runs, desc="sweep", unit="run", leave=False):
        variant = re.sub(r"[^\w.]+", "-", name)
        folder = f"{base.output_dir}/{variant}/seed-{seed}"
        config = RunConfig(
            **{**base.model_dump(), **variants[name], "seed": seed, "output_dir": folder}
        )
        results = _finished(config) or _measure(config)
        rows += [
            {"variant": name, "seed": seed, "metric": metric, "value": value}
            for metric, value in results["metrics"].items()
        ]
    print(f"sweep: {len(runs)} runs, {len(variants)} variants x {len(seeds)} seeds")
    return DataFrame(rows)


def summarise(table, metric: str, baseline: str | None = None) -> dict[str, dict[str, float]]:
    """Give each variant's mean over seeds with a 95 % interval for one metric.

    With a ``baseline``, the paired difference to that variant over the shared seeds and the
    ratio of means are added as ``NAME - BASELINE`` and ``NAME / BASELINE``.
    """
    chosen = table[table["metric"] == metric]
    values = {
        name: group.sort_values("seed")["value"].tolist()
        for name, group in chosen.groupby("variant", sort=False)
    }
    summary = {name: seed_interval(numbers) for name, numbers in values.items()}
    for name in [name for name in values if baseline and name != baseline]:
        summary[f"{name} - {baseline}"] = paired_difference(values[name], values[baseline])
        ratio = summary[name]["value"] / max(summary[baseline]["value"], 1e-12)
        summary[f"{name} / {baseline}"] = {"value": ratio, "n": len(values[name])}
    return summary


def _measure(config: RunConfig) -> dict[str, Any]:
    from zslkit.evaluation import evaluate
    from zslkit.report import flat, load_results, record
    from zslkit.trainer import train

    run = train(config)
    estimates = flat(evaluate(run.model, config))
    metrics = {name.replace(" / ", " "): estimate["value"] for name, estimate in estimates}
    metrics["train_seconds"] = run.record["train_seconds"]
    last = [row for row in run.history if row["epoch"] == run.history[-1]["epoch"]]
    for name in ("self_mass", "target_entropy"):  # of the soft targets, in the last epoch
        if name in last[0]:
            metrics[name] = sum(row[name] for row in last) / len(last)
    record(metrics, config, config.output_dir, extra=run.record)
    return load_results(config.output_dir)


def _finished(config: RunConfig) -> dict[str, Any] | None:
    """Read the results of an equal configuration, None if there are none."""
    from zslkit.report import load_results, portable

    try:
        results = load_results(config.output_dir)
    except FileNotFoundError:
        return None
    return results if results["config"] == portable(config.model_dump(mode="json")) else None
