"""Counts against hand-made data, estimates against known truth, ledgers in img2dataset's format."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image

from zslkit.config import RunConfig
from zslkit.data.audit import (
    ImageFacts,
    _diagonal,
    _out_of_fold,
    expected_rivals,
    find_duplicates,
    look_at_images,
    mismatch_bound,
    score_pairs,
)
from zslkit.data.cache import Embeddings
from zslkit.data.ledger import (
    compare_ledgers,
    read_ledger,
    read_listing,
    summarise_ledger,
    write_ledger,
)
from zslkit.data.pairs import open_pairs
from zslkit.data.words import count_mentions, describe_captions, words
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.intervals import wilson_interval

# --- captions


def test_words_are_runs_of_letters_and_digits():
    assert words("The dog’s BALL, 2 sea-horses_ü!") == [
        *("the", "dog's", "ball", "2", "sea", "horses", "ü")
    ]


def test_captions_are_counted():
    facts = describe_captions([("A dog .", "a  DOG ."), ("a dog .", "two cats"), ("!",)])
    assert facts.per_image.tolist() == [2, 2, 1]
    assert facts.lengths.tolist() == [2, 2, 2, 2, 0]
    assert facts.vocabulary == {"a": 3, "dog": 3, "two": 1, "cats": 1}
    assert facts.repeated == {"a dog .": 2}  # twice for one image counts once
    assert facts.counts == {
        "images": 3,
        "captions": 5,
        "captions per image": pytest.approx(5 / 3),
        "words per caption": pytest.approx(8 / 5),
        "distinct words": 4,
        "share of words that occur once": 0.5,
        "captions of several images": 1,
    }


def test_class_names_are_found_as_words():
    captions = [
        ("A CAT and a cat", "category of catfish"),
        ("two cats on a sea-horse's back", "puppies, butterflies and foxes"),
        ("the sea; a horse",),
    ]
    names = ["cat", "sea horse", "puppy", "fox", "dog", "horse", "Sea Horse", "!"]
    assert count_mentions(captions, names) == {
        **{"cat": 2, "sea horse": 1, "puppy": 1, "fox": 1, "dog": 0, "horse": 2},
        **{"Sea Horse": 1, "!": 0},
    }
    assert count_mentions(captions, []) == {}


# --- images


def photo(seed, size):
    """A smooth random picture, as photographs are, so that its hash survives resizing."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Five files of one class: a picture, its copy in another format, its reduction, two more."""
    (tmp_path / "x").mkdir()
    photo(1, (96, 64)).save(tmp_path / "x" / "0.png")
    photo(1, (96, 64)).save(tmp_path / "x" / "1.bmp")
    photo(1, (96, 64)).resize((80, 60)).save(tmp_path / "x" / "2.jpg", quality=80)
    (tmp_path / "x" / "3.jpg").write_bytes(b"no image")
    photo(2, (50, 70)).save(tmp_path / "x" / "4.png")
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    content = {"name": "few", "kind": "image_folder", **words, "splits": {"all": {"folder": "."}}}
    (tmp_path / "few.json").write_text(json.dumps(content))
    return open_pairs(tmp_path / "few.json", "all")


def test_images_are_measured_and_broken_ones_named(folder):
    facts = look_at_images(folder)
    assert facts.rows.tolist() == [0, 1, 2, 4]
    assert facts.sizes.tolist() == [[96, 64], [96, 64], [80, 60], [50, 70]]
    assert facts.checksums[0] == facts.checksums[1] != facts.checksums[2]
    assert len(facts.broken) == 1
    assert "x/3.jpg" in facts.broken[0]
    assert "not a readable image" in facts.broken[0]


def test_a_hash_is_that_of_imagehash(folder):
    from imagehash import phash

    bits = phash(folder[4].image).hash.ravel()
    assert np.array_equal(np.unpackbits(look_at_images(folder).hashes[3:].view("u1")), bits)


def test_a_sample_is_drawn_with_the_seed(folder):
    drawn = {tuple(look_at_images(folder, 2, seed).rows) for seed in range(8)}
    assert len(drawn) > 1
    assert all(len(rows) <= 2 and list(rows) == sorted(rows) for rows in drawn)
    with pytest.raises(ValueError, match="max_images=0 must be at least 1, or None for all"):
        look_at_images(folder, 0)


def test_exact_and_near_duplicates_are_told_apart(folder):
    facts = look_at_images(folder)
    found = find_duplicates(facts)
    assert found[["first", "second"]].values.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found["exact"].tolist() == [True, False, False]
    assert found["distance"].max() <= 4
    across = find_duplicates(facts, facts, max_distance=0)
    assert {(i, i) for i in facts.rows} <= set(zip(across["first"], across["second"], strict=True))


