"""Weights from files, and their fingerprint."""

import hashlib
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn

from zslkit.data.sealed import checksum

_PLAIN = ("mean", "", True)  # how texts were read before there were cards


def fingerprint(tower: nn.Module) -> str:
    """Hash a tower's name, weights and buffers; equal fingerprints give equal features."""
    facts = f"{getattr(tower, 'name', '')}{getattr(tower, 'max_tokens', '')}"
    if tuple(card := getattr(tower, "card", ())) not in ((), _PLAIN):
        facts += str(card)
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted({**tower.state_dict(), **dict(tower.named_buffers())}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_tensors(
    module: nn.Module, path: Path, names: Collection[str], owner: str, field: str = ""
) -> None:
    """Load those tensors of a module that are named from a safetensors file.

    Raises
    ------
    ValueError
        If the file holds fewer, others, or some of another shape; ``owner`` and ``field`` say
        in the message what the file is for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored, own = load_file(path), module.state_dict()
    except FileNotFoundError:
        raise ValueError(f"{field}{str(path)!r}: no such file") from None
    except SafetensorError as error:
        raise ValueError(f"{field}{str(path)!r}: not a safetensors file ({error})") from None
    problems = [f"{name} missing" for name in names if name not in stored]
    problems += [f"{name} unexpected" for name in stored if name not in names]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, not {tuple(own[name].shape)}"
        for name in names
        if name in stored and stored[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(
            f"{field}{str(path)!r} does not fit {owner}: {len(problems)} tensor(s) differ, "
            f"the first: {problems[0]}"
        )
    module.load_state_dict(stored, strict=False)


def check_finite(
    tensors: Mapping[str, Mapping[str, torch.Tensor]], step: int, run_dir: Path
) -> None:
    """Raise FloatingPointError if a tensor that is to be saved, by part and name, is not finite."""
    spoilt = [
        f"{name} ({part})"
        for part, those in tensors.items()
        for name, tensor in those.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if spoilt:
        raise FloatingPointError(
            f"step {step} left {len(spoilt)} tensor(s) that are not finite, the first: "
            f"{spoilt[0]}; they are not saved. Try a lower learning_rate; "
            f"{str(run_dir)!r} keeps its last checkpoint"
        )


def check_download(url: str) -> Path:
    """Fetch weights of a torch library unless they are there, and see that they are no code.

    The library would unpickle whatever lies in torch's folder under that name.

    Returns
    -------
    Path
        The file, whose SHA-256 begins as its name says and which holds nothing but tensors.

    Raises
    ------
    ValueError
        If the file is another, or asks to run code; names it.
    OSError
        If it cannot be fetched.
    """
    import pickle

    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    prefix = name.rpartition("-")[2].partition(".")[0]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, path, prefix, progress=False)
    if not (digest := checksum(path)).startswith(prefix):
        raise ValueError(
            f"{str(path)!r} is not what was published under its name (SHA-256 {digest[:12]}…): "
            "delete it, and it is fetched again"
        )
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{str(path)!r} holds more than tensors ({error}): delete it") from None
    return path


def packaged_file(package: str, pattern: str) -> Path | None:
    """Find a file that an installed Python package carries, without importing the package."""
    found = importlib.util.find_spec(package) if package else None
    folders = found.submodule_search_locations if found else ()
    return next((file for folder in folders for file in Path(folder).glob(pattern)), None)


def load_in_order(module: nn.Module, path: Path, owner: str) -> None:
    """Load a checkpoint of the same network under other names: tensor by tensor, in order.

    Raises
    ------
    ValueError
        If the number of tensors, or the shape of one, differs.
    """
    stored, own = torch.load(path, map_location="cpu", weights_only=True), module.state_dict()
    if [value.shape for value in stored.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"{path.name} does not fit {owner}: number or shapes of tensors differ")
    module.load_state_dict(dict(zip(own, stored.values(), strict=True)))
