"""Suspect captions one after the other, decided by key."""

from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import pandas as pd
import traitlets

from zslkit.checkpoint import Run
from zslkit.data.images import BrokenImageError
from zslkit.data.pairs import Pairs
from zslkit.data.review import (
    Decision,
    add_decisions,
    read_decisions,
    remove_decision,
    review_file,
)
from zslkit.evaluation.suspects import find_suspects
from zslkit.training.batches import TrainingData
from zslkit.widgets.live import PAGE, Box, jpeg_base64, small_picture

_ACTIONS = ("keep", "drop", "swap")


class _Keys(anywidget.AnyWidget):
    """A field that hears keys, and one for other words; sends ``{"word", "text"}``."""

    _esm = Path(__file__).with_name("review.js").read_text("utf-8")
    caption = traitlets.Unicode().tag(sync=True)


class CaptionReview(Box):
    """Decide on suspect captions: keep, drop, swap or edit, each by one key.

    Every decision is written at once to an overlay file; the data are never changed. A run with
    ``review=FILE`` reads it.

    Parameters
    ----------
    run_or_table : Run or DataFrame
        Whose captions are looked through, or what :func:`zslkit.find_suspects` gave.
    file : path, optional
        The overlay; earlier decisions in it stand, and the first caption shown is one without. By
        default, for a run, :func:`zslkit.data.review_file` of its manifest.
    pairs : Pairs, optional
        The images of a table; those of a run are its training pairs.
    share : float
        Of all captions of a run, that are ranked.

    Raises
    ------
    ValueError
        If a table comes without pairs or file, or ``file`` holds something else.
    """

    def __init__(
        self,
        run_or_table: Run | pd.DataFrame,
        file: str | Path | None = None,
        pairs: Pairs | None = None,
        share: float = 0.1,
    ):
        if isinstance(run_or_table, Run):
            device = next(run_or_table.model.parameters()).device
            data = TrainingData(run_or_table.model, run_or_table.config, device)
            file = review_file(run_or_table.config.manifest) if file is None else file
            run_or_table, pairs = find_suspects(run_or_table, share, data), data.pairs
        elif pairs is None or file is None:
            raise ValueError("a table of suspects needs pairs, the images of its rows, and a file")
        super().__init__()
        self.file, self._table, self._pairs = Path(file), run_or_table, pairs
        self._decided = self._read()
        self.by_key = _Keys()
        self.by_key.on_msg(lambda widget, content, buffers: self._hear(content))
        buttons = []
        for word in (*_ACTIONS, "undo", "back", "on"):
            button = ipywidgets.Button(description=word)
            button.on_click(lambda button: self._hear({"word": button.description}))
            buttons.append(button)
        self.buttons = ipywidgets.HBox(buttons)
        head = [ipywidgets.HTML(str(PAGE.style())), self.by_key, self.buttons]
        self.children = [*head, self.message, self.view]
        open_rows = (i for i, place in enumerate(self._places()) if place not in self._decided)
        self.place = next(open_rows, 0)
        self._show()

    @property
    def suspect(self) -> dict[str, Any]:
        """Row of the table that is shown."""
        return self._table.iloc[self.place].to_dict()

    @property
    def decisions(self) -> list[Decision]:
        """All decisions in the file."""
        return read_decisions(self.file) if self.file.is_file() else []

    def decide(self, action: str, text: str | None = None) -> None:
        """Write a decision on the caption that is shown and go on to the next.

        Parameters
        ----------
        action : str
            ``keep``, ``drop``, ``swap`` (with what the table suggests) or ``edit``.
        text : str, optional
            The other words, for ``edit``.

        Raises
        ------
        ValueError
            If it cannot be done: nothing to swap with, no other words.
        """
        found = self.suspect
        other = {"with_image": found["swap_image"], "with_caption": found["swap_caption"]}
        if action == "swap" and not found["swap_image"]:
            raise ValueError("no other suspect would gain by changing places with this one")
        decision = Decision(
            image=found["image"],
            caption=found["caption"],
            action=action,
            text=(text or "").strip() or None,
            **(other if action == "swap" else {}),
        )
        add_decisions(self.file, [decision])
        self._decided = self._read()
        self.walk(1)

    def undo(self) -> None:
        """Take back the decision on the caption that is shown."""
        found = self.suspect
        remove_decision(self.file, found["image"], found["caption"])
        self._decided = self._read()
        self._show()

    def walk(self, steps: int) -> None:
        """Go on by so many suspects, or back; it ends at either end."""
        self.place = min(max(0, self.place + steps), len(self._table) - 1)
        self._show()

    def figure(self) -> Any:
        """Draw the suspects around the one that is shown as a Figure."""
        from zslkit.plots.data import pair_grid

        first = self.place // 8 * 8
        rows = self._table.iloc[first : first + 8].to_dict("records")
        shown = [(self._pixels(found["row"]), f"{found['rank']}: {found['caption']}")
                 for found in rows]  # fmt: skip
        return pair_grid(*zip(*[pair for pair in shown if pair[0] is not None], strict=True))

    def _places(self) -> list[tuple[str, str]]:
        return [*zip(self._table["image"], self._table["caption"], strict=True)]

    def _read(self) -> dict[tuple[str, str], str]:
        return {place: one.action for one in self.decisions for place in one.places}

    def _hear(self, content: dict[str, str]) -> None:
        word = content.get("word")
        steps = {"back": -1, "on": 1}
        try:
            if word in steps:
                self.walk(steps[word])
            elif word == "undo":
                self.undo()
            else:
                self.decide(word, content.get("text"))
        except (ValueError, OSError) as error:
            self._say(" ".join(str(error).split("\n")[1:2] or [str(error)]))

    def _pixels(self, row: int) -> Any:
        try:
            return self._pairs.read_pixels(int(row))
        except BrokenImageError:
            return None

    def _picture(self, row: int) -> str | None:
        pixels = self._pixels(row)
        return None if pixels is None else jpeg_base64(small_picture(pixels, 320))

    def _show(self) -> None:
        found = self.suspect
        place = found["image"], found["caption"]
        self.by_key.caption = found["caption"]
        others = [text for text in self._pairs.captions[int(found["row"])] if text != place[1]]
        other_row = None
        if found["swap_image"]:
            rows = self._table.loc[self._table["image"] == found["swap_image"], "row"]
            other_row = rows.iloc[0]
        jpegs = self._picture(found["row"]), None if other_row is None else self._picture(other_row)
        decided = sum(place in self._decided for place in self._places())
        self._say(f"Suspect {self.place + 1} of {len(self._table)}; {decided} decided, in "
                  f"{self.file.name}.")  # fmt: skip
        self.view.value = str(PAGE.suspect(found, *jpegs, others, self._decided.get(place, "")))
