"""The toy set: drawn scenes with captions in which zero-shot recognition means something.

A class is a colour and a shape, named by a coined word such as ``redstar``. Test and dev classes
are pairs whose parts occur in training, but never together: neither the pair nor its word is ever
seen. Whoever ranks them right knows what the parts look like and how to read a compound.
"""

import math
import random
import re
from collections import namedtuple
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SUPERSAMPLING = 3  # edges are anti-aliased by averaging 3 × 3 drawn pixels

# The first word of each group is the one that class names use.
COLOURS, SHAPES, TEXTURES, BACKGROUNDS = (
    [words.split("/") for words in text.split()]
    for text in (
        "red/scarlet/crimson orange/tangerine yellow/lemon lime/chartreuse green/emerald "
        "cyan/turquoise blue/azure/cobalt purple/violet pink/rose brown/chestnut white/ivory "
        "black/ebony",
        "circle/disc square/box triangle/wedge star/pentagram plus/cross heart/valentine "
        "ring/hoop diamond/rhombus moon/crescent arrow/pointer bolt/lightning drop/droplet",
        "plain/smooth striped/banded dotted/spotted checked/tiled",
        "plain/flat shaded/fading cloudy/blurry striped/ruled",
    )
)
_HEX = "d62628 f28a1e f4d834 a0d632 208c42 30c8ce 2654ce 7c3ab2 f484b2 7e4e28 f4f4ee 1a1a1e"
PALETTE = [tuple(bytes.fromhex(rgb)) for rgb in _HEX.split()]  # of the colours, in their order
# Shape number minus colour number, modulo 12: each colour and each shape is equally frequent in
# every split, so that neither alone gives a class away.
_OFFSETS = {"train": (0, 2, 5, 6, 9, 11), "dev": (4, 10), "test": (1, 3, 7, 8)}
COMBINATIONS = {
    split: [(colour, (colour + offset) % 12) for offset in offsets for colour in range(12)]
    for split, offsets in _OFFSETS.items()
}
COMBINATIONS["seen"] = COMBINATIONS["train"]

# Lengths in units of the image side, the angle in radians; the main thing carries the class.
Thing = namedtuple("Thing", "colour shape texture x y radius angle rgb")
Scene = namedtuple("Scene", "main distractors background background_colour cells")


