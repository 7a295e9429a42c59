"""One name in, a model out: public checkpoints, runs and exported folders."""

from pathlib import Path
from typing import Any

from zslkit.checkpoint import Run, load_run
from zslkit.config import RunConfig
from zslkit.zeroshot.models.pretrained import (
    PretrainedModel,
    is_contrastive,
    is_pretrained_name,
    load_parts,
)
from zslkit.zeroshot.models.protocol import as_model, own_model
from zslkit.zeroshot.models.restoring import from_pretrained
from zslkit.zeroshot.models.saving import SAVED


def load_model(name: Any) -> Any:
    """Load a model to evaluate, ask, embed with and compare, without any training.

    Parameters
    ----------
    name : str, Path or object
        ``open_clip:ViT-B-32/laion2b_s34b_b79k`` (MODEL/WEIGHTS; weights are a tag or a file),
        ``open_clip:hf-hub:NAME``, ``open_clip:local-dir:FOLDER``, ``hf:NAME_OR_FOLDER`` of a
        CLIP or SigLIP checkpoint, the folder of a run, a folder that ``save_pretrained`` wrote,
        ``zslkit:NAME`` of one on the hub, ``WORD:ANYTHING`` of your own ``MODELS``. A
        :class:`~zslkit.zeroshot.models.ZeroShotModel` is taken as it is.

    Returns
    -------
    Module
        In eval mode on the CPU, with ``encode_image``, ``encode_text``, ``image_transform`` and
        ``logit_scale``.

    Raises
    ------
    ValueError
        For a name that is none of these.
    OSError
        If it cannot be loaded.
    """
    found = open_model(name)
    return found.model if isinstance(found, Run) else found


def open_model(name: Any) -> Any:
    """Load like :func:`load_model`, but give a run whole."""
    if not isinstance(name, str | Path):
        return as_model(name).eval()
    if (own := own_model(name)) is not None:
        return own.eval()
    if is_pretrained_name(str(name)):
        return PretrainedModel(str(name), load_parts(str(name))).eval()
    if str(name).startswith("zslkit:"):
        return from_pretrained(str(name).partition(":")[2])
    folder = Path(name)
    if (folder / SAVED).is_file():
        return from_pretrained(folder)
    if (folder / "checkpoints").is_dir():
        return load_run(folder)
    if folder.is_dir() and is_contrastive(f"hf:{folder}"):
        return open_model(f"hf:{folder}")
    if folder.is_dir():
        raise ValueError(
            f"model={str(name)!r}: this folder holds no run with a checkpoint, nothing that "
            "save_pretrained wrote and no CLIP or SigLIP model of transformers"
        )
    word, colon, _ = str(name).partition(":")
    register = f"; or register {word!r} in zslkit.zeroshot.models.MODELS" if colon else ""
    raise ValueError(
        f"model={str(name)!r}: no such folder; give that of a run or of an exported model, "
        "open_clip:MODEL/WEIGHTS, hf:NAME_OR_FOLDER or zslkit:NAME" + register
    )


def open_run(name: Any) -> Run:
    """Load like :func:`load_model`, dressed as a run: what measures runs then measures it."""
    found = open_model(name)
    if isinstance(found, Run):
        return found
    name = str(name)
    folder = Path(name) if Path(name).is_dir() else Path("evaluations", name.replace("/", "_"))
    return Run(found, settings_of(found), [], folder)


def settings_of(model: Any) -> RunConfig:
    """Give the configuration that a model was trained with, or one that asks for nothing."""
    config = getattr(model, "config", None)
    return config if isinstance(config, RunConfig) else RunConfig(zeroshot_manifest=None)
