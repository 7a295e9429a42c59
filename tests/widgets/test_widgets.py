"""Widgets without a front end: what a person would set is set, what they would see is read."""

import asyncio
import dataclasses
import io
import json
import math
import threading
from base64 import b64decode
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ipykernel.kernelapp import IPKernelApp
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_hex
from PIL import Image

from zslkit.checkpoint import RunFacts
from zslkit.config import RunConfig
from zslkit.data.images import BrokenImageError
from zslkit.data.pairs import open_pairs
from zslkit.evaluation.evaluator import example_targets
from zslkit.evaluation.explore import Namer, teacher_of
from zslkit.evaluation.retrieval import embed_images
from zslkit.evaluation.suspects import find_suspects
from zslkit.objective import soft_targets
from zslkit.plots.style import plain_text
from zslkit.plots.training import learning_curves
from zslkit.trainer import train
from zslkit.widgets.embedding_map import EmbeddingMap
from zslkit.widgets.explorer import ZeroShotExplorer
from zslkit.widgets.live import PAGE
from zslkit.widgets.microscope import SoftLabelMicroscope
from zslkit.widgets.monitor import _CURVES, TrainingMonitor, _panel
from zslkit.widgets.review import CaptionReview
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.classifier import ZeroShotClassifier

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def run(tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(RunConfig(**{**tiny_settings, "max_steps": 3, "output_dir": str(folder)}))


@pytest.fixture
def explorer(run):
    return ZeroShotExplorer(run, debounce=0)


@pytest.fixture
def microscope(run):
    pairs = open_pairs(run.config.manifest, "train")
    return SoftLabelMicroscope(run, pairs, range(6), debounce=0)


def file_of(image, form="PNG"):
    image.save(stream := io.BytesIO(), form)
    return stream.getvalue()


def upload(explorer, name, data):
    explorer.source.value = "upload"
    when = datetime.now(timezone.utc)
    sent = {"name": name, "type": "image/png", "size": len(data), "last_modified": when}
    explorer.upload.value = ({**sent, "content": memoryview(data)},)


# zero-shot explorer


def test_starts_with_the_runs_labelled_set(explorer, run):
    pairs = open_pairs(run.config.zeroshot_manifest, "test")
    expected = ZeroShotClassifier(run.model, pairs.class_names, run.config.prompt_templates)
    (ranked,) = expected.predict([pairs[0].image], k=5)
    shown = explorer.predictions
    assert shown["class_name"].tolist() == [p.class_name for p in ranked]
    assert shown["probability"].tolist() == pytest.approx([p.probability for p in ranked], 1e-4)
    assert shown["rank"].tolist() == [1, 2, 3, 4, 5]
    assert ranked[0].class_name in explorer.view.value


def test_typing_classes_and_prompts_changes_the_answer(explorer):
    before = explorer.predictions
    explorer.classes.value = "red star, blue moon\n  green square  "
    assert set(explorer.predictions["class_name"]) == {"red star", "blue moon", "green square"}
    assert explorer.predictions["probability"].sum() == pytest.approx(1, rel=1e-4)
    probabilities = explorer.predictions.set_index("class_name")["probability"]
    explorer.templates.value = "a drawing of a {} in a box"
    changed = explorer.predictions.set_index("class_name")["probability"]
    assert (probabilities - changed).abs().max() > 1e-6
    explorer.k.value = 1
    assert len(explorer.predictions) == 1
    assert len(before) == 5


def test_classes_are_embedded_for_others_without_those_already_known(run, monkeypatch):
    explorer = ZeroShotExplorer(run, class_names=["red star", "blue moon"], debounce=0)
    encode, asked = run.model.encode_text, []
    monkeypatch.setattr(
        run.model, "encode_text", lambda texts: asked.extend(texts) or encode(texts)
    )
    bank = explorer.class_bank(["blue moon", "green square"])
    assert asked
    assert all("green square" in text for text in asked)
    monkeypatch.undo()
    expected = build_class_bank(run.model, bank.class_names, run.config.prompt_templates)
    torch.testing.assert_close(bank.embeddings, expected.embeddings, rtol=1e-4, atol=1e-5)


def test_quotes_protect_commas_and_doubles_are_said(explorer):
    explorer.classes.value = '"bat, the animal", bat\nbat'
    assert set(explorer.predictions["class_name"]) == {"bat, the animal", "bat"}
    assert "Typed more than once: bat" in explorer.message.value


def test_a_label_space_is_chosen_and_searched(run):
    spaces = {"animals": ["tabby cat", "Tiger Cat", "dog", "dog", "owl"], "things": ["cup"]}
    explorer = ZeroShotExplorer(run, k=10, debounce=0, label_spaces=spaces)
    named = lambda: set(explorer.predictions["class_name"])  # noqa: E731
    assert explorer.search.layout.display == "none"
    explorer.classes.value = "zebra, owl"
    assert named() == {"zebra", "owl"}
    explorer.space.value = "animals"
    assert named() == {"zebra", "owl", "tabby cat", "Tiger Cat", "dog"}
    assert "best 5 of 5 classes" in explorer.view.value
    assert explorer.search.layout.display is None
    explorer.search.value = " CAT, d"
    assert named() == {"zebra", "owl", "tabby cat", "Tiger Cat", "dog"}
    explorer.search.value = "CAT"
    assert named() == {"zebra", "owl", "tabby cat", "Tiger Cat"}
    explorer.classes.value = ""
    assert named() == {"tabby cat", "Tiger Cat"}
    assert "2 of 4 classes have &#39;CAT&#39;" in explorer.message.value
    explorer.search.value = EVIL
    assert "0 of 4 classes have" in explorer.message.value
    assert "Type the name of a class" in explorer.message.value
    assert "<script>" not in explorer.message.value
    explorer.search.value, explorer.space.value = "", "things"
    assert named() == {"cup"}


def test_without_label_spaces_there_is_none_to_choose(explorer):
    assert explorer.space.layout.display == explorer.search.layout.display == "none"


@pytest.mark.parametrize(
    ("control", "value", "words"),
    [
        ("classes", " , \n", "Type the name of a class"),
        ("templates", "a photo", "without {}"),
        ("source", "upload", "Choose a photo of up to 10 MB"),
        ("source", "paste", "paste an image"),
        ("source", "path", "is no file"),
    ],
)
def test_what_is_missing_is_said_and_the_widget_lives_on(explorer, control, value, words):
    chosen = getattr(explorer, control)
    before = chosen.value
    chosen.value = value
    assert words in explorer.message.value
    assert explorer.predictions.empty
    with pytest.raises(ValueError, match="ZeroShotExplorer shows nothing"):
        explorer.figure()
    chosen.value = before
    assert len(explorer.predictions) == 5


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("text.jpg", b"hello, this is text", "not a readable image"),
        ("empty.png", b"", "an empty file"),
        ("cut.png", file_of(Image.effect_noise((64, 64), 50).convert("RGB"))[:2000], "not a"),
    ],
)
def test_files_that_are_no_photos_get_a_friendly_message(explorer, name, data, words):
    upload(explorer, name, data)
    assert f"{name}: " in explorer.message.value
    assert words in explorer.message.value
    good = file_of(Image.new("RGB", (60, 40), "red"))
    upload(explorer, "red.png", good)
    assert len(explorer.predictions) == 5
    assert "red.png" in explorer.view.value


