"""Files that a stranger made, each of which tries to run code or to stop the program; none does.

``SECURITY.md`` lists what is trusted; each of its lines names a test here.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.data.cache import embed
from zslkit.data.images import BrokenImageError, decode_image
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.readers.tars import load, read_captions, walk
from zslkit.data.strict import parse_json
from zslkit.encoders.image import ImageTower
from zslkit.zeroshot.label_spaces import load_label_space, read_label_map
from zslkit.zeroshot.models.texts import load_text_net


class Attack:
    """Unpickled, it makes a file: whoever finds that file has run a stranger's code."""

    def __init__(self, proof):
        self.proof = os.fspath(proof)

    def __reduce__(self):
        return (os.mkdir, (self.proof,))


@pytest.fixture
def proof(tmp_path):
    """The folder that an attack would make; looked for when the test has ended."""
    path = tmp_path / "the attack ran"
    Attack(path).__reduce__()[0](os.fspath(path))  # it would work
    path.rmdir()
    yield path
    assert not path.exists()


CODE = "import os\nos.mkdir({!r})\nclass Model: pass\n"
WORDS = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")


def write_manifest(folder, **fields):
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", **WORDS, **fields}))
    return path


def test_pickles_under_the_names_of_a_run_are_not_read(tiny_settings, tmp_path, proof):
    from zslkit.trainer import train

    config = RunConfig(**{**tiny_settings, "output_dir": str(tmp_path / "run"), "max_steps": 1})
    folder = train(config).run_dir
    (checkpoint,) = (folder / "checkpoints").iterdir()
    attack = pickle.dumps(Attack(proof))
    for name in ("model.pt", "state.pkl", "pytorch_model.bin", "__init__.py", "conftest.py"):
        (folder / name).write_bytes(attack)
        (checkpoint / name).write_bytes(attack)
    load_run(folder)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        sound = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(attack)
        with pytest.raises(ValueError, match="no sound one is left"):
            load_run(folder)
        (checkpoint / name).write_bytes(sound)
    (folder / "config.json").write_bytes(attack)
    with pytest.raises(ValueError, match="config.json"):
        load_run(folder)


def test_the_towers_that_a_strangers_run_names_bring_no_code(tiny_settings, tmp_path, proof):
    """Its configuration may name a folder beside it, with a model class of its own."""
    from zslkit.encoders.dual import build_dual_encoder

    encoder = text_folder(tmp_path / "encoder", proof)
    settings = {**tiny_settings, "text_encoder": f"hf:{encoder}", "text_weights": "pretrained"}
    with pytest.raises(OSError, match="neither a folder with a transformers model"):
        build_dual_encoder(RunConfig(**settings))


def text_folder(folder, proof):
    folder.mkdir()
    (folder / "modeling_mine.py").write_text(CODE.format(os.fspath(proof)))
    auto = {f"Auto{kind}": "modeling_mine.Model" for kind in ("Config", "Model", "Tokenizer")}
    facts = {"model_type": "mine", "architectures": ["Model"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(proof)))
    return folder


@pytest.mark.parametrize("weights", ["pretrained", "none"])
def test_a_text_encoder_folder_with_code_is_refused(tmp_path, proof, weights):
    with pytest.raises(OSError, match="neither a folder with a transformers model"):
        load_text_net(f"hf:{text_folder(tmp_path / 'encoder', proof)}", weights)


def test_a_text_encoder_of_a_known_kind_whose_weights_are_a_pickle_is_refused(tmp_path, proof):
    from transformers import BertConfig, BertModel, BertTokenizer

    folder, words = tmp_path / "bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "vocab_size": len(words)}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    load_text_net(f"hf:{folder}", "pretrained")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Attack(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)pickle|weights|unsupported|load"):
        load_text_net(f"hf:{folder}", "pretrained")


def test_images_of_formats_that_start_programs_are_not_opened(tmp_path, proof):
    postscript = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%mkdir '{proof}') (w) file\n"
    )
    for data in (postscript.encode(), pickle.dumps(Attack(proof)), b"#!/bin/sh\nmkdir x\n",
                 b"%PDF-1.4\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):  # fmt: skip
        with pytest.raises(BrokenImageError, match="not a readable image"):
            decode_image(data)


def png_of(width, height):
    def chunk(name, data):
        import zlib

        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    import zlib

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(50_000, 1), (1, 50_000), (9_500, 9_500)])
def test_bombs_are_broken_images(width, height):
    with pytest.raises(BrokenImageError, match="is over|exceeds limit"):
        decode_image(png_of(width, height), "bomb.png: ")


