"""The card of a run: its configuration, origin and results for a reader."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.data.files import json_text, portable, write_text
from zslkit.data.kinds import KINDS
from zslkit.data.sealed import CHECKSUMS, write_noted
from zslkit.report.tables import (
    ESTIMATE,
    Table,
    as_word,
    escaped,
    estimate_row,
    filled,
    flat,
    table_line,
)


def write_card(run_dir: Path, run: Mapping[str, Any]) -> None:
    """Write ``run.json`` (provenance, ``record`` and ``metrics``) and ``card.md`` beside it."""
    run = portable(run)
    texts = {run_dir / "run.json": json_text(run), run_dir / "card.md": card_markdown(run)}
    if (run_dir / CHECKSUMS).is_file():
        write_noted(texts)
        return
    for path, text in texts.items():
        write_text(path, text)


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
        [name, as_word(value), as_word(defaults.get(name))]
        for name, value in config.items()
        if name != "output_dir" and value != defaults.get(name)
    ]
    return filled({
        "Training": [["what", "how"], *_training(config, record)],
        "Results": [ESTIMATE, *(estimate_row(*item) for item in flat(run.get("metrics", {})))],
        "Advice": [["advice"], *([text] for text in record.get("advice", ()))],
        "Settings": [["setting", "this run", "toy default"], *changed],
        "Origin": [["what", "which"], *_origin(run)],
    })  # fmt: skip


def card_markdown(run: Mapping[str, Any]) -> str:
    """Write a card as Markdown: a single column as a list, several as a table."""
    lines = [f"# Run card: {escaped(run['config']['output_dir'])}"]
    for title, (header, *rows) in card(run).items():
        lines += ["", f"## {title}", ""]
        if len(header) == 1:
            lines += [f"- {escaped(text)}" for (text,) in rows]
        else:
            lines += [table_line(header), table_line(["---"] * len(header)), *map(table_line, rows)]
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
        ["objective", _fitted(config) or _objective(config)],
        ["steps", f"{record['steps']:,} of {record['total_steps']:,} {state or 'complete'}"],
        ["time", f"{record['train_seconds']:,.1f} s: {record['seconds_per_step']:.3g} s a step, "
                 f"{record['images_per_second']:,.0f} images/s"],
        ["peak memory", ", ".join(f"{mib:,} MiB {where}" for where, mib in memory)],
    ]  # fmt: skip


def _objective(config: Mapping[str, Any]) -> str:
    words = _kind_words("contrastive_loss", config)
    if targets := _kind_words("soft_targets", config):
        words = f"{config['contrastive_weight']:g} {words}, the rest towards {targets}"
    held_out = config.get("trust_judge") == "held_out"
    judge = "fits that never saw them" if held_out else "the teacher's trust"
    return words + f", pairs weighed by {judge}" * config["pair_trust"]


def _fitted(config: Mapping[str, Any]) -> str:
    """Word what was not learnt by gradients: all of it, or the start; nothing in older runs."""
    fit, start = config.get("fit", "gradient"), config.get("init", "random")
    if fit != "gradient":
        weighed = ", captions weighed by fits that never saw them" * config["pair_trust"]
        return f"{fit} in closed form{weighed}"
    return f"{_objective(config)}, started from {start}" if start != "random" else ""


def _kind_words(setting: str, config: Mapping[str, Any]) -> str:
    """Word a kind; one that another process defined is known here by its name only."""
    import zslkit.targets  # late, it needs torch; it imports the losses  # noqa: F401

    kind = KINDS[setting].get(config[setting])
    return kind.words if kind else f"{config[setting]} (not of zslkit)"


def _origin(run: Mapping[str, Any]) -> Table:
    code, computer = run["code"], run["machine"]
    commit = f"commit {code['commit'][:12]}" if code["commit"] else "no git commit"
    changes = " with changes" if code["dirty"] else ""
    own = f", {code['own kinds']}" if "own kinds" in code else ""
    sources = f"sources {code['sha256'][:12]}{own}"
    return [
        ["code", f"zslkit {code['version']}, {commit}{changes}, {sources}"],
        ["packages", ", ".join(f"{name} {version}" for name, version in run["versions"].items())],
        ["machine", "{platform}, {cores} cores, {device} ({cpu_capability}), threads: {threads}"
                    .format(**computer)],
        ["manifest", f"sha256 {run['manifest_checksum'][:12]}"],
        *([["decisions on captions", f"sha256 {run['review_checksum'][:12]}"]]
          if "review_checksum" in run else []),
        ["date", run["date"]],
    ]  # fmt: skip
