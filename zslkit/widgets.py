"""Live views of a model for JupyterLab; each has a static twin, ``figure()``, for exported pages.

Controls are read in the kernel's event loop; models work on one thread beside it, so that the
kernel never waits for them. ``widgets.html`` escapes words that others wrote and loads nothing
from the network. Outside an event loop everything happens at once.
"""

import asyncio
import base64
import csv
import hashlib
import io
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from zslkit.checkpoint import Run, load_run
from zslkit.coach import judge_targets
from zslkit.config import RunConfig
from zslkit.explore import Namer, embed_batch, target_table, teacher_of
from zslkit.images import decode_image, to_pil
from zslkit.objective import soft_targets
from zslkit.pairs import Pairs, open_pairs
from zslkit.targets import target_agreement, target_statistics
from zslkit.zeroshot import TEMPLATES

# One thread for all widgets: a tokenizer refuses to be used by two at a time.
_WORKER = ThreadPoolExecutor(1, thread_name_prefix="zslkit-widgets")
_PAGE = (
    Environment(autoescape=True)
    .from_string(Path(__file__).with_name("widgets.html").read_text("utf-8"))
    .module
)
_LARGE = 20_000_000  # pixels of a photo that deserve a remark
_FEW = 60  # values of a column that can be told apart by colour
_LISTED = 50  # images of a lasso in the page; its CSV holds all
_GALLERY = 128  # training images, embedded at once, among which those like a photo are found
_SHOWN = 24  # pairs in the microscope's tables; its statistics are of all


class _Superseded(Exception):
    """The controls have moved on, and nobody waits for this computation any more."""