def test_a_manifest_cannot_leave_its_data_root(tmp_path):
    outside = tmp_path / "outside.csv"
    outside.write_text("image,caption\na.jpg,secret\n")
    (tmp_path / "root").mkdir()
    for name in ("../outside.csv", os.fspath(outside), "a/../../outside.csv", "..\\outside.csv",
                 "C:\\outside.csv", "a\0b"):  # fmt: skip
        fields = {"kind": "table", "caption_field": "caption", "splits": {"train": {"table": name}}}
        with pytest.raises(ValueError, match="must be relative to|must not lead out of"):
            load_manifest(write_manifest(tmp_path / "root", **fields))
    fields = {"kind": "table", "caption_field": "caption", "splits": {"train": {"table": "a.csv"}}}
    with pytest.raises(ValueError, match="must not lead out of"):
        load_manifest(write_manifest(tmp_path / "root", image_folder="../..", **fields))


@pytest.mark.parametrize("name", ["FakeData", "DatasetFolder", "Kinetics", "utils", "__loader__"])
def test_a_manifest_names_only_data_sets_that_run_nothing(tmp_path, name):
    splits = {"train": {"dataset": name, "folder": "."}}
    with pytest.raises(ValueError, match="no such class that is read here"):
        open_pairs(write_manifest(tmp_path, kind="torchvision", splits=splits), "train")


def test_a_data_set_of_pickles_is_read_only_with_the_published_hash(tmp_path, proof):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Attack(proof)))
    splits = {"train": {"dataset": "CIFAR10", "folder": "."}}
    with pytest.raises(ValueError, match="has another md5"):
        open_pairs(write_manifest(tmp_path, kind="torchvision", splits=splits), "train")


def test_a_cache_of_pickles_is_computed_again(tmp_path, proof):
    class Lengths(torch.nn.Module):
        name, feature_dim = "lengths", 1

        def forward(self, texts):
            return torch.tensor([[float(len(text))] for text in texts])

    embed(Lengths(), ["a", "bb"], tmp_path)
    (array,) = tmp_path.glob("*.npy")
    with array.open("wb") as file:
        np.save(file, np.array([Attack(proof)], object), allow_pickle=True)
    with pytest.warns(UserWarning, match="damaged"):
        assert embed(Lengths(), ["a", "bb"], tmp_path).features.tolist() == [[1], [2]]
    # also where the thief has made the checksum anew
    from zslkit.data.sealed import checksum, read_sealed, write_sealed

    with array.open("wb") as file:
        np.save(file, np.array([Attack(proof)], object), allow_pickle=True)
    facts = read_sealed(array.with_suffix(".json"))
    write_sealed(array.with_suffix(".json"), facts | {"array": checksum(array)})
    with pytest.warns(UserWarning, match="computed again"):
        assert embed(Lengths(), ["a", "bb"], tmp_path).features.tolist() == [[1], [2]]


def test_an_index_of_pickles_is_not_read(tmp_path, proof):
    path = tmp_path / "index.npz"
    with zipfile.ZipFile(path, "w") as file:
        stream = io.BytesIO()
        np.save(stream, np.array([Attack(proof)], object), allow_pickle=True)
        for name in ("keys", "captions", "counts", "places", "skipped", "faults"):
            file.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        load(path)


def forged(path):
    """A hash that begins as the name of the file says."""
    return path.stem.rpartition("-")[2] + "0" * 56


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of torch's downloads, and nothing that could be fetched."""
    monkeypatch.setattr(torch.hub, "_hub_dir", os.fspath(tmp_path / "hub"), raising=False)

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_lie_under_a_published_name_are_checked_first(hub, proof, monkeypatch):
    from torchvision import models

    url = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    path = hub / url.rpartition("/")[2]
    with pytest.raises(OSError, match="could not download .*no network"):
        ImageTower("torchvision:shufflenet_v2_x0_5", "pretrained")
    torch.save({"x": Attack(proof)}, path)
    with pytest.raises(ValueError, match="is not what was published .*delete it"):
        ImageTower("torchvision:shufflenet_v2_x0_5", "pretrained")
    # a thief may find content of which the eight letters in the name are the hash
    monkeypatch.setattr(
        "zslkit.data.weights.checksum", lambda path: path.stem.rpartition("-")[2] + "0" * 56
    )
    with pytest.raises(ValueError, match="(?s)holds more than tensors .*delete it"):
        ImageTower("torchvision:shufflenet_v2_x0_5", "pretrained")


