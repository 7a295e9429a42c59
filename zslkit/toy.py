"""The toy set: drawn scenes with captions in which zero-shot recognition means something.

A class is a colour and a shape, named by a coined word such as ``redstar``. Test and dev classes
are pairs whose colour and shape both occur in training, but never together, so neither the pair
nor its word is ever seen. Whoever ranks them right has learnt what the parts look like and how
to read a compound.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SPLITS = ("train", "dev", "test", "seen")
CAPTIONS_PER_SCENE = 3
SUPERSAMPLING = 3  # edges are anti-aliased by averaging 3 × 3 drawn pixels

# First the word that class names use, then its synonyms.
COLOURS = {
    ("red", "scarlet", "crimson"): (214, 38, 40),
    ("orange", "tangerine"): (242, 138, 30),
    ("yellow", "lemon"): (244, 216, 52),
    ("lime", "chartreuse"): (160, 214, 50),
    ("green", "emerald"): (32, 140, 66),
    ("cyan", "turquoise"): (48, 200, 206),
    ("blue", "azure", "cobalt"): (38, 84, 206),
    ("purple", "violet"): (124, 58, 178),
    ("pink", "rose"): (244, 132, 178),
    ("brown", "chestnut"): (126, 78, 40),
    ("white", "ivory"): (244, 244, 238),
    ("black", "ebony"): (26, 26, 30),
}
SHAPES = (
    ("circle", "disc"),
    ("square", "box"),
    ("triangle", "wedge"),
    ("star", "pentagram"),
    ("plus", "cross"),
    ("heart", "valentine"),
    ("ring", "hoop"),
    ("diamond", "rhombus"),
    ("moon", "crescent"),
    ("arrow", "pointer"),
    ("bolt", "lightning"),
    ("drop", "droplet"),
)
TEXTURES = (("plain", "smooth"), ("striped", "banded"), ("dotted", "spotted"), ("checked", "tiled"))
BACKGROUNDS = (("plain", "flat"), ("shaded", "fading"), ("cloudy", "blurry"), ("lined", "ruled"))
# Shape number minus colour number, modulo 12: every colour and every shape occurs equally often
# in each group, so that neither gives a class away.
_OFFSETS = {"train": (0, 2, 3, 5, 6, 8, 9, 11), "dev": (4, 10), "test": (1, 7)}


def _combinations(group):
    return [(c, (c + o) % len(SHAPES)) for o in _OFFSETS[group] for c in range(len(COLOURS))]


COMBINATIONS = {name: _combinations("train" if name == "seen" else name) for name in SPLITS}
_PALETTE = tuple(COLOURS.values())
_COLOUR_WORDS = tuple(COLOURS)


@dataclass(frozen=True)
class Thing:
    """One object: numbers of its colour, shape and texture; lengths in units of the image side."""

    colour: int
    shape: int
    texture: int
    x: float
    y: float
    radius: float
    angle: float  # radians
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What one image shows; ``main`` carries the class and is drawn last."""

    main: Thing
    distractors: tuple[Thing, ...]
    background: int
    background_colour: int
    cells: tuple[tuple[int, int, int], ...]  # the 4 × 4 colours a background is grown from


