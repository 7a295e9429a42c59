"""Three verdicts of a reproduction, each on either side of its line."""

import copy
import math

import pytest
from scipy import stats

from zslkit.report.verdicts import judge, origin_of, seed_spreads, within

HIT = {"value": 0.35, "low": 0.32, "high": 0.38, "n": 960}
RESULTS = {
    "metrics": {"zeroshot": {"hit@1": HIT}, "ece": 0.06, "train_seconds": 12.0},
    "manifest_checksum": "0" * 64,
    "code": {"sha256": "a"},
    "versions": {"zslkit": "1", "torch": "2.13"},
    "machine": {"processor": "maker A", "numerics": "of this processor", "threads": 1},
}


def again(value=0.35, ece=0.06, **changes):
    results = copy.deepcopy(RESULTS)
    results["metrics"]["zeroshot"]["hit@1"] = HIT | {
        key: HIT[key] + (value - 0.35) for key in ("value", "low", "high")
    }
    results["metrics"] |= {"ece": ece, "train_seconds": 99.0}
    for section, facts in changes.items():
        results[section] = facts if isinstance(facts, str) else results[section] | facts
    return results


def test_equal_bits_are_equal_and_timings_are_not_compared():
    found = judge(RESULTS, again())
    assert found == {"n_equal": 2, "explained": {}, "differences": {}, "origin": [], "facts": {}}


def test_another_processor_explains_what_the_intervals_allow():
    other = {"machine": {"processor": "maker B"}}
    found = judge(RESULTS, again(0.38, **other))  # the halves add up to hypot(0.03, 0.03) = 0.042
    assert found["explained"].keys() == {"zeroshot / hit@1"}
    assert (found["n_equal"], found["differences"], found["origin"]) == (1, {}, ["processor"])
    found = judge(RESULTS, again(0.40, **other))
    assert found["differences"].keys() == {"zeroshot / hit@1"}
    spreads = {"zero-shot hit@1": 0.02}  # over seeds: hypot(0.042, 1.96 * 1.41 * 0.02) = 0.070
    assert judge(RESULTS, again(0.40, **other), spreads)["differences"] == {}
    assert judge(RESULTS, again(0.43, **other), spreads)["explained"] == {}


def test_on_the_same_machine_nothing_explains_a_difference():
    found = judge(RESULTS, again(0.36))
    assert found["differences"].keys() == {"zeroshot / hit@1"}
    assert judge(RESULTS, again(0.36, code={"sha256": "b"}))["explained"] == {}


def test_without_an_interval_only_rounding_is_explained():
    other = {"machine": {"threads": 2}}
    assert judge(RESULTS, again(ece=0.06 + 1e-8, **other))["explained"].keys() == {"ece"}
    assert judge(RESULTS, again(ece=0.061, **other))["differences"].keys() == {"ece"}


def test_a_metric_on_one_side_only_is_different():
    results = again(machine={"processor": "maker B"})
    del results["metrics"]["ece"]
    assert judge(RESULTS, results)["differences"] == {"ece": ({"value": 0.06}, None)}


@pytest.mark.parametrize(
    ("changed", "origin"),
    [
        ({"machine processor": ("A", "B")}, ["processor"]),
        ({"machine cpu_capability": ("AVX2", "AVX512")}, ["processor"]),
        ({"machine numerics": ("portable", "of")}, ["numerics"]),
        ({"machine threads": (1, 2)}, ["threads"]),
        ({"package torch": ("2.13", "2.14")}, ["packages (torch)"]),
        ({"package zslkit": ("1", "2"), "code sha256": ("a", "b")}, []),
        ({"machine threads": (1, 2), "code sha256": ("a", "b")}, ["code", "threads"]),
        ({"machine threads": (1, 2), "manifest": ("0", "1")}, []),
        ({"machine cores": (2, 4)}, []),
    ],
)
def test_origins_that_move_the_last_bits(changed, origin):
    assert origin_of(changed) == origin


def test_room_is_that_of_independent_differences():
    old, new = {"value": 0.0, "low": -3.0, "high": 3.0}, {"value": 4.9, "low": 0.9, "high": 8.9}
    assert within(old, new)  # 3, 4, 5
    assert not within(old, new | {"value": 5.1})


def test_the_spread_over_seeds_comes_from_sweeps():
    values, n = (0.1, 0.2, 0.4), 3
    deviation = stats.tstd(values)
    half = stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
    of_seeds = {"value": 0.2, "low": 0.2 - half, "high": 0.2 + half, "n": n}
    constant = {"value": 0.1, "low": 0.1, "high": 0.1, "n": n}
    sweep = {"metrics": {"all": {"hit@1": {"a": of_seeds, "b": constant}}},
             "extra": {"seeds": [0, 1, 2]}}  # fmt: skip
    assert seed_spreads([RESULTS, sweep]) == {"hit@1": pytest.approx(deviation / math.sqrt(2))}
