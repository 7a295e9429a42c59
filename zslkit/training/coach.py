"""What an experienced colleague would say on seeing the curves of a run."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zslkit.config import ObjectiveSettings, RunConfig
from zslkit.data.kinds import CONTRASTIVE_LOSSES, SOFT_TARGETS

NEARLY = 0.98  # of the limit: entropy ln N, loss of guessing
_BIG_DROP = 0.02  # of a fraction on held-out pairs, since its best epoch
_TEXTS = json.loads(Path(__file__).with_name("advice.json").read_text("utf-8"))


def advise(
    history: Sequence[Mapping[str, float]], config: RunConfig, duplicates: float = 0.0
) -> dict[str, str]:
    """Find what is wrong with a run, or was, by the means of its last epoch.

    Parameters
    ----------
    history : sequence of mapping
        One row per optimizer step, as the loop makes them.
    duplicates : float
        Share of a batch's pairs that meet an equal caption in the batch; see
        :func:`zslkit.data.words.duplicate_share`.

    Returns
    -------
    dict of str to str
        Kind of finding to a sentence with figures and what to try; empty when all is well.
    """
    if not history:
        return {}
    last = [row for row in history if row["epoch"] == history[-1]["epoch"]]
    names = set.intersection(*map(set, last))
    mean = {name: float(np.mean([row[name] for row in last])) for name in names}
    found = judge_targets(mean, config, config.batch_size) if "target_entropy" in mean else {}
    if config.needs_teacher and last[0]["epoch"] < min(2, config.epochs - 1):
        # a moving average of a student that has just begun knows nothing yet
        found.pop("uniform targets", None)
    guess = CONTRASTIVE_LOSSES[config.contrastive_loss].of_guessing
    facts = config.model_dump() | mean | {"guess": guess and guess(config.batch_size)}
    warm, top = last[0]["step"] > config.warmup_steps, NEARLY * config.max_logit_scale
    wrong = {
        "nothing learnt": warm and guess and mean["contrastive_loss"] > NEARLY * facts["guess"],
        "saturated scale": warm and config.learn_logit_scale and mean["logit_scale"] > top,
        "duplicate captions": duplicates > 0.05,
    }
    found |= _worded(wrong, facts | {"duplicates": duplicates})
    return found | _about_overfitting(history)


def judge_targets(
    statistics: Mapping[str, float], config: ObjectiveSettings, n_candidates: int
) -> dict[str, str]:
    """Say when soft targets over N candidates are one-hot, uniform or inverted.

    Parameters
    ----------
    statistics : mapping
        ``self_mass``, ``target_entropy`` (nats) and, if there is a teacher,
        ``target_agreement``, as :mod:`zslkit.targets` gives them.
    config : ObjectiveSettings
        Names the setting to change.
    """
    kind, limit = SOFT_TARGETS[config.soft_targets], math.log(n_candidates)
    entropy, knob = statistics["target_entropy"], kind.reads.get(kind.softened_by)
    wrong = {
        "one-hot targets": not kind.begins_one_hot and entropy < (1 - NEARLY) * limit,
        "uniform targets": entropy > NEARLY * limit,
        "inverted targets": statistics.get("target_agreement", 0) < 0,
    }
    knob = f"{knob} (now {getattr(config, knob):g})" if knob else "their softness"
    return _worded(wrong, {**statistics, "limit": limit, "knob": knob})


def _about_overfitting(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    for name in sorted({name for row in history for name in row if name.startswith("held-out ")}):
        curve = [(row["epoch"], row[name]) for row in history if name in row]
        (best_epoch, best), (epoch, now) = max(curve, key=lambda point: point[1]), curve[-1]
        if best_epoch < 0.7 * epoch and best - now > _BIG_DROP:
            facts = {"name": name, "best": best, "best_epoch": best_epoch + 1}
            facts |= {"now": now, "epoch": epoch + 1}
            return _worded({"best epoch long past": True}, facts)
    return {}


def _worded(wrong: Mapping[str, object], facts: Mapping[str, object]) -> dict[str, str]:
    return {kind: _TEXTS[kind].format(**facts) for kind, is_so in wrong.items() if is_so}
