"""Descriptions from a tiny random GPT-2, through the code that runs with a real one."""

import json

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from zslkit.zeroshot import descriptions
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.descriptions import describe_classes

NAMES = ["cat", "a grizzly bear", "yak", "electric eel", "owl"]
PROMPT = "What does a {} look like?"
CHAT = "{% for m in messages %}<user> {{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(language_model):
    return language_model


@pytest.fixture
def describe(folder, tmp_path):
    """Describe classes in a file of this test, in short answers."""

    def call(names=NAMES, **changes):
        given = {"model": folder, "cache_file": tmp_path / "texts" / "classes.json"}
        return describe_classes(
            names, **{**given, "prompt": PROMPT, "max_new_tokens": 9, **changes}
        )

    call.path = tmp_path / "texts" / "classes.json"
    return call


def likeliest(folder, question, n_tokens):
    """One word after the other, alone, without generate."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    net = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokens = start = tokenizer(question)["input_ids"]
    for _ in range(n_tokens):
        with torch.no_grad():
            best = net(torch.tensor([tokens])).logits[0, -1].argmax().item()
        tokens = [*tokens, best]
        if best == 0:
            break
    text = tokenizer.decode(tokens[len(start) :], skip_special_tokens=True)
    line = " ".join(text.strip().split("\n\n")[0].split())
    return (line,) if line else ()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_greedy_answers_equal_a_loop_over_single_words(describe, folder, batch_size):
    found = describe(batch_size=batch_size)
    assert list(found) == NAMES
    for name, texts in found.items():
        assert texts == likeliest(folder, PROMPT.replace("{}", name), 9)
    assert len(set(found.values())) > 1


def test_the_file_is_for_people_and_names_no_folder_of_this_machine(describe, folder):
    found = describe()
    stored = json.loads(describe.path.read_text("utf-8"))
    assert stored["model"] == f"…/{folder.name}"
    assert stored["prompt"] == PROMPT
    assert stored["classes"] == {name: list(texts) for name, texts in found.items()}


def test_edits_survive_and_nothing_is_written_twice(describe, monkeypatch):
    describe(NAMES[:2])
    stored = json.loads(describe.path.read_text("utf-8"))
    stored["classes"]["cat"] = ["a small feline — häuslich", "whiskers"]
    stored["classes"]["lynx"] = []
    describe.path.write_text(json.dumps(stored), "utf-8")
    asked, answers = [], descriptions._answers
    monkeypatch.setattr(
        descriptions, "_answers", lambda t, m, q, *rest: asked.extend(q) or answers(t, m, q, *rest)
    )
    found = describe(["cat", "yak", "lynx", "a grizzly bear"])
    assert asked == [PROMPT.replace("{}", "yak")]
    assert found["cat"] == ("a small feline — häuslich", "whiskers")
    assert found["lynx"] == ()
    monkeypatch.setattr(descriptions, "_load", None)  # no model where nothing is missing
    assert describe(["cat", "yak", "lynx", "a grizzly bear"]) == found


@pytest.mark.parametrize("n", [1, 3])
def test_an_interrupt_costs_one_batch_and_changes_nothing(describe, tmp_path, monkeypatch, n):
    whole = describe(cache_file=tmp_path / "whole.json", batch_size=2, n=n)
    calls, answers = [], descriptions._answers

    def interrupted(*given):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return answers(*given)

    with monkeypatch.context() as patch:
        patch.setattr(descriptions, "_answers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            describe(batch_size=2, n=n)
    assert list(json.loads(describe.path.read_text("utf-8"))["classes"]) == NAMES[:4]
    assert describe(batch_size=2, n=n) == whole


def test_several_answers_are_sampled_with_the_seed(describe, tmp_path):
    found = [
        describe(cache_file=tmp_path / f"{place}.json", n=4, seed=seed)
        for place, seed in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1] != found[2]
    for texts in found[0].values():
        assert 1 < len(texts) <= 4
        assert len(set(texts)) == len(texts)
        assert "" not in texts
    state = torch.get_rng_state()
    describe(cache_file=tmp_path / "more.json", n=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_max_new_tokens_bounds_an_answer(describe, tmp_path):
    found = describe(max_new_tokens=3, n=4), describe(cache_file=tmp_path / "long.json", n=4)
    short, long = (max(len(text) for texts in f.values() for text in texts) for f in found)
    assert short <= 3 < long


def test_a_model_with_a_chat_template_is_asked_through_it(folder, tmp_path):
    tokenizer, net = descriptions._load(str(folder), "cpu")
    tokenizer.chat_template = CHAT
    (found,) = descriptions._answers(tokenizer, net, ["What?"], 1, 9, 0)
    assert found == likeliest(folder, "<user> What?<assistant>", 9)
    assert found != likeliest(folder, "What?", 9)


def test_descriptions_fill_a_bank(describe):
    class Lengths:
        def encode_text(self, texts):
            return torch.tensor([[len(text), 3.0, text.count("a")] for text in texts])

    found = describe()
    plain = build_class_bank(Lengths(), NAMES, ["{}"])
    told = build_class_bank(Lengths(), NAMES, ["{}", "{}, {description}"], descriptions=found)
    assert not torch.allclose(plain.embeddings, told.embeddings)


@pytest.mark.parametrize("changes", [{"prompt": "Why?"}, {"n": 0}])
def test_questions_name_the_class_and_want_an_answer(describe, changes):
    with pytest.raises(ValueError, match=r"must hold \{\} and n=\d be at least 1"):
        describe(**changes)


def test_a_file_of_another_prompt_or_model_is_refused(describe, tmp_path):
    describe(["cat"])
    with pytest.raises(ValueError, match=r"prompt='Is {} big\?': cache_file=.* with 'What does"):
        describe(prompt="Is {} big?")
    with pytest.raises(ValueError, match="model='gpt': cache_file=.*give that, or another file"):
        describe(model="gpt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cache_file='.*classes.json': .*Invalid JSON"),
        ('{"model": "m", "prompt": "p", "clases": {}}', "did you mean classes"),
        (
            '{"model": "m", "prompt": "p", "classes": {"cat": "x"}}',
            "cache_file=.*classes='x': .*valid array",
        ),
    ],
)
def test_a_file_that_is_none_of_these_is_refused(describe, text, message):
    describe.path.parent.mkdir()
    describe.path.write_text(text)
    with pytest.raises(ValueError, match=message):
        describe()
    assert describe.path.read_text() == text


def test_a_model_that_is_not_there_is_named(describe, tmp_path):
    with pytest.raises(OSError, match=r"model='.*nothing': neither a folder with a causal"):
        describe(model=tmp_path / "nothing")