class ToyScenes:
    """Scenes of coloured, textured shapes with captions, a pure function of (seed, split, i).

    ``class_names`` lists 48 coined words for test, 24 for dev, 72 for train and seen.

    Parameters
    ----------
    split : {"train", "dev", "test", "seen"}
        ``dev`` and ``test``: classes that no training scene shows and no training caption
        names, not even as a distractor. ``seen``: further scenes of the training classes.
    n : int
        Number of scenes. Classes take turns, so their counts differ by at most one.
    seed : int
        Draws everything but the classes, which are fixed.
    image_size : int
        Side of the square images, in pixels, at least 16.

    Raises
    ------
    ValueError
        If an argument is unknown or out of range.
    """

    def __init__(self, split: str, n: int, seed: int, image_size: int):
        if split not in COMBINATIONS:
            raise ValueError(f"split={split!r} must be one of {', '.join(COMBINATIONS)}")
        for name, value, least in (("n", n, 1), ("seed", seed, 0), ("image_size", image_size, 16)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        self.split, self.n, self.seed, self.image_size = split, n, seed, image_size
        self.class_names = [COLOURS[c][0] + SHAPES[s][0] for c, s in COMBINATIONS[split]]

    def __len__(self) -> int:
        return self.n

    def class_index(self, i: int) -> int:
        """Return the position of scene ``i``'s class in ``class_names``."""
        if not 0 <= i < self.n:
            raise IndexError(f"scene {i} of {self.n}")
        return i % len(self.class_names)

    def scene(self, i: int) -> Scene:
        """Return the description that ``render`` draws and ``captions`` puts into words."""
        rng = random.Random(f"scene/{self.seed}/{self.split}/{i}")
        colour, shape = COMBINATIONS[self.split][self.class_index(i)]
        main = _thing(rng, colour, shape, rng.uniform(0.24, 0.36))
        # Distractors come from the training classes in every split: a test scene has one answer.
        distractors = [  # main[3:5] is where it stands
            _thing(rng, *rng.choice(COMBINATIONS["train"]), rng.uniform(0.09, 0.14), main[3:5])
            for _ in range(rng.choice((0, 1, 1, 2)))
        ]
        ground = rng.choice([c for c in range(12) if c != colour])
        cells = [_shade(rng, ground, 0.6, 24) for _ in range(16)]
        return Scene(main, distractors, rng.randrange(len(BACKGROUNDS)), ground, cells)

    def render(self, i: int) -> np.ndarray:
        """Draw scene ``i`` as RGB, (image_size, image_size, 3), uint8."""
        scene = self.scene(i)
        canvas = _background(scene, self.image_size * SUPERSAMPLING)
        for thing in (*scene.distractors, scene.main):
            _paint(canvas, thing)
        return np.array(canvas.reduce(SUPERSAMPLING))

    def captions(self, i: int) -> list[str]:
        """Describe scene ``i`` three times, as the web would: seldom completely."""
        rng, scene = random.Random(f"captions/{self.seed}/{self.split}/{i}"), self.scene(i)
        return [_caption(rng, scene) for _ in range(3)]


def _thing(rng, colour, shape, radius, away_from=None):
    spots = [(rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)) for _ in range(8)]
    x, y = max(spots, key=lambda at: math.dist(at, away_from)) if away_from else spots[0]
    texture, angle, rgb = rng.randrange(4), rng.uniform(-0.5, 0.5), _shade(rng, colour, 0, 22)
    return Thing(colour, shape, texture, x, y, radius, angle, rgb)


def _shade(rng, colour, mute, spread):
    """Move a palette colour by the share ``mute`` towards grey and by up to ``spread`` levels."""
    levels = ((1 - mute) * v + mute * 128 + rng.uniform(-spread, spread) for v in PALETTE[colour])
    return tuple(min(255, max(0, round(level))) for level in levels)


def _background(scene, side):
    grid = (1, 2, 4, 1)[scene.background]
    cells = np.array(scene.cells[: grid * grid], np.uint8).reshape(grid, grid, 3)
    canvas = Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)
    if BACKGROUNDS[scene.background][0] == "striped":
        canvas.paste(scene.cells[-1], mask=_pattern("striped", side))
    return canvas


def _paint(canvas, thing):
    """Paste one object: its outline filled with its colour, its texture in a second tone."""
    radius = thing.radius * canvas.width
    side = math.ceil(2.4 * radius)
    cos, sin = math.cos(thing.angle) * radius, math.sin(thing.angle) * radius
    outline = _outline(SHAPES[thing.shape][0]) @ np.array([[cos, sin], [-sin, cos]]) + side / 2
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(outline.ravel().tolist(), fill=255)
    corner = round(thing.x * canvas.width - side / 2), round(thing.y * canvas.width - side / 2)
    canvas.paste(thing.rgb, corner, mask)
    if thing.texture:
        tone = 60 if sum(thing.rgb) < 200 else -60  # dark colours get light marks
        second = tuple(min(255, max(0, level + tone)) for level in thing.rgb)
        marks = ImageChops.multiply(mask, _pattern(TEXTURES[thing.texture][0], side))
        canvas.paste(second, corner, marks)


