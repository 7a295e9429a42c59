"""Kinds that a notebook defines are trained, swept, shown and recorded; half-made ones fail."""

import builtins

import pytest
import torch

import zslkit as zk
from zslkit.data.kinds import CONTRASTIVE_LOSSES, KINDS, SOFT_TARGETS, pack_kinds, unpack_kinds
from zslkit.objective import Embedded, soft_targets, training_loss
from zslkit.report.cards import _objective, card_markdown, read_run
from zslkit.report.provenance import provenance
from zslkit.report.sweep import run_sweep
from zslkit.training.coach import advise, judge_targets

ONE = torch.tensor(1.0)
READS = {"t": "teacher_temperature"}
CELL = """
import zslkit as zk

@zk.soft_target("halves", r"p_{ii} = p_{i,i+1} = 1 / 2")
def halves(n_queries, n_candidates):
    import torch
    own = torch.eye(n_candidates)
    return (own + own.roll(1, dims=1)) / 2
"""


@pytest.fixture(autouse=True)
def own_kinds_are_forgotten():
    zk.soft_target  # noqa: B018  with it come the library's own
    before = {setting: dict(kinds) for setting, kinds in KINDS.items()}
    yield
    for setting, kinds in KINDS.items():
        kinds.clear()
        kinds.update(before[setting])


@pytest.fixture
def sharp():
    @zk.soft_target("sharp", reads=READS, softened_by="t", words="sharp rows")
    def sharp(similarity, t, epsilon):
        return (similarity / t / 2 + epsilon).softmax(dim=1)

    return sharp


@pytest.fixture
def margin():
    @zk.contrastive("margin", words="a hinge", of_guessing=lambda n: 1.0)
    def margin(logits_per_image, offset, weights, logit_scale):
        own = logits_per_image.diagonal(offset)[:, None]
        rows = (logits_per_image - own + logit_scale / 100).clamp_min(0).sum(dim=1)
        return (rows if weights is None else rows * weights).mean()

    return margin


def embedded(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(n, 8, generator=generator) for _ in range(2))
    return Embedded(*(torch.nn.functional.normalize(side, dim=-1) for side in sides))


def loss_of(trust=None, bias=None, **settings):
    student, teacher = embedded(0), embedded(1)
    config = zk.RunConfig(**settings)
    return training_loss(student, teacher, 10 * ONE, 5 * ONE, config, 0.5, trust, bias)


def as_in_a_notebook(cell):
    """Execute a cell: its functions live in ``__main__``, where no other process finds them."""
    exec(cell, {"__name__": "__main__"})


def test_a_notebooks_kind_trains_and_is_recorded(sharp, margin, tiny_settings, tmp_path):
    kinds = {"contrastive_loss": "margin", "soft_targets": "sharp"}
    config = zk.RunConfig(**tiny_settings, **kinds, max_steps=2, output_dir=str(tmp_path))
    run = zk.train(config)
    assert {"distillation_loss", "target_agreement"} <= run.history[-1].keys()
    card = (tmp_path / "card.md").read_text("utf-8")
    assert "| objective | 0.5 a hinge, the rest towards sharp rows |" in card
    digests = {name: KINDS[name][kind].code[:12] for name, kind in kinds.items()}
    own = ", ".join(f"{name} {kind} {digests[name]}" for name, kind in kinds.items())
    assert all(digest in card for digest in digests.values())
    assert read_run(tmp_path)["code"]["own kinds"] == own
    assert "own kinds" not in provenance(zk.RunConfig())["code"]
    assert zk.load_run(tmp_path).config == config
    for kind in kinds:  # as in a process that never heard of them
        KINDS[kind].pop(kinds[kind])
    assert "0.5 margin (not of zslkit), the rest" in card_markdown(read_run(tmp_path))
    with pytest.raises(ValueError, match=r"'margin' \(one of your own .* by @zk.contrastive"):
        zk.load_run(tmp_path)


def test_the_function_stays_what_it_was_and_fills_both_directions(sharp):
    loss, terms = loss_of(soft_targets="sharp", teacher_temperature=0.3, contrastive_weight=0.0)
    student, teacher = embedded(0), embedded(1)
    similarity, guide = (side.image @ side.text.T for side in (student, teacher))
    expected = sum(
        zk.distillation_loss(5 * s, sharp(g, 0.3, 0.15))
        for s, g in ((similarity, guide), (similarity.T, guide.T))
    )
    assert loss.item() == pytest.approx(expected.item() / 2, 1e-6)
    assert terms["distillation_loss"] == pytest.approx(loss.item(), 1e-6)


