"""Public models in a training: as towers, and as a teacher that never moves."""

import json

import numpy as np
import pytest
import torch

import zslkit as zk
from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.training.batches import TrainingData
from zslkit.zeroshot.models.export import export_model

WEIGHTS = {"image_weights": "pretrained", "text_weights": "pretrained"}


def names(clips):
    return {
        "clip": f"hf:{clips['clip']}",
        "siglip": f"hf:{clips['siglip']}",
        "open_clip": clips["open_clip"],
    }


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_both_halves_start_a_training_with_their_own_embeddings(tiny_clips, kind, tiny_settings):
    name = names(tiny_clips)[kind]
    settings = {**tiny_settings, "image_encoder": name, "text_encoder": name, **WEIGHTS}
    model, theirs = build_dual_encoder(RunConfig(**settings)).eval(), zk.load_model(name)
    pairs = open_pairs(settings["manifest"], "train")
    pixels = model.image_transform(train=False)(pairs[0].image)[None]
    with torch.no_grad():
        assert torch.equal(model.image_tower(pixels), theirs.image_tower(pixels))
        assert torch.equal(model.text_tower(["a cat"]), theirs.text_tower(["a cat"]))
    assert torch.equal(pixels[0], theirs.image_transform(train=False)(pairs[0].image))
    crops = model.image_transform(train=True)
    assert not torch.equal(crops(pairs[0].pixels), crops(pairs[0].pixels))
    assert crops(pairs[0].pixels).shape == pixels[0].shape


def test_blocks_of_halves_can_be_frozen(tiny_clips, tiny_settings):
    for kind in ("clip", "open_clip"):
        name = names(tiny_clips)[kind]
        config = RunConfig(
            **{**tiny_settings, "image_encoder": name, "image_tower": "last_blocks=1", **WEIGHTS,
               "text_weights": "none"}
        )  # fmt: skip
        tower = build_dual_encoder(config).image_tower
        trains = [p.requires_grad for p in tower.parameters()]
        assert any(trains)
        assert not all(trains)


def test_what_halves_cannot_do_is_said_when_they_are_built(tiny_clips, tiny_settings):
    name = names(tiny_clips)["clip"]
    for changes, words in (
        ({"image_size": 48}, "image_size=48: image_encoder='hf:.*clip' sees 32 pixels"),
        ({"image_weights": "x.safetensors"}, "takes pretrained or none; name a file as open_clip:"),
    ):
        config = RunConfig(**{**tiny_settings, "image_encoder": name, **changes})
        with pytest.raises(ValueError, match=words):
            build_dual_encoder(config)


def own_space(name, settings, **changes):
    encoders = {"image_encoder": name, "text_encoder": name, "projection": "none"}
    return RunConfig(**{**settings, **encoders, **WEIGHTS, "soft_targets": "none", **changes})


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_without_a_projection_a_training_starts_as_the_checkpoint_itself(
    tiny_clips, kind, tiny_settings, tmp_path
):
    name = names(tiny_clips)[kind]
    config = own_space(name, tiny_settings, contrastive_loss="sigmoid")
    model, theirs = build_dual_encoder(config).eval(), zk.load_model(name)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (model.encode_image(pixels) - theirs.encode_image(pixels)).abs().max() < 1e-6
        assert (model.encode_text(["a cat"]) - theirs.encode_text(["a cat"])).abs().max() < 1e-6
    assert model.logit_scale.item() == pytest.approx(theirs.logit_scale.item())
    base_rate = -np.log(config.batch_size - 1)
    own = base_rate if theirs.logit_bias is None else theirs.logit_bias.item()
    assert model.logit_bias.item() == pytest.approx(own)
    given = build_dual_encoder(config.model_copy(update={"logit_bias": -1.5}))
    assert given.logit_bias.item() == -1.5
    changes = {"max_steps": 2, "output_dir": str(tmp_path / "run"), "learning_rate": 1e-3}
    run = zk.train(config.model_copy(update=changes))
    moved = dict(run.model.named_parameters())
    stays = [name for name, p in model.named_parameters() if torch.equal(p, moved[name])]
    # the key's bias shifts all scores of a query alike; of a scale without targets nothing is asked
    quiet = ("bias", "embedding", "distillation_scale")
    assert not [name for name in stays if not any(word in name for word in quiet)]
    again = zk.load_model(tmp_path / "run")
    torch.testing.assert_close(again.encode_text(["a cat"]), run.model.encode_text(["a cat"]))


