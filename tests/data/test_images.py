import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from zslkit.data import images
from zslkit.data.images import BrokenImageError, decode_image, to_pil


def photo(width=48, height=32):
    """A smooth picture, so that JPEG changes it little."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def noise(size=96):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close_to(pixels, image, tolerance):
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert pixels.shape == expected.shape
    assert (pixels.int() - expected.int()).abs().float().mean() < tolerance


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_equals_torchvision(options):
    data = encoded(photo(), "JPEG", **options)
    reference = torchvision_decode(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
    )
    pixels = decode_image(data)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, reference)


def test_grey_jpeg_becomes_three_equal_channels():
    grey = photo().convert("L")
    pixels = decode_image(encoded(grey, "JPEG"))
    assert torch.equal(pixels[0], pixels[1])
    close_to(pixels, grey, 2)


# The EXIF specification: how the stored rows and columns lie in the upright picture.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo()
    upright = stored.transpose(TURNS[orientation]) if orientation > 1 else stored
    close_to(decode_image(encoded(stored, kind, exif=exif)), upright, 4)


def test_cmyk_jpeg_keeps_its_colours():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    red, green, blue = decode_image(encoded(ink, "JPEG", quality=95)).float().mean((1, 2))
    assert red > 200
    assert max(green, blue) < 60


def test_palette_and_grey_png():
    palette = photo().quantize(32)
    close_to(decode_image(encoded(palette, "PNG")), palette, 0.01)
    close_to(decode_image(encoded(photo().convert("L"), "PNG")), photo().convert("L"), 0.01)


def test_sixteen_bit_png_keeps_its_range():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode_image(encoded(Image.fromarray(levels), "PNG"))
    assert np.array_equal(pixels[1].numpy(), (levels // 256).astype(np.uint8))


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert decode_image(encoded(image, "PNG"))[0, 0].tolist() == [255, 0, 127]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 0])
    assert decode_image(encoded(palette, "PNG", transparency=0)).unique().tolist() == [255]


def test_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[:, 0, 0].tolist() == [255, 0, 0]


def damaged(data):
    """Overwrite 64 bytes in the middle."""
    middle, rng = len(data) // 2, random.Random(0)
    return data[:middle] + bytes(rng.randrange(255) for _ in range(64)) + data[middle + 64 :]


BROKEN = {
    "empty": (b"", "an empty file"),
    "text": (b"<html>404 Not Found</html>", "not a readable image"),
    "truncated JPEG": (encoded(noise(), "JPEG")[:-400], "not a readable image"),
    "damaged JPEG": (damaged(encoded(noise(), "JPEG")), "not a readable image"),
    "damaged progressive": (damaged(encoded(noise(), "JPEG", progressive=True)), "Corrupt"),
    "damaged CMYK": (damaged(encoded(noise().convert("CMYK"), "JPEG")), "not a readable"),
    "truncated PNG": (encoded(noise(), "PNG")[:-400], "not a readable image"),
    "damaged PNG": (damaged(encoded(noise(), "PNG")), "not a readable image"),
    "header only": (encoded(noise(), "JPEG")[:700], "not a readable image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name):
    data, message = BROKEN[name]
    with pytest.raises(BrokenImageError, match=message):
        decode_image(data)


def test_damage_that_pil_does_not_see():
    """The reason for strict decoding: without it this file is a picture with grey bands."""
    Image.open(io.BytesIO(BROKEN["damaged JPEG"][0])).load()


def test_unreasonably_large_images_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match="48 × 32 is over 1000 pixels"):
        decode_image(encoded(photo(), "JPEG"))


def test_a_decompression_bomb_is_refused_from_its_header():
    header = encoded(Image.new("1", (1, 1)), "BMP")
    bomb = header[:18] + (20000).to_bytes(4, "little") * 2 + header[26:]
    with pytest.raises(BrokenImageError, match="DecompressionBombError"):
        decode_image(bomb)


@pytest.mark.parametrize(
    ("size", "sound"), [((100, 1), True), ((101, 1), False), ((1, 50_000), False)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_strips_that_resizing_would_blow_up_are_broken_images(size, sound, kind):
    data = encoded(Image.new("RGB", size), kind)
    if sound:
        assert decode_image(data).shape == (3, size[1], size[0])
        return
    with pytest.raises(BrokenImageError, match=f"{size[0]} × {size[1]} is over 100 to 1"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "ICNS"])
def test_other_formats_are_not_even_looked_at(kind, monkeypatch):
    """PostScript would start Ghostscript; a renamed file is judged by its content."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: started.append(a))
    with pytest.raises(BrokenImageError, match="of no kind that is known"):
        decode_image(encoded(photo(64, 64), kind))
    assert started == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_listed_format_is_read(kind):
    assert kind in images.FORMATS
    assert decode_image(encoded(photo(), kind)).shape == (3, 32, 48)


def test_to_pil_returns_the_same_pixels():
    image = photo()
    assert np.array_equal(np.array(to_pil(decode_image(encoded(image, "PNG")))), np.array(image))