def test_a_very_large_photo_is_reduced_with_a_remark(explorer):
    upload(explorer, "large.jpg", file_of(Image.new("RGB", (8000, 5000), "blue"), "JPEG"))
    assert "8000 × 5000 pixels: reduced" in explorer.message.value
    assert len(explorer.predictions) == 5


def test_a_path_is_a_photo_too(explorer, tmp_path):
    Image.new("RGB", (60, 40), "green").save(tmp_path / "leaf.png")
    explorer.source.value = "path"
    explorer.path.value = str(tmp_path / "leaf.png")
    assert len(explorer.predictions) == 5


def test_a_pasted_image_is_a_photo_too(explorer):
    explorer.source.value = "paste"
    explorer.paste.set_state({"value": memoryview(file_of(Image.new("RGB", (60, 40), "green")))})
    assert len(explorer.predictions) == 5
    assert "pasted image" in explorer.view.value
    explorer.paste.set_state({"value": memoryview(b"no image")})
    assert "pasted image: not a readable image" in explorer.message.value


def test_words_of_others_are_text(explorer, tmp_path):
    explorer.classes.value = f'"{EVIL}", cat'
    upload(explorer, f"{EVIL}.png", file_of(Image.new("RGB", (9, 9))))
    for html in (explorer.view.value, explorer.message.value):
        assert "<script>" not in html
        assert "<img src=x" not in html
    assert "&lt;script&gt;" in explorer.view.value
    upload(explorer, f"{EVIL}.png", b"no image")
    assert "<script>" not in explorer.message.value
    assert "&lt;script&gt;" in explorer.message.value


def test_nothing_is_embedded_twice(run, monkeypatch):
    namer = Namer(run.model)
    calls = []
    encode = run.model.encode_text
    monkeypatch.setattr(run.model, "encode_text", lambda t: calls.append(list(t)) or encode(t))
    image = namer.encode_image("x", torch.zeros(3, 40, 40, dtype=torch.uint8))
    namer.predict(image, ["a", "b"], ["{}"], 2)
    namer.predict(image, ["a", "b", "c"], ["{}"], 2)
    assert calls == [["a", "b"], ["c"]]
    monkeypatch.setattr(run.model, "encode_image", None)
    assert namer.encode_image("x", torch.zeros(3, 40, 40, dtype=torch.uint8)) is image


