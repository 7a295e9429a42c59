import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from zslkit.data.toy import COLOURS, COMBINATIONS, SHAPES, ToyScenes


@pytest.fixture(scope="module")
def train():
    return ToyScenes("train", 4096, 0, 64)  # as in data_manifests/toy.json


@pytest.fixture(scope="module")
def captions(train):
    return [caption for i in range(len(train)) for caption in train.captions(i)]


def names(split):
    return ToyScenes(split, 1, 0, 16).class_names


def test_no_word_of_a_held_out_class_occurs_in_a_training_caption(captions):
    words = {word for caption in captions for word in re.findall(r"\w+", caption)}
    assert not words & {*names("test"), *names("dev")}
    text = " ".join(captions)  # nor inside a longer word or with a hyphen
    assert not [name for name in names("test") + names("dev") if name in text.replace("-", "")]


def test_no_caption_joins_the_colour_and_the_shape_of_a_held_out_class(captions):
    held_out = {*COMBINATIONS["test"], *COMBINATIONS["dev"]}
    phrases = {
        colour + gap + shape
        for c, s in held_out
        for colour in COLOURS[c]
        for shape in SHAPES[s]
        for gap in ("", " ")
    }
    for caption in captions:
        words = caption.split()
        assert not phrases.intersection([*words, *map(" ".join, pairwise(words))])


def test_no_training_scene_shows_a_held_out_class_even_as_a_distractor(train):
    held_out = {*COMBINATIONS["test"], *COMBINATIONS["dev"]}
    scenes = [train.scene(i) for i in range(len(train))]
    things = {(t.colour, t.shape) for scene in scenes for t in (scene.main, *scene.distractors)}
    assert not things & held_out
    assert things == {*COMBINATIONS["train"]}


@pytest.mark.parametrize("split", ["dev", "test", "seen"])
def test_distractors_are_never_a_class_under_test(split):
    scenes = ToyScenes(split, 300, 0, 64)
    distractors = [t for i in range(300) for t in scenes.scene(i).distractors]
    assert distractors
    assert {(t.colour, t.shape) for t in distractors} <= {*COMBINATIONS["train"]}


def test_training_teaches_both_parts_of_every_held_out_name_and_how_to_compound(captions):
    words = {word for caption in captions for word in caption.split()}
    assert words >= {name for group in (*COLOURS, *SHAPES) for name in group}
    assert words >= {*names("seen")}


def test_splits_share_no_class_but_seen_has_those_of_train():
    assert names("seen") == names("train")
    for one, other in combinations(("train", "dev", "test"), 2):
        assert not {*names(one)} & {*names(other)}
    sizes = [len({*names(split)}) for split in ("train", "dev", "test")]
    assert sizes == [72, 24, 48]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_part_of_a_class_is_commoner_than_another(split):
    for part in zip(*COMBINATIONS[split], strict=True):
        assert len(set(Counter(part).values())) == 1
        assert len(set(part)) == 12


def test_classes_take_turns_and_scenes_show_them():
    scenes = ToyScenes("test", 100, 0, 32)
    counts = Counter(scenes.class_index(i) for i in range(100))
    assert len(counts) == 48
    assert max(counts.values()) - min(counts.values()) == 1
    for i in (0, 47, 99):
        main = scenes.scene(i).main
        name = scenes.class_names[scenes.class_index(i)]
        assert name == COLOURS[main.colour][0] + SHAPES[main.shape][0]


def test_scenes_depend_on_seed_split_and_number_only():
    one, same = ToyScenes("train", 50, 3, 32), ToyScenes("train", 80, 3, 32)
    for i in reversed(range(50)):  # any order
        assert np.array_equal(one.render(i), same.render(i))
        assert one.captions(i) == same.captions(i)
    for other in (ToyScenes("train", 50, 4, 32), ToyScenes("seen", 50, 3, 32)):
        assert not any(np.array_equal(one.render(i), other.render(i)) for i in range(50))
        assert sum(one.captions(i) == other.captions(i) for i in range(50)) == 0


