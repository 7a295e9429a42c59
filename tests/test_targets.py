import math

import numpy as np
import ot
import pytest
import torch

from zslkit.data.kinds import SOFT_TARGETS
from zslkit.losses import distillation_loss
from zslkit.targets import (
    fuse_similarities,
    label_smoothing_targets,
    one_hot_targets,
    progressive_targets,
    remove_diagonal,
    sinkhorn,
    target_agreement,
    target_statistics,
    teacher_targets,
    transport_targets,
)


def random_embeddings(n, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=-1)


def assert_rows_are_probabilities(targets):
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))


def test_label_smoothing_by_hand():
    expected = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]])
    torch.testing.assert_close(label_smoothing_targets(2, 4, 0.3, offset=1), expected)


def test_label_smoothing_of_a_single_candidate_keeps_all_mass():
    assert label_smoothing_targets(1, 1, 0.3).tolist() == [[1.0]]


def test_teacher_targets_written_out():
    similarity = random_embeddings(3) @ random_embeddings(5, seed=1).T
    expected = []
    for row in similarity.double().tolist():
        weights = [math.exp(s / 0.1) for s in row]
        expected.append([w / sum(weights) for w in weights])
    torch.testing.assert_close(
        teacher_targets(similarity, 0.1), torch.tensor(expected), rtol=1e-5, atol=1e-6
    )


def test_teacher_temperature_runs_from_one_hot_to_uniform():
    similarity = random_embeddings(4) @ random_embeddings(4, seed=1).T
    cold, warm = teacher_targets(similarity, 1e-4), teacher_targets(similarity, 1e4)
    torch.testing.assert_close(cold.max(dim=1).values, torch.ones(4))
    torch.testing.assert_close(warm, torch.full((4, 4), 0.25), rtol=1e-3, atol=1e-3)


def test_self_similarity_left_in_makes_targets_one_hot():
    """Trap: the masked terms leave mass for other pairs, the unmasked ones do not."""
    image, text = random_embeddings(16, 64), random_embeddings(16, 64, seed=1)
    cross, vv, tt = image @ text.T, image @ image.T, text @ text.T
    masked = teacher_targets(fuse_similarities(cross, vv, tt, 1.0, 1.0), 0.1)
    unmasked = teacher_targets(cross + vv + tt, 0.1)
    assert target_statistics(unmasked)["self_mass"] > 0.99
    assert target_statistics(masked)["self_mass"] < 0.5


@pytest.mark.parametrize("offset", [0, 3])
def test_fused_similarities_by_hand(offset):
    cross, vv, tt = (torch.rand(3, 6) for _ in range(3))
    fused = fuse_similarities(cross, vv, tt, 0.5, 2.0, offset)
    for i in range(3):
        for j in range(6):
            own = j == offset + i
            expected = cross[i, j] + (0 if own else 0.5 * vv[i, j] + 2 * tt[i, j])
            assert fused[i, j].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("transport", [sinkhorn, transport_targets])
def test_a_better_match_gets_more_mass(transport):
    """Trap: a cost where a score is expected inverts the targets."""
    plan = transport(torch.eye(4), 0.15, 50)
    assert (plan.argmax(dim=1) == torch.arange(4)).all()


@pytest.mark.parametrize("epsilon", [0.05, 0.15, 1.0])
@pytest.mark.parametrize("shape", [(6, 6), (5, 9)])
def test_sinkhorn_equals_pot(epsilon, shape):
    similarity = random_embeddings(shape[0]) @ random_embeddings(shape[1], seed=1).T
    rows, columns = (np.full(n, 1 / n) for n in shape)
    expected = ot.sinkhorn(
        rows, columns, -similarity.double().numpy(), epsilon, numItermax=20000, stopThr=1e-12
    )
    plan = sinkhorn(similarity, epsilon, 2000)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_few_iterations_equal_sinkhorn_in_the_plain_domain_written_out():
    similarity = (random_embeddings(5) @ random_embeddings(5, seed=1).T).double()
    plan = torch.exp(similarity / 0.15)
    for _ in range(5):
        plan = plan / plan.sum(dim=1, keepdim=True) / 5
        plan = plan / plan.sum(dim=0, keepdim=True) / 5
    torch.testing.assert_close(sinkhorn(similarity, 0.15, 5).double(), plan, rtol=1e-4, atol=1e-7)


def test_marginals():
    plan = sinkhorn(torch.randn(4, 7, generator=torch.Generator().manual_seed(0)), 0.5, 200)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((7,), 1 / 7))
    torch.testing.assert_close(plan.sum(dim=1), torch.full((4,), 1 / 4), rtol=1e-4, atol=1e-5)


def test_tiny_epsilon_does_not_overflow():
    """Trap: exp(similarity / epsilon) is infinite in float32 beyond 88."""
    targets = transport_targets(torch.eye(4), 1e-4, 5)
    assert torch.isinf(torch.exp(torch.eye(4) / 1e-4)).any()
    torch.testing.assert_close(targets, torch.eye(4))


def test_permuting_candidates_permutes_the_targets():
    similarity = random_embeddings(6) @ random_embeddings(6, seed=1).T
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    for make in (lambda s: teacher_targets(s, 0.1), lambda s: transport_targets(s, 0.15, 5)):
        torch.testing.assert_close(make(similarity[:, order]), make(similarity)[:, order])


def test_progressive_keeps_the_trusted_pairs_one_hot():
    similarity = torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.1, 0.0], [0.0, 0.0, 0.5]])
    targets = progressive_targets(similarity, 0.2, 2 / 3)
    soft = teacher_targets(similarity, 0.2)
    assert targets[0].tolist() == [1, 0, 0]
    assert targets[2].tolist() == [0, 0, 1]
    assert torch.equal(targets[1], soft[1])


