"""A model as a folder that needs nothing else: weights, configuration, tokenizer, classes, card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zslkit.data.files import whole, write_json, write_text
from zslkit.zeroshot.models.cards import model_card
from zslkit.zeroshot.ranking import ClassBank

SAVED = "zslkit.json"
BANK = "class_bank.safetensors"
_FORMAT = 1


class Saves:
    """Models that can be written to a folder and to the hub."""

    class_bank: ClassBank | None = None
    """Classes that the folder came with, or that :meth:`save_pretrained` was given."""

    def save_pretrained(
        self,
        folder: str | Path,
        class_bank: ClassBank | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a folder that :func:`zslkit.from_pretrained` reads, without network.

        Parameters
        ----------
        folder : path
            Made if it is not there; what an earlier save left in it is replaced.
        class_bank : ClassBank, optional
            Classes to be recognised without the text encoder; those of the model else.
        run : mapping, optional
            What ``run.json`` of a run holds; the card tells it.

        Returns
        -------
        Path
            The folder: ``zslkit.json``, ``model.safetensors``, ``preprocessor_config.json``, the
            towers' own files under ``image`` and ``text``, ``class_bank.safetensors`` with
            ``classes.json``, and the model card ``README.md``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SAVED).is_file():  # else classes of another model would be read with this one
            for name in (BANK, "classes.json"):
                (folder / name).unlink(missing_ok=True)
            for side in ("image", "text"):
                shutil.rmtree(folder / side, ignore_errors=True)
        with whole(folder / "model.safetensors") as temporary:
            save_file(plain(self.state_dict()), temporary, {"format": "pt"})
        facts = {"format": _FORMAT, **self._saved_facts(folder)}
        write_json(folder / SAVED, facts)
        write_json(folder / "preprocessor_config.json", preprocessing(self))
        if bank := class_bank or self.class_bank:
            save_bank(folder, bank)
        write_text(folder / "README.md", model_card(self, facts, run, folder.resolve().name))
        return folder

    def push_to_hub(self, name: str, private: bool = True, **saved: Any) -> str:
        """Write the folder and upload it as the hub's model ``name`` (ACCOUNT/MODEL).

        Parameters
        ----------
        private : bool
            Visible to the account alone; the data's licence may not allow more.
        **saved
            For :meth:`save_pretrained`.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ValueError
            If the name is not ACCOUNT/MODEL.
        OSError
            If the hub cannot be reached or refuses.
        """
        import tempfile

        import huggingface_hub

        if name.count("/") != 1:
            raise ValueError(f"name={name!r}: must be ACCOUNT/MODEL")
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / name.rpartition("/")[2], **saved)
            hub = huggingface_hub.HfApi()
            try:
                hub.create_repo(name, private=private, exist_ok=True)
                return str(hub.upload_folder(repo_id=name, folder_path=folder))
            except Exception as error:  # its errors are of many families; all mean the same here
                words = str(error).strip().partition("\n")[0] or type(error).__name__
                raise OSError(
                    f"name={name!r}: could not be sent to the hub ({words}); save_pretrained "
                    "writes the same folder here"
                ) from error

    def _saved_facts(self, folder: Path) -> dict[str, Any]:
        """Describe how to build the model again, and save the files that this needs."""
        facts = origin(self)
        for side, tower in facts["towers"].items():
            files = getattr(getattr(self, f"{side}_tower"), "files", None)
            if files is not None:
                files.save_into(folder / side)
                tower["folder"] = side
        return facts


def origin(model: Any) -> dict[str, Any]:
    """Say which towers a model has and how it was trained."""
    config = getattr(model, "config", None)
    towers = {side: getattr(model, f"{side}_tower") for side in ("image", "text")}
    return {
        "kind": "pretrained" if config is None else "dual",
        "towers": {
            side: {"name": getattr(tower, "name", "small"), "folder": None}
            for side, tower in towers.items()
        },
        "config": None if config is None else config.model_dump(mode="json"),
    }


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors as safetensors wants them: on the CPU, none sharing memory with another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def save_bank(folder: Path, bank: ClassBank) -> None:
    """Write a class bank: (C, D) float32 and, beside it, the C names."""
    with whole(folder / BANK) as temporary:
        save_file({"embeddings": bank.embeddings.contiguous()}, temporary)
    write_json(folder / "classes.json", list(bank.class_names))


def read_bank(folder: Path) -> ClassBank | None:
    """Read what :func:`save_bank` wrote, None where there is none."""
    from safetensors.torch import load_file

    if not (folder / BANK).is_file():
        return None
    names = json.loads((folder / "classes.json").read_text("utf-8"))
    return ClassBank(load_file(folder / BANK)["embeddings"], tuple(names))


def preprocessing(model: Any) -> dict[str, Any]:
    """Describe, in the words of transformers' image processors, what happens to an image."""
    transform, tower = model.image_transform(train=False), model.image_tower
    size = transform.size
    facts = {
        "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
        "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size},
        "resample": 3, "rescale_factor": 1 / 255,
    }  # fmt: skip
    if hasattr(transform, "facts"):
        library, own = transform.facts
        if library == "transformers":
            return own
        squash = own.get("resize_mode") == "squash"
        facts["resample"] = 2 if own.get("interpolation") == "bilinear" else 3
        sides = {"height": size, "width": size}
        facts |= {"size": sides, "do_center_crop": False} if squash else {}
        mean, std = transform.mean, transform.std
    else:
        scale = tower.pixel_scale.flatten().double()  # 1 / (255 std)
        std = (1 / (255 * scale)).tolist()
        mean = (-tower.pixel_shift.flatten().double() / (255 * scale)).tolist()
        mean, std = ([round(value, 6) for value in values] for values in (mean, std))
    return facts | {"image_mean": list(mean), "image_std": list(std)}
