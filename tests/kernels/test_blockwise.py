"""The objective in blocks against the formulas written out in float64."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.encoders.dual import build_dual_encoder
from zslkit.kernels import blockwise, numbers
from zslkit.objective import Embedded, training_loss
from zslkit.training import dist
from zslkit.training.batches import TrainingData
from zslkit.training.step import backward

KINDS = {
    "contrastive": {"soft_targets": "none"},
    "sigmoid": {"soft_targets": "none", "contrastive_loss": "sigmoid"},
    "label smoothing": {"soft_targets": "label_smoothing"},
    "teacher": {"soft_targets": "teacher"},
    "sharp teacher": {"soft_targets": "teacher", "teacher_temperature": 0.01},
    "sigmoid with teacher": {"contrastive_loss": "sigmoid", "contrastive_weight": 0.3},
    "transport": {"soft_targets": "transport"},
    "sharp transport": {"soft_targets": "transport", "epsilon": 0.01, "sinkhorn_iterations": 3},
    "progressive": {"soft_targets": "progressive"},
    "intra-modal": {"image_similarity_weight": 0.3, "text_similarity_weight": 0.6},
    "transport of the others": {
        **{"soft_targets": "transport", "text_similarity_weight": 0.5},
        **{"image_similarity_weight": 0.5, "remove_diagonal": True},
    },
    "teacher of the others": {"remove_diagonal": True},
    "transport, intra-modal": {
        **{"soft_targets": "transport", "text_similarity_weight": 0.5},
        "contrastive_weight": 0.0,
    },
}


def embedded(seed, n, dim=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(n, dim, generator=generator, dtype=dtype) for _ in "vt")
    return Embedded(*(normalize(side, dim=-1) for side in sides))


def written_out_targets(score, config, share):
    """Soft targets of the rows of (n, n) scores, with logsumexp and loops over rows."""
    n = len(score)
    eye = torch.eye(n, dtype=score.dtype)
    if config.soft_targets == "label_smoothing":
        rest = config.label_smoothing / (n - 1)
        return rest + (1 - config.label_smoothing - rest) * eye
    if config.soft_targets == "transport":
        plan = score / config.epsilon
        for _ in range(config.sinkhorn_iterations):
            plan = plan.log_softmax(1)
            plan = plan.log_softmax(0)
        return plan.softmax(1)
    soft = (score / config.teacher_temperature).softmax(1)
    if config.soft_targets == "progressive":
        trusted = sorted(range(n), key=lambda i: -soft[i, i].item())[: round(share * n)]
        soft[trusted] = eye[trusted]
    return soft


def written_out(student, teacher, scale, distillation_scale, config, progress, trust, bias):
    """Loss, terms and targets in the dtype given, whatever the size."""
    n = len(student.image)
    weights = torch.ones(n, dtype=scale.dtype) if trust is None else trust / trust.mean()
    similarity = student.image @ student.text.T
    if config.contrastive_loss == "sigmoid":
        signs = 2 * torch.eye(n, dtype=scale.dtype) - 1
        rows = -torch.nn.functional.logsigmoid(signs * (scale * similarity + bias)).sum(1)
        contrastive = (weights * rows).mean()
    else:
        rows = [-(scale * s).log_softmax(1).diagonal() for s in (similarity, similarity.T)]
        contrastive = (weights * (rows[0] + rows[1])).mean() / 2
    terms = {"contrastive_loss": contrastive.item()}
    if config.soft_targets == "none":
        return contrastive, terms
    image, text = teacher
    intra = config.image_similarity_weight * image @ image.T
    intra = (intra + config.text_similarity_weight * text @ text.T).fill_diagonal_(0)
    intra = intra - 1e3 * config.remove_diagonal * torch.eye(n, dtype=scale.dtype)
    share = config.trusted_start + (config.trusted_end - config.trusted_start) * progress
    loss = 0
    for sign, s in ((1, similarity), (0, similarity.T)):
        cross = image @ text.T
        q = written_out_targets((cross if sign else cross.T) + intra, config, share)
        if sign:
            terms["self_mass"] = q.diagonal().mean().item()
            terms["target_entropy"] = -torch.xlogy(q, q).sum(1).mean().item()
        loss = loss - (weights * (q * (distillation_scale * s).log_softmax(1)).sum(1)).mean() / 2
    terms["distillation_loss"] = loss.item()
    return config.contrastive_weight * contrastive + (1 - config.contrastive_weight) * loss, terms


def outcome(function, config, n, dtype, trust=None, scales=(20.0, 15.0, -4.0), learn=True):
    """Call with fresh leaves; give loss, terms and the gradients of all five."""
    student, teacher = embedded(0, n), embedded(1, n)
    leaves = [side.to(dtype).requires_grad_() for side in student]
    leaves += [torch.tensor(value, dtype=dtype, requires_grad=learn) for value in scales]
    guide = Embedded(*(side.to(dtype) for side in teacher))
    trust = None if trust is None else trust.to(dtype)
    loss, terms = function(
        Embedded(*leaves[:2]), guide, *leaves[2:4], config, 0.4, trust, leaves[4]
    )
    loss.backward()
    return loss.detach(), terms, [leaf.grad for leaf in leaves]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last one short, at a size that a test can afford."""
    monkeypatch.setattr(blockwise, "_BLOCK", 1)  # so 64 rows, the least


