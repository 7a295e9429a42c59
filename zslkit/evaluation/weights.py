"""The two sets of weights that a run with a moving average ends with, and which one to take."""

from typing import Any, Literal, NamedTuple

from torch import nn

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.manifests import load_manifest
from zslkit.evaluation.evaluator import evaluate
from zslkit.evaluation.retrieval import evaluate_retrieval
from zslkit.teacher import Teacher

Weights = Literal["student", "teacher"]


class Preferred(NamedTuple):
    """Which weights the dev split prefers."""

    weights: Weights
    words: str
    """Why, for people."""
    dev: dict[str, dict[str, dict[str, float]]]
    """rSum of either on the dev split, with its interval; empty where nothing could be compared."""


def model_of(run: Run, weights: str = "student") -> nn.Module:
    """Give the student of a run, or its moving average.

    Raises
    ------
    ValueError
        For anything else, or where the run has no moving average.
    """
    if weights == "student":
        return run.model.eval()
    if weights != "teacher":
        raise ValueError(f"weights={weights!r} must be student or teacher")
    if not isinstance(run.teacher, Teacher) or run.teacher.kind != "ema":
        raise ValueError(
            "weights='teacher': this run has no moving average; it takes teacher='ema' and soft "
            "targets or pair_trust that need one"
        )
    return run.teacher.model


def prefer_weights(run: Run, config: RunConfig | None = None) -> Preferred:
    """Choose between student and moving average by rSum on the dev split, never the test split."""
    config = config or run.config
    try:
        models = {name: model_of(run, name) for name in ("student", "teacher")}
    except ValueError:
        return Preferred("student", "weights of the student: there is no moving average", {})
    fields = {name: config.source[name] for name in ("image_field", "caption_field")}
    shares = {"split_shares": config.split_shares}
    manifest = load_manifest(config.manifest, config.data_root, **fields, **shares)
    if config.dev_split not in manifest.splits:
        missing = f"{manifest.name} has no split {config.dev_split!r} to choose by"
        return Preferred("student", f"weights of the student: {missing}", {})
    dev = config.model_copy(update={"test_split": config.dev_split})
    try:
        found = {name: evaluate_retrieval(model, dev) for name, model in models.items()}
    except ValueError as error:  # a split that is drawn may be empty
        return Preferred("student", f"weights of the student: {error}", {})
    if "rsum" not in found["student"]:
        return Preferred("student", "weights of the student: the dev split is too small", {})
    sums = {name: one["rsum"]["value"] for name, one in found.items()}
    best: Weights = "teacher" if sums["teacher"] > sums["student"] else "student"
    other = "student" if best == "teacher" else "teacher"
    names = {"student": "the student", "teacher": "its moving average"}
    words = f"weights of {names[best]}: rSum {sums[best]:.1f} on the dev split, {names[other]} "
    dev_sums = {name: {"rsum": one["rsum"]} for name, one in found.items()}
    return Preferred(best, words + f"{sums[other]:.1f}", dev_sums)


def evaluate_weights(run: Run, config: RunConfig | None = None) -> tuple[dict[str, Any], Preferred]:
    """Measure a run with all the weights that it has.

    Returns
    -------
    metrics : dict
        Of the student as :func:`zslkit.evaluate` gives them; where there is a moving average,
        also ``teacher`` with the same of it, and ``dev`` with rSum of both on the dev split.
    preferred : Preferred
    """
    config = config or run.config
    metrics = evaluate(run.model, config)
    preferred = prefer_weights(run, config)
    if isinstance(run.teacher, Teacher) and run.teacher.kind == "ema":
        metrics["teacher"] = evaluate(run.teacher.model, config)
    return metrics | ({"dev": preferred.dev} if preferred.dev else {}), preferred
