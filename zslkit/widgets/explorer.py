"""Classes for any photo among any words."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anywidget
import ipywidgets
import pandas as pd
import traitlets
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.images import decode_image
from zslkit.data.named import labelled_images
from zslkit.data.pairs import Pairs, open_pairs
from zslkit.evaluation.explore import Namer
from zslkit.evaluation.retrieval import embed_batch
from zslkit.widgets.live import (
    GALLERY,
    LARGE,
    PAGE,
    Live,
    class_names,
    control,
    csv_base64,
    jpeg_base64,
    lit,
    name_of,
    quoted,
    small_picture,
    upload_button,
)
from zslkit.zeroshot.models.loading import open_model
from zslkit.zeroshot.prompts import TEMPLATES
from zslkit.zeroshot.ranking import ClassBank


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


class ZeroShotExplorer(Live):
    """Type class names and see how a model ranks them for a photo.

    Its controls are attributes, so that a script can set their ``value``: ``source``, ``row``,
    ``upload``, ``paste``, ``path``, ``space``, ``search``, ``classes``, ``templates``, ``k``,
    ``light``, ``model``, ``beside``.

    Parameters
    ----------
    run_or_model : Run, model, path or name for ``load_model``, or mapping of names to these
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
        self._models = dict(run_or_model) if several else {name_of(run_or_model): run_or_model}
        first = self._loaded(next(iter(self._models)))
        config = first.config if isinstance(first, Run) else RunConfig(zeroshot_manifest=None)
        if pairs is None and config.zeroshot_manifest:
            pairs = labelled_images(config, several=True)
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

    def class_bank(self, class_names: Sequence[str]) -> ClassBank:
        """Embed classes by the model and prompts shown, without those that it already knows."""
        lines = [line for line in self.templates.value.splitlines() if line.strip()]
        return self._namer(self.model.value).class_bank(class_names, lines)

    def figure(self) -> Any:
        """Draw what is shown as a Figure, a panel for each model; a ValueError if nothing is."""
        from zslkit.plots.evaluation import prediction_grid

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
        menu, area = partial(control, box.Dropdown), partial(box.Textarea, layout={"width": "97%"})
        return {
            "source": menu("photo from", options=[*splits, "upload", "paste", "path"], value=first),
            "row": control(box.IntSlider, "photo number", max=last),
            "upload": upload_button(),
            "paste": _PasteField(),
            "path": control(box.Text, "file", continuous_update=False, placeholder="photo.jpg"),
            "space": menu("label space", options=[("only what is typed", ""), *spaces], value=""),
            "search": control(box.Text, "of it only", placeholder="dog, cat"),
            "classes": area("\n".join(map(quoted, names)), rows=7, placeholder="dog, cat"),
            "templates": area("\n".join(lines), rows=3, placeholder="a photo of a {}."),
            "k": control(box.IntSlider, "classes shown", value=k, min=1, max=most),
            "light": control(box.IntSlider, "light up rank", max=most),
            "model": menu("model", options=runs),
            "beside": menu("beside it", options=["", *runs], value=""),
        }

    def _arrange(self) -> None:
        box, parts = ipywidgets, []
        words = {"classes": "class names: one per line, or commas", "templates": "prompts"}
        for name, field in self._controls.items():
            parts += [box.Label(words[name]), field] if name in words else [field]
        left = self._column = box.VBox(parts, layout={"width": "38%", "min_width": "280px"})
        shown = [self.message, self.view, self.picture, self.saved]
        right = box.VBox(shown, layout={"width": "60%", "min_width": "300px"})
        both = box.HBox([left, right], layout={"flex_flow": "row wrap"})
        self.children = [box.HTML(str(PAGE.style())), both]

    def _changed(self, change: Any = None) -> None:
        if change and change["owner"] is self.source and change["new"] == "upload":
            # Jupyter drops messages above 10 MB, and the button that sent one waits for ever.
            old, self.upload = self.upload, upload_button()
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
        result = {"photo": photo, "ranked": ranked, "picture": small_picture(photo.pixels, 320)}
        result["n_classes"] = len(names)
        height, width = photo.pixels.shape[1:]
        if height * width > LARGE:
            notes.append(f"{width} × {height} pixels: reduced for the model and for this page.")
        namer = self._namer(wanted["model"])
        if 0 < wanted["light"] <= len(tables[wanted["model"]]):
            name = ranked["class_name"][wanted["light"] - 1]
            try:
                result["picture"] = lit(*namer.light(photo.pixels, name, templates))
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
            rows = range(0, len(pairs), -(-len(pairs) // GALLERY))
            config = getattr(self._loaded(run), "config", None)
            config = config if isinstance(config, RunConfig) else None
            self._galleries[run] = embed_batch(namer.model, pairs, rows, config)
        rows, images, embedded = self._galleries[run]
        cosines = embedded.image @ namer.encode_image(photo.key, photo.pixels)
        best = cosines.argsort(descending=True, stable=True)[:3].tolist()
        return [
            (
                jpeg_base64(small_picture(images[i], 96)),
                pairs.captions[rows[i]][0],
                cosines[i].item(),
            )
            for i in best
        ]

    def _names(self, wanted: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Get the classes that compete, and notes on them; a ValueError if there are none."""
        typed, notes = class_names(wanted["classes"])
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
            self._models[name] = open_model(self._models[name])
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
        return str(PAGE.naming(jpeg_base64(picture), *facts, csv_base64(ranked)))
