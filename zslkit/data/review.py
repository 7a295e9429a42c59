"""What people decided on suspect captions: an overlay beside the data, never a change of them.

A decision names a caption by its image's key and its own words, so that it still fits, or is seen
not to fit, after the data have changed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field, ValidationError, model_validator

from zslkit.data.files import write_json
from zslkit.data.source import STRING, Groups
from zslkit.data.strict import Strict, explain

Action = Literal["keep", "drop", "swap", "edit"]


class Decision(Strict):
    """What is to become of one caption."""

    image: str
    """Key of its image."""
    caption: str
    """Its words, as the data have them."""
    action: Action
    """keep, drop, swap (it changes places with another one) or edit (other words)."""
    text: str | None = Field(None, min_length=1)
    """The other words, for ``edit``."""
    with_image: str | None = None
    with_caption: str | None = None
    """The caption that it changes places with, for ``swap``."""

    @model_validator(mode="after")
    def _complete(self) -> "Decision":
        needed = {"edit": ("text",), "swap": ("with_image", "with_caption")}.get(self.action, ())
        for name in ("text", "with_image", "with_caption"):
            if (getattr(self, name) is None) == (name in needed):
                need = "needs" if name in needed else "takes no"
                raise ValueError(f"action={self.action!r} {need} {name}")
        if self.action == "swap" and self.places[0] == self.places[1]:
            raise ValueError(f"a caption cannot change places with itself: {self.caption!r}")
        return self

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Image and caption of what the decision is about; two for ``swap``."""
        own, other = (self.image, self.caption), (self.with_image, self.with_caption)
        return (own, other) if self.action == "swap" else (own,)


class Reviewed(NamedTuple):
    """Captions after the decisions."""

    rows: np.ndarray
    """(K,) int64: images that have a caption left."""
    captions: Groups
    """Of these K images."""
    origin: np.ndarray
    """(M,) int64: for each of their captions the place that its decision named, before."""
    settled: np.ndarray
    """(M,) bool: somebody gave it other words, or another image."""
    counts: dict[str, int]
    """Captions by action, and ``not found``: decisions on captions that are not here."""


def review_file(manifest: Any) -> Path:
    """Name the file that decisions on a source are kept in: beside it, or in its data root."""
    path = Path(str(manifest))
    if path.exists():
        return path.with_name(f"{path.stem}.review.json")
    return Path(f"{path.name}.review.json")


def read_decisions(path: str | Path) -> list[Decision]:
    """Read decisions, in the order in which they were made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds anything else; names the file and the decision.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"review={str(path)!r}: there is no such file; python -m zslkit data decide writes one"
        )
    try:
        listed = json.loads(path.read_text("utf-8"))["decisions"]
        return [Decision(**one) for one in listed]
    except ValidationError as error:
        raise ValueError(f"review={str(path)!r}: {explain(error)}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"review={str(path)!r}: must hold {{'decisions': [...]}} as python -m zslkit data "
            f"decide writes them ({type(error).__name__}: {error})"
        ) from None


def add_decisions(path: str | Path, new: Iterable[Decision]) -> list[Decision]:
    """Add decisions to a file, which is made if need be, and give all that it holds then.

    A caption has one decision: a later one takes the place of an earlier one.
    """
    path, new = Path(path), list(new)
    decisions = read_decisions(path) if path.is_file() else []
    for one in new:
        decisions = [other for other in decisions if not {*other.places} & {*one.places}]
        decisions.append(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [one.model_dump(exclude_none=True) for one in decisions]
    write_json(path, {"decisions": listed})
    return decisions


def checksum(path: str | Path) -> str:
    """Sha256 of the decisions in a file, whatever its name and layout."""
    listed = [one.model_dump(exclude_none=True) for one in read_decisions(path)]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def apply_decisions(
    keys: Sequence[str], captions: Groups, decisions: Iterable[Decision]
) -> Reviewed:
    """Give the captions of N images as decisions leave them.

    Parameters
    ----------
    keys : sequence of N str
    captions : Groups
        N groups; several equal captions of an image share a decision.
    decisions : iterable of Decision
        One of a pair that is not here counts as ``not found`` and does nothing.
    """
    owner, texts = captions.spread()
    texts, wanted = texts.copy(), {*()}
    decisions = list(decisions)
    for one in decisions:
        wanted |= {image for image, _ in one.places}
    numbers = {key: i for i, key in enumerate(np.asarray(keys).tolist()) if key in wanted}
    sizes = captions.stops - captions.starts
    first = np.cumsum(sizes) - sizes
    before = {  # of the images that decisions name: words → places of equal captions
        key: {
            text: [first[i] + j for j, other in enumerate(captions[i]) if other == text]
            for text in captions[i]
        }
        for key, i in numbers.items()
    }
    kept, settled = np.ones(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
    counts: Counter[str] = Counter()
    for one in decisions:
        places = [before.get(image, {}).get(text) for image, text in one.places]
        if not all(places):
            counts["not found"] += 1
            continue
        counts[one.action] += len(places[0])
        if one.action == "drop":
            kept[places[0]] = False
        elif one.action == "edit":
            texts[places[0]] = one.text
        elif one.action == "swap":
            texts[places[0]], texts[places[1]] = one.with_caption, one.caption
        if one.action in ("edit", "swap"):
            settled[[place for group in places for place in group]] = True
    left = np.bincount(owner[kept], minlength=len(sizes))
    rows = np.flatnonzero(left)
    ends = np.cumsum(left[rows])
    groups = Groups(texts[kept].astype(STRING), ends - left[rows], ends)
    return Reviewed(rows, groups, np.flatnonzero(kept), settled[kept], dict(counts))


def remove_decision(path: str | Path, image: str, caption: str) -> None:
    """Take back the decision on a caption, if the file holds one."""
    path = Path(path)
    if path.is_file():
        left = [one for one in read_decisions(path) if (image, caption) not in one.places]
        write_json(path, {"decisions": [one.model_dump(exclude_none=True) for one in left]})


def decisions_of_table(path: str | Path) -> list[Decision]:
    """Read the rows of a table of suspects whose column ``decision`` was filled in.

    ``swap`` takes what the table suggests, ``edit`` the words in the column ``text``; the first
    letter of an action is enough.

    Raises
    ------
    ValueError
        If a column is missing or a row cannot be understood; names the row.
    """
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    wanted = ("image", "caption", "swap_image", "swap_caption", "decision", "text")
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"{path}: lacks the column(s) {', '.join(missing)}; data suspects "
                         "--output writes such a table")  # fmt: skip
    found = []
    for number, row in enumerate(table.to_dict("records"), start=2):
        if not (word := row["decision"].strip().lower()):
            continue
        action = next((name for name in get_args(Action) if name.startswith(word)), word)
        more = {"swap": {"with_image": row["swap_image"], "with_caption": row["swap_caption"]},
                "edit": {"text": row["text"].strip() or None}}.get(action, {})  # fmt: skip
        if action == "swap" and not row["swap_image"]:
            raise ValueError(f"{path}, line {number}: nothing is suggested to swap with")
        try:
            found.append(Decision(image=row["image"], caption=row["caption"], action=action,
                                  **more))  # fmt: skip
        except ValidationError as error:
            raise ValueError(f"{path}, line {number}: {explain(error)}") from None
    return found
