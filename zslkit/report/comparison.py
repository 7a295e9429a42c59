"""What differs between runs, and whether seeds explain it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zslkit.evaluation.registry import metric_facts, metric_label
from zslkit.report.cards import load_results
from zslkit.report.tables import Table, as_word, estimate_row, filled, flat, pair_rows


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Say how two runs differ, or two sets of runs over seeds.

    Parameters
    ----------
    first, second : path
        A folder with ``results.json``, or one that holds ``seed-*`` folders with them. For one
        of these its whole set is taken, unless two of one set are compared.

    Returns
    -------
    dict
        ``sides``: folder and seeds of either; ``config`` and ``facts`` (data, code, packages,
        machine): the two values of what differs; ``metrics``: ``first``, ``second``,
        ``difference`` (second minus first), ``basis`` and ``verdict`` of each shared one;
        ``unmatched``: names of the other metrics.

    Raises
    ------
    FileNotFoundError
        If a folder holds no results.
    ValueError
        If the two share no metric.
    """
    paths = [Path(first), Path(second)]
    sets = [path.parent if path.name.startswith("seed-") else path for path in paths]
    paths = paths if sets[0].resolve() == sets[1].resolve() else sets
    sides = [_load_side(path) for path in paths]
    a, b = (_by_metric(side) for side in sides)
    if not (shared := [name for name in a if name in b]):
        raise ValueError(f"{first} and {second} share no metric: {[*a]} and {[*b]}")
    config = differing(*(_merged([run["config"] for run in side]) for side in sides))
    seeds = [[run["seed"] for run in side] for side in sides]
    return {
        "sides": [*zip(paths, seeds, strict=True)],
        "config": {key: config[key] for key in config if key not in ("seed", "output_dir")},
        "facts": differing(*(_merged([facts(run) for run in side]) for side in sides)),
        "metrics": {name: _difference(name, a[name], b[name]) for name in shared},
        "unmatched": sorted(a.keys() ^ b.keys()),
    }


def comparison_tables(compared: Mapping[str, Any]) -> dict[str, Table]:
    """Word what :func:`compare` found as tables by title."""
    rows = []
    for name, found in compared["metrics"].items():
        ends = [estimate_row(name, found[side])[1:3] for side in ("first", "second")]
        words = [f"{value} ({interval})" if interval else value for value, interval in ends]
        change = _change(name, found["difference"])
        rows.append([metric_label(name), *words, change, f"{found['verdict']}, {found['basis']}"])
    return filled({
        "Settings": [["setting", "first", "second"], *pair_rows(compared["config"])],
        "Origin": [["what", "first", "second"], *pair_rows(compared["facts"])],
        "Metrics": [["metric", "first", "second", "second - first", "verdict"], *rows],
        "Only on one side": [["metric"], *([metric_label(name)] for name in compared["unmatched"])],
    })  # fmt: skip


def outcome_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """Word what :func:`~zslkit.report.reproduce` found of one notebook as tables by title."""
    explained = f"Within their intervals and the seeds' spread, by {', '.join(found['origin'])}"
    parts = {"Different": "differences", explained: "explained"}
    tables = {
        title: [["metric", "recorded", "95 % interval", "now"], *_outcome_rows(found[key])]
        for title, key in parts.items()
    }
    return filled(tables | {"Origin": [["what", "recorded", "now"], *pair_rows(found["facts"])]})


def _outcome_rows(pairs: Mapping[str, tuple]) -> Table:
    """Word metrics before and after; where rounding hides what differs, to the last digit."""
    rows = []
    for name, (old, new) in pairs.items():
        words = [estimate_row(name, one)[1:3] if one else ["nothing", ""] for one in (old, new)]
        (before, interval), (after, _) = words
        if before == after and old["value"] != new["value"]:
            before, after = repr(old["value"]), repr(new["value"])
        rows.append([metric_label(name), before, interval, after])
    return rows


def facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what results came from: data, code, packages and machine, each under one name."""
    found = {"manifest": results["manifest_checksum"]}
    if "review_checksum" in results:
        found["review"] = results["review_checksum"]
    for key, kind in (("code", "code"), ("versions", "package"), ("machine", "machine")):
        found |= {f"{kind} {name}": value for name, value in results.get(key, {}).items()}
    return found


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple]:
    """Give name and both values of what differs; None stands for what is not there."""
    pairs = {name: (first.get(name), second.get(name)) for name in {**first, **second}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _load_side(path: Path) -> list[dict[str, Any]]:
    files = [path / "results.json"] if (path / "results.json").is_file() else []
    if not (files := files or sorted(path.glob("seed-*/results.json"))):
        raise FileNotFoundError(
            f"{str(path)!r}: no results.json here and no seed-* folders that hold one; give the "
            "output_dir of a run or notebook that has finished, or a sweep's folder of one variant"
        )
    return sorted(map(load_results, files), key=lambda results: results["seed"] or 0)


def _by_metric(side: Sequence[Mapping[str, Any]]) -> dict[str, dict[Any, dict[str, float]]]:
    """Sort estimates by metric and seed."""
    table: dict[str, dict[Any, dict[str, float]]] = defaultdict(dict)
    for run in side:
        for name, estimate in flat(run["metrics"]):
            table[name][run["seed"]] = estimate
    return table


def _merged(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Join the distinct values that several runs have of each name."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {
        name: ", ".join(dict.fromkeys(as_word(run.get(name)) for run in runs)) for name in names
    }


def _difference(name: str, first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """Judge one metric, given its estimate for each seed, against the spread of the seeds."""
    from zslkit.evaluation.intervals import paired_difference, seed_interval

    shared, sides = [seed for seed in first if seed in second], (first, second)
    paired = len(shared) > 1
    values = [[side[seed]["value"] for seed in (shared if paired else side)] for side in sides]
    a, b = (
        seed_interval(numbers) if len(numbers) > 1 else next(iter(side.values()))
        for numbers, side in zip(values, sides, strict=True)
    )
    basis, difference = "one seed cannot tell", {"value": b["value"] - a["value"]}
    if paired:
        basis = f"paired over {len(shared)} shared seeds"
        difference = paired_difference(values[1], values[0])
    elif min(map(len, values)) > 1:
        basis = f"two samples of {len(values[0])} and {len(values[1])} seeds"
        difference = _independent_difference(a, b)
    verdict = _verdict(name, difference)
    return {"first": a, "second": b, "difference": difference, "basis": basis, "verdict": verdict}


def _independent_difference(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Combine the intervals of two independent estimates into that of b - a.

    References
    ----------
    Zou and Donner (2008), "Construction of confidence limits about effect measures: a general
    approach", Statistics in Medicine 27, 1693-1702.
    """
    value = b["value"] - a["value"]
    below = math.hypot(b["value"] - b["low"], a["high"] - a["value"])
    above = math.hypot(b["high"] - b["value"], a["value"] - a["low"])
    return {"value": value, "low": value - below, "high": value + above}


def _verdict(name: str, difference: Mapping[str, float]) -> str:
    if not any(difference.get(key) for key in ("value", "low", "high")):
        return "equal"
    if "low" not in difference or difference["low"] <= 0 <= difference["high"]:
        return "not decided"
    better, worse = {"neither": ("higher", "lower"), "lower": ("worse", "better")}.get(
        metric_facts(name).direction, ("better", "worse")
    )
    return f"{better if difference['value'] > 0 else worse} than chance would explain"


def _change(name: str, difference: Mapping[str, float]) -> str:
    """Word a difference and its interval; that of two fractions is in points."""
    facts = metric_facts(name)
    if "low" not in difference:
        return facts.write_change(difference["value"])
    ends = (facts.write_change(difference[key], unit=False) for key in ("low", "high"))
    return f"{facts.write_change(difference['value'])} ({' to '.join(ends)})"