def facts_of(hashes):
    n = len(hashes)
    sizes, checksums = np.ones((n, 2), np.int64), np.array([str(i) for i in range(n)])
    return ImageFacts(np.arange(n) + 7, sizes, checksums, np.array(hashes, np.uint64), ())


def test_all_pairs_are_compared_as_one_by_one():
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 40)
    flips = 1 << rng.integers(0, 63, (600, 2))
    hashes = [int(c) for c in centres[rng.integers(0, 40, 600)] ^ np.bitwise_xor.reduce(flips, 1)]
    a, b = facts_of(hashes), facts_of(hashes[:30])
    for first, second in ((a, None), (a, b)):
        other = a if second is None else b
        expected = {
            (i + 7, j + 7, distance)
            for i, x in enumerate(first.hashes.tolist())
            for j, y in enumerate(other.hashes.tolist())
            if (distance := (x ^ y).bit_count()) <= 4 and (second is not None or j > i)
        }
        found = find_duplicates(first, second, max_distance=4)
        rows = found[["first", "second", "distance"]].itertuples(index=False, name=None)
        assert set(rows) == expected
        assert len(found) == len(expected) > 100
        assert found["distance"].is_monotonic_increasing


def test_no_images_have_no_duplicates():
    assert len(find_duplicates(facts_of([]))) == 0


# --- how well captions fit


@pytest.fixture
def synthetic(monkeypatch):
    """Give images and captions features with a known linear relation; ask for caption noise."""
    rng = np.random.default_rng(0)
    n, features, texts = 400, rng.normal(size=(400, 24)), rng.normal(size=(24, 8))

    class Made:
        keys = np.array([f"{i}" for i in range(n)])
        captions = tuple((f"{i:03} a", f"{i:03} b") for i in range(n))

        def __len__(self):
            return n

    def tower_features(model, items, config, description):
        if not isinstance(items, list):
            return Embeddings(torch.from_numpy(features).float(), ("5",))
        owner = [int(text.split()[0]) for text in items]
        return Embeddings(torch.from_numpy(features[owner] @ texts).float(), ())

    monkeypatch.setattr("zslkit.data.audit.tower_features", tower_features)
    monkeypatch.setattr("zslkit.data.audit.build_dual_encoder", lambda config: torch.nn.Identity())

    def swap(share):
        pairs, chosen = Made(), np.arange(6, 6 + round(share * n))
        pairs.captions = list(pairs.captions)
        for i, j in zip(chosen, np.roll(chosen, 1), strict=True):
            pairs.captions[i] = Made.captions[j]
        return pairs, chosen

    return swap


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_swapped_captions_are_found_and_their_share_bounded(synthetic, share):
    pairs, chosen = synthetic(share)
    fit = score_pairs(pairs, RunConfig())
    swapped = np.isin(fit.rows, chosen)
    assert 5 not in fit.rows
    assert len(fit.own) == len(fit.rivals) == len(fit.captions) == 399
    assert fit.others.shape == (399, 32)
    assert all(text in pairs.captions[i] for i, text in zip(fit.rows, fit.captions, strict=True))
    assert fit.rivals[~swapped].mean() < 0.02
    bound = mismatch_bound(fit.rivals)
    assert bound["value"] == pytest.approx(share, abs=0.06)
    assert share <= bound["high"] < share + 0.13


def test_no_pair_is_judged_by_a_model_that_saw_it():
    """One fold written out: the ridge solution of the other folds alone, in closed form."""
    rng = np.random.default_rng(0)
    from sklearn.model_selection import KFold

    images, targets = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    drawn = targets + 1
    blocks = _out_of_fold(images, targets, drawn, RunConfig(seed=3))
    folds = list(KFold(5, shuffle=True, random_state=3).split(images))
    assert sorted(np.concatenate([rows for rows, *_ in blocks])) == list(range(30))
    for (rows, predicted, texts), (train, test) in zip(blocks, folds, strict=True):
        assert set(rows) == set(test)
        x = (images - images[train].mean(0)) / images[train].std(0)
        y = (targets - targets[train].mean(0)) / targets[train].std(0)
        weights = np.linalg.solve(x[train].T @ x[train] + 4 * np.eye(4), x[train].T @ y[train])
        assert predicted == pytest.approx(x[rows] @ weights)
        assert texts == pytest.approx(
            (drawn[rows] - targets[train].mean(0)) / targets[train].std(0)
        )


def test_rivals_are_the_share_of_captions_that_fit_as_well():
    images, texts = np.eye(3), np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]])
    own, others, rivals = _diagonal([(np.array([2, 0, 1]), images, 5 * texts)], 3)
    assert own[[2, 0, 1]] == pytest.approx([1, 0, math.sqrt(0.5)])
    assert rivals[[2, 0, 1]].tolist() == [0.5, 1, 0]  # a tie fits as well
    assert sorted(others[2]) == pytest.approx([0, 1])


