"""Decisions on captions: an overlay that training reads, and that never changes the data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import zslkit as zk
from zslkit.__main__ import app
from zslkit.config import RunConfig
from zslkit.data.cache import caption_features, tower_features
from zslkit.data.named import training_pairs
from zslkit.data.review import (
    Decision,
    add_decisions,
    apply_decisions,
    checksum,
    decisions_of_table,
    read_decisions,
    remove_decision,
    review_file,
)
from zslkit.data.source import STRING, Groups
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.suspects import ALIKE, _alike, _partners, _rivals, find_suspects
from zslkit.report.comparison import compare
from zslkit.report.results import record
from zslkit.trainer import train
from zslkit.training.batches import TrainingData


def groups(*captions):
    sizes = np.cumsum([0, *map(len, captions)])
    texts = np.array([text for group in captions for text in group], dtype=STRING)
    return Groups(texts, sizes[:-1], sizes[1:])


def decided(*decisions, captions=(("a cat", "an animal"), ("a dog",), ("a bird", "a bird"))):
    decisions = [Decision(**one) for one in decisions]
    return apply_decisions(["i", "j", "k"], groups(*captions), decisions)


def test_each_action_does_what_it_says():
    found = decided(
        {"image": "i", "caption": "an animal", "action": "drop"},
        {"image": "j", "caption": "a dog", "action": "edit", "text": "two dogs"},
        {"image": "k", "caption": "a bird", "action": "keep"},
    )
    assert [*found.captions] == [("a cat",), ("two dogs",), ("a bird", "a bird")]
    assert found.rows.tolist() == [0, 1, 2]
    assert found.settled.tolist() == [False, True, False, False]
    assert found.origin.tolist() == [0, 2, 3, 4]
    assert found.counts == {"drop": 1, "edit": 1, "keep": 2}


def test_a_swap_is_of_two_captions_and_an_image_without_any_is_left_out():
    swap = {"action": "swap", "with_image": "j", "with_caption": "a dog"}
    found = decided(
        {"image": "i", "caption": "a cat", **swap},
        {"image": "k", "caption": "a bird", "action": "drop"},
        {"image": "k", "caption": "a fish", "action": "drop"},
        {"image": "elsewhere", "caption": "a dog", "action": "drop"},
    )
    assert [*found.captions] == [("a dog", "an animal"), ("a cat",)]
    assert found.rows.tolist() == [0, 1]
    assert found.counts == {"swap": 1, "drop": 2, "not found": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": "edit"}, "needs text"),
        ({"action": "keep", "text": "x"}, "takes no text"),
        ({"action": "swap"}, "needs with_image"),
        ({"action": "swap", "with_image": "i", "with_caption": "a cat"}, "with itself"),
        ({"action": "burn"}, "keep"),
    ],
)
def test_a_decision_that_cannot_be_carried_out_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        Decision(**{"image": "i", "caption": "a cat", **change})


def test_a_caption_has_one_decision(tmp_path):
    path = tmp_path / "deep" / "my.review.json"
    first = Decision(image="i", caption="a", action="swap", with_image="j", with_caption="b")
    add_decisions(path, [first, Decision(image="k", caption="c", action="keep")])
    before = checksum(path)
    held = add_decisions(path, [Decision(image="j", caption="b", action="drop")])
    assert [one.action for one in held] == ["keep", "drop"]
    assert read_decisions(path) == held
    assert checksum(path) != before
    remove_decision(path, "k", "c")
    assert [one.image for one in read_decisions(path)] == ["j"]
    remove_decision(tmp_path / "nothing.json", "k", "c")  # there is nothing to take back


def test_the_overlay_lies_beside_the_manifest(tmp_path):
    (tmp_path / "my.csv").touch()
    assert review_file(tmp_path / "my.csv") == tmp_path / "my.review.json"
    assert str(review_file("flickr8k")) == "flickr8k.review.json"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must hold"),
        ("no json", "must hold"),
        ('{"decisions": [{"image": "i", "caption": "a", "action": "edit"}]}', "needs text"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"x.json.*{words}"):
        read_decisions(path)
    with pytest.raises(FileNotFoundError, match="data decide writes one"):
        read_decisions(tmp_path / "other.json")


@pytest.fixture(scope="module")
def frozen(tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviewed")
    own = {"image_tower": "frozen", "text_tower": "frozen", "cache_dir": str(folder / "cache")}
    own |= {"max_steps": 3, "output_dir": str(folder / "run"), "prompt_templates": "none"}
    return RunConfig(**{**tiny_settings, **own, "caption_noise": 0.2, "seed": 1})


@pytest.fixture(scope="module")
def run(frozen):
    run = train(frozen)
    record({"loss": run.history[-1]["loss"]}, frozen, frozen.output_dir)
    return run


@pytest.fixture
def review(frozen, tmp_path):
    """Decisions on three images of the training set: drop, swap, edit."""
    pairs, path = training_pairs(frozen), tmp_path / "tiny.review.json"
    a, b, c, d = pairs.keys[:4].tolist()
    words = [pairs.captions[i][0] for i in range(4)]
    add_decisions(path, [
        *(Decision(image=a, caption=text, action="drop") for text in {*pairs.captions[0]}),
        Decision(image=b, caption=words[1], action="edit", text="something else entirely"),
        Decision(image=c, caption=words[2], action="swap", with_image=d, with_caption=words[3]),
    ])  # fmt: skip
    return path


def test_training_reads_the_decisions_and_the_data_stay(frozen, review):
    before, after = training_pairs(frozen), training_pairs(
        frozen.model_copy(update={"review": str(review)})
    )  # fmt: skip
    assert after.keys.tolist() == before.keys[1:].tolist()
    assert after.captions[0][0] == "something else entirely"
    assert (after.captions[1][0], after.captions[2][0]) == (
        before.captions[3][0],
        before.captions[2][0],
    )
    assert after.fingerprint != before.fingerprint
    assert len(after.wrong) == sum(len(group) for group in after.captions)
    assert not after.wrong[0]
    assert "decisions on captions: " in after.understood[1]
    assert after[:3].unreviewed is None
    everything = [
        Decision(image=key, caption=text, action="drop")
        for key, group in zip(before.keys.tolist(), before.captions, strict=True)
        for text in group
    ]
    with pytest.raises(ValueError, match="no caption is left of 32 images"):
        before.reviewed(everything)


def test_a_review_embeds_only_what_is_new(frozen, review, run):
    config, model = frozen.model_copy(update={"review": str(review)}), run.model
    known = {*Path(frozen.cache_dir).glob("*.json")}
    pairs = training_pairs(config)
    images = tower_features(model, pairs, config, "images").features
    features, rows = caption_features(model, pairs, config, "captions")
    new = {*Path(frozen.cache_dir).glob("*.json")} - known
    assert [json.loads(path.read_text())["items"] for path in new] == [1]  # what was edited
    alone = frozen.model_copy(update={"cache_dir": None})
    captions = [text for group in pairs.captions for text in group]
    expected = tower_features(model, captions, alone, "captions").features
    assert torch.allclose(features[rows], expected, atol=1e-5)
    pairs.unreviewed = None  # now they are embedded as they are
    assert torch.allclose(images, tower_features(model, pairs, alone, "images").features, atol=1e-5)


def test_unreadable_images_of_reviewed_pairs_are_named(frozen, review, monkeypatch):
    pairs = training_pairs(frozen.model_copy(update={"review": str(review), "cache_dir": None}))
    lost = {pairs.unreviewed.keys[0], pairs.unreviewed.keys[5]}
    read = type(pairs).read_pixels

    def read_pixels(self, i):
        if self.keys[i] in lost:
            raise zk.data.BrokenImageError(f"image {self.keys[i]!r}")
        return read(self, i)

    monkeypatch.setattr(type(pairs), "read_pixels", read_pixels)
    alone = frozen.model_copy(update={"cache_dir": None})
    found = tower_features(build_dual_encoder(alone), pairs, alone, "images")
    assert found.broken == (pairs.unreviewed.keys[5],)
    assert len(found.features) == len(pairs)


def test_a_run_records_what_it_read(frozen, review, run, tmp_path):
    config = frozen.model_copy(
        update={"review": str(review), "output_dir": str(tmp_path / "second")}
    )
    second = train(config)
    assert second.facts.pairs == run.facts.pairs - 1
    assert read_decisions(second.run_dir / "review.json") == read_decisions(review)
    record({"loss": second.history[-1]["loss"]}, config, config.output_dir)
    results = json.loads((second.run_dir / "results.json").read_text())
    assert results["review_checksum"] == checksum(review)
    assert results["review_checksum"][:12] in (second.run_dir / "card.md").read_text()
    compared = compare(run.run_dir, second.run_dir)
    assert set(compared["config"]) == {"review"}
    assert compared["facts"]["review"][1] == checksum(review)
    words = CliRunner().invoke(app, ["report", "diff", str(run.run_dir), str(second.run_dir)])
    assert words.exit_code == 0
    assert "review" in words.output
    # going on is the same run only under the same decisions
    train(config.model_copy(update={"resume": True}))
    add_decisions(review, [Decision(image="i", caption="x", action="keep")])
    with pytest.raises(ValueError, match="decisions of review="):
        train(config.model_copy(update={"resume": True}))


def test_suspects_are_found_without_the_mask(frozen, run):
    table = find_suspects(run, share=1.0)
    data = TrainingData(run.model, frozen, torch.device("cpu"))
    assert len(table) == len(data.pairs.wrong)
    assert table["rank"].tolist() == [*range(1, len(table) + 1)]
    assert table["held_out"].between(0, 1).all()
    for row in table[:5].to_dict("records"):
        assert row["caption"] in data.pairs.captions[row["row"]]
        assert data.pairs.keys[row["row"]] == row["image"]
        assert row["swap_image"] != row["image"]
        assert row["reason"]
    assert len(find_suspects(run, share=0.1, data=data)) == round(0.1 * len(table))
    data.pairs.wrong[:] = ~data.pairs.wrong  # it is for reports only
    assert find_suspects(run, share=1.0, data=data).equals(table)
    with pytest.raises(ValueError, match="share=0 must"):
        find_suspects(run, share=0)
    data.usable = data.usable[:2]
    with pytest.raises(ValueError, match="2 readable images are too few"):
        find_suspects(run, data=data)


def test_planted_captions_come_first_where_features_tell(run, frozen):
    """Features of 60 images in which a caption's own tell it from the rest, five exchanged."""
    torch.manual_seed(0)
    images = torch.randn(60, 8)
    texts = images @ torch.randn(8, 8) + 0.1 * torch.randn(60, 8)
    owner, wrong = torch.arange(60), torch.arange(10, 20)
    texts[wrong] = texts[wrong.flip(0)]
    projected = torch.nn.functional.normalize
    model, data = torch.nn.Linear(1, 1), TrainingData(run.model, frozen, torch.device("cpu"))
    model.project_image = lambda x: projected(x, dim=1)
    solved = torch.linalg.lstsq(texts, images).solution
    model.project_text = lambda x: projected(x @ solved, dim=1)
    data.features_of = lambda model: (images, texts, owner, torch.ones(60, dtype=torch.bool))
    data.pairs.keys = np.array([f"image {i}" for i in range(60)])
    data.pairs.captions = groups(*([f"caption {i}"] for i in range(60)))
    data.usable = np.arange(60)
    made = zk.Run(model, run.config, [], run.run_dir)
    table = find_suspects(made, share=1 / 6, data=data)
    assert {*table["row"]} == {*wrong.tolist()}
    # each was exchanged with its mirror image, and that is what is suggested
    assert table["swap_image"].tolist() == [f"image {29 - row}" for row in table["row"]]
    assert table["reason"].str.contains("never saw it").all()


