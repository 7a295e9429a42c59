"""Zero-shot evaluation in one pass over the images, for tens of thousands of classes.

Dimensions: N = images, C = classes of a label space, U = names in its bank, K = names kept,
D = embedding, M = true classes of all images. Memory is O(N K + U D): neither N x C scores nor
images are kept. What has been ranked lies on disk in parts, so that a killed evaluation goes on.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from zslkit.data.embedding import ImageVectors, embed_batches
from zslkit.data.files import whole, write_json
from zslkit.data.pairs import Pairs
from zslkit.data.sampling import check_broken
from zslkit.data.weights import fingerprint
from zslkit.encoders.dual import DualEncoder
from zslkit.training import dist
from zslkit.zeroshot.ranking import ClassBank, rank_and_total


class Ranking(NamedTuple):
    """What one pass keeps of N readable images for one bank."""

    scores: Tensor
    """(N, K) cosine similarities, float32, best first."""
    indices: Tensor
    """(N, K) rows of the bank, int32: half the space."""
    totals: Tensor
    """(N,) logarithm of the softmax's denominator over all U names, at the learned scale."""
    asked: Tensor
    """(A,) similarities of the (image, name) pairs that were asked for, in their order."""


class Asked(NamedTuple):
    """(image, name) pairs whose similarity is wanted whatever its rank, sorted by image."""

    images: np.ndarray
    """(A,) int64, positions in the pairs."""
    rows: np.ndarray
    """(A,) int64, rows of the bank."""


NOTHING = Asked(np.empty(0, np.int64), np.empty(0, np.int64))


@torch.inference_mode()
def rank_images(
    model: DualEncoder,
    pairs: Pairs,
    banks: Mapping[str, ClassBank],
    depths: Mapping[str, int],
    folder: str | Path,
    *,
    asked: Mapping[str, Asked] | None = None,
    batch_size: int = 256,
    block_size: int = 4096,
    workers: int = 0,
    max_unreadable: float = 0.01,
) -> tuple[np.ndarray, dict[str, Ranking]]:
    """Read, embed and rank images once, against any number of banks.

    Parts of ``block_size`` images are written to ``folder`` as they are done; called again with
    the same arguments it goes on from there. Started by torchrun, each process takes every
    world-size-th part; all must see the folder.

    Parameters
    ----------
    depths : mapping of str to int
        Names K to keep for each bank.
    asked : mapping of str to Asked, optional
        Similarities to keep besides.
    max_unreadable : float
        Share of unreadable images above which it stops.

    Returns
    -------
    readable : ndarray of shape (N,), int64
        Positions of the images that could be read.
    rankings : dict of str to Ranking

    Raises
    ------
    ValueError
        If ``folder`` holds parts of another evaluation, or too many images are unreadable.
    """
    asked = {name: (asked or {}).get(name, NOTHING) for name in banks}
    folder, device = Path(folder), next(model.parameters()).device
    model.eval()
    plan = {
        "model": fingerprint(model),
        "images": pairs.image_fingerprint,
        "banks": {name: _hash(bank) for name, bank in banks.items()},
        "kept": {name: [depths[name], _checksum(*asked[name])] for name in banks},
        "block_size": block_size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder / "plan.json", plan)
    blocks = np.split(np.arange(len(pairs)), range(block_size, len(pairs), block_size))
    parts = [folder / f"part-{number:06d}.safetensors" for number in range(len(blocks))]
    there = [banks[name]._replace(embeddings=banks[name].embeddings.to(device)) for name in banks]
    todo = [
        (part, block)
        for part, block in [*zip(parts, blocks, strict=True)][dist.rank() :: dist.world_size()]
        if not _is_sound(part)
    ]
    nothing = there[0].embeddings[:0]  # a part may hold no readable image at all
    bar = tqdm(
        total=sum(len(block) for _, block in todo),
        desc="images",
        unit="image",
        leave=False,
        delay=2,
        disable=None,  # where nobody looks
    )
    with bar:
        for part, batches in _embedded(model, pairs, todo, batch_size, workers):
            rows, broken, embeddings = [], [], [nothing]
            for batch in batches:
                rows.append(batch.rows)
                broken.extend(batch.broken)
                embeddings.extend([] if batch.vectors is None else [batch.vectors])
                bar.update(len(batch.rows) + len(batch.broken))
            rows, embeddings = np.concatenate(rows), torch.cat(embeddings)
            found = {
                name: Ranking(
                    *rank_and_total(embeddings, bank, depths[name], model.logit_scale),
                    _asked_here(asked[name], rows, embeddings, bank),
                )
                for name, bank in zip(banks, there, strict=True)
            }
            _write_part(part, rows, broken, found)
    dist.smallest(0)  # wait until every process has written its parts
    found = _collect(parts, banks, len(pairs), max_unreadable)
    dist.smallest(0)  # ... and has read them
    return found


