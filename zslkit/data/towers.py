"""Which image networks there are, known before one is built or an image is read."""

from collections.abc import Callable

from zslkit.data.strict import nearest

IMAGE_LIBRARIES: dict[str, Callable[[str, str], tuple]] = {}
"""Networks of your own, by the word before the colon of ``image_encoder``: functions of the name
behind it and of ``image_weights``. They give the network without its classifier, (B, 3, S, S) →
(B, F), and mean and deviation of the pixels that it expects, three numbers each."""

# Known without asking their library, whose import takes seconds: those of the presets.
USUAL = {"timm:test_byobnet", "timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite2"}
USUAL |= {"torchvision:resnet50", "torchvision:mobilenet_v2"}


def check_image_encoder(name: str) -> None:
    """Refuse an image encoder that no library has; halves of a CLIP are found when opened.

    Raises
    ------
    ValueError
        With the nearest names.
    """
    library, _, model_name = name.partition(":")
    if name in USUAL or library in IMAGE_LIBRARIES or library in ("open_clip", "hf"):
        return
    if library == "torchvision":
        from torchvision import models

        # left out: those that return auxiliary logits beside the features while they train
        known = models.list_models(module=models, exclude=["googlenet", "inception_v3"])
    elif library == "timm":
        import timm

        known = timm.list_models() + timm.list_pretrained()
    else:
        raise ValueError(
            f"image_encoder={name!r}: must start with torchvision: or timm:, or name half of a "
            "CLIP by open_clip: or hf:"
        )
    if model_name not in known:
        hint = nearest(model_name, known)
        raise ValueError(f"image_encoder={model_name!r}: no such {library} encoder; {hint}")