def test_progressive_ends_are_one_hot_and_teacher_targets():
    similarity = random_embeddings(4) @ random_embeddings(8, seed=1).T
    assert torch.equal(progressive_targets(similarity, 0.1, 1.0, 4), one_hot_targets(4, 8, 4))
    assert torch.equal(progressive_targets(similarity, 0.1, 0.0), teacher_targets(similarity, 0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda s: teacher_targets(s, 0.05),
        lambda s: transport_targets(s, 0.15, 5),
        lambda s: progressive_targets(s, 0.05, 0.5),
        lambda s: label_smoothing_targets(*s.shape, 0.1),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 4), (3, 9)])
def test_every_kind_gives_rows_that_sum_to_one(make, shape):
    assert_rows_are_probabilities(make(random_embeddings(shape[0]) @ random_embeddings(shape[1]).T))


def test_half_precision_input_is_computed_in_float32():
    similarity = random_embeddings(4) @ random_embeddings(4, seed=1).T
    assert teacher_targets(similarity.half(), 0.01).dtype == torch.float32
    assert transport_targets(similarity.half(), 0.001, 5).isfinite().all()


def test_statistics_at_the_limits():
    one_hot = target_statistics(one_hot_targets(3, 6, 3), offset=3)
    assert one_hot == {"self_mass": 1.0, "target_entropy": 0.0}
    uniform = target_statistics(torch.full((3, 6), 1 / 6))
    assert uniform["self_mass"] == pytest.approx(1 / 6)
    assert uniform["target_entropy"] == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_smoothing_targets(2, 2, 1.0), r"smoothing=1.0 must be in \[0, 1\)"),
        (lambda: label_smoothing_targets(2, 2, -0.1), r"smoothing=-0.1 must be in \[0, 1\)"),
        (lambda: teacher_targets(torch.eye(2), 0.0), "temperature=0.0 must be above 0"),
        (lambda: sinkhorn(torch.eye(2), -1.0, 5), "epsilon=-1.0 must be above 0"),
        (lambda: sinkhorn(torch.eye(2), 1.0, 0), "n_iterations=0 must be at least 1"),
        (lambda: progressive_targets(torch.eye(2), 1.0, 2.0), "trusted_share=2.0 must be in"),
        (lambda: progressive_targets(torch.eye(2), 1.0, -0.1), "trusted_share=-0.1 must be in"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_agreement_is_the_correlation_beside_the_own_pair():
    similarity = torch.tensor([[9.0, 0.1, 0.2, 0.4], [0.3, -9.0, 0.1, 0.0]])
    targets = teacher_targets(similarity.clamp(-1, 1), 0.5)
    assert target_agreement(targets, similarity) == pytest.approx(1, abs=1e-5)
    assert target_agreement(teacher_targets(-similarity, 0.5), similarity) == pytest.approx(-1)
    noisy = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    others = [[1, 2, 3], [0, 2, 3]]
    expected = [
        np.corrcoef(noisy[i, others[i]].log().numpy(), similarity[i, others[i]].numpy())[0, 1]
        for i in range(2)
    ]
    assert target_agreement(noisy, similarity) == pytest.approx(np.mean(expected), rel=1e-4)


def test_targets_that_do_not_vary_neither_agree_nor_disagree():
    similarity = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert target_agreement(label_smoothing_targets(3, 3, 0.2), similarity) == 0
    assert target_agreement(torch.ones(1, 1), torch.ones(1, 1)) == 0
    moved = target_agreement(teacher_targets(similarity, 0.1), similarity, offset=0)
    assert moved == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["teacher", "transport"])
def test_without_the_diagonal_the_own_caption_has_no_mass_and_the_rest_keep_their_order(kind):
    """As OTTER publishes it: 100 off the diagonal of either intra-modal similarity."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(8, 4, generator=generator), dim=1)
        for _ in range(2)
    )
    cross, vv, tt = image @ text.T, image @ image.T, text @ text.T
    published = cross + (vv - 100 * torch.eye(8)) + (tt - 100 * torch.eye(8))
    ours = remove_diagonal(fuse_similarities(cross, vv, tt, 1.0, 1.0))
    give = {"teacher": lambda s: teacher_targets(s, 0.1), "transport": transport_targets}[kind]
    assert torch.allclose(give(ours), give(published), atol=1e-6)
    assert give(ours).diagonal().max() == 0
    assert torch.allclose(give(ours).sum(dim=1), torch.ones(8))


def test_label_smoothing_alone_is_that_of_the_field():
    logits, smoothing, n = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), 0.2, 6
    ours = distillation_loss(logits, label_smoothing_targets(n, n, smoothing))
    field = torch.nn.functional.cross_entropy(
        logits, torch.arange(n), label_smoothing=smoothing * n / (n - 1)
    )
    assert ours.item() == pytest.approx(field.item(), 1e-6)


def test_of_equally_trusted_pairs_the_first_stay_one_hot():
    """Sorting that is not stable takes any of them, from some rows on."""
    targets = progressive_targets(torch.zeros(80, 80), 0.1, 0.5)
    assert torch.equal(targets[:40], torch.eye(80)[:40])
    torch.testing.assert_close(targets[40:], torch.full((40, 80), 1 / 80))


def test_transport_targets_are_otters_unless_others_are_asked_for():
    similarity = random_embeddings(6) @ random_embeddings(6, seed=1).T
    assert torch.equal(transport_targets(similarity), transport_targets(similarity, 0.15, 5))


def test_progressive_targets_alone_begin_one_hot():
    """So the coach does not call one-hot targets a fault of theirs at first."""
    found = {name for name, kind in SOFT_TARGETS.items() if kind.begins_one_hot}
    assert found == {"progressive"}
