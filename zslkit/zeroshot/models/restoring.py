"""Read a folder that ``save_pretrained`` wrote."""

import json
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.data.weights import load_tensors
from zslkit.encoders.dual import build_dual_encoder
from zslkit.zeroshot.models.open_clips import CONFIG
from zslkit.zeroshot.models.pretrained import PretrainedModel, load_parts
from zslkit.zeroshot.models.saving import SAVED, read_bank


def from_pretrained(folder_or_name: str | Path) -> Any:
    """Load what ``save_pretrained`` wrote: a folder, or the name of a model on the hub.

    Returns
    -------
    Module
        In eval mode on the CPU; ``class_bank`` holds the classes that were saved, or None.

    Raises
    ------
    ValueError
        If the folder was written by something else, by a newer version, or its weights do not
        fit.
    OSError
        If the hub cannot be reached.
    """
    folder = Path(folder_or_name)
    if not folder.is_dir():
        folder = _from_hub(str(folder_or_name))
    if not (folder / SAVED).is_file():
        raise ValueError(f"folder={str(folder)!r}: no {SAVED} here; save_pretrained writes one")
    facts = json.loads((folder / SAVED).read_text("utf-8"))
    if facts["format"] != 1:
        raise ValueError(
            f"folder={str(folder)!r}: format {facts['format']}, this version reads 1; update zslkit"
        )
    names = {side: _buildable(folder, tower) for side, tower in facts["towers"].items()}
    if facts["kind"] == "dual":
        config = RunConfig(**facts["config"])
        changes = {f"{side}_encoder": name for side, name in names.items()}
        changes |= {"image_weights": "none", "text_weights": "none"}
        model = build_dual_encoder(config.model_copy(update=changes))
        model.config = config
    else:
        model = PretrainedModel(names["image"], load_parts(names["image"], "none"))
    load_tensors(model, folder / "model.safetensors", model.state_dict().keys(), "the saved model")
    for side, tower in facts["towers"].items():  # as they were called: caches know them so
        getattr(model, f"{side}_tower").name = tower["name"]
    model.class_bank = read_bank(folder)
    return model.eval()


def _buildable(folder: Path, tower: dict[str, Any]) -> str:
    """Name a tower so that it can be built without weights of its own."""
    place = tower["folder"] and folder / tower["folder"]
    if place is None:
        return tower["name"]
    return f"open_clip:local-dir:{place}" if (place / CONFIG).is_file() else f"hf:{place}"


def _from_hub(name: str) -> Path:
    import huggingface_hub

    if name.count("/") != 1:
        raise ValueError(f"model={name!r}: neither a folder nor a name ACCOUNT/MODEL of the hub")
    try:
        return Path(huggingface_hub.snapshot_download(name))
    except Exception as error:  # its errors are of many families; all mean the same here
        words = str(error).strip().partition("\n")[0]
        raise OSError(f"model={name!r}: could not be had from the hub ({words})") from error
