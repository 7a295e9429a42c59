import numpy as np
import pytest

from zslkit.data.noise import plant, read_indices
from zslkit.data.pairs import open_pairs

COLOURS, THINGS = ("red", "green", "blue", "white"), ("dog", "cat", "bus", "ball", "kite")
CAPTIONS = [
    (f"a {a} {b} on a field", f"one {a}", f"the {b} of {a}") for a in COLOURS for b in THINGS
]
TEXTS = [text for group in CAPTIONS for text in group]


def planted(kind, share=0.5, seed=0, **more):
    return plant(CAPTIONS, share, kind, np.random.default_rng(seed), **more)


def texts_of(found):
    return [text for group in found.captions for text in group]


@pytest.mark.parametrize("kind", ["caption", "similar"])
def test_single_captions_change_places(kind):
    found = planted(kind)
    moved = np.array(texts_of(found)) != np.array(TEXTS)
    assert sorted(texts_of(found)) == sorted(TEXTS)
    assert [len(group) for group in found.captions] == [3] * 20
    assert 24 <= found.wrong.sum() <= 30
    assert not moved[~found.wrong & ~_moved_within(found)].any()
    assert found.images.tolist() == [bool(row.any()) for row in found.wrong.reshape(20, 3)]


def _moved_within(found):
    """Places whose caption came from the same image: not wrong."""
    return np.array([text in CAPTIONS[i // 3] for i, text in enumerate(texts_of(found))])


def test_similar_captions_share_more_words_than_any():
    rng = np.random.default_rng(0)
    words = {topic: [f"{topic}{i}" for i in range(9)] for topic in "abcdefgh"}
    texts = [" ".join(rng.choice(words[topic], 5)) for topic in "abcdefgh" * 25]
    captions = [(text,) for text in texts]

    def overlap(kind):
        found = plant(captions, 0.5, kind, np.random.default_rng(0))
        both = zip(texts_of(found), texts, found.wrong, strict=True)
        return np.mean([len({*a.split()} & {*b.split()}) for a, b, wrong in both if wrong])

    assert overlap("similar") > 1.5 * overlap("caption")


def test_half_of_the_words_go():
    found = planted("words")
    assert found.wrong.sum() == 30
    for now, before, wrong in zip(texts_of(found), TEXTS, found.wrong, strict=True):
        kept, words = now.split(), before.split()
        assert len(kept) == (max(1, len(words) // 2) if wrong else len(words))
        left = iter(words)
        assert all(word in left for word in kept)  # in their order


def test_boilerplate_is_one_text():
    found = planted("boilerplate", 0.25)
    assert {text for text, wrong in zip(texts_of(found), found.wrong, strict=True) if wrong} == {
        "a photo from the web"
    }
    assert found.wrong.sum() == 15


def test_equal_seeds_plant_equally():
    for kind in ("caption", "similar", "words"):
        assert texts_of(planted(kind)) == texts_of(planted(kind))
        assert texts_of(planted(kind)) != texts_of(planted(kind, seed=1))


def test_no_share_changes_nothing():
    found = planted("words", 0.0)
    assert texts_of(found) == TEXTS
    assert not found.wrong.any()


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_published_indices_say_where_captions_stand(tmp_path, suffix):
    order = np.roll(np.arange(60), 4)
    path = tmp_path / f"noise{suffix}"
    np.save(path, order) if suffix == ".npy" else np.savetxt(path, order, fmt="%d")
    found = planted("caption", indices=read_indices(path))
    assert texts_of(found) == [TEXTS[i] for i in order]
    assert found.wrong.all()


def test_what_is_out_of_question_is_refused(tmp_path):
    with pytest.raises(ValueError, match="caption_noise_kind='sparse': known here are caption"):
        planted("sparse")
    for indices in (np.arange(59), np.arange(1, 61), np.arange(60) / 2):
        with pytest.raises(ValueError, match="caption_noise_file: needs 60 whole numbers from 0"):
            planted("caption", indices=indices)
    path = tmp_path / "noise.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="caption_noise_file=.*noise.txt.*: must hold whole numb"):
        read_indices(path)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_image_noise_is_still_one_cycle_over_images(tiny_settings, share):
    """The draws of the runs that were published before there were other kinds."""
    clean = open_pairs(tiny_settings["manifest"], "train")
    noisy = open_pairs(tiny_settings["manifest"], "train", caption_noise=share, seed=3)
    chosen = np.random.default_rng(3).permutation(32)[: round(share * 32)]
    expected = list(clean.captions)
    for place, source in zip(chosen, np.roll(chosen, 1), strict=True):
        expected[place] = clean.captions[source]
    assert list(noisy.captions) == expected
    assert np.flatnonzero(noisy.swapped).tolist() == sorted(chosen)
    sizes = [len(group) for group in noisy.captions]
    assert noisy.wrong.tolist() == np.repeat(noisy.swapped, sizes).tolist()


def test_kinds_reach_the_pairs(tiny_settings, tmp_path):
    def opened(**noise):
        return open_pairs(tiny_settings["manifest"], "train", **noise)

    clean = opened()
    boiler = opened(caption_noise=0.5, caption_noise_kind="boilerplate")
    assert boiler.wrong.mean() == pytest.approx(0.5, abs=0.02)
    assert boiler.fingerprint != clean.fingerprint
    assert boiler.image_fingerprint == clean.image_fingerprint
    path = tmp_path / "noise.npy"
    np.save(path, np.roll(np.arange(len(clean.wrong)), 1))
    published = opened(caption_noise_file=path)
    assert published.captions[1][0] == clean.captions[0][-1]