def test_the_parts_of_a_suspicion_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts, owner = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])
    assert _rivals(images, texts, owner).tolist() == [1.0, 1.0]
    assert _partners(images, texts, owner).tolist() == [1, 0]
    assert _partners(images, texts.flip(0), owner).tolist() == [-1, -1]
    near = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.01]])
    assert ALIKE < 1
    assert _alike(near, torch.tensor([0, 1, 0])).tolist() == [2, -1, 2]


def test_a_table_can_be_filled_in(run, tmp_path):
    path, file = tmp_path / "suspects.csv", tmp_path / "my.review.json"
    shown = CliRunner().invoke(app, ["data", "suspects", str(run.run_dir), "--share=1",
                                     f"--output={path}", "--n=2"])  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "2 of" in shown.output
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[:1, "decision"] = ["d", "edit"]
    table.loc[1, "text"] = "other words"
    table.to_csv(path, index=False)
    done = CliRunner().invoke(app, ["data", "decide", str(file), f"--table={path}"])
    assert done.exit_code == 0, done.output
    assert "2 new; holds 1 drop, 1 edit" in done.output
    found = read_decisions(file)
    assert [one.action for one in found] == ["drop", "edit"]
    assert found[1].text == "other words"
    words = ["--image=i", "--caption=a", "--action=keep"]
    assert CliRunner().invoke(app, ["data", "decide", str(file), *words]).exit_code == 0
    assert len(read_decisions(file)) == 3
    printed = CliRunner().invoke(app, ["data", "suspects", str(run.run_dir), "--json",
                                       "--data-root=."])  # fmt: skip
    assert json.loads(printed.stdout)[0]["rank"] == 1


