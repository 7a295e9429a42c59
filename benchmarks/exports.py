"""A run exported in each format, read in environments that have one reader alone.

``python benchmarks/exports.py DATA_ROOT [CACHE_DIR]`` trains the laptop preset on Flickr8k, and a
small random CLIP in its own space on drawn scenes; exports both; makes three environments with
uv: transformers, sentence-transformers, and onnxruntime + numpy + pillow; and compares there, on
50 test photos and 20 classes, with what the model itself gives. Writes a results file.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import zslkit as zk
from zslkit.report.provenance import git_state, machine
from zslkit.zeroshot.models import export_model

RESULTS = Path(__file__).parent / "results" / "exports.json"
ROOT = Path(__file__).parents[1]
STATE = git_state(ROOT)  # before the results file changes
PACKAGES = {
    "transformers": ["transformers", "torch", "torchvision", "pillow"],
    "sentence-transformers": ["sentence-transformers", "torch", "torchvision", "pillow"],
    "onnx": ["onnxruntime", "numpy", "pillow"],
}
START = """
import json, sys
from pathlib import Path
import numpy as np
folder, out, paths, texts = json.loads(sys.argv[1])
"""
READ = {
    "transformers": """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(folder).eval()
read, split = (kind.from_pretrained(folder) for kind in (AutoImageProcessor, AutoTokenizer))
pixels = read([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
tokens = split(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    found = model.get_image_features(**pixels), model.get_text_features(**tokens)
images, words = (
    torch.nn.functional.normalize(getattr(one, "pooler_output", one), dim=-1).numpy()
    for one in found
)
kind = type(model).__name__
""",
    "sentence-transformers": """
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, device="cpu")
images = model.encode([Image.open(path).convert("RGB") for path in paths])
words, kind = model.encode(texts), type(model).__name__
""",
    "texts": """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder + "/texts", device="cpu")
words, kind = model.encode(texts), type(model).__name__
images = np.zeros((0, words.shape[1]), np.float32)
""",
    "onnx": """
sys.path.insert(0, folder)
import example
images, words, kind = example.embed_images(paths), example.embed_texts(texts), "InferenceSession"
""",
}
END = """
np.savez(out, images=images, words=words)
Path(out + ".json").write_text(json.dumps([kind, "zslkit" in sys.modules]))
"""
OURS = "import zslkit.zeroshot.models.hugging_face\n"


def small_clip(folder):
    """Save a random CLIP of 32 pixels whose vocabulary is letters, as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    number = {name: i for i, name in enumerate([*letters, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=number, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [(name, number[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 4
    text = {**sizes, "vocab_size": len(number), "eos_token_id": number["<end>"],
            "bos_token_id": number["<start>"], "pad_token_id": number["<end>"]}  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    size = {"height": 32, "width": 32}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    for part in (model, pixels, tokens):
        part.save_pretrained(folder)
    return f"hf:{folder}"


def environment(place, packages, extra=()):
    """Make an environment with uv, with the versions of this one; give its Python."""
    uv = str(ROOT / ".venv/bin/uv") if (ROOT / ".venv/bin/uv").is_file() else "uv"
    python = place / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    if not python.is_file():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, place], check=True, env=clean)
    pinned = [f"{name}=={version(name)}" for name in packages]
    command = [uv, "pip", "install", "-q", "--python", python, *pinned, *extra]
    subprocess.run(command, check=True, env=clean)
    return python


def read(python, code, folder, work, paths, texts):
    """Let another Python embed photos and texts; give arrays and the kind of reader."""
    out = str(work / "found.npz")
    argument = json.dumps([str(folder), out, [str(path) for path in paths], texts])
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    clean |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([python, "-c", code, argument], check=True, cwd=work, env=clean)
    kind, with_us = json.loads(Path(out + ".json").read_text())
    found = np.load(out)
    return found["images"], found["words"], {"reader": kind, "zslkit imported": with_us}


def deviation(own, images, words):
    """Compare two pairs of embeddings, and how they rank the classes of each photo."""
    if not len(images):  # what reads texts alone
        return {"texts deviate by": float(np.abs(own[1] - words).max())}
    orders = [np.argsort(-(i @ w.T), axis=1, kind="stable") for i, w in (own, (images, words))]
    return {
        "images deviate by": float(np.abs(own[0] - images).max()),
        "texts deviate by": float(np.abs(own[1] - words).max()),
        "photos": len(images),
        "equal rankings": int((orders[0] == orders[1]).all(axis=1).sum()),
    }


@torch.no_grad()
def embeddings(model, photos, texts):
    """Give what the model itself says of photos and texts."""
    transform = model.image_transform(train=False)
    pixels = torch.stack([transform(photo) for photo in photos])
    return model.encode_image(pixels).numpy(), model.encode_text(texts).numpy()


def write(results):
    """Write what was found so far."""
    facts = {
        "what": "largest deviation of an embedding's component, and rankings of 20 classes on 50 "
        "Flickr8k test photos, in environments that uv made; without zslkit: ONNX, and runs "
        "in the space of a CLIP; with zslkit beside the reader: runs with a projection of ours",
        **results,
        "machine": machine(),
        **STATE,
    }
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


def main(data_root, cache_dir=None):
    """Train, export, read elsewhere, compare."""
    results = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        cache = cache_dir or str(work / "cache")
        common = {"cache_dir": cache, "threads": 1}
        laptop = zk.train(
            zk.RunConfig.preset("laptop", data_root=data_root, output_dir=str(work / "laptop"),
                                **common)
        )  # fmt: skip
        name = small_clip(work / "small")
        own_space = zk.train(
            zk.RunConfig(
                image_encoder=name, text_encoder=name, image_weights="pretrained",
                text_weights="pretrained", image_size=32, projection="none", max_pairs=256,
                soft_targets="none", epochs=1, learning_rate=1e-3, output_dir=str(work / "own"),
                **common,
            )
        )  # fmt: skip
        pairs = zk.open_pairs("flickr8k", "test", data_root=data_root, max_pairs=50)
        paths = [work / f"{i}.png" for i in range(len(pairs))]
        photos = [pair.image for pair in pairs]
        for path, photo in zip(paths, photos, strict=True):
            photo.save(path)
        names = zk.open_pairs("caltech20", "all", data_root=data_root).class_names
        texts = [f"a photo of a {name}." for name in names]
        runs = {"laptop, Flickr8k": laptop, "CLIP in its own space": own_space}
        for title, run in runs.items():
            own = embeddings(run.model, photos, texts)
            stock = zk.zeroshot.models.stock.library_of(run.model) is not None
            for format in ("zslkit", "transformers", "sentence-transformers", "onnx"):
                folder = work / f"{run.run_dir.name}-{format}"
                parity = export_model(run.model, folder, format, photos, names)
                row = {"where it was written": parity._asdict()}
                if format in PACKAGES and (format != "onnx" or not stock):
                    # ours where no class of theirs holds the model: a bias behind pooled words
                    ours = format != "onnx" and not stock
                    extra = [ROOT] if ours else []
                    python = environment(work / f"env-{format}-{ours}", PACKAGES[format], extra)
                    code = START + (OURS if ours else "") + READ[format] + END
                    *found, facts = read(python, code, folder, work, paths, texts)
                    row["elsewhere"] = deviation(own, *found) | facts
                    row["elsewhere"]["packages asked for"] = [
                        *PACKAGES[format], *(["zslkit"] if ours else [])
                    ]  # fmt: skip
                    if (folder / "texts").is_dir():
                        python = environment(work / "env-texts", PACKAGES[format])
                        code = START + READ["texts"] + END
                        *found, facts = read(python, code, folder, work, paths, texts)
                        row["its texts, without zslkit"] = deviation(own, *found) | facts
                print(title, format, json.dumps(row), flush=True)
                results.setdefault(title, {})[format] = row
                write(results)  # each row takes a minute: what is known stays


if __name__ == "__main__":
    main(*sys.argv[1:])
