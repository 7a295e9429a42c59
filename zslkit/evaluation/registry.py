"""What each metric is: its words, its unit, which way is better, how it is written.

Results are nested, and a metric is found by its place in the name that joins the levels:
``retrieval / text_to_image / recall@10``. Cards, comparisons, the page of a report, axes of
figures and README all ask here; nothing else judges a metric by its name.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

DIRECTIONS = ("higher", "lower", "neither")


@dataclass(frozen=True)
class Metric:
    r"""What a metric is.

    Parameters
    ----------
    pattern : str
        Regular expression of its name: whole levels of the nested name, of the first one also
        the last words alone. " / " between levels also stands for the blank that sweeps write.
    words : str
        What a reader sees in its place; ``\1`` is the first group of the pattern.
    unit : str
        "fraction" (0 to 1, written in percent, differences in points), "count", "" for a plain
        number, or the unit itself: "nats", "s", "MB".
    direction : {"higher", "lower", "neither"}
        Which is better.
    form : str
        Format specification of a number, such as ".3f"; by default that of the unit.
    """

    pattern: str
    words: str
    unit: str = ""
    direction: str = "neither"
    form: str = ""
    is_difference: bool = False

    @property
    def factor(self) -> int:
        """What a value is multiplied with where it is shown: 100 for fractions, else 1."""
        return 100 if self.unit == "fraction" else 1

    @property
    def shown_unit(self) -> str:
        """Unit beside a shown value, "" where there is none."""
        if self.unit == "fraction":
            return "points" if self.is_difference else "%"
        return "" if self.unit == "count" else self.unit

    @property
    def axis(self) -> str:
        """Words for the axis of a figure, with the unit."""
        return f"{self.words} ({self.shown_unit})" if self.shown_unit else self.words

    def write(self, value: float) -> str:
        """Write a value with its unit."""
        if self.is_difference:
            return self.write_change(value)
        if self.unit == "fraction":
            return f"{value:{self.form or '.1%'}}"
        return self._with_unit(f"{value:{self.form or self._plain(value)}}")

    def write_change(self, value: float, unit: bool = True) -> str:
        """Write a difference of two values with its sign; of two fractions in points."""
        if self.unit == "fraction":
            return f"{100 * value:+.1f}" + " points" * unit
        text = f"{value:+{self.form or self._plain(value)}}"
        return self._with_unit(text) if unit else text

    def _plain(self, value: float) -> str:
        return ",.0f" if self.unit == "count" and float(value).is_integer() else ".4g"

    def _with_unit(self, text: str) -> str:
        return f"{text} {self.shown_unit}".rstrip()


def register_metric(
    pattern: str, words: str, unit: str = "", direction: str = "neither", form: str = ""
) -> Metric:
    """Say what a metric is, so that cards, comparisons and figures show it as it is meant.

    Parameters are those of :class:`Metric`. Registered again, a pattern gets the new facts, so
    that a notebook's cell may run twice; those of the library stay as they are.

    Examples
    --------
    >>> register_metric("wrong / per minute", "errors per minute", "1/min", "lower").axis
    'errors per minute (1/min)'

    Raises
    ------
    ValueError
        For a pattern that is no regular expression or belongs to the library, words that name a
        group it lacks, a direction that there is not, or a form that formats no number.
    """
    metric = Metric(pattern, words, unit, direction, form)
    if _OWN.get(pattern, metric) != metric:
        raise ValueError(f"pattern={pattern!r} is the library's own: {_OWN[pattern].words}")
    try:
        groups = _expression(pattern).groups
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from None
    if lost := [int(n) for n in re.findall(r"\\(\d+)", words) if int(n) > groups]:
        raise ValueError(f"words={words!r}: pattern={pattern!r} has no group {lost[0]}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} must be one of {', '.join(DIRECTIONS)}")
    try:
        format(0.5, form)
    except ValueError:
        raise ValueError(f"form={form!r} formats no number; give one such as .3f") from None
    _METRICS[pattern] = metric
    metric_facts.cache_clear()
    return metric


@lru_cache(maxsize=4096)
def metric_facts(name: str) -> Metric:
    """Give what is known of a metric by its nested name; plain facts if nothing is.

    Of several patterns that fit, the one that begins first holds, then the longest: behind a
    metric's name come classes, groups and variants. ``NAME / differences`` are differences of the
    metric, ``NAME / kept`` shares of its best.
    """
    found = _find(name)
    return found[0] if found else Metric(re.escape(name), name)


def metric_label(name: str) -> str:
    """Give the nested name with the metric in words."""
    found = _find(name)
    if not found:
        return name
    metric, start, end = found
    return name[:start] + metric.words + name[end:]


def _find(name: str) -> tuple[Metric, int, int] | None:
    """Find a metric in a nested name, and where it stands."""
    hits = [
        (match.start(), -match.end(), metric, match)
        for metric in _METRICS.values()
        if (match := _expression(metric.pattern).search(name))
    ]
    if not hits:
        return None
    start, end, metric, match = min(hits, key=lambda hit: hit[:2])
    metric, level = replace(metric, words=match.expand(metric.words)), name[-end:].split(" / ")[1:2]
    if level == ["differences"]:
        metric = replace(metric, is_difference=True)
    if level == ["kept"]:
        metric = replace(metric, unit="fraction", form="")
    return metric, start, -end


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern:
    levels = pattern.replace(" / ", " (?:/ )?")
    return re.compile(f"(?:^|(?<= ))(?:{levels})(?= / |$)")


_ROWS = (
    # zero-shot recognition and retrieval
    (r"zeroshot / hit@(\d+)", r"zero-shot hit@\1", "fraction", "higher"),
    (r"hit@(\d+)", r"hit@\1", "fraction", "higher"),
    (r"(?:retrieval / )?text_to_image / recall@(\d+)", r"text→image recall@\1", "fraction",
     "higher"),
    (r"(?:retrieval / )?image_to_text / recall@(\d+)", r"image→text recall@\1", "fraction",
     "higher"),
    (r"recall@(\d+)", r"recall@\1", "fraction", "higher"),
    (r"(?:retrieval / )?rsum", "rSum (of 600)", "", "higher"),
    (r"same_image_recall@(\d+)", r"same-image recall@\1", "fraction", "higher"),
    (r"precision@(\d+)", r"precision@\1", "fraction", "higher"),
    (r"accuracy(@\d+)?", r"accuracy\1", "fraction", "higher"),
    ("shared_words", "words shared with the nearest caption", "fraction", "higher"),
    ("probability of the first class", "probability of the first class", "fraction"),
    ("(mean )?average precision", r"\1average precision", "fraction", "higher"),
    ("seen in captions / by captions that name the class",
     "hit@1 by captions that name the class", "fraction", "higher"),
    ("seen classes", "hit@1 of seen classes", "fraction", "higher"),
    ("unseen classes", "hit@1 of unseen classes", "fraction", "higher"),
    ("harmonic mean", "harmonic mean of seen and unseen", "fraction", "higher"),
    ("linear probe, half of the images", "linear probe, half of the images", "fraction", "higher"),
    (r"(\d+-way \d+-shot, .+)", r"\1", "fraction", "higher"),
    ("calibration error", "calibration error", "fraction", "lower"),
    ("ece", "calibration error", "fraction", "lower"),
    ("area under risk over coverage", "area under risk over coverage", "fraction", "lower"),
    ("mean distance of errors", "mean distance of errors", "edges", "lower"),
    ("errors without a common ancestor", "errors without a common ancestor", "count", "lower"),
    # training
    ("loss", "loss", "nats", "lower"),
    ("contrastive_loss", "contrastive loss", "nats", "lower"),
    ("distillation_loss", "distillation loss", "nats", "lower"),
    ("target_entropy", "target entropy", "nats"),
    ("self_mass", "mass on the own pair", "", "neither"),
    ("target_agreement", "correlation with the teacher", "", "neither"),
    ("train_seconds", "training time", "s", "lower"),
    # geometry of the sphere
    ("modality_gap", "modality gap"),
    ("pair_cosine", "mean cosine of pairs"),
    ("other_cosine", "mean cosine of other combinations"),
    ("alignment", "alignment (squared distance)", "", "lower"),
    ("image_uniformity", "uniformity of images", "", "lower"),
    ("text_uniformity", "uniformity of texts", "", "lower"),
    # towers and the cache
    ("parameters", "parameters", "count"),
    ("feature_dim", "feature dimension", "count"),
    ("weights_mb", "weights", "MB", "lower"),
    ("activation_mb_per_item", "activations an item", "MB", "lower"),
    ("peak_mb", "peak memory", "MB", "lower"),
    ("items_per_second", "speed", "items/s", "higher"),
    ("(cold|warm)_seconds", r"\1 pass", "s", "lower"),
    ("saved_seconds", "time saved", "s", "higher"),
    ("megabytes", "on disk", "MB", "lower"),
    ("saved_megabytes", "cost on disk", "MB", "lower"),
    # data
    ("share of test images like a decoded training image",
     "share of test images like a decoded training image", "fraction", "lower"),
    ("share of mismatched captions, upper estimate",
     "share of mismatched captions, upper estimate", "fraction", "lower"),
    ("share of words that occur once", "share of words that occur once", "fraction"),
    (r"captions / .+? / (images|captions|distinct words|captions of several images)", r"\1",
     "count"),
    (r"captions / .+? / ((?:captions|words) per (?:image|caption))", r"\1"),
    (r"duplicates / (.+?) / (exact|near)", r"duplicates \1: \2", "count", "lower"),
    (r"images / (.+?) / (decoded)", r"images of \1: \2", "count"),
    (r"images / (.+?) / (broken|skipped)", r"images of \1: \2", "count", "lower"),
    (r"classes / (named|all)", r"classes in captions: \1", "count"),
    ("share_survived", "links that survived", "fraction", "higher"),
    ("(listed|untried|tried|survived)", r"links \1", "count"),
    ("comparison of ledgers / (only_a|only_b|both|changed|unchecked)", r"links: \1", "count"),
    ("jaccard", "links in both of those in either", "fraction", "higher"),
    ("captions of a batch that fit as well", "captions of a batch that fit as well"),
)  # fmt: skip
_OWN: dict[str, Metric] = {row[0]: Metric(*row) for row in _ROWS}
_METRICS = dict(_OWN)
