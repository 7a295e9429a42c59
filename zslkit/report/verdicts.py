"""Verdicts of a reproduction: equal to the bit, explained by the noise of a figure, different."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from zslkit.evaluation.registry import metric_facts
from zslkit.report.comparison import differing, facts
from zslkit.report.tables import flat

TIMINGS = ("s", "MB", "items/s")
"""Units of metrics that no second run repeats."""

_ROUNDING = 1e-5  # relative: float32 sums in another order, and what a few layers make of them


def judge(
    before: Mapping[str, Any], after: Mapping[str, Any], spreads: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Give each metric of recorded results one of three verdicts against those of a second run.

    *Equal*: to the bit. *Explained*: something that moves the last bits of every sum is not the
    same (processor, numerics, packages, threads), and the difference is no larger than the
    interval of the two figures and the spread of trainings over seeds allow. *Different*: all
    else. Timings are not compared.

    Parameters
    ----------
    before, after : mapping
        What ``results.json`` holds.
    spreads : mapping, optional
        Standard deviation over seeds by the metric's words, as :func:`seed_spreads` finds them.

    Returns
    -------
    dict
        ``n_equal``; ``explained`` and ``differences``, metric to both estimates; ``origin``,
        words of what explains; ``facts`` that differ: data, code, packages, machine.
    """
    old, new = (
        {
            name: numbers
            for name, numbers in flat(results["metrics"])
            if metric_facts(name).unit not in TIMINGS
        }
        for results in (before, after)
    )
    unequal, changed = differing(old, new), differing(facts(before), facts(after))
    origin = origin_of(changed)
    explained = {
        name: pair
        for name, pair in unequal.items()
        if origin and all(pair) and within(*pair, _spread(name, spreads or {}))
    }
    return {
        "n_equal": len(old.keys() & new.keys() - unequal.keys()),
        "explained": explained,
        "differences": {name: pair for name, pair in unequal.items() if name not in explained},
        "origin": origin,
        "facts": changed,
    }


def origin_of(changed: Mapping[str, tuple]) -> list[str]:
    """Name what may move the last bits among facts that differ; nothing where the data do.

    Other code may change anything, so it is named first and never alone.
    """
    if "manifest" in changed:
        return []
    kinds = {
        "processor": ("machine processor", "machine cpu_capability", "machine device"),
        "numerics": ("machine numerics",),
        "threads": ("machine threads",),
    }
    found = [kind for kind, names in kinds.items() if any(name in changed for name in names)]
    packages = [name.removeprefix("package ") for name in changed if name.startswith("package ")]
    found += [f"packages ({', '.join(packages)})"] * bool([p for p in packages if p != "zslkit"])
    if found and "code sha256" in changed:
        found = ["code", *found]
    return found


def within(old: Mapping[str, float], new: Mapping[str, float], spread: float = 0.0) -> bool:
    """Tell whether two estimates differ by no more than chance explains.

    Both figures' 95 % half widths and that of the difference of two trainings, 1.96 · √2 times
    the spread over seeds, are independent: their squares add up. Figures without either may only
    differ by rounding.
    """
    gap = abs(new["value"] - old["value"])
    halves = [(one["high"] - one["low"]) / 2 for one in (old, new) if "low" in one]
    room = math.hypot(*halves, 1.96 * math.sqrt(2) * spread)
    return gap <= max(room, _ROUNDING * max(abs(old["value"]), abs(new["value"])))


def seed_spreads(recorded: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Find how far trainings with other seeds lie apart, from sweeps among recorded results.

    Returns
    -------
    dict
        Standard deviation over seeds by the metric's words: the root mean square over variants.
    """
    from zslkit.evaluation.intervals import student_t

    squares: dict[str, list[float]] = defaultdict(list)
    for results in recorded:
        n_seeds = len((results.get("extra") or {}).get("seeds") or ())
        for name, found in flat(results["metrics"].get("all", {})):
            if n_seeds > 1 and found.get("n") == n_seeds and "low" in found:
                half = (found["high"] - found["low"]) / 2
                deviation = half * math.sqrt(n_seeds) / student_t(n_seeds - 1)
                squares[metric_facts(name).words].append(deviation**2)
    return {words: math.sqrt(sum(own) / len(own)) for words, own in squares.items()}


def _spread(name: str, spreads: Mapping[str, float]) -> float:
    """Give a training's spread; a mean over several trainings holds its own in its interval."""
    return 0.0 if name.startswith(("all / ", "summary / ")) else spreads.get(
        metric_facts(name).words, 0.0
    )  # fmt: skip
