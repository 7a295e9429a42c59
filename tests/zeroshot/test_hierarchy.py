import json
import math
import os
import pickle
import random
from itertools import product
from pathlib import Path

import networkx
import numpy as np
import pytest

from zslkit.zeroshot.hierarchy import (
    Hierarchy,
    error_distances,
    hierarchical_precision_at_k,
    read_hierarchy,
    read_is_a,
    read_open_images_hierarchy,
    read_tencent_hierarchy,
    read_wordnet,
)

#        entity
#       /      \
#   animal    artifact
#    / | \       |
#  dog cat pet  toy
#     \  \ /
#   puppy kitten       (cat and kitten: kitten has two parents, cat and pet)
PARENTS = {
    **{"animal": ("entity",), "artifact": ("entity",), "toy": ("artifact",)},
    **{"dog": ("animal",), "cat": ("animal",), "pet": ("animal",)},
    **{"puppy": ("dog",), "kitten": ("cat", "pet")},
}
SMALL = Hierarchy(PARENTS)
DOG, CAT = "n02084071", "n02121620"


def random_parents(n, seed):
    draw = random.Random(seed)
    return {
        str(i): tuple({str(draw.randrange(i)) for _ in range(draw.choice([1, 1, 1, 2, 3]))})
        for i in range(1, n)
    }


def through_ancestors(parents):
    """Distances by networkx: the best sum of two shortest ways up."""
    graph = networkx.DiGraph((a, b) for a, above in parents.items() for b in above)
    up = dict(networkx.all_pairs_shortest_path_length(graph))
    return {
        (a, b): min((up[a][c] + up[b][c] for c in up[a].keys() & up[b].keys()), default=math.inf)
        for a, b in product(graph, graph)
    }


def test_relations():
    assert SMALL.ancestors("kitten") == {"cat", "pet", "animal", "entity"}
    assert SMALL.ancestors("entity") == frozenset()
    assert SMALL.children("animal") == ("dog", "cat", "pet")
    assert SMALL.parents["kitten"] == ("cat", "pet")
    assert SMALL.parents["entity"] == ()  # named as a parent only
    assert ("entity" in SMALL, "horse" in SMALL, len(SMALL)) == (True, False, 9)
    with pytest.raises(ValueError, match="class 'horse' is not in the hierarchy of 9 classes"):
        SMALL.ancestors("horse")


def test_immutable_and_survives_pickling():
    with pytest.raises(TypeError):
        SMALL.parents["dog"] = ()
    with pytest.raises(AttributeError):
        SMALL.parents = {}
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


def test_distances_counted_by_hand():
    expected = {("dog", "dog"): 0, ("dog", "animal"): 1, ("dog", "cat"): 2, ("puppy", "kitten"): 4}
    expected |= {("toy", "kitten"): 5, ("puppy", "entity"): 3}
    # Neighbours in the graph through their common child, but not through an ancestor.
    expected |= {("cat", "pet"): 2}
    for (a, b), edges in expected.items():
        assert SMALL.distance(a, b) == SMALL.distance(b, a) == edges
    assert Hierarchy({"a": (), "b": ()}).distance("a", "b") == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_those_by_networkx(seed):
    parents = random_parents(60, seed)
    parents |= {"alone": (), "below": ("alone",)}
    hierarchy, expected = Hierarchy(parents), through_ancestors(parents)
    ids = list(hierarchy.parents)
    assert {(a, b): hierarchy.distance(a, b) for a, b in product(ids, ids)} == expected
    some = ids[::3]
    table = hierarchy.distances(some)
    for id in ids:
        assert table[id].tolist() == [expected[id, other] for other in some]


def test_a_circle_is_named():
    with pytest.raises(ValueError, match="has a circle: (a → b → c → a|b → c → a → b)$"):
        Hierarchy({"a": ("b",), "b": ("c",), "c": ("a", "d"), "x": ("a",), "d": ()})
    with pytest.raises(ValueError, match="circle: a → a"):
        Hierarchy({"a": ("a",)})


# --- metrics

CLASSES = ["dog", "cat", "kitten", "puppy", "toy"]


