"""What an experienced colleague would say on seeing the curves of a run."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from zslkit.config import ObjectiveSettings, RunConfig

NEARLY = 0.98  # of the limit: entropy ln N, loss ln B
_BIG_DROP = 0.02  # of a fraction on held-out pairs, since its best epoch


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
        :func:`duplicate_share`.

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
    found = {}
    if "target_entropy" in mean:
        found = judge_targets(mean, config, config.batch_size)
    if config.needs_teacher and last[0]["epoch"] < min(2, config.epochs - 1):
        # a moving average of a student that has just begun knows nothing yet
        found.pop("uniform targets", None)
    if last[0]["step"] > config.warmup_steps:
        found |= _about_learning(mean, config)
    if duplicates > 0.05:
        found["duplicate captions"] = (
            f"{duplicates:.0%} of the pairs of a batch meet an equal caption in it, and one-hot "
            "labels call that a mistake; take soft targets or a smaller batch_size"
        )
    return found | _about_overfitting(history)


def duplicate_share(captions: Sequence[str], batch_size: int) -> float:
    """Expect, for random batches, the share of pairs that meet an equal caption in their batch.

    Parameters
    ----------
    captions : sequence of str
        One for each pair.
    """
    n, counts = len(captions), Counter(captions)
    others = min(batch_size, n) - 1
    if others < 1:
        return 0.0
    alone = {c: math.exp(_log_choose(n - c, others) - _log_choose(n - 1, others))
             for c in set(counts.values())}  # fmt: skip
    return sum(c * (1 - alone[c]) for c in counts.values()) / n


def _log_choose(n: int, k: int) -> float:
    if k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


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
    knob = "epsilon" if config.soft_targets == "transport" else "teacher_temperature"
    if config.soft_targets == "label_smoothing":
        knob = "label_smoothing"
    found, now = {}, f"{knob} (now {getattr(config, knob):g})"
    entropy, limit = statistics["target_entropy"], math.log(n_candidates)
    # progressive targets begin one-hot on purpose
    if config.soft_targets != "progressive" and entropy < (1 - NEARLY) * limit:
        found["one-hot targets"] = (
            f"soft targets are nearly one-hot (entropy {entropy:.2f} of at most {limit:.2f} nats, "
            f"own-pair mass {statistics['self_mass']:.2f}): no second caption gets a share; "
            f"raise {now}"
        )
    if entropy > NEARLY * limit:
        found["uniform targets"] = (
            f"soft targets are nearly uniform (entropy {entropy:.2f} of at most {limit:.2f} "
            f"nats): they say nothing; lower {now}"
        )
    if statistics.get("target_agreement", 0) < 0:
        found["inverted targets"] = (
            f"soft targets run against the teacher's similarity (correlation "
            f"{statistics['target_agreement']:.2f}): lower image_similarity_weight and "
            "text_similarity_weight, or look for a cost where a score was expected"
        )
    return found


def _about_learning(mean: Mapping[str, float], config: RunConfig) -> dict[str, str]:
    found, limit = {}, math.log(config.batch_size)
    softmax = config.contrastive_loss == "softmax"
    if softmax and mean["contrastive_loss"] > NEARLY * limit:
        found["nothing learnt"] = (
            f"the contrastive loss stands at {mean['contrastive_loss']:.2f} nats, what guessing "
            f"costs (ln {config.batch_size} = {limit:.2f}): try another learning_rate, a larger "
            "logit_scale, and look whether captions belong to their images"
        )
    if config.learn_logit_scale and mean["logit_scale"] > NEARLY * config.max_logit_scale:
        found["saturated scale"] = (
            f"logit_scale is at its upper limit, {config.max_logit_scale:g}: the batch is told "
            "apart too easily; take a larger batch_size, or more data or weight_decay"
        )
    return found


def _about_overfitting(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    watched = sorted({name for row in history for name in row if name.startswith("held-out ")})
    for name in watched:
        curve = [(row["epoch"], row[name]) for row in history if name in row]
        (best_epoch, best), (epoch, now) = max(curve, key=lambda point: point[1]), curve[-1]
        if best_epoch < 0.7 * epoch and best - now > _BIG_DROP:
            return {
                "best epoch long past": f"{name} was {best:.1%} after epoch {best_epoch + 1} and "
                f"is {now:.1%} after epoch {epoch + 1}: train for fewer epochs, or with more "
                "dropout or weight_decay"
            }
    return {}
