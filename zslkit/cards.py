"""Run cards, and what differs between two runs: tables of text, the first row their header."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.provenance import portable, write_json

Table = list[list[str]]
ESTIMATE = ["metric", "value", "95 % interval", "n", "chance"]
"""Header of what :func:`estimate_row` gives."""


def write_card(run_dir: Path, run: Mapping[str, Any]) -> None:
    """Write ``run.json`` (provenance, ``record`` and ``metrics``) and ``card.md`` beside it."""
    run = portable(run)
    write_json(run_dir / "run.json", run)
    (run_dir / "card.md").write_text(card_markdown(run), "utf-8")


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """Read ``run.json``, None where there is none."""
    path = Path(run_dir) / "run.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def load_results(path: str | Path) -> dict[str, Any]:
    """Read what ``report.record`` wrote, from the file or its folder."""
    path = Path(path)
    return json.loads((path / "results.json" if path.is_dir() else path).read_text("utf-8"))


def card(run: Mapping[str, Any]) -> dict[str, Table]:
    """Word what ``run.json`` holds as tables by title; those without rows are left out."""
    config, record, defaults = run["config"], run["record"], RunConfig().model_dump(mode="json")
    changed = [
        [name, _word(value), _word(defaults.get(name))]
        for name, value in config.items()
        if name != "output_dir" and value != defaults.get(name)
    ]
    return _filled({
        "Training": [["what", "how"], *_training(config, record)],
        "Results": [ESTIMATE, *(estimate_row(*item) for item in flat(run.get("metrics", {})))],
        "Advice": [["advice"], *([text] for text in record.get("advice", ()))],
        "Settings": [["setting", "this run", "toy default"], *changed],
        "Origin": [["what", "which"], *_origin(run)],
    })  # fmt: skip


def card_markdown(run: Mapping[str, Any]) -> str:
    """Write a card as Markdown: a single column as a list, several as a table."""
    lines = [f"# Run card: {_escape(run['config']['output_dir'])}"]
    for title, (header, *rows) in card(run).items():
        lines += ["", f"## {title}", ""]
        if len(header) == 1:
            lines += [f"- {_escape(text)}" for (text,) in rows]
        else:
            lines += [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _training(config: Mapping[str, Any], record: Mapping[str, Any]) -> Table:
    parts = ("encoder", "tower", "weights")
    towers = [
        "{} ({}, weights: {})".format(*(config[f"{kind}_{key}"] for key in parts))
        for kind in ("image", "text")
    ]
    state, memory = "interrupted" * record["interrupted"], record["peak_memory_mib"].items()
    return [
        ["pairs", f"{record['pairs']:,} of {config['manifest']} / {config['train_split']}"],
        ["swapped captions", str(record["swapped_captions"])],
        ["unreadable images", str(len(record["unreadable_images"]))],
        ["towers", " and ".join(towers)],
        ["objective", _objective(config)],
        ["steps", f"{record['steps']:,} of {record['total_steps']:,} {state or 'complete'}"],
        ["time", f"{record['train_seconds']:,.1f} s: {record['seconds_per_step']:.3g} s a step, "
                 f"{record['images_per_second']:,.0f} images/s"],
        ["peak memory", ", ".join(f"{mib:,} MiB {where}" for where, mib in memory)],
    ]  # fmt: skip


def _objective(config: Mapping[str, Any]) -> str:
    words = {"softmax": "InfoNCE", "sigmoid": "SigLIP"}[config["contrastive_loss"]]
    if config["soft_targets"] != "none":
        kind = config["soft_targets"].replace("_", " ")
        words = f"{config['contrastive_weight']:g} {words}, the rest towards {kind} targets"
    return words + ", pairs weighed by the teacher's trust" * config["pair_trust"]


def _origin(run: Mapping[str, Any]) -> Table:
    code, computer = run["code"], run["machine"]
    commit = f"commit {code['commit'][:12]}" if code["commit"] else "no git commit"
    changes = " with changes" if code["dirty"] else ""
    return [
        ["code", f"zslkit {code['version']}, {commit}{changes}, sources {code['sha256'][:12]}"],
        ["packages", ", ".join(f"{name} {version}" for name, version in run["versions"].items())],
        ["machine", "{platform}, {cores} cores, {device} ({cpu_capability}), threads: {threads}"
                    .format(**computer)],
        ["manifest", f"sha256 {run['manifest_checksum'][:12]}"],
        ["date", run["date"]],
    ]  # fmt: skip


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
        rows.append([name, *words, change, f"{found['verdict']}, {found['basis']}"])
    return _filled({
        "Settings": [["setting", "first", "second"], *_pair_rows(compared["config"])],
        "Origin": [["what", "first", "second"], *_pair_rows(compared["facts"])],
        "Metrics": [["metric", "first", "second", "second - first", "verdict"], *rows],
        "Only on one side": [["metric"], *([name] for name in compared["unmatched"])],
    })  # fmt: skip


def outcome_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """Word what ``notebooks.reproduce`` found as tables by title."""
    parts, header = {"Metrics": "differences", "Origin": "facts"}, ["what", "recorded", "now"]
    return _filled({title: [header, *_pair_rows(found[key])] for title, key in parts.items()})


def facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what results came from: data, code, packages and machine, each under one name."""
    found = {"manifest": results["manifest_checksum"]}
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
    return {name: ", ".join(dict.fromkeys(_word(run.get(name)) for run in runs)) for name in names}