def test_what_has_no_space_of_its_own_is_said(tiny_clips, tiny_settings):
    name = names(tiny_clips)["siglip"]
    with pytest.raises(ValueError, match="projection='none' keeps the space of one CLIP or SigLIP"):
        RunConfig(**{**tiny_settings, "projection": "none"})
    with pytest.raises(ValueError, match="must both be the same open_clip: or hf: name"):
        own_space(name, tiny_settings, text_encoder="hf:other")
    with pytest.raises(ValueError, match="projection='none' take init='random'"):
        own_space(name, tiny_settings, init="ridge")
    low = own_space(name, tiny_settings, max_logit_scale=5.0, logit_scale=5.0)
    with pytest.raises(ValueError, match="max_logit_scale=5.0: .* comes with a scale of 7.389"):
        build_dual_encoder(low)
    _, words = zk.evaluation.explore.teacher_of(own_space(name, tiny_settings))
    assert "the checkpoint as it came" in words


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A random open_clip checkpoint, trained in its own space and saved as one."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tuned")
    vision = {"timm_model_name": "test_resnet", "timm_model_pretrained": False, "timm_pool": "",
              "timm_proj": "linear", "image_size": 32}  # fmt: skip
    text = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1}
    facts = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-conv.json").write_text(json.dumps(facts))
    open_clip.add_model_config(folder / "tiny-conv.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-conv", force_custom_text=True).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "start.safetensors")
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    splits = {"train": {"scenes": "train", "n": 512}, "test": {"scenes": "test", "n": 240}}
    manifest = {"name": "unseen", "kind": "toy", **words, "image_size": 32, "splits": splits}
    (folder / "unseen.json").write_text(json.dumps(manifest))
    name = f"open_clip:tiny-conv/{folder / 'start.safetensors'}"
    settings = {"manifest": str(folder / "unseen.json"), "image_size": 32, "batch_size": 64,
                "zeroshot_manifest": None, "epochs": 8, "warmup_steps": 10,
                "cache_dir": str(folder / "cache"), "threads": 1}  # fmt: skip
    config = own_space(name, settings, learning_rate=5e-3, output_dir=str(folder / "run"))
    run = zk.train(config)
    photos = [pair.image for pair in open_pairs(config.manifest, "test", max_pairs=4)]
    export_model(run.model, folder / "end", "open_clip", photos, ["red star", "blue moon"])
    return name, f"open_clip:local-dir:{folder / 'end'}", settings, run


def recall(model, config):
    return zk.evaluate(model, config)["retrieval"]["text_to_image"]["recall@10"]["value"]


def test_a_training_that_starts_from_a_checkpoint_ends_better_on_unseen_scenes(tuned):
    """Colours and shapes of the test scenes are combined as no training scene combines them."""
    start, end, _, run = tuned
    before, after = (recall(zk.load_model(name), run.config) for name in (start, end))
    assert before < 0.07  # 10 of 240 is 0.042
    assert after > 2.5 * before
    assert recall(run.model, run.config) == pytest.approx(after, abs=0.01)  # as it was saved


def test_a_student_of_a_checkpoint_ends_better_on_unseen_scenes(tuned, tmp_path):
    """Of the contrastive loss it sees nothing: what it knows, the teacher's soft targets said."""
    _, teacher, settings, _ = tuned
    config = RunConfig(
        **{**settings, "teacher": "frozen", "teacher_run": teacher, "soft_targets": "teacher",
           "contrastive_weight": 0.0, "teacher_temperature": 0.05, "embedding_dim": 24,
           "image_encoder": "timm:test_resnet", "output_dir": str(tmp_path / "run")}
    )  # fmt: skip
    before = recall(build_dual_encoder(config), config)
    assert recall(zk.train(config).model, config) > 2 * before


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_training_that_starts_from_transformers_checkpoints_and_its_student_end_better(
    tiny_clips, tiny_settings, kind, tmp_path
):
    """On the 32 toy scenes that they learn: random towers see too little to tell of others.

    The student sees nothing of the contrastive loss: what it knows, the teacher's targets said.
    """
    start, end = names(tiny_clips)[kind], f"hf:{tmp_path / 'end'}"
    learns = {**tiny_settings, "epochs": 40, "batch_size": 32, "learning_rate": 3e-3,
              "warmup_steps": 5, "test_split": "train", "zeroshot_manifest": None}  # fmt: skip
    config = own_space(start, learns, output_dir=str(tmp_path / "run"), max_logit_scale=100.0)
    run = zk.train(config)
    photos = [pair.image for pair in open_pairs(config.manifest, "train", max_pairs=3)]
    export_model(run.model, tmp_path / "end", "transformers", photos, ["red star", "blue moon"])
    before, after = (recall(zk.load_model(name), config) for name in (start, end))
    assert after > 1.5 * before
    taught = RunConfig(
        **{**learns, "teacher": "frozen", "teacher_run": end, "soft_targets": "teacher",
           "contrastive_weight": 0.0, "teacher_temperature": 0.05,
           "output_dir": str(tmp_path / "student")}
    )  # fmt: skip
    untaught = recall(build_dual_encoder(taught), taught)
    assert recall(zk.train(taught).model, taught) > 1.5 * untaught


