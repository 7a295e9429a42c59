"""A map of embeddings to walk through."""

import base64
import warnings
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from zslkit.widgets.live import FEW, LISTED, PAGE, Box, control, csv_base64


class EmbeddingMap(Box):
    """Walk through a map of images: hover to see one, draw a lasso to list those inside.

    ``colour`` and ``scatter`` are its parts: a menu and a jupyter-scatter ``Scatter``.

    Parameters
    ----------
    points : array of shape (N, 2)
        Where the images lie.
    table : DataFrame
        N rows; columns of few values, or of numbers, can give the colour.
    thumbnails : sequence of str
        N data URIs.

    Raises
    ------
    ValueError
        If the three are not of one length.
    """

    def __init__(self, points: Any, table: pd.DataFrame, thumbnails: Sequence[str]):
        if not len(points) == len(table) == len(thumbnails):
            raise ValueError(
                f"{len(points)} points, {len(table)} rows of the table and {len(thumbnails)} "
                "thumbnails: all must be of one length"
            )
        super().__init__()
        with warnings.catch_warnings():  # pandas warns jupyter-scatter of pandas 4
            warnings.simplefilter("ignore", DeprecationWarning)
            from jscatter import Scatter

        self._points, self._table, self._pictures = points, table.reset_index(drop=True), thumbnails
        texts = self._table.select_dtypes(exclude="number")
        shown = self._table.assign(**texts.astype("category"), picture=list(thumbnails))
        shown["x"], shown["y"] = xy = np.asarray(points, dtype=float).T
        margins = 0.05 * np.ptp(xy, axis=1) + 1e-6  # what lies on the edge would be cut in half
        low, high = xy.min(axis=1) - margins, xy.max(axis=1) + margins
        scales = {f"{axis}_scale": (low[i], high[i]) for i, axis in enumerate("xy")}
        few = [name for name in self._table if name not in texts or table[name].nunique() <= FEW]
        self.colour = control(ipywidgets.Dropdown, "colour", options=few)
        about = {"tooltip": True, "tooltip_properties": list(self._table)}
        about |= {"tooltip_preview": "picture", "tooltip_preview_type": "image"}
        self.scatter = Scatter("x", "y", data=shown, height=440, axes=False, **scales, **about)
        self.scatter.tooltip(histograms=False)
        self.scatter.size(default=7)
        self.colour.observe(self._paint, "value")
        self.scatter.widget.observe(self._choose, "selection")
        places = self.scatter.show()
        places.add_class("zslkit-map")  # which the style turns round in a dark theme
        head = [ipywidgets.HTML(str(PAGE.style())), self.colour, places]
        self.children = [*head, self.message, self.view]
        self._paint()
        self._choose()

    @property
    def selected(self) -> pd.DataFrame:
        """Rows of the images inside the lasso, none at first."""
        return self._table.iloc[np.asarray(self.scatter.selection(), dtype=int)]

    def figure(self) -> Any:
        """Draw the map as a Figure, in the colours of at most seven values, the most frequent."""
        from zslkit.plots.maps import MapPanel, embedding_maps

        values, names = self._names()
        panel = MapPanel(self.colour.value, np.asarray(self._points), np.empty((0, 2)), ())
        return embedding_maps([panel], values.tolist(), names, names[:7])

    def _names(self) -> tuple[pd.Series, list[str]]:
        """Give what the points are coloured by, and its values, the most frequent first."""
        values = self._table[self.colour.value].astype(str)
        return values, values.value_counts().index.tolist()

    def _still(self) -> str:
        picture = self.figure()._repr_png_()
        return str(PAGE.still("", base64.b64encode(picture).decode()))

    def _paint(self, change: Any = None) -> None:
        from zslkit.plots.style import class_styles

        column, colours = self.colour.value, "auto"
        if self._table[column].dtype.kind not in "fiu":  # the colours of the figure
            _, names = self._names()
            styles = class_styles(names[:7], names)
            found = {
                name: styles.get(name, styles.get("")) for name in sorted(names)
            }  # as its codes
            colours = {name: "#000000" if c == "black" else c for name, (c, *_) in found.items()}
        self.scatter.color(by=column, map=colours, norm=None)
        self.scatter.legend(self._table[column].nunique() <= 12)
        self._renew()

    def _choose(self, change: Any = None) -> None:
        table = self.selected
        self._say(
            f"{len(table):,} of {len(self._table):,} images chosen. Draw a lasso with its button "
            "on the left; a double click lets go."
        )
        rows = table[:LISTED].to_dict("records")
        pictures = [self._pictures[i] for i in table.index[:LISTED]]
        self.view.value = str(
            PAGE.chosen(list(table), rows, pictures, len(table), csv_base64(table))
        )
