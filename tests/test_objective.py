import pytest
import torch

from zslkit.config import RunConfig
from zslkit.losses import contrastive_loss, distillation_loss, sigmoid_loss
from zslkit.objective import Embedded, training_loss
from zslkit.targets import (
    fuse_similarities,
    label_smoothing_targets,
    teacher_targets,
    transport_targets,
)

ONE = torch.tensor(1.0)


def embedded(seed, n=6, dim=8):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(n, dim, generator=generator) for _ in range(2))
    return Embedded(*(torch.nn.functional.normalize(side, dim=-1) for side in sides))


def loss_of(student, teacher, **settings):
    config = RunConfig(**settings)
    return training_loss(student, teacher, 10 * ONE, 5 * ONE, config, progress=0.5)


def test_weighs_both_terms_with_a_scale_each():
    student, teacher = embedded(0), embedded(1)
    loss, terms = loss_of(student, teacher, contrastive_weight=0.3, teacher_temperature=0.1)
    similarity = student.image @ student.text.T
    guide = teacher.image @ teacher.text.T
    contrastive = contrastive_loss(10 * similarity)
    distillation = (
        distillation_loss(5 * similarity, teacher_targets(guide, 0.1))
        + distillation_loss(5 * similarity.T, teacher_targets(guide.T, 0.1))
    ) / 2
    assert loss.item() == pytest.approx((0.3 * contrastive + 0.7 * distillation).item(), 1e-6)
    assert terms["contrastive_loss"].item() == pytest.approx(contrastive.item(), 1e-6)
    assert terms["distillation_loss"] == pytest.approx(distillation.item(), 1e-6)


def test_transport_uses_the_plan_of_each_direction():
    student, teacher = embedded(0), embedded(1)
    loss, _ = loss_of(student, teacher, soft_targets="transport", contrastive_weight=0.0)
    similarity, guide = student.image @ student.text.T, teacher.image @ teacher.text.T
    expected = (
        distillation_loss(5 * similarity, transport_targets(guide, 0.15, 5))
        + distillation_loss(5 * similarity.T, transport_targets(guide.T, 0.15, 5))
    ) / 2
    assert loss.item() == pytest.approx(expected.item(), 1e-6)


def test_label_smoothing_needs_no_teacher():
    student = embedded(0)
    loss, _ = loss_of(
        student, None, soft_targets="label_smoothing", contrastive_weight=0.0, label_smoothing=0.2
    )
    similarity, targets = student.image @ student.text.T, label_smoothing_targets(6, 6, 0.2)
    expected = distillation_loss(5 * similarity, targets) + distillation_loss(
        5 * similarity.T, targets
    )
    assert loss.item() == pytest.approx(expected.item() / 2, 1e-6)


@pytest.mark.parametrize("settings", [{"soft_targets": "none"}, {"soft_targets": "teacher"}])
def test_without_soft_targets_or_a_ready_teacher_only_the_contrastive_term_is_left(settings):
    student = embedded(0)
    loss, terms = loss_of(student, None, **settings)
    expected = contrastive_loss(10 * student.image @ student.text.T)
    assert loss.item() == pytest.approx(expected.item(), 1e-6)
    assert set(terms) == {"contrastive_loss"}


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_temperature": 0.5},
        {"image_similarity_weight": 1.0},
        {"text_similarity_weight": 1.0},
        {"remove_diagonal": True},
        {"soft_targets": "transport", "remove_diagonal": True},
        {"contrastive_weight": 0.9},
        {"soft_targets": "transport", "epsilon": 0.5},
        {"soft_targets": "transport", "sinkhorn_iterations": 1},
        {"soft_targets": "progressive", "trusted_start": 0.2},
        {"soft_targets": "progressive", "trusted_end": 0.8},
    ],
)
def test_every_setting_changes_the_loss(change):
    base = {name: value for name, value in change.items() if name == "soft_targets"}
    student, teacher = embedded(0), embedded(1)
    assert loss_of(student, teacher, **change)[0] != loss_of(student, teacher, **base)[0]


