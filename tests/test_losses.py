import math

import pytest
import torch

from zslkit.losses import contrastive_loss, distillation_loss, sigmoid_loss


def cross_entropy_written_out(logits, targets):
    """Term by term in float64: slow and obvious."""
    total = 0.0
    for row, target in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        log_z = math.log(sum(map(math.exp, row)))
        total += sum(t * (log_z - x) for x, t in zip(row, target, strict=True))
    return total / len(logits)


def random_case(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator) * 3
    return logits, torch.randn(shape, generator=generator).softmax(dim=-1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (6, 6)])
def test_distillation_matches_the_formula_written_out(shape):
    logits, targets = random_case(shape)
    expected = cross_entropy_written_out(logits, targets)
    assert distillation_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_distillation_is_the_kl_divergence_up_to_the_entropy_of_the_targets():
    logits, targets = random_case((4, 6))
    kl = (targets * (targets.log() - logits.log_softmax(-1))).sum(-1).mean()
    entropy = -(targets * targets.log()).sum(-1).mean()
    assert distillation_loss(logits, targets).item() == pytest.approx((kl + entropy).item(), 1e-5)


def test_no_gradient_reaches_the_teacher():
    logits, raw = random_case((4, 6))
    raw.requires_grad_()
    logits.requires_grad_()
    distillation_loss(logits, raw.softmax(-1)).backward()
    assert raw.grad is None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(("size", "offset", "n"), [(1, 0, 1), (4, 0, 4), (3, 3, 9), (2, 6, 8)])
def test_contrastive_matches_the_formula_written_out(size, offset, n):
    per_image, _ = random_case((size, n))
    per_text = torch.flip(per_image, dims=[1]) / 2
    one_hot = torch.eye(n)[offset : offset + size]
    expected = (
        cross_entropy_written_out(per_image, one_hot) + cross_entropy_written_out(per_text, one_hot)
    ) / 2
    loss = contrastive_loss(per_image, per_text, offset)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_text_direction_is_the_transpose_unless_given():
    logits, _ = random_case((5, 5))
    assert contrastive_loss(logits) == contrastive_loss(logits, logits.T)


def test_ranks_that_forget_their_offset_get_another_loss():
    """Trap: the positive of local row i sits at column rank x B + i."""
    logits, _ = random_case((3, 9))
    assert contrastive_loss(logits, logits, 3) != contrastive_loss(logits, logits, 0)


def test_an_untrained_model_pays_the_logarithm_of_the_batch():
    assert contrastive_loss(torch.zeros(8, 8)).item() == pytest.approx(math.log(8))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        contrastive_loss(torch.zeros(2, 3))
    for offset in (-1, 4):
        message = rf"offset={offset} puts a pair outside the 5 candidates; .*must be in \[0, 3\]"
        with pytest.raises(ValueError, match=message):
            contrastive_loss(torch.zeros(2, 5), torch.zeros(2, 5), offset=offset)


@pytest.mark.parametrize(("size", "offset", "n"), [(1, 0, 1), (4, 0, 4), (3, 3, 9), (2, 6, 8)])
def test_sigmoid_matches_the_formula_written_out(size, offset, n):
    logits, _ = random_case((size, n))
    total = 0.0
    for i, row in enumerate(logits.double().tolist()):
        for j, logit in enumerate(row):
            z = 1 if j == offset + i else -1
            total += math.log(1 / (1 + math.exp(-z * logit)))
    assert sigmoid_loss(logits, offset).item() == pytest.approx(-total / size, rel=1e-5)


def test_sigmoid_weighs_rows_and_does_not_overflow():
    logits, _ = random_case((4, 4))
    rows = [sigmoid_loss(logits[i : i + 1], i).item() for i in range(4)]
    weights = torch.tensor([4.0, 0, 0, 0])
    assert sigmoid_loss(logits, weights=weights).item() == pytest.approx(rows[0], rel=1e-5)
    assert sigmoid_loss(1e4 * torch.eye(4) - 5e3) == 0
