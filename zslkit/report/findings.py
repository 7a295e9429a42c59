"""Findings in words: what soft labels showed, what a scale did, which comparison is decided."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zslkit.evaluation.registry import metric_facts

MIN_SEEDS = 3
"""With fewer, an interval over seeds is too wide to be shown: 12.7 standard errors for two."""

NEARLY_UNIFORM = 0.8  # of the largest entropy: e ** (0.8 ln 128) is 48 captions alike


def soft_label_words(history: Sequence[Mapping[str, float]], n_candidates: int) -> str:
    """Say what the soft targets of the last epoch were, against one-hot and uniform ones.

    Parameters
    ----------
    history : sequence of mapping
        Rows of a training, with ``self_mass`` and ``target_entropy`` (nats) where there were
        soft targets.
    n_candidates : int
        Captions of a batch.

    Returns
    -------
    str
        "" where there were no soft targets.
    """
    last = [row for row in history if row["epoch"] == history[-1]["epoch"]]
    last = [row for row in last if "target_entropy" in row]
    if not last:
        return ""
    mass, entropy = (
        sum(row[key] for row in last) / len(last) for key in ("self_mass", "target_entropy")
    )
    most = math.log(n_candidates)
    facts = (
        f"{mass:.1%} of the mass on the own caption of a batch of {n_candidates} "
        f"(uniform: {1 / n_candidates:.1%}), entropy {entropy:.2f} of at most {most:.2f} nats"
    )
    if entropy > NEARLY_UNIFORM * most:
        alike = f"as much as {math.exp(entropy):.0f} captions that fit alike"
        return f"The soft labels were nearly uniform: {facts}, {alike}. They say little."
    if mass > 0.95:
        return f"The soft labels were nearly one-hot: {facts}. There is little to distil."
    return f"The soft labels stood between one-hot and uniform: {facts}."


def calibration_words(
    errors: Mapping[str, float],
    losses: Mapping[str, float],
    sure: Mapping[str, float],
    right: float,
) -> str:
    """Say whether a fitted scale made calibration better, and if not, why.

    Parameters
    ----------
    errors, losses, sure : mapping
        Calibration error, log loss of the true class (nats) and mean probability of the class
        ranked first, of the scale as learned and of the fitted one, in this order, on images that
        neither saw.
    right : float
        Share of these images whose first-ranked class is right.
    """
    if len(errors) < 2:
        return ""
    (before, after), (loss, fitted_loss) = errors.values(), losses.values()
    change = f"calibration error {100 * before:.1f} → {100 * after:.1f} points"
    if after <= before:
        return f"The fitted scale makes the probabilities more honest: {change}."
    stated, fitted = sure.values()
    says = f"it states {fitted:.1%} on average (before: {stated:.1%}) and is right in {right:.1%}"
    loss_words = f"log loss {loss:.3f} → {fitted_loss:.3f} nats"
    reason = "it does not even carry over from one half of the images to the other"
    if fitted_loss < loss:
        reason = (
            "it was fitted to the log loss, which counts the true class of every "
            "image, and that did improve; calibration error only looks at the class ranked first"
        )
    return f"The fitted scale makes calibration worse: {change}; {loss_words}: {reason}; {says}."


def verdict(difference: Mapping[str, float], metric: str) -> str:
    """Call a difference over seeds better, worse or undecided; "too few seeds" below three."""
    if difference["n"] < MIN_SEEDS:
        return "too few seeds"
    if difference["low"] <= 0 <= difference["high"]:
        return "undecided"
    lower = metric_facts(metric).direction == "lower"
    return "better" if (difference["value"] > 0) != lower else "worse"


def compared_words(
    differences: Mapping[str, Mapping[str, float]], metric: str, baseline: str
) -> dict[str, Any]:
    """Sum up comparisons with a baseline as the headline of a notebook.

    The number is the difference that is furthest from zero with its whole interval; where none
    is decided, the largest. Fewer than three seeds give no interval.

    Returns
    -------
    dict
        ``sentence``, ``metric``, ``value``, ``low`` and ``high``, ``over``, for
        ``record(headline=)``.

    Raises
    ------
    ValueError
        If there is nothing to compare.
    """
    if not differences:
        raise ValueError(f"differences is empty: nothing was compared with {baseline}")
    facts = metric_facts(metric)
    verdicts = {name: verdict(found, metric) for name, found in differences.items()}
    n_seeds = min(found["n"] for found in differences.values())
    decided = [name for name in verdicts if verdicts[name] in ("better", "worse")]

    def margin(name: str) -> float:
        found = differences[name]
        return min(abs(found["low"]), abs(found["high"])) if decided else abs(found["value"])

    chosen = max(decided or differences, key=margin)
    found, seeds = differences[chosen], f"{n_seeds} seeds"
    change = facts.write_change(found["value"])
    counts = {word: [*verdicts.values()].count(word) for word in ("better", "worse", "undecided")}
    tally = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    if decided:
        sentence = f"Decided over {seeds}: {chosen} is {verdicts[chosen]} than {baseline}, {change}"
        sentence += f" in {facts.words}; of {len(differences)} comparisons {tally}."
    elif n_seeds < MIN_SEEDS:
        sentence = f"{seeds} cannot decide: the largest difference to {baseline} is {change}"
        sentence += f" in {facts.words}, by {chosen}."
    else:
        sentence = f"Undecided over {seeds}: no difference to {baseline} in {facts.words} has an "
        sentence += f"interval without zero; the largest is {change}, by {chosen}."
    ends = {key: found[key] for key in ("low", "high") if n_seeds >= MIN_SEEDS}
    return {"sentence": sentence, "metric": f"{metric} / differences", "value": found["value"],
            **ends, "over": f"{seeds}, paired"}  # fmt: skip