class _Box(ipywidgets.VBox):
    """A column with a line of words and a view, which says what an exported page lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.view = ipywidgets.HTML(), ipywidgets.HTML()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: live in JupyterLab; an exported page has only its figure"

    def _say(self, words: str) -> None:
        self.message.value = str(_PAGE.words(words))


class _Live(_Box):
    """A box whose view follows its controls: ``_compute`` on the worker thread, then ``_html``."""

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], debounce: float):
        if not debounce >= 0:
            raise ValueError(f"debounce={debounce} must be a number of seconds, 0 or more")
        super().__init__()
        self.debounce, self._controls, self._tasks = debounce, controls, set()
        self._asked, self._answered, self._result, self._problem = 0, 0, None, ""
        self.picture, self.saved = (
            ipywidgets.Button(description="picture as PNG"),
            ipywidgets.HTML(),
        )
        self.picture.on_click(self._keep)
        for name, control in controls.items():
            setattr(self, name, control)
            control.observe(self._changed, "value")

    def flush(self) -> None:
        """Bring the view up to date with the controls before this returns."""
        if (number := self._asked) > self._answered:
            self._finish(number, *_WORKER.submit(self._attempt, self._read(), number).result())

    def _changed(self, change: Any = None) -> None:
        self._asked += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a plain script: no loop would ever run a task
            loop = None
        if loop is None or self.debounce == 0:
            self.flush()
        else:
            task = loop.create_task(self._later(self._asked))
            self._tasks.add(task)  # the loop's own reference is weak
            task.add_done_callback(self._tasks.discard)

    async def _later(self, number: int) -> None:
        await asyncio.sleep(self.debounce)
        if number == self._asked > self._answered:
            self._say("Computing …")
            job = partial(self._attempt, self._read(), number)
            self._finish(number, *await asyncio.get_running_loop().run_in_executor(_WORKER, job))

    def _read(self) -> dict[str, Any]:
        wanted = {name: control.value for name, control in self._controls.items()}
        idle = self._idle(wanted)
        for name, control in self._controls.items():
            control.layout.display = "none" if name in idle else None
        return wanted

    def _attempt(self, wanted: Mapping[str, Any], number: int) -> tuple[Any, str]:
        try:
            return self._compute(wanted, partial(self._tell, number))
        except Exception as error:  # it would end a task that nobody reads; the widget lives on
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            return None, f"{kind}{error}"

    def _finish(self, number: int, result: Any, words: str) -> None:
        if number == self._asked:  # else a newer answer is on its way
            self._answered, self._result, self._problem = number, result, words
            self._say(words)
            self.view.value = "" if result is None else self._html(**result)
            self.saved.value = ""  # its picture is of what was shown

    def _keep(self, button: ipywidgets.Button) -> None:
        try:
            png = base64.b64encode(self.figure()._repr_png_()).decode()
        except ValueError as error:
            self._say(str(error))
        else:
            self.saved.value = str(_PAGE.picture(png, f"{type(self).__name__}.png"))

    def _tell(self, number: int, known: int) -> None:
        if number != self._asked:
            raise _Superseded
        self._say(f"Computing … {known:,} prompts embedded so far")

    def _current(self) -> Any:
        self.flush()
        if self._result is None:
            raise ValueError(f"{type(self).__name__} shows nothing: {self._problem}")
        return self._result


class _Photo(NamedTuple):
    """An image and what is known about it; ``key`` stands for its content."""

    key: str
    pixels: Tensor
    title: str
    truth: str = ""


class _PasteField(anywidget.AnyWidget):
    """A field whose ``value`` is the image file that was pasted into it."""

    _esm = Path(__file__).with_name("paste.js").read_text("utf-8")
    value = traitlets.Bytes().tag(sync=True, from_json=lambda value, widget: bytes(value))


class ZeroShotExplorer(_Live):
    """Type class names and see how a model ranks them for a photo.

    Its controls are attributes, so that a script can set their ``value``: ``source``, ``row``,
    ``upload``, ``paste``, ``path``, ``space``, ``search``, ``classes``, ``templates``, ``k``,
    ``light``, ``model``, ``beside``.

    Parameters
    ----------
    run_or_model : Run, path, DualEncoder, or mapping of names to these
        What to ask. Of several, one or two side by side are chosen in the widget; a path but the
        first is loaded when it is chosen.
    pairs : Pairs, optional
        Photos to choose from, with the other splits of their manifest. By default the zero-shot
        set of the first run; a bare model has none.
    class_names, templates : sequence of str, optional
        To start with; by default the classes of ``pairs`` and the templates of the first run.
    captions : sequence of str
        Training captions. The three nearest to the photo are shown: a hint to the why.
    k : int
        Classes shown at first.
    debounce : float
        Seconds without a change before an answer is computed; 0 computes at once.
    label_spaces : mapping of names to sequences of str, optional
        Lists of classes to choose from: those of one, or of it what is searched for, compete
        with what is typed. Of 20,000 names none passes between page and kernel.
    training : Pairs, optional
        The three images nearest to the photo are shown, of up to 128 from all over these.

    Raises
    ------
    ValueError
        If ``debounce`` is negative.
    """

    def __init__(
        self,
        run_or_model: Any,
        pairs: Pairs | None = None,
        class_names: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        captions: Sequence[str] = (),
        k: int = 5,
        debounce: float = 0.15,
        label_spaces: Mapping[str, Sequence[str]] | None = None,
        training: Pairs | None = None,
    ):
        several = isinstance(run_or_model, Mapping)
        self._models = dict(run_or_model) if several else {_name(run_or_model): run_or_model}
        first = self._loaded(next(iter(self._models)))
        config = first.config if isinstance(first, Run) else RunConfig(zeroshot_manifest=None)
        if pairs is None and config.zeroshot_manifest:
            place = config.zeroshot_manifest, config.zeroshot_split
            pairs = open_pairs(*place, data_root=config.data_root)
        if class_names is None:
            class_names = () if pairs is None else pairs.class_names
        templates = config.prompt_templates if templates is None else templates
        lines = TEMPLATES.get(templates, [templates]) if isinstance(templates, str) else templates
        self._manifest = None if pairs is None else pairs.manifest
        self._pairs = {} if pairs is None else {f"split {pairs.split}": pairs}
        self._spaces = {name: list(dict.fromkeys(s)) for name, s in (label_spaces or {}).items()}
        self._training, self._galleries = training, {}
        self._captions, self._namers = list(dict.fromkeys(captions)), {}
        super().__init__(self._new_controls(class_names, lines, k), debounce)
        self._arrange()
        self._changed()

    @property
    def predictions(self) -> pd.DataFrame:
        """Classes as shown: run, rank from 1, class_name, similarity and probability."""
        self.flush()
        columns = ["run", "rank", "class_name", "similarity", "probability"]
        return pd.DataFrame(columns=columns) if self._result is None else self._result["ranked"]

    def figure(self) -> Any:
        """Draw what is shown as a Figure, a panel for each model; a ValueError if nothing is."""
        from zslkit.plots import prediction_grid

        result, columns = self._current(), ["class_name", "similarity", "probability"]
        groups = result["ranked"].groupby("run", sort=False)
        bars = [rows[columns].to_numpy().tolist() for _, rows in groups]
        pictures = [result["picture"]] * len(bars)
        figure = prediction_grid(pictures, bars, [result["photo"].truth or ()] * len(bars))
        for axes, (run, _) in zip(figure.axes[1::2], groups, strict=True):
            axes.set_title(run.replace("$", r"\$"), fontsize=8)
        return figure

    def _new_controls(self, names: Sequence[str], lines: Sequence[str], k: int) -> dict[str, Any]:
        box, runs, most = ipywidgets, list(self._models), max(50, k)
        splits = [f"split {name}" for name in self._manifest.splits] if self._pairs else []
        first = next(iter(self._pairs), "upload")
        last = len(self._pairs[first]) - 1 if self._pairs else 0
        spaces = [(f"{name} ({len(names):,})", name) for name, names in self._spaces.items()]
        menu, area = partial(_control, box.Dropdown), partial(box.Textarea, layout={"width": "97%"})
        return {
            "source": menu("photo from", options=[*splits, "upload", "paste", "path"], value=first),
            "row": _control(box.IntSlider, "photo number", max=last),
            "upload": _upload_button(),
            "paste": _PasteField(),
            "path": _control(box.Text, "file", continuous_update=False, placeholder="photo.jpg"),
            "space": menu("label space", options=[("only what is typed", ""), *spaces], value=""),
            "search": _control(box.Text, "of it only", placeholder="dog, cat"),
            "classes": area("\n".join(map(_quoted, names)), rows=7, placeholder="dog, cat"),
            "templates": area("\n".join(lines), rows=3, placeholder="a photo of a {}."),
            "k": _control(box.IntSlider, "classes shown", value=k, min=1, max=most),
            "light": _control(box.IntSlider, "light up rank", max=most),
            "model": menu("model", options=runs),
            "beside": menu("beside it", options=["", *runs], value=""),
        }

    def _arrange(self) -> None:
        box, parts = ipywidgets, []
        words = {"classes": "class names: one per line, or commas", "templates": "prompts"}
        for name, control in self._controls.items():
            parts += [box.Label(words[name]), control] if name in words else [control]
        left = self._column = box.VBox(parts, layout={"width": "38%", "min_width": "280px"})
        shown = [self.message, self.view, self.picture, self.saved]
        right = box.VBox(shown, layout={"width": "60%", "min_width": "300px"})
        both = box.HBox([left, right], layout={"flex_flow": "row wrap"})
        self.children = [box.HTML(str(_PAGE.style())), both]

    def _changed(self, change: Any = None) -> None:
        if change and change["owner"] is self.source and change["new"] == "upload":
            # Jupyter drops messages above 10 MB, and the button that sent one waits for ever.
            old, self.upload = self.upload, _upload_button()
            self.upload.observe(self._changed, "value")
            self._controls["upload"] = self.upload
            parts = self._column.children
            self._column.children = [self.upload if part is old else part for part in parts]
        super()._changed(change)

    def _idle(self, wanted: Mapping[str, Any]) -> set[str]:
        used = "row" if wanted["source"].startswith("split ") else wanted["source"]
        single = {"model", "beside"} if len(self._models) == 1 else set()
        single |= set() if wanted["space"] else {"search"} if self._spaces else {"space", "search"}
        return {"row", "upload", "paste", "path"} - {used} | single

    def _compute(self, wanted: Mapping[str, Any], tell: Callable) -> tuple[dict[str, Any], str]:
        photo, (names, notes) = self._photo(wanted), self._names(wanted)
        templates = [line for line in wanted["templates"].splitlines() if line.strip()]
        tables = {}
        for run in dict.fromkeys(filter(None, (wanted["model"], wanted["beside"]))):
            namer = self._namer(run)
            namer.tell = tell
            image = namer.encode_image(photo.key, photo.pixels)
            tables[run] = namer.predict(image, names, templates, wanted["k"])
        ranked = pd.concat(tables, names=["run", ""]).reset_index("run").reset_index(drop=True)
        result = {"photo": photo, "ranked": ranked, "picture": _small(photo.pixels, 320)}
        result["n_classes"] = len(names)
        height, width = photo.pixels.shape[1:]
        if height * width > _LARGE:
            notes.append(f"{width} × {height} pixels: reduced for the model and for this page.")
        namer = self._namer(wanted["model"])
        if 0 < wanted["light"] <= len(tables[wanted["model"]]):
            name = ranked["class_name"][wanted["light"] - 1]
            try:
                result["picture"] = _lit(*namer.light(photo.pixels, name, templates))
                notes.append(f"Lit: where the model sees {name!r} (Grad-CAM).")
            except ValueError as problem:
                notes.append(f"Nothing is lit: {problem}.")
        if self._captions:
            image = namer.encode_image(photo.key, photo.pixels)
            result["near"] = namer.predict(image, self._captions, ["{}"], 3)
        if self._training is not None:
            result["alike"] = self._alike(wanted["model"], photo)
        return result, " ".join(notes)

    def _alike(self, run: str, photo: _Photo) -> list[tuple[str, str, float]]:
        """Find the training images nearest to a photo: JPEG, title and cosine of each."""
        namer, pairs = self._namer(run), self._training
        if run not in self._galleries:
            rows = range(0, len(pairs), -(-len(pairs) // _GALLERY))
            self._galleries[run] = embed_batch(namer.model, pairs, rows)
        rows, images, embedded = self._galleries[run]
        cosines = embedded.image @ namer.encode_image(photo.key, photo.pixels)
        best = cosines.argsort(descending=True, stable=True)[:3].tolist()
        return [
            (_jpeg(_small(images[i], 96)), pairs.captions[rows[i]][0], cosines[i].item())
            for i in best
        ]

    def _names(self, wanted: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Get the classes that compete, and notes on them; a ValueError if there are none."""
        typed, notes = _class_names(wanted["classes"])
        found = space = self._spaces.get(wanted["space"], [])
        parts = [*filter(None, map(str.strip, wanted["search"].casefold().split(",")))]
        if space and parts:
            found = [name for name in space if any(part in name.casefold() for part in parts)]
            notes.append(f"{len(found):,} of {len(space):,} classes have {wanted['search']!r}.")
        if not found and not typed:
            ask = "Type the name of a class: one per line, or commas between them."
            raise ValueError(" ".join([*notes, ask]))
        return list(dict.fromkeys([*typed, *found])), notes

    def _photo(self, wanted: Mapping[str, Any]) -> _Photo:
        """Get the photo that is asked for; a ValueError says in words why there is none."""
        if (source := wanted["source"]).startswith("split "):
            if source not in self._pairs:
                self._pairs[source] = open_pairs(self._manifest, source.removeprefix("split "))
            pairs = self._pairs[source]
            row = min(wanted["row"], len(pairs) - 1)
            truth = "" if pairs.labels is None else pairs.class_names[pairs.labels[row]]
            title = f"{pairs.keys[row]}: {truth or pairs.captions[row][0]}"
            return _Photo(f"{source} {row}", pairs[row].pixels, title, truth)
        if source == "upload":
            if not wanted["upload"]:
                raise ValueError(
                    "Choose a photo of up to 10 MB to upload. Jupyter loses larger ones, and then "
                    "the button stalls until 'upload' is chosen anew: give such a file by its path."
                )
            name, data = wanted["upload"][0]["name"], bytes(wanted["upload"][0]["content"])
        elif source == "paste":
            name, data = "pasted image", wanted["paste"]
            if not data:
                raise ValueError("Click into the field and paste an image (Ctrl+V).")
        else:
            name, path = wanted["path"], Path(wanted["path"]).expanduser()
            if not path.is_file():
                raise ValueError(f"Give the path of a photo: {name!r} is no file.")
            data = path.read_bytes()
        return _Photo(hashlib.sha256(data).hexdigest(), decode_image(data, f"{name}: "), name)

    def _loaded(self, name: str) -> Any:
        if isinstance(self._models[name], str | Path):
            self._models[name] = load_run(self._models[name])
        return self._models[name]

    def _namer(self, name: str) -> Namer:
        if name not in self._namers:
            self._namers[name] = Namer(getattr(self._loaded(name), "model", self._models[name]))
        return self._namers[name]

    def _finish(self, number: int, result: Any, words: str) -> None:
        super()._finish(number, result, words)
        if self.source.value in self._pairs:  # a split that has just been opened
            self.row.max = len(self._pairs[self.source.value]) - 1

    def _html(
        self,
        photo: _Photo,
        ranked: pd.DataFrame,
        picture: Any,
        n_classes: int,
        near: Any = None,
        alike: Sequence[tuple] = (),
    ) -> str:
        groups = ranked.groupby("run", sort=False)
        tables = [(run, rows.to_dict("records")) for run, rows in groups]
        near = [] if near is None else near.to_dict("records")
        facts = photo.title, photo.truth, tables, n_classes, near, alike
        return str(_PAGE.naming(_jpeg(picture), *facts, _csv(ranked)))