def test_trust_weighs_rows_and_nothing_but_their_ratio_counts():
    student, teacher = embedded(0), embedded(1)
    config = RunConfig(pair_trust=True)

    def loss(trust):
        return training_loss(student, teacher, 10 * ONE, 5 * ONE, config, trust=trust)[0].item()

    even, half = torch.ones(6), torch.tensor([1.0, 0, 1, 0, 1, 0])
    plain = training_loss(student, teacher, 10 * ONE, 5 * ONE, config)[0].item()
    assert loss(even) == pytest.approx(plain, 1e-6)
    assert loss(half) == pytest.approx(loss(0.3 * half), 1e-6)
    similarity = student.image @ student.text.T
    rows = [0, 2, 4]
    contrastive = sum(
        torch.nn.functional.cross_entropy(10 * s[rows], torch.tensor(rows)).item()
        for s in (similarity, similarity.T)
    )
    only = config.model_copy(update={"contrastive_weight": 1.0})
    weighed = training_loss(student, teacher, 10 * ONE, 5 * ONE, only, trust=half)[0].item()
    assert weighed == pytest.approx(contrastive / 2, 1e-5)


def test_the_sigmoid_loss_takes_the_place_of_the_softmax_one():
    student, teacher = embedded(0), embedded(1)
    config = RunConfig(contrastive_loss="sigmoid", contrastive_weight=0.3)
    loss, terms = training_loss(
        student, teacher, 10 * ONE, 5 * ONE, config, logit_bias=torch.tensor(-3.0)
    )
    expected = sigmoid_loss(10 * student.image @ student.text.T - 3).item()
    assert terms["contrastive_loss"].item() == pytest.approx(expected, 1e-6)
    mixed = 0.3 * expected + 0.7 * terms["distillation_loss"].item()
    assert loss.item() == pytest.approx(mixed, 1e-6)


def test_targets_agree_with_the_teacher_they_come_from():
    student, teacher = embedded(0), embedded(1)
    agreement = {
        kind: loss_of(student, teacher, soft_targets=kind)[1]["target_agreement"]
        for kind in ("teacher", "transport")
    }
    assert agreement["teacher"] == pytest.approx(1, abs=1e-5)
    assert 0.5 < agreement["transport"] <= 1


def test_trust_weighs_the_distillation_of_both_directions():
    student, teacher = embedded(0), embedded(1)
    config = RunConfig(pair_trust=True, contrastive_weight=0.0, teacher_temperature=0.1)
    trust = torch.tensor([1.0, 0.1, 0.9, 0.2, 0.8, 0.0])
    loss, _ = training_loss(student, teacher, 10 * ONE, 5 * ONE, config, trust=trust)
    similarity, guide = student.image @ student.text.T, teacher.image @ teacher.text.T
    weights = trust / trust.mean()
    sides = [
        (weights * torch.nn.functional.cross_entropy(5 * s, (g / 0.1).softmax(1), reduction="none"))
        for s, g in ((similarity, guide), (similarity.T, guide.T))
    ]
    assert loss.item() == pytest.approx((sides[0].mean() + sides[1].mean()).item() / 2, 1e-5)
    assert abs(sides[0].mean() - sides[1].mean()) > 1e-3  # else one could stand for the other


def test_images_and_texts_have_a_weight_each():
    student, teacher = embedded(0), embedded(1)
    settings = {"image_similarity_weight": 0.9, "text_similarity_weight": 0.2}
    settings |= {"contrastive_weight": 0.0, "teacher_temperature": 0.3}
    loss, _ = loss_of(student, teacher, **settings)
    similarity, guide = student.image @ student.text.T, teacher.image @ teacher.text.T
    intra = teacher.image @ teacher.image.T, teacher.text @ teacher.text.T
    expected = sum(
        distillation_loss(
            5 * side, teacher_targets(fuse_similarities(cross, *intra, 0.9, 0.2), 0.3)
        )
        for side, cross in ((similarity, guide), (similarity.T, guide.T))
    )
    assert loss.item() == pytest.approx(expected.item() / 2, 1e-5)


def test_a_training_begins_at_no_progress():
    student, teacher = embedded(0), embedded(1)
    config = RunConfig(soft_targets="progressive", trusted_start=1.0, trusted_end=0.0)
    scales = student, teacher, 10 * ONE, 5 * ONE, config
    assert training_loss(*scales)[0] == training_loss(*scales, progress=0.0)[0]
    assert training_loss(*scales)[0] != training_loss(*scales, progress=1.0)[0]
