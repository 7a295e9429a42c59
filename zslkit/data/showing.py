"""What objects say of themselves: one line as text, a small table in a notebook.

Words that others wrote, captions above all, are escaped: they stay text wherever they are shown.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a manifest is read without it
    from PIL import Image

LONGEST = 120  # characters of a value in a table
SHOWN = 8  # pairs in the grid of a notebook, names in a line
THUMBNAIL = 128  # pixels of the longer side


class Shown:
    """An object that lists facts about itself: ``_facts()`` gives them by name, in order.

    Dataclasses that inherit from it are declared with ``repr=False``.
    """

    def _facts(self) -> Mapping[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} has no _facts()")

    def __repr__(self) -> str:
        return one_line(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return table(type(self).__name__, self._facts())


def one_line(title: str, facts: Mapping[str, Any]) -> str:
    """Write ``Title(name=value, …)``, with long values cut."""
    parts = [f"{name}={_short(repr(value))}" for name, value in facts.items()]
    return f"{title}({', '.join(parts)})"


def table(title: str, facts: Mapping[str, Any]) -> str:
    """Write an HTML table of facts; every word is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td>"
        f'<td style="text-align: left">{html.escape(_short(_words(value)))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{rows}</table>"


def figure(image: "Image.Image | None", caption: str) -> str:
    """Write an image, small and inline, above its escaped caption; None was unreadable."""
    seen = "<i>unreadable</i>"
    if image is not None:
        small, stream = image.copy(), io.BytesIO()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(stream, "JPEG", quality=85)
        data = base64.b64encode(stream.getvalue()).decode()
        seen = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    style = f"display: inline-block; width: {THUMBNAIL}px; margin: 4px; vertical-align: top"
    return (
        f'<figure style="{style}">{seen}'
        f"<figcaption>{html.escape(_short(caption))}</figcaption></figure>"
    )


def some(names: Sequence[str]) -> str:
    """Join the first names, and say how many there are if that is not all."""
    more = f", … ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
