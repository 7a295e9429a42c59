"""Embeddings of frozen towers on disk, keyed by content: embed once, train in seconds."""

import hashlib
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from zslkit.config import RunConfig, parse_tower_mode
from zslkit.data.embedding import ImageVectors, embed_batches, in_blocks
from zslkit.data.files import whole
from zslkit.data.parts import parts_in
from zslkit.data.sealed import checksum, read_sealed, write_sealed
from zslkit.data.signals import Stop, interruptible
from zslkit.data.weights import fingerprint
from zslkit.encoders.dual import DualEncoder
from zslkit.encoders.image import ImageTransform

_LAYOUT = 2  # part of every key: raise it when what is stored changes


class Embeddings(NamedTuple):
    """Features of a frozen tower, memory-mapped, and which images could not be read."""

    features: Tensor
    """(N, F) float32 in the order of the items; zero rows where unreadable."""
    broken: tuple[str, ...]
    """Keys of unreadable images."""

    def readable(self, keys: Sequence[str]) -> np.ndarray:
        """Give the rows of the items, named by ``keys``, that could be read."""
        return np.flatnonzero(~np.isin(np.array(list(keys)), self.broken))


def embed(
    tower: nn.Module,
    items: Sequence,
    cache_dir: str | Path | None,
    *,
    image_size: int | None = None,
    transform: Callable | None = None,
    batch_size: int = 128,
    workers: int = 0,
    device: torch.device | str = "cpu",
    description: str = "embedding",
) -> Embeddings:
    """Embed texts or images with a frozen tower, or read what an earlier call stored.

    The key hashes the tower's weights, the preprocessing and the items' content, so a stale
    entry cannot be read and two runs over the same data share one. Entries carry checksums: a
    damaged one is named in a warning and computed again. A signal that asks to stop keeps what is
    finished; the next call goes on from there.

    Parameters
    ----------
    tower : Module
        ``ImageTower`` or a text tower.
    items : Pairs or sequence of str
        Images to decode, or texts.
    cache_dir : path or None
        None computes without keeping.
    image_size : int, optional
        Side of the square for images, in pixels; None means that items are texts.
    transform : callable, optional
        Map from an image to pixels, in place of the central square; one without a ``key``, the
        text that tells it from others, keeps nothing in the cache.
    batch_size : int
        Images, or texts of similar length, that pass the tower at once.
    workers : int
        Processes that decode images.
    description : str
        Name of the progress bar.

    Returns
    -------
    Embeddings
        Features of shape (N, F).
    """
    path = _entry(tower, items, cache_dir, image_size, transform)
    if path is not None and (stored := _stored(path)) is not None:
        return stored
    if image_size is not None:
        transform = transform or ImageTransform(image_size, train=False)
        options = {"transform": transform, "device": device, "workers": workers}

    def chunks(start: int) -> Iterator[ImageVectors]:
        """Embed the blocks from number ``start`` on."""
        if image_size is None:
            return _texts(tower, items, batch_size, start)
        return embed_batches(tower, items, in_blocks(len(items), batch_size)[start:], **options)

    rows = None  # a user's tower does not say how wide its vectors are before it gives one
    broken: list[str] = []
    training = tower.training
    tower.to(device).eval()
    bar = tqdm(total=len(items), desc=description, unit="item", leave=False, delay=2, disable=None)
    parted, kept = path and path.with_suffix(".parts"), "stopping; finished features are kept"
    catching = nullcontext(Stop()) if path is None else interruptible(kept)
    with parts_in(parted) as parts, catching as stop, torch.inference_mode(), bar:
        for indices, vectors, unreadable in parts.read():
            rows = _blank(len(items), vectors.shape[1]) if rows is None else rows
            rows[indices] = vectors
            broken.extend(unreadable)
            bar.update(len(indices) + len(unreadable))
        for indices, vectors, unreadable in chunks(parts.n_blocks):
            found = None if vectors is None else vectors.float().cpu().numpy()
            if found is not None:
                rows = _blank(len(items), found.shape[1]) if rows is None else rows
                rows[indices] = found
            broken.extend(unreadable)
            bar.update(len(indices) + len(unreadable))
            parts.add(indices, found, unreadable)
            if stop.signum is not None:
                parts.flush()
                break
        parts.done = stop.signum is None
    tower.train(training)
    if stop.signum is not None:
        signal.raise_signal(stop.signum)  # its usual effect, now that the work is kept
        return embed(  # somebody outside only takes note of it
            tower, items, cache_dir, image_size=image_size, transform=transform,
            batch_size=batch_size, workers=workers, device=device, description=description,
        )  # fmt: skip
    rows = _blank(len(items), getattr(tower, "feature_dim", 1)) if rows is None else rows
    if path is None:
        return Embeddings(torch.from_numpy(rows), tuple(broken))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, rows)
        # the facts first, each file whole: whoever finds the array can read both
        facts = {"broken": broken, "items": len(items), "description": description}
        write_sealed(path.with_suffix(".json"), {**facts, "array": checksum(temporary)})
    return Embeddings(_open(path), tuple(broken))