class SoftLabelMicroscope(_Live):
    """See the soft targets of a batch, and what temperature, weights and epsilon do to them.

    Its controls are attributes, so that a script can set their ``value``: ``kind``,
    ``temperature``, ``image_weight``, ``text_weight``, ``epsilon``, ``smoothing``, ``trusted``.

    Parameters
    ----------
    run_or_config : Run or RunConfig
        Whose teacher softens the labels (:func:`zslkit.explore.teacher_of`), and where the
        controls start.
    pairs : Pairs
        Where the pairs come from; of several captions the first counts.
    rows : sequence of int
        The batch. Images that cannot be read are left out, with a word.
    debounce : float
        Seconds without a change before targets are computed; 0 computes at once.

    Raises
    ------
    ValueError
        If ``debounce`` is negative.
    """

    def __init__(
        self,
        run_or_config: Run | RunConfig,
        pairs: Pairs,
        rows: Sequence[int],
        debounce: float = 0.15,
    ):
        is_run = isinstance(run_or_config, Run)
        self._origin, self._pairs, self._rows = run_or_config, pairs, [*map(int, rows)]
        self._config, self._batch = run_or_config.config if is_run else run_or_config, None
        super().__init__(_target_controls(self._config), debounce)
        head = [ipywidgets.HTML(str(_PAGE.style())), *self._controls.values()]
        self.children = [*head, self.message, self.view, self.picture, self.saved]
        self._changed()

    @property
    def statistics(self) -> pd.DataFrame:
        """One row per pair: row, key, caption, self_mass, target_entropy (nats), others."""
        return self._current()["table"]

    @property
    def targets(self) -> Tensor:
        """(B, B) soft targets from images to captions; rows sum to 1."""
        return self._current()["targets"]

    @property
    def alarms(self) -> list[str]:
        """Sentences about targets that are one-hot, uniform or inverted."""
        return self._current()["alarms"]

    def figure(self) -> Any:
        """Draw the matrix as a Figure; a ValueError if nothing is shown."""
        from zslkit.plots import target_matrix

        table = self.statistics
        return target_matrix(self.targets, list(table["key"]), list(table["caption"]))

    def _idle(self, wanted: Mapping[str, Any]) -> set[str]:
        return self._controls.keys() - {"kind", *_USES[wanted["kind"]]}

    def _compute(self, wanted: Mapping[str, Any], tell: Callable) -> tuple[dict[str, Any], str]:
        if self._batch is None:
            model, words = teacher_of(self._origin)
            rows, images, embedded = embed_batch(model, self._pairs, self._rows)
            if lost := [str(self._pairs.keys[i]) for i in self._rows if i not in rows]:
                words += f" Unreadable, and left out: {', '.join(lost)}."
            self._batch = rows, [_jpeg(_small(image, 48)) for image in images], embedded, words
        rows, jpegs, embedded, words = self._batch
        asked = {field: wanted[name] for name, (field, _) in _SETTINGS.items()}
        config = self._config.model_copy(update={"soft_targets": wanted["kind"], **asked})
        targets, _ = soft_targets(len(rows), len(rows), embedded, config, progress=1.0)
        table = target_table(targets, [self._pairs.captions[i][0] for i in rows])
        table.insert(0, "key", [str(self._pairs.keys[i]) for i in rows])
        table.insert(0, "row", rows)
        agreement = target_agreement(targets, embedded.image @ embedded.text.T)
        statistics = target_statistics(targets) | {"target_agreement": agreement}
        alarms = [*judge_targets(statistics, config, len(rows)).values()]
        result = {"targets": targets, "table": table, "alarms": alarms, "jpegs": jpegs}
        return result, words.strip()

    def _html(self, targets: Tensor, table: pd.DataFrame, alarms: list, jpegs: list) -> str:
        mean, uniform = target_statistics(targets), math.log(len(table))
        shares, pairs = targets[:_SHOWN, :_SHOWN].tolist(), table[:_SHOWN].to_dict("records")
        facts = alarms, mean, uniform, pairs, jpegs, shares, len(table)
        return str(_PAGE.microscope(*facts, _csv(table)))