def largest_deviation(got, expected):
    return max(
        ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
        for a, b in zip(got, expected, strict=True)
        if b is not None and b.norm() > 0
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_equals_the_formulas_written_out(name, weighted):
    config, n = RunConfig(**KINDS[name]), 150
    trust = torch.rand(n, generator=torch.Generator().manual_seed(2)) if weighted else None
    if weighted:
        trust[3] = 0  # weighs nothing, and its logarithm is infinite
    expected = outcome(written_out, config, n, torch.float64, trust)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        loss, terms, gradients = outcome(blockwise.blockwise_loss, config, n, dtype, trust)
        assert loss.item() == pytest.approx(expected[0].item(), rel=limit)
        limit *= 50 if name == "sharp transport" else 1  # similarity / 0.01 is rounded to 1e-5
        for term, value in expected[1].items():
            assert terms[term].item() == pytest.approx(value, rel=limit, abs=limit), term
        assert largest_deviation(gradients, expected[2]) < limit


def test_logs_the_same_names_as_the_plain_objective():
    for settings in KINDS.values():
        config = RunConfig(**settings)
        plain = outcome(training_loss, config, 70, torch.float32)
        blocks = outcome(blockwise.blockwise_loss, config, 70, torch.float32)
        assert plain[1].keys() == blocks[1].keys()
        for name, value in plain[1].items():
            assert blocks[1][name].item() == pytest.approx(value.item(), rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_gives_what_the_plain_objective_gives_there(name, rank, monkeypatch):
    """Each process sees its own rows and, by gathering, the other's as well."""
    n, config = 70, RunConfig(**KINDS[name])
    trust = torch.rand(2 * n, generator=torch.Generator().manual_seed(2))
    wholes = [side.float() for seed in (0, 1) for side in embedded(seed, 2 * n)] + [trust]
    mine = slice(rank * n, rank * n + n)

    def gather(local):
        (whole,) = (whole for whole in wholes if torch.equal(whole[mine], local))
        return torch.cat([whole[:n], local] if rank else [local, whole[n:]])

    monkeypatch.setattr(dist, "rank", lambda: rank)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "gather", gather)
    outcomes = []
    for function in (training_loss, blockwise.blockwise_loss):
        leaves = [side[mine].clone().requires_grad_() for side in wholes[:2]]
        leaves += [torch.tensor(value, requires_grad=True) for value in (20.0, 15.0, -4.0)]
        guide = Embedded(*(side[mine] for side in wholes[2:4]))
        loss, terms = function(
            Embedded(*leaves[:2]), guide, *leaves[2:4], config, 0.4, trust[mine], leaves[4]
        )
        loss.backward()
        outcomes.append((loss.item(), terms, [leaf.grad for leaf in leaves]))
    (plain, plain_terms, expected), (loss, terms, gradients) = outcomes
    assert loss == pytest.approx(plain, rel=1e-4)
    assert numbers(terms) == pytest.approx(numbers(plain_terms), rel=1e-3, abs=2e-5)
    assert largest_deviation(gradients, expected) < 2e-4


def test_large_batches_are_computed_in_blocks_by_the_step(tiny_settings, monkeypatch):
    """The threshold lies far above the batches that committed figures were made with."""
    config = RunConfig(**tiny_settings)
    assert [blockwise.fits(config, n) for n in (512, 2048, 2049)] == [False, False, True]
    monkeypatch.setattr(dist, "world_size", lambda: 4)
    assert [blockwise.fits(config, n) for n in (1024, 1025)] == [False, True]
    strange = config.model_copy(update={"soft_targets": "a kind registered elsewhere"})
    assert not blockwise.fits(strange, 9999)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_in_blocks_gives_the_gradients_of_a_plain_one(
    accumulation, tiny_settings, monkeypatch
):
    config = RunConfig(**tiny_settings, accumulation=accumulation)
    found = []
    for small in (1 << 30, 1):
        monkeypatch.setattr(blockwise, "_SMALL", small)
        torch.manual_seed(0)
        model = build_dual_encoder(config)
        teacher = build_teacher(model, config)
        data = TrainingData(model, config, torch.device("cpu"))
        _, batch = next(data.stream(0, 1))
        loss, terms = backward(model, teacher, batch, config, 0.0)
        found.append((loss, terms, [p.grad for p in model.parameters() if p.grad is not None]))
    (plain, plain_terms, expected), (loss, terms, gradients) = found
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert numbers(terms) == pytest.approx(numbers(plain_terms), rel=1e-4, abs=1e-5)
    assert largest_deviation(gradients, expected) < 1e-4


def test_nothing_of_the_size_of_the_matrix_is_kept_or_made(monkeypatch):
    """1,024 pairs: no tensor of a tenth of the matrix comes out of any operation."""
    monkeypatch.undo()
    monkeypatch.setattr(blockwise, "_BLOCK", 1)
    largest = Largest()
    with largest:
        outcome(blockwise.blockwise_loss, RunConfig(soft_targets="transport"), 1024, torch.float32)
    assert largest.numel == 64 * 1024  # one block


class Largest(TorchDispatchMode):
    """Remembers the most elements that an operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result
