"""Templates against the published texts, and prompts written out by hand."""

import json
from pathlib import Path

import pytest

import zslkit.zeroshot.prompts
from zslkit.zeroshot.prompts import TEMPLATES, class_prompts, find_templates
from zslkit.zeroshot.prompts import TEMPLATES as OF_ZEROSHOT

NAMES = ["cat", "yak"]
DEFINITIONS = {"cat": "a feline", "yak": ("an ox", "a hairy one"), "eel": "no class here"}


def prompts(*given):
    return list(class_prompts(*given))


def test_sets_have_their_names_and_texts_their_places():
    assert list(TEMPLATES) == ["none", "simple", "ensemble", "clip80"]
    assert OF_ZEROSHOT is TEMPLATES
    for name, templates in TEMPLATES.items():
        assert find_templates(name) == find_templates(list(templates)) == templates
        assert all(text.count("{}") == 1 for text in templates)
        assert len(set(templates)) == len(templates)
    assert (TEMPLATES["none"], TEMPLATES["simple"]) == (("{}",), ("a photo of a {}.",))
    assert (len(TEMPLATES["ensemble"]), len(TEMPLATES["clip80"])) == (5, 80)


def test_every_set_states_its_source_and_licence():
    path = Path(zslkit.zeroshot.prompts.__file__).with_name("templates.json")
    for facts in json.loads(path.read_text("utf-8")).values():
        assert all(facts[key] for key in ("title", "source", "licence"))


def test_clip80_is_the_published_ensemble_word_for_word():
    published = pytest.importorskip(
        "open_clip.zero_shot_metadata", reason="open_clip, which carries the texts, is not here"
    )
    texts = [template("{}") for template in published.OPENAI_IMAGENET_TEMPLATES]
    assert list(TEMPLATES["clip80"]) == texts


def test_prompts_by_hand():
    lines = ["a {}.", "a {}, {description}."]
    assert prompts(NAMES, lines, DEFINITIONS) == [
        *((0, text) for text in ("a cat.", "a cat, a feline.")),
        *((1, text) for text in ("a yak.", "a yak, an ox.", "a yak, a hairy one.")),
    ]
    assert prompts(["cat", "dog"], lines, DEFINITIONS)[2:] == [(1, "a dog.")]
    assert prompts(["yak"], ["{description}"], DEFINITIONS) == [(0, "an ox"), (0, "a hairy one")]


def test_braces_in_names_and_descriptions_are_text():
    given = ["set {}"], ["{}: {description}"], {"set {}": "{description} of {}"}
    assert prompts(*given) == [(0, "set {}: {description} of {}")]


@pytest.mark.parametrize(
    ("templates", "descriptions", "message"),
    [
        ("poetry", None, "templates='poetry': no such set of templates; known: none, simple"),
        ("clip8", None, "did you mean clip80"),
        ([], None, "templates must not be empty"),
        (["{}", "a photo"], None, r"templates without \{\} or \{description\}: \['a photo'\]"),
        (["{}, {description}"], None, "descriptions give none for any of the 2 classes"),
        (["{}", "{description}"], {"dog": "tame"}, "give none for any of the 2"),
        ("simple", DEFINITIONS, r"no template has a place for \{description\}"),
        (["{description}"], {"cat": "a feline"}, "1 classes without .*: yak. Add a template"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_prompt(templates, descriptions, message):
    with pytest.raises(ValueError, match=message):
        class_prompts(NAMES, templates, descriptions)