class ToyScenes:
    """Scenes of coloured, textured shapes with captions, a pure function of (seed, split, i).

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

    Attributes
    ----------
    class_names : list of str
        24 coined words for ``dev`` and for ``test``, 96 for ``train`` and ``seen``.

    Raises
    ------
    ValueError
        For an unknown split, or n, seed or image_size out of range.
    """

    def __init__(self, split: str, n: int, seed: int, image_size: int):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        for name, value, least in (("n", n, 1), ("seed", seed, 0), ("image_size", image_size, 16)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        self.split, self.n, self.seed, self.image_size = split, n, seed, image_size
        self.class_names = [
            _COLOUR_WORDS[colour][0] + SHAPES[shape][0] for colour, shape in COMBINATIONS[split]
        ]

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
        main = _thing(rng, colour, shape, rng.uniform(0.2, 0.32), around=None)
        # Distractors come from the training classes in every split: a test scene has one answer.
        distractors = tuple(
            _thing(rng, *rng.choice(COMBINATIONS["train"]), rng.uniform(0.09, 0.15), around=main)
            for _ in range(rng.choice((0, 1, 1, 2)))
        )
        background_colour = rng.choice([c for c in range(len(COLOURS)) if c != colour])
        cells = tuple(_shade(rng, background_colour, 0.55, 26) for _ in range(16))
        return Scene(main, distractors, rng.randrange(len(BACKGROUNDS)), background_colour, cells)

    def render(self, i: int) -> np.ndarray:
        """Draw scene ``i``.

        Returns
        -------
        ndarray of shape (image_size, image_size, 3), uint8
            RGB.
        """
        scene = self.scene(i)
        canvas = _paint_background(scene, self.image_size * SUPERSAMPLING)
        for thing in (*scene.distractors, scene.main):
            _paint(canvas, thing)
        return np.array(canvas.reduce(SUPERSAMPLING))

    def captions(self, i: int) -> list[str]:
        """Describe scene ``i`` three times, as the web would: true, but seldom complete."""
        scene = self.scene(i)
        rng = random.Random(f"captions/{self.seed}/{self.split}/{i}")
        return [_caption(rng, scene) for _ in range(CAPTIONS_PER_SCENE)]


def _thing(rng, colour, shape, radius, around):
    """Draw an object's free attributes; keep it clear of ``around`` where there is room."""
    spots = [[rng.uniform(radius, 1 - radius) for _ in "xy"] for _ in range(8)]
    x, y = spots[0]
    if around is not None:
        x, y = max(spots, key=lambda spot: math.dist(spot, (around.x, around.y)))
    texture = rng.randrange(len(TEXTURES))
    return Thing(
        colour, shape, texture, x, y, radius, rng.uniform(-0.5, 0.5), _shade(rng, colour, 0.0, 22)
    )


def _shade(rng, colour, mute, spread):
    """Vary a palette colour by ``spread`` of 255 levels after moving it ``mute`` towards grey."""
    return tuple(
        min(255, max(0, round((1 - mute) * level + mute * 128 + rng.uniform(-spread, spread))))
        for level in _PALETTE[colour]
    )


def _paint_background(scene, side):
    kind, cells = BACKGROUNDS[scene.background][0], scene.cells
    canvas = Image.new("RGB", (side, side), cells[0])
    if kind == "lined":
        draw, step = ImageDraw.Draw(canvas), side / 8
        for row in range(8):
            draw.rectangle((0, row * step, side, (row + 0.4) * step), fill=cells[1])
    elif kind != "plain":
        grid = 2 if kind == "shaded" else 4
        small = Image.new("RGB", (grid, grid))
        small.putdata(cells[: grid * grid])
        canvas = small.resize((side, side), Image.Resampling.BICUBIC)
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
        tone = 70 if sum(thing.rgb) < 200 else -70  # dark colours get light marks
        second = tuple(min(255, max(0, level + tone)) for level in thing.rgb)
        pattern = _pattern(TEXTURES[thing.texture][0], side)
        canvas.paste(second, corner, ImageChops.multiply(mask, pattern))


@lru_cache(maxsize=256)  # sides are few: every texture is drawn once per size
def _pattern(texture, side):
    period = side / 5.5
    y, x = np.mgrid[:side, :side] / period
    if texture == "striped":
        marks = (x + y) % 1 < 0.4
    elif texture == "dotted":
        marks = np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.3
    else:
        marks = (np.floor(x) + np.floor(y)) % 2 == 0
    return Image.fromarray(marks.astype(np.uint8) * 255)


@lru_cache
def _outline(shape):
    """Return a shape's corners, (K, 2), y pointing down, about one unit from the centre."""
    turn = np.linspace(0, 2 * np.pi, 48)
    cos, sin = np.cos(turn), np.sin(turn)
    if shape == "circle":
        return np.stack([cos, sin], 1) * 0.95
    if shape == "ring":  # there and back again: even-odd filling leaves the hole
        return np.concatenate([np.stack([cos, sin], 1), np.stack([cos, -sin], 1) * 0.55])
    if shape == "heart":
        y = 13 * cos - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([16 * sin**3, -y - 2], 1) / 16
    if shape == "drop":
        return np.stack([1.25 * sin * np.sin(turn / 2) ** 2, -cos], 1) * 1.05
    if shape == "moon":
        outer, inner = turn / 1.5 + np.pi / 3, np.linspace(4.65, 1.63, 48)
        hollow = np.stack([0.55 + 0.867 * np.cos(inner), 0.867 * np.sin(inner)], 1)
        return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), hollow])
    if shape == "star":
        turn = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.45, 1.1)
        return np.stack([np.sin(turn) * reach, -np.cos(turn) * reach], 1)
    corners = {
        "square": "-8 -8 8 -8 8 8 -8 8",
        "triangle": "0 -11 10 7 -10 7",
        "plus": "-3 -10 3 -10 3 -3 10 -3 10 3 3 3 3 10 -3 10 -3 3 -10 3 -10 -3 -3 -3",
        "diamond": "0 -11 7 0 0 11 -7 0",
        "arrow": "-10 -3 1 -3 1 -9 11 0 1 9 1 3 -10 3",
        "bolt": "2 -11 -7 2 -1 2 -3 11 7 -3 1 -3 6 -11",
    }[shape]
    return np.array(corners.split(), float).reshape(-1, 2) / 10