def hierarchical_precision_written_out(ranked, true, hierarchy, class_ids, k):
    """The paper's pseudocode: enlarge a radius until the set has at least k classes."""
    total = 0
    for answers, truth in zip(ranked, true, strict=True):
        correct, radius = set(), 0
        while len(correct) < k and radius < 100:
            correct |= {id for id in class_ids if hierarchy.distance(truth, id) == radius}
            radius += 1
        total += len(correct & set(answers[:k])) / k
    return total / len(true)


def test_hierarchical_precision_by_hand():
    # From dog: dog 0, puppy 1, cat 2, kitten 3, toy 4.
    ranked = [["puppy", "dog", "toy"], ["toy", "kitten", "dog"]]
    found = hierarchical_precision_at_k(ranked, ["dog", "dog"], SMALL, CLASSES, [1, 2, 3])
    # at 2: {dog, puppy}; at 3: {dog, puppy, cat}
    assert found == {1: 0.0, 2: (1 + 0) / 2, 3: (2 / 3 + 1 / 3) / 2}


def test_a_whole_radius_counts_even_if_the_set_grows_beyond_k():
    # From animal: dog and cat at 1, so that both are near at k = 1, animal not being a class.
    ranked = [["cat"], ["dog"], ["toy"], ["kitten"]]
    found = hierarchical_precision_at_k(ranked, ["animal"] * 4, SMALL, CLASSES, [1])
    assert found == {1: 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_hierarchical_precision_is_that_of_the_pseudocode(seed):
    rng, hierarchy = np.random.default_rng(seed), Hierarchy(random_parents(80, seed))
    ids = np.array(list(hierarchy.parents))
    classes = rng.permutation(ids)[:30]
    ranked = np.array([rng.permutation(classes)[:8] for _ in range(50)])
    true = rng.choice(ids, 50)
    found = hierarchical_precision_at_k(ranked, true, hierarchy, classes.tolist(), (1, 2, 5, 8))
    for k, share in found.items():
        expected = hierarchical_precision_written_out(ranked, true, hierarchy, classes, k)
        assert share == pytest.approx(expected, abs=1e-12)


def test_at_1_it_is_flat_hit_and_perfect_ranking_gives_1():
    distances = {truth: SMALL.distances(CLASSES)[truth] for truth in CLASSES}
    ranked = [[CLASSES[i] for i in distances[truth].argsort(kind="stable")] for truth in CLASSES]
    found = hierarchical_precision_at_k(ranked, CLASSES, SMALL, CLASSES, range(1, 6))
    assert found == dict.fromkeys(range(1, 6), 1.0)
    shifted = ranked[1:] + ranked[:1]
    hits = np.mean([row[0] == truth for row, truth in zip(shifted, CLASSES, strict=True)])
    assert hierarchical_precision_at_k(shifted, CLASSES, SMALL, CLASSES, [1])[1] == hits


def test_classes_that_cannot_be_reached_are_not_near():
    hierarchy = Hierarchy({"a": ("r",), "b": ("r",), "c": ("s",), "d": ("t",)})
    ranked = [["c", "b", "a"]]
    found = hierarchical_precision_at_k(ranked, ["a"], hierarchy, ["a", "b", "c"], [1, 3])
    assert found == {1: 0.0, 3: pytest.approx(2 / 3)}
    found = hierarchical_precision_at_k(ranked, ["d"], hierarchy, ["a", "b", "c"], [3])
    assert found == {3: 0.0}


def test_error_distances():
    ranked = [["dog", "puppy", "toy"], ["cat", "dog", "toy"], ["toy", "dog", "cat"]]
    found = error_distances(ranked, ["dog", "dog", "dog"], SMALL)
    assert found.tolist() == [1, 2, 4]
    assert math.isnan(error_distances([["dog"]], ["dog"], SMALL)[0])


def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"ranked_ids of shape \(1, 1\) must be .* of the 2 true"):
        error_distances([["dog"]], ["dog", "cat"], SMALL)
    with pytest.raises(ValueError, match=r"k=2 must lie between 1 and the 1 ranked classes"):
        hierarchical_precision_at_k([["dog"]], ["dog"], SMALL, CLASSES, [1, 2])
    with pytest.raises(ValueError, match="answer 'animal' is not one of the 5 class_ids"):
        hierarchical_precision_at_k([["animal"]], ["dog"], SMALL, CLASSES, [1])


# --- files

