"""Bytes of an image file → RGB pixels: one strict door for every source of images."""

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # PIL's own bound: 256 MiB as RGB
_HEIF = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"}  # brands
MAX_ASPECT = 100  # long side by short side: resized to its short side, 50,000 × 1 fills gigabytes
# PIL reads many more, such as PostScript, for which it starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held


class BrokenImageError(ValueError):
    """The bytes are no image, not a whole image, or an unreasonably large one."""


def decode_image(data: bytes, source: str = "") -> torch.Tensor:
    """Decode an image file of any usual kind, upright, as RGB.

    JPEG is decoded strictly: PIL, torchvision and OpenCV return grey bands for damaged data
    without a word. Pixels and time equal theirs. EXIF orientation is applied; CMYK, palette and
    16-bit images become 8-bit RGB, transparent ones lie on white, an animation is its first frame.

    Parameters
    ----------
    data : bytes
        The whole file.
    source : str
        Begins the error message, such as ``"photo.jpg: "``.

    Returns
    -------
    Tensor of shape (3, H, W), uint8
        A view of rows of RGB triples, the layout that resizing is fastest on.

    Raises
    ------
    BrokenImageError
        If the data is empty, not an image of one of ``FORMATS``, truncated, corrupt, or beyond
        ``MAX_PIXELS`` or ``MAX_ASPECT``.
    """
    try:
        return torch.from_numpy(_decode(data)).permute(2, 0, 1)
    except Exception as error:  # PIL's readers raise whatever their parser stumbled on
        what = "not a readable image" if data else "an empty file"
        raise BrokenImageError(f"{source}{what} ({type(error).__name__}: {error})") from error


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """Turn (3, H, W) uint8 pixels into a PIL image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _decode(data: bytes) -> np.ndarray:
    image = open_image(data)  # reads the header only: about 20 microseconds
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} × {image.height} is over {MAX_PIXELS} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width} × {image.height} is over {MAX_ASPECT} to 1")
    if image.format in ("JPEG", "MPO"):
        space = "CMYK" if image.mode == "CMYK" else "RGB"
        pixels = simplejpeg.decode_jpeg(data, space, strict=True)
        if space == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1:
            return pixels
        # Sound, but PIL knows better how to turn it and what its inks mean.
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def open_image(data: bytes) -> Image.Image:
    """Open an image file with PIL, unread; HEIC and AVIF where pillow-heif is installed.

    Raises
    ------
    ValueError
        If pillow-heif is needed and not there.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in _HEIF:
            raise ValueError("of no kind that is known") from None
    try:
        from pillow_heif import register_heif_opener  # late: it need not be installed
    except ImportError:
        kind = "AVIF" if data[8:10] == b"av" else "HEIC"
        raise ValueError(f"a {kind} file: to read it, install the package pillow-heif") from None
    register_heif_opener()
    return Image.open(io.BytesIO(data), formats=("HEIF", "AVIF"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, of which convert() would clip all but the darkest 256
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