def test_many_pairs_are_compared_in_parts():
    rng = np.random.default_rng(0)
    x, order = rng.normal(size=(2500, 4)), rng.permutation(2500)
    own, others, rivals = _diagonal([(order, x[order], x[order])], 2500)
    assert own == pytest.approx(np.ones(2500))
    assert others.shape == (2500, 32)
    assert rivals.max() == 0


def test_a_trained_model_judges_by_its_own_similarities(tiny_settings):
    config = RunConfig(**tiny_settings)
    pairs, model = open_pairs(config.manifest, "train"), build_dual_encoder(config).eval()
    fit = score_pairs(pairs, config, model)
    transform = model.image_transform(train=False)
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(pair.pixels) for pair in pairs]))
        similarity = (images @ model.encode_text(fit.captions).T).numpy()
    own = similarity.diagonal()
    assert fit.own == pytest.approx(own, abs=1e-5)
    ahead = [(np.delete(row, i) >= own[i] - 1e-6).mean() for i, row in enumerate(similarity)]
    assert fit.rivals == pytest.approx(ahead, abs=0.04)  # rounding may move one of 31
    assert fit.others.shape == (32, 31)
    again = score_pairs(pairs, config, model)
    assert np.array_equal(fit.others, again.others)


def test_too_few_pairs_cannot_be_folded(tiny_settings):
    config = RunConfig(**tiny_settings)
    pairs = open_pairs(config.manifest, "train", max_pairs=9)
    with pytest.raises(ValueError, match="9 readable pairs are too few: 5 folds need two each"):
        score_pairs(pairs, config)


def test_mismatches_are_bounded_from_above():
    """Of 1,000 pairs a share is mismatched, so uniform; right captions have rivals, but fewer."""
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rivals = np.concatenate([rng.random(300), rng.beta(0.5, 6, 700)])
        bound = mismatch_bound(rivals)
        assert bound["low"] <= bound["value"] <= bound["high"]
        covered += bound["high"] >= 0.3
    assert covered >= 36
    assert bound["n"] == 1000


def test_the_bound_at_its_ends():
    assert mismatch_bound(np.ones(50)) == {"value": 1, "low": 1, "high": 1, "n": 50}
    none = mismatch_bound(np.zeros(50))
    limit = wilson_interval(0, 50)["high"] / 0.95
    assert none == {"value": 0, "low": 0, "high": pytest.approx(limit), "n": 50}


def test_rivals_grow_with_the_batch():
    expected = expected_rivals([0.0, 0.5, 0.1, 0.2], [2, 11])
    assert expected[2]["value"] == pytest.approx(0.2)
    assert expected[11]["value"] == pytest.approx(2.0)
    assert expected[11]["high"] == pytest.approx(10 * expected[2]["high"])
    assert expected[2]["low"] < 0.2 < expected[2]["high"]
    assert expected[2]["n"] == 4


def test_wilson_interval_at_published_values():
    assert wilson_interval(0, 10)["high"] == pytest.approx(0.2775, abs=1e-4)
    assert wilson_interval(10, 10)["low"] == pytest.approx(0.7225, abs=1e-4)
    half = wilson_interval(5, 10)
    assert (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    z = 1.959963984540054  # the equation of Wilson (1927) at 3 of 20
    centre, half = (0.15 + z**2 / 40) / (1 + z**2 / 20), z / (1 + z**2 / 20)
    half *= math.sqrt(0.15 * 0.85 / 20 + z**2 / 1600)
    found = wilson_interval(3, 20)
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half), rel=1e-12)
    with pytest.raises(ValueError, match="a fraction of n=0 has no interval"):
        wilson_interval(0, 0)


# --- the ledger

LOST = (None, "failed_to_download", "HTTP Error 404: Not Found")


def shard(folder, number, rows, **columns):
    """Write NNNNN.parquet as img2dataset does; rows are url, caption, (sha256, status, error)."""
    records = []
    for place, (url, caption, (sha256, status, error)) in enumerate(rows):
        width = 256 if status == "success" else None
        records.append(
            {
                **{"caption": caption, "url": url, "key": f"{number:05}{place:04}"},
                **{"status": status, "error_message": error, "width": width, "height": width},
                **{"original_width": width, "original_height": width, "exif": "{}"},
                **{"sha256": sha256},
            }
        )
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame(records).drop(columns=columns.get("without", []))
    frame.to_parquet(folder / f"{number:05}.parquet")
    (folder / f"{number:05}_stats.json").write_text("{}")


def kept(letter):
    return letter * 64, "success", None