def test_a_contrastive_loss_gets_logits_bias_and_trust():
    @zk.contrastive("squares", learned_bias=True)
    def squares(logits_per_image, logits_per_text, offset, weights):
        both = (logits_per_image - logits_per_text.T).abs().sum()
        return both + (weights[:, None] * logits_per_image).sum()

    trust = torch.tensor([1.0, 0, 0, 0, 0, 1])
    settings = {"contrastive_loss": "squares", "soft_targets": "none"}
    loss, _ = loss_of(trust, torch.tensor(-3.0), **settings)
    student = embedded(0)
    expected = 3 * (10 * student.image @ student.text.T - 3)[[0, 5]].sum()
    assert loss.item() == pytest.approx(expected.item(), 1e-5)


def test_a_learned_bias_is_built_for_the_loss_that_wants_one(margin, tiny_settings):
    def has_bias(kind):
        config = zk.RunConfig(**tiny_settings, contrastive_loss=kind)
        return hasattr(zk.build_dual_encoder(config), "logit_bias")

    zk.contrastive("biased", learned_bias=True)(margin)
    assert [has_bias(kind) for kind in ("biased", "sigmoid", "margin", "softmax")] == [
        True, True, False, False
    ]  # fmt: skip


def test_the_coach_reads_the_row(sharp, margin):
    config = zk.RunConfig(soft_targets="sharp", contrastive_loss="margin", warmup_steps=0)
    one_hot = {"self_mass": 1.0, "target_entropy": 0.0}
    advice = judge_targets(one_hot, config, 8)["one-hot targets"]
    assert advice.endswith("raise teacher_temperature (now 0.1)")
    zk.soft_target("sharp", reads=READS)(sharp)
    assert judge_targets(one_hot, config, 8)["one-hot targets"].endswith("raise their softness")
    zk.soft_target("sharp", reads=READS, begins_one_hot=True)(sharp)
    assert judge_targets(one_hot, config, 8) == {}
    row = {"step": 1, "epoch": 0, "contrastive_loss": 1.0, "logit_scale": 20.0}
    assert "1.00 nats, what guessing" in advise([row], config)["nothing learnt"]
    zk.contrastive("margin")(margin)
    assert advise([row], config) == {}


def test_a_notebooks_kind_is_shown_under_the_microscope(sharp, tiny_settings):
    config = zk.RunConfig(**tiny_settings, soft_targets="sharp")
    pairs = zk.open_pairs(config.manifest, "train")
    microscope = zk.widgets.SoftLabelMicroscope(config, pairs, range(4), debounce=0)
    assert microscope.kind.value == "sharp"
    assert {"sharp", "teacher", "label_smoothing"} < {*microscope.kind.options}
    assert "none" not in microscope.kind.options
    shown = ("temperature", "epsilon", "image_weight", "text_weight")
    assert [getattr(microscope, name).layout.display for name in shown] == [None] * 4
    assert microscope.smoothing.layout.display == "none"
    before = microscope.statistics["self_mass"].tolist()
    microscope.temperature.value = 5.0
    assert microscope.statistics["self_mass"].tolist() != before


def test_what_is_unheard_of_is_nothing_else(tiny_settings):
    """It was silently progressive, shown as teacher, and a KeyError after the last step."""
    stored = zk.RunConfig(**tiny_settings).model_copy(update={"soft_targets": "unheard"})
    with pytest.raises(ValueError, match="no kind of soft targets is called 'unheard'"):
        soft_targets(6, 6, embedded(1), stored, progress=0.5)
    pairs = zk.open_pairs(stored.manifest, "train")
    with pytest.raises(ValueError, match="no kind of soft targets is called 'unheard'"):
        zk.widgets.SoftLabelMicroscope(stored, pairs, range(4), debounce=0)
    unheard = zk.RunConfig(soft_targets="none").model_dump() | {"contrastive_loss": "unheard"}
    assert _objective(unheard) == "unheard (not of zslkit)"
    with pytest.raises(ValueError, match="no contrastive loss is called 'unheard'.*softmax, sig"):
        zk.RunConfig(contrastive_loss="unheard")


