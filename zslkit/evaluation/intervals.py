"""Intervals: over items by bootstrap, of shares by Wilson, over seeds by Student's t."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_MANY = 50_000


def bootstrap_interval(
    per_item_hits: Any, level: float = 0.95, n_resamples: int = 2000, seed: int = 0, groups=None
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13), seeded.

    Items that share an entry of ``groups`` (captions of one photo) are drawn together: they are
    not independent. Where all items agree the interval has no width, however few they are. Of
    more than 50,000 items that are 0 or 1 only the sum is drawn, from its binomial distribution.
    """
    hits = np.asarray(per_item_hits, dtype=float)
    if hits.ndim != 1 or not len(hits) or not 0 < level < 1:
        raise ValueError(f"need items (n,) and 0 < level < 1, got {hits.shape} and {level}")
    rng, means = np.random.default_rng(seed), []
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    if groups is None and len(hits) > _MANY and np.isin(hits, (0, 1)).all():
        drawn = rng.binomial(len(hits), hits.mean(), size=n_resamples)
        low, high = np.quantile(drawn / len(hits), quantiles)
        return float(low), float(high)
    members = np.unique(np.arange(len(hits)) if groups is None else groups, return_inverse=True)[1]
    totals, sizes = np.bincount(members, weights=hits), np.bincount(members)
    step = max(1, 2**21 // len(sizes))  # resamples held in memory at once
    for start in range(0, n_resamples, step):
        drawn = rng.integers(len(sizes), size=(min(step, n_resamples - start), len(sizes)))
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), quantiles)
    return float(low), float(high)


def estimate(per_item_hits: Any, groups=None, **also: float) -> dict[str, float]:
    """Word a mean and its bootstrap interval for ``results.json``; also say ``chance=0.05``."""
    low, high = bootstrap_interval(per_item_hits, groups=groups)
    value = np.asarray(per_item_hits, dtype=float).mean().item()
    return {"value": value, "low": low, "high": high, "n": len(per_item_hits), **also}


def wilson_interval(hits: int, n: int) -> dict[str, float]:
    """Word a fraction with its 95 % interval (Wilson 1927), also at 0 and 1.

    Raises
    ------
    ValueError
        If ``n`` is 0.
    """
    if n < 1:
        raise ValueError(f"a fraction of n={n} has no interval")
    from scipy.stats import binomtest

    share, found = hits / n, binomtest(hits, n).proportion_ci(0.95, method="wilson")
    # at 0 and 1 the rounding of the last bit could leave the value outside
    low, high = min(share, float(found.low)), max(share, float(found.high))
    return {"value": share, "low": low, "high": high, "n": n}


def seed_interval(values: Sequence[float]) -> dict[str, float]:
    """Word a mean over n seeds with its 95 % Student-t interval, like :func:`estimate`."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        raise ValueError(f"an interval over seeds needs at least two, got {n}")
    half = student_t(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def student_t(degrees: int) -> float:
    """Give the 97.5 % quantile of Student's t: half a 95 % interval in standard errors."""
    from scipy.special import stdtrit  # of scipy.stats.t, without a second of imports

    return float(stdtrit(degrees, 0.975))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Give the mean of a - b over n seeds that both share, with its Student-t interval."""
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, got {len(a)} and {len(b)}")
    return seed_interval(np.subtract(a, b).tolist())