@pytest.mark.parametrize("size", [16, 33, 64])
def test_renders_are_rgb_bytes_with_soft_edges_and_contrast(size):
    scenes = ToyScenes("dev", 24, 0, size)
    for i in range(24):
        image = scenes.render(i)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.flags.writeable
        assert np.ptp(image) > 40


def test_a_scene_is_drawn_alike_at_every_size():
    small, large = (ToyScenes("train", 60, 0, size) for size in (32, 64))
    for i in range(60):
        halved = large.render(i).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.render(i)).mean() < 12


def test_the_main_thing_has_its_colour_and_lies_where_the_scene_says():
    scenes = ToyScenes("train", 400, 0, 64)
    checked = 0
    for i in range(400):
        thing = scenes.scene(i).main
        if thing.texture == 0 and SHAPES[thing.shape][0] in ("circle", "square", "heart", "plus"):
            x, y = int(thing.x * 64), int(thing.y * 64)
            assert tuple(scenes.render(i)[y, x]) == thing.rgb
            checked += 1
    assert checked > 20


def test_captions_vary_miss_attributes_and_sometimes_the_subject(train, captions):
    assert len(captions) == 3 * len(train)
    assert len({*captions}) > 0.6 * len(captions)
    subject, colour_only, distractor, compound = 0, 0, 0, 0
    for i in range(len(train)):
        main = train.scene(i).main
        colours, shapes = COLOURS[main.colour], SHAPES[main.shape]
        for caption in captions[3 * i : 3 * i + 3]:
            has_colour = any(word.startswith(tuple(colours)) for word in caption.split())
            has_shape = any(word.endswith(tuple(shapes)) for word in caption.split())
            subject += has_colour and has_shape
            colour_only += has_colour and not has_shape
            distractor += not (has_colour or has_shape)
            compound += bool({c + s for c in colours for s in shapes} & {*caption.split()})
    assert 0.6 < subject / len(captions) < 0.8
    assert 0.1 < colour_only / len(captions) < 0.2
    assert 0.02 < distractor / len(captions) < 0.1
    assert 0.25 < compound / len(captions) < 0.45


def test_captions_name_position_texture_size_and_background_truly():
    scenes = ToyScenes("train", 600, 0, 32)
    for i in range(600):
        scene = scenes.scene(i)
        for caption in scenes.captions(i):
            if caption.endswith("on the left"):  # the subject's, main thing or distractor
                assert min(thing.x for thing in (scene.main, *scene.distractors)) < 1 / 3
            if "cloudy" in caption:
                assert scene.background == 2
            if "dotted" in caption:
                assert 2 in {thing.texture for thing in (scene.main, *scene.distractors)}
            if "tiny" in caption:
                assert scene.distractors


def test_articles_agree(captions):
    text = "\n".join(captions)
    assert re.search(r"\ba [^aeiou]", text)
    assert re.search(r"\ban [aeiou]", text)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, r"split='val' must be one of train, dev, test, seen"),
        ({"n": 0}, r"n=0 must be a whole number of at least 1"),
        ({"n": 2.5}, r"n=2.5 must be a whole number"),
        ({"seed": -1}, r"seed=-1 must be a whole number of at least 0"),
        ({"image_size": 8}, r"image_size=8 must be a whole number of at least 16"),
        ({"image_size": True}, r"image_size=True must be a whole number"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(change, message):
    with pytest.raises(ValueError, match=message):
        ToyScenes(**{"split": "train", "n": 4, "seed": 0, "image_size": 32, **change})


@pytest.mark.parametrize("i", [-1, 4])
def test_scenes_outside_the_set_do_not_exist(i):
    scenes = ToyScenes("train", 4, 0, 32)
    assert len(scenes) == 4
    for method in (scenes.class_index, scenes.render, scenes.captions):
        with pytest.raises(IndexError, match=f"scene {i} of 4"):
            method(i)