@pytest.fixture
def harvest(tmp_path):
    folder = tmp_path / "harvest"
    shard(folder, 0, [("u0", 'a "dog', kept("a")), ("u1", "NA", kept("b"))])  # no error at all
    rows = [("u2", None, LOST), ("u3", "c\nd", kept("c")), ("u4", "e", LOST)]
    shard(folder, 1, [*rows, ("u5", "f", (None, "failed_to_resize", None))])
    return folder


def test_a_ledger_is_read_from_all_shards(harvest):
    ledger = read_ledger(harvest)
    assert ledger["url"].tolist() == ["u0", "u1", "u2", "u3", "u4", "u5"]
    assert ledger["status"].eq("success").tolist() == [True, True, False, True, False, False]
    assert ledger["caption"].tolist()[1] == "NA"
    assert ledger["caption"].isna().tolist() == [False, False, True, False, False, False]
    assert ledger["width"].tolist()[:2] == [256, 256]
    assert ledger["width"].isna().sum() == 3
    assert ledger["key"].tolist()[2] == "000010000"


@pytest.mark.parametrize("name", ["one.csv", "deep/one.parquet"])
def test_a_ledger_as_one_file_says_the_same(harvest, tmp_path, name):
    ledger = read_ledger(harvest)
    path = write_ledger(ledger, tmp_path / name)
    assert_frame_equal(read_ledger(path), ledger)


def test_a_ledger_without_captions_and_checksums(tmp_path):
    shard(tmp_path / "h", 0, [("u0", "a", kept("a"))], without=["caption", "sha256"])
    ledger = read_ledger(tmp_path / "h")
    assert ledger["caption"].isna().all()
    assert ledger["sha256"].isna().all()


def test_survival_with_reasons_and_what_was_never_tried(harvest, tmp_path):
    (tmp_path / "list.tsv").write_text('a "dog\tu0\nb\tu1\nc\tu2\nx\tu9\n')
    ledger, listing = read_ledger(harvest), read_listing(tmp_path / "list.tsv")
    summary = summarise_ledger(ledger, listing)
    assert summary["share_survived"] == wilson_interval(3, 6)
    assert summary["reasons"] == {LOST[2]: 2, "failed_to_resize": 1}
    counts = {name: summary[name] for name in ("listed", "untried", "tried", "survived")}
    assert counts == {"listed": 4, "untried": 1, "tried": 6, "survived": 3}
    alone = summarise_ledger(ledger)
    assert (alone["listed"], alone["untried"]) == (6, 0)


def test_two_ledgers_are_compared_by_what_survives(harvest, tmp_path):
    rows = [("u0", "a", kept("a")), ("u0", "again", kept("a")), ("u1", "b", kept("z"))]
    rows += [("u3", "c", (None, "success", None)), ("u2", "d", kept("d")), ("u5", "f", LOST)]
    shard(tmp_path / "later", 0, rows)
    a, b = read_ledger(harvest), read_ledger(tmp_path / "later")
    assert compare_ledgers(a, b) == {
        **{"both": 3, "only_a": 0, "only_b": 1, "changed": 1, "unchecked": 1, "jaccard": 0.75}
    }
    same = compare_ledgers(a, a)
    assert (same["jaccard"], same["changed"], same["unchecked"]) == (1, 0, 0)
    lost = a[a["status"] != "success"]
    assert compare_ledgers(lost, lost)["jaccard"] == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'a "quote\thttp://u\n'),
        ("b.tsv", 'url\tcaption\nhttp://u\ta "quote\n'),
        ("c.csv", 'n,url,caption\n1,http://u,"a ""quote"\n'),
    ],
)
def test_a_listing_is_read_with_or_without_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    listing = read_listing(tmp_path / name)
    assert listing.to_dict("records") == [{"url": "http://u", "caption": 'a "quote'}]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file"):
        read_ledger(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no NNNNN\.parquet; a ledger is the output"):
        read_ledger(tmp_path)
    shard(tmp_path / "h", 3, [("u0", "a", kept("a"))], without=["status"])
    with pytest.raises(ValueError, match=r"00003\.parquet: no column 'status'; its columns: cap"):
        read_ledger(tmp_path / "h")
    (tmp_path / "h" / "00003.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"00003\.parquet: not a readable table"):
        read_ledger(tmp_path / "h")
    (tmp_path / "list.csv").write_text("link,caption\nu,a\n")
    with pytest.raises(ValueError, match=r"list\.csv: no column 'url'; its columns: link, caption"):
        read_listing(tmp_path / "list.csv")
    (tmp_path / "three.tsv").write_text("a\tb\tc\n")
    with pytest.raises(ValueError, match=r"three\.tsv: not a readable table"):
        read_listing(tmp_path / "three.tsv")
    with pytest.raises(ValueError, match=r"ledger\.txt: a ledger is written as \.parquet or \.csv"):
        write_ledger(pd.DataFrame(), tmp_path / "ledger.txt")