def tower_features(
    model: DualEncoder, items: Sequence, config: RunConfig, description: str
) -> Embeddings:
    """Embed a list of texts, or the images of pairs, with the tower of ``model`` that reads them.

    A frozen tower's features come from ``config.cache_dir``; see :func:`embed`. Those of reviewed
    pairs are rows of what is kept for the pairs before, so that a review embeds nothing anew.
    """
    if (before := getattr(items, "unreviewed", None)) is not None:
        return _reviewed(tower_features(model, before, config, description), items)
    tower, cache_dir, view = _asked(model, items, config)
    return embed(
        tower,
        items,
        cache_dir,
        **view,
        workers=config.workers,
        device=next(model.parameters()).device,
        description=description,
    )


def kept_features(model: DualEncoder, pairs: Sequence, config: RunConfig) -> Embeddings | None:
    """Read what :func:`tower_features` would give of images; None where it would embed them."""
    if (before := getattr(pairs, "unreviewed", None)) is not None:
        found = kept_features(model, before, config)
        return None if found is None else _reviewed(found, pairs)
    tower, cache_dir, view = _asked(model, pairs, config)
    path = _entry(tower, pairs, cache_dir, **view)
    return None if path is None else _stored(path)


def caption_features(
    model: DualEncoder, pairs: Sequence, config: RunConfig, description: str
) -> tuple[Tensor, np.ndarray]:
    """Embed the distinct captions of pairs; give their features and each caption's row there.

    Those that a review has brought in are embedded apart from those that were there before.
    """
    known = captions = [text for group in pairs.captions for text in group]
    if (before := getattr(pairs, "unreviewed", None)) is not None:
        known = [text for group in before.captions for text in group]
    # distinct and sorted: swapped captions are the same texts, so they share an entry
    texts = sorted(set(known))
    features = tower_features(model, texts, config, description).features
    if new := sorted(set(captions).difference(texts)):
        texts = texts + new
        more = tower_features(model, new, config, description).features
        features = torch.cat([features, more])
    row_of = {text: row for row, text in enumerate(texts)}
    return features, np.fromiter((row_of[text] for text in captions), int, len(captions))


def _asked(
    model: DualEncoder, items: Sequence, config: RunConfig
) -> tuple[nn.Module, str | None, dict[str, Any]]:
    """Give the tower that reads items, where it may keep features, and how it sees images."""
    side = "text" if isinstance(items, list) else "image"
    still = getattr(model, "never_trains", False)
    frozen = still or parse_tower_mode(getattr(config, f"{side}_tower")) == 0
    transform = model.image_transform(train=False) if side == "image" else None
    view = {"image_size": config.image_size if side == "image" else None}
    view["transform"] = None if isinstance(transform, ImageTransform) else transform
    return getattr(model, f"{side}_tower"), config.cache_dir if frozen else None, view


def _reviewed(found: Embeddings, pairs: Sequence) -> Embeddings:
    """Take the rows of reviewed pairs from the features of the pairs before the review."""
    if len(pairs.reviewed_rows) == len(found.features):
        return found
    here = {*pairs.keys.tolist()}
    broken = tuple(key for key in found.broken if key in here)
    return Embeddings(found.features[pairs.reviewed_rows], broken)


def _entry(
    tower: nn.Module,
    items: Sequence,
    cache_dir: str | Path | None,
    image_size: int | None,
    transform: Callable | None,
) -> Path | None:
    """Say which file holds these features; None where nothing may be kept."""
    own = "" if transform is None else getattr(transform, "key", None)
    if cache_dir is None or own is None or not getattr(tower, "cacheable", True):
        return None
    content = _hash(items) if image_size is None else items.image_fingerprint
    key = _hash([f"{_LAYOUT} {fingerprint(tower)} {image_size} {content}{own}"])[:32]
    return Path(cache_dir) / f"{key}.npy"


def _stored(path: Path) -> Embeddings | None:
    """Read an entry; None where there is none, or it is damaged, which a warning says."""
    if not path.is_file():
        return None
    try:
        facts = read_sealed(path.with_suffix(".json"))
        if checksum(path) == facts["array"]:
            return Embeddings(_open(path), tuple(facts["broken"]))
        problem = f"{str(path)!r} is damaged: its SHA-256 differs"
    except (OSError, ValueError) as error:
        problem = str(error)
    warnings.warn(f"cached features: {problem}; they are computed again", stacklevel=3)
    return None


def _texts(
    tower: nn.Module, texts: Sequence[str], batch_size: int, first: int
) -> Iterator[ImageVectors]:
    """Batch texts of similar length: padding would be most of the work otherwise."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(first * batch_size, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield ImageVectors(rows, tower([texts[i] for i in rows]), ())


def _blank(n_items: int, width: int) -> np.ndarray:
    return np.zeros((n_items, width), dtype=np.float32)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _open(path: Path) -> Tensor:
    # "c": torch wants writable memory; copy-on-write never reaches the file
    return torch.from_numpy(np.load(path, mmap_mode="c"))