def _embedded(
    model: DualEncoder, pairs: Pairs, todo: Sequence[tuple], batch_size: int, workers: int
) -> Iterator[tuple[Path, Iterator[ImageVectors]]]:
    """Read and embed blocks of images in one stream, so that readers never wait for a block."""
    batches = [
        [block[start : start + batch_size] for start in range(0, len(block), batch_size)]
        for _, block in todo
    ]
    every = [rows for block in batches for rows in block]
    stream = embed_batches(
        model.encode_image,
        pairs,
        every,
        transform=model.image_transform(train=False),
        device=next(model.parameters()).device,
        workers=workers,
    )
    for (part, _), block in zip(todo, batches, strict=True):
        yield part, itertools.islice(stream, len(block))


def _asked_here(asked: Any, rows: np.ndarray, embeddings: Tensor, bank: ClassBank) -> Tensor:
    """Give the asked similarities of the images ``rows``, of which ``embeddings`` are."""
    low, high = np.searchsorted(asked.images, [rows[0], rows[-1] + 1])
    images, names = asked.images[low:high], asked.rows[low:high]
    place = np.searchsorted(rows, images)
    here = rows[place] == images
    return (embeddings[place[here]] * bank.embeddings[names[here]]).sum(dim=1)


def _write_part(
    path: Path, rows: np.ndarray, broken: list[str], found: Mapping[str, Ranking]
) -> None:
    tensors = {"rows": torch.from_numpy(rows)}
    for name, ranking in found.items():
        for field, values in ranking._asdict().items():
            tensors[f"{name}|{field}"] = (values.int() if field == "indices" else values).cpu()
    with whole(path) as temporary:
        save_file(tensors, temporary, {"broken": json.dumps(broken)})


def _collect(
    parts: Sequence[Path],
    banks: Mapping[str, ClassBank],
    n_images: int,
    max_unreadable: float,
) -> tuple[np.ndarray, dict[str, Ranking]]:
    loaded, broken = [], []
    for part in parts:
        loaded.append(load_file(part))
        with safe_open(part, "pt") as file:
            broken.extend(json.loads(file.metadata()["broken"]))
    check_broken(broken, n_images, max_unreadable)
    rows = torch.cat([part["rows"] for part in loaded]).numpy()
    rankings = {
        name: Ranking(
            *(torch.cat([part[f"{name}|{field}"] for part in loaded]) for field in Ranking._fields)
        )
        for name in banks
    }
    return rows, rankings


def _agree(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan of an evaluation, or make sure that the one there is the same."""
    if path.is_file():
        there = json.loads(path.read_text("utf-8"))
        if different := [field for field in plan if there.get(field) != plan[field]]:
            raise ValueError(
                f"{path.parent} holds parts of another evaluation ({', '.join(different)} differ); "
                "give another output_dir, or remove that folder"
            )
    elif dist.rank() == 0:
        write_json(path, plan)


def _is_sound(part: Path) -> bool:
    """Tell whether a part is there and whole; one that is not is made again."""
    try:
        with safe_open(part, "pt") as file:
            return "broken" in file.metadata()
    except (FileNotFoundError, SafetensorError):
        return False


def _hash(bank: ClassBank) -> str:
    names = hashlib.sha256("\n".join(bank.class_names).encode()).hexdigest()
    return f"{names} {_checksum(bank.embeddings.cpu().numpy())}"


def _checksum(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