def test_sound_weights_under_a_published_name_are_loaded(hub, monkeypatch):
    from torchvision import models

    torch.manual_seed(0)
    url = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    net, path = models.shufflenet_v2_x0_5(), hub / url.rpartition("/")[2]
    torch.save(net.state_dict(), path)
    monkeypatch.setattr(
        "zslkit.data.weights.checksum", lambda path: path.stem.rpartition("-")[2] + "0" * 56
    )
    tower = ImageTower("torchvision:shufflenet_v2_x0_5", "pretrained")
    assert torch.equal(next(tower.net.parameters()), next(net.parameters()))


def test_weights_of_ones_own_are_safetensors(tmp_path, proof):
    torch.save({"x": Attack(proof)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a safetensors file"):
        ImageTower("timm:test_resnet", os.fspath(tmp_path / "weights.pth"))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested too deeply|not valid JSON"),
        ('{"a":' * 100_000, "nested too deeply|not valid JSON"),
        ('["\\ud800"]', "half a surrogate pair"),
        (b"\xff\xfe", "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ],
    ids=["lists", "objects", "surrogate", "bytes", "digits"],
)
def test_json_that_is_made_to_hurt_is_an_error_of_ours(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"^here: .*({message})"):
        parse_json(text, "here")
    data = text.encode() if isinstance(text, str) else text
    for name, read in (("m.json", load_manifest), ("s.json", load_label_space)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="must be JSON such as"):
        read_label_map(tmp_path / "m.json")
    with pytest.raises(ValueError, match="not"):
        read_captions(data, "caption")


@pytest.mark.parametrize("value", [{"a": 1}, [["deep"]], [{"text": "a"}], True, "\ud800", "a\0b"])
def test_captions_that_are_no_text_are_an_error_of_ours(value):
    with pytest.raises(ValueError, match="must be a text|NUL or half a surrogate"):
        read_captions(json.dumps({"caption": value}).encode(), "caption")


def test_a_chain_of_pax_headers_ends(tmp_path):
    """Headers of headers, none of which holds a file: each is read once."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(2000):
            info = tarfile.TarInfo("x" * 150 + str(number))
            info.type = tarfile.SYMTYPE
            info.linkname = "../../etc/passwd"
            tar.addfile(info)
    assert list(walk(tmp_path / "0.tar", stream.getvalue())) == []


def test_a_shard_of_links_and_paths_out_of_it_reads_nothing_outside(tmp_path):
    stream, caption = io.BytesIO(), json.dumps({"caption": "a"}).encode()
    Image.new("RGB", (8, 8)).save(picture := io.BytesIO(), "PNG")
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in (("../../out.json", caption), ("../../out.png", picture.getvalue())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in ("link.json", "link.png"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "0.tar").write_bytes(stream.getvalue())
    splits = {"train": {"shards": ["0.tar"]}}
    path = write_manifest(tmp_path, kind="shards", caption_field="caption", splits=splits)
    pairs = open_pairs(path, "train")
    assert pairs.keys.tolist() == ["../../out"]  # a name; nothing is unpacked
    assert pairs[0].pixels.shape == (3, 8, 8)


NO_CLASSES = (5, [[1, ["a"], ""]], [["a", [["b"]], ""]], [["a", ["b"], None]], [[[], [], []]])


def test_a_label_space_of_other_things_than_text_is_an_error_of_ours(tmp_path):
    for classes in (
        [[1, ["a"], ""]],
        [["a", [["b"]], ""]],
        [["a", ["b"], None]],
        5,
        [[[], [], []]],
    ):
        path = tmp_path / "space.json"
        path.write_text(json.dumps({"name": "x", "source": "y", "classes": classes}))
        with pytest.raises(ValueError, match=r"space.json: not a label space"):
            load_label_space(path)
    for data, message in ((b"\xff\n", "not UTF-8"), (b"a\n,,\n", "a line has no name")):
        path = tmp_path / "space.txt"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_label_space(path)


def test_a_folder_of_a_saved_model_that_is_a_pickle_is_refused(tmp_path, proof, tiny_settings):
    from zslkit.encoders.dual import build_dual_encoder
    from zslkit.zeroshot.models.restoring import from_pretrained

    build_dual_encoder(RunConfig(**tiny_settings)).save_pretrained(tmp_path / "model")
    from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(proof)))
    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps(Attack(proof)))
    with pytest.raises(ValueError, match="not a safetensors file"):
        from_pretrained(tmp_path / "model")


def test_tensors_of_a_strange_shape_are_refused(tmp_path, tiny_settings):
    from zslkit.encoders.dual import build_dual_encoder
    from zslkit.zeroshot.models.restoring import from_pretrained

    build_dual_encoder(RunConfig(**tiny_settings)).save_pretrained(tmp_path / "model")
    save_file({"x": torch.ones(3)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