def _difference(name: str, first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """Judge one metric, given its estimate for each seed, against the spread of the seeds."""
    from zslkit.metrics import paired_difference, seed_interval

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
    better, worse = ("better", "worse") if _is_rate(name) else ("higher", "lower")
    return f"{better if difference['value'] > 0 else worse} than chance would explain"


def _change(name: str, difference: Mapping[str, float]) -> str:
    """Word a difference and its interval; that of two rates is in points."""
    rate = _is_rate(name) and abs(difference["value"]) <= 1
    form, unit, factor = ("{:+.1f}", " points", 100) if rate else ("{:+.4g}", "", 1)
    shown = {key: form.format(factor * number) for key, number in difference.items()}
    interval = " ({low} to {high})".format(**shown) if "low" in shown else ""
    return shown["value"] + unit + interval


def estimate_row(metric: str, numbers: Mapping[str, float]) -> list[str]:
    """Word value, interval, n and chance; figures that are fractions become percentages."""
    form = "{:.1%}" if _is_rate(metric) and abs(numbers["value"]) <= 1 else "{:.4g}"
    shown = {key: form.format(number) for key, number in numbers.items() if key != "n"}
    interval = "{low} to {high}".format(**shown) if "low" in shown else ""
    return [metric, shown["value"], interval, str(numbers.get("n", "")), shown.get("chance", "")]


def flat(metrics: Any, name: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Walk nested metrics; a lone number becomes an estimate without interval."""
    metrics = dict(enumerate(metrics)) if isinstance(metrics, list) else metrics
    if isinstance(metrics, Mapping) and "value" not in metrics:
        for key, value in metrics.items():
            yield from flat(value, f"{name} / {key}" if name else str(key))
    else:
        yield name, metrics if isinstance(metrics, Mapping) else {"value": metrics}


def _is_rate(metric: str) -> bool:
    return bool(re.search("hit|recall|accuracy|share", metric)) and "ratio" not in metric


def _pair_rows(differences: Mapping[str, tuple]) -> Table:
    return [[name, *map(_word, pair)] for name, pair in differences.items()]


def _filled(tables: dict[str, Table]) -> dict[str, Table]:
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def _word(value: Any) -> str:
    """Show a value as JSON does, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escape(text: str) -> str:
    """Keep Markdown and HTML from reading marks in names, paths and captions."""
    return re.sub(r"([\\`*<>|$\[\]])", r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escape, cells))} |"
