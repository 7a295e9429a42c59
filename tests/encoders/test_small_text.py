from zlib import crc32

import pytest
import torch

from zslkit.encoders.small_text import SmallTextEncoder, word_buckets

TEXTS = ["a redstar", "", "a large dotted blue ring on a cloudy background", "star"]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SmallTextEncoder()


def test_buckets_are_the_same_in_every_process_and_on_every_machine():
    pieces = ["<red>", "<re", "red", "ed>", "<red", "red>"]
    assert word_buckets("red", 8192) == [crc32(piece.encode()) % 8192 for piece in pieces]
    assert word_buckets("red", 8192) == [4174, 2885, 8079, 977, 7832, 3528]
    assert word_buckets("", 8192) == [crc32(b"<>") % 8192]
    assert word_buckets("a", 8192) == [crc32(b"<a>") % 8192]
    assert len(word_buckets("étoile", 8192)) == 1 + 6 + 5 + 4


def test_a_compound_shares_buckets_with_its_parts():
    compound = {*word_buckets("redstar", 2**31)}
    assert len(compound & {*word_buckets("red", 2**31)}) >= 3
    assert len(compound & {*word_buckets("star", 2**31)}) >= 5
    assert not compound & {*word_buckets("moon", 2**31)}


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_padding_and_company_do_not_change_a_feature(n_layers, training):
    torch.manual_seed(1)
    encoder = SmallTextEncoder(n_layers=n_layers).train(training)
    with torch.no_grad():
        together = encoder(TEXTS)
        alone = torch.cat([encoder([text]) for text in TEXTS])
    assert together.shape == (4, encoder.feature_dim)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_feature_without_layers_is_the_mean_over_words_written_out():
    encoder = SmallTextEncoder(feature_dim=8, n_buckets=50, n_layers=0, n_heads=2)
    table = encoder.subwords.weight
    words = [table[word_buckets(word, 50)].mean(0) for word in ("blue", "ring", "blue")]
    norms = [encoder.norm(w + p) for w, p in zip(words, encoder.positions, strict=False)]
    torch.testing.assert_close(encoder(["Blue, ring; blue!"])[0], sum(norms) / 3)


def test_case_and_punctuation_are_ignored_but_words_and_their_order_are_not(encoder):
    first, same, other, swapped = encoder(
        ["a red star", "A red -- STAR.", "a red ring", "a star red"]
    )
    torch.testing.assert_close(first, same)
    assert (first - other).norm() > 0.1
    assert (first - swapped).norm() > 1e-3


def test_texts_are_cut_to_max_tokens():
    encoder = SmallTextEncoder(max_tokens=3)
    long, cut = encoder(["one two three four", "one two three"])
    torch.testing.assert_close(long, cut)
    longer = SmallTextEncoder(max_tokens=4)(["one two three four", "one two three"])
    assert (longer[0] - longer[1]).norm() > 1e-3


def test_an_empty_text_has_a_finite_feature_of_its_own(encoder):
    features = encoder(["", "...", "a"])
    assert features.isfinite().all()
    torch.testing.assert_close(features[0], features[1])
    assert (features[0] - features[2]).norm() > 0.1


def test_gradients_reach_every_parameter_but_only_the_words_in_use():
    encoder = SmallTextEncoder(n_buckets=512)
    encoder(["red star", "a"]).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    used = {bucket for word in ("red", "star", "a") for bucket in word_buckets(word, 512)}
    assert {*encoder.subwords.weight.grad.abs().sum(1).nonzero().flatten().tolist()} == used


def test_equal_seeds_give_equal_features_and_encoding_draws_nothing(encoder):
    torch.manual_seed(0)
    again = SmallTextEncoder()
    state = torch.get_rng_state()
    assert torch.equal(encoder(TEXTS), again(TEXTS))
    assert torch.equal(encoder(TEXTS), encoder(TEXTS))  # words now come from the cache
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cache_is_no_part_of_the_state(encoder):
    encoder(TEXTS)
    copy = SmallTextEncoder()
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy(TEXTS), encoder(TEXTS))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="feature_dim=10 must be a multiple of n_heads=4"):
        SmallTextEncoder(feature_dim=10)