def test_a_training_that_starts_from_halves_ends_better_than_it_started(
    tiny_clips, tiny_settings, tmp_path
):
    """On the 32 toy scenes that it learns: random towers see too little to tell of others."""
    name = names(tiny_clips)["clip"]
    run = zk.train(RunConfig(
        **{**tiny_settings, "image_encoder": name, "text_encoder": name, **WEIGHTS,
           "soft_targets": "none", "epochs": 40, "batch_size": 32, "learning_rate": 3e-3,
           "warmup_steps": 5, "test_split": "train", "output_dir": str(tmp_path / "run")}
    ))  # fmt: skip

    def recall(model):
        return zk.evaluate(model, run.config)["retrieval"]["text_to_image"]["recall@10"]["value"]

    assert recall(run.model) > 1.5 * recall(build_dual_encoder(run.config))
    again = zk.load_model(tmp_path / "run")
    # weights at other addresses may be added in another order
    torch.testing.assert_close(again.encode_text(["a cat"]), run.model.encode_text(["a cat"]))


@pytest.fixture(scope="module")
def taught(tiny_settings, tmp_path_factory):
    """A small run of another dimension, exported: the teacher, better than chance."""
    folder = tmp_path_factory.mktemp("teacher")
    settings = {**tiny_settings, "manifest": "toy", "zeroshot_manifest": None, "image_size": 48,
                "max_pairs": 512, "epochs": 12, "batch_size": 64, "embedding_dim": 24,
                "soft_targets": "none", "output_dir": str(folder / "run")}  # fmt: skip
    zk.train(RunConfig(**settings)).model.save_pretrained(folder / "saved")
    return settings, folder / "saved"


def test_a_fixed_teacher_gives_its_own_embeddings_of_the_batch(tiny_clips, tiny_settings):
    name = names(tiny_clips)["siglip"]
    config = RunConfig(**{**tiny_settings, "teacher": "frozen", "teacher_run": name,
                          "soft_targets": "teacher"})  # fmt: skip
    student = build_dual_encoder(config)
    teacher = build_teacher(student, config)
    data = TrainingData(student, config, torch.device("cpu"))
    model, pairs = zk.load_model(name), data.pairs
    seen = set()
    for _, batch in data.stream(0, 2 * data.per_epoch):  # two epochs: other captions
        found = teacher.embed(batch)
        transform = model.image_transform(train=False)
        pixels = torch.stack([transform(pairs[int(row)].pixels) for row in batch.rows])
        with torch.no_grad():
            assert (found.image - model.encode_image(pixels)).abs().max() < 1e-5
            assert (found.text - model.encode_text(batch.texts)).abs().max() < 1e-5
        seen |= set(batch.texts)
    assert len(seen) > len(pairs)  # so that epochs did matter
    before = [p.clone() for p in teacher.parameters()]
    teacher.update(student)
    teacher.end_generation(student)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not teacher.train().training


def test_a_student_learns_from_a_fixed_teacher_alone(taught, tmp_path):
    """Of the contrastive loss it sees nothing: what it knows, the teacher's soft targets said."""
    settings, folder = taught
    config = RunConfig(
        **{**settings, "teacher": "frozen", "teacher_run": str(folder), "soft_targets": "teacher",
           "contrastive_weight": 0.0, "embedding_dim": 16, "epochs": 8, "test_split": "seen",
           "teacher_temperature": 0.05, "cache_dir": str(tmp_path / "cache"),
           "output_dir": str(tmp_path / "run")}
    )  # fmt: skip
    run = zk.train(config)
    before, after = (
        zk.evaluate(model, config)["retrieval"]["text_to_image"]["recall@10"]["value"]
        for model in (build_dual_encoder(config), run.model)
    )
    assert after > 2 * before
    assert len(list((tmp_path / "cache").glob("*.npy"))) >= 2
    assert not list((tmp_path / "run").rglob("teacher.safetensors"))
    resumed = zk.train(config.model_copy(update={"resume": True}))
    assert torch.equal(resumed.model.encode_text(["red"]), run.model.encode_text(["red"]))
    rows, targets = zk.evaluation.example_targets(run, open_pairs("toy", "seen"), [0, 1, 2])
    assert (rows, targets.shape) == ([0, 1, 2], (3, 3))


def test_a_fixed_teacher_cannot_judge_pairs(taught):
    settings, folder = taught
    config = RunConfig(**{**settings, "teacher": "frozen", "teacher_run": str(folder),
                          "pair_trust": True, "soft_targets": "teacher"})  # fmt: skip
    with pytest.raises(ValueError, match="pair_trust=True: teacher_run=.* cannot judge pairs"):
        build_teacher(build_dual_encoder(config), config)
    held_out = config.model_copy(update={"trust_judge": "held_out"})  # judges without a teacher
    assert build_teacher(build_dual_encoder(held_out), held_out).kind == "fixed"


def test_a_public_model_scores_pairs(tiny_clips, tiny_settings):
    model = zk.load_model(names(tiny_clips)["clip"])
    config = RunConfig(**tiny_settings)
    pairs = open_pairs(config.manifest, "train")
    fit = zk.data.score_pairs(pairs, config, model)
    texts = [text for text in fit.captions] if hasattr(fit, "captions") else fit[1]
    with torch.no_grad():
        transform = model.image_transform(train=False)
        images = model.encode_image(torch.stack([transform(pair.image) for pair in pairs]))
        own = (images * model.encode_text(texts)).sum(dim=1)
    np.testing.assert_allclose(np.asarray(fit[2]), own.numpy(), atol=1e-5)
