"""Many runs, one table: variants of a configuration over seeds, several at a time, resumable."""

import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError, field_validator

from zslkit.config import RunConfig, RunSettings
from zslkit.data.files import whole
from zslkit.data.kinds import code_of_kinds, pack_kinds, unpack_kinds
from zslkit.data.strict import Strict, check_names, explain, nearest
from zslkit.evaluation.intervals import paired_difference, seed_interval
from zslkit.report.executors import executing, renewed_pool

_ALONE = threading.Lock()


class Objective(Strict):
    """A named objective of ``objectives.json``."""

    fields: dict[str, Any]
    """Fields of RunConfig that tell it from the others."""
    source: str

    @field_validator("fields")
    @classmethod
    def _are_settings(cls, fields: dict[str, Any]) -> dict[str, Any]:
        check_names(fields, RunConfig.model_fields, "field of RunConfig")
        return fields


def read_objectives(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read named objectives from JSON: each name's ``fields`` and their ``source``.

    Raises
    ------
    ValueError
        For an objective that lacks either, or names a field that there is not.
    """
    found = json.loads(Path(path).read_text("utf-8"))
    try:
        return {name: Objective(**facts).fields for name, facts in found.items()}
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None


OBJECTIVES = read_objectives(Path(__file__).with_name("objectives.json"))
"""Objectives to compare, by the fields that tell them apart.

``teacher_run`` may name another of the compared variants: its run with the same seed.
"""


def with_caption_noise(
    objectives: Sequence[str], shares: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Cross named objectives with shares of swapped captions; for :func:`run_sweep`.

    Raises
    ------
    ValueError
        For a name that is not in ``OBJECTIVES``, with the nearest ones, or a share outside
        [0, 1].
    """
    variants = {}
    for share in shares:
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"caption_noises={share!r}: shares are numbers between 0 and 1")
        for name in objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"objectives={name!r}: unknown; {nearest(name, OBJECTIVES)}")
            fields = OBJECTIVES[name] | {"caption_noise": share}
            if "teacher_run" in fields:
                fields["teacher_run"] = f"{fields['teacher_run']} @ {share:g}"
            variants[f"{name} @ {share:g}"] = fields
    return variants


MEASURED = (
    *("zeroshot hit@1", "zeroshot hit@5"),
    *(f"retrieval {way} recall@{k}" for way in ("text_to_image", "image_to_text")
      for k in (1, 5, 10)),
    *("retrieval rsum", "train_seconds", "self_mass", "target_entropy"),
)  # fmt: skip
"""What a run of a sweep is measured by."""


def check_metric(metric: str, config: RunConfig) -> str:
    """Give a metric back that the runs of a sweep will have.

    Raises
    ------
    ValueError
        If they will not, before anything is trained; it names the nearest.
    """
    known = [name for name in MEASURED if config.zeroshot_manifest or "zeroshot" not in name]
    if metric not in known:
        raise ValueError(
            f"metric={metric!r} is nothing that runs measure; {nearest(metric, known)}"
        )
    return metric


def run_sweep(
    base: RunConfig,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    jobs: int | None = None,
    executor: Executor | str | None = None,
):
    """Train and measure every variant with every seed; skip what is done under the same code.

    Each run writes its results to ``base.output_dir/VARIANT/seed-N``; the table also goes to
    ``base.output_dir/runs.csv``. A run that was cut goes on from its checkpoint. Features of
    frozen towers are computed once, into the cache that all runs share. On the CPU every run has
    one thread unless ``base.threads`` says otherwise, so that figures do not depend on ``jobs``.

    Parameters
    ----------
    base : RunConfig
        What the variants have in common.
    variants : mapping
        Name of a variant to the fields it changes. ``teacher_run`` may name another variant.
    seeds : sequence of int
        Initial weights, data order and caption noise of each repetition.
    jobs : int, optional
        Runs at the same time, each in a process of its own, silent; by default as many as torch
        has threads, but one where there is an accelerator. 1 stays in this process and shows
        how each training goes.
    executor : Executor or str, optional
        What computes the runs instead: any ``concurrent.futures.Executor``, or the address of a
        Dask scheduler. Its processes must see the same folders under the same paths and be
        started in the same one; each computes one run at a time.

    Returns
    -------
    DataFrame
        Tidy: columns variant, the fields that variants change, seed, metric, value.

    Raises
    ------
    ValueError
        For fewer than two different seeds, or settings that are out of question, before
        anything is trained.
    RuntimeError
        If runs failed; all others are finished and kept.
    """
    from pandas import DataFrame

    if len(set(seeds)) < 2:
        raise ValueError(f"seeds={list(seeds)}: an interval needs at least two different ones")
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs={jobs!r} must be a number of processes, at least 1, or None")
    runs = {(name, seed): _configure(base, variants, name, seed) for name in variants
            for seed in seeds}  # fmt: skip
    with executing(executor) as other, _pool(base, jobs, other) as start:
        results, failures = _run_all(runs, variants, start)
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(runs)} runs failed, the others are kept: "
            + "; ".join(f"{name}, seed {seed}: {error}" for (name, seed), error in failures.items())
        )
    changed = dict.fromkeys(field for fields in variants.values() for field in fields)
    rows = [
        {"variant": name, **{field: getattr(runs[name, seed], field) for field in changed},
         "seed": seed, "metric": metric, "value": value}
        for name, seed in runs
        for metric, value in results[name, seed]["metrics"].items()
    ]  # fmt: skip
    table = DataFrame(rows)
    with whole(Path(base.output_dir) / "runs.csv") as temporary:
        table.to_csv(temporary, index=False)
    print(f"sweep: {len(runs)} runs, {len(variants)} variants x {len(seeds)} seeds")
    return table