class EmbeddingMap(_Box):
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
        few = [name for name in self._table if name not in texts or table[name].nunique() <= _FEW]
        self.colour = _control(ipywidgets.Dropdown, "colour", options=few)
        about = {"tooltip": True, "tooltip_properties": list(self._table)}
        about |= {"tooltip_preview": "picture", "tooltip_preview_type": "image"}
        self.scatter = Scatter("x", "y", data=shown, height=440, axes=False, **scales, **about)
        self.scatter.tooltip(histograms=False)
        self.scatter.size(default=7)
        self.colour.observe(self._paint, "value")
        self.scatter.widget.observe(self._choose, "selection")
        head = [ipywidgets.HTML(str(_PAGE.style())), self.colour, self.scatter.show()]
        self.children = [*head, self.message, self.view]
        self._paint()
        self._choose()

    @property
    def selected(self) -> pd.DataFrame:
        """Rows of the images inside the lasso, none at first."""
        return self._table.iloc[np.asarray(self.scatter.selection(), dtype=int)]

    def figure(self) -> Any:
        """Draw the map as a Figure, in the colours of at most seven values, the most frequent."""
        from zslkit.plots import MapPanel, embedding_maps

        values = self._table[self.colour.value].astype(str)
        names = values.value_counts().index.tolist()
        panel = MapPanel(self.colour.value, np.asarray(self._points), np.empty((0, 2)), ())
        return embedding_maps([panel], values.tolist(), names, names[:7])

    def _paint(self, change: Any = None) -> None:
        column = self.colour.value
        self.scatter.color(by=column, map="auto", norm=None)
        self.scatter.legend(self._table[column].nunique() <= 12)

    def _choose(self, change: Any = None) -> None:
        table = self.selected
        self._say(
            f"{len(table):,} of {len(self._table):,} images chosen. Draw a lasso with its button "
            "on the left; a double click lets go."
        )
        rows = table[:_LISTED].to_dict("records")
        pictures = [self._pictures[i] for i in table.index[:_LISTED]]
        self.view.value = str(_PAGE.chosen(list(table), rows, pictures, len(table), _csv(table)))


