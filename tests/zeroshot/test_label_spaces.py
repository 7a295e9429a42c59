"""Label spaces: their files, what makes them unfair, and when an answer is right."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zslkit.zeroshot.answer_keys import POLICIES, AnswerKey
from zslkit.zeroshot.hierarchy import Hierarchy
from zslkit.zeroshot.label_audit import audit_label_space, seen_in
from zslkit.zeroshot.label_spaces import (
    LabelSpace,
    from_names,
    load_label_space,
    normal_form,
    read_label_map,
    union,
)

ROWS = (  # id, names, definition
    ("n1", ("crane", "hoist"), "a machine"),
    ("n2", ("crane",), "a bird"),
    ("n3", ("Turkey",), "a country"),
    ("n4", ("turkey", "gobbler"), "a bird"),
    ("n5", ("rooster", "cock"), "a bird"),
    ("n6", ("cocks", "hoist"), "invented"),
)


@pytest.fixture
def birds():
    ids, names, definitions = zip(*ROWS, strict=True)
    return LabelSpace("birds", ids, names, definitions, "invented")


@pytest.fixture(scope="module")
def imagenet():
    return load_label_space("imagenet21k+1k")


def slow_places(space, ranked, truth, policy):
    """Read answers one by one, as the policies are described."""
    key, places = AnswerKey(space), []
    for row, classes in zip(ranked, truth, strict=True):
        names = [key.prompt_names[i] for i in row]
        answers = []
        for name in names:
            if policy == "strict":
                answers += [i for i, n in enumerate(space.class_names) if n == name]
            elif normal_form(name) not in answers:
                answers.append(normal_form(name))
        right = set()
        for c in classes:
            mine = {normal_form(name) for name in space.names[c]}
            if policy == "strict":
                right.add(c)
            elif policy == "merge_duplicates":
                right.add(normal_form(space.class_names[c]))
            else:
                right |= {
                    normal_form(names[0])
                    for names in space.names
                    if mine & {normal_form(name) for name in names}
                }
        found = [place for place, answer in enumerate(answers) if answer in right]
        places.append(min(found, default=len(space)))
    return places


def first_right(space, ranked, truth, policy):
    owner = np.repeat(np.arange(len(truth)), [len(classes) for classes in truth])
    flat = np.array([c for classes in truth for c in classes], dtype=np.int64)
    return AnswerKey(space).first_right(ranked, owner, flat, policy).tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_read_as_the_policies_say(birds, policy):
    rng = np.random.default_rng(0)
    n_names = len(AnswerKey(birds).prompt_names)
    assert n_names == 5  # crane stands once
    ranked = np.stack([rng.permutation(n_names)[:4] for _ in range(300)])
    truth = [sorted(rng.permutation(6)[: rng.integers(4)].tolist()) for _ in range(300)]
    expected = slow_places(birds, ranked, truth, policy)
    assert first_right(birds, ranked, truth, policy) == expected
    assert len(set(expected)) > 3


def test_each_policy_forgives_more_than_the_one_before(birds):
    ranked = [[0, 1, 2, 3]]  # crane, Turkey, turkey, rooster
    places = {
        truth: [first_right(birds, ranked, [[truth]], policy)[0] for policy in POLICIES]
        for truth in range(6)
    }
    assert places[0] == [0, 0, 0]
    assert places[1] == [1, 0, 0]  # the second crane comes after the first
    assert places[2] == [2, 1, 1]
    assert places[3] == [3, 1, 1]  # Turkey and turkey are one, and stand at its first place
    assert places[4] == [4, 2, 2]
    assert places[5] == [6, 6, 0]  # its name was not ranked; it shares hoist with crane


def test_images_with_several_classes_are_right_with_the_first_of_them(birds):
    assert first_right(birds, [[3, 0], [3, 0], [0, 1]], [[0, 4], [1], []], "strict") == [0, 2, 6]


def test_long_lists_are_read_in_parts(birds):
    ranked, truth = np.array([[1, 0], [0, 1]] * 40_000), [[2], [0]] * 40_000
    assert first_right(birds, ranked, truth, "strict") == [0] * 80_000


def test_k_answers_are_certain_however_names_are_merged(birds):
    key = AnswerKey(birds)
    assert [key.n_answers(policy) for policy in POLICIES] == [6, 4, 4]
    assert key.depth(1) == 2  # Turkey and turkey may both lead
    assert key.depth(4) == 5
    assert AnswerKey(from_names("x", ["a", "b", "c"], "x")).depth(2) == 2


def test_chance_counts_every_answer_that_would_be_right(birds):
    key, one = AnswerKey(birds), np.array([0])
    hoist, both = np.array([5]), (np.array([0, 0]), np.array([0, 4]))
    assert [key.chance(1, one, hoist, policy) for policy in POLICIES] == [1 / 6, 1 / 4, 1 / 2]
    assert key.chance(2, one, hoist, "accept_synonyms") == pytest.approx(5 / 6)  # 1 − C(2, 2) / 6
    assert key.chance(1, *both, "strict") == pytest.approx(2 / 6)
    assert key.chance(9, one, hoist, "strict") == 1
    owner, truth = np.array([0, 0, 1]), np.array([2, 3, 5])  # Turkey and turkey are one answer
    assert key.chance(1, owner, truth, "merge_duplicates") == 1 / 4
    assert key.chance(1, owner, truth, "strict") == pytest.approx((2 / 6 + 1 / 6) / 2)


def test_the_first_classes_are_spelt_out(birds):
    found = AnswerKey(birds).first_classes(np.array([[2, 0, 1], [1, 4, 0]]), 3)
    assert found.tolist() == [[3, 0, 1], [2, 5, 0]]  # row 0 is two cranes


def test_a_policy_that_is_not_known_is_refused(birds):
    with pytest.raises(ValueError, match="policy='lenient': no such policy; known: strict"):
        first_right(birds, [[0]], [[0]], "lenient")


def test_findings_are_counted_with_examples(birds):
    found = audit_label_space(birds, [["two Cranes", "a rooster"], ["a ROOSTER, no turkeys"]])
    assert {kind: facts["n"] for kind, facts in found.items()} == {
        **{"classes": 6, "duplicates": 2, "case variants": 2, "plural variants": 0},
        **{"synonyms": 5, "seen in captions": 5},
    }
    assert found["duplicates"]["examples"] == ["crane (n1) = crane (n2)"]
    assert found["case variants"]["examples"] == ["Turkey (n3) = turkey (n4)"]
    assert found["seen in captions"]["examples"][0] == "rooster (2 captions)"
    assert seen_in(birds, [["a crane", "a crane"]]).tolist() == [2, 2, 0, 0, 0, 0]


def test_plurals_of_another_class_are_found():
    found = audit_label_space(from_names("x", ["glass", "glasses", "berry", "berries", "gas"], "x"))
    assert found["plural variants"] == {"n": 4, "examples": ["glass = glasses", "berry = berries"]}


def test_every_class_of_the_release_is_there_with_its_words(imagenet):
    large, small = load_label_space("imagenet21k"), load_label_space("imagenet1k")
    assert [len(space) for space in (large, small, imagenet)] == [21_841, 1_000, 21_842]
    assert set(imagenet.ids) - set(large.ids) == {"n04399382"}
    assert set(small.ids) - set(large.ids) == {"n04399382"}
    # what was measured about these lists before this code was written
    strings = {id: ", ".join(names) for id, names in zip(large.ids, large.names, strict=True)}
    assert len(large) - len(set(strings.values())) == 603
    both = [({*a.ids}, {*a.names}, {*a.class_names}) for a in (large, small)]
    assert [len(a & b) for a, b in zip(*both, strict=True)] == [999, 998, 997]
    assert len({name.casefold() for name in large.class_names}) == 20_068
    tench = imagenet.ids.index("n01440764")
    assert imagenet.names[tench] == ("tench", "Tinca tinca")
    assert imagenet.definitions[tench].startswith("freshwater dace-like game fish")


def test_duplicates_of_the_large_space_are_counted(imagenet):
    found = audit_label_space(imagenet)
    counts = {kind: facts["n"] for kind, facts in found.items()}
    times = Counter(names[0] for names in imagenet.names)
    assert counts["duplicates"] == sum(n for n in times.values() if n > 1) == 3_186
    assert counts["synonyms"] > counts["duplicates"] > counts["case variants"]
    key = AnswerKey(imagenet)
    assert len(key.prompt_names) == 20_100
    assert key.n_answers("merge_duplicates") == 20_068


def test_classes_inside_others_are_counted(birds):
    tree = Hierarchy({"n2": ("n9",), "n9": ("n5",), "n5": ("n1",), "n4": ("n0",)})
    found = audit_label_space(birds, hierarchy=tree)["inside another"]
    examples = ["crane (n2) in rooster (n5)", "rooster (n5) in crane (n1)"]  # the nearest
    assert found == {"n": 2, "examples": examples}


def test_a_file_holds_the_space_and_its_hash(birds, tmp_path):
    path = birds.save(tmp_path / "birds.json")
    again = load_label_space(path)
    assert again == birds
    assert again.checksum == birds.checksum == json.loads(path.read_text())["sha256"]
    other = LabelSpace("birds", birds.ids, (("crane",), *birds.names[1:]), birds.definitions, "")
    assert other.checksum != birds.checksum


def test_a_file_that_was_changed_is_refused(birds, tmp_path):
    path = birds.save(tmp_path / "birds.json")
    path.write_text(path.read_text().replace("gobbler", "gobler"))
    with pytest.raises(ValueError, match=r"birds.json: its classes have sha256 .* the file says"):
        load_label_space(path)


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', '{"name":"x","source":"","classes":[3]}'])
def test_a_file_that_is_no_label_space_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="x.json: not a label space"):
        load_label_space(tmp_path / "x.json")


def test_a_list_of_names_is_a_label_space(tmp_path):
    (tmp_path / "mine.txt").write_text("red fox, fox\n\n  hen \n")
    space = load_label_space(tmp_path / "mine.txt")
    assert (space.name, space.ids) == ("mine", ("red fox", "hen"))
    assert space.names == (("red fox", "fox"), ("hen",))


@pytest.mark.parametrize(("name", "n"), [("cifar10", 10), ("cifar100", 100), ("caltech101", 101)])
def test_small_spaces_lie_beside_the_manifests(name, n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(load_label_space(name)) == n


def test_a_name_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'imagenet1' is not known; did you mean imagenet1k"):
        load_label_space("imagenet1")
    with pytest.raises(FileNotFoundError, match=r"'there/is/none.json': there is no such file"):
        load_label_space("there/is/none.json")


@pytest.mark.parametrize(
    ("ids", "names", "match"),
    [
        ((), (), "has no classes"),
        (("a", "b"), (("x",),), "2 ids, 1 lists of names and 2 definitions"),
        (("a", "a"), (("x",), ("y",)), "id 'a' occurs more than once"),
        (("a", "b"), (("x",), ()), "class 'b' has an empty name"),
        (("a", "b"), (("x",), ("y", "")), "class 'b' has an empty name"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(ids, names, match):
    with pytest.raises(ValueError, match=match):
        LabelSpace("x", ids, names, ("",) * len(ids), "")


def test_classes_of_another_set_are_found_by_id_then_name_then_synonym(birds):
    ids, names = ["n4", "b", "c", "d", "e"], ["crane", "Crane", "gobbler", "hoist", "eagle"]
    assert birds.match(ids, names) == [(3,), (0, 1), (3,), (0, 5), ()]
    assert birds.match(ids, names, {"hoist": ["n1"], "eagle": []})[3:] == [(0,), ()]
    with pytest.raises(ValueError, match="mapping: 'egle' is no class; did you mean eagle"):
        birds.match(ids, names, {"egle": []})
    with pytest.raises(ValueError, match="mapping: 'eagle' → 'n9' is not in 'birds'"):
        birds.match(ids, names, {"eagle": ["n9"]})


def test_a_union_keeps_every_class_once(birds):
    both = union(birds, from_names("more", ["hen", "n2"], "test"))
    assert both.ids == (*birds.ids, "hen")
    assert both.names[1] == ("crane",)
    assert both.name == "birds+more"


def test_the_label_map_of_the_photos_fits_the_large_space(imagenet):
    folder = Path(__file__).parents[2] / "data_manifests"
    mapping = json.loads((folder / "label_maps" / "caltech20_imagenet.json").read_text())
    matched = imagenet.match(list(mapping), list(mapping), mapping)
    assert sum(map(bool, matched)) == 19
    assert not matched[list(mapping).index("stop sign")]  # WordNet has no such thing


def test_official_lists_of_classes_are_label_spaces(tmp_path, monkeypatch):
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    manifest = {"name": "some_images", "kind": "open_images", **words}
    manifest |= {"class_list": "classes-trainable.txt", "class_descriptions": "classes.csv"}
    manifest["splits"] = {"test": {"labels": "labels.csv", "folder": "test"}}
    (tmp_path / "data_manifests").mkdir()
    path = tmp_path / "data_manifests" / "some_images.json"
    path.write_text(json.dumps(manifest))
    data = tmp_path / "data"
    data.mkdir()
    (data / "classes.csv").write_text("LabelName,DisplayName\n/m/01,Dog\n/m/02,Cat\n/m/03,Cat\n")
    (data / "classes-trainable.txt").write_text("/m/03\n/m/01\n")
    space = load_label_space(path, data_root=data)
    assert (space.ids, space.class_names) == (("/m/03", "/m/01"), ("Cat", "Dog"))
    monkeypatch.chdir(tmp_path)
    assert load_label_space("some_images", data_root=data) == space
    with pytest.raises(ValueError, match="manifest 'toy': kind 'toy' lists no classes"):
        load_label_space("toy")


def test_a_label_map_is_read_or_refused(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"dog": ["n1", "n2"], "eel": []}')
    assert read_label_map(path) == {"dog": ["n1", "n2"], "eel": []}
    assert read_label_map(None) is None
    for wrong in ("{", "[3]", '{"dog": 3}', '{"dog": [3]}', '{"dog": "n1"}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"map.json': must be JSON such as"):
            read_label_map(path)