# (words, pointers, gloss): what wndb(5WN) describes, with hyponyms and other pointers among them
NOUNS = {
    "entity": (["entity"], [("~", "animal")], "that which is"),
    "animal": (["animal", "beast"], [("@", "entity"), ("~", "dog")], "moves | by itself"),
    "dog": (["dog", "domestic_dog"], [("@", "animal"), ("@", "pet"), ("#m", "pack")], "barks"),
    "pet": (["pet"], [("@", "animal")], "kept for company"),
    "pack": (["pack"], [("@", "entity"), ("%m", "dog")], "a group"),
    "Laika": (["Laika"], [("@i", "dog"), (";c", "entity")], "the first in orbit"),
}


def data_noun(path):
    """Write NOUNS as WordNet does, synsets named by the byte at which their line begins."""
    licence = "  1 This software and database is being provided to you  \n  2 by no one  \n"
    offsets = dict.fromkeys(NOUNS, 0)
    for _ in range(2):  # offsets have eight digits, so that a second pass has them right
        text = licence
        for name, (words, pointers, gloss) in NOUNS.items():
            offsets[name] = len(text)
            lemmas = " ".join(f"{word} 0" for word in words)
            links = "".join(f" {symbol} {offsets[to]:08} n 0000" for symbol, to in pointers)
            text += f"{offsets[name]:08} 03 n {len(words):02x} {lemmas} {len(pointers):03}{links}"
            text += f" | {gloss}  \n"
    path.write_text(text)
    return {name: f"n{offset:08}" for name, offset in offsets.items()}


def test_wordnet_file(tmp_path):
    path = tmp_path / "data.noun"
    ids = data_noun(path)
    hierarchy = read_wordnet(path)
    expected = {"entity": [], "animal": ["entity"], "dog": ["animal", "pet"], "pet": ["animal"]}
    expected |= {"pack": ["entity"], "Laika": ["dog"]}
    assert dict(hierarchy.parents) == {
        ids[name]: tuple(ids[parent] for parent in parents) for name, parents in expected.items()
    }
    assert path.read_bytes()[int(ids["dog"][1:]) :].startswith(f"{ids['dog'][1:]} 03 n 02".encode())


def test_a_wordnet_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "data.noun"
    ids = data_noun(path)
    whole = path.read_text()
    for end in (-25, -40, -60, -75):  # in the gloss mark, the pointers and the words
        path.write_text(whole[:end])
        with pytest.raises(ValueError, match=r"data\.noun, line 8: cut short, or no noun: '0"):
            read_wordnet(path)
    path.write_text("".join(line for line in whole.splitlines(True) if " 03 n 01 pet " not in line))
    message = f"{ids['dog']} is below {ids['pet']}, which the file lacks"
    with pytest.raises(ValueError, match=message):
        read_wordnet(path)


@pytest.fixture(scope="module")
def wordnet():
    path = Path(os.environ.get("ZSLKIT_WORDNET", "/usr/share/wordnet/data.noun"))
    if not path.is_file():
        pytest.skip("no WordNet 3.0: apt-get install wordnet-base, or ZSLKIT_WORDNET=data.noun")
    return read_wordnet(path)


def test_wordnet_holds_every_imagenet_class_under_one_root(wordnet):
    from timm.data import ImageNetInfo

    assert len(wordnet) == 82_115  # WordNet 3.0's own count of noun synsets, wnstats(7WN)
    for subset in ("imagenet-22k", "imagenet-1k"):
        ids = ImageNetInfo(subset).label_names()
        assert [id for id in ids if id not in wordnet] == []
        assert {"n00001740"} == {
            root for id in ids for root in wordnet.heights(id) if not wordnet.parents[root]
        }


def test_wordnet_distances_followed_by_hand(wordnet):
    # dog → canine → carnivore ← feline ← cat
    steps = [DOG, "n02083346", "n02075296", "n02120997", CAT]
    assert steps[1] in wordnet.parents[steps[0]]
    assert steps[2] in wordnet.parents[steps[1]]
    assert steps[2] in wordnet.parents[steps[3]]
    assert steps[3] in wordnet.parents[steps[4]]
    assert wordnet.distance(DOG, CAT) == 4
    assert wordnet.distance(DOG, "n02083346") == 1
    assert wordnet.parents[DOG] == ("n02083346", "n01317541")  # domestic animal