class _StopButton(anywidget.AnyWidget):
    """A button that interrupts the kernel past its queue of messages."""

    _esm = Path(__file__).with_name("stop.js").read_text("utf-8")
    kernel, over = traitlets.Unicode().tag(sync=True), traitlets.Bool(False).tag(sync=True)


class TrainingMonitor(_Box):
    """Watch a training while it runs, and end it early: a callback for :func:`zslkit.train`.

    Show it before the training starts; of each training another one. It changes no number. Its
    button does what Ctrl-C does: the run is saved after the step.

    Parameters
    ----------
    seconds : float
        Between two drawings, at least; 0 draws after every step.

    Raises
    ------
    ValueError
        If ``seconds`` is negative.
    """

    def __init__(self, seconds: float = 2.0):
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must be a number, 0 or more")
        super().__init__()
        self.seconds, self._due, self.stop = seconds, 0.0, _StopButton(kernel=_kernel_id())
        self.children = [ipywidgets.HTML(str(_PAGE.style())), self.stop, self.message, self.view]
        self._say("The curves come with the first step.")

    def __call__(self, run: Run, row: Mapping[str, float]) -> None:
        """Draw the curves if it is time."""
        self.stop.over = row["step"] == run.record["total_steps"]
        if self.stop.over or time.monotonic() >= self._due:
            self._due = time.monotonic() + self.seconds
            self._draw([*run.history, row], run.record["total_steps"])

    def _draw(self, history: Sequence[Mapping[str, float]], total: int) -> None:
        row, keys = history[-1], dict.fromkeys(key for row in history for key in row)
        held_out = {key: key for key in keys if key.startswith("held-out ")}
        panels = [_panel(title, keys, history, total) for title, keys in _CURVES.items()]
        panels += [_panel("held-out pairs", held_out, history, total)] if held_out else []
        self.view.value = str(_PAGE.training([panel for panel in panels if panel["curves"]]))
        self._say(f"Step {row['step']:,} of {total:,}, epoch {row['epoch'] + 1}.")