def summarise(
    table, metric: str, baseline: str | None = None, by: str = "variant"
) -> dict[str, dict[str, float]]:
    """Give each variant's mean over seeds with a 95 % interval for one metric.

    With a ``baseline``, the paired difference to that variant over the shared seeds and the
    ratio of means are added as ``NAME - BASELINE`` and ``NAME / BASELINE``. A ValueError names
    the nearest to a metric that was not measured.
    """
    chosen = _rows_of(table, metric)
    values = {
        name: group.sort_values("seed")["value"].tolist()
        for name, group in chosen.groupby(by, sort=False)
    }
    summary = {name: seed_interval(numbers) for name, numbers in values.items()}
    for name in [name for name in values if baseline and name != baseline]:
        summary[f"{name} - {baseline}"] = paired_difference(values[name], values[baseline])
        ratio = summary[name]["value"] / max(summary[baseline]["value"], 1e-12)
        summary[f"{name} / {baseline}"] = {"value": ratio, "n": len(values[name])}
    return summary


def summarise_noise(table, metric: str, baseline: str | None = "InfoNCE") -> dict[str, dict]:
    """Compare objectives at each share of swapped captions.

    Parameters
    ----------
    table : DataFrame
        From :func:`run_sweep` over :func:`with_caption_noise`.
    metric : str
        What is compared.
    baseline : str, optional
        Objective that the others are compared with, seed by seed.

    Returns
    -------
    dict
        ``scores``, ``differences`` to the baseline and ``kept``, each a mapping from the share
        ("0.5") to objectives to estimates. ``kept`` is the score as a share of the best
        objective's score on clean captions with the same seed; empty without clean runs.
    """
    chosen = _rows_of(table, metric)
    chosen = chosen.assign(objective=chosen["variant"].str.rsplit(" @ ", n=1).str[0])
    by_share = {f"{share:g}": group for share, group in chosen.groupby("caption_noise")}
    summaries = {
        share: summarise(group, metric, baseline, by="objective")
        for share, group in by_share.items()
    }
    found: dict[str, dict] = {"scores": {}, "differences": {}, "kept": {}}
    for share, summary in summaries.items():
        names = by_share[share]["objective"].unique()
        found["scores"][share] = {name: summary[name] for name in names}
        found["differences"][share] = {
            name: summary[f"{name} - {baseline}"] for name in names if baseline and name != baseline
        }
    if clean := found["scores"].get("0"):
        best = max(clean, key=lambda name: clean[name]["value"])
        scores = {share: group.pivot(index="seed", columns="objective", values="value")
                  for share, group in by_share.items()}  # fmt: skip
        found["kept"] = {
            share: {name: seed_interval((rows[name] / scores["0"][best]).tolist())
                    for name in found["scores"][share]}
            for share, rows in scores.items()
        }  # fmt: skip
    return found


def _rows_of(table, metric: str):
    """Select one metric; a ValueError names the nearest to one that was not measured."""
    known = table["metric"].unique().tolist()
    if metric not in known:
        raise ValueError(f"metric={metric!r} was not measured; {nearest(metric, known)}")
    return table[table["metric"] == metric]


def folder_of_run(base: RunConfig, name: str, seed: int) -> str:
    """Name the folder of a sweep's run, for :func:`zslkit.load_run`."""
    return f"{base.output_dir}/{re.sub(r'[^a-zA-Z0-9_.]+', '-', name)}/seed-{seed}"


def _configure(base: RunConfig, variants: Mapping, name: str, seed: int) -> RunConfig:
    """Build the configuration of one run."""
    changes = {**variants[name], "seed": seed, "output_dir": folder_of_run(base, name, seed)}
    if changes.get("teacher_run") in variants:
        changes["teacher_run"] = folder_of_run(base, changes["teacher_run"], seed)
    if base.threads is None and not _accelerated(base):
        changes["threads"] = 1
    return RunConfig.from_parameters(changes, base=base)