def test_a_sweep_in_this_process_measures_changed_functions_anew(tiny_settings, tmp_path):
    base = zk.RunConfig(**tiny_settings, max_steps=2, output_dir=str(tmp_path))
    variants = {"own": {"soft_targets": "halves"}}
    as_in_a_notebook(CELL)
    entropy = "metric == 'target_entropy'"
    table = run_sweep(base, variants, [0, 1], jobs=1).query(entropy)
    assert table["value"].tolist() == pytest.approx([0.6931] * 2, abs=1e-3)  # ln 2
    as_in_a_notebook(CELL.replace("(own + own.roll(1, dims=1)) / 2", "own"))
    again = run_sweep(base, variants, [0, 1], jobs=1).query(entropy)
    assert again["value"].tolist() == [0, 0]


def test_other_processes_learn_of_a_cell(tiny_settings, tmp_path):
    as_in_a_notebook(CELL)
    base = zk.RunConfig(**tiny_settings, max_steps=2, output_dir=str(tmp_path))
    table = run_sweep(base, {"own": {"soft_targets": "halves"}}, [0, 1], jobs=2)
    entropies = table.query("metric == 'target_entropy'")["value"].tolist()
    assert entropies == pytest.approx([0.6931] * 2, abs=1e-3)


def test_packing_needs_cloudpickle_and_only_for_kinds_of_ones_own(monkeypatch):
    assert pack_kinds() is None
    unpack_kinds(None)
    as_in_a_notebook(CELL)
    packed = pack_kinds()
    del SOFT_TARGETS["halves"]
    unpack_kinds(packed)
    targets, _ = soft_targets(4, 4, None, zk.RunConfig(soft_targets="halves"), 0.0)
    assert targets.sum(dim=1).tolist() == [1] * 4
    load = builtins.__import__

    def without(name, *rest):
        if name == "cloudpickle":
            raise ModuleNotFoundError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"\('halves'\) through the package cloudpickle"):
        pack_kinds()


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda similarity: similarity, "sum to 1; its sums go from"),
        (lambda similarity: (similarity * 0).softmax(1) * torch.nan, "its least number is nan"),
        (
            lambda similarity: similarity[:2],
            r"a Tensor of shape \(6, 6\), got shape \(2, 6\)",
        ),
        (lambda n_queries: None, r"shape \(6, 6\), got NoneType"),
    ],
)
def test_what_a_kind_gives_must_be_soft_targets(give, message):
    zk.soft_target("odd")(give)
    with pytest.raises(ValueError, match=f"soft_targets='odd' must give .*{message}"):
        loss_of(soft_targets="odd")


def test_what_a_contrastive_loss_gives_must_be_one_number():
    zk.contrastive("rows")(lambda logits_per_image, offset, weights: logits_per_image)
    with pytest.raises(ValueError, match=r"='rows' must give .* got shape \(6, 6\)"):
        loss_of(contrastive_loss="rows")


@pytest.mark.parametrize(
    ("decorator", "function", "message"),
    [
        (zk.soft_target("own"), lambda similarity, teacher_temprature: 0,
         "takes 'teacher_temprature', neither an input .* did you mean teacher_temperature"),
        (zk.contrastive("own"), lambda logits_per_image: 0,
         "must take logits_per_image, offset, weights; offset and weights missing"),
        (zk.soft_target("own", softened_by="heat"), lambda similarity, epsilon: 0,
         "softened_by='heat' is none of the parameters that settings fill: epsilon"),
    ],
)  # fmt: skip
def test_a_kind_that_cannot_work_fails_where_it_is_defined(decorator, function, message):
    with pytest.raises(ValueError, match=message):
        decorator(function)
    assert "own" not in {**SOFT_TARGETS, **CONTRASTIVE_LOSSES}


def test_the_librarys_own_kinds_keep_their_names_and_fill_their_rows():
    with pytest.raises(ValueError, match="'teacher' is a kind of soft targets of zslkit itself"):
        zk.soft_target("teacher")
    for function in (zk.teacher_targets, zk.contrastive_loss):  # as if written in the library
        assert function.__module__.startswith("zslkit.")
    with pytest.raises(ValueError, match="of zslkit: formula and softened_by missing"):
        zk.soft_target("new", reads={"temperature": "teacher_temperature"})(zk.teacher_targets)
    assert all(row.formula for row in {**SOFT_TARGETS, **CONTRASTIVE_LOSSES}.values())