@lru_cache(maxsize=512)  # sides are few: each texture is computed once per size
def _pattern(texture, side):
    y, x = np.mgrid[:side, :side] * 5.5 / side
    marks = {
        "striped": (x + y) % 1 < 0.4,
        "dotted": np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.3,
        "checked": (x // 1 + y // 1) % 2 == 0,
    }[texture]
    return Image.fromarray(marks.astype(np.uint8) * 255)


@lru_cache
def _outline(shape):
    """Return a shape's corners, (K, 2), y pointing down, about one unit from the centre."""
    corners = {
        "square": "-8 -8 8 -8 8 8 -8 8",
        "triangle": "0 -11 10 7 -10 7",
        "star": "0 -11 3 -4 10 -3 4 1 6 9 0 5 -6 9 -4 1 -10 -3 -3 -4",
        "plus": "-3 -10 3 -10 3 -3 10 -3 10 3 3 3 3 10 -3 10 -3 3 -10 3 -10 -3 -3 -3",
        "diamond": "0 -11 7 0 0 11 -7 0",
        "arrow": "-10 -3 1 -3 1 -9 11 0 1 9 1 3 -10 3",
        "bolt": "2 -11 -7 2 -1 2 -3 11 7 -3 1 -3 6 -11",
    }
    if shape in corners:
        return np.array(corners[shape].split(), float).reshape(-1, 2) / 10
    turn = np.linspace(0, 2 * np.pi, 48)
    cos, sin = np.cos(turn), np.sin(turn)
    outer, hollow = turn / 1.5 + np.pi / 3, 0.867 * np.exp(1j * np.linspace(4.65, 1.63, 48))
    valentine = 13 * cos - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    x, y = {
        "circle": (0.95 * cos, 0.95 * sin),
        "ring": (np.r_[cos, 0.55 * cos], np.r_[sin, -0.55 * sin]),  # even-odd filling: a hole
        "heart": (sin**3, -(valentine + 2) / 16),
        "drop": (1.31 * sin * np.sin(turn / 2) ** 2, -1.05 * cos),
        "moon": (np.r_[np.cos(outer), 0.55 + hollow.real], np.r_[np.sin(outer), hollow.imag]),
    }[shape]
    return np.stack([x, y], 1)


def _caption(rng, scene):
    about, rest = scene.main, list(scene.distractors)
    if rest and rng.random() < 0.08:  # the caption misses what the image is about
        about = rest.pop(0)
    text = _noun_phrase(rng, about)
    if rest and rng.random() < 0.4:
        joint = rng.choice(("{} next to {}", "{} and {}", "{} with {}", "{1} beside {0}"))
        text = joint.format(text, _noun_phrase(rng, rest[0]))
    if rng.random() < 0.3:
        row = ("at the top ", "", "at the bottom ")[min(2, int(3 * about.y))]
        column = ("on the left", "", "on the right")[min(2, int(3 * about.x))]
        text += f" {row}{column}".rstrip() or " in the middle"
    if rng.random() < 0.3:
        tint = rng.choice(("", _word(rng, COLOURS[scene.background_colour]) + " "))
        kind = _word(rng, BACKGROUNDS[scene.background])
        text += f" on a {tint}{kind} {rng.choice(('background', 'ground', 'backdrop'))}"
    lead = (*[""] * 7, "a picture of ", "a photo of ", "a drawing of ", "here is ", "we see ")
    return re.sub(r"\ba (?=[aeiou])", "an ", rng.choice(lead) + text)


def _noun_phrase(rng, thing):
    """Name a thing by some of its attributes, at least by its colour or its shape."""
    colour, shape = _word(rng, COLOURS[thing.colour]), _word(rng, SHAPES[thing.shape])
    missing = rng.random()
    noun = shape if missing < 0.15 else rng.choice((f"{colour} {shape}", colour + shape))
    if missing > 0.85:
        noun = f"{colour} {rng.choice(('shape', 'thing', 'object', 'figure'))}"
    if rng.random() < 0.3:
        noun = f"{_word(rng, TEXTURES[thing.texture])} {noun}"
    if rng.random() < 0.25:
        noun = f"{_word(rng, ('small', 'tiny') if thing.radius < 0.2 else ('large', 'big'))} {noun}"
    return f"a {noun}"


def _word(rng, names):
    return names[0] if rng.random() < 0.6 else rng.choice(names[1:])