def test_a_table_that_cannot_be_read_names_the_line(tmp_path):
    path, columns = tmp_path / "t.csv", ["image", "caption", "swap_image", "swap_caption",
                                         "decision", "text"]  # fmt: skip
    pd.DataFrame([["i", "a", "", "", "", ""]], columns=columns).to_csv(path, index=False)
    assert decisions_of_table(path) == []
    for row, words in (
        (["i", "a", "", "", "swap", ""], "line 2: nothing is suggested"),
        (["i", "a", "", "", "edit", ""], "line 2.*needs text"),
        (["i", "a", "", "", "burn", ""], "line 2: action='burn'"),
    ):
        pd.DataFrame([row], columns=columns).to_csv(path, index=False)
        with pytest.raises(ValueError, match=words):
            decisions_of_table(path)
    pd.DataFrame([["i"]], columns=["image"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="lacks the column"):
        decisions_of_table(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --table, or"),
        (["--table=x.csv", "--image=i"], "give --table, or"),
        (["--image=i"], "also needs --caption and --action"),
        (["--image=i", "--caption=a", "--action=edit"], "needs text"),
    ],
)
def test_decide_says_what_it_needs(tmp_path, words, message):
    done = CliRunner().invoke(app, ["data", "decide", str(tmp_path / "x.json"), *words])
    assert message in str(done.exception)