# panel → key of a history row, what it says
_CURVES = {
    "loss (nats)": {
        "loss": "total",
        "contrastive_loss": "contrastive",
        "distillation_loss": "distillation",
    },
    "logit scale": {"logit_scale": "contrastive", "distillation_scale": "distillation"},
    "learning rate": {"learning_rate": "learning rate"},
}
_POINTS = 300  # of a curve, at most: a page is sent to the browser each time


def _kernel_id() -> str:
    """Give the name under which the server knows this kernel; "" outside of one."""
    from ipykernel.kernelapp import IPKernelApp

    if not IPKernelApp.initialized():
        return ""
    return Path(IPKernelApp.instance().connection_file).stem.removeprefix("kernel-")


def _panel(title: str, keys: Mapping[str, str], history: Sequence, total: int) -> dict[str, Any]:
    """Lay curves out on a panel 300 wide and 100 high, steps from 0 to ``total``."""
    thinned = [*history[: -1 : len(history) // _POINTS + 1], history[-1]]
    curves = {}
    for key, words in keys.items():
        rows = history if key.startswith("held-out ") else thinned  # those are few, and far between
        if points := [(row["step"], row[key]) for row in rows if row.get(key) is not None]:
            curves[words] = points
    values = [value for points in curves.values() for _, value in points if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    lines = [
        (words, points[-1][1], " ".join(
            f"{300 * step / total:.1f},{100 - 100 * (value - low) / (high - low or 1):.1f}"
            for step, value in points
        ))
        for words, points in curves.items()
    ]  # fmt: skip
    return {"title": title, "low": low, "high": high, "total": total, "curves": lines}


# control → field of RunConfig, what it says
_SETTINGS = {
    "temperature": ("teacher_temperature", "temperature"),
    "image_weight": ("image_similarity_weight", "image–image weight"),
    "text_weight": ("text_similarity_weight", "text–text weight"),
    "epsilon": ("epsilon", "epsilon"),
    "smoothing": ("label_smoothing", "label smoothing"),
    "trusted": ("trusted_end", "share kept one-hot"),
}
# kind of targets → the controls that count for it
_USES = {
    "teacher": ("temperature", "image_weight", "text_weight"),
    "transport": ("epsilon", "image_weight", "text_weight"),
    "progressive": ("temperature", "image_weight", "text_weight", "trusted"),
    "label_smoothing": ("smoothing",),
}


def _target_controls(config: RunConfig) -> dict[str, ipywidgets.Widget]:
    kind = config.soft_targets if config.soft_targets in _USES else "teacher"
    menu = {"options": [*_USES], "value": kind}
    controls = {"kind": _control(ipywidgets.Dropdown, "kind of targets", **menu)}
    for name, (field, words) in _SETTINGS.items():
        value = getattr(config, field)
        if name in ("temperature", "epsilon"):  # over orders of magnitude
            low, high = min(-3, math.floor(math.log10(value))), max(1, math.ceil(math.log10(value)))
            options = {"min": low, "max": high, "step": 0.02, "readout_format": ".3g"}
            controls[name] = _control(ipywidgets.FloatLogSlider, words, value=value, **options)
        else:
            most = {"smoothing": 0.99, "trusted": 1.0}.get(name, max(2.0, value))
            options = {"value": value, "max": most, "step": 0.01}
            controls[name] = _control(ipywidgets.FloatSlider, words, **options)
    return controls


def _control(kind: type, description: str, **options: Any) -> ipywidgets.Widget:
    style, layout = {"description_width": "130px"}, {"width": "97%", "max_width": "460px"}
    return kind(description=description, style=style, layout=layout, **options)


def _upload_button() -> ipywidgets.FileUpload:
    return ipywidgets.FileUpload(accept="image/*", description="upload a photo")


def _name(run_or_model: Any) -> str:
    path = run_or_model.run_dir if isinstance(run_or_model, Run) else run_or_model
    return Path(path).name if isinstance(path, str | Path) else type(path).__name__


def _quoted(name: str) -> str:
    """Write a class name so that :func:`_class_names` reads it back; some hold commas."""
    special = "," in name or name.startswith('"')
    return '"' + name.replace('"', '""') + '"' if special else name


def _class_names(text: str) -> tuple[list[str], list[str]]:
    """Split what was typed at lines and commas, outside of quotes; also a note on repetitions."""
    rows = (next(csv.reader([line], skipinitialspace=True), []) for line in text.splitlines())
    counts = Counter(name.strip() for row in rows for name in row if name.strip())
    twice = [name for name, count in counts.items() if count > 1]
    return list(counts), [f"Typed more than once: {', '.join(twice[:3])}."] if twice else []


def _small(pixels: Tensor, side: int) -> Image.Image:
    image = to_pil(pixels)
    image.thumbnail((side, side))
    return image


def _lit(view: Tensor, heat: Tensor) -> Image.Image:
    """Darken (3, S, S) pixels where the (S, S) heat is low: no colours to learn, or to confuse."""
    return to_pil((view.cpu() * (0.25 + 0.75 * heat)).byte())


def _jpeg(image: Image.Image) -> str:
    image.save(stream := io.BytesIO(), "JPEG", quality=90)
    return base64.b64encode(stream.getvalue()).decode()


def _csv(table: pd.DataFrame) -> str:
    return base64.b64encode(table.to_csv(index=False).encode()).decode()