def test_two_runs_stand_side_by_side(run):
    explorer = ZeroShotExplorer({"one": run, "two": run.run_dir}, debounce=0)
    assert set(explorer.predictions["run"]) == {"one"}
    explorer.beside.value = "two"
    shown = explorer.predictions
    one, two = (shown[shown["run"] == name]["similarity"].tolist() for name in ("one", "two"))
    assert one == pytest.approx(two)
    assert len(explorer.figure().axes) == 4


def test_light_falls_on_the_chosen_class(run, explorer):
    view, heat = Namer(run.model).light(
        torch.randint(0, 255, (3, 40, 40), dtype=torch.uint8), "red star", ["{}"]
    )
    assert view.shape[1:] == heat.shape
    assert 0 <= heat.min() <= heat.max() <= 1
    plain = explorer.view.value
    explorer.light.value = 1
    assert "Lit: where the model sees" in explorer.message.value
    assert explorer.view.value != plain


def test_nearest_captions_hint_at_the_why(run):
    explorer = ZeroShotExplorer(run, captions=["a red star", "a red star", EVIL], debounce=0)
    assert "Nearest training captions" in explorer.view.value
    assert "<script>" not in explorer.view.value


def test_nearest_training_images_hint_at_the_why(run):
    pairs = open_pairs(run.config.manifest, "train")
    explorer = ZeroShotExplorer(run, pairs, training=pairs, debounce=0)
    explorer.row.value = 5
    expected = embed_images(run.model, pairs, run.config)[0]
    cosines = expected @ expected[5]
    best = cosines.argsort(descending=True)[:3].tolist()
    assert best[0] == 5
    place = 0
    for row in best:
        words = f"{pairs.captions[row][0]} ({cosines[row]:.3f})"
        place = explorer.view.value.index(words, place)
    assert "Nearest training images" in explorer.view.value


def test_a_picture_is_of_what_is_shown(explorer, microscope):
    for widget, change in (
        (explorer, lambda: setattr(explorer.classes, "value", "cat")),
        (microscope, lambda: setattr(microscope.temperature, "value", 3)),
    ):
        widget.picture.click()
        (link,) = [value for name, value in Tags(widget.saved.value).attributes if name == "href"]
        assert b64decode(link.partition("base64,")[2])[:4] == b"\x89PNG"
        change()
        assert widget.saved.value == ""
    explorer.classes.value = ""
    explorer.picture.click()
    assert "shows nothing: Type the name" in explorer.message.value


def test_the_last_of_several_changes_counts_and_the_loop_is_free(run):
    async def type_fast():
        explorer = ZeroShotExplorer(run, debounce=0.02)
        for text in ("c", "ca", "cat", "cat, dog"):
            explorer.classes.value = text
        for _ in range(500):
            await asyncio.sleep(0.01)
            if "dog" in explorer.view.value:
                return explorer
        raise AssertionError(explorer.message.value)

    explorer = asyncio.run(type_fast())
    assert set(explorer.predictions["class_name"]) == {"cat", "dog"}


class Blocked:
    """A text encoder that waits, on its own thread, until the event loop lets it go on."""

    def __init__(self, encode, blocks_on):
        self.encode, self.blocks_on = encode, blocks_on
        self.begun, self.go_on, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, texts):
        self.seen += texts
        if self.blocks_on in texts:
            self.begun.set()
            assert self.go_on.wait(30), "the event loop stood still while the model worked"
        return self.encode(texts)


async def until(condition):
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def test_the_loop_runs_on_while_the_model_works_and_stale_answers_are_dropped(run, monkeypatch):
    encoder = Blocked(run.model.encode_text, "slow")
    monkeypatch.setattr(run.model, "encode_text", encoder)
    shown = []

    async def change_while_it_works():
        explorer = ZeroShotExplorer(run, templates=["{}"], debounce=0.001)
        explorer.view.observe(lambda change: shown.append(change["new"]), "value")
        explorer.classes.value = "slow"
        await until(encoder.begun.is_set)
        assert "Computing" in explorer.message.value
        explorer.classes.value = "quick"
        encoder.go_on.set()
        await until(lambda: "quick" in explorer.view.value)
        return explorer

    explorer = asyncio.run(change_while_it_works())
    assert explorer.predictions["class_name"].tolist() == ["quick"]
    assert not any("slow" in page for page in shown)