def _accelerated(config: RunSettings) -> bool:
    from zslkit.training.device import choose_device

    return choose_device(config.device).type != "cpu"


def _run_all(runs: Mapping, variants: Mapping, start: Callable) -> tuple[dict, dict]:
    """Run what is not finished, teachers before their students; give results and failures."""
    from tqdm.auto import tqdm

    results = {run: found for run, config in runs.items() if (found := _finished(config))}
    failures: dict = {}
    missing = [run for run in runs if run not in results]
    students = [run for run in missing if variants[run[0]].get("teacher_run") in variants]
    teachers = [run for run in missing if run not in students]
    with tqdm(total=len(missing), desc="sweep", unit="run", leave=False, disable=None) as bar:
        # with frozen towers the first one alone: it fills the cache that the others read
        alone = int(any("frozen" in (c.image_tower, c.text_tower) for c in runs.values()))
        for wave in (teachers[:alone], teachers[alone:], students):
            # where one process was killed the pool gives up all: each of these again, alone, so
            # that the one that is killed again loses its own run only
            for part in (wave, *([which] for which in wave)):
                started = {start(_measure, runs[which]): which
                           for which in part if which not in results | failures}  # fmt: skip
                for done in as_completed(started):
                    which, error = started[done], done.exception()
                    if isinstance(error, BrokenExecutor):
                        if len(part) > 1 or part is wave:
                            continue
                        error = RuntimeError("its process was killed, perhaps for want of memory")
                    if error:
                        failures[which] = error
                    else:
                        results[which] = done.result()
                    bar.update()
    return results, failures


@contextlib.contextmanager
def _pool(base: RunConfig, jobs: int | None, executor: Executor | None) -> Iterator[Callable]:
    """Give a function that starts a call: in this process for one job, else in others."""
    kinds = pack_kinds()  # those of a notebook are not known to a new process
    if executor is not None:
        yield lambda *call: executor.submit(_quietly, kinds, *call)
        return
    if jobs == 1:
        yield _call
        return
    if jobs is None:
        jobs = 1 if _accelerated(base) else max(1, torch.get_num_threads() // (base.threads or 1))
    with renewed_pool(jobs) as submit:
        yield lambda *call: submit(_quietly, kinds, *call)


def _call(function, *arguments) -> Future:
    done = Future()
    try:
        done.set_result(function(*arguments))
    except Exception as error:  # one failing run must not lose the others
        done.set_exception(error)
    return done


def _quietly(kinds: bytes | None, function, *arguments):
    """Call without the progress that several processes would write over each other."""
    silent = io.StringIO()
    # random numbers, modes and output are the process's: threads of one must take turns
    with _ALONE, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        unpack_kinds(kinds)
        return function(*arguments)


def _measure(config: RunConfig) -> dict[str, Any]:
    """Train one run, or go on with it, and record what it can do."""
    from zslkit.evaluation.evaluator import evaluate
    from zslkit.report.cards import load_results, read_run
    from zslkit.report.inputs import same_code
    from zslkit.report.results import record
    from zslkit.report.run_folder import changes_since
    from zslkit.report.tables import flat
    from zslkit.trainer import train

    folder = Path(config.output_dir)
    own = code_of_kinds(config.model_dump()).get("own kinds")
    earlier = (read_run(folder) or {}).get("code", {"own kinds": own}).get("own kinds")
    goes_on = (folder / "config.json").is_file() and not changes_since(folder, config)
    goes_on &= earlier == own  # a cell may have been changed since
    goes_on = goes_on and same_code(folder, config)
    run = train(config.model_copy(update={"resume": goes_on}))
    if run.facts.interrupted:
        raise KeyboardInterrupt
    estimates = flat(evaluate(run.model, config))
    metrics = {name.replace(" / ", " "): estimate["value"] for name, estimate in estimates}
    metrics["train_seconds"] = run.facts.train_seconds
    last = [row for row in run.history if row["epoch"] == run.history[-1]["epoch"]]
    for name in ("self_mass", "target_entropy"):  # of the soft targets, in the last epoch
        if last and name in last[0]:
            metrics[name] = sum(row[name] for row in last) / len(last)
    record(metrics, config, config.output_dir, extra=run.facts)
    return load_results(config.output_dir)


def _finished(config: RunConfig) -> dict[str, Any] | None:
    """Read the results of an equal configuration under equal code, None if there are none."""
    from zslkit.data.files import portable
    from zslkit.report.cards import load_results
    from zslkit.report.provenance import SOURCES

    try:
        results = load_results(config.output_dir)
    except FileNotFoundError:
        return None
    settings, code = config.model_dump(mode="json"), results.get("code", {})
    own = {name: code[name] for name in ("own kinds",) if name in code}
    known = results["config"], code.get("sha256"), own
    return results if known == (portable(settings), SOURCES, code_of_kinds(settings)) else None
