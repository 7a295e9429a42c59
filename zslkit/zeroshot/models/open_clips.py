"""Models of open_clip, loaded with all that their published weights were trained with."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from zslkit.data.files import write_json
from zslkit.data.strict import nearest
from zslkit.zeroshot.models.parts import (
    LibraryTransform,
    Parts,
    PretrainedImageTower,
    PretrainedTextTower,
    first_line,
    side_of,
)

CONFIG = "open_clip_config.json"
_SCHEMAS = ("hf-hub:", "local-dir:")


def load_open_clip(name: str, source: str, weights: str, field: str) -> Parts:
    """Load ``MODEL/WEIGHTS``, ``hf-hub:NAME`` or ``local-dir:FOLDER`` and take it apart.

    Raises
    ------
    ValueError
        If open_clip is not there, does not know the model, or it is not two towers.
    OSError
        If it cannot be loaded.
    """
    try:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
    except ImportError:
        raise ValueError(
            f"{field}={name!r}: needs open_clip; install it with: pip install 'zslkit[openclip]'"
        ) from None
    schema = source.startswith(_SCHEMAS)
    model_name, tag = (source, "") if schema else source.partition("/")[::2]
    if not schema and open_clip.get_model_config(model_name) is None:
        hint = nearest(model_name, open_clip.list_models())
        raise ValueError(f"{field}={name!r}: open_clip has no model {model_name!r}; {hint}")
    pretrained = weights == "pretrained"
    if pretrained and not schema and not tag:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ValueError(
            f"{field}={name!r}: says no weights; write open_clip:{model_name}/WEIGHTS with a file "
            f"or one of {', '.join(tags) or '(no published weights)'}"
        )
    # what the weights were trained with stands at their tag: pixel statistics, and an activation
    # that ViT-B-32/openai and 26 others have otherwise than the model that they are named under
    trained_with = open_clip.get_pretrained_cfg(model_name, tag) if tag else {}
    quick_gelu = bool(trained_with.get("quick_gelu"))
    try:
        clip = open_clip.create_model(
            model_name,
            (tag or None) if pretrained else None,  # with a tag it downloads, needed or not
            load_weights=pretrained,
            force_quick_gelu=quick_gelu,
            force_preprocess_cfg=trained_with,
            force_custom_text=True,  # one layout: .visual and .text
            require_pretrained=pretrained and not schema,
            pretrained_text=False,
            weights_only=True,
        )
        tokenizer = open_clip.get_tokenizer(model_name)
        config = _config_of(model_name, schema)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{field}={name!r}: could not be loaded ({first_line(error)})") from error
    if not isinstance(clip, open_clip.CustomTextCLIP):
        raise ValueError(f"{field}={name!r}: {type(clip).__name__} is not a model of two towers")
    facts = dict(clip.visual.preprocess_cfg)
    process = image_transform_v2(PreprocessCfg(**facts), is_train=False)
    size = side_of(clip.visual.image_size)
    transform = LibraryTransform(process, size, facts["mean"], facts["std"], ["open_clip", facts])
    changes = {"custom_text": True} | ({"quick_gelu": True} if quick_gelu else {})
    files = OpenClipFiles({**config, **changes}, facts, tokenizer)
    image = PretrainedImageTower(name, clip.visual, transform, files)
    text = PretrainedTextTower(name, clip.text, tokenizer, image.feature_dim)
    text.files = files
    return Parts(image, text, clip.logit_scale, clip.logit_bias, (clip, process, tokenizer))


class OpenClipFiles(NamedTuple):
    """All but the weights that a folder for ``open_clip:local-dir:FOLDER`` needs."""

    config: dict[str, Any]
    """Of the model, with the activation of its weights."""
    preprocessing: dict[str, Any]
    tokenizer: Any

    def save_into(self, folder: Path) -> None:
        """Write configuration and, where it is not open_clip's own, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"model_cfg": self.config, "preprocess_cfg": self.preprocessing}
        write_json(folder / CONFIG, facts)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)


def _config_of(model_name: str, schema: bool) -> dict[str, Any]:
    """Read what open_clip builds a model from."""
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    if not schema:
        return open_clip.get_model_config(model_name)
    place = model_name.partition(":")[2]
    local = model_name.startswith("local-dir:")
    path = Path(place, CONFIG) if local else download_pretrained_from_hf(place, CONFIG)
    return json.loads(Path(path).read_text("utf-8"))["model_cfg"]