def test_rest_between_changes_saves_work(run, monkeypatch):
    asked, predict = [], Namer.predict

    def counted(namer, image, class_names, *rest):
        asked.append(class_names)
        return predict(namer, image, class_names, *rest)

    monkeypatch.setattr(Namer, "predict", counted)

    async def type_fast():
        explorer = ZeroShotExplorer(run, debounce=0.05)
        for text in ("z", "ze", "zeb", "zebra"):
            explorer.classes.value = text
        await until(lambda: "zebra" in explorer.view.value)
        await asyncio.sleep(0.1)

    asyncio.run(type_fast())
    assert asked == [["zebra"]]


def test_a_script_need_not_wait_for_the_rest(run):
    async def ask():
        explorer = ZeroShotExplorer(run, debounce=3600)
        explorer.classes.value = "cat, dog"
        return explorer.predictions

    assert set(asyncio.run(ask())["class_name"]) == {"cat", "dog"}


def test_work_that_nobody_waits_for_stops(run, monkeypatch):
    names = [f"thing {number}" for number in range(2000)]
    encoder = Blocked(run.model.encode_text, names[0])
    monkeypatch.setattr(run.model, "encode_text", encoder)

    async def give_up():
        explorer = ZeroShotExplorer(run, templates=["{}"], debounce=0.001)
        explorer.classes.value = ",".join(names)
        await until(encoder.begun.is_set)
        explorer.classes.value = "cat"
        await asyncio.sleep(0)
        encoder.go_on.set()
        await until(lambda: "cat" in explorer.view.value)

    asyncio.run(give_up())
    assert "cat" in encoder.seen
    assert names[-1] not in encoder.seen


def test_of_20000_classes_the_best_are_shown(run, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20_000, run.config.embedding_dim, generator=generator)
    place = {f"thing {number}": number for number in range(20_000)}
    encode = lambda texts: vectors[[place[text] for text in texts]]  # noqa: E731
    monkeypatch.setattr(run.model, "encode_text", encode)
    explorer = ZeroShotExplorer(run, class_names=list(place), templates=["{}"], debounce=0)
    assert explorer.view.value.count('class="bar"') == 5
    image = Namer(run.model).encode_image("x", open_pairs(run.config.manifest, "test")[0].pixels)
    best = (torch.nn.functional.normalize(vectors, dim=1) @ image).topk(5).indices
    assert explorer.predictions["class_name"].tolist() == [f"thing {i}" for i in best.tolist()]


def test_another_split_of_the_set_can_be_chosen(explorer, run):
    explorer.source.value = "split train"
    explorer.row.value = 3
    assert open_pairs(run.config.manifest, "train").keys[3] in explorer.view.value


def test_the_photo_number_ends_with_the_split(run):
    test = open_pairs(run.config.manifest, "test", max_pairs=4)
    explorer = ZeroShotExplorer(run, test, debounce=0)
    assert explorer.row.max == 3
    explorer.source.value = "split train"
    assert explorer.row.max == 31
    explorer.row.value = 31
    explorer.source.value = "split test"
    assert (explorer.row.max, explorer.row.value) == (3, 3)
    assert test.keys[3] in explorer.view.value


def test_choosing_upload_brings_a_fresh_button(explorer):
    """One that Jupyter has lost a file of waits for an answer for ever."""
    stalled = explorer.upload
    explorer.source.value = "upload"
    assert explorer.upload is not stalled
    shown = explorer.children[1].children[0].children
    assert explorer.upload in shown
    assert stalled not in shown


def test_a_bare_model_names_uploads(run):
    explorer = ZeroShotExplorer(run.model, class_names=["cat", "dog"], debounce=0)
    assert explorer.source.options == ("upload", "paste", "path")
    upload(explorer, "red.png", file_of(Image.new("RGB", (60, 40), "red")))
    assert set(explorer.predictions["run"]) == {"DualEncoder"}
    assert len(explorer.predictions) == 2


def test_a_static_figure_names_its_models(run):
    explorer = ZeroShotExplorer({"$1": run, "two": run.model}, debounce=0)
    explorer.beside.value = "two"
    assert [axes.get_title() for axes in explorer.figure().axes[1::2]] == [r"\$1", "two"]


def test_where_there_is_no_map_the_names_stay(explorer, monkeypatch):
    def refuse(*args):
        raise ValueError("this tower has no spatial map")

    monkeypatch.setattr(Namer, "light", refuse)
    explorer.light.value = 1
    assert "Nothing is lit: this tower has no spatial map" in explorer.message.value
    assert len(explorer.predictions) == 5


