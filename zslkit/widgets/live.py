"""Live views of a model for JupyterLab; each has a static twin, ``figure()``, for exported pages.

Controls are read in the kernel's event loop; models work on one thread beside it, so that the
kernel never waits for them. ``widgets.html`` escapes words that others wrote and loads nothing
from the network. Outside an event loop everything happens at once.
"""

import asyncio
import base64
import csv
import io
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.data.images import to_pil

# One thread for all widgets: a tokenizer refuses to be used by two at a time.
_WORKER = ThreadPoolExecutor(1, thread_name_prefix="zslkit-widgets")


PAGE = (
    Environment(autoescape=True)
    .from_string(Path(__file__).with_name("widgets.html").read_text("utf-8"))
    .module
)


LARGE = 20_000_000  # pixels of a photo that deserve a remark


FEW = 60  # values of a column that can be told apart by colour


LISTED = 50  # images of a lasso in the page; its CSV holds all


GALLERY = 128  # training images, embedded at once, among which those like a photo are found


SHOWN = 24  # pairs in the microscope's tables; its statistics are of all


class _Superseded(Exception):
    """The controls have moved on, and nobody waits for this computation any more."""


class Box(ipywidgets.VBox):
    """A column with a line of words and a view, which says what an exported page lacks.

    Below it, hidden while it lives, stands what it shows: a notebook that was saved and is opened
    again without a kernel shows that in its place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.message, self.view, self._twin = ipywidgets.HTML(), ipywidgets.HTML(), None
        self.view.observe(self._renew, "value")

    def _ipython_display_(self, **options: Any) -> None:
        from IPython.display import HTML, display

        display(self._repr_mimebundle_(), raw=True)
        self._twin = display(HTML(self._still()), display_id=True)

    def _still(self) -> str:
        """Give what is shown now as a page of its own."""
        return str(PAGE.still(self.view.value))

    def _renew(self, change: Any = None) -> None:
        if self._twin is not None:
            from IPython.display import HTML

            self._twin.update(HTML(self._still()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}: live in JupyterLab; an exported page has only its figure"

    def _say(self, words: str) -> None:
        self.message.value = str(PAGE.words(words))


class Live(Box):
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
            self.saved.value = str(PAGE.picture(png, f"{type(self).__name__}.png"))

    def _tell(self, number: int, known: int) -> None:
        if number != self._asked:
            raise _Superseded
        self._say(f"Computing … {known:,} prompts embedded so far")

    def _current(self) -> Any:
        self.flush()
        if self._result is None:
            raise ValueError(f"{type(self).__name__} shows nothing: {self._problem}")
        return self._result


def control(kind: type, description: str, **options: Any) -> ipywidgets.Widget:
    """Make a control that is as wide as its column."""
    style, layout = {"description_width": "150px"}, {"width": "97%", "max_width": "460px"}
    return kind(description=description, style=style, layout=layout, **options)


def upload_button() -> ipywidgets.FileUpload:
    """Make the button that takes a photo."""
    layout = {"width": "max-content"}  # else the words are cut
    return ipywidgets.FileUpload(accept="image/*", description="upload a photo", layout=layout)


def name_of(run_or_model: Any) -> str:
    """Name a run by its folder, a model by its class."""
    path = run_or_model.run_dir if isinstance(run_or_model, Run) else run_or_model
    return Path(path).name if isinstance(path, str | Path) else type(path).__name__


def quoted(name: str) -> str:
    """Write a class name so that :func:`class_names` reads it back; some hold commas."""
    special = "," in name or name.startswith('"')
    return '"' + name.replace('"', '""') + '"' if special else name


def class_names(text: str) -> tuple[list[str], list[str]]:
    """Split what was typed at lines and commas, outside of quotes; also a note on repetitions."""
    rows = (next(csv.reader([line], skipinitialspace=True), []) for line in text.splitlines())
    counts = Counter(name.strip() for row in rows for name in row if name.strip())
    twice = [name for name, count in counts.items() if count > 1]
    return list(counts), [f"Typed more than once: {', '.join(twice[:3])}."] if twice else []


def small_picture(pixels: Tensor, side: int) -> Image.Image:
    """Make a thumbnail of pixels (3, H, W)."""
    image = to_pil(pixels)
    image.thumbnail((side, side))
    return image


def lit(view: Tensor, heat: Tensor) -> Image.Image:
    """Darken (3, S, S) pixels where the (S, S) heat is low: no colours to learn, or to confuse."""
    return to_pil((view.cpu() * (0.25 + 0.75 * heat)).byte())


def jpeg_base64(image: Image.Image) -> str:
    """Encode an image as base64 JPEG."""
    image.save(stream := io.BytesIO(), "JPEG", quality=90)
    return base64.b64encode(stream.getvalue()).decode()


def csv_base64(table: pd.DataFrame) -> str:
    """Encode a table as base64 CSV."""
    return base64.b64encode(table.to_csv(index=False).encode()).decode()