def test_wordnet_error_distances(wordnet):
    assert error_distances([[CAT, DOG], [DOG, CAT]], [DOG, DOG], wordnet).tolist() == [4, 4]
    found = hierarchical_precision_at_k([[CAT, DOG]], [DOG], wordnet, [DOG, CAT], [1, 2])
    assert found == {1: 0.0, 2: 1.0}


def test_is_a_file(tmp_path):
    path = tmp_path / "wordnet.is_a.txt"
    path.write_text("".join(f"{p} {c}\n" for c, above in PARENTS.items() for p in above))
    assert read_is_a(path) == SMALL
    path.write_text("entity animal\nanimal\n")
    with pytest.raises(ValueError, match=r"is_a\.txt, line 2: 'animal' must be 'parent child'"):
        read_is_a(path)


def test_open_images_file(tmp_path):
    head = {"LabelName": "head", "Part": [{"LabelName": "eye"}]}
    person = {"LabelName": "person", "Part": [head], "Subcategory": [{"LabelName": "girl"}]}
    toy = {"LabelName": "toy", "Subcategory": [{"LabelName": "girl"}, {"LabelName": "head"}]}
    tree = {"LabelName": "/m/0bl9f", "Subcategory": [person, toy]}
    path = tmp_path / "bbox_labels_600_hierarchy.json"
    path.write_text(json.dumps(tree))
    hierarchy = read_open_images_hierarchy(path)
    assert hierarchy.parents["girl"] == ("person", "toy")
    assert hierarchy.parents["head"] == ("toy",)  # a part of a person is no person
    assert hierarchy.parents["eye"] == ()
    assert hierarchy.distance("head", "girl") == 2
    for text in (json.dumps(tree)[:-4], '{"Subcategory": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="cut short, or no hierarchy of LabelNames"):
            read_open_images_hierarchy(path)


def test_a_hierarchy_is_read_whatever_file_holds_it(tmp_path):
    path = tmp_path / "a"
    ids = data_noun(path)
    assert read_hierarchy(path) == read_wordnet(path)
    path.write_text(path.read_text().split("no one  \n")[1])  # without the licence
    assert ids["dog"] in read_hierarchy(path)
    path.write_text("".join(f"{p} {c}\n" for c, above in PARENTS.items() for p in above))
    assert read_hierarchy(path) == SMALL
    path.write_text(json.dumps({"LabelName": "a", "Subcategory": [{"LabelName": "b"}]}))
    assert read_hierarchy(path).parents["b"] == ("a",)
    path.write_text(CATEGORIES)
    assert DOG in read_hierarchy(path)
    path.write_text("")
    assert len(read_hierarchy(path)) == 0
    path.write_text("alone\n")
    with pytest.raises(ValueError, match="'alone' must be 'parent child'"):
        read_hierarchy(path)


CATEGORIES = f"""category_index\tcategory_id\tindex_of_parent_category\tcategory name
0\tn00015388\t-1\tanimal, animate being
1\t{DOG}\t0\tdog, "domestic" dog
2\tn11425580\t-1\tatmospheric phenomenon
3\tn02085374\t1\ttoy dog
"""


def test_tencent_file(tmp_path):
    path = tmp_path / "dictionary_and_semantic_hierarchy.txt"
    path.write_text(CATEGORIES)
    hierarchy = read_tencent_hierarchy(path)
    assert hierarchy.ancestors("n02085374") == {DOG, "n00015388"}
    assert hierarchy.distance("n02085374", "n11425580") == math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((CATEGORIES[:-end], "line 5: '3.*' is cut short") for end in (9, 11, 14, 19)),
        (CATEGORIES.replace("2\tn1", "7\tn1"), r"line 4: '7.tn11425580.*out of order"),
        (CATEGORIES.replace("3\tn02085374\t1", "3\tn02085374\t4"), "line 5: .*is missing"),
        (CATEGORIES.partition("\n")[2], "first line must be category_index<tab>category_id"),
        (CATEGORIES.partition("\n")[0], "and rows follow"),
        ("", "first line must be category_index"),
    ],
)
def test_a_tencent_file_that_is_damaged_is_named(tmp_path, text, message):
    path = tmp_path / "categories.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"categories\.txt.*{message}"):
        read_tencent_hierarchy(path)