def test_a_bug_is_shown_by_its_name_and_the_widget_lives_on(explorer, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(Namer, "predict", lambda *args: {}["absent"])
        explorer.classes.value = "cat"
        assert "KeyError" in explorer.message.value
    explorer.classes.value = "dog"
    assert explorer.predictions["class_name"].tolist() == ["dog"]


class Tags(HTMLParser):
    """Every tag and attribute that a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_a_page_has_no_script_no_handler_and_no_address(explorer, microscope):
    explorer.classes.value = f'"{EVIL}", """ onmouseover=alert(3) x=""", cat'
    upload(explorer, '" onerror="alert(4).png', file_of(Image.new("RGB", (9, 9))))
    for widget in (explorer, microscope):
        found = Tags(widget.view.value + widget.message.value)
        assert "script" not in found.tags
        assert not [name for name, _ in found.attributes if name.startswith("on")]
        addresses = [value for name, value in found.attributes if name in ("src", "href")]
        assert addresses
        assert all(address.startswith("data:") for address in addresses)


def test_the_link_holds_what_is_shown(explorer):
    explorer.classes.value = f'cat, "{EVIL}", "a ""quoted"" word"'
    attributes = Tags(explorer.view.value).attributes
    (link,) = [value for name, value in attributes if name == "href"]
    table = pd.read_csv(io.BytesIO(b64decode(link.partition("base64,")[2])))
    pd.testing.assert_frame_equal(table, explorer.predictions, check_dtype=False)


def test_exported_pages_say_that_they_hold_a_figure_only(explorer, microscope):
    for widget in (explorer, microscope):
        assert "an exported page has only its figure" in repr(widget)
        assert widget.figure()._repr_png_()[:4] == b"\x89PNG"


def test_waiting_is_not_negative(run):
    with pytest.raises(ValueError, match="debounce=-1 must be a number of seconds"):
        ZeroShotExplorer(run, debounce=-1)


# microscope


def test_shows_the_targets_that_training_ended_with(microscope, run):
    pairs = open_pairs(run.config.manifest, "train")
    expected = example_targets(run, pairs, range(6))[1].clone()
    torch.testing.assert_close(microscope.targets, expected, rtol=1e-4, atol=1e-5)
    table = microscope.statistics
    assert table["self_mass"].tolist() == pytest.approx(expected.diagonal().tolist(), 1e-3)
    entropy = -(expected * expected.log()).sum(dim=1)
    assert table["target_entropy"].tolist() == pytest.approx(entropy.tolist(), 1e-3)
    best = expected.fill_diagonal_(0).argmax(dim=1)
    captions = table["caption"].tolist()
    assert [others[0][0] for others in table["others"]] == [captions[i] for i in best]


def test_sliders_move_the_targets_and_alarms_speak(microscope):
    microscope.temperature.value = 0.001
    assert any("one-hot" in alarm for alarm in microscope.alarms)
    microscope.temperature.value = 10
    assert microscope.statistics["target_entropy"].mean() == pytest.approx(math.log(6), 1e-3)
    assert any("uniform" in alarm for alarm in microscope.alarms)
    assert "nearly uniform" in microscope.view.value


@pytest.mark.parametrize(
    ("kind", "control", "value"),
    [
        ("transport", "epsilon", 1.0),
        ("transport", "image_weight", 1.5),
        ("teacher", "text_weight", 1.5),
        ("label_smoothing", "smoothing", 0.7),
        ("progressive", "trusted", 0.5),
    ],
)
def test_every_control_counts_for_its_kind(microscope, kind, control, value):
    microscope.kind.value = kind
    before = microscope.targets.clone()
    getattr(microscope, control).value = value
    assert not torch.allclose(before, microscope.targets)
    torch.testing.assert_close(microscope.targets.sum(dim=1), torch.ones(6))


def test_controls_of_other_kinds_are_hidden(microscope):
    microscope.kind.value = "label_smoothing"
    assert microscope.temperature.layout.display == "none"
    assert microscope.smoothing.layout.display is None


def test_captions_of_others_are_text(run, tmp_path):
    for name in "ab":
        Image.fromarray(np.full((8, 8, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(f'image,caption\na.png,"{EVIL}"\nb.png,fine\n')
    (tmp_path / "m.json").write_text(
        '{"name": "m", "kind": "table", "title": "x", "licence": "x", "how_to_obtain": "x", '
        '"image_field": "image", "caption_field": "caption", "image_folder": ".", '
        '"splits": {"all": {"table": "t.csv"}}}'
    )
    pairs = open_pairs(tmp_path / "m.json", "all")
    microscope = SoftLabelMicroscope(run, pairs, [0, 1], 0)
    explorer = ZeroShotExplorer(run, training=pairs, label_spaces={EVIL: [EVIL]}, debounce=0)
    monitor = TrainingMonitor(0)
    row = {"step": 1, "epoch": 0, "loss": 1.0, f"held-out {EVIL}": 0.5}
    monitor(dataclasses.replace(run, history=[], facts=RunFacts(total_steps=2)), row)
    for widget in (microscope, explorer, monitor):
        assert "<script>" not in widget.view.value
        assert "&lt;script&gt;" in widget.view.value


def test_one_pair_shares_nothing(run):
    pairs = open_pairs(run.config.manifest, "train")
    microscope = SoftLabelMicroscope(run, pairs, [0], debounce=0)
    assert "two readable images or more" in microscope.message.value
    with pytest.raises(ValueError, match="SoftLabelMicroscope shows nothing"):
        _ = microscope.statistics


def test_before_training_the_widget_says_what_it_shows(tiny_settings):
    config = RunConfig(**tiny_settings)
    microscope = SoftLabelMicroscope(config, open_pairs(config.manifest, "train"), range(4), 0)
    assert "Nothing is trained yet" in microscope.message.value
    assert teacher_of(config)[0].training is False


def photos(folder, n, broken=()):
    """Write n noisy photos, captioned by their number, as a set of pairs."""
    rng = np.random.default_rng(0)
    for number in range(n):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for number in broken:
        (folder / f"{number}.png").write_bytes(b"no image")
    lines = [f"{number}.png,photo {number}" for number in range(n)]
    (folder / "t.csv").write_text("\n".join(["image,caption", *lines]))
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    manifest = {"name": "m", "kind": "table", **words, "caption_field": "caption"}
    (folder / "m.json").write_text(json.dumps({**manifest, "splits": {"all": {"table": "t.csv"}}}))
    return open_pairs(folder / "m.json", "all")


def test_unreadable_photos_are_left_out_by_name(run, tmp_path):
    microscope = SoftLabelMicroscope(run, photos(tmp_path, 5, broken=[3]), range(5), debounce=0)
    assert microscope.statistics["key"].tolist() == ["0.png", "1.png", "2.png", "4.png"]
    assert "left out: 3.png" in microscope.message.value


def test_of_a_large_batch_a_part_is_shown_and_all_is_counted(run, tmp_path):
    microscope = SoftLabelMicroscope(run, photos(tmp_path, 30), range(30), debounce=0)
    assert len(microscope.statistics) == 30
    assert microscope.view.value.count("<img") == 48
    assert "30 pairs" in microscope.view.value
    assert "The tables show the first 24" in microscope.view.value


def test_inverted_targets_are_called_so(microscope, monkeypatch):
    """As if a cost stood where the score belongs."""
    right = soft_targets

    def inverted(*args, **options):
        targets, other = right(*args, **options)
        return (1 - targets) / (targets.shape[1] - 1), other

    monkeypatch.setattr("zslkit.widgets.microscope.soft_targets", inverted)
    microscope.temperature.value = 0.05
    assert any("run against the teacher's similarity" in alarm for alarm in microscope.alarms)


def test_a_run_without_teacher_is_judged_by_its_student(run):
    alone = dataclasses.replace(run, teacher=None)
    microscope = SoftLabelMicroscope(
        alone, open_pairs(run.config.manifest, "train"), range(4), debounce=0
    )
    assert "its student stands in" in microscope.message.value
    assert teacher_of(alone)[0] is run.model


# map


@pytest.fixture
def walk():
    table = pd.DataFrame({"class": ["a", EVIL, "a", "b"], "similarity": [0.1, 0.25, 0.5, 0.75]})
    pictures = [f"data:image/jpeg;base64,{name}" for name in "wxyz"]
    return EmbeddingMap(np.eye(4)[:, :2], table, pictures)


def test_a_lasso_lists_the_images_inside(walk):
    assert walk.selected.empty
    assert "0 of 4 images chosen" in walk.message.value
    walk.scatter.widget.selection = np.array([1, 3], dtype=np.uint32)  # as the browser does
    assert walk.selected["similarity"].tolist() == [0.25, 0.75]
    assert "2 of 4 images chosen" in walk.message.value
    assert "0.750" in walk.view.value
    sources = [value for name, value in Tags(walk.view.value).attributes if name == "src"]
    assert sources == ["data:image/jpeg;base64,x", "data:image/jpeg;base64,z"]
    (link,) = [value for name, value in Tags(walk.view.value).attributes if name == "href"]
    kept = pd.read_csv(io.BytesIO(b64decode(link.partition("base64,")[2])))
    assert kept["class"].tolist() == [EVIL, "b"]
    assert not {"script"} & {*Tags(walk.view.value).tags}
    walk.scatter.selection([])
    assert walk.view.value == ""


def test_of_a_large_lasso_a_part_is_listed():
    table = pd.DataFrame({"class": ["a"] * 70})
    walk = EmbeddingMap(np.zeros((70, 2)), table, ["data:,"] * 70)
    walk.scatter.selection(range(60))
    assert walk.view.value.count("<img") == 50
    assert "the first 50" in walk.view.value
    assert len(walk.selected) == 60


def test_colours_follow_the_chosen_column(walk):
    assert walk.colour.options == ("class", "similarity")
    before = walk.scatter.widget.color
    walk.colour.value = "similarity"
    assert walk.scatter.color()["by"] == "similarity"
    assert walk.scatter.widget.color != before
    assert "an exported page has only its figure" in repr(walk)
    assert walk.figure()._repr_png_()[:4] == b"\x89PNG"


def test_a_map_has_the_colours_of_its_figure(walk):
    names = sorted({EVIL, "a", "b"})  # in the order of its codes
    colours = [to_hex(colour) for colour in walk.scatter.widget.color]
    (axes,) = walk.figure().axes
    drawn = {p.get_label(): to_hex(p.get_facecolor()[0]) for p in axes.collections}
    words = [plain_text(name, 24, lines=1) for name in names]
    assert dict(zip(words, colours, strict=True)) == drawn


def test_a_view_leaves_a_twin_for_a_notebook_without_a_kernel(walk, monkeypatch):
    shown, renewed = [], []
    handle = SimpleNamespace(update=renewed.append)
    monkeypatch.setattr(
        "IPython.display.display", lambda what, **options: shown.append(what) or handle
    )
    monitor = TrainingMonitor(0)
    for view in (walk, monitor):
        view._ipython_display_()
        bundle, twin = shown[-2:]
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert 'class="zslkit-still"' in twin.data
    assert "data:image/png;base64," in shown[1].data
    walk.colour.value = "similarity"
    assert renewed[-1].data != shown[1].data
    monitor.view.value = "<svg></svg>"
    assert "<svg></svg>" in renewed[-1].data


def test_a_map_wants_all_of_one_length():
    with pytest.raises(ValueError, match="2 points, 1 rows of the table and 3 thumbnails: all"):
        EmbeddingMap(np.zeros((2, 2)), pd.DataFrame({"class": ["a"]}), ["", "", ""])


# training monitor


def test_curves_follow_the_training_and_no_number_changes(tiny_settings, tmp_path):
    config = RunConfig(**{**tiny_settings, "max_steps": 4, "output_dir": str(tmp_path / "a")})
    monitor, drawn = TrainingMonitor(seconds=0), []
    monitor.view.observe(lambda change: drawn.append(change["new"]), "value")
    watched = train(config, [lambda run, row: {"held-out recall": 0.5}, monitor])
    assert len(drawn) == 4
    for words in ("loss (nats)", "contrastive", "distillation", "logit scale", "held-out recall"):
        assert words in monitor.view.value
    assert "Step 4 of 4" in monitor.message.value
    alone = train(config.model_copy(update={"output_dir": str(tmp_path / "b")}))
    torch.testing.assert_close(watched.model.state_dict(), alone.model.state_dict(), rtol=0, atol=0)
    assert [row["loss"] for row in watched.history] == [row["loss"] for row in alone.history]


def test_curves_are_drawn_now_and_then(tiny_settings, tmp_path):
    monitor, drawn = TrainingMonitor(seconds=3600), []
    monitor.view.observe(lambda change: drawn.append(change["new"]), "value")
    config = RunConfig(**{**tiny_settings, "max_steps": 4, "output_dir": str(tmp_path)})
    train(config, [monitor])
    assert len(drawn) == 2  # the first and the last


def test_the_button_knows_the_kernel_and_when_all_is_over(tiny_settings, tmp_path, monkeypatch):
    assert TrainingMonitor().stop.kernel == ""  # no kernel here
    kernel = SimpleNamespace(connection_file="x/kernel-12-ab.json")
    monkeypatch.setattr(IPKernelApp, "initialized", lambda: True)
    monkeypatch.setattr(IPKernelApp, "instance", lambda: kernel)
    monitor, over = TrainingMonitor(), []
    assert monitor.stop.kernel == "12-ab"
    config = RunConfig(**{**tiny_settings, "max_steps": 2, "output_dir": str(tmp_path)})
    train(config, [monitor, lambda run, row: over.append(monitor.stop.over)])
    assert over == [False, True]


def test_a_curve_lies_where_its_numbers_say():
    history = [{"step": 1, "x": 2.0}, {"step": 2, "x": 4.0}, {"step": 3}, {"step": 4, "x": 3.0}]
    panel = _panel("t", {"x": "words", "absent": "nothing"}, history, 8)
    assert panel["curves"] == [("words", "contrastive", 3.0, "37.5,100.0 75.0,0.0 150.0,50.0")]
    assert panel["y_ticks"][0] == (100.0, "2")
    assert panel["y_ticks"][-1] == (0.0, "4")
    assert panel["x_ticks"] == [(0.0, "0"), (75.0, "2"), (150.0, "4"), (225.0, "6"), (300.0, "8")]


def test_a_term_has_one_colour_in_the_live_curves_and_in_the_figure():
    history = [{"step": 1, **dict.fromkeys(("loss", "contrastive_loss", "distillation_loss"), 1.0)}]
    history[0] |= {"logit_scale": 2.0, "distillation_scale": 2.0, "learning_rate": 0.1}
    style = str(PAGE.style())
    for axes, (title, keys) in zip(learning_curves(history).axes, _CURVES.items(), strict=True):
        drawn = {line.get_label(): line.get_color() for line in axes.lines}
        for words, kind, *_ in _panel(title, keys, history, 1)["curves"]:
            colour = {"black": "currentColor"}.get(drawn[words], drawn[words])
            rule = "polyline {fill: none; stroke-width: 1.6; stroke: currentColor"
            if kind != "total":
                rule = f".{kind} {{stroke: {colour}"
            assert rule in style
            assert (colour == "currentColor") == (kind == "total")


def test_the_button_ends_with_the_cell_in_which_the_training_stopped(monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monitor = TrainingMonitor()
    facts = SimpleNamespace(total_steps=9)
    for step in (1, 2):
        row = {"step": step, "epoch": 0, "loss": 1.0}
        monitor(SimpleNamespace(history=[], facts=facts), row)
    assert not monitor.stop.over
    shell.events.trigger("post_run_cell", None)
    assert monitor.stop.over
    monitor.stop.over = False
    shell.events.trigger("post_run_cell", None)  # of another cell
    assert not monitor.stop.over


def test_a_long_curve_is_thinned_to_its_end():
    history = [{"step": step, "x": 1.0} for step in range(1, 5001)]
    ((*_, points),) = _panel("t", {"x": "x"}, history, 5000)["curves"]
    assert 200 < len(points.split()) <= 301
    assert points.endswith("300.0,100.0")


def test_time_between_drawings_is_not_negative():
    with pytest.raises(ValueError, match="seconds=-1 must be a number, 0 or more"):
        TrainingMonitor(-1)


# review of captions


@pytest.fixture
def suspects(run):
    return find_suspects(run, share=1.0)


@pytest.fixture
def review(run, suspects, tmp_path):
    pairs = open_pairs(run.config.manifest, "train")
    return CaptionReview(suspects, tmp_path / "my.review.json", pairs)


def press(review, word, **more):
    review.by_key._handle_custom_msg({"word": word, **more}, [])


def test_every_key_decides_and_goes_on(review, suspects):
    for word in ("keep", "drop", "swap"):
        press(review, word)
    assert review.place == 3
    press(review, "edit", text="  other words ")
    assert [one.action for one in review.decisions] == ["keep", "drop", "swap", "edit"]
    first, *_, last = review.decisions
    assert (first.image, first.caption) == (suspects["image"][0], suspects["caption"][0])
    assert last.text == "other words"
    assert "4 decided" in review.message.value or "5 decided" in review.message.value
    press(review, "back")
    assert "decided, edit" in review.view.value
    press(review, "undo")
    assert "decided" not in review.view.value
    assert len(review.decisions) == 3
    for _ in range(5):
        press(review, "back")
    assert review.place == 0
    review.walk(10_000)
    assert review.place == len(suspects) - 1
    assert len(review.figure().axes) in range(1, 9)


def test_a_review_goes_on_where_it_was_left(run, review, suspects):
    buttons = {button.description: button for button in review.buttons.children}
    buttons["drop"].click()
    again = CaptionReview(run, review.file, share=1.0)
    assert again.place == 1
    assert again.suspect["caption"] == suspects["caption"][1]
    assert review.by_key.caption == suspects["caption"][1]


def test_what_cannot_be_decided_is_said(run, review, suspects, monkeypatch):
    press(review, "edit", text=" ")
    assert "needs text" in review.message.value
    suspects.loc[0, ["swap_image", "swap_caption"]] = ""
    press(review, "swap")
    assert "no other suspect would gain" in review.message.value
    assert review.decisions == []
    with pytest.raises(ValueError, match="needs pairs"):
        CaptionReview(suspects, review.file)
    monkeypatch.chdir(review.file.parent)
    beside = CaptionReview(run)
    assert beside.file.name == f"{Path(run.config.manifest).stem}.review.json"


def test_captions_under_review_are_shown_as_text(review, suspects, monkeypatch):
    def broken(i):
        raise BrokenImageError("damaged")

    suspects.loc[0, "reason"] = EVIL
    monkeypatch.setattr(review._pairs, "read_pixels", broken)
    review.walk(0)
    assert "&lt;script&gt;" in review.view.value
    assert "unreadable" in review.view.value
    assert EVIL not in review.view.value