def _caption(rng, scene):
    about, rest = scene.main, list(scene.distractors)
    if rest and rng.random() < 0.08:  # the caption misses what the image is about
        about = rest.pop(0)
    text = _noun_phrase(rng, about)
    if rest and rng.random() < 0.4:
        other = _noun_phrase(rng, rest[0])
        joint = rng.choice(("{} next to {}", "{} and {}", "{} with {}", "{1} beside {0}"))
        text = joint.format(text, other)
    if rng.random() < 0.3:
        text += f" {_position(about)}"
    if rng.random() < 0.3:
        tint = rng.choice(("", _word(rng, _COLOUR_WORDS[scene.background_colour]) + " "))
        kind = _word(rng, BACKGROUNDS[scene.background])
        ground = rng.choice(("background", "ground", "backdrop"))
        text += f" on {_article(f'{tint}{kind} {ground}')}"
    lead = ("a picture of ", "a photo of ", "a drawing of ", "here is ", "we see ")
    return rng.choice(lead) + text if rng.random() < 0.4 else text


def _noun_phrase(rng, thing):
    """Name a thing by some of its attributes, at least by its colour or its shape."""
    colour, shape = _word(rng, _COLOUR_WORDS[thing.colour]), _word(rng, SHAPES[thing.shape])
    missing = rng.random()
    if missing < 0.15:
        noun = shape
    elif missing < 0.3:
        noun = f"{colour} {rng.choice(('shape', 'thing', 'object', 'figure'))}"
    else:
        noun = rng.choice((f"{colour} {shape}", colour + shape))
    adjectives = []
    if rng.random() < 0.25:
        size = ("tiny", "small") if thing.radius < 0.17 else ("large", "big", "huge")
        adjectives.append(rng.choice(size))
    if rng.random() < 0.3:
        adjectives.append(_word(rng, TEXTURES[thing.texture]))
    return _article(" ".join([*adjectives, noun]))


def _word(rng, names):
    """Prefer the first name, but use every synonym."""
    return names[0] if rng.random() < 0.6 else rng.choice(names[1:])


def _article(phrase):
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _position(thing):
    row = ("at the top", "", "at the bottom")[min(2, int(3 * thing.y))]
    column = ("on the left", "", "on the right")[min(2, int(3 * thing.x))]
    return " ".join(filter(None, (row, column))) or "in the middle"
